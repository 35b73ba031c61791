"""What the sound card did, counted over a whole conversation."""

from __future__ import annotations

from dataclasses import dataclass

from .portaudio import Flags

__all__ = ["DeviceCounters"]


@dataclass(slots=True)
class DeviceCounters:
    """Flags are counted by callback; `gaps` are holes in the output; dropped is thrown away, in
    `lags` spells of lateness."""

    callbacks: int = 0
    input_underflows: int = 0
    input_overflows: int = 0
    output_underflows: int = 0
    output_overflows: int = 0
    gaps: int = 0
    restarts: int = 0
    lags: int = 0
    input_dropped_seconds: float = 0.0
    output_dropped_seconds: float = 0.0

    def count(self, flags: Flags | None) -> None:
        """One callback's flags."""
        if flags is not None:
            self.input_underflows += flags.input_underflow
            self.input_overflows += flags.input_overflow
            self.output_underflows += flags.output_underflow
            self.output_overflows += flags.output_overflow

    @property
    def xruns(self) -> int:
        """Callbacks that PortAudio flagged, each kind counted."""
        return (
            self.input_underflows
            + self.input_overflows
            + self.output_underflows
            + self.output_overflows
        )
