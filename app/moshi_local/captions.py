"""What the user says in a conversation, in words: a second model, beside the one that talks.

The conversation comes first. Live, the captions have their own thread, which works only while the
model that talks has nothing to do. Knows sessions and events; nothing of sound cards, files and
screens.
"""

from __future__ import annotations

import math
import statistics
import threading
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from moshi_mlx import Event, Frame, MoshiError, TurnEnded, WindowRefreshed, Word
from moshi_mlx.arrays import Pcm
from moshi_mlx.closing import Closing

from .conversation import Stepper
from .events import CaptionsBehind, CaptionsLost, FrameDone, Listener, Notice, ResetDone, WordHeard

__all__ = ["Captions", "LiveCaptions", "Slack"]

BEHIND_SECONDS = 2.0
"""From here on it is told that the captions are late."""
WAITING_SECONDS = 10.0
"""What may wait to be written down; beyond it the older half is lost."""
STEPS_TIMED = 15
PATIENCE_SECONDS = 2.0
"""So long no time was found for a step: it may only have been slow for a while, and is taken for
as fast as it ever was."""
FREE_FRAMES = 3.0
"""This long after the last frame began, no other is expected: the model rests."""
LAST_SECONDS = 5.0
"""What is still to be written down after the conversation may take."""
_WAIT_SECONDS = 0.1


class Captions:
    """Frames of the user's sound in, events of the conversation's clock out. For one thread.

    For a run that may take its time it is a listener by itself, which hears each frame at once.

    Args:
        session: writes down what it hears; fresh.
        frame_rate: frames per second, of the conversation and of the session.
        tell: is given `WordHeard`, `TurnEnded` and `WindowRefreshed`; None: no one hears of them.
    """

    def __init__(
        self, session: Stepper, *, frame_rate: float, tell: Listener | None = None
    ) -> None:
        self._session, self._frame_rate = session, frame_rate
        self._tell: Listener = tell or _ignore
        self._heard = 0  # frames, since the session's beginning
        # (own frame, frame of the run) where they came apart: times in between follow the former.
        self._places: list[tuple[int, int]] = []
        self._told_from = 0  # the run's frame at which the clock that is told began
        self.words: list[Word] = []
        """All of them, on the run's clock, which a reset doesn't set back."""

    def __call__(self, event: Event) -> None:
        """Hear the frame of `event`, if it is one of a run that never starts over."""
        if isinstance(event, FrameDone):
            self.hear(event.frame.index, event.heard)

    def hear(self, frame: int, pcm: Pcm) -> None:
        """Hear float32 [frame_size], the run's frame of that number; numbers may be left out."""
        if not self._places or frame - self._heard != self._places[-1][1] - self._places[-1][0]:
            self._places.append((self._heard, frame))
        self._heard += 1
        for event in self._session.step(pcm).events:
            self._pass_on(event)

    def finish(self) -> None:
        """Nothing more is heard for now: the words that are still to come."""
        if self._heard:
            for word in self._session.flush():
                self._pass_on(WordHeard(word.end, word))

    def start_over(self) -> None:
        """The conversation has started over: what was heard until now is finished and forgotten."""
        self.finish()
        self._session.reset()
        self._heard = 0
        self._places.clear()

    def count_from(self, frame: int) -> None:
        """The clock of the events that are told begins at this frame of the run."""
        self._told_from = frame

    def _pass_on(self, event: Event) -> None:
        begun = self._told_from / self._frame_rate
        if isinstance(event, WordHeard):
            start, end = (self._of_run(time) for time in (event.word.start, event.word.end))
            self.words.append(replace(event.word, start=start, end=end))
            word = replace(event.word, start=start - begun, end=end - begun)
            self._tell(replace(event, time=word.end, word=word))
        elif isinstance(event, TurnEnded | WindowRefreshed):
            self._tell(replace(event, time=self._of_run(event.time) - begun))

    def _of_run(self, seconds: float) -> float:
        """Seconds of the session's clock on that of the run."""
        place = bisect_right(self._places, seconds * self._frame_rate, key=lambda pair: pair[0])
        own, run = self._places[max(0, place - 1)]
        return seconds + (run - own) / self._frame_rate


