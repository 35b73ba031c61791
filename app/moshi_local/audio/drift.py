"""Two clocks held together: how far a resampler's ratio is to be bent."""

from __future__ import annotations

__all__ = ["DriftControl"]

MAX_CORRECTION = 0.001
"""Where the ratio may go: 1.7 cents of pitch. Two clocks at their worst differ by 0.0002."""
SMOOTHING_SECONDS = 2.0
"""Levels are read while blocks come and go: 20 ms up or down are not drift."""


class DriftControl:
    """A ratio's correction that brings a level to its target, and holds it there.

    A PI controller, critically damped, with the time constant `seconds`; after some minutes its
    integral is the difference between the two clocks.
    """

    def __init__(self, seconds: float) -> None:
        self._gain = 1.0 / seconds
        self._error = 0.0
        self.drift = 0.0
        self.correction = 0.0

    def update(self, error: float, elapsed: float) -> float:
        """The correction, given `error` (seconds of sound too many) and the time since last."""
        self._error += min(1.0, elapsed / SMOOTHING_SECONDS) * (error - self._error)
        self.drift += self._gain**2 / 4 * self._error * elapsed
        self.drift = _within(self.drift, MAX_CORRECTION)
        self.correction = _within(self._gain * self._error + self.drift, MAX_CORRECTION)
        return self.correction


def _within(value: float, limit: float) -> float:
    return max(-limit, min(limit, value))
