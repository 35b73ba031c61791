"""What happens in a conversation, as typed events; the terminal, a recorder or a trace listen.

Knows nothing of models and sound cards. Times are seconds on the session's clock.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from moshi_mlx import Frame

__all__ = ["Event", "FrameDone", "Lag", "Listener", "Opened", "Restarted"]


@dataclass(frozen=True, slots=True)
class Opened:
    """The sound devices are open."""

    at: float
    input: str
    output: str


@dataclass(frozen=True, slots=True)
class FrameDone:
    """One step of the session: a frame was heard and a frame was answered."""

    frame: Frame


@dataclass(frozen=True, slots=True)
class Lag:
    """The loop was late, and the oldest sound was thrown away to catch up (seconds of sound)."""

    at: float
    input_dropped: float
    output_dropped: float


@dataclass(frozen=True, slots=True)
class Restarted:
    """The sound stream had stopped calling and was opened again."""

    at: float
    reason: str


Event = Opened | FrameDone | Lag | Restarted
Listener = Callable[[Event], None]
