"""What one thread at a time may use, in the process that made it. Knows nothing of sessions."""

import os
import threading

from .errors import SessionError


class Exclusive:
    """A context that a second thread, or a forked process, is refused; any thread may enter it.

    Args:
        what: for messages: "session".
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._lock = threading.Lock()
        self._process = os.getpid()

    def __enter__(self) -> None:
        if os.getpid() != self._process:
            raise SessionError(
                f"this {self._what} was made before the process was forked, and MLX's threads are "
                "not in the child: load the model there, or start it with 'spawn'"
            )
        if not self._lock.acquire(blocking=False):
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
