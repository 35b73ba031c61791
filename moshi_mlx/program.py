"""How a command-line program ends: its exit codes, and one line for what went wrong.

Knows no parser and no command.
"""

import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

from .errors import MoshiError

OK = 0
NO = 1
"""The answer is no: `doctor`, `evaluate`."""
ERROR = 2
INTERRUPTED = 130


def run_program(
    name: str,
    work: Callable[[], int | None],
    usage_errors: Sequence[type[Exception]] = (),
    interrupts: Sequence[type[BaseException]] = (),
) -> int:
    """Runs a program's work and returns its exit code; never raises for bad input.

    The exit code of work that a signal stopped is 128 plus the signal's number.

    Args:
        name: of the program, in front of its messages.
        work: the work; returns its exit code, None for `OK`.
        usage_errors: the parser's own errors.
        interrupts: what its parser raises when the user stops it, beside KeyboardInterrupt.
    """
    stopped: tuple[type[BaseException], ...] = (KeyboardInterrupt, *interrupts)
    known: tuple[type[Exception], ...] = (MoshiError, OSError, *usage_errors)
    with _our_streams():
        try:
            code = work() or OK
            _flush()
            return code
        except stopped:
            return INTERRUPTED
        except SystemExit as stop:  # a signal: see `files.signals_interrupt`
            if isinstance(stop.__context__, BrokenPipeError):  # as rich ends a program then
                return OK
            return stop.code if isinstance(stop.code, int) else ERROR
        except BrokenPipeError:  # whoever read our output has seen enough
            _give_up_stdout()
            return OK
        except known as error:
            try:
                _flush()
            except OSError:
                _give_up_stdout()
            sys.stderr.write(f"{name}: {one_line(error)}\n")
            return ERROR


class _Standard(io.RawIOBase):
    """Standard output or error, unbuffered."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def write(self, data: Any, /) -> int:
        return os.write(self._descriptor, data)


class _Stdout(_Standard):
    """Its errors say what it is, where the system's name no file."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            error.filename = "standard output"
            raise


class _Stderr(_Standard):
    """What cannot be written is lost: a note is no reason to lose the work."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)


@contextmanager
def _our_streams() -> Iterator[None]:
    """In place of the interpreter's standard output and error, ours."""
    theirs = sys.stdout, sys.stderr
    ours = sys.stdout, sys.stderr = _ours(sys.stdout, _Stdout), _ours(sys.stderr, _Stderr)
    try:
        yield
        ours[0].flush()
    finally:
        sys.stdout, sys.stderr = theirs


def _ours(theirs: TextIO, kind: type[_Standard]) -> TextIO:
    """One like it; itself where the caller has put another in the interpreter's place."""
    own = theirs is sys.__stdout__ or theirs is sys.__stderr__
    if not own or not isinstance(theirs, io.TextIOWrapper):
        return theirs
    raw = kind(theirs.fileno())
    written: Any = raw if theirs.write_through else io.BufferedWriter(raw)
    return io.TextIOWrapper(
        written,
        theirs.encoding,
        theirs.errors,
        line_buffering=theirs.line_buffering,
        write_through=theirs.write_through,
    )


def refuse_empty(arguments: Sequence[str]) -> None:
    """Raises MoshiError if an argument is empty: as a path it would be the current folder."""
    if "" in arguments:
        before = arguments[: list(arguments).index("")]
        after = f" after {before[-1]!r}" if before else ""
        raise MoshiError(f"the argument{after} is empty; give it a value, or leave it out")


def _flush() -> None:
    sys.stdout.flush()


def _give_up_stdout() -> None:
    """What waits to be written there is lost, without another word at the program's end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def one_line(error: Exception) -> str:
    """What an error says, on one line; the system's own errors with the file's name first."""
    if isinstance(error, OSError) and error.strerror:
        return ": ".join(str(part) for part in (error.filename, error.strerror) if part)
    if (problem := value_problem(error)) is not None:
        error.message = problem  # type: ignore[attr-defined]
    describe = getattr(error, "format_message", error.__str__)  # click's way
    return " ".join(describe().split())


def value_problem(error: Exception) -> str | None:
    """What an option must be, where typer has left the words to pydantic; None elsewhere."""
    found = getattr(error.__cause__, "errors", None)
    parameter = getattr(error, "param", None)
    if found is None or parameter is None:
        return None
    first = found()[0]
    if "error" in first.get("ctx", {}):
        return str(first["ctx"]["error"])
    low, high = getattr(parameter, "min", None), getattr(parameter, "max", None)
    least = "" if low is None else f" of at least {low:g}"
    limits = least if high is None else f" from {low or 0:g} to {high:.12g}"
    kind = "a whole number" if "int" in first["type"] else "a number"
    return f"must be {kind}{limits}, is {first['input']!r}"
