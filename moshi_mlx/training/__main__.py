"""`python -m moshi_mlx.training`, and the command `moshi-train`."""

import sys

from ..distributions import refuse_foreign_files
from ..program import INTERRUPTED


def main() -> int:
    """The program; returns its exit code."""
    if refuse_foreign_files("moshi-train"):
        return 2
    try:
        from .cli import main as run
    except KeyboardInterrupt:  # a second passes before the program itself can take it
        return INTERRUPTED
    return run()


if __name__ == "__main__":
    sys.exit(main())
