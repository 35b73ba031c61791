"""`quantize`: a model in memory, or any checkpoint into a folder that `moshi_mlx.load` runs."""

from dataclasses import dataclass
from pathlib import Path
from typing import overload

import mlx.core as mx
import mlx.nn as nn

from moshi_mlx.errors import CheckpointError
from moshi_mlx.lm import Lm
from moshi_mlx.moshi import Moshi

from .card import write_card
from .convert import WEIGHTS, Plan, Progress, make_plan, new_folder, write_model, write_rest
from .recipe import Recipe, layers_of
from .recipe import recipe as find_recipe
from .source import Source, open_source


@dataclass(frozen=True)
class Result:
    """What `quantize` made: the folder, and how."""

    folder: Path
    plan: Plan

    @property
    def nbytes(self) -> int:
        """Of the weights file."""
        return (self.folder / WEIGHTS).stat().st_size


@overload
def quantize(model: Moshi | Lm, how: str | Recipe | None = ...) -> Lm: ...
@overload
def quantize(
    model: str | Path | Source,
    how: str | Recipe | None = ...,
    target: str | Path = ...,
    *,
    dtype: mx.Dtype | None = ...,
    base: str | Path | None = ...,
    offline: bool = ...,
    link_mimi: bool = ...,
    progress: Progress | None = ...,
) -> Result: ...
def quantize(
    model: Moshi | Lm | str | Path | Source,
    how: str | Recipe | None = "q4",
    target: str | Path | None = None,
    *,
    dtype: mx.Dtype | None = mx.bfloat16,
    base: str | Path | None = None,
    offline: bool = False,
    link_mimi: bool = False,
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
        progress: called with bytes done, bytes in all, and a name.

    Raises:
        RecipeError: there is no such recipe, or it doesn't fit the model.
        CheckpointError: something about the source or the target; says what.
        HubError: the source is not there.
    """
    chosen = find_recipe(how)
    if isinstance(model, Moshi | Lm):
        return _in_place(model if isinstance(model, Lm) else model.lm, chosen)
    if target is None:
        raise ValueError("a checkpoint is quantized into a folder: name it as `target`")
    source = model if isinstance(model, Source) else open_source(model, base=base, offline=offline)
    plan = make_plan(source, chosen, dtype)
    folder = Path(target).expanduser()
    needed = plan.nbytes + (0 if link_mimi else source.files.mimi.stat().st_size)
    with new_folder(folder, source, needed) as fresh:
        write_model(plan, fresh / WEIGHTS, progress=progress)
        write_rest(plan, fresh, link_mimi=link_mimi)
        write_card(plan, chosen, fresh)
    return Result(folder, plan)


def _in_place(lm: Lm, chosen: Recipe) -> Lm:
    if chosen.calibrated:
        raise CheckpointError(
            f"recipe '{chosen.name}' needs dialogue tokens: quantize the checkpoint, not the model"
        )
    assignment = chosen.assign(layers_of(lm))
    blocks = {path: given.block for path, given in assignment.items() if given is not None}
    if blocks:
        nn.quantize(lm, class_predicate=lambda path, _: blocks.get(path, False))
    return lm
