"""The command line of `moshi-quantize`."""

import io
import re
import runpy
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, cast

import mlx.core as mx
import numpy as np
import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from moshi_mlx.cache import KV_GROUPS
from moshi_mlx.checkpoint import open_checkpoint
from moshi_mlx.conversation_bench import DEFAULT_SCENES
from moshi_mlx.errors import HubError, MoshiError, counted
from moshi_mlx.files import signals_interrupt
from moshi_mlx.outputs import Output, WholeFile, check_outputs, is_stdout, model_inputs
from moshi_mlx.program import refuse_empty, run_program

from . import report as report_of
from .api import LISTENED
from .api import quantize as run
from .behaving import Behaviours, behaviour_table
from .card import command_of
from .dialogues import TOKENS, find_dialogues
from .listening import recognizer
from .recipes import RECIPES, Precision, Predicate, parse_precision
from .recipes import recipe as find_recipe
from .relayout import relayout
from .replies import Replies
from .speaker import Speaker

TOKEN_SUFFIXES = (TOKENS,)

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)

_DTYPES = {"bfloat16": mx.bfloat16, "float16": mx.float16, "float32": mx.float32, "keep": None}


@app.callback()
def about() -> None:
    """Make a model small with moshi-quantize SOURCE TARGET, and see what that cost with report."""


@app.command("quantize")
def quantize_command(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A folder, a weights file, an adapter, org/repo on the hub, or a name from "
            "`moshi-local models`.",
        ),
    ],
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="The folder to make.")],
    bits: Annotated[
        str | None,
        typer.Option(
            "--bits",
            "-b",
            metavar="BITS",
            help="Quantize to this precision: 2, 3, 4, 5, 6 or 8; with a group as 4:64; mxfp4, "
            "mxfp8, nvfp4; or none to convert only.",
            show_default="4",
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help=f"Use this recipe: {', '.join(RECIPES)}.", show_default="q4"
        ),
    ] = None,
    dtype: Annotated[
        str,
        typer.Option(
            metavar="TYPE",
            help=f"Store what is not quantized as {', '.join(_DTYPES)} (keep: as it is).",
        ),
    ] = "bfloat16",
    base: Annotated[
        str,
        typer.Option(metavar="MODEL", help="Merge an adapter into this model.", show_default=False),
    ] = "",
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="WHAT=PRECISION",
            help="Give a part (temporal, depth, embeddings, heads) or layers by name, with *, "
            "another precision; may be repeated.",
            show_default=False,
        ),
    ] = None,
    predicate: Annotated[
        str | None,
        typer.Option(
            metavar="FILE.py",
            help="Ask a function predicate(name, layer) in this file for True, False or a dict.",
            show_default=False,
        ),
    ] = None,
    target_bits: Annotated[
        float | None,
        typer.Option(
            metavar="BITS",
            help="Spend this many bits per weight on average, where measuring shows that they pay.",
            show_default="the recipe's",
        ),
    ] = None,
    learned: Annotated[
        bool, typer.Option("--learned", help="Learn the quantized values (GPTQ).")
    ] = False,
    dialogue: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Measure on these tokens (.npz) or this recording.",
            show_default=False,
        ),
    ] = None,
    measured: Annotated[
        bool, typer.Option("--report/--no-report", help="Compare the result with the original.")
    ] = True,
    link_mimi: Annotated[
        bool, typer.Option("--link-mimi", help="Link the codec instead of copying it.")
    ] = False,
    all_streams: Annotated[
        bool,
        typer.Option(
            "--all-streams",
            help="Also keep what would generate the other side of a conversation, for training.",
        ),
    ] = False,
    layout: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Write mlx, or in full precision kyutai (PyTorch's names) or transformers "
            "(Hugging Face's, the codec inside).",
        ),
    ] = "mlx",
    offline: Annotated[bool, typer.Option("--offline", help="Never use the network.")] = False,
    upload: Annotated[
        str,
        typer.Option(
            metavar="ORG/REPO",
            help="Upload the result to this repository on the hub.",
            show_default=False,
        ),
    ] = "",
) -> None:
    """Convert a checkpoint of any layout and quantize it; by default to 4 bits, as published."""
    if bits is not None and recipe is not None:
        raise typer.BadParameter("give --bits or --recipe, not both")
    if dtype not in _DTYPES:
        raise typer.BadParameter(f"'{dtype}' is not one of {', '.join(_DTYPES)}")
    if upload and (offline or not re.fullmatch(r"[\w.-]+/[\w.-]+", upload)):
        reason = "not with --offline" if offline else f"'{upload}' is not ORG/REPO"
        raise typer.BadParameter(reason, param_hint="--upload")
    if layout not in ("mlx", "kyutai", "transformers"):
        raise typer.BadParameter(f"'{layout}' is not mlx, kyutai or transformers")
    if layout != "mlx":
        given: dict[str, object] = {
            "--bits": bits not in (None, "none"), "--recipe": recipe, "--set": sets,
        }  # fmt: skip
        given |= {"--predicate": predicate, "--target-bits": target_bits, "--learned": learned}
        if wrong := next((name for name, value in given.items() if value), None):
            raise typer.BadParameter(f"{wrong} goes with --layout mlx: others have full precision")
        with _interruptible(), _progress() as progress:
            made = relayout(
                source, target, cast(Any, layout), dtype=_DTYPES[dtype], base=base or None,
                offline=offline, progress=progress,
            )  # fmt: skip
        size = sum(path.stat().st_size for path in made.rglob("*") if path.is_file())
        print(f"{target}: {size / 1e6:.1f} MB in the layout {layout}")
        if upload:
            _upload(made, upload)
        return
    if recipe is None:
        recipe = "q4" if bits is None else {"4": "q4", "8": "q8"}.get(bits, bits)
    chosen = find_recipe(recipe)
    rules = tuple(_rule(text) for text in sets or ())
    chosen = replace(
        chosen,
        rules=(*chosen.rules, *rules),
        predicate=None if predicate is None else _predicate(predicate),
        target_bits=chosen.target_bits if target_bits is None else target_bits,
        method="gptq" if learned else chosen.method,
    )
    with _interruptible(), _progress() as progress:
        result = run(
            source, chosen, target, dtype=_DTYPES[dtype], base=base or None, offline=offline,
            link_mimi=link_mimi, dialogue=dialogue,
            measured=measured and chosen.quantizes, all_streams=all_streams, progress=progress,
        )  # fmt: skip
    if chosen.quantizes and result.plan.base is None:
        print("nothing is quantized: the recipe leaves every layer as it is")
    if result.figures is not None:
        print(report_of.table([result.figures]))
    if result.left_out:
        print(
            f"left out, since no conversation uses it: {result.left_out / 1e6:.1f} MB of the "
            "original that generates the other side; --all-streams keeps it"
        )
    if upload:
        _upload(result.folder, upload)
    for layer in result.plan.skipped[:3]:
        print(
            f"not quantized, no group divides its {counted(layer.shape[1], 'input')}: {layer.name}"
        )
    if len(result.plan.skipped) > 3:
        print(f"and {len(result.plan.skipped) - 3} more like these")
    command = command_of(result.plan.source)
    print(f"{target}: {result.nbytes / 1e6:.1f} MB. Try it: {command} --model {target}")


