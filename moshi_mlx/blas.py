"""The BLAS that MLX multiplies with on Linux's CPUs; nothing on a Mac.

MLX's wheel for Linux brings the reference BLAS. OpenBLAS, where it is installed, is many times
faster, and takes its place if it is in the process first. Imports nothing of MLX.
"""

import ctypes
import os
import sys
from collections.abc import Mapping
from functools import cache

_LIBRARY = "libopenblas.so.0"


@cache
def use_openblas() -> str | None:
    """Loads OpenBLAS for MLX to find; once, and before MLX is imported.

    Returns:
        Why MLX multiplies slowly on this CPU, and how to fix it; None if it doesn't.
    """
    if sys.platform != "linux" or "openblas" in os.environ.get("LD_PRELOAD", ""):
        return None
    late = "mlx.core" in sys.modules
    try:
        ctypes.CDLL(_LIBRARY, mode=ctypes.RTLD_GLOBAL)
    except OSError:
        return (
            "OpenBLAS is missing, without which MLX is several times slower on Linux: "
            "apt install libopenblas0-pthread"
        )
    if late:
        return "MLX is several times slower if it is imported before moshi_mlx: import that first"
    return None


def with_openblas(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment in which other programs' MLX finds OpenBLAS, where ours does."""
    if sys.platform != "linux" or use_openblas() is not None:
        return dict(environment)
    preloaded = [_LIBRARY, *filter(None, [environment.get("LD_PRELOAD")])]
    return {**environment, "LD_PRELOAD": ":".join(preloaded)}
