"""Has a transcriber stopped writing though a voice is heard? Knows no models.

That is a known fault of the published ones, mostly when their window has just filled up.
"""

from dataclasses import dataclass

_LONGEST_WAIT = 64.0
"""Seconds between two refreshes that brought nothing: it may be music, or another language."""


@dataclass(frozen=True, slots=True)
class StallRule:
    """When a model's window is refreshed.

    seconds: of sound without text; None: never for that.
    at_latest: seconds more that a pause is waited for.
    used: the share of the window that has been heard since, from which it is refreshed in a pause
        in any case; None: never.
    """

    seconds: float | None = 3.0
    at_latest: float = 3.0
    used: float | None = None


class StallWatch:
    """Watches one sound.

    Args:
        rule: when to refresh.
        delay: seconds that the text lies behind the sound, in which none can be expected.
        frame_rate: frames per second.
        context: frames of the window.
    """

    def __init__(self, rule: StallRule, delay: float, frame_rate: float, context: int) -> None:
        self._rule, self._rate = rule, frame_rate
        self._delay, self._context = delay, context
        self._wait = rule.seconds
        self._loud = 0  # frames since the last text
        self._used = 0

    def wrote(self) -> None:
        """There was text."""
        self._loud, self._wait = 0, self._rule.seconds

    def step(self, loud: bool, paused: bool) -> bool:
        """Takes a frame that is heard for the first time; whether to refresh the window now.

        Args:
            loud: the frame sounds.
            paused: there was no sound for a moment, and no word is half written.
        """
        self._used += 1
        self._loud += loud
        used, unwritten = self._rule.used, self._loud / self._rate - self._delay
        if used is not None and paused and self._used >= used * self._context:
            return True
        if self._wait is None or unwritten <= self._wait:
            return False
        return paused or unwritten > self._wait + self._rule.at_latest

    def refreshed(self) -> None:
        """The window was refreshed: until something is written, the next one comes later."""
        self._loud = self._used = 0
        if self._wait is not None:
            self._wait = min(2 * self._wait, _LONGEST_WAIT)
