"""`python -m moshi_local`, and the command `moshi-local`."""

import os
import sys
from contextlib import suppress
from pathlib import Path


def main() -> int:
    """The program; returns its exit code."""
    try:
        from moshi_mlx.distributions import refuse_foreign_files
    except ImportError as error:
        reason = _import_problem(error)
        if reason is None:
            raise
        sys.stderr.write(f"moshi-local: {reason}\n")
        return 2
    if refuse_foreign_files("moshi-local"):
        return 2
    from .audio.portaudio import busy
    from .audio.quiet import restore_stderr
    from .cli import main as run

    code = run()
    if busy():  # sounddevice would wait for PortAudio at Python's end, and it may never return
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        restore_stderr()
        os._exit(code)
    return code


def _import_problem(error: ImportError) -> str | None:
    """Why the library cannot be imported, on one line; None if that is a mistake of ours."""
    if error.name == "moshi_mlx.distributions":
        # Where ours is an editable install, theirs is found first, and none of ours behind it.
        return (
            "another distribution's moshi_mlx, such as Kyutai's moshi-mlx, hides the "
            "library of this checkout. To fix it: pip uninstall moshi-mlx"
        )
    if Path(error.path or "").parent.name != "mlx":
        return None
    what = f"MLX cannot be loaded: {' '.join(str(error).split())}"
    if "libcuda.so" in what:
        return (
            f"{what}. This is MLX for CUDA, and NVIDIA's driver is missing. To fix it: install the "
            "driver, or replace the package mlx-cuda-12 or mlx-cuda-13 by mlx-cpu"
        )
    return what


if __name__ == "__main__":
    sys.exit(main())
