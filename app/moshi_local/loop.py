"""The loop: a frame is heard, the session makes a step, a frame is played.

One loop for the live program and for files: what differs is the `AudioPort` behind it. Knows
nothing of sound cards, files and terminals. It runs on the thread that loaded the model, which
owns all MLX work, and it never waits longer than WAIT_SECONDS, so that a stop is heard soon.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum, auto
from types import FrameType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from moshi_mlx import Frame, Word

from .events import Event, FrameDone, Listener

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

FloatArray = NDArray[np.float32]

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

    def read(self, frame: FloatArray, timeout: float) -> Read:
        """Fill `frame` (float32 [frame_size]); wait at most `timeout` seconds for it."""

    def write(self, pcm: FloatArray) -> None:
        """Hand over a frame to be played or kept."""

    def take_events(self, now: float) -> Sequence[Event]:
        """What happened since the last call; `now` is on the session's clock (seconds)."""

    def statistics(self) -> Mapping[str, float | int]:
        """Counters for the report."""


class Stepper(Protocol):
    """The part of `moshi_mlx.Session` that the loop needs."""

    def step(self, pcm: FloatArray) -> Frame:
        """Hear float32 [frame_size], say float32 [frame_size]."""

    def flush(self) -> tuple[Word, ...]:
        """The words that were still open."""

    def reset(self) -> None:
        """Back to the state of a fresh session."""


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
    """What a run was: the words, the times, the port's counters."""

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
    """Set when the loop shall end after the frame it is at."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __bool__(self) -> bool:
        return self.signal is not None


@contextmanager
def stop_on_signals() -> Iterator[StopFlag]:
    """A StopFlag that Ctrl-C and SIGTERM set; the second one ends the program at once."""
    flag = StopFlag()
    watched = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in watched}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def handle(number: int, _: FrameType | None) -> None:
        flag.signal = number
        restore()

    for number in watched:
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
    session: Stepper,
    port: AudioPort,
    *,
    frame_size: int,
    frame_rate: float,
    listeners: Sequence[Listener] = (),
    stop: Callable[[], bool] = lambda: False,
    seconds: float | None = None,
) -> LoopReport:
    """Step `session` with what `port` brings until its end, a stop, or `seconds` of real time.

    `frame_size` is in samples, `frame_rate` in frames per second. The words still open at the
    end are in the report, not in an event.
    """
    report = LoopReport(frame_rate)
    heard = np.zeros(frame_size, np.float32)
    started = time.monotonic()
    while not (stop() or (seconds is not None and time.monotonic() - started >= seconds)):
        status = port.read(heard, WAIT_SECONDS)
        for event in port.take_events(report.seconds):
            _tell(listeners, event)
        if status is Read.END:
            break
        if status is Read.NOTHING:
            continue
        began = time.perf_counter()
        frame = session.step(heard)
        took = time.perf_counter() - began
        port.write(frame.pcm)
        timing = frame.timing
        report.times.add(took, (timing.encode, timing.model, timing.decode))
        report.words.extend(frame.words)
        for event in (*frame.events, FrameDone(report.seconds, frame)):
            _tell(listeners, event)
    report.words.extend(session.flush())
    report.elapsed = time.monotonic() - started
    report.port = port.statistics()
    return report


def _tell(listeners: Sequence[Listener], event: Event) -> None:
    for listener in listeners:
        listener(event)
