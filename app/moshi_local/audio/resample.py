"""Changing rates while sound runs.

`samplerate` (libsamplerate, sinc_fastest) delays by a constant and lets the ratio vary smoothly
from one piece to the next: it goes there in a straight line over the piece.
"""

from __future__ import annotations

import math

import numpy as np
import samplerate

from moshi_mlx.arrays import Pcm

__all__ = ["Resampler"]

HOLD_INPUTS = 24
"""sinc_fastest looks ahead by 19 to 20 samples of the slower side; what it holds back."""


class Resampler:
    """A stream of sound, mono float32, from one rate to another (Hz)."""

    def __init__(self, source: float, target: float) -> None:
        self.ratio = target / source
        self._converter = samplerate.Resampler("sinc_fastest", 1)
        self._waiting = np.zeros(math.ceil(HOLD_INPUTS * max(1.0, self.ratio)), np.float32)
        self.delay = len(self._waiting) / target
        """Seconds by which the output is later than the input."""

    def process(self, pcm: Pcm, correction: float = 0.0) -> Pcm:
        """What comes out for `pcm` [n]: about n · ratio · (1 + correction) samples."""
        ratio = self.ratio * (1.0 + correction)
        out = np.concatenate([self._waiting, self._converter.process(pcm, ratio)])
        self._waiting = out[:0]
        return out

    def fill(self, pcm: Pcm, out: Pcm, correction: float = 0.0) -> None:
        """As `process`, but exactly `out` is filled, and the few samples more or less wait."""
        got = self.process(pcm, correction)
        n = min(len(got), len(out))
        out[:n] = got[:n]
        out[n:] = 0.0
        self._waiting = got[n:]
