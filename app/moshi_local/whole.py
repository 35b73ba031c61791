"""A file that is whole or not there: written under a temporary name, then renamed.

Knows nothing of what is in it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

__all__ = ["partial_name", "replace_file"]


def partial_name(path: Path) -> Path:
    """The temporary name beside `path`: hidden, and of this process."""
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


def replace_file(path: Path, pieces: Iterable[bytes]) -> None:
    """Put `pieces` in the place of `path`, readable by its owner only. Raises OSError.

    A reader, and a program killed at any moment, finds the old file or the new one.
    """
    partial = partial_name(path)
    descriptor = os.open(partial, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.writelines(pieces)
        partial.replace(path)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise
