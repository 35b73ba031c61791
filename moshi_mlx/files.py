"""Files and folders: read with errors that name them, and written whole or not at all.

What is written goes under a temporary name first, and is then renamed. Knows nothing of what is in
it.
"""

import errno
import glob
import io
import json
import os
import platform
import re
import shutil
import signal
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from .errors import CheckpointError, ConfigError, MoshiError, shown
from .formats import TEXT_FILE, what_is

_SPARE_BYTES = 20_000_000  # of the disk, for the small files of a new folder
_PROBE_BYTES = 4096  # a full disk may still have room for an empty file
_LONGEST_STEM = 200  # bytes
_LEFTOVER = re.compile(r"\.(\d+)(?:-([0-9a-f]{8}))?\.partial(\.\w+)?$")
_ABANDONED_SECONDS = 7 * 24 * 3600  # of what nothing was written to, whoever wrote it


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

    def doubled(name: str) -> ConfigError:
        return ConfigError(f"{path}: field {shown(name)} is there twice; delete one")

    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        data = json.loads(text, object_pairs_hook=no_doubles(doubled))
    except RecursionError as error:
        raise ConfigError(f"{path}: cannot be read as JSON: it is nested too deeply") from error
    except ValueError as error:
        what = what_is(Path(path))
        problem = f"it is {what}" if what not in (None, "JSON", TEXT_FILE) else error
        raise ConfigError(f"{path}: cannot be read as JSON: {problem}") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: must be a JSON object, is {type(data).__name__}")
    return data


def no_doubles(
    doubled: Callable[[str], Exception],
) -> Callable[[list[tuple[str, Any]]], dict[str, Any]]:
    """An `object_pairs_hook` for `json.loads` that refuses a field that is there twice.

    Args:
        doubled: the error to raise for the field of that name.
    """

    def table_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) != len(pairs):
            names = [name for name, _ in pairs]
            raise doubled(next(name for name in table if names.count(name) > 1))
        return table

    return table_of


def inside(value: Any, field: str, where: str) -> str:
    """A file name from a configuration, refused if it could lead out of the model's folder.

    Raises:
        ConfigError: it could, or is no name.
    """
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{field} in {where} must be a file name, not {shown(value)}.")
    path = PurePosixPath(value)
    outside = path.is_absolute() or ".." in path.parts or "\\" in value or ":" in value
    if outside or PureWindowsPath(value).drive:
        raise ConfigError(
            f"{field} in {where} is {shown(value)}: it must name a file inside the model's folder."
        )
    return str(path)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """A JSON object into a file, indented, in place of what is there. Raises OSError."""
    replace_file(path, [json.dumps(value, indent=1).encode() + b"\n"], mode=0o644)


def partial_name(path: Path) -> Path:
    """The temporary name beside `path`: hidden, of this process and, on a shared disk, machine."""
    return path.with_name(f"{_partial_stem(path.name)}.{os.getpid()}-{_machine()}.partial")


def _machine() -> str:
    return f"{zlib.crc32(platform.node().encode()):08x}"


def _partial_stem(name: str) -> str:
    """Hidden, and short enough to leave room for what follows in a name of 255 bytes."""
    encoded = os.fsencode(name)
    if len(encoded) <= _LONGEST_STEM:
        return f".{name}"
    start = encoded[: _LONGEST_STEM - 9].decode(errors="ignore")
    return f".{start}~{zlib.crc32(encoded):08x}"


@contextmanager
def partial_file(path: Path) -> Iterator[Path]:
    """The temporary name to write, which is renamed to `path` by whoever asks for it.

    What is there under that name at the end of the block is removed, also after Ctrl-C or SIGTERM.
    """
    sweep(path)
    partial = partial_name(path)
    with signals_interrupt("SIGTERM", "SIGHUP"):
        try:
            yield partial
        finally:
            with suppress(OSError):
                partial.unlink()


def replace_file(path: Path, pieces: Iterable[bytes], mode: int = 0o600) -> None:
    """Put `pieces` in the place of `path`, by default readable by its owner only. Raises OSError.

    A reader, and a program killed at any moment, finds the old file or the new one.
    """
    with partial_file(path) as partial:
        flags = os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_CLOEXEC
        with os.fdopen(os.open(partial, flags, mode), "wb") as file:
            file.writelines(pieces)
        partial.replace(path)


