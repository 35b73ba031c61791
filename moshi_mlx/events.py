"""What happens in a conversation, as typed values. Knows no arrays and no models.

Times are seconds on the session's clock: a frame that goes in is heard at the same time as the
frame that comes out of the same step is said.
"""

from dataclasses import dataclass
from typing import Literal

from .text import Word


@dataclass(frozen=True)
class Event:
    """Something that happened at `time` seconds."""

    time: float


@dataclass(frozen=True)
class WordSpoken(Event):
    """Moshi has finished a word; or who is transcribed has."""

    word: Word


@dataclass(frozen=True)
class TextSaid(Event):
    """Moshi has spoken what `Session.say` was given."""

    text: str


@dataclass(frozen=True)
class SpeechStarted(Event):
    """A side has begun to sound."""

    side: Literal["moshi", "user"]


@dataclass(frozen=True)
class SpeechEnded(Event):
    """A side has been silent for a while; `time` is when it fell silent."""

    side: Literal["moshi", "user"]


@dataclass(frozen=True)
class TurnEnded(Event):
    """Who is transcribed has paused for longer than between words.

    `time` is when that was heard; the turn's last words may still be on their way.
    """


@dataclass(frozen=True)
class WindowRefreshed(Event):
    """A transcriber had stopped writing, and has started afresh with what it had not written down.

    unheard_seconds: of sound, up to `time`, that it hears again.
    """

    unheard_seconds: float
