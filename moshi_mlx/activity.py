"""Is it sounding? From the loudness of frames, and of stretches of a recording."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from .arguments import truth, whole
from .arrays import Pcm
from .events import Event, SpeechEnded, SpeechStarted

SOUNDING = 0.005
"""A live frame that is louder sounds: root mean square, −46 dBFS. Quiet microphones count."""
AUDIBLE = 0.01
"""The same for short windows of synthetic speech, −40 dBFS: well above what a codec leaves."""
# A side has fallen silent when nothing sounded for this many frames: longer than between words.
_PAUSE_FRAMES = 6


def loudness(pcm: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """Root mean square over the last axis, 0 … 1."""
    return np.asarray(np.sqrt(np.mean(np.square(pcm), axis=-1)))


def audible_spans(
    pcm: Pcm, rate: int, *, window: float, pause: float, threshold: float = AUDIBLE
) -> list[tuple[int, int]]:
    """Where a recording sounds.

    Args:
        pcm: float32 [samples].
        rate: samples per second.
        window: seconds whose loudness is looked at.
        pause: seconds of quiet below which two spans are one.
        threshold: the loudness from which a window sounds.

    Returns:
        (start, end) of each span, in samples.
    """
    size = round(window * rate)
    windows = pcm[: len(pcm) // size * size].reshape(-1, size)
    spans: list[tuple[int, int]] = []
    for index in np.flatnonzero(loudness(windows) > threshold):
        start, end = int(index) * size, (int(index) + 1) * size
        if spans and start - spans[-1][1] < pause * rate:
            spans[-1] = (spans[-1][0], end)
        else:
            spans.append((start, end))
    return spans


class Activity:
    """Whether a side of a conversation sounds, frame by frame."""

    def __init__(self, side: Literal["moshi", "user"], frame_rate: float) -> None:
        self.side = side
        self.active = False
        self._frame_rate = frame_rate
        self._last = 0

    def step(self, index: int, pcm: Pcm) -> list[Event]:
        """Takes frame `index`; returns the change it brings, if any."""
        if loudness(pcm) > SOUNDING:
            self._last = index
            if not self.active:
                self.active = True
                return [SpeechStarted(index / self._frame_rate, self.side)]
        elif self.active and index - self._last >= _PAUSE_FRAMES:
            self.active = False
            return [SpeechEnded((self._last + 1) / self._frame_rate, self.side)]
        return []

    def save(self) -> list[Any]:
        """What it remembers, as JSON has it."""
        return [self.active, self._last]

    def restore(self, saved: Sequence[Any], frames: int) -> None:
        """Continues where `save` was called, after that many frames. Raises ArgumentError."""
        active, last = saved
        active = truth(f"whether {self.side} sounds", active)
        self._last = whole(f"the last frame of {self.side}", last, 0, frames)
        self.active = active
