"""The command line of `moshi-quantize`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from moshi_mlx.errors import MoshiError

from .convert import RECIPES, convert

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def quantize(
    source: Annotated[str, typer.Argument(help="nano, a folder, a hub repository or an alias")],
    target: Annotated[Path, typer.Argument(help="a folder that isn't there yet")],
    bits: Annotated[
        str, typer.Option(help="4 (groups of 32), 8 (groups of 64), or none: only convert")
    ] = "4",
) -> None:
    """Convert a checkpoint to MLX's layout and quantize it as published."""
    if bits not in ("none", *map(str, RECIPES)):
        raise typer.BadParameter(f"'{bits}' is not one of 4, 8, none", param_hint="--bits")
    convert(source, target, recipe=None if bits == "none" else RECIPES[int(bits)])
    size = sum(path.stat().st_size for path in target.iterdir())
    print(f"{target}: {size / 1e6:.1f} MB; try it: moshi-local --model {target}")


def main() -> None:
    """Runs the program; what went wrong is one line, and exit code 2."""
    try:
        app()
    except (MoshiError, OSError) as error:
        print(f"moshi-quantize: {error}", file=sys.stderr)
        sys.exit(2)
