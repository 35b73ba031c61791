"""A run's folder on disk: its lock, its log, and what is written into it whole or not at all.

Knows nothing of what checkpoints and results consist of.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ..errors import MoshiError
from ..files import made_folder, named_as, partial_name, replace_file, sweep


class TrainingError(MoshiError):
    """A run cannot begin or go on."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Makes a run's folder and keeps other runs out of it; an empty one that it made goes again.

    The lock is on the folder itself and dies with the process, however that ends.

    Raises:
        TrainingError: another run is in it, or it cannot be made.
    """
    with ExitStack() as stack:
        with named_errors(folder):
            stack.enter_context(made_folder(folder))
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise TrainingError(
                f"{folder}: another moshi-train is at work there; wait for it, or give another "
                "'run_dir'"
            ) from error
        except OSError:
            pass  # a file system without locks, as some networks have
        yield


@contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """The system's errors become a `TrainingError` that names the file."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise TrainingError(f"{path}: cannot be written: {reason}") from error


@contextmanager
def whole_folder(target: Path, *, keep_others: bool = False) -> Iterator[Path]:
    """A folder to write into; what is in it comes to `target` if all went well, else nothing does.

    Args:
        target: the folder, which may be there.
        keep_others: leave other files in `target` where they are; else it is replaced.

    Raises:
        TrainingError: the disk is full or refuses.
    """
    folder = partial_name(target)
    with named_as(target, folder), named_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        sweep(target)
        folder.mkdir()
        try:
            yield folder
            if keep_others and target.is_dir():
                for file in folder.iterdir():
                    file.replace(target / file.name)
            else:
                remove(target)
                folder.replace(target)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def remove(path: Path) -> None:
    """Removes a file, a link or a folder, if it is there. Raises OSError."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def digest(path: Path) -> str:
    """A file's SHA-256. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Log:
    """JSON lines with a step each: a line is written whole, and what is no such line goes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, line: dict[str, float]) -> None:
        """Adds a line. Raises TrainingError; the file is then as before."""
        text = json.dumps({k: round(v, 6) for k, v in line.items()}).encode() + b"\n"
        with named_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab", buffering=0) as file:
                size = file.tell()
                try:
                    rest = memoryview(text)
                    while rest:  # a disk that fills up takes a part first
                        rest = rest[file.write(rest) :]
                except OSError:
                    file.truncate(size)
                    raise

    def keep_until(self, step: int) -> int:
        """Takes out the lines of later steps, and those that are damaged; returns how many were.

        Raises:
            TrainingError: it cannot be read or written.
        """
        with named_errors(self.path):
            if not self.path.exists():
                return 0
            lines = self.path.read_bytes().split(b"\n")
            steps = [_step(line) for line in lines]
            kept = [
                line + b"\n"
                for line, number in zip(lines, steps, strict=True)
                if number is not None and number <= step
            ]
            replace_file(self.path, kept, mode=0o644)
        return sum(bool(line.strip()) for line, n in zip(lines, steps, strict=True) if n is None)


def _step(line: bytes) -> int | None:
    try:
        step = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return step if type(step) is int else None
