"""What Python's threads may do with MLX: one at a time, not while the process ends, not after fork.

A daemon thread that is torn out of MLX at the process's end aborts it, and MLX hangs in the child
of a process that has used it. Knows nothing of models.
"""

import atexit
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

import mlx.core as mx

from .errors import SessionError

P = ParamSpec("P")
R = TypeVar("R")

_EXIT_SECONDS = 10.0
"""What the work of a daemon thread may take while the process ends."""


class _Streams:
    """MLX's streams of a thread, which gives them back when it ends."""

    def __del__(self) -> None:
        mx.clear_streams()


class _OfThread(threading.local):
    depth = 0  # of MLX work within MLX work
    ends = False  # somebody sees to it that the thread ends before the process
    streams: _Streams | None = None


_own = _OfThread()
_daemons: set[int] = set()  # that are at work
_ending = threading.Event()
_processes: list[int] = []  # the one that has used MLX, which may be the parent of this one


class Exclusive:
    """What one call at a time may use.

    Args:
        what: for messages: "session".
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._turn: dict[str, object] = {}

    @contextmanager
    def held(self) -> Iterator[None]:
        """While this call uses it. Ctrl-C, wherever it comes, leaves it free.

        Raises:
            SessionError: another call does.
        """
        mine = object()
        try:
            if self._turn.setdefault("turn", mine) is not mine:
                raise SessionError(
                    f"this {self._what} is in use, by another thread or from within its own step: "
                    f"wait for that to end, or make a {self._what} for each thread"
                )
            yield
        finally:
            if self._turn.get("turn") is mine:
                del self._turn["turn"]


def may_begin() -> None:
    """Asked before MLX works, on any thread. Stops a daemon thread for good once the process ends.

    Raises:
        SessionError: the process was forked after MLX had been used.
    """
    if not _processes:
        _processes.append(os.getpid())
    elif _processes[0] != os.getpid():
        raise SessionError(
            "this process was forked after it had used MLX, whose threads are not in the child: "
            "fork before a model is loaded, or start the child with 'spawn'"
        )
    _stay_at_the_end()


def _stay_at_the_end() -> None:
    if _ending.is_set() and threading.current_thread().daemon and not _own.ends:
        _daemons.discard(threading.get_ident())
        threading.Event().wait()


def ending() -> bool:
    """Whether the process ends."""
    return _ending.is_set()


def end() -> None:
    """The process ends: from now on no daemon thread begins anything."""
    _ending.set()


def ends_in_time() -> None:
    """The calling thread will be ended before the process is, and need not be stopped."""
    _own.ends = True


@contextmanager
def at_work() -> Iterator[None]:
    """Work of MLX on the calling thread.

    Raises:
        SessionError: the process was forked after this thread had used MLX.
    """
    if _own.depth:
        yield
        return
    counted = threading.current_thread().daemon and not _own.ends
    if counted:
        _daemons.add(threading.get_ident())
    may_begin()
    main = threading.current_thread() is threading.main_thread()
    if _own.streams is None and not main and not _own.ends:
        _own.streams = _Streams()
    _own.depth = 1
    try:
        yield
    finally:
        _own.depth = 0
        _daemons.discard(threading.get_ident())
        _stay_at_the_end()


def mlx_work(function: Callable[P, R]) -> Callable[P, R]:
    """A function that is `at_work`."""

    @wraps(function)
    def working(*args: P.args, **kwargs: P.kwargs) -> R:
        with at_work():
            return function(*args, **kwargs)

    return working


@atexit.register
def _end() -> None:
    """Waits for the work of daemon threads; no other begins. All other threads have ended."""
    end()
    ends = time.monotonic() + _EXIT_SECONDS
    while _daemons and time.monotonic() < ends:
        time.sleep(0.005)
