"""The screen: its rows at every size, and a real terminal that is left as it was."""

from __future__ import annotations

import codecs
import fcntl
import io
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from rich.cells import cell_len
from rich.console import Console
from rich.segment import Segment

from moshi_local.events import (
    DeviceLost,
    FrameDone,
    GreetingHeld,
    Lag,
    LoopBroken,
    MicrophoneClosed,
    Opened,
    Paused,
    RecordingStopped,
    ResetDone,
)
from moshi_local.terminal.screen import KEPT_LINES, ScreenState, can_draw, level, wrap
from moshi_mlx import SpeechStarted, Word, WordSpoken
from moshi_mlx.testing import FRAME_SIZE, FakeSession
from tests.moshi_local.test_keys import eventually, terminal_state

QUIET = np.zeros(FRAME_SIZE, np.float32)


def state(**options) -> ScreenState:
    return ScreenState(name="nano", budget=0.08, **options)


def say(screen: ScreenState, text: str, start: float, gap: float = 0.3) -> None:
    for i, word in enumerate(text.split()):
        at = start + i * gap
        screen(WordSpoken(at + 0.2, Word(word, at, at + 0.2)))


def frame(screen: ScreenState, time: float, partial: str = "", **figures) -> None:
    """A frame that ended at `time`; see FrameDone for the figures."""
    done = replace(FakeSession().step(QUIET), partial=partial)
    screen(FrameDone(time, done, QUIET, **figures))


def text(row: list[Segment]) -> str:
    return "".join(segment.text for segment in row)


def picture(screen: ScreenState, width: int = 80, height: int = 24) -> str:
    return "\n".join(text(row).rstrip() for row in screen.rows(width, height))


# ------------------------------------------------------------------------------- the picture


def test_words_appear_as_they_come_and_the_unfinished_one_is_dim() -> None:
    screen = state()
    say(screen, "Hello! My name", 1.0)
    frame(screen, 2.0, partial="is")
    (row,) = [row for row in screen.rows(80, 24) if "Hello" in text(row)]
    assert text(row).rstrip() == "0:01.0   Hello! My name is"
    styles = {segment.text.strip(): bool(segment.style and segment.style.dim) for segment in row}
    assert styles["Hello! My name"] is False
    assert styles["is"] is True


def test_a_phrase_after_a_pause_is_a_new_line() -> None:
    screen = state()
    say(screen, "One, two.", 1.0)
    say(screen, "Three.", 4.0)
    frame(screen, 9.0, partial="Fo")
    rows = [line for line in picture(screen).splitlines() if line.startswith("0:")]
    assert rows == ["0:01.0   One, two.", "0:04.0   Three.", "0:09.0   Fo"]


def test_a_long_transcript_shows_its_end_wrapped() -> None:
    screen = state()
    for n in range(30):
        say(screen, f"phrase {n} is rather long for such a screen", 10.0 * n, gap=0.1)
    rows = picture(screen, 40, 10).splitlines()
    assert rows[1:5] == [
        "4:40.0   phrase 28 is rather long for",
        "         such a screen",
        "4:50.0   phrase 29 is rather long for",
        "         such a screen",
    ]


def test_what_is_kept_is_bounded() -> None:
    screen = state()
    for n in range(3 * KEPT_LINES):
        say(screen, "Yes.", 10.0 * n)
    assert len(screen.lines()) == KEPT_LINES
    say(screen, "word " * 5000, 1e6, gap=0.01)  # without a pause, hence without a new phrase
    assert max(len(line) for line in screen.lines()) < 700


def test_times_lag_delay_and_devices_are_there() -> None:
    screen = state()
    screen(Opened(0.0, "Desk Microphone", "Headset", echo_cancelled=True))
    for n in range(1, 101):
        frame(screen, n / 12.5, took=n / 1000, lag=0.04, delay=0.281)
    shown = picture(screen)
    assert "frame p50 50 p95 95 of 80 ms" in shown
    assert "lag 40 ms" in shown
    assert "mouth to ear 281 ms" in shown
    assert "echo filter on" in shown
    assert "Desk Microphone" in shown
    assert "Headset" in shown
    screen(Opened(0.0, "other", "Headset"))
    assert "echo filter off" in picture(screen)


