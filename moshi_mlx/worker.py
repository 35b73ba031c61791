"""One thread that does a model's MLX work for callers on other threads. Knows nothing of models.

MLX's streams belong to the thread that made them; one that is torn out of its work takes the
process along.
"""

import atexit
import os
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future, wait
from queue import SimpleQueue
from typing import Any, TypeVar

import mlx.core as mx

from .errors import SessionError
from .threads import at_work, end, ending, ends_in_time, may_begin

T = TypeVar("T")
_Job = tuple[Callable[[], Any], "Future[Any]"]

EXIT_SECONDS = 10.0
"""What a job that runs while the process ends may take."""
_starting = threading.Lock()
_running: dict[threading.Thread, "SimpleQueue[_Job | None]"] = {}


class Worker:
    """Runs what it is given, one after the other, on its own thread.

    The thread begins with the first job, and ends with the worker or before the process does.
    """

    def __init__(self) -> None:
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False
        self._thread: threading.Thread | None = None

    def call(self, work: Callable[[], T]) -> T:
        """Runs `work` and waits for it. From any thread, the worker's own included.

        Ctrl-C meanwhile is raised when `work` has ended, a second one at once: nothing is left
        half done.

        Raises:
            SessionError: as `submit`.
        """
        if threading.current_thread() is self._thread:
            return work()
        future = self.submit(work)
        try:
            return future.result()
        except KeyboardInterrupt:
            if not future.cancel():
                wait([future])
            raise

    def submit(self, work: Callable[[], T]) -> "Future[T]":
        """Queues `work`; the future has its result. From any thread.

        A future that is cancelled before its turn is passed over.

        Raises:
            SessionError: the worker is closed, the process ends, or it was forked after MLX had
                been used.
        """
        may_begin()
        future: Future[T] = Future()
        with self._lock:
            if self._closed:
                raise SessionError("the thread of this model has ended: load the model again")
            with _starting:
                may_begin()
                if ending():
                    raise SessionError("the process ends, and the thread of this model has ended")
                self._jobs.put((work, future))
                if self._thread is None:
                    self._thread = self._started()
        return future

    def _started(self) -> threading.Thread:
        thread = threading.Thread(target=_work, args=[self._jobs], name="moshi-local MLX")
        thread.daemon = True  # Python would wait for it before `_end_all`
        thread.start()
        _running[thread] = self._jobs
        weakref.finalize(self, self._jobs.put, None).atexit = False  # `_end_all` does it
        return thread

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
        if thread is None:
            return True
        self._jobs.put(None)
        if thread is not threading.current_thread():
            thread.join(timeout)
        return not thread.is_alive()


def on_good_thread(work: Callable[[], T]) -> T:
    """Runs MLX's work here where that is safe, else on a thread for it.

    That is the main thread, where Ctrl-C ends it.
    """
    if threading.current_thread() is threading.main_thread():
        with at_work():
            return work()
    worker = Worker()
    try:
        return worker.call(work)
    finally:
        worker.close()


def _work(jobs: SimpleQueue[_Job | None]) -> None:
    ends_in_time()
    while (job := jobs.get()) is not None:
        work, future = job
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)
        del job, work, future  # a waiting thread must not keep a session alive
    mx.clear_streams()
    _running.pop(threading.current_thread(), None)


@atexit.register
def _end_all() -> None:
    """Ends the threads that are left, once their jobs are done; Python would tear them out."""
    with _starting:
        end()
    running, ends = list(_running.items()), time.monotonic() + EXIT_SECONDS
    for _, jobs in running:
        jobs.put(None)
    for thread, _ in running:
        thread.join(max(0.0, ends - time.monotonic()))


os.register_at_fork(after_in_child=_running.clear)
