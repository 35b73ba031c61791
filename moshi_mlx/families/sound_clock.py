"""Which moment of a sound a model hears in which frame.

The two differ where a model is given what is not in the sound: a silence before it or within, a
prompt, or a stretch of it again. Knows nothing of models and words.
"""

from collections import deque
from typing import NamedTuple

_MOST = 64
"""Stretches that are kept; times are asked for shortly after they were heard."""


class _Stretch(NamedTuple):
    """From a frame of the model on: where in the sound it begins, and whether that moves on."""

    frame: int
    moment: float
    moves: bool


class SoundClock:
    """Frames of a model, counted from 0 without end, to moments of a sound, both in frames."""

    def __init__(self) -> None:
        self._stretches: deque[_Stretch] = deque(maxlen=_MOST)

    def begin(self) -> None:
        """What was heard before says nothing of what comes."""
        self._stretches.clear()

    def hear(self, frame: int, moment: float, moves: bool) -> None:
        """The model hears `frame`, which begins at `moment` of the sound.

        Args:
            frame: one after the last.
            moment: where it begins.
            moves: it is a frame of the sound, not one that was put in at this moment.
        """
        if self._stretches:
            last = self._stretches[-1]
            expected = last.moment + (frame - last.frame if last.moves else 0)
            if last.moves == moves and expected == moment:
                return
        self._stretches.append(_Stretch(frame, moment, moves))

    def moment(self, frame: float) -> float:
        """Of the sound, that a frame of the model, or a point within, stands for."""
        found = self._stretches[0]
        for stretch in self._stretches:
            if stretch.frame > frame:
                break
            found = stretch
        return found.moment + (frame - found.frame if found.moves else 0.0)
