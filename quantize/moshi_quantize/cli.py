"""The command line of `moshi-quantize`."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import mlx.core as mx
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

from moshi_mlx.errors import MoshiError

from .api import quantize as run
from .recipe import RECIPES

app = typer.Typer(add_completion=False, rich_markup_mode=None, no_args_is_help=True)

_DTYPES = {"bfloat16": mx.bfloat16, "float16": mx.float16, "float32": mx.float32, "keep": None}


class InterruptedRunError(MoshiError):
    """The user, or the system, asked to stop."""


@app.callback()
def about() -> None:
    """moshi-quantize SOURCE TARGET makes a model small; moshi-quantize report says what it cost."""


@app.command()
def quantize(
    source: Annotated[
        str, typer.Argument(help="a folder, a file, a hub repository, an alias, or nano")
    ],
    target: Annotated[Path, typer.Argument(help="a folder that isn't there yet")],
    bits: Annotated[
        str,
        typer.Option(
            "--bits", "-b", help="2, 3, 4, 5, 6, 8; with a group as 4:64; mxfp4, mxfp8, nvfp4; none"
        ),
    ] = "",
    recipe: Annotated[str, typer.Option(help=", ".join(RECIPES))] = "",
    dtype: Annotated[str, typer.Option(help=f"of the rest: {', '.join(_DTYPES)}")] = "bfloat16",
    base: Annotated[str, typer.Option(help="the model that an adapter is for")] = "",
    link_mimi: Annotated[bool, typer.Option(help="link the codec instead of copying it")] = False,
    offline: Annotated[bool, typer.Option(help="never use the network")] = False,
) -> None:
    """Convert a checkpoint of any layout and quantize it: q4 as published, if nothing is said."""
    if bits and recipe:
        raise typer.BadParameter("say --bits or --recipe, not both")
    if dtype not in _DTYPES:
        raise typer.BadParameter(f"'{dtype}' is not one of {', '.join(_DTYPES)}")
    chosen = recipe or {"4": "q4", "8": "q8"}.get(bits, bits) or "q4"
    with _interruptible(), _progress() as progress:
        result = run(
            source, chosen, target, dtype=_DTYPES[dtype], base=base or None, offline=offline,
            link_mimi=link_mimi, progress=progress,
        )  # fmt: skip
    for layer in result.plan.skipped[:3]:
        print(f"not quantized, no group divides its {layer.shape[1]} inputs: {layer.name}")
    if len(result.plan.skipped) > 3:
        print(f"and {len(result.plan.skipped) - 3} more like these")
    print(f"{target}: {result.nbytes / 1e6:.1f} MB; try it: moshi-local --model {target}")


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C and SIGTERM end the work as an error does: what was begun is removed."""

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt:
        raise InterruptedRunError("interrupted; nothing was written") from None
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _progress() -> Iterator[Callable[[int, int, str], None] | None]:
    """A bar with rate and time left, on a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    columns = (
        BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)

        def show(done: int, total: int, what: str) -> None:
            bar.update(task, completed=done, total=total, description=what[-40:])

        yield show


def main() -> None:
    """Runs the program; what went wrong is one line, and exit code 2."""
    arguments = sys.argv[1:]
    if arguments and arguments[0] not in ("report", "quantize", "--help"):
        arguments = ["quantize", *arguments]
    try:
        app(arguments)
    except (MoshiError, OSError) as error:
        print(f"moshi-quantize: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
