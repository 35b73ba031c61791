"""Words whose spelling a transcriber is shown before it hears a sound.

With a recording of them, the model hears it, and as long as it has not written all of them it may
write nothing else: an experiment of the models' makers. Without one they are written for it, over
silence; nothing is known of how much that helps. Knows no threads.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..arrays import Codes
from ..config import UNGENERATED_TOKEN, LmConfig
from ..errors import ArgumentError, shown
from ..text import TextTokenizer

AFTER = 10
"""Silent frames between the words and the sound."""
MOST_TOKENS = 200
"""Of words that are shown: more would fill the shortest window."""


@dataclass(frozen=True)
class Spelling:
    """What is shown.

    codes: int32 [frames, n_q] of the recording, or of silence, and of the silence after it.
    tokens: that may be written one after the other, none of them to be left out.
    forced: int32 [frames], what is written in each frame, −2 where the model may choose.
    """

    codes: Codes
    tokens: tuple[int, ...]
    forced: npt.NDArray[np.int32]


def with_recording(tokens: list[int], codes: Codes) -> Spelling:
    """Words, as tokens, and a recording of them with the silence after it, int32 [frames, n_q]."""
    return Spelling(codes, tuple(tokens), np.full(len(codes), UNGENERATED_TOKEN, np.int32))


def without_recording(words: list[list[int]], quiet: Codes, lm: LmConfig) -> Spelling:
    """Words, each as tokens, over silence: int32 [frames, n_q] of at least `frames_for` them."""
    written = [token for word in words for token in (lm.text_end_padding_id, *word)]
    forced = np.full(frames_for(words), lm.text_padding_id, np.int32)
    forced[: len(written)] = written
    return Spelling(quiet[: len(forced)], (), forced)


def frames_for(words: list[list[int]]) -> int:
    """Frames that words without a recording take, with the silence after them."""
    return sum(1 + len(word) for word in words) + AFTER


def tokens_of(name: str, text: object, tokenizer: TextTokenizer) -> list[list[int]]:
    """The tokens of each word.

    Raises:
        ArgumentError: there is no word, or there are too many.
    """
    if not isinstance(text, str):
        raise ArgumentError(f"{name} must be text, is {shown(text)}")
    words = [tokenizer.encode(word) for word in text.split()]
    count = sum(map(len, words))
    if not 0 < count <= MOST_TOKENS:
        raise ArgumentError(
            f"{name} must be words of 1 to {MOST_TOKENS} tokens together, has {count}"
        )
    return words


class SpellingRun:
    """A spelling on its way through a model.

    Args:
        spelling: what is shown.
        lm: the model's configuration.
        batch: sounds side by side.
        patience: frames after it in which what is left may still be written, and nothing else.
    """

    def __init__(self, spelling: Spelling, lm: LmConfig, batch: int, patience: int) -> None:
        self._tokens, self._lm = spelling.tokens, lm
        self._next = np.zeros(batch, np.intp)
        self._left = len(spelling.codes) + patience

    @property
    def over(self) -> npt.NDArray[np.bool_]:
        """For each sound, whether the model is free to write what it likes."""
        return (self._next >= len(self._tokens)) | (self._left <= 0)

    def allowed(self) -> npt.NDArray[np.bool_] | None:
        """What may be written next: bool [B, text_card]; None if anything may."""
        over = self.over
        if over.all():
            return None
        mask = np.repeat(over[:, None], self._lm.text_card_out, axis=1)
        mask[:, [self._lm.text_padding_id, self._lm.text_end_padding_id]] = True
        for row in np.flatnonzero(~over):
            mask[row, self._tokens[self._next[row]]] = True
        return mask

    def take(self, written: npt.NDArray[np.int32]) -> None:
        """What was written in a frame: int32 [B]."""
        self._left -= 1
        for row in np.flatnonzero(self._next < len(self._tokens)):
            self._next[row] += written[row] == self._tokens[self._next[row]]
