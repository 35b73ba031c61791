"""What happens around a conversation, as typed events beside those of the library.

A terminal, a recorder or a trace listen. Knows nothing of models and sound cards. `time` is in
seconds on the session's clock.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from moshi_mlx import Event, Frame, Word

__all__ = [
    "CaptionsBehind",
    "CaptionsLost",
    "DeviceLost",
    "Event",
    "FrameDone",
    "GreetingHeld",
    "SilentFrame",
    "Lag",
    "Listener",
    "LoopBroken",
    "MicrophoneClosed",
    "MicrophoneDead",
    "Notice",
    "Opened",
    "Paused",
    "RecordingStopped",
    "ResetDone",
    "Resumed",
    "WordHeard",
]


@dataclass(frozen=True)
class Notice(Event):
    """Something that the user should know, in plain words."""

    text: str


@dataclass(frozen=True)
class Opened(Event):
    """The sound devices with these names are open, at these rates (Hz); one that is not wanted has
    the name "".
    """

    input: str
    output: str
    input_rate: int = 24_000
    output_rate: int = 24_000
    echo_cancelled: bool = False


@dataclass(frozen=True)
class DeviceLost(Event):
    """The sound stream ended or stopped calling; it will be opened again."""

    reason: str


@dataclass(frozen=True)
class MicrophoneDead(Event):
    """The microphone has given nothing but zeros for some seconds; what to do about it."""

    advice: str


@dataclass(frozen=True)
class FrameDone(Event):
    """One step of the session; `frame.events` have been told before it.

    heard: what the session was given, float32 [frame_size].
    took: the whole step (seconds).
    lag: sound that waits to be heard or played, beyond what must (seconds).
    delay: from mouth to ear now, or None where there is no sound card (seconds).
    """

    frame: Frame
    heard: NDArray[np.float32] = field(repr=False, compare=False)
    took: float = 0.0
    lag: float = 0.0
    delay: float | None = None


@dataclass(frozen=True)
class SilentFrame(Frame):
    """A frame of which nothing is said.

    pauses: probabilities that the speaker pauses for at least 0.5, 1, 2 and 3 s; None where the
        model has no heads for them.
    """

    pauses: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Lag(Event):
    """The loop was late, and sound was thrown away to catch up (seconds of sound).

    Counted where the state is shown, never a line: on a slow machine it comes every second.
    """

    input_dropped: float
    output_dropped: float


@dataclass(frozen=True)
class Resumed(Event):
    """The machine or the program was asleep for `slept` seconds."""

    slept: float


@dataclass(frozen=True)
class MicrophoneClosed(Event):
    """The user closed the microphone (mute, push-to-talk), or opened it again."""

    closed: bool


@dataclass(frozen=True)
class Paused(Event):
    """The model rests, since the microphone is closed and Moshi silent; or resumes."""

    paused: bool


@dataclass(frozen=True)
class ResetDone(Event):
    """The conversation was restarted; the session's clock starts at 0 again."""


@dataclass(frozen=True)
class GreetingHeld(Event):
    """Moshi's text is held back until the user has spoken; or (`held` False) no longer."""

    held: bool


@dataclass(frozen=True)
class LoopBroken(Event):
    """Moshi said `phrase` again and again, and was made to pause."""

    phrase: str
    times: int


@dataclass(frozen=True)
class WordHeard(Event):
    """The user has said a word, as a speech-to-text model writes it; some time after it was said.

    Of what was said before a `ResetDone`, times are negative.
    """

    word: Word


@dataclass(frozen=True)
class CaptionsBehind(Event):
    """So much of what the user says waits to be written down (seconds); told once."""

    seconds: float


@dataclass(frozen=True)
class CaptionsLost(Event):
    """So much of what the user said is never written down, since too much waited (seconds).

    Counted at the end, never a line: on a slow machine it comes again and again.
    """

    seconds: float


@dataclass(frozen=True)
class RecordingStopped(Event):
    """Nothing more can be recorded; what was heard until now is kept."""

    reason: str


Listener = Callable[[Event], None]
