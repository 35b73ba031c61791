"""`python -m moshi_mlx.training`, and the command `moshi-train`."""

import sys

from ..distributions import refuse_foreign_files


def main() -> int:
    """The program; returns its exit code."""
    if refuse_foreign_files("moshi-train"):
        return 2
    from .cli import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
