"""What a transcriber has written down, with times. Knows nothing of models."""

from dataclasses import dataclass

from .text import Word, join_words


@dataclass(frozen=True)
class HeardWord(Word):
    """A word with its time in seconds of the sound that was heard.

    pauses: by each of the model's pause heads, how likely it was, where the word ends, that the
        speaker pauses; None of a model without these heads.
    """

    pauses: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Transcription:
    """Of one sound.

    words: in order; none begins before the one in front of it ends.
    seconds: the sound's length.
    """

    words: tuple[HeardWord, ...]
    seconds: float

    @property
    def text(self) -> str:
        """All words as one text."""
        return join_words(word.text for word in self.words)
