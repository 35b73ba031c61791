"""The screen of a live conversation: transcript, levels, times, state, keys.

Events are put into a `ScreenState` on whatever thread they come; a thread of the screen's own
draws it ten times per second, and only the rows that changed. Knows nothing of sound cards, models
and keys. The terminal is always left as it was, and the transcript stays on it.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import TracebackType

import numpy as np
from rich.cells import cell_len, chop_cells
from rich.console import Console
from rich.control import Control
from rich.segment import Segment, Segments
from rich.style import Style

from moshi_mlx import SpeechEnded, SpeechStarted, TurnEnded, Word, WordSpoken
from moshi_mlx.text import gap_between

from ..events import (
    CaptionsLost,
    DeviceLost,
    Event,
    FrameDone,
    GreetingHeld,
    Lag,
    MicrophoneClosed,
    Opened,
    Paused,
    RecordingStopped,
    ResetDone,
    WordHeard,
)
from .keys import in_foreground
from .lines import PHRASE_PAUSE, clock, describe, lateness, printable

__all__ = ["Screen", "ScreenState", "can_draw"]

DRAW_SECONDS = 0.1
KEPT_LINES = 500
LINE_CHARACTERS = 600
"""A phrase longer than this continues on a new line, so that each is soon finished."""
TIMED_FRAMES = 250
"""Frames that the percentiles on the screen are of: 20 s."""
FLOOR_DB = -60.0
FALL_PER_DRAW = 0.1
"""A level falls by at most this part of its meter from one picture to the next."""
CLOCK_WIDTH = 9
CLOCK_FROM_WIDTH = 30
RULE_FROM_HEIGHT = 14
INFO_GAP = 2
TRANSCRIPT_ROWS = 2
"""Rows that are kept for the transcript, where the terminal has that many."""

PLAIN = Style()
DIM = Style(dim=True)
BOLD = Style(bold=True)
YOU = Style(color="yellow")
MOSHI = Style(color="cyan")
GOOD = Style(color="green")
WARN = Style(color="yellow", bold=True)
BAD = Style(color="red", bold=True)
CHIP = Style(color="black", bgcolor="yellow")
RECORDING = Style(color="white", bgcolor="red", bold=True)

ScreenRow = list[Segment]


def can_draw(console: Console) -> bool:
    """Whether `console` is a terminal that a screen can be drawn on."""
    try:
        fd = console.file.fileno()
    except (OSError, ValueError, AttributeError):
        return False
    return os.isatty(fd) and not console.is_dumb_terminal and in_foreground(fd)


# ----------------------------------------------------------------------------- the state


@dataclass(slots=True)
class Line:
    """A phrase of a side's, or a note; wrapped once for a width."""

    time: float
    text: str
    note: bool = False
    heard: bool = False
    _width: int = 0
    _wrapped: list[str] = field(default_factory=list)

    def wrapped(self, width: int) -> list[str]:
        """The text in rows of at most `width` cells."""
        if width != self._width:
            self._width, self._wrapped = width, wrap(self.text, width)
        return self._wrapped

    def append(self, text: str) -> None:
        """More of the same phrase."""
        self.text += text
        self._width = 0


