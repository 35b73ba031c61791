"""`python -m moshi_local`, and the command `moshi-local`."""

import os
import sys
from contextlib import suppress


def main() -> int:
    """The program; returns its exit code."""
    try:
        from moshi_mlx.distributions import refuse_foreign_files
    except ModuleNotFoundError as error:
        if error.name != "moshi_mlx.distributions":
            raise
        # Where ours is an editable install, theirs is found first, and none of ours behind it.
        sys.stderr.write(
            "moshi-local: another distribution's moshi_mlx, such as Kyutai's moshi-mlx, hides the "
            "library of this checkout. To fix it: pip uninstall moshi-mlx\n"
        )
        return 2
    if refuse_foreign_files("moshi-local"):
        return 2
    from .audio.portaudio import busy
    from .cli import main as run

    code = run()
    if busy():  # sounddevice would wait for PortAudio at Python's end, and it may never return
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)
    return code


if __name__ == "__main__":
    sys.exit(main())
