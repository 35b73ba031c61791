"""Events as JSON lines: what is in a line, and that trouble with the target hurts nobody."""

from __future__ import annotations

import json
import math
import os
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from moshi_local.events import Event, Opened, Resumed
from moshi_local.observers.event_log import EventLog, event_as_dict, to_json
from moshi_mlx import MoshiError
from tests.fakes.frames import frame_done, spoken


@dataclass(frozen=True)
class Odd(Event):
    """What no event has yet."""

    sound: np.ndarray
    number: np.float32
    path: Path
    pair: tuple[float, int]
    nothing: None = None


def test_any_dataclass_becomes_json() -> None:
    odd = Odd(1.00004, np.zeros(3), np.float32(0.25), Path("a"), (math.nan, np.int64(2)))  # type: ignore[arg-type]
    expected = {"number": 0.25, "path": "a", "pair": [None, 2], "nothing": None}
    assert event_as_dict(odd) == {"event": "Odd", "time": 1.0, **expected}
    assert to_json({1: {True}}) == {"1": [True]}


def test_a_word_and_a_frame() -> None:
    word = {"text": "hé", "start": 0.4, "end": 0.8}
    assert event_as_dict(spoken("hé", 0.4, 0.8)) == {
        "event": "WordSpoken",
        "time": 0.8,
        "word": word,
    }
    assert event_as_dict(frame_done(3, lag=0.123456)) == {
        "event": "FrameDone",
        "time": 0.32,
        "index": 3,
        "text": " hi",
        "partial": "hi",
        "speaking": True,
        "user_speaking": False,
        "took_ms": 70.0,
        "encode_ms": 10.0,
        "model_ms": 40.0,
        "decode_ms": 15.0,
        "lag": 0.1235,
        "delay": 0.2,
        "tokens": [7, 1, 2],
    }


def test_each_line_is_there_at_once_and_private(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with EventLog(path) as event_log:
        for n in range(3):
            event_log(Opened(float(n), "mic\n", "speaker"))
            lines = path.read_text(encoding="utf-8").splitlines()
            assert [json.loads(line)["time"] for line in lines] == list(range(n + 1))
    assert json.loads(lines[0])["input"] == "mic\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    event_log(Resumed(9.0, slept=1.0))  # after the end: ignored
    EventLog(path).close()
    assert path.read_text() == ""  # replaced


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(MoshiError, match=r"No such file.*folder that exists"):
        EventLog(tmp_path / "none" / "events.jsonl")
    with pytest.raises(MoshiError, match="directory"):
        EventLog(tmp_path)


PROGRAM = """
import os, sys
from moshi_local.events import Resumed
from moshi_local.observers.event_log import EventLog
with EventLog("-") as event_log:
    for n in range(5):
        event_log(Resumed(float(n), slept=1.0))
        if n == 0 and len(sys.argv) > 1:
            sys.stdin.read()
print("went on", file=sys.stderr)
"""


def test_stdout() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=30, check=True
    )
    assert [json.loads(line)["time"] for line in done.stdout.splitlines()] == [0, 1, 2, 3, 4]


def test_the_reader_of_the_pipe_may_go() -> None:
    inlet, outlet = os.pipe()
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "wait"],
        stdin=subprocess.PIPE,
        stdout=outlet,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(outlet)
    assert json.loads(os.read(inlet, 1 << 16))["time"] == 0.0
    os.close(inlet)  # as `head -1` does
    _, errors = program.communicate("", timeout=30)
    assert (program.returncode, errors) == (0, "went on\n")
