"""The benchmarks of a GPU and of the slowest frames run, with small models on the CPU."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import gpu, slowest

ROOT = Path(__file__).parents[2]


def run(module: str, *arguments: str) -> tuple[int, str]:
    """Exit code and output of a benchmark."""
    command = [sys.executable, "-m", f"benchmarks.{module}", *arguments]
    done = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    return done.returncode, done.stdout


def test_gpu_measures_and_writes_json(tmp_path: Path) -> None:
    """PyTorch is not there, which is a line and no failure."""
    target = tmp_path / "gpu.json"
    parts = ["device", "4 bits", "torch", "ways"]
    code, said = run(
        "gpu", "--small", "--torch", str(empty_python(tmp_path)), "--json", str(target), *parts
    )
    assert code == 0, said
    report = json.loads(target.read_text())
    assert list(report) == parts
    assert report["device"]["mlx"]
    steps = report["4 bits"]
    assert steps["frames"] == steps["on the way"][-1]["frame"] == 60
    assert len(steps["worst"]) == slowest.WORST
    assert steps["worst"][0]["ms"] == pytest.approx(steps["frame_ms"]["max"], abs=0.01)
    assert report["torch"]["left out"] == "No module named 'torch'"
    assert report["ways"]["not compiled"]["p50"] > 0


def empty_python(folder: Path) -> Path:
    """A Python without packages."""
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "$@"\n')
    python.chmod(0o755)
    return python


def test_gpu_keeps_what_was_found_and_leaves_out_the_rest(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A part that is stopped or fails is named; with no time left nothing begins."""
    target = tmp_path / "gpu.json"

    def main(seconds: float, *others: str) -> int:
        arguments = ["gpu", "--small", "--json", str(target), "--seconds", str(seconds), *others]
        monkeypatch.setattr(sys, "argv", arguments)
        return gpu.main()

    assert main(0, "device") == 0
    assert json.loads(target.read_text()) == {"device": {"left out": "no time left"}}
    monkeypatch.setitem(gpu.PARTS, "numbers", gpu.Part(gpu.numbers, limit=0.0))
    assert main(60, "numbers") == 0
    assert json.loads(target.read_text())["numbers"]["stopped"] == "after 0 s"
    assert main(60, "--torch", str(tmp_path / "nothing"), "torch") == 1
    assert "No such file" in json.loads(target.read_text())["torch"]["failed"]
    assert capsys.readouterr().out.splitlines()[-1] == "wrong or failed: torch"


def test_slowest_frames_of_a_session() -> None:
    code, said = run("slowest", "--frames", "12", "--runs", "2")
    *lines, last = said.splitlines()
    runs = sum(line.startswith("run ") for line in lines)
    assert 2 <= runs <= 4, said
    assert sum(f"of {runs} runs" in line for line in lines) == runs * slowest.WORST
    assert code == int("in every run: 0 " not in last), said


def test_a_frame_that_is_slow_in_every_run() -> None:
    """Frame 7 is slow by itself, 3 and 5 were the machine."""
    runs = np.full((3, 40), 0.01)
    runs[:, 7] = 0.016
    runs[0, 3] = runs[2, 5] = 0.5
    slow = slowest.slow_in(list(runs))
    assert np.flatnonzero(slow.all(axis=0)).tolist() == [7]
    assert slow.sum(axis=1).tolist() == [2, 1, 2]
    assert slowest.worst(runs[0], 2) == [
        {"frame": 3, "ms": 500.0, "ratio": 50.0},
        {"frame": 7, "ms": 16.0, "ratio": 1.6},
    ]


def test_the_table_of_macs_is_in_the_documents() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.macs"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() in (ROOT / "docs" / "mac.md").read_text(encoding="utf-8")
