"""When has a speaker's turn ended? From the pause heads of a transcriber. Knows no models."""

from dataclasses import dataclass

from ..events import TurnEnded

TURN_HEAD = 2
"""The head that tells of pauses of 2 s; 0, 1 and 3 tell of 0.5, 1 and 3 s."""


@dataclass(frozen=True, slots=True)
class TurnRule:
    """When a turn has ended.

    threshold: that the probability of a pause must exceed.
    hold: seconds that it must stay so.
    """

    threshold: float = 0.5
    hold: float = 0.0


class TurnWatch:
    """Watches one sound. A turn ends once, and another only after a word that came later."""

    def __init__(self, rule: TurnRule, frame_rate: float) -> None:
        self._rule, self._rate = rule, frame_rate
        self._since: int | None = None  # the first frame of those above the threshold
        self._ended = 0.0
        self._spoke = False

    def word(self, start: float) -> None:
        """A word was written that begins there, in seconds of the sound."""
        self._spoke = self._spoke or start >= self._ended

    def step(self, frame: int, pauses: tuple[float, ...]) -> list[TurnEnded]:
        """Takes a frame of the sound and the probabilities of its heads."""
        head = min(TURN_HEAD, len(pauses) - 1)
        if pauses[head] <= self._rule.threshold:
            self._since = None
            return []
        if self._since is None:
            self._since = frame
        if not self._spoke or frame - self._since < self._rule.hold * self._rate:
            return []
        self._spoke = False
        self._ended = (frame + 1) / self._rate
        return [TurnEnded(self._ended)]
