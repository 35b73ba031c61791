"""A look inside benchmarked frames: the trace's slices, the flame plot's page, refusals."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

from moshi_local.cli import main
from moshi_local.machine.profile import Profile
from moshi_local.observers.trace import Trace
from moshi_mlx import MoshiError, Timing

SMALL = Path(__file__).parents[1] / "fixtures" / "bench" / "small.json"


def slices(path: Path) -> list[str]:
    """The names of the slices of a trace, sorted."""
    events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    return sorted(event["name"] for event in events if event["ph"] == "X")


def test_bench_writes_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace, flame = tmp_path / "trace.json", tmp_path / "flame.html"
    arguments = ["bench", "--frames", "8", "--trace", str(trace), "--flame", str(flame)]
    assert main(arguments) == 0
    assert slices(trace) == sorted(["frame", "encode", "model", "decode"] * 8)
    page = flame.read_text(encoding="utf-8")
    assert page.lstrip().lower().startswith("<!doctype html>")
    assert "encode_step" in page
    assert "mix_heads" in page
    # Without a codec there is only the model; the file is replaced.
    few = ["bench", "--config", str(SMALL), "--bits", "4", "--frames", "2", "--trace", str(trace)]
    assert main(few) == 0
    assert slices(trace) == ["frame", "frame", "model", "model"]
    capsys.readouterr()


def test_the_page_shows_who_spends_the_time(tmp_path: Path) -> None:
    def slow_part() -> None:
        time.sleep(0.02)

    def step() -> Timing:
        slow_part()
        return Timing(0.0, 0.02, 0.0)

    flame = tmp_path / "flame.html"
    Profile(None, flame).look(step, 3)
    assert "slow_part" in flame.read_text(encoding="utf-8")


def test_files_are_looked_at_first(tmp_path: Path) -> None:
    with pytest.raises(MoshiError, match=r"the flame plot .* there is no folder"):
        Profile(None, tmp_path / "none" / "flame.html")
    with pytest.raises(MoshiError, match=r"the trace .* it is a folder"):
        Trace(tmp_path)


def test_without_the_profiler_the_way_out_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyinstrument", None)
    with pytest.raises(MoshiError, match=r"moshi-local\[profile\]"):
        Profile(None, tmp_path / "flame.html")