@app.command("report")
def report_command(
    original: Annotated[str, typer.Argument(metavar="ORIGINAL", help="The model to compare with.")],
    others: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Models made from it.")],
    dialogue: Annotated[
        str,
        typer.Option(
            metavar="FILE",
            help="Measure on these tokens (.npz) or this recording.",
            show_default=False,
        ),
    ] = "",
    json_file: Annotated[
        Path | None,
        typer.Option(
            "--json", metavar="FILE", help="Write all figures to this file.", show_default=False
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE.png", help="Plot quality against size.", show_default=False),
    ] = None,
    listen: Annotated[
        bool,
        typer.Option("--listen", help="Recognize what the models answer (needs pocketsphinx)."),
    ] = False,
    conversation: Annotated[
        bool,
        typer.Option(
            "--conversation",
            help="Also run all of them through the conversation bench of `moshi-local evaluate`.",
        ),
    ] = False,
    scenes: Annotated[
        int,
        typer.Option(
            min=1, metavar="N", help="With --conversation, run this many scenes of each axis."
        ),
    ] = DEFAULT_SCENES,
    seed: Annotated[
        int, typer.Option(min=0, metavar="N", help="With --conversation, the seed of the scenes.")
    ] = 0,
    kv_bits: Annotated[
        list[int] | None,
        typer.Option(
            metavar="BITS",
            help="Also run the models with keys and values in 8 or 4 bits; may be repeated.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Compare models with their original: KL and top-1 on dialogue tokens, size, behaviour."""
    if unknown := set(kv_bits or ()) - set(KV_GROUPS):
        raise typer.BadParameter(f"'{unknown.pop()}' is not 8 or 4", param_hint="--kv-bits")
    names = [original, *others]
    inputs = [Path(dialogue), *(path for name in names for path in model_inputs(name))]
    outputs = [
        *([] if json_file is None else [Output(json_file, "the figures")]),
        *([] if plot is None else [Output(plot, "the plot", report_of.PLOT_SUFFIXES)]),
    ]
    check_outputs(outputs, inputs)
    if plot is not None:
        report_of.plotter()  # before minutes of work
    if conversation:
        behave = Behaviours(scenes, seed)  # what it lacks shows before minutes of work
    source = open_checkpoint(original)
    models = [open_checkpoint(other) for other in others]
    fewest = min(model.config.lm.dep_q for model in (source, *models))
    source, *models = (model.generating(fewest) for model in (source, *models))
    with _interruptible():
        tokens = find_dialogues(source, dialogue or None, models[-1])
        if listen:
            recognizer()  # before minutes of work
        replies = Replies(tokens.evaluation[:LISTENED]) if listen else None
        figures = report_of.measure(
            source, models, tokens, replies, kv_bits=list(kv_bits or ()) or [None]
        )
        evaluations = behave.of(names, _said) if conversation else []
    taken = json_file is not None and is_stdout(json_file)
    shown = f"{report_of.table(figures)}\n\n{report_of.codebook_table(figures)}"
    if evaluations:
        shown += f"\n\n{behaviour_table(evaluations)}"
    print(f"{shown}\n\nOn {tokens.origin}.", file=sys.stderr if taken else sys.stdout)
    if json_file is not None:
        WholeFile(json_file, "the figures").write(
            report_of.as_json(original, tokens, figures, evaluations), mode=0o644
        )
    if plot is not None:
        report_of.plot(figures, plot, f"{original}, quantized")


@app.command(name="hear")
def hear_recording(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The model that answers.")],
    recording: Annotated[Path, typer.Argument(metavar="RECORDING", help="A sound file.")],
    tokens: Annotated[
        Path, typer.Argument(metavar="TOKENS.npz", help="The file to write, for --dialogue.")
    ],
) -> None:
    """Let a model answer a recording, and write the tokens of the dialogue."""
    check_outputs([Output(tokens, "the tokens", TOKEN_SUFFIXES)], [recording, *model_inputs(model)])
    with _interruptible():
        codes = Speaker(open_checkpoint(model)).hear(recording)
        packed = io.BytesIO()
        np.savez_compressed(packed, codes=codes.astype(np.int16))
        WholeFile(tokens, "the tokens", TOKEN_SUFFIXES).write(packed.getvalue(), mode=0o644)
    print(f"{tokens}: give it as --dialogue")


def _said(line: str) -> None:
    print(line, file=sys.stderr)


def _rule(text: str) -> tuple[str, Precision | None]:
    what, equals, precision = text.rpartition("=")
    if not equals:
        raise typer.BadParameter(f"'{text}' is not WHAT=PRECISION", param_hint="--set")
    return what, parse_precision(precision)


def _predicate(path: str) -> Predicate:
    """One's own rule, from a Python file of one's own."""
    if not Path(path).is_file():
        raise MoshiError(f"'{path}': No such file; give a Python file that defines predicate")
    try:
        found = runpy.run_path(path).get("predicate")
    except (Exception, SystemExit) as error:  # whatever the user's file raises
        raise MoshiError(f"{path}: {type(error).__name__}: {error}") from error
    if not callable(found):
        raise MoshiError(f"{path}: has no function 'predicate'")
    return cast(Predicate, found)


def _upload(folder: Path, repo: str) -> None:
    from huggingface_hub import HfApi

    try:
        hub = HfApi()
        hub.create_repo(repo, exist_ok=True)
        hub.upload_folder(repo_id=repo, folder_path=folder)
    except Exception as error:  # whatever the transport raises
        raise HubError(
            f"{folder} is made, but {repo} did not take it ({' '.join(str(error).split())[:200]}). "
            "Is there a login (`hf auth login`) with the right to write?"
        ) from error


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C and SIGTERM end the work as an error does: what was begun is removed."""
    try:
        with signals_interrupt("SIGTERM", "SIGHUP"):
            yield
    except (KeyboardInterrupt, SystemExit):
        print("moshi-quantize: interrupted; nothing was written", file=sys.stderr)
        raise


@contextmanager
def _progress() -> Iterator[Callable[[int, int, str], None] | None]:
    """A bar with rate and time left, on a terminal; elsewhere a line for each long part."""
    console = Console(stderr=True)
    if not console.is_terminal:

        def say(_: int, total: int, what: str) -> None:
            if not total:
                print(f"moshi-quantize: {what}", file=sys.stderr)

        yield say
        return
    columns = (
        BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)

        def show(done: int, total: int, what: str) -> None:
            bar.update(task, completed=done, total=total or None, description=what[-40:])

        yield show


# typer brings its own copy of click or imports it, by version; this is its ClickException.
_UsageError: type[Exception] = typer.BadParameter.__mro__[2]
_COMMANDS = ("report", "hear", "quantize")
_OWN_OPTIONS = ("--help", "--install-completion", "--show-completion")


def _with_command(given: list[str]) -> list[str]:
    """The command line with `quantize`, which may be left out.

    A model's folder may have a command's name: it is the source where only that makes sense.
    """
    if not given:
        return ["--help"]
    if given[0] in _OWN_OPTIONS:
        return given
    with_quantize = ["quantize", *given]
    if given[0] not in _COMMANDS:
        return with_quantize
    is_model = any(Path(given[0]).glob("*.safetensors"))
    is_source = is_model and not _fits(given) and _fits(with_quantize)
    return with_quantize if is_source else given


def _fits(given: list[str]) -> bool:
    """Whether a command can take these arguments."""
    if "--help" in given:
        return True
    command: Any = typer.main.get_command(app)
    try:
        command.commands[given[0]].make_context(given[0], given[1:])
    except _UsageError:
        return False
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; returns the exit code: 0, 2 (error) or 128 plus a signal's number."""
    given = _with_command(list(sys.argv[1:] if arguments is None else arguments))

    def work() -> int | None:
        refuse_empty(given)
        code: int | None = app(given, prog_name="moshi-quantize", standalone_mode=False)
        return code

    return run_program("moshi-quantize", work, [_UsageError], [typer.Abort])
