"""What a command will write, checked before its work: nothing that it reads is replaced.

Knows paths and files. Knows nothing of what is in them, except which files a model consists of.
"""

import errno
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from . import catalog
from .errors import MoshiError
from .files import made_folder, partial_name, replace_file, reserved
from .hub import ModelFiles, resolve

__all__ = ["Output", "WholeFile", "check_outputs", "is_stdout", "model_inputs"]

_MODEL_FILES = ("*.safetensors*", "*.model", "*config*.json", "*.md")
_STANDARD = {1: "standard output", 2: "standard error"}


@dataclass(frozen=True, slots=True)
class Output:
    """A path that a command will write to.

    what: it holds, for messages: "the picture".
    suffixes: those that can be written; any if empty.
    kind: a "file" is put there whole at the end, in place of what is there (without `suffixes`, it
        is text, and may go to a device or a pipe); a "stream" is written as it comes; a "folder"
        gets files with new names and may be missing; in a "replaced folder", files are replaced.
    private: a folder that is made is for its owner only.
    """

    path: Path
    what: str
    suffixes: Sequence[str] = ()
    kind: Literal["file", "stream", "folder", "replaced folder"] = "file"
    private: bool = False

    def made(self) -> AbstractContextManager[None]:
        """The folder, while the block runs; stays if there is something in it then."""
        return made_folder(self.path, 0o700 if self.private else 0o777)

    def cannot(self, reason: str) -> MoshiError:
        """The error that says that it cannot be written."""
        return MoshiError(f"cannot write {self.what} {self.path}: {reason}")


def check_outputs(outputs: Iterable[Output], inputs: Iterable[Path | None] = ()) -> None:
    """Whether all of a command's outputs can be written, and none is an input or another output.

    Two names of the same file are found too: through links, `..`, and on a disk that ignores case.
    Leaves nothing behind: folders that are missing are made for as long as it looks. Sweeps what
    killed programs left of writing the same files.

    Args:
        outputs: what the command will write.
        inputs: files that it reads; those that are missing and None are left out.

    Raises:
        MoshiError: names the output, and says what is wrong, in the system's own words.
    """
    # What is made is there before the files in it are looked at.
    ordered = sorted(outputs, key=lambda output: not output.kind.endswith("folder"))
    read = [path for path in inputs if path is not None] if ordered else []
    seen: list[tuple[Output, Path]] = []  # with the temporary name that stands for it
    with ExitStack() as stack:
        for output in ordered:
            try:
                _check_shape(output)
                _check_inputs(output, read)
                if output.kind.endswith("folder"):
                    stack.enter_context(output.made())
                    stack.enter_context(reserved(output.path / "file"))
                elif not output.path.exists() or output.path.is_file():
                    _reserve(output, seen, stack)
            except OSError as error:
                raise output.cannot(error.strerror or str(error)) from error


class WholeFile:
    """A file that the user asked for, to be written at the end; looked at now.

    Args:
        path: is replaced if it exists; where it is a link, what that leads to. A device or a pipe
            is written to.
        what: it holds, for messages: "the trace".
        suffixes: those that can be written; any if empty.

    Raises:
        MoshiError: there is no folder for `path`, or it cannot be written.
    """

    def __init__(self, path: Path, what: str, suffixes: Sequence[str] = ()) -> None:
        self._output = Output(path, what, suffixes)
        check_outputs([self._output])

    def write(self, content: str | bytes, mode: int = 0o600) -> None:
        """Put `content` there, text in UTF-8. Raises MoshiError."""
        data = content.encode() if isinstance(content, str) else content
        path = self._output.path
        try:
            if path.exists() and not path.is_file():
                path.write_bytes(data)
            else:
                replace_file(_real(path), [data], mode)
        except OSError as error:
            raise self._output.cannot(error.strerror or str(error)) from error


def is_stdout(path: Path) -> bool:
    """Whether a path is another name for standard output, as /dev/stdout is."""
    with suppress(OSError):
        return os.path.samestat(path.stat(), os.fstat(1)) and str(path) != os.devnull
    return False


def model_inputs(name: str | Path | None) -> Iterator[Path]:
    """The local files of a model, as far as they are known without the network."""
    if name is None:
        return
    path = Path(name).expanduser()
    with suppress(OSError):
        if path.is_file():
            yield path
        folder = path.parent if path.is_file() else path
        for pattern in _MODEL_FILES if folder.is_dir() else ():
            yield from folder.glob(pattern)
    series: list[str | Path] = [entry.name for entry in catalog.series(str(name))]
    for each in series or [name]:
        with suppress(MoshiError):
            yield from _files(resolve(each, offline=True))


def _files(files: ModelFiles) -> Iterator[Path]:
    several = (files.config, files.mimi, files.mimi_config, files.tokenizer, files.lora)
    yield from (path for path in (*files.weights, *several) if path is not None)


def _real(path: Path) -> Path:
    """Where its links lead: `Path.resolve` raises for a loop in some versions of Python."""
    return Path(os.path.realpath(path))


def _check_shape(output: Output) -> None:
    """Its suffix, and what is there already."""
    path, folder = output.path, output.kind.endswith("folder")
    if output.suffixes and path.suffix.lower() not in output.suffixes:
        raise output.cannot(f"its name must end in {' or '.join(output.suffixes)}")
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        parent = _real(path).parent if path.is_symlink() else path.parent
        if not folder and not parent.is_dir():
            raise output.cannot(f"there is no folder {parent}") from None
        return
    if folder != stat.S_ISDIR(mode):
        raise output.cannot("it is not a folder" if folder else "it is a folder")
    if not folder and not stat.S_ISREG(mode):
        if output.suffixes:
            raise output.cannot("it is not a regular file")
        if not (stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)):
            raise output.cannot("it is not a regular file, a pipe or a character device")
    if not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def _check_inputs(output: Output, inputs: Iterable[Path]) -> None:
    """It is none of them, has none in it, and the shell has not sent our own words there."""
    for path in inputs:
        if output.kind == "replaced folder":
            if any(_same(folder, output.path) for folder in _real(path).parents):
                raise output.cannot(f"the input {path} is in it")
        elif _same(path, output.path):
            raise output.cannot(f"it is the same file as the input {path}")
    for number, name in _STANDARD.items():
        with suppress(OSError):
            if output.path.is_file() and os.path.samestat(os.fstat(number), output.path.stat()):
                raise output.cannot(f"it is the same file as {name}")


def _reserve(output: Output, seen: list[tuple[Output, Path]], stack: ExitStack) -> None:
    """Holds a file's temporary name for as long as the other outputs are looked at.

    On a disk that takes two names for one, the second one's is there already.
    """
    real = _real(output.path)
    for other, partial in seen:
        if _same(other.path, output.path) or _same(partial, partial_name(real)):
            raise output.cannot(f"it is the same file as {other.what}")
    seen.append((output, stack.enter_context(reserved(real))))


def _same(one: Path, other: Path) -> bool:
    """Whether both are there, and the same file or folder."""
    try:
        return one.samefile(other)
    except OSError:
        return False
