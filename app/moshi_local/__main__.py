"""`python -m moshi_local`, and the command `moshi-local`."""

import sys

from moshi_mlx.distributions import refuse_foreign_files


def main() -> int:
    """The program; returns its exit code."""
    if refuse_foreign_files("moshi-local"):
        return 2
    from .cli import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
