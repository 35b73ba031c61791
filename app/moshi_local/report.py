"""What a run was: words, times of its frames, counters; and how a session is warmed up and timed.

Times are told as p50, p95, p99 and the maximum, never as a mean. Knows nothing of ports.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from moshi_mlx import Word
from moshi_mlx.arrays import Pcm
from moshi_mlx.text import join_words

__all__ = [
    "FrameTimes",
    "LoopReport",
    "Steps",
    "percentiles",
    "quantiles",
    "warm_up",
    "words_as_dicts",
]

STAGES = ("encode", "model", "decode")
Times = Sequence[float] | npt.NDArray[np.floating]


def quantiles(seconds: Times) -> tuple[float, float, float, float]:
    """p50, p95, p99 and max, in the unit of what is given."""
    p50, p95, p99, most = np.percentile(seconds, (50, 95, 99, 100))
    return float(p50), float(p95), float(p99), float(most)


def percentiles(seconds: Times) -> dict[str, float]:
    """p50, p95, p99 and max, from seconds to milliseconds."""
    found = zip(("p50", "p95", "p99", "max"), quantiles(seconds), strict=True)
    return {name: round(1000 * value, 3) for name, value in found}


def words_as_dicts(words: Iterable[Word]) -> list[dict[str, object]]:
    """Words for JSON, with their times in seconds, to the millisecond."""
    return [
        {"text": word.text, "start": round(word.start, 3), "end": round(word.end, 3)}
        for word in words
    ]


class Steps(Protocol):
    """The part of a session that is warmed up."""

    def step(self, pcm: Pcm) -> object:
        """A frame, heard and said."""

    def reset(self) -> None:
        """Back to the state of a fresh session."""


def warm_up(
    session: Steps, frame_size: int, frames: int = 0, *, before: int = 3, limit: float = 30.0
) -> list[float]:
    """Steps a session on quiet noise, since its first steps compile and are slow; then resets it.

    Call it before `stop_on_signals`: on Linux, MLX runs the compiler with C's `system`, which
    ignores Ctrl-C meanwhile. A conversation that has just begun is short: a long one takes more
    per frame (`Verdict.growth_ms`).

    Args:
        session: is stepped `before + frames` times.
        frame_size: samples.
        frames: steps to time after those.
        before: steps that are not timed.
        limit: seconds for all of it; then fewer steps are timed, but at least one if any.

    Returns:
        Seconds of each of the `frames` steps.
    """
    rng = np.random.default_rng(0)
    times: list[float] = []
    least = before + min(frames, 1)
    while len(times) < before + frames and (len(times) < least or sum(times) < limit):
        pcm = rng.uniform(-0.01, 0.01, frame_size).astype(np.float32)
        began = time.perf_counter()
        session.step(pcm)
        times.append(time.perf_counter() - began)
    session.reset()
    return times[before:]


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
        names = ("frame", *STAGES)
        return {
            name: percentiles(rows[:, i]) | {"max": round(1000 * float(self._longest[i]), 3)}
            for i, name in enumerate(names)
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
        """All words as one text."""
        return join_words(word.text for word in self.words)

    def as_dict(self) -> dict[str, object]:
        """The summary that `--json` prints; times in seconds, `frame_ms` in milliseconds."""
        times = self.times.summary()
        return {
            "text": self.text,
            "words": words_as_dicts(self.words),
            "frames": self.frames,
            "seconds": round(self.seconds, 3),
            "elapsed_seconds": round(self.elapsed, 3),
            "real_time_factor": round(self.real_time_factor, 4),
            "frame_ms": times["frame"],
            "stages_ms": {stage: times[stage] for stage in STAGES},
            **self.port,
        }