class Slack:
    """A conversation's session, and when it has nothing to do. A `Stepper`.

    Args:
        session: steps on the thread of the conversation.
        frame_seconds: a frame comes so often.
        clock: gives seconds.
    """

    def __init__(
        self,
        session: Stepper,
        frame_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._session, self._frame_seconds, self._clock = session, frame_seconds, clock
        self._changed = threading.Condition()
        self._busy = False
        self._began = -math.inf

    def step(self, pcm: Pcm, *, hold_text: bool = False) -> Frame:
        """A step of the session, during which there is no time for other work."""
        with self._changed:
            self._busy, self._began = True, self._clock()
        try:
            return self._session.step(pcm, hold_text=hold_text)
        finally:
            with self._changed:
                self._busy = False
                self._changed.notify_all()

    def flush(self) -> tuple[Word, ...]:
        """As the session's."""
        return self._session.flush()

    def reset(self) -> None:
        """As the session's."""
        self._session.reset()

    def wait(self, needed: float, timeout: float) -> bool:
        """Whether there is time for other work, waiting for it.

        Args:
            needed: seconds that the work takes.
            timeout: seconds to wait at most.
        """
        with self._changed:
            if not self._is_free(needed):
                self._changed.wait(timeout)
            return self._is_free(needed)

    def _is_free(self, needed: float) -> bool:
        passed = self._clock() - self._began
        rests = passed >= FREE_FRAMES * self._frame_seconds
        return not self._busy and (rests or passed + needed <= self._frame_seconds)


def _ignore(event: Event) -> None:
    pass


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A frame of the run that is still to be heard; without sound, a new beginning."""

    frame: int
    pcm: Pcm | None


class LiveCaptions(Closing):
    """A listener that writes down what the user says in the conversation's slack.

    A context manager; to be entered after those that it tells, so that it ends before them. What
    waits at the end is still written down, for at most LAST_SECONDS.

    Args:
        session: writes down what it hears; fresh, and closed by whoever opened it.
        slack: of the conversation's session.
        frame_rate: frames per second.
        listeners: are told what comes of it, on this one's thread.
        step_seconds: what steps of `session` have taken.
    """

    def __init__(
        self,
        session: Stepper,
        slack: Slack,
        *,
        frame_rate: float,
        listeners: Sequence[Listener],
        step_seconds: Sequence[float] = (),
    ) -> None:
        self._captions = Captions(session, frame_rate=frame_rate, tell=self._tell)
        self._slack, self._frame_rate = slack, frame_rate
        self._listeners = list(listeners)
        self._steps = deque(step_seconds, maxlen=STEPS_TIMED)
        self._fastest = min(step_seconds, default=0.0)
        self._stepped = time.monotonic()
        self._waiting: deque[_Waiting] = deque()
        self._changed = threading.Condition()
        self._frames = 0  # of the run
        self._begun = 0  # where the conversation's clock began
        self._told_behind = self._closing = self._abandoned = False
        self.lost_seconds = 0.0
        self.problem: str | None = None
        self._thread = threading.Thread(target=self._run, name="captions", daemon=True)
        self._thread.start()

    @property
    def words(self) -> Sequence[Word]:
        """All until now, on the run's clock."""
        return self._captions.words

    def __call__(self, event: Event) -> None:
        """Take what the user said in a frame; never waits."""
        if isinstance(event, FrameDone):
            self._frames = self._begun + event.frame.index + 1
            self._take(_Waiting(self._frames - 1, event.heard), event.time)
        elif isinstance(event, ResetDone):
            self._begun = self._frames
            self._captions.count_from(self._begun)
            self._take(_Waiting(self._begun, None), 0.0)

    def close(self) -> None:
        """Writes down what waits, as far as that is quick; nothing is told after it."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        try:
            self._thread.join(LAST_SECONDS)
        finally:
            self._abandoned = True
            self.lost_seconds += len(self._waiting) / self._frame_rate
            self._waiting.clear()

    def _take(self, waiting: _Waiting, now: float) -> None:
        with self._changed:
            if self._closing or self.problem is not None:
                return
            self._waiting.append(waiting)
            behind = len(self._waiting) / self._frame_rate
            lost = self._drop_half() if behind > WAITING_SECONDS else 0.0
            self._changed.notify_all()
        if behind > BEHIND_SECONDS and not self._told_behind:
            self._told_behind = True
            self._tell(CaptionsBehind(now, behind))
        if lost:
            self.lost_seconds += lost
            self._tell(CaptionsLost(now, lost))

    def _drop_half(self) -> float:
        """The older half goes; returns how many seconds those were."""
        old = [self._waiting.popleft() for _ in range(len(self._waiting) // 2)]
        self._waiting.extendleft(item for item in reversed(old) if item.pcm is None)
        return sum(item.pcm is not None for item in old) / self._frame_rate

    def _tell(self, event: Event) -> None:
        if not self._abandoned:
            for listener in self._listeners:
                listener(event)

    def _run(self) -> None:
        try:
            while (item := self._next()) is not None:
                began = time.monotonic()
                if item.pcm is None:
                    self._captions.start_over()
                    continue
                self._captions.hear(item.frame, item.pcm)
                self._stepped = time.monotonic()
                self._steps.append(self._stepped - began)
                self._fastest = min(self._fastest, self._steps[-1])
            self._captions.finish()
        except Exception as error:  # the conversation goes on without them
            kind = "" if isinstance(error, MoshiError) else f"{type(error).__name__}: "
            self.problem = f"there are no more captions: {kind}{error}"
            self._waiting.clear()
            self._tell(Notice(self._frames / self._frame_rate, self.problem))

    def _next(self) -> _Waiting | None:
        """What to do now, when there is time for it; None at the end."""
        while True:
            with self._changed:
                while not self._waiting and not self._closing:
                    self._changed.wait()
                if self._abandoned or not self._waiting:
                    return None
            if self._closing or self._slack.wait(self._needed(), _WAIT_SECONDS):
                with self._changed:
                    if self._waiting:
                        return self._waiting.popleft()

    def _needed(self) -> float:
        """What a step is expected to take (seconds)."""
        if not self._steps or time.monotonic() - self._stepped > PATIENCE_SECONDS:
            return self._fastest
        return statistics.median(self._steps)
