"""Sound let through a word at a time, so that whoever waits for more text waits between words.

Knows samples and times. Knows nothing of models and of what plays the sound.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from moshi_mlx.arrays import Pcm

__all__ = ["WholeWords"]

_LOOKED_AT = 0.08
"""Seconds before a word's beginning in which the quietest moment is looked for."""
_WINDOW = 0.01


class WholeWords:
    """Holds the sound of a word back until all of it is there.

    Args:
        sample_rate: Hz.
    """

    def __init__(self, sample_rate: int) -> None:
        self._rate = sample_rate
        self._held = np.zeros(0, np.float32)
        self._start = 0  # number of the first sample that is held
        self._ends: list[int] = []  # samples, of words whose sound has not all come

    def add(self, pcm: Pcm, ends: Iterable[float]) -> Pcm:
        """Takes the next sound, and gives what may be heard now.

        Args:
            pcm: float32 [samples].
            ends: where words end, seconds from the first sample of all; in any order.
        """
        self._held = np.concatenate([self._held, pcm])
        made = self._start + len(self._held)
        known = [*self._ends, *(round(end * self._rate) for end in ends)]
        self._ends = [end for end in known if end > made]
        cut = max((end for end in known if self._start < end <= made), default=self._start)
        return self._take(self._quietest(cut - self._start))

    def rest(self) -> Pcm:
        """All that is held."""
        return self._take(len(self._held))

    def _take(self, n: int) -> Pcm:
        taken, self._held = self._held[:n], self._held[n:]
        self._start += n
        return taken

    def _quietest(self, at: int) -> int:
        """Where to cut: at most a little before `at`, a sample that is held."""
        window = round(_WINDOW * self._rate)
        first = max(0, at - round(_LOOKED_AT * self._rate))
        windows = (at - first) // window
        if not windows:
            return at
        pieces = self._held[at - windows * window : at].reshape(windows, window)
        quiet = int(np.argmin((pieces**2).sum(axis=1)))
        return at - (windows - quiet) * window + window // 2
