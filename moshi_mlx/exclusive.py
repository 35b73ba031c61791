"""What one thread at a time may use, in the process that made it. Knows nothing of sessions."""

import atexit
import os
import threading
import time
import weakref

from .errors import SessionError

_EXIT_SECONDS = 10.0
"""What a step of a daemon thread may take while the process ends."""
_all: "weakref.WeakSet[Exclusive]" = weakref.WeakSet()
_ending = threading.Event()


class Exclusive:
    """A context that a second thread, or a forked process, is refused; any thread may enter it.

    Args:
        what: for messages: "session".
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._lock = threading.Lock()
        self._process = os.getpid()
        _all.add(self)

    def __enter__(self) -> None:
        _stay_out_at_the_end()
        if os.getpid() != self._process:
            raise SessionError(
                f"this {self._what} was made before the process was forked, and MLX's threads are "
                "not in the child: load the model there, or start it with 'spawn'"
            )
        if not self._lock.acquire(blocking=False):
            _stay_out_at_the_end()
            raise SessionError(
                f"this {self._what} is in use by another thread: wait for its step to end, or make "
                f"a {self._what} for each thread"
            )

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def wait(self) -> None:
        """Until the thread that is in it has left; not for that thread."""
        with self._lock:
            pass


def _stay_out_at_the_end() -> None:
    """Stops a daemon thread once the process ends: torn out of MLX, it would abort."""
    if _ending.is_set() and threading.current_thread().daemon:
        threading.Event().wait()


@atexit.register
def _end() -> None:
    """Waits for the steps of daemon threads; no other begins. All other threads have ended."""
    _ending.set()
    ends = time.monotonic() + _EXIT_SECONDS
    for turn in list(_all):
        turn._lock.acquire(timeout=max(0.0, ends - time.monotonic()))
