"""The loop: a frame is heard, the session makes a step, a frame is played.

One loop for the live program and for files: what differs is the `AudioPort` behind it. What the
user wants of the conversation is in `Conversation`. Knows nothing of sound cards, files and
terminals. It runs on the thread that loaded the model, which owns all MLX work, and it never
waits longer than WAIT_SECONDS, so that a stop is heard soon.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from types import FrameType
from typing import Protocol

import numpy as np

from moshi_mlx import MoshiError, SessionError, Word, WordSpoken
from moshi_mlx.arrays import Pcm

from .conversation import Conversation, Stepper
from .events import Event, FrameDone, Listener, ResetDone

__all__ = [
    "AudioPort",
    "FrameTimes",
    "LoopReport",
    "Read",
    "Stepper",
    "StopFlag",
    "run_loop",
    "stop_on_signals",
    "warm_up",
]

WAIT_SECONDS = 0.2
WARM_UP_FRAMES = 3
STAGES = ("encode", "model", "decode")


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


class FrameTimes:
    """Times of the last `capacity` frames (an hour), whole and by stage, and the longest of all."""

    def __init__(self, capacity: int = 45_000) -> None:
        self._rows = np.zeros((capacity, 1 + len(STAGES)), np.float32)
        self._longest = np.zeros(1 + len(STAGES), np.float32)
        self.count = 0
        self.total = 0.0

    def add(self, whole: float, stages: Sequence[float]) -> None:
        """One frame: its whole time and the time of each of STAGES (seconds)."""
        row = self._rows[self.count % len(self._rows)]
        row[0] = whole
        row[1:] = stages
        np.maximum(self._longest, row, out=self._longest)
        self.count += 1
        self.total += whole

    def summary(self) -> dict[str, dict[str, float]]:
        """p50, p95, p99 and max of "frame" and of each stage (milliseconds)."""
        rows = self._rows[: self.count] if self.count else self._rows[:1]
        percentiles = np.percentile(rows, (50, 95, 99), axis=0)
        table = 1000.0 * np.vstack([percentiles, self._longest])
        return {
            name: {
                key: round(float(value), 2)
                for key, value in zip(("p50", "p95", "p99", "max"), column, strict=True)
            }
            for name, column in zip(("frame", *STAGES), table.T, strict=True)
        }


@dataclass(slots=True)
class LoopReport:
    """What a run was: the words, the times, the port's counters.

    The words' times count from the beginning of the run; a reset does not set them back.
    """

    frame_rate: float
    words: list[Word] = field(default_factory=list)
    times: FrameTimes = field(default_factory=FrameTimes)
    elapsed: float = 0.0
    port: Mapping[str, float | int] = field(default_factory=dict)

    @property
    def frames(self) -> int:
        """Frames stepped."""
        return self.times.count

    @property
    def seconds(self) -> float:
        """Seconds of sound that went through."""
        return self.frames / self.frame_rate

    @property
    def real_time_factor(self) -> float:
        """Time the steps took for each second of sound; below 1 is faster than real time."""
        return self.times.total / self.seconds if self.frames else 0.0

    @property
    def text(self) -> str:
        """All words with spaces between."""
        return " ".join(word.text for word in self.words)

    def as_dict(self) -> dict[str, object]:
        """The summary that `--json` prints; times in seconds, `frame_ms` in milliseconds."""
        times = self.times.summary()
        return {
            "text": self.text,
            "words": [
                {"text": w.text, "start": round(w.start, 3), "end": round(w.end, 3)}
                for w in self.words
            ],
            "frames": self.frames,
            "seconds": round(self.seconds, 3),
            "elapsed_seconds": round(self.elapsed, 3),
            "real_time_factor": round(self.real_time_factor, 4),
            "frame_ms": times["frame"],
            "stages_ms": {stage: times[stage] for stage in STAGES},
            **self.port,
        }


class StopFlag:
    """Set when the loop shall end after the frame it is at.

    `signal` is the number of the signal that set it, or None.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._asked = False

    def ask(self) -> None:
        """Set it, from any thread."""
        self._asked = True

    def __bool__(self) -> bool:
        return self._asked or self.signal is not None


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


def warm_up(session: Stepper, frame_size: int) -> None:
    """A few steps on silence, then a reset: the first steps of a model are slow (compilation).

    Call it before `stop_on_signals`: on Linux, MLX runs the compiler with C's `system`, which
    ignores Ctrl-C meanwhile.
    """
    silence = np.zeros(frame_size, np.float32)
    for _ in range(WARM_UP_FRAMES):
        session.step(silence)
    session.reset()


def run_loop(
    session: Stepper | Conversation,
    port: AudioPort,
    *,
    frame_size: int,
    frame_rate: float,
    listeners: Sequence[Listener] = (),
    stop: Callable[[], bool] = lambda: False,
    seconds: float | None = None,
) -> LoopReport:
    """Step `session` with what `port` brings until its end, a stop, or `seconds` of real time.

    `frame_size` is in samples, `frame_rate` in frames per second. A bare session is a
    conversation that nobody controls, without a guard. While the model rests, `port` is given
    silence. Words that are still open at the end are told as events too.

    Raises:
        SessionError: the model failed; its own error is the cause.
        MoshiError: what `port` and `session` raise by themselves.
    """
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
            if isinstance(event, WordSpoken):
                report.words.append(_later(event.word, begun))
            elif isinstance(event, ResetDone):
                begun = report.seconds
            for listener in listeners:
                listener(event)

    started = time.monotonic()
    while not (stop() or (seconds is not None and time.monotonic() - started >= seconds)):
        status = port.read(heard, WAIT_SECONDS)
        tell(port.take_events(conversation.seconds))
        if status is Read.END:
            break
        if status is Read.NOTHING:
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
        port.write(silence if frame is None else frame.pcm)
        tell(conversation.take_events())  # before the frame counts: a reset lies in front of it
        if frame is None:
            continue
        timing = frame.timing
        report.times.add(took, (timing.encode, timing.model, timing.decode))
        now = conversation.seconds
        tell([FrameDone(now, frame, heard.copy(), took, port.lag(), port.delay())])
    conversation.finish()
    tell(conversation.take_events())
    report.elapsed = time.monotonic() - started
    report.port = port.statistics()
    return report


def _later(word: Word, seconds: float) -> Word:
    return replace(word, start=word.start + seconds, end=word.end + seconds) if seconds else word
