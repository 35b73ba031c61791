"""Plain lines in the terminal: the words as they come, what went wrong, and the end's figures.

Knows nothing of sound. A phrase begins on a new line with its time after PHRASE_PAUSE seconds
without a word.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from moshi_mlx import TurnEnded, WindowRefreshed, Word, WordSpoken
from moshi_mlx.errors import counted
from moshi_mlx.text import gap_between

from ..events import (
    CaptionsBehind,
    DeviceLost,
    Event,
    GreetingHeld,
    LoopBroken,
    MicrophoneClosed,
    MicrophoneDead,
    Notice,
    Opened,
    Paused,
    RecordingStopped,
    ResetDone,
    Resumed,
    WordHeard,
)
from ..report import LoopReport

__all__ = [
    "PHRASE_PAUSE",
    "Transcript",
    "clock",
    "describe",
    "lateness",
    "print_report",
    "print_words",
    "printable",
]

PHRASE_PAUSE = 1.0
"""Seconds without a word after which the next one begins a new line."""


class Transcript:
    """A listener that prints each word as soon as it is spoken, or written down.

    Args:
        console: where to print.
        sides: both sides have words: each line begins with whose they are, and a change of sides
            begins one.
    """

    def __init__(self, console: Console, sides: bool = False) -> None:
        self._console = console
        self._sides = sides
        self._side = self._said = ""
        self._last_end = 0.0
        self._in_line = False

    def __call__(self, event: Event) -> None:
        """Print what `event` says, if it is for the reader."""
        if isinstance(event, WordSpoken):
            self._word(event.word, "moshi")
        elif isinstance(event, WordHeard):
            self._word(event.word, "you")
        elif isinstance(event, TurnEnded):
            self._end_turn()
        elif (text := describe(event)) is not None:
            self._line(f"{clock(event.time)}  {text}")
        if isinstance(event, ResetDone):
            self._last_end = 0.0

    def _word(self, word: Word, side: str) -> None:
        """Append `word` to the phrase of its side, or begin a new one."""
        near = word.start - self._last_end < PHRASE_PAUSE
        if self._in_line and near and side == self._side:
            self._print(gap_between(self._said, word.text) + word.text)
        else:
            self.end_line()
            who = f"{side}: " if self._sides else ""
            self._print(f"{clock(word.start)}  {who}{word.text}")
        self._in_line, self._side, self._last_end = True, side, word.end
        self._said = word.text

    def _end_turn(self) -> None:
        """The user has finished."""
        if self._side == "you":
            self.end_line()

    def end_line(self) -> None:
        """End the line that a phrase has begun."""
        if self._in_line:
            self._print("\n")
        self._in_line = False

    def _line(self, text: str) -> None:
        self.end_line()
        self._print(text + "\n")

    def _print(self, text: str) -> None:
        clean = "\n".join(printable(line) for line in text.split("\n"))
        self._console.print(clean, end="", markup=False, highlight=False, soft_wrap=True)
        self._console.file.flush()


def describe(event: Event) -> str | None:
    """`event` on one line for the reader, or None if it is nothing to read about."""
    match event:
        case Notice(_, text):
            return text
        case Opened(_, input, ""):
            return f'listening: input "{input}"'
        case Opened(_, input, output, echo_cancelled=cancelled):
            echo = ", echo cancelled" if cancelled else ""
            return f'listening: input "{input}", output "{output}"{echo}'
        case DeviceLost(_, reason):
            return f"{reason}; reopening"
        case MicrophoneDead(_, advice):
            return f"the microphone gives only silence: {advice}"
        case Resumed(_, slept):
            return f"resumed after {slept:.0f} s of sleep"
        case MicrophoneClosed(_, closed):
            return "microphone closed" if closed else "microphone open"
        case Paused(_, paused):
            return "the model pauses" if paused else "the model resumes"
        case ResetDone():
            return "the conversation starts over"
        case GreetingHeld(_, held):
            return "Moshi waits for you to speak first" if held else None
        case LoopBroken(_, phrase, times):
            return f'"{phrase}" {times} times in a row: Moshi was made to pause'
        case CaptionsBehind(_, seconds):
            return (
                f"captions are {seconds:.0f} s behind: this machine is busy with the conversation"
            )
        case WindowRefreshed(_, seconds):
            return f"nothing was written for a while: the last {seconds:.0f} s are heard again"
        case RecordingStopped(_, reason):
            return f"recording stopped: {reason}"
    return None


def lateness(times: int) -> str:
    """How often the model was late, in words."""
    return "late once" if times == 1 else f"late {times} times"


def printable(text: str) -> str:
    """`text` without what could steer a terminal; a model may say any byte."""
    return text if text.isprintable() else "".join(c for c in text if c.isprintable())


def clock(seconds: float) -> str:
    """Minutes and seconds, as 0:07.4."""
    tenths = round(10 * max(0.0, seconds))
    return f"{tenths // 600}:{tenths % 600 / 10:04.1f}"


def print_words(
    console: Console, words: Sequence[Word], heard: Sequence[Word] | None = None
) -> None:
    """A line per word: start, end (seconds), text; with what the user said, whose they are too."""
    lines = [(word, "moshi  ") for word in words] + [(word, "you    ") for word in heard or ()]
    for word, side in sorted(lines, key=lambda line: line[0].start):
        who = "" if heard is None else side
        console.print(
            f"{word.start:8.2f} {word.end:8.2f}  {who}{word.text}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )


def print_report(console: Console, report: LoopReport, budget: float) -> None:
    """The figures of a run; `budget` is the time a frame may take (seconds)."""
    frame = report.times.summary()["frame"]
    lines = [
        f"{counted(report.frames, 'frame')}, {report.seconds:.1f} s of sound, "
        f"{report.real_time_factor:.2f} s of work per second",
        f"frame p50 {frame['p50']:.1f}, p95 {frame['p95']:.1f}, p99 {frame['p99']:.1f}, "
        f"max {frame['max']:.1f} ms of {1000 * budget:.0f} ms",
    ]
    if "callbacks" in (port := report.port):  # a sound card's
        lines.append(
            ", ".join(
                counted(int(port[f"{what}s"]), what)
                for what in ("callback", "xrun", "gap", "restart")
            )
        )
        if port["lags"]:
            lines.append(
                f"{lateness(int(port['lags']))}: {port['input_dropped_seconds']:.2f} s of input "
                f"and {port['output_dropped_seconds']:.2f} s of output dropped"
            )
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
