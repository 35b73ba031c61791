"""Batches made ahead of time by other processes, so that a GPU need not wait for them.

Knows nothing of what is in a batch. The batches are those of the dataset, in whatever order they
are made.
"""

from collections import deque
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context

from ..closing import Closing
from .losses import Batch
from .trainer import Dataset

_dataset: Dataset | None = None


def _take(dataset: Dataset) -> None:
    global _dataset
    _dataset = dataset


def _make(index: int) -> Batch:
    assert _dataset is not None
    return _dataset.batch(index)


class Ahead(Closing):
    """A dataset whose next batches are being made while one is used; a context manager.

    Args:
        dataset: makes the batches; each process has a copy of it.
        processes: how many.
        ahead: batches that are made or being made beyond the one asked for.

    `batch` raises what the dataset raises, and `BrokenProcessPool` where a process was killed.
    """

    def __init__(self, dataset: Dataset, processes: int, ahead: int | None = None) -> None:
        self._pool = ProcessPoolExecutor(processes, get_context("spawn"), _take, (dataset,))
        self._ahead = 4 * processes if ahead is None else ahead
        self._coming: deque[tuple[int, Future[Batch]]] = deque()

    def batch(self, index: int) -> Batch:
        """Batch number `index`; the ones after it are asked for."""
        if self._coming and self._coming[0][0] != index:
            self._forget()
        following = self._coming[-1][0] + 1 if self._coming else index
        for number in range(following, index + self._ahead + 1):
            self._coming.append((number, self._pool.submit(_make, number)))
        return self._coming.popleft()[1].result()

    def close(self) -> None:
        """Ends the processes."""
        self._forget()
        self._pool.shutdown()

    def _forget(self) -> None:
        for _, batch in self._coming:
            batch.cancel()
        self._coming.clear()
