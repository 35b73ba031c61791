"""The state machine that decides a speech model's text, one token per frame.

The model only says when it is ready for the next word, by the token 0; which word that is, and the
pieces that follow, come from the script. Knows tokens and steps; nothing of how a script is
written, of arrays, or of sound.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from .config import ZERO_TOKEN

NEW_WORD = 0
"""Drawn: the model asks for the next word."""
PADDING = 3
"""A frame without text."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A word or a pause of a script.

    text: the word; empty for a pause.
    tokens: its pieces, the token of the speaker first where that changes; none for a pause.
    padding: steps after it in which no other word may begin.
    speaker: 0 is the main one, 1 the other.
    """

    text: str
    tokens: tuple[int, ...]
    padding: int
    speaker: int = 0


@dataclass(frozen=True, slots=True)
class Taken:
    """An entry that was taken, and the step in which that was."""

    entry: Entry
    step: int


class SpeechMachine:
    """Turns the tokens that a model draws into those that it is to write; for one text.

    Args:
        text_card: of the model; its initial token has this number.
        ahead: words by which a second text stream is ahead; 0: there is none.
        max_padding: steps without a word after which the next one begins by force.
        initial_padding: steps before the first word.
    """

    def __init__(
        self, *, text_card: int, ahead: int = 0, max_padding: int = 8, initial_padding: int = 2
    ) -> None:
        self._rows = text_card + 1
        self._ahead, self._max_padding = ahead, max_padding
        self._may = self._must = initial_padding
        self._main: deque[int] = deque()
        self._second: deque[int] = deque()
        self._entries: deque[Entry] = deque()
        self._complete = False
        self.taken: list[Taken] = []
        """What was taken so far; whoever reads it may remove what it has read."""
        self.end_step: int | None = None
        """The step in which a word was asked for and none was left."""

    def add(self, entries: Iterable[Entry]) -> None:
        """More of the script."""
        self._entries.extend(entries)

    def complete(self) -> None:
        """There is no more of the script."""
        self._complete = True

    @property
    def ready(self) -> bool:
        """Whether enough of the script is known for a step, whatever the model draws."""
        if self._complete or self._main or self._must > 0:
            return True
        if not self._entries:
            return False
        if not self._entries[0].tokens:
            return True
        return sum(1 for entry in self._entries if entry.tokens) > self._ahead

    @property
    def state(self) -> tuple[int, int, int, int, int]:
        """Paddings allowed and forced, tokens of both streams, and entries that are left."""
        return self._may, self._must, len(self._main), len(self._second), len(self._entries)

    def step(self, drawn: int, step: int) -> int:
        """The token to write.

        Args:
            drawn: the model's token.
            step: the number of this step, from 0.

        Returns:
            A text token; both streams in one token where there are two.
        """
        token = NEW_WORD if drawn == NEW_WORD else PADDING
        if self._main or self._must > 0:
            token = PADDING
        elif self._may <= 0:
            token = NEW_WORD
        if token == NEW_WORD:
            token = self._next_word(step)
        if token == PADDING:
            self._may, self._must = max(0, self._may - 1), max(0, self._must - 1)
            token = self._main.popleft() if self._main else PADDING
        return self._with_second(token) if self._ahead else token

    def _next_word(self, step: int) -> int:
        """Takes the next entry; what stands for the token 0 then."""
        if not self._entries:
            first = self.end_step is None
            if first:
                self.end_step = step
            return NEW_WORD if first and self._ahead else PADDING
        entry = self._entries.popleft()
        self.taken.append(Taken(entry, step))
        self._must = entry.padding
        if not entry.tokens:
            return PADDING
        self._main.extend(entry.tokens)
        self._second.extend(self._tokens_ahead())
        self._may = self._max_padding
        return NEW_WORD

    def _tokens_ahead(self) -> tuple[int, ...]:
        """Of the word that the second stream has with the one that was just taken."""
        left = self._ahead
        for entry in self._entries if left else ():
            left -= bool(entry.tokens)
            if not left:
                return entry.tokens
        return ()

    def _with_second(self, token: int) -> int:
        """Both streams in one token; a word's first piece goes out together with the 0."""
        second = ZERO_TOKEN
        if token == NEW_WORD:
            second = NEW_WORD
            token = self._main.popleft() if self._main else PADDING
        elif self._second:
            second = self._second.popleft()
        return (second + 1) * self._rows + token
