"""Where frames come from and go to: what the loop asks of a sound card, a file or a socket.

Reading and writing is all that a port must do. What some know besides, of delay, levels and
counters, is `PortStatus`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum, auto
from typing import Protocol, runtime_checkable

from moshi_mlx.arrays import Pcm

from .events import Event

__all__ = ["AudioPort", "PortStatus", "Read", "status_of"]


class Read(Enum):
    """What `AudioPort.read` brought."""

    FRAME = auto()
    NOTHING = auto()
    END = auto()


class AudioPort(Protocol):
    """Where frames come from and go to."""

    def read(self, frame: Pcm, timeout: float) -> Read:
        """Fill `frame` (float32 [frame_size]); wait at most `timeout` seconds for it."""

    def write(self, pcm: Pcm) -> None:
        """Hand over a frame to be played or kept."""


@runtime_checkable
class PortStatus(Protocol):
    """What a port can know of itself, beside its frames."""

    def take_events(self, now: float) -> Sequence[Event]:
        """What happened since the last call; `now` is on the session's clock (seconds)."""

    def statistics(self) -> Mapping[str, float | int]:
        """Counters for the report."""

    def delay(self) -> float | None:
        """From mouth to ear now, or None where there is no sound card (seconds)."""

    def lag(self) -> float:
        """Sound that waits to be heard or played, beyond what must (seconds)."""

    def levels(self) -> tuple[float, float]:
        """The last peaks of what comes in and what goes out, 0 … 1; from any thread."""


class _Nothing:
    """The status of a port that has none."""

    def take_events(self, now: float) -> Sequence[Event]:
        return ()

    def statistics(self) -> Mapping[str, float | int]:
        return {}

    def delay(self) -> float | None:
        return None

    def lag(self) -> float:
        return 0.0

    def levels(self) -> tuple[float, float]:
        return 0.0, 0.0


def status_of(port: AudioPort) -> PortStatus:
    """What the port knows of itself; nothing where it has no status."""
    return port if isinstance(port, PortStatus) else _Nothing()
