"""Files and folders: read with errors that name them, and written whole or not at all.

What is written goes under a temporary name first, and is then renamed. Knows nothing of what is in
it.
"""

import errno
import json
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .errors import CheckpointError, ConfigError, MoshiError, shown
from .formats import what_is

_SPARE_BYTES = 20_000_000  # of the disk, for the small files of a new folder


def cache_folder() -> Path:
    """The user's folder for what the program can make again; it need not be there."""
    if home := os.environ.get("XDG_CACHE_HOME"):
        return Path(home) / "moshi-local"
    caches = "Library/Caches" if sys.platform == "darwin" else ".cache"
    return Path.home() / caches / "moshi-local"


def read_json(path: str | Path) -> dict[str, Any]:
    """A JSON object from a file, in UTF-8 with or without a byte order mark.

    Raises:
        ConfigError: the file is missing, is not JSON, has a field twice, or is not an object;
            names the file.
    """

    def no_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) != len(pairs):
            names = [name for name, _ in pairs]
            double = next(name for name in table if names.count(name) > 1)
            raise ConfigError(f"{path}: field {shown(double)} is there twice; delete one")
        return table

    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        data = json.loads(text, object_pairs_hook=no_doubles)
    except RecursionError as error:
        raise ConfigError(f"{path}: cannot be read as JSON: it is nested too deeply") from error
    except ValueError as error:
        what = what_is(Path(path))
        problem = f"it is {what}" if what not in (None, "JSON", "a text") else error
        raise ConfigError(f"{path}: cannot be read as JSON: {problem}") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: must be a JSON object, is {type(data).__name__}")
    return data


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """A JSON object into a file, indented, in place of what is there. Raises OSError."""
    replace_file(path, [json.dumps(value, indent=1).encode() + b"\n"], mode=0o644)


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
            raise self._cannot("it is a folder" if path.is_dir() else "it is not a regular file")
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise self._cannot(f"{path.parent} is not a folder that can be written to")

    def write(self, content: str | bytes) -> None:
        """Put `content` there, a text in UTF-8. Raises MoshiError."""
        data = content.encode() if isinstance(content, str) else content
        try:
            replace_file(self._path, [data])
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


def replace_file(path: Path, pieces: Iterable[bytes], mode: int = 0o600) -> None:
    """Put `pieces` in the place of `path`, by default readable by its owner only. Raises OSError.

    A reader, and a program killed at any moment, finds the old file or the new one.
    """
    partial = partial_name(path)
    descriptor = os.open(partial, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.writelines(pieces)
        partial.replace(path)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise


@contextmanager
def new_folder(target: Path, needed: int, source: Path | None = None) -> Iterator[Path]:
    """A folder beside `target` to write into; becomes `target` if all went well, else nothing.

    Args:
        target: where it shall be: absent, or an empty folder.
        needed: bytes that it will have, to fail before the work where the disk is too small.
        source: a folder that must not be written into.

    Raises:
        CheckpointError: the target is in use, or the disk is full or refuses.
    """
    target = Path(os.path.abspath(target))  # noqa: PTH100 (resolve would follow a link)
    _check_target(target, source)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        sweep(target)
        free = shutil.disk_usage(target.parent).free
        if free < needed + _SPARE_BYTES:
            raise CheckpointError(
                f"{target}: needs {needed / 1e9:.2f} GB, the disk has {free / 1e9:.2f} GB left"
            )
        folder = partial_name(target)
        folder.mkdir()
    except OSError as error:
        raise CheckpointError(f"{target}: cannot be made: {error.strerror}") from error
    try:
        yield folder
        folder.rename(target)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
            raise CheckpointError(f"{target}: was made by another program meanwhile") from error
        raise CheckpointError(f"{target}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _check_target(target: Path, source: Path | None) -> None:
    real = target.resolve()
    home = source.resolve() if source is not None else None
    if home is not None and (real == home or home in real.parents):
        raise CheckpointError(f"{target}: is the source, or in it; name a folder somewhere else")
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise CheckpointError(f"{target}: is there already, and no folder; name a new one")
    try:
        if target.is_dir() and any(target.iterdir()):
            raise CheckpointError(f"{target}: is there already, and not empty; name a new folder")
    except OSError as error:
        raise CheckpointError(f"{target}: cannot be read: {error.strerror}") from error


def sweep(target: Path) -> None:
    """Removes the folders beside `target` that were for it, of programs that were killed."""
    for path in target.parent.glob(f".{_escaped(target.name)}.*.partial"):
        match = re.search(r"\.(\d+)\.partial$", path.name)
        if match and not _runs(int(match[1])) and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)


def _escaped(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return process != os.getpid()
