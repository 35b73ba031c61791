"""Speech that a model has made, with its words. Knows nothing of models."""

from dataclasses import dataclass

from .arrays import Pcm
from .text import Word, join_words


@dataclass(frozen=True)
class SpokenWord(Word):
    """A word of a script with its time in seconds from the first sample.

    speaker: 0 the main one, 1 the other.
    """

    speaker: int = 0


@dataclass(frozen=True)
class Speech:
    """What was said.

    pcm: float32 [samples] in −1 … 1.
    words: with their times in seconds from the first sample; a pause is one without text. Of a
        script, they are `SpokenWord`s.
    sample_rate: samples per second.
    """

    pcm: Pcm
    words: tuple[Word, ...]
    sample_rate: int

    @property
    def seconds(self) -> float:
        """Its length."""
        return len(self.pcm) / self.sample_rate

    @property
    def text(self) -> str:
        """All words as one text."""
        return join_words(word.text for word in self.words if word.text)
