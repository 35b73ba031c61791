"""`python -m moshi_mlx.training`: the command moshi-train."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
