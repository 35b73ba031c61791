"""TurnFinder of a model that has none: when the user's and the model's begin and end.

Pure: frames in, turns out, all counted in frames. Knows nothing of messages.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum, auto

from moshi_mlx import Frame

__all__ = ["TurnEdge", "TurnFinder"]

_BEGIN_SECONDS = 0.16
_INTERRUPT_SECONDS = 0.4
"""Of speech while the model speaks: an "mm-hm" must not stop it."""
_END_SECONDS = 0.64
"""Of silence, after which the model's turn is over."""
_CREATED_SECONDS = 4.0
"""So long a turn that a client has asked for waits for the model's first word."""


class TurnEdge(Enum):
    """What begins or ends with a frame."""

    USER_BEGINS = auto()
    USER_ENDS = auto()
    MODEL_BEGINS = auto()
    MODEL_ENDS = auto()


@dataclass
class TurnFinder:
    """TurnFinder of one conversation.

    frame_rate: frames per second.
    silence_seconds: after which the user's turn is over.
    """

    frame_rate: float
    silence_seconds: float = 0.5
    user: bool = False  # has a turn
    model: bool = False
    user_began: int = 0  # the frame
    _speech: int = 0  # frames of speech, or in a turn of silence, without a break
    _silence: int = 0  # frames that the model has been silent
    _waits_until: int = 0  # a turn that was asked for ends without a word then
    _shut: bool = False  # the model's turn was ended from outside, and it has not been silent since

    def step(self, index: int, frame: Frame | None, words: bool) -> list[TurnEdge]:
        """What begins or ends with frame `index`; None: the model rests. `words`: it has any."""
        found = self._of_user(index, frame is not None and frame.user_speaking)
        return found + self._of_model(index, frame is not None and frame.speaking, words)

    def create(self, index: int) -> None:
        """The model's turn begins now, whether it has something to say or not."""
        self.model, self._shut, self._silence = True, False, 0
        self._waits_until = index + self._frames(_CREATED_SECONDS)

    def shut(self) -> None:
        """The model's turn is over, and what it still says is none until it has been silent."""
        self.model, self._shut, self._silence = False, True, 0

    def _of_user(self, index: int, speaks: bool) -> list[TurnEdge]:
        self._speech = self._speech + 1 if speaks != self.user else 0
        if self.user:
            if self._speech >= self._frames(self.silence_seconds):
                self.user, self._speech = False, 0
                return [TurnEdge.USER_ENDS]
            return []
        needed = self._frames(_INTERRUPT_SECONDS if self.model else _BEGIN_SECONDS)
        if self._speech < needed:
            return []
        self.user, self.user_began, self._speech = True, index + 1 - needed, 0
        return [TurnEdge.USER_BEGINS]

    def _of_model(self, index: int, speaks: bool, words: bool) -> list[TurnEdge]:
        active = speaks or words
        if self._shut:
            self._shut = active
            return []
        if not self.model:
            if not active:
                return []
            self.model, self._silence, self._waits_until = True, 0, 0
            return [TurnEdge.MODEL_BEGINS]
        self._silence = 0 if active else self._silence + 1
        if active:
            self._waits_until = 0
        if self._silence < self._frames(_END_SECONDS) or index < self._waits_until:
            return []
        self.model = False
        return [TurnEdge.MODEL_ENDS]

    def _frames(self, seconds: float) -> int:
        return max(1, math.ceil(seconds * self.frame_rate - 1e-9))