class ScreenState:
    """What there is to see. A listener; any thread may feed it, and another read it.

    Args:
        name: of the model.
        budget: the time that a frame may take (seconds).
        recording: what is recorded to, if anything.
        push_to_talk: whether the microphone is open only while space is held.
        keys: whether there are keys.
        sides: both sides have words: each line begins with whose they are.
        listens: there is no voice and no speaker, and the words are the user's.
    """

    def __init__(
        self,
        *,
        name: str,
        budget: float,
        recording: str | None = None,
        push_to_talk: bool = False,
        keys: bool = True,
        sides: bool = False,
        listens: bool = False,
    ) -> None:
        self._lock = threading.Lock()
        self._name = printable(name)
        self._budget = budget
        self._recording = recording
        self._push_to_talk = push_to_talk
        self._keys = keys
        self._sides, self._listens = sides, listens
        self._lines: deque[Line] = deque(maxlen=KEPT_LINES)
        self._phrases: dict[str, tuple[Line, float]] = {}  # of a side: open, and its end until now
        self._partial = ""
        self._time = 0.0
        self._took: deque[float] = deque(maxlen=TIMED_FRAMES)
        self._lag = 0.0
        self._late = 0
        self._dropped = 0.0
        self._captions_lost = 0.0
        self._delay: float | None = None
        self._devices = ["", ""]
        self._echo_cancelled = False
        self._sound_lost = False
        self._closed = self._paused = self._waiting = False
        self._speaking = {"you": False, "moshi": False}
        self._peaks = (0.0, 0.0)

    def __call__(self, event: Event) -> None:
        """Take in `event`."""
        with self._lock:
            self._take(event)

    @property
    def peaks(self) -> tuple[float, float]:
        """The loudest sample of the last frame heard, and of the last one said."""
        return self._peaks

    def lines(self) -> list[str]:
        """The transcript as it is kept: the last KEPT_LINES lines, each with its time."""
        with self._lock:
            return [f"{clock(line.time)}  {line.text}" for line in self._lines]

    def _take(self, event: Event) -> None:
        match event:
            case FrameDone():
                self._frame(event)
            case WordSpoken(word=word):
                self._word(word, "moshi")
            case WordHeard(word=word):
                self._word(word, "you")
            case TurnEnded():
                self._phrases.pop("you", None)
            case SpeechStarted(side=side) | SpeechEnded(side=side):
                who = "you" if side == "user" else "moshi"
                self._speaking[who] = isinstance(event, SpeechStarted)
            case Opened(_, input, output):
                self._devices = [printable(input), printable(output)]
                self._echo_cancelled = event.echo_cancelled
                self._sound_lost = False
            case MicrophoneClosed(_, closed):
                self._closed = closed
            case Paused(_, paused):
                self._paused = paused
            case GreetingHeld(_, held):
                self._waiting = held
            case Lag(_, heard, spoken):
                self._late += 1
                self._dropped += heard + spoken
            case CaptionsLost(_, seconds):
                self._captions_lost += seconds
            case _:
                self._note(event)
        match event:
            case DeviceLost():
                self._sound_lost = True
            case RecordingStopped():
                self._recording = None
            case ResetDone():
                self._time = 0.0
                self._phrases.clear()
                self._partial = ""
                self._speaking = dict.fromkeys(self._speaking, False)

    def _frame(self, event: FrameDone) -> None:
        frame = event.frame
        self._time = event.time
        self._took.append(event.took)
        self._lag, self._delay = event.lag, event.delay
        self._partial = printable(frame.partial)
        self._peaks = float(np.abs(event.heard).max()), float(np.abs(frame.pcm).max())

    def _word(self, word: Word, side: str) -> None:
        text = printable(word.text)
        line = self._open_phrase(side, word.start)
        if line and len(line.text) < LINE_CHARACTERS:
            line.append(gap_between(line.text, text) + text)
        else:
            who = f"{side}: " if self._sides else ""
            line = Line(word.start, who + text, heard=self._sides and side == "you")
            self._lines.append(line)
        self._phrases[side] = line, word.end
        if side == self._speaker:
            self._partial = ""

    @property
    def _speaker(self) -> str:
        """Whose the words of the frames are."""
        return "you" if self._listens else "moshi"

    def _open_phrase(self, side: str, start: float) -> Line | None:
        """The line that a word at `start` belongs to, if there is one."""
        line, end = self._phrases.get(side, (None, 0.0))
        return line if start - end < PHRASE_PAUSE else None

    def _note(self, event: Event) -> None:
        text = describe(event)
        if text is not None:
            self._lines.append(Line(event.time, printable(text), note=True))
            self._phrases.clear()

    # -------------------------------------------------------------------- the picture

    def rows(
        self, width: int, height: int, levels: Sequence[float] = (0.0, 0.0), fancy: bool = True
    ) -> list[ScreenRow]:
        """The picture: `height` rows of `width` cells each, for any size of at least 1 × 1.

        `levels` are how full the meters of the user and of Moshi are, 0 … 1. Without `fancy`
        the picture is ASCII but for the words.
        """
        with self._lock:
            infos = self._infos(width)
            below = [
                (1, self._meter("you", YOU, 0, levels[0], width, fancy)),
                *self._voice_meter(levels[1], width, fancy),
                *((3 * i, row) for i, row in enumerate(infos)),
                (100, self._key_row()),
            ]
            room = max(0, height - 1 - TRANSCRIPT_ROWS)
            chosen = sorted(rank for rank, _ in below)[:room]
            rows = [row for rank, row in below if rank in chosen]
            if height >= RULE_FROM_HEIGHT:
                rows.insert(0, [Segment(("─" if fancy else "-") * width, DIM)])
            top = [self._title()] if height > 1 else []
            left = height - len(top) - len(rows)
            middle = self._transcript(width, left)
            middle += [[] for _ in range(left - len(middle))]
        return [Segment.adjust_line_length(row, width) for row in (*top, *middle, *rows)]

    def _title(self) -> ScreenRow:
        minutes, seconds = divmod(int(self._time), 60)
        row = [
            Segment(" moshi-local ", BOLD),
            Segment(f"{self._name} ", PLAIN),
            Segment(f"{minutes}:{seconds:02d} ", DIM),
        ]
        chips = [
            (self._sound_lost, "reopening sound", BAD),
            (bool(self._recording), "REC", RECORDING),
        ]
        if self._push_to_talk:
            chips += [(self._closed, "hold space to talk", CHIP), (not self._closed, "talk", GOOD)]
        else:
            chips.append((self._closed, "muted", CHIP))
        chips += [(self._paused, "paused", CHIP), (self._waiting, "waits for you", CHIP)]
        for shown, text, style in chips:
            if shown:
                row += [Segment(" ", PLAIN), Segment(f" {text} ", style)]
        return row

    def _transcript(self, width: int, height: int) -> list[ScreenRow]:
        """The last rows of the transcript, at most `height`."""
        indent = CLOCK_WIDTH if width >= CLOCK_FROM_WIDTH else 0
        room = max(1, width - indent)
        rows: list[ScreenRow] = []

        def put(line: Line, texts: Sequence[str], partial: str = "") -> None:
            """In front of the rows there are: the rows of `line`, the last one first."""
            style = DIM if line.note else YOU if line.heard else PLAIN
            for i in reversed(range(len(texts))):
                lead = clock(line.time) if i == 0 else ""
                row = [Segment(f"{lead:{indent}}"[:indent], DIM)]
                text = texts[i]
                if partial and i == len(texts) - 1:
                    done = text[: -len(partial)] if text.endswith(partial) else ""
                    row += [Segment(done, style), Segment(text[len(done) :], DIM)]
                else:
                    row.append(Segment(text, style))
                rows.append(row)

        unfinished = self._open_phrase(self._speaker, self._time) if self._partial else None
        if self._partial and unfinished is None:
            put(Line(self._time, self._partial), wrap(self._partial, room), self._partial)
        for line in reversed(self._lines):
            if len(rows) >= height:
                break
            if line is unfinished:
                put(
                    line,
                    wrap(line.text + gap_between(line.text, self._partial) + self._partial, room),
                    self._partial,
                )
            else:
                put(line, line.wrapped(room))
        return rows[:height][::-1]

    def _voice_meter(self, level: float, width: int, fancy: bool) -> list[tuple[int, ScreenRow]]:
        if self._listens:
            return []
        return [(2, self._meter("moshi", MOSHI, 1, level, width, fancy))]

    def _meter(
        self, who: str, style: Style, device: int, level: float, width: int, fancy: bool
    ) -> ScreenRow:
        """Who, a bar that is full by `level`, and the device's name."""
        on, off = ("━", "━") if fancy else ("#", "-")
        mark = ("●" if fancy else "*") if self._speaking[who] else " "
        cells = max(0, min(30, width // 3))
        full = min(cells, round(level * cells))
        loud = BAD if level > 1 + 1 / FLOOR_DB else style  # within 1 dB of the limit
        return [
            Segment(f" {mark} ", style),
            Segment(f"{who:6}", style),
            Segment(on * full, loud),
            Segment(off * (cells - full) if fancy else " " * (cells - full), DIM),
            Segment(f"  {self._devices[device]}", DIM),
        ]

    def _infos(self, width: int) -> list[ScreenRow]:
        """Times and echo cancellation, in as many rows as they need."""
        budget = 1000 * self._budget
        style = DIM
        frame = f"frame p50 – p95 – of {budget:.0f} ms"
        if self._took:
            p50, p95 = (1000 * float(t) for t in np.percentile(self._took, (50, 95)))
            style = GOOD if p95 < budget else WARN if p50 < budget else BAD
            frame = f"frame p50 {p50:.0f} p95 {p95:.0f} of {budget:.0f} ms"
        behind = self._lag >= self._budget
        delay = "–" if self._delay is None else f"{1000 * self._delay:.0f} ms"
        items = [
            (frame, style),
            (f"lag {1000 * self._lag:.0f} ms", WARN if behind else DIM),
        ]
        if not self._listens:
            items += [
                (f"mouth to ear {delay}", DIM),
                (f"echo filter {'on' if self._echo_cancelled else 'off'}", DIM),
            ]
        if self._late:
            items.append((f"{lateness(self._late)}, {self._dropped:.1f} s dropped", WARN))
        if self._captions_lost:
            items.append((f"{self._captions_lost:.0f} s without captions", WARN))
        rows: list[ScreenRow] = []
        used = width
        for text, style in items:
            cells = INFO_GAP + cell_len(text)
            if used + cells > width:
                rows.append([Segment(" ", PLAIN)])
                used = 1
            rows[-1] += [Segment(" " * INFO_GAP, PLAIN), Segment(text, style)]
            used += cells
        return rows

    def _key_row(self) -> ScreenRow:
        if not self._keys:
            return [Segment("   Ctrl-C", BOLD), Segment(" quit", DIM)]
        keys = [("m", "mute"), ("r", "reset"), ("q", "quit")]
        if self._push_to_talk:
            keys.insert(0, ("space", "talk"))
        row = [Segment("  ", PLAIN)]
        for key, meaning in keys:
            row += [Segment(f" {key}", BOLD), Segment(f" {meaning} ", DIM)]
        return row


def wrap(text: str, width: int) -> list[str]:
    """`text` in rows of at most `width` cells, broken at spaces where it can be."""
    rows = [""]
    used = 0
    for word in text.split(" "):
        for i, piece in enumerate(chop_cells(word, width) if cell_len(word) > width else [word]):
            cells = cell_len(piece)
            if i == 0 and used and used + 1 + cells <= width:
                rows[-1] += f" {piece}"
                used += 1 + cells
            elif not used:
                rows[-1], used = piece, cells
            else:
                rows.append(piece)
                used = cells
    return rows


def level(peak: float) -> float:
    """A peak of 0 … 1 as the filled part of a meter, linear in dB from FLOOR_DB."""
    if not peak > 0:
        return 0.0
    return min(1.0, max(0.0, 1 - 20 * math.log10(peak) / FLOOR_DB))


# ---------------------------------------------------------------------------- the drawing


class Screen:
    """Draws a state on a terminal while the context is entered; a listener, as the state is.

    Args:
        console: on the terminal; see `can_draw`.
        state: what to draw.
        levels: the peaks of what comes in and what goes out, 0 … 1; those of the last frame
            if None. Called on the drawing thread.
    """

    def __init__(
        self,
        console: Console,
        state: ScreenState,
        levels: Callable[[], tuple[float, float]] | None = None,
    ) -> None:
        self.state = state
        self._console = console
        self._peaks = levels or (lambda: state.peaks)
        self._levels = [0.0, 0.0]
        self._fd = console.file.fileno()
        self._fancy = console.encoding.lower().startswith("utf")
        self._lock = threading.RLock()  # a signal's handler may find its own thread holding it
        self._on = False
        self._size = (0, 0)
        self._shown: list[ScreenRow] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="screen", daemon=True)
        self._failure: Exception | None = None
        self.cpu_seconds = 0.0
        """What the drawing thread has used of a core (seconds)."""

    def __call__(self, event: Event) -> None:
        """Take in `event`; nothing is drawn here."""
        self.state(event)
        if isinstance(event, DeviceLost | Opened):
            self._size = (0, 0)  # PortAudio may have written its own lines: redraw all of it

    def __enter__(self) -> Screen:
        self._console.file.flush()
        self._fd = os.dup(self._fd)  # the terminal, wherever stderr is led meanwhile
        self.resume()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end.set()
        try:
            self._thread.join(1.0)
        finally:  # also when a second Ctrl-C comes meanwhile
            self.suspend()
            if not self._thread.is_alive():
                os.close(self._fd)
        with suppress(OSError):
            for line in self.state.lines():
                self._console.print(line, markup=False, highlight=False, soft_wrap=True)
            if self._failure is not None:
                self._console.print(f"the screen failed: {self._failure!r}", markup=False)

    def suspend(self) -> None:
        """The terminal's own screen and cursor again."""
        with self._hold(), suppress(OSError):  # the terminal may be gone
            if self._on:
                self._on = False
                self._write([Control.show_cursor(True), Control.alt_screen(False)])

    def resume(self) -> None:
        """Draw from here on, starting with everything; not in the background."""
        if self._end.is_set() or not in_foreground(self._fd):
            return
        with self._hold(), suppress(OSError):
            self._on, self._size = True, (0, 0)
            self._write([Control.alt_screen(True), Control.show_cursor(False)])

    def draw(self) -> None:
        """Bring the terminal up to date."""
        size = os.get_terminal_size(self._fd)
        width, height = max(1, size.columns), max(1, size.lines)
        output: list[Segment] = []
        if (width, height) != self._size:
            self._size, self._shown = (width, height), []
            output.append(Control.clear().segment)
        for i, peak in enumerate(self._peaks()):
            self._levels[i] = max(level(peak), self._levels[i] - FALL_PER_DRAW)
        rows = self.state.rows(width, height, self._levels, self._fancy)
        for y, row in enumerate(rows):
            if y >= len(self._shown) or row != self._shown[y]:
                output += [Control.move_to(0, y).segment, *row]
        self._shown = rows
        if output:
            self._write([Segments(output)])

    @contextmanager
    def _hold(self) -> Iterator[None]:
        """Keeps the drawing thread off, but not indefinitely: Ctrl-S may have stopped its write."""
        got = self._lock.acquire(timeout=1.0)
        try:
            yield
        finally:
            if got:
                self._lock.release()

    def _run(self) -> None:
        try:
            while not self._end.is_set():
                with self._lock:
                    if self._on:
                        self.draw()
                self.cpu_seconds = time.thread_time()
                self._end.wait(DRAW_SECONDS)
        except OSError:  # the terminal is gone
            pass
        except Exception as error:
            self._failure = error
            self.suspend()

    def _write(self, renderables: Iterable[Control | Segments]) -> None:
        """Straight to the terminal: a signal's handler may do so in the midst of a print."""
        with self._console.capture() as capture:
            for renderable in renderables:
                self._console.print(renderable, end="", soft_wrap=True)
        data = capture.get().encode(self._console.encoding, errors="replace")
        try:
            while data:
                data = data[os.write(self._fd, data) :]
        except BlockingIOError:  # it takes no more now: all of it at the next time
            self._size = (0, 0)
