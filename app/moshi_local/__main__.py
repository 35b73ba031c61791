"""`python -m moshi_local`, and the command `moshi-local`."""

import sys

from .launch import start_talk as main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
