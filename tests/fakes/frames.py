"""FrameDone events made by hand, for what listens to them."""

from __future__ import annotations

import numpy as np

from moshi_local.events import FrameDone
from moshi_mlx import Frame, Timing, Word, WordSpoken
from moshi_mlx.testing import FRAME_RATE, FRAME_SIZE


def frame_done(
    index: int, user: float = 0.0, moshi: float = 0.0, *, lag: float = 0.0, took: float = 0.07
) -> FrameDone:
    """Frame `index`, each side at a constant level; encode, model, decode took 10, 40, 15 ms."""
    frame = Frame(
        index=index,
        pcm=np.full(FRAME_SIZE, moshi, np.float32),
        text=" hi",
        words=(),
        partial="hi",
        speaking=True,
        user_speaking=False,
        tokens=np.array([7, 1, 2], np.int32),
        events=(),
        timing=Timing(encode=0.010, model=0.040, decode=0.015),
    )
    heard = np.full(FRAME_SIZE, user, np.float32)
    return FrameDone((index + 1) / FRAME_RATE, frame, heard, took=took, lag=lag, delay=0.2)


def spoken(text: str, start: float, end: float) -> WordSpoken:
    """Moshi's word, told when it has ended."""
    return WordSpoken(end, Word(text, start, end))