class SoundSink(io.RawIOBase):
    """A new file for libsndfile, which calls any trouble with a disk a "System error".

    What the system says is kept: `check` raises it. libsndfile itself is told that all is well.
    """

    def __init__(self, path: Path, mode: int = 0o666) -> None:
        flags = os.O_CREAT | os.O_TRUNC | os.O_RDWR | os.O_CLOEXEC
        self._file = os.fdopen(os.open(path, flags, mode), "w+b", buffering=0)
        self._error: OSError | None = None

    def check(self) -> None:
        """Raises the OSError of the first write that failed."""
        if self._error is not None:
            raise self._error

    def write(self, data: Any) -> int:
        written = 0
        try:
            while written < len(data) and self._error is None:
                written += self._file.write(data[written:])
        except OSError as error:
            self._error = error
        return len(data)

    def readinto(self, buffer: Any) -> int:
        return self._file.readinto(buffer)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


@contextmanager
def made_folder(folder: Path, mode: int = 0o777) -> Iterator[None]:
    """A folder and those above it, made where they are missing. Raises OSError.

    Those that were made and are empty at the end of the block are removed.
    """
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        for each in reversed(missing):
            each.mkdir(mode, exist_ok=True)
        yield
    finally:
        with suppress(OSError):
            for each in missing:
                each.rmdir()


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
    with ExitStack() as stack:
        try:
            stack.enter_context(made_folder(target.parent))
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
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        stack.enter_context(named_as(target, folder))
        try:
            with signals_interrupt("SIGTERM", "SIGHUP"):
                yield folder
                folder.rename(target)
        except OSError as error:
            if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
                raise CheckpointError(f"{target}: was made by another program meanwhile") from error
            reason = error.strerror or error
            raise CheckpointError(f"{target}: cannot be written: {reason}") from error


@contextmanager
def named_as(target: Path, partial: Path) -> Iterator[None]:
    """Errors of the library that name what is under a temporary name give its final one."""
    try:
        yield
    except MoshiError as error:
        told = str(error).replace(str(partial), str(target))
        if told == str(error):
            raise
        raise type(error)(told) from error


def check_new_folder(target: Path, source: Path | None = None) -> None:
    """Whether `new_folder` will take this target, before there is anything to write.

    Makes nothing. Raises CheckpointError.
    """
    target = Path(os.path.abspath(target))  # noqa: PTH100 (resolve would follow a link)
    _check_target(target, source)
    above = next(folder for folder in target.parents if os.path.lexists(folder))
    try:
        with reserved(above / target.name):
            pass
    except OSError as error:
        raise CheckpointError(f"{target}: cannot be made: {error.strerror}") from error


@contextmanager
def reserved(path: Path) -> Iterator[Path]:
    """A page under the temporary name of `path`, while the block runs. Raises OSError."""
    with partial_file(path) as partial:
        partial.write_bytes(bytes(_PROBE_BYTES))
        yield partial


def _check_target(target: Path, source: Path | None) -> None:
    real = target.resolve()
    home = source.resolve() if source is not None else None
    if home is not None and (real == home or home in real.parents):
        raise CheckpointError(f"{target}: is the source, or in it; name a folder somewhere else")
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise CheckpointError(f"{target}: is there already, and is not a folder; name a new one")
    try:
        if target.is_dir() and target.samefile(os.curdir):
            raise CheckpointError(f"{target}: is the current folder; name a new one")
        if target.is_dir() and any(target.iterdir()):
            raise CheckpointError(f"{target}: is there already, and not empty; name a new folder")
    except OSError as error:
        raise CheckpointError(f"{target}: cannot be read: {error.strerror}") from error


def sweep(target: Path, pattern: str | None = None) -> None:
    """Removes what killed programs have left of writing `target`: files, or a folder.

    With `pattern`, of writing any such name in the folder `target`.
    """
    folder = target.parent if pattern is None else target
    stem = glob.escape(_partial_stem(target.name)) if pattern is None else f".{pattern}"
    with suppress(OSError):
        for path in folder.glob(f"{stem}.*.partial*"):
            match = _LEFTOVER.search(path.name)
            if match is None or path.is_symlink() or not _abandoned(path, match):
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


@contextmanager
def signals_interrupt(*names: str) -> Iterator[None]:
    """Signals raise SystemExit, where they would end the program on the spot.

    Its code is what a shell gives for them: 128 plus the signal's number.

    Args:
        names: "SIGTERM", for instance; those that the system lacks are left out.
    """
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():
        numbers = []
    ours = [number for number in numbers if signal.getsignal(number) == signal.SIG_DFL]

    def interrupt(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    for number in ours:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def _abandoned(path: Path, match: re.Match[str]) -> bool:
    """Whether no program writes there: its process is gone, or another has its number."""
    if match[2] in (None, _machine()) and not _runs(int(match[1])):
        return True
    return time.time() - path.stat().st_mtime > _ABANDONED_SECONDS


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return process != os.getpid()