@pytest.mark.parametrize(
    ("begin", "end", "word"),
    [
        (MicrophoneClosed(0.0, True), MicrophoneClosed(0.0, False), "muted"),
        (Paused(0.0, True), Paused(0.0, False), "paused"),
        (GreetingHeld(0.0, True), GreetingHeld(0.0, False), "waits for you"),
        (DeviceLost(0.0, "gone"), Opened(0.0, "a", "b"), "reopening sound"),
    ],
)
def test_states_come_and_go(begin, end, word: str) -> None:
    screen = state()
    assert word not in picture(screen).splitlines()[0]
    screen(begin)
    assert word in picture(screen).splitlines()[0]
    screen(end)
    assert word not in picture(screen).splitlines()[0]


def test_recording_push_to_talk_and_keys() -> None:
    screen = state(recording="talk.wav", push_to_talk=True)
    assert "REC" in picture(screen)
    assert "space talk" in picture(screen)
    screen(MicrophoneClosed(0.0, True))
    assert "hold space to talk" in picture(screen)
    screen(RecordingStopped(3.0, "the disk is full"))
    assert "REC" not in picture(screen)
    assert "the disk is full" in picture(screen)
    assert "space" not in picture(state())
    assert "Ctrl-C quit" in picture(state(keys=False))


def test_lateness_is_counted_and_never_a_line_of_the_transcript() -> None:
    screen = state()
    assert "late" not in picture(screen)
    for n in range(50):
        screen(Lag(float(n), 0.08, 0.03))
    screen(LoopBroken(51.0, "la", 6))
    screen(Lag(52.0, 0.08, 0.0))
    assert [line for line in screen.lines() if "late" in line] == []
    assert picture(screen).count("late") == 1
    assert "late 51 times, 5.6 s dropped" in picture(screen)


def test_a_reset_sets_the_clock_back_and_keeps_the_transcript() -> None:
    screen = state()
    say(screen, "Before.", 100.0)
    frame(screen, 102.0, partial="ope")
    screen(SpeechStarted(102.0, "user"))
    screen(ResetDone(102.0))
    assert "ope" not in picture(screen).splitlines()[-10]
    say(screen, "After.", 0.5)
    rows = [line for line in picture(screen).splitlines() if re.match(r"\d:\d\d\.\d", line)]
    assert rows == [
        "1:40.0   Before.",
        "1:42.0   the conversation starts over",
        "0:00.5   After.",
    ]
    assert "nano 0:00" in picture(screen)
    assert "●" not in picture(screen)


def test_what_a_model_says_cannot_steer_the_terminal() -> None:
    screen = state()
    screen(WordSpoken(1.0, Word("\x1b[2Jboo\x07", 0.9, 1.0)))
    frame(screen, 1.1, partial="\x1b]0;title")
    assert "\x1b" not in picture(screen)
    assert "[2Jboo ]0;title" in picture(screen)


@pytest.mark.parametrize("width", [1, 2, 7, 20, 29, 30, 40, 63, 80, 200])
@pytest.mark.parametrize("height", [1, 2, 3, 5, 10, 14, 24, 60])
def test_every_size_is_filled_exactly(width: int, height: int) -> None:
    screen = state(recording="x", push_to_talk=True)
    screen(Opened(0.0, "a microphone with a long name, 会議室のマイク", "b" * 300))
    say(screen, "Donaudampfschifffahrtsgesellschaft " * 8 + "こんにちは、元気ですか。" * 9, 0.0)
    frame(screen, 9.0, partial="un" * 40, took=0.2, delay=0.3)
    screen(MicrophoneClosed(9.0, True))
    rows = screen.rows(width, height, (0.5, 1.0))
    assert len(rows) == height
    assert {cell_len(text(row)) for row in rows} == {width}


def test_a_small_terminal_has_what_matters() -> None:
    screen = state()
    say(screen, "Hello there.", 1.0)
    frame(screen, 2.0, took=0.03, delay=0.28)
    shown = picture(screen, 40, 10)
    for part in ("Hello there.", "frame p50 30 p95 30 of 80 ms", "lag 0 ms", "you", "q quit"):
        assert part in shown
    tiny = picture(screen, 40, 4)
    assert "Hello there." in tiny
    assert "frame p50" in tiny


@pytest.mark.parametrize(
    ("words", "width", "rows"),
    [
        ("one two three", 7, ["one two", "three"]),
        ("", 5, [""]),
        ("abcdefgh", 3, ["abc", "def", "gh"]),
        ("a abcdefgh b", 4, ["a", "abcd", "efgh", "b"]),
        ("日本語", 4, ["日本", "語"]),
    ],
)
def test_wrap(words: str, width: int, rows: list[str]) -> None:
    assert wrap(words, width) == rows


