"""A transcription as the loop steps a conversation: frames with the user's words and no voice.

Knows the library's transcription session. Knows nothing of sound cards, files and screens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from moshi_mlx import Event, Word, WordSpoken
from moshi_mlx.arrays import Pcm
from moshi_mlx.closing import Closing

from .events import SilentFrame, WordHeard

if TYPE_CHECKING:  # the family is imported with its first model
    from moshi_mlx import TranscriptionSession

__all__ = ["Listening"]


class Listening(Closing):
    """A transcription session as a `Stepper`. Its words are told as `WordHeard`.

    Args:
        session: fresh; is closed with this.
        frame_size: samples of a frame.
    """

    def __init__(self, session: TranscriptionSession, frame_size: int) -> None:
        self._session = session
        self._silence = np.zeros(frame_size, np.float32)

    def step(self, pcm: Pcm, *, hold_text: bool = False) -> SilentFrame:
        """Hear float32 [frame_size]; the words come as late as the model writes them."""
        heard = self._session.step(pcm)
        return SilentFrame(
            index=heard.index,
            pcm=self._silence,
            text="",
            words=heard.words,
            partial=heard.partial,
            speaking=False,
            user_speaking=heard.speaking,
            tokens=None,
            events=tuple(map(_heard, heard.events)),
            timing=heard.timing,
            pauses=heard.pauses,
        )

    def flush(self) -> tuple[Word, ...]:
        """The words that are still to come of what was heard."""
        return tuple(self._session.flush())

    def reset(self) -> None:
        """Back to the state of a fresh session."""
        self._session.reset()

    def close(self) -> None:
        """Lets go of the session."""
        self._session.close()


def _heard(event: Event) -> Event:
    return WordHeard(event.time, event.word) if isinstance(event, WordSpoken) else event
