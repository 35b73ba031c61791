"""The one thread of a model."""

import threading
import time

import pytest

from moshi_mlx import SessionError
from moshi_mlx.worker import Worker


def test_a_future_that_is_cancelled_is_passed_over() -> None:
    worker, go_on, done = Worker(), threading.Event(), []
    first = worker.submit(lambda: go_on.wait(20))
    second = worker.submit(lambda: done.append(2))
    third = worker.submit(lambda: done.append(3))
    assert second.cancel()
    go_on.set()
    assert first.result(20)
    third.result(20)
    assert done == [3]
    assert worker.close(20)


def test_an_error_is_the_callers_and_ends_nothing() -> None:
    worker = Worker()
    with pytest.raises(ZeroDivisionError):
        worker.submit(lambda: 1 // 0).result(20)
    assert worker.submit(lambda: 1).result(20) == 1
    assert worker.close(20)


def test_closed() -> None:
    """What was given is done, nothing more is taken; a job that hangs is left behind."""
    worker, go_on = Worker(), threading.Event()
    waiting = worker.submit(lambda: go_on.wait(20))
    assert not worker.close(0.05)
    with pytest.raises(SessionError, match="has ended"):
        worker.submit(lambda: None)
    go_on.set()
    assert waiting.result(20)
    assert worker.close(20)
    assert Worker().close()


def test_many_threads_begin_it_once() -> None:
    worker, together = Worker(), threading.Barrier(8)
    names: list[str] = []

    def ask() -> None:
        together.wait()
        names.append(worker.submit(lambda: str(threading.get_ident())).result(20))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(names) == 8
    assert len(set(names)) == 1
    assert worker.close(20)


def test_on_the_thread_of_another_whose_jobs_go_first() -> None:
    first, go_on, done = Worker(), threading.Event(), []
    second = Worker(first)

    def job(name: str) -> int:
        go_on.wait(20)
        done.append(name)
        return threading.get_ident()

    begun = first.submit(lambda: job("begun"))
    late = second.submit(lambda: job("later"))
    for name in ("first", "first too"):
        first.submit(lambda name=name: job(name))  # type: ignore[misc]
    go_on.set()
    assert late.result(20) == begun.result(20)
    assert done == ["begun", "first", "first too", "later"]
    assert second.close()
    assert first.submit(lambda: 1).result(20) == 1
    third = Worker(first)
    assert first.close(20)
    with pytest.raises(SessionError, match="has ended"):
        third.submit(lambda: None)


def test_jobs_of_others_begin_in_the_time_between_two_expected_jobs() -> None:
    """The first ones come every 80 ms and take 30; the others take 20, and fit in once or twice."""
    first = Worker()
    second = Worker(first)
    late: list[float] = []
    others = [second.submit(lambda: time.sleep(0.02)) for _ in range(200)]
    began = time.monotonic()

    def step(due: float) -> None:
        late.append(time.monotonic() - due)
        first.expect(0.08)
        time.sleep(0.03)

    for i in range(20):
        due = began + 0.1 + 0.08 * i
        time.sleep(max(0.0, due - time.monotonic()))
        first.submit(lambda due=due: step(due))  # type: ignore[misc]
    first.submit(lambda: None).result(20)
    beside = sum(other.done() for other in others)
    assert 20 <= beside <= 60
    assert sorted(late)[len(late) // 2] < 0.01
    others[-1].result(20)  # no more is expected: they go on
    first.close(20)


def test_what_waits_at_the_end_is_done() -> None:
    first = Worker()
    second = Worker(first)
    second.submit(lambda: time.sleep(0.02)).result(20)
    first.expect(0.01)
    first.expect(1000)
    done = [second.submit(lambda: time.sleep(0.001)) for _ in range(3)]
    first._pace.due = 0.0  # there is no time for them
    assert first.close(20)
    for each in done:
        each.result(0)
