"""Plain lines in the terminal: the words as they come, what went wrong, and the end's figures.

Knows nothing of sound. A phrase begins on a new line with its time after PHRASE_PAUSE seconds
without a word.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from moshi_mlx import Word, WordSpoken

from .events import Event, Lag, Opened, Restarted
from .loop import LoopReport

__all__ = ["Transcript", "print_report", "print_words"]

PHRASE_PAUSE = 1.0


class Transcript:
    """A listener that prints each word as soon as it is spoken."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last_end = 0.0
        self._in_line = False

    def __call__(self, event: Event) -> None:
        """Print what `event` says, if it is for the reader."""
        match event:
            case WordSpoken(word=word):
                self._word(word)
            case Opened(time, input, output):
                self._line(f'{clock(time)}  listening: input "{input}", output "{output}"')
            case Lag(time, heard, spoken):
                self._line(
                    f"{clock(time)}  late: {1000 * heard:.0f} ms of input and "
                    f"{1000 * spoken:.0f} ms of output dropped"
                )
            case Restarted(time, reason):
                self._line(f"{clock(time)}  sound opened again: {reason}")

    def _word(self, word: Word) -> None:
        """Append `word` to the phrase, or begin a new one."""
        if self._in_line and word.start - self._last_end < PHRASE_PAUSE:
            self._print(" " + word.text)
        else:
            self.end_line()
            self._print(f"{clock(word.start)}  {word.text}")
        self._in_line, self._last_end = True, word.end

    def end_line(self) -> None:
        """End the line that a phrase has begun."""
        if self._in_line:
            self._print("\n")
        self._in_line = False

    def _line(self, text: str) -> None:
        self.end_line()
        self._print(text + "\n")

    def _print(self, text: str) -> None:
        self._console.print(text, end="", markup=False, highlight=False, soft_wrap=True)
        self._console.file.flush()


def clock(seconds: float) -> str:
    """Minutes and seconds, as 0:07.4."""
    tenths = round(10 * seconds)
    return f"{tenths // 600}:{tenths % 600 / 10:04.1f}"


def print_words(console: Console, words: Sequence[Word]) -> None:
    """A line a word: start, end (seconds), text."""
    for word in words:
        console.print(
            f"{word.start:8.2f} {word.end:8.2f}  {word.text}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )


def print_report(console: Console, report: LoopReport, budget: float) -> None:
    """The figures of a run; `budget` is the time a frame may take (seconds)."""
    frame = report.times.summary()["frame"]
    lines = [
        f"{report.frames} frames, {report.seconds:.1f} s of sound, "
        f"{report.real_time_factor:.2f} s of work for each second",
        f"frame p50 {frame['p50']:.1f}, p95 {frame['p95']:.1f}, p99 {frame['p99']:.1f}, "
        f"max {frame['max']:.1f} ms of {1000 * budget:.0f} ms",
    ]
    if port := report.port:
        lines.append(
            f"{port['callbacks']} callbacks, {port['xruns']} xruns, {port['gaps']} gaps, "
            f"{port['restarts']} restarts, {port['input_dropped_seconds']:.2f} s of input and "
            f"{port['output_dropped_seconds']:.2f} s of output dropped"
        )
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
