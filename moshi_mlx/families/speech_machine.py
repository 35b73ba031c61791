"""The machine between a speaking model and its text: when the model asks for a word, it gets one.

One for each text. Per step it is told the token that the model drew and says which one is written
instead. Knows tokens; nothing of models and sound.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from .speech_script import ScriptEntry

NEW_WORD, PADDING = 0, 3


@dataclass(frozen=True, slots=True)
class BegunWord:
    """A word or a break that the model has begun; `step` counts from 0.

    speaker: 0 the main one, 1 the other.
    """

    text: str
    step: int
    speaker: int = 0


@dataclass
class SpeechMachine:
    """The state of one text.

    rows: of the model's table of text tokens, its initial one included.
    ahead: words by which the second text stream is further; 0: there is none.
    max_padding: steps that may pass before a word must begin.
    initial_padding: steps before the first word.
    ended: no more text will come.
    """

    rows: int
    ahead: int = 0
    max_padding: int = 8
    initial_padding: int = 2
    ended: bool = True
    entries: deque[ScriptEntry] = field(default_factory=deque)
    begun: list[BegunWord] = field(default_factory=list)
    end_step: int | None = None
    may: int = field(init=False)
    must: int = field(init=False)
    main: deque[int] = field(default_factory=deque)
    second: deque[int] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.may = self.must = self.initial_padding

    def add(self, entries: Iterable[ScriptEntry]) -> None:
        """Takes more text."""
        self.entries.extend(entries)

    @property
    def ready(self) -> bool:
        """A step can be made: none that might need text which has not come."""
        if self.ended or self.main or self.must > 0:
            return True
        if not self.entries:
            return False
        words = sum(bool(entry.tokens) for entry in self.entries)
        return not self.entries[0].tokens or words > self.ahead

    def step(self, drawn: int, step: int) -> int:
        """The token that is written in place of the one that was drawn."""
        token = self._asked(drawn)
        if token == NEW_WORD:
            token = self._next_word(step)
        if token == PADDING:
            self.may, self.must = max(0, self.may - 1), max(0, self.must - 1)
            token = self._next_token()
        return token if self.ahead == 0 else self._with_second(token)

    def _asked(self, drawn: int) -> int:
        """Whether a word is begun, as the model wants and the paddings allow."""
        if self.main or self.must > 0:
            return PADDING
        if self.may <= 0:
            return NEW_WORD
        return drawn if drawn in (NEW_WORD, PADDING) else PADDING

    def _next_word(self, step: int) -> int:
        if not self.entries:
            first = self.end_step is None
            if first:
                self.end_step = step
            return NEW_WORD if first and self.ahead else PADDING
        entry = self.entries.popleft()
        self.begun.append(BegunWord(entry.text, step, entry.speaker))
        self.must = entry.padding
        if not entry.tokens:
            return PADDING
        self.main.extend(entry.tokens)
        if self.ahead:
            words = (other for other in self.entries if other.tokens)
            later = next((w for i, w in enumerate(words, 1) if i == self.ahead), None)
            self.second.extend(later.tokens if later is not None else ())
        self.may = self.max_padding
        return NEW_WORD

    def _next_token(self) -> int:
        return self.main.popleft() if self.main else PADDING

    def _with_second(self, token: int) -> int:
        """Both text streams in one token."""
        second = -1
        if token == NEW_WORD:
            second, token = NEW_WORD, self._next_token()
        elif self.second:
            second = self.second.popleft()
        return (second + 1) * self.rows + token
