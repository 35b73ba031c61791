"""How a command-line program ends: its exit codes, and one line for what went wrong.

Knows no parser and no command.
"""

import os
import sys
from collections.abc import Callable, Sequence

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

    Args:
        name: of the program, in front of its messages.
        work: the work; returns its exit code, None for `OK`.
        usage_errors: the parser's own errors.
        interrupts: what its parser raises when the user stops it, beside KeyboardInterrupt.
    """
    stopped: tuple[type[BaseException], ...] = (KeyboardInterrupt, *interrupts)
    known: tuple[type[Exception], ...] = (MoshiError, OSError, *usage_errors)
    try:
        code = work() or OK
        _flush()
        return code
    except stopped:
        return INTERRUPTED
    except BrokenPipeError:  # whoever read our output has seen enough
        _give_up_stdout()
        return OK
    except known as error:
        told = one_line(error)
        try:
            _flush()
        except OSError as full:
            if one_line(full) == told:
                told = f"standard output: {told}"
            _give_up_stdout()
        sys.stderr.write(f"{name}: {told}\n")
        return ERROR


def _flush() -> None:
    if sys.stdout is not None:  # as where it was closed
        sys.stdout.flush()


def _give_up_stdout() -> None:
    """What waits to be written there is lost, without another word at the program's end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def one_line(error: Exception) -> str:
    """What an error says, on one line; the system's own errors with the file's name first."""
    if isinstance(error, OSError) and error.strerror:
        return ": ".join(str(part) for part in (error.filename, error.strerror) if part)
    describe = getattr(error, "format_message", error.__str__)  # click's way
    return " ".join(describe().split())
