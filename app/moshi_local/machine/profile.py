"""A look inside benchmarked frames: a trace for Perfetto, and where Python spends its time.

Knows frames as functions that say how long their parts took; nothing of models or codecs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from moshi_mlx import Timing
from moshi_mlx.distributions import needs_extra
from moshi_mlx.outputs import WholeFile

__all__ = ["FrameTrace", "Profile"]

FLAME_SUFFIXES = (".html", ".htm")
FLAME_INTERVAL = 0.0005
"""Seconds from one look at Python's stack to the next."""


class FrameTrace(Protocol):
    """Where the times of frames go."""

    def add_frame(self, index: int, took: float, timing: Timing) -> None:
        """A frame that is over now; `took` in seconds."""

    def close(self) -> None:
        """Write them."""


class Profile:
    """What is asked for, checked before anything is timed.

    Args:
        trace: takes the frames' times, or None.
        flame: an HTML page, or None: the calls of Python as a tree and as a flame over time. Time
            spent waiting for MLX is the line's that waits.

    Raises:
        MoshiError: a file cannot be written, or pyinstrument is not installed.
    """

    def __init__(self, trace: FrameTrace | None, flame: Path | None) -> None:
        self._trace = trace
        self._flame = None if flame is None else WholeFile(flame, "the flame plot", FLAME_SUFFIXES)
        if flame is not None:
            with needs_extra("profile", "--flame needs pyinstrument"):
                import pyinstrument  # noqa: F401

    def look(self, step: Callable[[], Timing], frames: int) -> None:
        """Runs `frames` frames for each of the two files, and writes them."""
        if self._trace is not None:
            for index in range(frames):
                began = time.perf_counter()
                timing = step()
                took = time.perf_counter() - began
                self._trace.add_frame(index, took, timing)
            self._trace.close()
        if self._flame is not None:
            self._flame.write(_flame(step, frames))


def _flame(step: Callable[[], Timing], frames: int) -> str:
    """The page; it needs no network."""
    from pyinstrument import Profiler
    from pyinstrument.renderers import HTMLRenderer

    profiler = Profiler(interval=FLAME_INTERVAL, async_mode="disabled")
    with profiler:
        for _ in range(frames):
            step()
    return profiler.output(HTMLRenderer())