def test_levels_are_decibels() -> None:
    assert [level(peak) for peak in (0.0, 1e-9, 1e-3, 1.0, 5.0)] == [0, 0, 0, 1, 1]
    assert level(10**-1.5) == pytest.approx(0.5)
    assert level(float("nan")) == 0


def test_a_pipe_and_a_dumb_terminal_are_no_place_for_it() -> None:
    assert not can_draw(Console(file=io.StringIO(), force_terminal=True))
    read, write = os.pipe()
    with os.fdopen(write, "w") as file:
        assert not can_draw(Console(file=file, force_terminal=True))
    os.close(read)


# ------------------------------------------------------------------------- a real terminal

PROGRAM = """
import sys, time
from dataclasses import replace
import numpy as np
from moshi_mlx.testing import FRAME_RATE, FRAME_SIZE, FakeSession
from rich.console import Console
from moshi_local.conversation import Conversation
from moshi_local.terminal.keys import Keys, give_back_on_stop
from moshi_local.loop import run_loop, stop_on_signals
from moshi_local.port import Read
from moshi_local.terminal.screen import Screen, ScreenState

class Port:
    def read(self, frame, timeout):
        time.sleep(0.01)
        frame[:] = 0.5
        return Read.FRAME
    def write(self, pcm): pass
    def take_events(self, now): return []
    def statistics(self): return {}
    def delay(self): return 0.3
    def lag(self): return 0.0
    def levels(self): return 0.5, 0.25

class Session(FakeSession):
    def step(self, pcm, *, hold_text=False):
        if len(self.heard) == 30 and sys.argv[1] == "crash":
            raise ValueError("no such matrix")
        if len(self.heard) == 30 and sys.argv[1] == "wedge":
            time.sleep(60)
        return replace(super().step(pcm, hold_text=hold_text), speaking=False)

talk = Conversation(Session(), frame_rate=FRAME_RATE, push_to_talk=sys.argv[1] == "talk")
console, port = Console(highlight=False), Port()
state = ScreenState(name="fake", budget=0.08, push_to_talk=talk.push_to_talk)
try:
    with (
        stop_on_signals() as stop,
        Screen(console, state, port.levels) as screen,
        Keys({"m": talk.toggle_mute, "q": stop.ask, "r": talk.ask_reset}, talk.talk) as keys,
        give_back_on_stop(screen, keys),
    ):
        run_loop(talk, port, frame_size=FRAME_SIZE, frame_rate=FRAME_RATE, listeners=[screen],
                 stop=lambda: bool(stop))
except KeyboardInterrupt:
    sys.exit(130)
except Exception as error:
    print(error, file=sys.stderr)
    sys.exit(2)
"""

SHELL = """
import fcntl, os, signal, subprocess, sys, termios
from contextlib import suppress
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
ignored = (signal.SIGTTOU, signal.SIGHUP)
for number in ignored:
    signal.signal(number, signal.SIG_IGN)
program = subprocess.Popen([sys.executable, *sys.argv[1:]], process_group=0, restore_signals=False,
                           preexec_fn=lambda: [signal.signal(n, signal.SIG_DFL) for n in ignored])
os.tcsetpgrp(0, program.pid)
print("pid", program.pid, file=sys.stderr, flush=True)
while True:
    _, status = os.waitpid(program.pid, os.WUNTRACED)
    if not os.WIFSTOPPED(status):
        break
    os.tcsetpgrp(0, os.getpgrp())
    print("stopped", file=sys.stderr, flush=True)
    sys.stdin.readline()
    os.tcsetpgrp(0, program.pid)
    os.kill(program.pid, signal.SIGCONT)
print("exit", os.waitstatus_to_exitcode(status), file=sys.stderr, flush=True)
with suppress(OSError):  # the terminal may be gone
    os.tcsetpgrp(0, os.getpgrp())
    sys.stdin.readline()
"""
"""As much of a shell as job control needs: it goes on with a stopped program after a line. It ends
after another one, since macOS takes the terminal from all when the leader of its session ends."""


