"""One thread that does all of MLX's work for callers on other threads. Knows nothing of models."""

import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

import mlx.core as mx

from .errors import SessionError

T = TypeVar("T")
_Job = tuple[Callable[[], Any], "Future[Any]"]

EXIT_SECONDS = 10.0
"""What a job that runs while the process ends may take."""


class Worker:
    """Runs what it is given, one after the other, on its own thread.

    The thread begins with the first job, and ends with the worker or before the process does:
    MLX's streams belong to their thread, which must give them back before Python shuts down.
    """

    def __init__(self) -> None:
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False
        self._thread: threading.Thread | None = None

    def submit(self, work: Callable[[], T]) -> "Future[T]":
        """Queues `work`; the future has its result. From any thread.

        A future that is cancelled before its turn is passed over.

        Raises:
            SessionError: the worker is closed.
        """
        future: Future[T] = Future()
        with self._lock:
            if self._closed:
                raise SessionError("the thread of this model has ended: load the model again")
            self._jobs.put((work, future))
            if self._thread is None:
                self._thread = threading.Thread(
                    target=_work, args=[self._jobs], name="moshi-local MLX"
                )
                self._thread.daemon = True  # `finalize` ends it; Python would wait before that
                self._thread.start()
                weakref.finalize(self, _end, self._jobs, self._thread, EXIT_SECONDS)
        return future

    def close(self, timeout: float | None = None) -> bool:
        """Ends the thread once the jobs that were given are done; it takes no others.

        Args:
            timeout: seconds to wait for that at most.

        Returns:
            Whether it has ended; never for the thread itself.
        """
        with self._lock:
            self._closed = True
            thread = self._thread
        return thread is None or _end(self._jobs, thread, timeout)


def _work(jobs: SimpleQueue[_Job | None]) -> None:
    while (job := jobs.get()) is not None:
        work, future = job
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)
        del job, work, future  # a waiting thread must not keep a session alive
    mx.clear_streams()


def _end(jobs: SimpleQueue[_Job | None], thread: threading.Thread, timeout: float | None) -> bool:
    jobs.put(None)
    if thread is not threading.current_thread():
        thread.join(timeout)
    return not thread.is_alive()
