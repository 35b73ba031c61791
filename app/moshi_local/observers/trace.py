"""The last minutes of a conversation as a trace for Perfetto (ui.perfetto.dev).

The format is Chrome's trace events as JSON: slices for the stages of each frame, counters for lag
and delay, instants for everything else; times are in microseconds. Frames are placed by the wall
clock, not by the session's.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from moshi_mlx import MoshiError, Timing, WordSpoken
from moshi_mlx.outputs import WholeFile

from ..events import Event, FrameDone
from .event_log import event_as_dict

__all__ = ["FrameEntry", "Trace"]

WINDOW_SECONDS = 120.0
LONGEST = 20_000
"""Entries kept at most, whatever the window."""
PROCESS = 1
TRACKS = ("frame", "encode", "model", "decode", "words", "events")


@dataclass(frozen=True, slots=True)
class FrameEntry:
    """The numbers of a FrameDone, without its arrays; parts of `timing` that took no time, and
    what is None, are not drawn."""

    index: int
    text: str
    took: float
    timing: Timing
    lag: float | None = None
    delay: float | None = None


class Trace:
    """A listener that keeps the last `window` seconds, and writes them to `path` at the end.

    Tell it on the loop's thread, not through a Dispatcher: it notes when it is told, and does no
    more than that. A context manager.

    Args:
        path: is replaced if it exists, when all is written.
        window: seconds of real time.
        clock: seconds that never go back.

    Raises:
        MoshiError: there is no folder for `path`, or it cannot be written.
    """

    def __init__(
        self,
        path: Path,
        *,
        window: float = WINDOW_SECONDS,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._file = WholeFile(path, "the trace")
        self._window, self._clock = window, clock
        self._entries: deque[tuple[float, FrameEntry | Event]] = deque(maxlen=LONGEST)

    def __call__(self, event: Event) -> None:
        """Keep `event`, and forget what is older than the window."""
        if isinstance(event, FrameDone):
            frame = event.frame
            self.keep(
                FrameEntry(
                    frame.index, frame.text, event.took, frame.timing, event.lag, event.delay
                )
            )
        else:
            self.keep(event)

    def keep(self, entry: FrameEntry | Event) -> None:
        """As calling it, also with the times of a frame that is over now."""
        now, entries = self._clock(), self._entries
        entries.append((now, entry))
        while entries[0][0] < now - self._window:
            entries.popleft()

    def add_frame(self, index: int, took: float, timing: Timing) -> None:
        """Keep a frame that just ended, outside a conversation (seconds)."""
        self.keep(FrameEntry(index, "", took, timing))

    def close(self) -> None:
        """Write the file. Raises MoshiError."""
        document = {"displayTimeUnit": "ms", "traceEvents": list(self._trace_events())}
        self._file.write(json.dumps(document, ensure_ascii=False))

    def __enter__(self) -> Trace:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except MoshiError:
            if error is None:  # else that is what the user must hear of
                raise

    def _trace_events(self) -> Iterator[dict[str, Any]]:
        """Names of the tracks, then each entry, from time 0."""
        yield {"ph": "M", "pid": PROCESS, "name": "process_name", "args": {"name": "moshi-local"}}
        for thread, name in enumerate(TRACKS, start=1):
            about = {"ph": "M", "pid": PROCESS, "tid": thread}
            yield {**about, "name": "thread_name", "args": {"name": name}}
            yield {**about, "name": "thread_sort_index", "args": {"sort_index": thread}}
        zero = min((_began(at, entry) for at, entry in self._entries), default=0.0)
        for at, entry in self._entries:
            if isinstance(entry, FrameEntry):
                yield from _frame(at - zero, entry)
            else:
                yield _instant(at - zero, entry)


def _began(at: float, entry: FrameEntry | Event) -> float:
    """When it began, if it was told `at`: a frame is told at its end."""
    return at - entry.took if isinstance(entry, FrameEntry) else at


def _frame(end: float, frame: FrameEntry) -> Iterator[dict[str, Any]]:
    """The whole step, its stages one after the other, and the counters at its end."""
    began = end - frame.took
    named = {"index": frame.index, "text": frame.text}
    yield _slice("frame", began, frame.took, named)
    timing = frame.timing
    for stage, took in (
        ("encode", timing.encode),
        ("model", timing.model),
        ("decode", timing.decode),
    ):
        if took:
            yield _slice(stage, began, took, {"index": frame.index})
        began += took
    for name, seconds in (("lag", frame.lag), ("delay", frame.delay)):
        if seconds is not None:
            counter = {"ph": "C", "pid": PROCESS, "name": f"{name} (ms)", "ts": _us(end)}
            yield {**counter, "args": {name: round(1000.0 * seconds, 3)}}


def _slice(track: str, began: float, took: float, args: dict[str, Any]) -> dict[str, Any]:
    return {
        "ph": "X",
        "pid": PROCESS,
        "tid": 1 + TRACKS.index(track),
        "name": track,
        "ts": _us(began),
        "dur": _us(took),
        "args": args,
    }


def _instant(at: float, event: Event) -> dict[str, Any]:
    spoken = isinstance(event, WordSpoken)
    args = event_as_dict(event)
    return {
        "ph": "i",
        "s": "t",
        "pid": PROCESS,
        "tid": 1 + TRACKS.index("words" if spoken else "events"),
        "name": event.word.text if isinstance(event, WordSpoken) else args["event"],
        "ts": _us(at),
        "args": args,
    }


def _us(seconds: float) -> float:
    """Microseconds, to the nanosecond."""
    return round(1e6 * seconds, 3)
