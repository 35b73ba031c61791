"""A ring of samples between the sound card's thread and ours. Knows nothing of rates."""

from __future__ import annotations

import numpy as np

from moshi_mlx.arrays import Pcm

__all__ = ["Pcm", "Ring"]


class Ring:
    """A ring of samples for one writer and one reader on two threads, without a lock.

    Writing never waits and never fails: the writer goes over the oldest samples. Two counters
    that only grow (`written`, `taken`) say what is in it; each is set by one side only. A reader
    that may have fallen behind by more than half the capacity calls `keep_newest` first.
    """

    def __init__(self, capacity: int) -> None:
        self._data = np.zeros(capacity, np.float32)
        self.written = 0
        self.taken = 0

    def __len__(self) -> int:
        """Samples that wait to be read."""
        return self.written - self.taken

    def put(self, pcm: Pcm) -> None:
        """Writer's side: append `pcm`; of more than the capacity only the newest."""
        data, n = self._data, len(pcm)
        if n > len(data):
            self.written += n - len(data)
            pcm, n = pcm[-len(data) :], len(data)
        at = self.written % len(data)
        first = min(n, len(data) - at)
        data[at : at + first] = pcm[:first]
        data[: n - first] = pcm[first:]
        self.written += n

    def take(self, out: Pcm) -> int:
        """Reader's side: fill `out` as far as there are samples; returns how many there were."""
        data = self._data
        n = min(len(out), len(self))
        at = self.taken % len(data)
        first = min(n, len(data) - at)
        out[:first] = data[at : at + first]
        out[first:n] = data[: n - first]
        self.taken += n
        return n

    def skip(self, n: int) -> int:
        """Reader's side: throw the oldest `n` samples away, or all; returns how many went."""
        gone = max(0, min(n, len(self)))
        self.taken += gone
        return gone

    def keep_newest(self, n: int) -> int:
        """Reader's side: throw all but the newest `n` samples away; returns how many went."""
        return self.skip(len(self) - n)
