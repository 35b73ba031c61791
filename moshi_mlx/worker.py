"""One thread that does all of MLX's work for asynchronous callers. Knows nothing of models."""

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
    """Runs what it is given, one after the other, on a thread of its own.

    The thread begins with the first job, and ends with the worker or before the process does:
    MLX's streams belong to their thread, which must give them back before Python shuts down.
    """

    def __init__(self) -> None:
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._started = False

    async def run(self, work: Callable[[], T]) -> T:
        """Awaits `work`. A cancelled caller still waits for it to end, so that jobs never mix."""
        future: Future[T] = Future()
        self._jobs.put((work, future))
        if not self._started:
            self._started = True
            thread = threading.Thread(target=_work, args=(self._jobs,), name="moshi-mlx")
            thread.daemon = True  # `finalize` ends it; Python would wait for it before that
            thread.start()
            weakref.finalize(self, _end, self._jobs, thread)
        waiting = asyncio.wrap_future(future)
        try:
            return await asyncio.shield(waiting)
        except asyncio.CancelledError:
            await asyncio.wait([waiting])
            raise


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
