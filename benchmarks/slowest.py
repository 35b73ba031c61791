"""The slowest frames of whole sessions, and whether the program or the machine makes them slow.

    python -m benchmarks.slowest [--frames 3200] [--runs 3]

The bundled model hears its question again and again: encode, model, decode, warmed up as in a
conversation. Every run is a new process with the same seed, so that a frame does the same work in
each. A frame that is over 1.5 times the median in every run is slow by itself: something grows, is
traced, or is used for the first time. One that is so in some runs only is the machine's noise. A
busy machine can hit one frame three times: while such a frame is left, there are up to as many runs
more. Prints the worst ten of each run. Exit code 1 if a frame is slow in every run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

import moshi_mlx
from moshi_local.machine.mimi_codes import bundled_question
from moshi_local.report import STAGES, Times, percentiles, warm_up

SLOW = 1.5
"""Of the median."""
WORST = 10


def worst(seconds: Times, count: int = WORST) -> list[dict[str, float]]:
    """The longest frames, longest first: number, milliseconds, ratio to the median."""
    times = np.asarray(seconds)
    return [
        {
            "frame": int(i),
            "ms": round(1000 * float(times[i]), 2),
            "ratio": round(float(times[i] / np.median(times)), 2),
        }
        for i in np.argsort(-times, kind="stable")[:count]
    ]


def inside(frames: int) -> list[list[float]]:
    """Seconds of each frame of one session: the whole step, then STAGES."""
    moshi = moshi_mlx.load("nano", verb="talk", codec="mlx")
    size = moshi.frame_size
    question = bundled_question()
    heard = question[: len(question) // size * size].reshape(-1, size)
    rows = []
    with moshi.session(seed=0) as session:
        warm_up(session, size)
        for i in range(frames):
            began = time.perf_counter()
            timing = session.step(heard[i % len(heard)]).timing
            whole = time.perf_counter() - began
            rows.append([whole, *(getattr(timing, stage) for stage in STAGES)])
    return rows


def run(frames: int) -> npt.NDArray[np.float64]:
    """`inside` in a new process, [frames, 1 + len(STAGES)]."""
    command = [sys.executable, "-m", "benchmarks.slowest", "--inside", "--frames", str(frames)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return np.array(json.loads(done.stdout))


def slow_in(runs: Sequence[npt.ArrayLike]) -> npt.NDArray[np.bool_]:
    """Which frames are slow in which runs, [runs, frames], from the seconds of each run."""
    times = np.array(runs)
    slow: npt.NDArray[np.bool_] = times > SLOW * np.median(times, axis=1, keepdims=True)
    return slow


def main() -> int:
    """Measure and print; 1 if a frame is slow in every run."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--frames", type=int, default=3200)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        print(json.dumps(inside(options.frames)))
        return 0
    runs: list[npt.NDArray[np.float64]] = []
    slow = np.ones((0, options.frames), np.bool_)
    while len(runs) < options.runs or (len(runs) < 2 * options.runs and slow.all(axis=0).any()):
        runs.append(run(options.frames))
        slow = slow_in([rows[:, 0] for rows in runs])
    for i, rows in enumerate(runs):
        times: dict[str, Any] = percentiles(rows[:, 0])
        print(f"run {i + 1}: " + "  ".join(f"{k} {v:.1f}" for k, v in times.items()) + " ms")
        for found in worst(rows[:, 0]):
            frame = int(found["frame"])
            parts = zip(STAGES, rows[frame, 1:], strict=True)
            said = "  ".join(f"{stage} {1000 * seconds:.1f}" for stage, seconds in parts)
            print(
                f"  frame {frame:6}  {found['ms']:7.1f} ms  {found['ratio']:5.2f} of the median  "
                f"({said})  slow in {slow[:, frame].sum()} of {len(runs)} runs"
            )
    always = np.flatnonzero(slow.all(axis=0))
    chance = options.frames * float(np.prod(slow.mean(axis=1)))
    counts = ", ".join(str(n) for n in slow.sum(axis=1))
    print(
        f"over {SLOW} of the median: {counts} frames; in every run: {len(always)} "
        f"{always[:WORST].tolist()} (by chance {chance:.2g})"
    )
    return 1 if len(always) else 0


if __name__ == "__main__":
    sys.exit(main())
