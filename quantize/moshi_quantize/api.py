"""`quantize`: a model in memory, or any checkpoint into a folder that `moshi_mlx.load` runs."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import overload

import mlx.core as mx
import mlx.nn as nn

from moshi_mlx.checkpoint import WEIGHTS, Checkpoint, open_checkpoint
from moshi_mlx.errors import CheckpointError
from moshi_mlx.families import Moshi, generated_streams
from moshi_mlx.files import check_new_folder, new_folder
from moshi_mlx.hub import canonical, local_path
from moshi_mlx.lm import Lm

from . import gptq, report, sensitivity
from .card import write_card
from .convert import Emit, Plan, Progress, make_plan, write_model, write_rest
from .dialogues import Dialogues, find_dialogues, is_tokens
from .listening import can_listen
from .recipes import Assignment, Recipe, layers_of
from .recipes import recipe as find_recipe
from .replies import Replies

_PROBED = 4  # calibration dialogues that sensitivity is measured on
LISTENED = 12  # evaluation dialogues whose replies are listened to


@dataclass(frozen=True)
class Result:
    """What `quantize` made: the folder, how, and how good it is, if that was measured.

    left_out: bytes of the original's weights that a conversation does not use.
    """

    folder: Path
    plan: Plan
    left_out: int = 0
    figures: report.Figures | None = None

    @property
    def nbytes(self) -> int:
        """Of the weights file."""
        return (self.folder / WEIGHTS).stat().st_size


@overload
def quantize(model: Moshi | Lm, how: str | Recipe | None = ...) -> Lm: ...
@overload
def quantize(
    model: str | Path | Checkpoint,
    how: str | Recipe | None = ...,
    target: str | Path = ...,
    *,
    dtype: mx.Dtype | None = ...,
    base: str | Path | None = ...,
    offline: bool = ...,
    link_mimi: bool = ...,
    dialogue: str | Path | None = ...,
    measured: bool = ...,
    all_streams: bool = ...,
    progress: Progress | None = ...,
) -> Result: ...
def quantize(
    model: Moshi | Lm | str | Path | Checkpoint,
    how: str | Recipe | None = "q4",
    target: str | Path | None = None,
    *,
    dtype: mx.Dtype | None = mx.bfloat16,
    base: str | Path | None = None,
    offline: bool = False,
    link_mimi: bool = False,
    dialogue: str | Path | None = None,
    measured: bool = False,
    all_streams: bool = False,
    progress: Progress | None = None,
) -> Lm | Result:
    """Quantizes.

        lm = moshi_quantize.quantize(moshi_mlx.load("nano"), "q8")          # in place
        moshi_quantize.quantize("kyutai/moshiko-pytorch-bf16", "q4", "moshiko-q4")

    Args:
        model: a loaded model, quantized in place; or what `moshi_mlx.load` takes, a weights file,
            or an adapter: then `target` is written, tensor by tensor, in little memory.
        how: a recipe, its name, a precision for all layers ("4:64", "mxfp4"), or None: convert.
        target: the folder to make: absent or empty. It appears whole or not at all.
        dtype: of what is not quantized, and of scales and biases; None leaves it.
        base: the model that an adapter is for.
        offline: never use the network.
        link_mimi: link the codec's file instead of copying it.
        dialogue: tokens (.npz) or a recording, for recipes that measure or learn, and the report.
        measured: compare the result with the original; the figures go into its README.md and
            quality.json.
        all_streams: keep the weights of streams that the model is given in use, as the other side
            of a conversation; what is only converted keeps them always.
        progress: called with what is done, how much there is in all, and a name.

    Raises:
        RecipeError: there is no such recipe, or it doesn't fit the model.
        CheckpointError: something about the source or the target; says what.
        HubError: the source is not there.
    """
    chosen = find_recipe(how)
    if isinstance(model, Moshi | Lm):
        return _in_place(model, chosen)
    if target is None:
        raise ValueError("a checkpoint is quantized into a folder: name it as `target`")
    check_new_folder(Path(target).expanduser(), _folder_of(model))  # before a model is fetched
    source = (
        model
        if isinstance(model, Checkpoint)
        else open_checkpoint(model, base=base, offline=offline)
    )
    whole = source
    if chosen.quantizes and not all_streams:
        source = source.generating(generated_streams(source.config, source.name))
    plan = make_plan(source, chosen, dtype)
    _check_early(plan, chosen, dialogue)
    folder = Path(target).expanduser()
    needed = plan.nbytes + (0 if link_mimi else source.files.mimi.stat().st_size)
    if measured and not source.config.lm.dep_q and dialogue is None:
        measured = False
        if progress is not None:
            progress(
                0, 0, "no report: a model that doesn't speak needs tokens, --dialogue FILE.npz"
            )
    figures = None
    with new_folder(folder, needed, source.folder) as fresh:
        tokens: Dialogues | None = None
        if chosen.calibrated or is_tokens(dialogue):
            tokens = find_dialogues(source, dialogue)
        if chosen.calibrated and tokens is not None:
            assignment = measured_bits(plan, chosen, tokens, progress)
            plan = make_plan(source, chosen, dtype, assignment)
        learned = _learned(plan, chosen, tokens)
        write_model(plan, fresh / WEIGHTS, learned=learned, progress=progress)
        write_rest(plan, fresh, link_mimi=link_mimi)
        quality = None
        if measured:
            if progress is not None:
                progress(0, 0, "comparing with the original, which takes a minute or more")
            made = replace(open_checkpoint(fresh), name=folder.name)
            tokens = tokens or find_dialogues(source, dialogue, made)
            listens = can_listen() and plan.source.config.lm.dep_q != 0
            replies = Replies(tokens.evaluation[:LISTENED]) if listens and _small(source) else None
            (figures,) = report.measure(source, [made], tokens, replies)
            quality = f"{report.table([figures])}\n\nKL / top-1 of each stream:\n\n"
            quality += f"{report.codebook_table([figures])}\n\nOn {tokens.origin}.\n"
            text = report.as_json(source.name, tokens, [figures])
            (fresh / "quality.json").write_text(text, encoding="utf-8")
        write_card(plan, chosen, fresh, quality)
    return Result(folder, plan, _size(whole) - _size(source), figures)


def _size(source: Checkpoint) -> int:
    return sum(value.nbytes for value in source.weights().values())


def _check_early(plan: Plan, chosen: Recipe, dialogue: str | Path | None) -> None:
    """What would stop the work later."""
    if chosen.target_bits is not None:
        fixed = chosen.fixed(plan.layers, plan.source.config.raw)
        sensitivity.check_target(plan.layers, chosen.target_bits, fixed)
    if dialogue is not None and not Path(dialogue).is_file():
        raise CheckpointError(f"{dialogue}: there is no such file of tokens, and no such recording")


def _folder_of(model: str | Path | Checkpoint) -> Path | None:
    """The folder that a model is in, if that is known without the network."""
    if isinstance(model, Checkpoint):
        return model.folder
    path = local_path(canonical(model))
    return path.parent if path.is_file() else path if path.is_dir() else None


def _small(source: Checkpoint) -> bool:
    """Whether the original can be run, not only gone through layer by layer."""
    return source.nbytes < 1e9


def measured_bits(
    plan: Plan, chosen: Recipe, tokens: Dialogues, progress: Progress | None = None
) -> Assignment:
    """What a recipe gives each layer, by measuring where it asks for that."""
    if chosen.target_bits is None:
        return plan.assignment
    costs = sensitivity.measure_sensitivity(
        plan.source, plan.layers, tokens.calibration[:_PROBED], progress=progress
    )
    fixed = chosen.fixed(plan.layers, plan.source.config.raw)
    return sensitivity.give_out(costs, plan.layers, chosen.target_bits, fixed)


def _learned(plan: Plan, chosen: Recipe, tokens: Dialogues | None) -> Callable[[Emit], None] | None:
    if chosen.method == "nearest" or tokens is None:
        return None
    codes = tokens.calibration

    def learned(emit: Emit) -> None:
        gptq.quantize_layers(
            plan.source, list(plan.layers), plan.assignment, plan.dtype or mx.bfloat16, codes, emit
        )

    return learned


def _in_place(model: Moshi | Lm, chosen: Recipe) -> Lm:
    lm = model if isinstance(model, Lm) else model.lm
    config = asdict(model.config) if isinstance(model, Lm) else model.config.raw
    if chosen.calibrated:
        raise CheckpointError(
            f"recipe '{chosen.name}' needs dialogue tokens: quantize the checkpoint, not the model"
        )
    assignment = chosen.assign(layers_of(lm), config)
    blocks = {path: given.block for path, given in assignment.items() if given is not None}
    if blocks:
        nn.quantize(lm, class_predicate=lambda path, _: blocks.get(path, False))
    return lm