class Terminal:
    """A terminal emulator of 80 × 24 cells with a program in it, run by Python's `arguments`."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        self._ours, self._theirs = pty.openpty()
        self.resize(80, 24)
        self.before = terminal_state(self._theirs)
        self._shell = subprocess.Popen(
            [sys.executable, "-c", SHELL, *arguments],
            stdin=self._theirs, stdout=self._theirs, stderr=subprocess.PIPE, text=True,
            start_new_session=True, env={**os.environ, "TERM": "xterm-256color", **environment},
        )  # fmt: skip
        self.output = ""
        self.notes: list[str] = []
        self._watched = True
        self._readers = [threading.Thread(target=f, daemon=True) for f in (self._read, self._note)]
        for reader in self._readers:
            reader.start()
        assert eventually(lambda: "pid" in "".join(self.notes), 20.0)
        self.pid = int(self.notes[0].split()[1])

    def _read(self) -> None:
        decode = codecs.getincrementaldecoder("utf-8")().decode
        while self._watched:
            if select.select([self._ours], [], [], 0.02)[0]:
                try:
                    self.output += decode(os.read(self._ours, 1 << 16))
                except OSError:
                    return

    def _note(self) -> None:
        assert self._shell.stderr is not None
        for line in self._shell.stderr:
            self.notes.append(line.strip())

    def resize(self, width: int, height: int) -> None:
        fcntl.ioctl(self._theirs, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    def type(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    def shown(self) -> dict[int, str]:
        """The rows that the output has left on the alternative screen, by number from 1."""
        rows: dict[int, str] = {}
        at = 1
        for part in re.split(r"(\x1b\[[?\d;]*[A-Za-z])", self.output.rpartition("\x1b[?1049h")[2]):
            if match := re.fullmatch(r"\x1b\[(\d+);1H", part):
                at = int(match[1])
                rows[at] = ""
            elif part == "\x1b[2J":
                rows.clear()
            elif part and not part.startswith("\x1b"):
                rows[at] = rows.get(at, "") + part
        return rows

    def wait_for(self, words: str) -> None:
        """Until `words` are on the screen."""
        if not eventually(lambda: words in "\n".join(self.shown().values()), 30.0):
            pytest.fail(f"{words!r} is not on the screen: {self.shown()}, {self.notes}")

    def exit_code(self) -> int:
        """The program's, when it has ended; the shell stays."""
        assert eventually(lambda: self._ended, 20.0), self.notes
        return int(self.notes[-1].split()[1])

    @property
    def _ended(self) -> bool:
        return self.notes[-1].startswith("exit ")

    @property
    def given_back(self) -> bool:
        """Whether keys, screen and cursor are as they were."""
        assert self._shell.poll() is None, "on macOS there would be no terminal to look at"
        output = self.output
        return (
            terminal_state(self._theirs) == self.before
            and output.rfind("\x1b[?1049l") > output.rfind("\x1b[?1049h")
            and output.rfind("\x1b[?25h") > output.rfind("\x1b[?25l")
        )

    def hang_up(self) -> None:
        """As when a window is closed: the terminal is gone, and the program is told."""
        self._look_away()
        os.kill(self.pid, signal.SIGHUP)

    def _look_away(self) -> None:
        if self._watched:
            self._watched = False
            self._readers[0].join()
            os.close(self._ours)

    def close(self) -> None:
        if not self._ended:
            os.kill(self.pid, signal.SIGKILL)
        self._shell.kill()
        self._shell.wait()
        os.close(self._theirs)
        self._look_away()


@pytest.fixture
def terminal(request: pytest.FixtureRequest) -> Iterator[Terminal]:
    made = Terminal("-c", PROGRAM, getattr(request, "param", "plain"))
    yield made
    made.close()


def test_keys_a_smaller_terminal_and_the_end(terminal: Terminal) -> None:
    terminal.wait_for("word11")
    assert not terminal.given_back
    assert max(terminal.shown()) == 24
    terminal.type("m")
    terminal.wait_for(" muted ")
    terminal.type("m")
    terminal.resize(40, 10)
    assert eventually(lambda: max(terminal.shown()) == 10)
    assert eventually(lambda: {len(row) for row in terminal.shown().values()} == {40})
    terminal.type("r")
    terminal.wait_for("starts over")
    terminal.type("q")
    assert terminal.exit_code() == 0
    assert eventually(lambda: terminal.given_back)
    assert eventually(lambda: "word11" in terminal.output.rpartition("\x1b[?1049l")[2]), "it stays"


@pytest.mark.parametrize("terminal", ["talk"], indirect=True)
def test_space_is_push_to_talk(terminal: Terminal) -> None:
    terminal.wait_for("hold space to talk")
    terminal.wait_for("paused")
    terminal.type(" ")
    terminal.wait_for("  talk ")
    assert "paused" not in terminal.shown()[1]
    terminal.wait_for("hold space to talk")
    terminal.type("\x03")
    assert terminal.exit_code() == 0


@pytest.mark.parametrize("how", ["\x03", signal.SIGTERM])
def test_a_stop_gives_the_terminal_back(terminal: Terminal, how: str | signal.Signals) -> None:
    terminal.wait_for("word11")
    if isinstance(how, str):
        terminal.type(how)
    else:
        os.kill(terminal.pid, how)
    assert terminal.exit_code() == 0
    assert eventually(lambda: terminal.given_back)


