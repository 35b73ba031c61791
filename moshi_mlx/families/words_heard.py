"""A transcriber's text, one token a frame, to words with their times in the sound.

Text lies behind the sound by the model's delay: the token after frame m was heard is that of frame
m + 1, and of the moment `audio_delay_seconds` before it. Knows nothing of generators and threads.
"""

import math
from collections import deque

from ..config import LmConfig, SttConfig
from ..text import TextTokenizer, Word, WordStream
from ..transcription import HeardWord
from .sound_clock import SoundClock

Pauses = tuple[float, ...]

_REMEMBERED = 64  # frames whose pauses are kept beyond the delay: longer than a word is open


class WordsHeard:
    """Words of one sound, in order, none of which begins before the one in front of it ends.

    A word begins with the piece that carries the boundary; pieces without one continue it, as
    `WordStream` has it with `joins`.

    Args:
        tokenizer: of the text.
        lm: the model's configuration.
        stt: its times.
        clock: moments of the frames.
        frame_rate: frames per second.
    """

    def __init__(
        self,
        tokenizer: TextTokenizer,
        lm: LmConfig,
        stt: SttConfig,
        clock: SoundClock,
        frame_rate: float,
    ) -> None:
        self._tokenizer, self._lm = tokenizer, lm
        self._clock, self._rate = clock, frame_rate
        self._delay = stt.audio_delay_seconds * frame_rate
        self._pauses: deque[tuple[int, Pauses]] = deque(maxlen=_REMEMBERED + math.ceil(self._delay))
        self._last = 0.0  # the end of the last word, in seconds
        self._frame = 0
        self.begin()

    def begin(self) -> None:
        """The model starts afresh: what it writes within its delay is of nothing it has heard."""
        self._stream = WordStream(
            self._tokenizer,
            epad=self._lm.text_end_padding_id,
            pad=self._lm.text_padding_id,
            frame_rate=1.0,
            joins=True,
        )
        self._first = self._frame

    @property
    def partial(self) -> str:
        """The text so far of the word that is not finished."""
        return self._stream.partial

    @property
    def last(self) -> float:
        """Where the last finished word ends, in seconds of the sound; 0 before the first."""
        return self._last

    def writes(self, token: int) -> bool:
        """Whether a token is text."""
        return bool(self._tokenizer.piece_bytes(token))

    def step(self, frame: int, token: int, pauses: Pauses | None, until: float) -> list[HeardWord]:
        """Takes what was written when a frame was heard.

        Args:
            frame: its number, on the clock.
            token: the text.
            pauses: probabilities of the heads.
            until: where the sound ends that was heard so far, in seconds; no word ends later.

        Returns:
            The words that it finishes.
        """
        if pauses is not None:
            self._pauses.append((frame, pauses))
        self._frame = frame + 1
        if self._frame - self._first < int(self._delay):
            token = self._lm.text_padding_id
        return self._placed(self._stream.step(token, self._frame), until)

    def flush(self, until: float) -> list[HeardWord]:
        """Finishes the word that is open."""
        return self._placed(self._stream.flush(), until)

    def _placed(self, words: list[Word], until: float) -> list[HeardWord]:
        return [self._place(word, until) for word in words]

    def _place(self, word: Word, until: float) -> HeardWord:
        start, end = (
            min(max(self._clock.moment(at - self._delay) / self._rate, 0.0), until)
            for at in (word.start, word.end)
        )
        start = max(start, self._last)
        self._last = max(start, end)
        return HeardWord(word.text, start, self._last, self._pauses_at(word.end - self._delay))

    def _pauses_at(self, frame: float) -> Pauses | None:
        """Of the frame that holds a point, or the nearest one that is remembered."""
        if not self._pauses:
            return None
        first = self._pauses[0][0]
        index = min(max(math.floor(frame) - first, 0), len(self._pauses) - 1)
        return self._pauses[index][1]
