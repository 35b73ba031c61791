"""One thread that does a model's MLX work for callers on other threads. Knows nothing of models.

MLX's streams belong to the thread that made them; one that is torn out of its work takes the
process along.
"""

import atexit
import math
import os
import statistics
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TypeVar, cast

import mlx.core as mx

from .errors import SessionError
from .threads import at_work, end, ending, ends_in_time, may_begin, may_begin_at_all

T = TypeVar("T")
_Job = Callable[[], None]

EXIT_SECONDS = 10.0
"""What a job that runs while the process ends may take."""
_POLL_SECONDS = 0.05
_OVERDUE = 3.0  # times the seconds in which a job was expected: it does not come
_TIMED = 15  # jobs of others, of which the median is what one takes
_PATIENCE_SECONDS = 2.0
"""So long no time was found for one: it is taken to be as fast as any ever was."""
_starting = threading.RLock()
_running: dict[threading.Thread, "SimpleQueue[bool]"] = {}


class Worker:
    """Runs what it is given, one after the other, on its own thread or on that of another.

    The thread ends with the worker, or before the process does. Callers hold no lock of ours while
    they ask or wait, so that a signal's handler may ask too, and Ctrl-C leaves nothing locked.

    Args:
        first: whose thread does the work too; its own jobs go before any of this one's.
    """

    def __init__(self, first: "Worker | None" = None) -> None:
        self._closed = False
        self._process = os.getpid()
        self._first = first
        self._later: deque[_Job] = deque() if first is None else first._later  # jobs of others
        self._pace: _Pace = _Pace() if first is None else first._pace
        self._jobs: deque[_Job] = deque() if first is None else first._later
        # True for each job, False at the end.
        self._asked: SimpleQueue[bool] = SimpleQueue() if first is None else first._asked
        self._thread: threading.Thread
        if first is not None:
            self._thread = first._thread
            return
        with _starting:
            may_begin_at_all()
            waiting = (self._asked, self._jobs, self._later, self._pace)
            self._thread = threading.Thread(target=_work, args=waiting, name="moshi-local MLX")
            self._thread.daemon = True  # Python would wait for it before `_end_all`
            self._thread.start()
            _running[self._thread] = self._asked
            weakref.finalize(self, self._asked.put, False).atexit = False  # `_end_all` does it

    @property
    def is_caller(self) -> bool:
        """Whether the worker's thread itself asks."""
        return threading.current_thread() is self._thread

    def expect(self, seconds: float) -> None:
        """The next job is expected in so many seconds, again and again.

        Until then jobs of other workers on this thread begin only if they are likely to be done by
        then. When it is long overdue they begin at any time.
        """
        now = time.monotonic()
        self._pace.due, self._pace.rests = now + seconds, now + _OVERDUE * seconds

    def call(self, work: Callable[[], T]) -> T:
        """Runs `work` and waits for it. From any thread, the worker's own included.

        Ctrl-C meanwhile is raised when `work` has ended, a second one at once: nothing is left
        half done. What has not begun by then is left undone.

        Raises:
            SessionError: as `submit`.
        """
        if self.is_caller:
            return work()
        results: list[tuple[T | None, BaseException | None]] = []
        done: SimpleQueue[None] = SimpleQueue()
        waits = [True]

        def job() -> None:
            try:
                results.append((work(), None) if waits[0] else (None, None))
            except BaseException as error:
                results.append((None, error))
            done.put(None)

        self._put(job)
        try:
            done.get()
        except KeyboardInterrupt:
            waits[0] = False
            while not results:
                with suppress(Empty):
                    done.get(timeout=_POLL_SECONDS)
            raise
        result, error = results.pop()
        if error is not None:
            raise error
        return cast(T, result)

    def submit(self, work: Callable[[], T]) -> "Future[T]":
        """Queues `work`; the future has its result. From any thread.

        A future that is cancelled before its turn is passed over.

        Raises:
            SessionError: the worker is closed, the process ends, or it was forked after MLX had
                been used.
        """
        future: Future[T] = Future()

        def job() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(work())
                except BaseException as error:
                    future.set_exception(error)

        self._put(job)
        return future

    def _put(self, job: _Job) -> None:
        may_begin()
        if self._closed or (self._first is not None and self._first._closed):
            raise SessionError("the thread of this model has ended: load the model again")
        if ending():
            raise SessionError("the process ends, and the thread of this model has ended")
        if self._process != os.getpid():
            raise SessionError(
                "this model is of the process that this one was forked from: load it here"
            )
        self._jobs.append(job)  # atomic, as `popleft` is
        self._asked.put(True)

    def close(self, timeout: float | None = None) -> bool:
        """Ends the thread once the jobs that were given are done; it takes no others.

        On the thread of another worker it only takes no others.

        Args:
            timeout: seconds to wait for that at most.

        Returns:
            Whether it has ended; never for the thread itself.
        """
        self._closed = True
        if self._first is not None:
            return True
        self._asked.put(False)
        if not self.is_caller:
            self._thread.join(timeout)
        return not self._thread.is_alive()


def on_good_thread(work: Callable[[], T]) -> T:
    """Runs MLX's work here where that is safe, else on a thread for it.

    That is the main thread, where Ctrl-C ends it.
    """
    if threading.current_thread() is threading.main_thread():
        may_begin_at_all()
        with at_work():
            return work()
    worker = Worker()
    try:
        return worker.call(work)
    finally:
        worker.close()


class _Pace:
    """When a job of another worker may begin; used on the thread alone but for two times."""

    def __init__(self) -> None:
        self.due = self.rests = -math.inf
        self._took: deque[float] = deque(maxlen=_TIMED)
        self._fastest = math.inf
        self._ran = -math.inf

    def wait(self) -> float:
        """Seconds until then, if no job of the first worker comes before."""
        now = time.monotonic()
        if now >= self.rests or not self._took:
            return 0.0
        patient = now - self._ran < _PATIENCE_SECONDS
        needed = statistics.median(self._took) if patient else self._fastest
        return 0.0 if now + needed <= self.due else self.rests - now

    def run(self, job: _Job) -> None:
        """Runs one, and remembers how long it took."""
        began = time.monotonic()
        job()
        self._ran = time.monotonic()
        self._took.append(self._ran - began)
        self._fastest = min(self._fastest, self._took[-1])


def _work(asked: SimpleQueue[bool], first: deque[_Job], later: deque[_Job], pace: _Pace) -> None:
    ends_in_time()
    owed = 0  # jobs of others that are known of
    while True:
        wait = pace.wait() if owed else None
        if wait == 0.0 and not first:
            owed -= 1
            pace.run(later.popleft())
            continue
        try:
            if not asked.get(timeout=wait):
                break
        except Empty:
            continue
        if first:
            job = first.popleft()
            job()
            del job  # a waiting thread must not keep a session alive
        else:
            owed += 1
    while later:
        later.popleft()()
    mx.clear_streams()
    _running.pop(threading.current_thread(), None)


@atexit.register
def _end_all() -> None:
    """Ends the threads that are left, once their jobs are done; Python would tear them out."""
    with _starting:
        end()
    running, ends = list(_running.items()), time.monotonic() + EXIT_SECONDS
    for _, asked in running:
        asked.put(False)
    for thread, _ in running:
        thread.join(max(0.0, ends - time.monotonic()))


os.register_at_fork(after_in_child=_running.clear)
