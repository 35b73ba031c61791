"""A file that is whole or not there: written under a temporary name, then renamed.

Knows nothing of what is in it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from . import MoshiError

__all__ = ["WholeFile", "partial_name", "replace_file"]


class WholeFile:
    """A file that the user asked for, to be written at the end; looked at now.

    Args:
        path: is replaced if it exists.
        what: it holds, for messages: "the trace".

    Raises:
        MoshiError: there is no folder for `path`, or it cannot be written.
    """

    def __init__(self, path: Path, what: str) -> None:
        self._path, self._what = path, what
        if path.exists() and not path.is_file():  # a device would be replaced
            raise self._cannot("it is a folder" if path.is_dir() else "it is no plain file")
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise self._cannot(f"{path.parent} is no folder that can be written to")

    def write(self, text: str) -> None:
        """Put `text` there, in UTF-8. Raises MoshiError."""
        try:
            replace_file(self._path, [text.encode()])
        except OSError as error:
            raise self._cannot(error.strerror or str(error)) from error

    def _cannot(self, reason: str) -> MoshiError:
        return MoshiError(
            f"cannot write {self._what} {self._path}: {reason}. "
            "Give a file in a folder that exists and is yours."
        )


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
