"""What happens around a conversation, as typed events beside those of the library.

A terminal, a recorder or a trace listen. Knows nothing of models and sound cards. `time` is in
seconds on the session's clock.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from moshi_mlx import Event, Frame

__all__ = ["Event", "FrameDone", "Lag", "Listener", "Opened", "Restarted"]


@dataclass(frozen=True)
class Opened(Event):
    """The sound devices with these names are open."""

    input: str
    output: str


@dataclass(frozen=True)
class FrameDone(Event):
    """One step of the session; `frame.events` have been told before it."""

    frame: Frame


@dataclass(frozen=True)
class Lag(Event):
    """The loop was late, and the oldest sound was thrown away to catch up (seconds of sound)."""

    input_dropped: float
    output_dropped: float


@dataclass(frozen=True)
class Restarted(Event):
    """The sound stream had stopped calling and was opened again."""

    reason: str


Listener = Callable[[Event], None]