def test_a_terminal_that_goes_away_is_the_end(terminal: Terminal) -> None:
    terminal.wait_for("word11")
    terminal.hang_up()
    assert terminal.exit_code() in (0, 120)  # 120: Python could not flush its standard output
    assert "Traceback" not in "".join(terminal.notes)


@pytest.mark.parametrize("terminal", ["wedge"], indirect=True)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_too(terminal: Terminal, number: signal.Signals) -> None:
    terminal.wait_for("word23")
    time.sleep(0.3)
    os.kill(terminal.pid, number)
    time.sleep(0.3)
    assert not terminal.given_back, "the step is not over"
    os.kill(terminal.pid, number)
    assert terminal.exit_code() == 130
    assert eventually(lambda: terminal.given_back)


@pytest.mark.parametrize("terminal", ["crash"], indirect=True)
def test_an_error_gives_the_terminal_back_and_is_one_line(terminal: Terminal) -> None:
    assert terminal.exit_code() == 2
    assert eventually(lambda: terminal.given_back)
    assert terminal.notes[1:-1] == ["the model failed in frame 30: ValueError: no such matrix"]


def test_ctrl_z_gives_the_terminal_back_and_fg_takes_it(terminal: Terminal) -> None:
    terminal.wait_for("word11")
    terminal.type("\x1a")
    assert eventually(lambda: "stopped" in terminal.notes)
    assert eventually(lambda: terminal.given_back)
    terminal.type("fg\n")
    assert eventually(lambda: not terminal.given_back)
    terminal.wait_for("m mute")
    terminal.type("m")
    terminal.wait_for(" muted ")
    terminal.type("q")
    assert terminal.exit_code() == 0
    assert eventually(lambda: terminal.given_back)


STUCK_SOUNDDEVICE = """
import atexit, threading, time
from types import SimpleNamespace
import numpy as np

class PortAudioError(Exception):
    pass

def stuck(*_, **__):
    while True:
        time.sleep(1.0)

def query_devices(device=None, kind=None):
    return {"index": 0, "name": "Hand Set", "hostapi": 0, "max_input_channels": 1,
            "max_output_channels": 1, "default_samplerate": 24000.0,
            "default_low_input_latency": 0.01, "default_low_output_latency": 0.01}

def query_hostapis():
    return [{"name": "Fake Audio", "devices": [0]}]

def _initialize(): pass
def _terminate(): pass

class Stream:
    active = False
    def __init__(self, *, callback, blocksize, samplerate, **_):
        self.work = callback, blocksize, samplerate
    def start(self):
        self.active = True
        atexit.register(stuck)
        threading.Thread(target=self.run, daemon=True).start()
    def run(self):
        callback, n, rate = self.work
        clock = SimpleNamespace(currentTime=1.0, inputBufferAdcTime=0.98, outputBufferDacTime=1.02)
        heard, played = np.full((2, n, 1), 0.01, np.float32)
        while True:
            time.sleep(n / rate)
            callback(heard, played, n, clock, None)
    abort = close = stuck
"""


@pytest.fixture
def stuck(tmp_path: Path) -> Iterator[Terminal]:
    """The program with a sounddevice that never stops, nor lets Python end."""
    (tmp_path / "sounddevice.py").write_text(STUCK_SOUNDDEVICE)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    record = ["--record", str(tmp_path / "kept"), "--record-format", "wav"]
    made = Terminal("-m", "moshi_local", "--model", "nano", *record, PYTHONPATH=path)
    yield made
    made.close()


@pytest.mark.parametrize("how", ["q", "\x03"])
def test_a_sound_card_that_never_stops_does_not_keep_the_program(
    stuck: Terminal, tmp_path: Path, how: str
) -> None:
    stuck.wait_for("frame p50")
    time.sleep(1.0)
    stuck.type(how)
    assert eventually(lambda: stuck.given_back, 20.0)
    assert "s of sound" not in "".join(stuck.notes), "before the card is stopped"
    assert stuck.exit_code() == 0
    notes = "\n".join(stuck.notes)
    assert re.search(r"\d+ frames, .* s of sound", notes), "the report"
    assert "recorded" in notes
    (kept,) = (tmp_path / "kept").glob("*.wav")
    sound, _ = soundfile.read(kept)
    assert len(sound) > 24_000 / 2
    assert sound.shape[1] == 2
