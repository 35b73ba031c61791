"""Text that a model is made to speak, at the pace at which it speaks by itself.

Knows text tokens; nothing of arrays, of sound or of a session.
"""

import math
from collections import deque
from dataclasses import dataclass

from .errors import ArgumentError, shown
from .text import TextTokenizer

_FRAMES_PER_LETTER = 0.8
"""The fastest: 15.6 letters a second. Faster text than speech makes a model stutter."""
_PATIENCE = 4
"""Frames of pause after a word, in which the model may begin the next one; then it has to."""
_OWN_WORD = 4
"""Frames without text after which the model's own last word has been spoken."""


@dataclass
class _Word:
    text: str
    tokens: list[int]
    last: bool  # of what was asked for at once

    @property
    def frames(self) -> int:
        """What it takes to speak it, at least."""
        return max(len(self.tokens), math.ceil(len(self.text) * _FRAMES_PER_LETTER))


class Saying:
    """Decides text tokens while there is something to say; for one conversation.

    The model itself decides when a word ends, as it does in its own sentences: by the token that
    says that another one begins (EPAD), or the first piece of one. That piece is then replaced by
    the next word's.

    Args:
        tokenizer: the model's.
        epad: the token in front of a word.
        pad: the token of a frame without text.
    """

    def __init__(self, tokenizer: TextTokenizer, *, epad: int, pad: int) -> None:
        self._tokenizer = tokenizer
        self._epad, self._pad = epad, pad
        self._words: deque[_Word] = deque()
        self._texts: deque[str] = deque()
        self._begin()

    def _begin(self) -> None:
        self._left: list[int] = []  # pieces of the word that is being written
        self._since = 0  # frames since it began
        self._frames = 0  # that it takes
        self._next = False  # the token in front of a word was written
        self._ends = False  # with this word ends what was asked for at once

    @property
    def busy(self) -> bool:
        """Whether there is something to say, the rest of a word included."""
        return bool(self._words or self._left or self._ends)

    def add(self, text: str) -> None:
        """Queues a text. From any thread.

        Raises:
            ArgumentError: it is no text, empty, or has what the tokenizer doesn't know.
        """
        words = [self._word(word) for word in _split(text)]
        if not words:
            raise ArgumentError(f"text must have a word to say, is {shown(text)}")
        words[-1].last = True
        self._texts.append(text)
        self._words.extend(words)

    def clear(self) -> None:
        """Forgets what was not said yet."""
        self._words.clear()
        self._texts.clear()
        self._begin()

    def choose(self, drawn: int) -> tuple[int, str | None]:
        """The token of this frame, and the text that was finished with it, if any.

        Args:
            drawn: what the model would write.
        """
        self._since += 1
        if self._left:
            return self._left.pop(0), None
        if self._next:
            self._next = False
            return self._begun(), None
        own = not self._frames
        if own and self._continues(drawn):  # the model's own word, which was on its way
            self._since = 0
            return drawn, None
        patience = _OWN_WORD if own else self._frames + _PATIENCE
        if self._since < self._frames or (drawn == self._pad and self._since < patience):
            return self._pad, None
        said = None
        if self._ends:
            self._ends, said = False, self._texts.popleft()
        if not self._words:
            self._begin()
            return drawn, said
        self._next = True
        return self._epad, said

    def _begun(self) -> int:
        word = self._words.popleft()
        self._since, self._frames, self._ends = 0, word.frames, word.last
        self._left = word.tokens[1:]
        return word.tokens[0]

    def _continues(self, token: int) -> bool:
        piece = self._tokenizer.piece_bytes(token)
        return bool(piece) and not piece.startswith(b" ")

    def _word(self, word: str) -> _Word:
        tokens = self._tokenizer.encode(word)
        if not all(self._tokenizer.piece_bytes(token) for token in tokens):
            raise ArgumentError(f"the model's tokenizer cannot write {shown(word)}")
        return _Word(word, tokens, last=False)


def _split(text: str) -> list[str]:
    if not isinstance(text, str):
        raise ArgumentError(f"text must be a str, is {shown(text)}")
    return text.split()
