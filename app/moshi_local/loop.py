"""The loop: a frame is heard, the session makes a step, a frame is played.

One loop for the live program and for files: what differs is the `AudioPort` behind it. What the
user wants of the conversation is in `Conversation`. Knows nothing of sound cards, files and
terminals. It never waits longer than WAIT_SECONDS, so that a stop is heard soon.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType

import numpy as np

from moshi_mlx import MoshiError, SessionError, Word, WordSpoken

from .conversation import Conversation, Stepper
from .events import Event, FrameDone, Listener, ResetDone, WordHeard
from .port import AudioPort, Read, status_of
from .report import LoopReport

__all__ = ["Stepper", "StopFlag", "run_loop", "stop_on_signals"]

WAIT_SECONDS = 0.2
END_SECONDS = 75.0
"""What may pass until a session that was ended has said its last words."""
PLAYED_FRAMES = 6
"""Silence after them, until a sound card has played them: closing it drops what it still holds."""


class StopFlag:
    """Set when the loop shall end after the frame it is at.

    `signal` is the number of the signal that set it, or None.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._asked = 0

    def ask(self) -> None:
        """Set it, from any thread."""
        self._asked += 1

    def __bool__(self) -> bool:
        return self._asked > 0 or self.signal is not None

    @property
    def again(self) -> bool:
        """It was set more than once."""
        return self._asked + (self.signal is not None) > 1


@contextmanager
def stop_on_signals() -> Iterator[StopFlag]:
    """A StopFlag that Ctrl-C, SIGTERM and SIGHUP (the terminal is gone) set.

    The second signal raises KeyboardInterrupt, whichever it is, so that context managers still
    give back the terminal and the sound card; the third ends the program as if this were not here.
    A signal that was ignored before, as under nohup, still is.
    """
    flag = StopFlag()
    names = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP
    watched = [getattr(signal, name) for name in names if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in watched}
    before = {n: handler for n, handler in before.items() if handler != signal.SIG_IGN}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def handle(number: int, _: FrameType | None) -> None:
        if flag.signal is not None:
            restore()
            raise KeyboardInterrupt
        flag.signal = number

    for number in before:
        signal.signal(number, handle)
    try:
        yield flag
    finally:
        restore()


def run_loop(
    session: Stepper | Conversation,
    port: AudioPort,
    *,
    frame_size: int,
    frame_rate: float,
    listeners: Sequence[Listener] = (),
    stop: Callable[[], bool] = lambda: False,
    at_once: Callable[[], bool] = lambda: False,
    seconds: float | None = None,
) -> LoopReport:
    """Step `session` with what `port` brings until its end, a stop, or `seconds` of real time.

    `frame_size` is in samples, `frame_rate` in frames per second. A bare session is a
    conversation without controls and without a guard. While the model rests, `port` is given
    silence. Words that are still open at the end are told as events too. A session that can be
    ended, as that of a translation, says what is still to come after a stop, unless `at_once`.

    Raises:
        SessionError: the model failed; its own error is the cause.
        MoshiError: what `port` and `session` raise by themselves.
    """
    status = status_of(port)
    conversation = session
    if not isinstance(conversation, Conversation):
        conversation = Conversation(conversation, frame_rate=frame_rate, guard=False)
    report = LoopReport(frame_rate)
    heard = np.zeros(frame_size, np.float32)
    silence = np.zeros(frame_size, np.float32)
    begun = 0.0  # of the conversation, on the run's clock

    def tell(events: Iterable[Event]) -> None:
        nonlocal begun
        for event in events:
            if isinstance(event, WordSpoken | WordHeard):
                report.words.append(_later(event.word, begun))
            elif isinstance(event, ResetDone):
                begun = report.seconds
            for listener in listeners:
                listener(event)

    started = time.monotonic()
    stopped: float | None = None
    to_play = PLAYED_FRAMES
    while not (stopped is not None and (at_once() or time.monotonic() >= stopped + END_SECONDS)):
        if stopped is None and (
            stop() or (seconds is not None and time.monotonic() - started >= seconds)
        ):
            if not conversation.end():
                break
            stopped = time.monotonic()
        brought = port.read(heard, WAIT_SECONDS)
        tell(status.take_events(conversation.seconds))
        if brought is Read.END:
            break
        if brought is Read.NOTHING:
            continue
        began = time.perf_counter()
        try:
            frame = conversation.step(heard)
        except MoshiError:
            raise
        except Exception as error:
            raise SessionError(
                f"the model failed in frame {report.frames}: {type(error).__name__}: {error}"
            ) from error
        took = time.perf_counter() - began
        if frame is None and stopped is not None:
            to_play -= 1
            if to_play < 0:
                break
        port.write(silence if frame is None else frame.pcm)
        tell(conversation.take_events())  # before the frame counts: a reset lies in front of it
        if frame is None:
            continue
        timing = frame.timing
        report.times.add(took, (timing.encode, timing.model, timing.decode))
        now = conversation.seconds
        tell([FrameDone(now, frame, heard.copy(), took, status.lag(), status.delay())])
    conversation.finish()
    tell(conversation.take_events())
    report.elapsed = time.monotonic() - started
    report.port = status.statistics()
    return report


def _later(word: Word, seconds: float) -> Word:
    return replace(word, start=word.start + seconds, end=word.end + seconds) if seconds else word
