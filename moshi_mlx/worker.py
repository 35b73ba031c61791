"""One thread that does all of MLX's work for callers on other threads. Knows nothing of models."""

import asyncio
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

import mlx.core as mx

T = TypeVar("T")
_Job = tuple[Callable[[], Any], "Future[Any]"]


class Worker:
    """Runs what it is given, one after the other, on its own thread.

    The thread begins with the first job, and ends with the worker or before the process does:
    MLX's streams belong to their thread, which must give them back before Python shuts down.
    """

    def __init__(self) -> None:
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._end: Callable[[], Any] | None = None

    def submit(self, work: Callable[[], T]) -> "Future[T]":
        """Queues `work`; the future has its result. From any thread."""
        future: Future[T] = Future()
        self._jobs.put((work, future))
        if self._end is None:
            thread = threading.Thread(target=_work, args=(self._jobs,), name="moshi-local MLX")
            thread.daemon = True  # `finalize` ends it; Python would wait for it before that
            thread.start()
            self._end = weakref.finalize(self, _end, self._jobs, thread)
        return future

    async def run(self, work: Callable[[], T]) -> T:
        """Awaits `work`. A cancelled caller still waits for it to end, so that jobs never mix."""
        waiting = asyncio.wrap_future(self.submit(work))
        try:
            return await asyncio.shield(waiting)
        except asyncio.CancelledError:
            await asyncio.wait([waiting])
            raise

    def close(self) -> None:
        """Ends the thread once the jobs that were given are done; it takes no others."""
        if self._end is not None:
            self._end()


def _work(jobs: SimpleQueue[_Job | None]) -> None:
    while (job := jobs.get()) is not None:
        work, future = job
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)
        del job, work, future  # a waiting thread must not keep a session alive
    mx.clear_streams()


def _end(jobs: SimpleQueue[_Job | None], thread: threading.Thread) -> None:
    jobs.put(None)
    if thread is not threading.current_thread():
        thread.join()
