"""The trace: slices where the work was, counters, instants, no more than the window."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from moshi_local.events import Lag
from moshi_local.observers.trace import Trace
from moshi_mlx import MoshiError
from tests.fakes.frames import frame_done, spoken


class Clock:
    """Seconds, set by hand."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def entries(path: Path, kind: str) -> list[dict]:
    document = json.loads(path.read_text(encoding="utf-8"))
    assert set(document) == {"displayTimeUnit", "traceEvents"}
    return [event for event in document["traceEvents"] if event["ph"] == kind]


def test_a_frame_a_word_and_a_lag(tmp_path: Path) -> None:
    path, clock = tmp_path / "trace.json", Clock()
    with Trace(path, clock=clock) as trace:
        clock.now = 100.0
        trace(frame_done(5, lag=0.016))  # took 70 ms, so it began at 99.93: the trace's 0
        clock.now = 100.5
        trace(spoken("hello", 0.1, 0.2))
        trace(Lag(0.5, input_dropped=0.08, output_dropped=0.0))
        assert not path.exists()
    threads = {
        event["tid"]: event["args"]["name"]
        for event in entries(path, "M")
        if event["name"] == "thread_name"
    }
    slices = {
        threads[event["tid"]]: (event["ts"], event["dur"], event["args"]["index"])
        for event in entries(path, "X")
    }
    assert slices == {
        "frame": (0.0, 70_000.0, 5),
        "encode": (0.0, 10_000.0, 5),
        "model": (10_000.0, 40_000.0, 5),
        "decode": (50_000.0, 15_000.0, 5),
    }
    counters = [(e["name"], e["ts"], *e["args"].items()) for e in entries(path, "C")]
    assert counters == [
        ("lag (ms)", 70_000.0, ("lag", 16.0)),
        ("delay (ms)", 70_000.0, ("delay", 200.0)),
    ]
    instants = [(threads[e["tid"]], e["name"], e["ts"]) for e in entries(path, "i")]
    assert instants == [("words", "hello", 570_000.0), ("events", "Lag", 570_000.0)]
    assert [p.name for p in tmp_path.iterdir()] == ["trace.json"]


def test_only_the_window_is_kept(tmp_path: Path) -> None:
    path, clock = tmp_path / "trace.json", Clock()
    with Trace(path, window=10.0, clock=clock) as trace:
        for n in range(1000):
            clock.now = n / 12.5
            trace(frame_done(n))
    kept = [event["args"]["index"] for event in entries(path, "X") if event["name"] == "frame"]
    assert kept == list(range(999 - 125, 1000))


def test_an_empty_trace(tmp_path: Path) -> None:
    with Trace(tmp_path / "trace.json"):
        pass
    assert entries(tmp_path / "trace.json", "M")


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    for path, reason in (
        (tmp_path, "it is a folder"),
        (tmp_path / "none" / "trace.json", "there is no folder .*none$"),
    ):
        with pytest.raises(MoshiError, match=reason):
            Trace(path)


def test_trouble_at_the_end_is_told_but_hides_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "goes"
    folder.mkdir()
    trace = Trace(folder / "trace.json")
    folder.rmdir()
    with pytest.raises(MoshiError, match="No such file"), trace:
        pass
    with pytest.raises(KeyError), trace:
        raise KeyError("what really went wrong")
