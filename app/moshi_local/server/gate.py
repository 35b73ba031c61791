"""Exact silence while the model does not speak. Knows nothing of messages.

A codec's silence is a soft noise; clients that find turns in the sound take it for speech.
"""

from __future__ import annotations

import numpy as np

from moshi_mlx import Frame
from moshi_mlx.arrays import Pcm

__all__ = ["Gate"]

_FADE_SECONDS = 0.01


class Gate:
    """Lets sound through while the model speaks, and zeros else, with a short fade between."""

    def __init__(self, sample_rate: int, frame_size: int) -> None:
        self._silence = np.zeros(frame_size, np.float32)
        self._rise = np.linspace(0.0, 1.0, round(_FADE_SECONDS * sample_rate), dtype=np.float32)
        self._open = False

    def __call__(self, frame: Frame | None) -> Pcm:
        """A frame's sound, float32 [frame_size]; None: the model rests."""
        speaking = frame is not None and frame.speaking
        was_open, self._open = self._open, speaking
        if frame is None or not (speaking or was_open):
            return self._silence.copy()
        pcm: Pcm = frame.pcm.copy()
        n = len(self._rise)
        if not was_open:
            pcm[:n] *= self._rise
        elif not speaking:
            pcm[:n] *= self._rise[::-1]
            pcm[n:] = 0.0
        return pcm
