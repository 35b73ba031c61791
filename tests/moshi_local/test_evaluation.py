"""`moshi-local evaluate`: nano through all axes, resumed, published folders, refusals."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

import moshi_mlx
from moshi_local.cli import main
from moshi_mlx import Moshi
from moshi_mlx.conversation_bench import (
    Axis,
    Bench,
    BenchOptions,
    at_level,
    in_noise,
    room_response,
    sounding_level,
)
from moshi_mlx.conversation_bench.acoustics import with_pause
from moshi_mlx.conversation_bench.running import run_scenes
from moshi_mlx.conversation_bench.scenes import made_scenes
from moshi_mlx.conversation_bench.speakers import BundledQuestions, RecordedSpeakers, ScenePart
from moshi_mlx.hub import bundled_folder

RATE = 24_000
QUESTION = bundled_folder("nano") / "question.wav"


@pytest.fixture(scope="module")
def voices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """RecordedSpeakers of all parts: pieces of the bundled question."""
    folder = tmp_path_factory.mktemp("voices")
    bundled = BundledQuestions(QUESTION, RATE)
    said = {u.text: u.pcm for u in bundled._said}
    for part in ScenePart:
        (folder / part.value).mkdir()
        pcm = said["hello" if part is ScenePart.BACKCHANNEL else "count to five"]
        if part is ScenePart.STORY:
            pcm = np.concatenate([pcm, np.zeros(RATE), pcm, np.zeros(RATE), pcm])
        soundfile.write(folder / part.value / "a.wav", pcm, RATE)
    (folder / "questions" / "a.txt").write_text("count to five\n")
    return folder


def run(*arguments: str) -> int:
    return main(["evaluate", *arguments])


def test_nano_from_end_to_end_and_again(
    tmp_path: Path, voices: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, figures, picture = (tmp_path / name for name in ("out", "figures.json", "bars.svg"))
    asked = ["nano", "--scenes", "1", "--voice-files", str(voices), "--out", str(out)]
    assert run(*asked, "--json", str(figures), "--picture", str(picture)) == 0
    table = capsys.readouterr().out
    found = json.loads(figures.read_text())
    assert set(found["figures"]) == {axis.value for axis in Axis}
    assert found["fixed_sentences"] is True
    assert "takes over in a pause" in table
    assert picture.read_text().startswith("<svg")
    # A question that nano knows, by a voice that it knows.
    assert found["figures"]["turn_taking"]["takeover"] == 1.0
    assert 0.1 < found["figures"]["turn_taking"]["latency"] < 1.0
    assert found["scenes"][2]["text"] == "One, two, three, four, five."
    kept = out / "turn_taking" / "0"
    for name in ("input.wav", "output.wav"):
        assert soundfile.info(kept / name).frames == soundfile.info(kept / "input.wav").frames
    words = json.loads((kept / "output.json").read_text())
    assert words["chunks"][0]["text"] == "One,"
    # What is there is not run again: it is taken as it stands.
    shutil.rmtree(out / "pause_handling")
    words["chunks"] = []
    (kept / "output.json").write_text(json.dumps(words))
    assert run(*asked, "--json", "-") == 0
    again = json.loads(capsys.readouterr().out)
    assert again["figures"]["turn_taking"]["takeover"] == 0.0
    for axis in set(Axis) - {Axis.TURN, Axis.BACKCHANNEL}:
        old, new = (f["figures"][axis.value] for f in (found, again))
        assert old == pytest.approx(new, abs=0.02), axis  # 16-bit samples on the disk
    # Another seed is another run.
    assert run(*asked, "--seed", "1") == 2
    assert "another model, seed or user" in capsys.readouterr().err


def test_alone_or_side_by_side(voices: Path) -> None:
    moshi = moshi_mlx.load("nano", codec="mlx")
    assert isinstance(moshi, Moshi)
    speakers = RecordedSpeakers(voices, RATE)
    axes = [Axis.TURN, Axis.INTERRUPTION, Axis.BACKCHANNEL]

    def texts(at_once: int) -> dict[str, str]:
        scenes = made_scenes(axes, 1, speakers, RATE, 3)
        talks = run_scenes(moshi, scenes, at_once=at_once)
        return {t.marks.axis: " ".join(w.text for w in t.words) for t in talks}

    assert texts(1) == texts(3)


def sample(folder: Path, files: dict[str, Any]) -> Path:
    """A published sample: nano's question, and marks."""
    folder.mkdir(parents=True)
    shutil.copyfile(QUESTION, folder / "input.wav")
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    return folder


def test_published_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "v1"
    turn = sample(
        root / "candor_turn_taking" / "7",
        {"turn_taking.json": [{"text": "[TURN-TAKING]", "timestamp": [1.1, 2.0]}]},
    )
    overlap = {"context_text": "hello", "current_turn_text": "who", "timestamps": [4.2, 5.1]}
    sample(root / "talking_to_other" / "1", {"metadata.json": overlap})
    assert run("nano", "--full-duplex-bench", str(root), "--json", "-") == 0
    found = json.loads(capsys.readouterr().out)
    assert [s["scene"] for s in found["scenes"]] == ["candor_turn_taking/7", "talking_to_other/1"]
    assert found["figures"]["turn_taking"]["takeover"] == 1.0
    assert found["speakers"] == "published"
    assert soundfile.info(turn / "output.wav").frames == soundfile.info(turn / "input.wav").frames
    (turn / "output.json").unlink()  # an answer that is not ours
    assert run("nano", "--full-duplex-bench", str(root)) == 2
    assert "give a new folder with --out" in capsys.readouterr().err
    only = ["--only", "turn_taking", "--out", str(tmp_path / "out")]
    assert run("nano", "--full-duplex-bench", str(root), *only) == 0
    assert (tmp_path / "out" / "candor_turn_taking" / "7" / "output.wav").is_file()


@pytest.mark.parametrize(
    ("name", "files", "message"),
    [
        ("candor_turn_taking", {}, "turn_taking.json: cannot be read"),
        ("candor_turn_taking", {"turn_taking.json": []}, "must be a list of objects"),
        (
            "candor_turn_taking",
            {"turn_taking.json": [{"timestamp": ["a", 2]}]},
            "field 'timestamp' must be two times",
        ),
        ("user_backchannel", {"metadata.json": {"timestamps": [3, 1]}}, "must go forward"),
        ("user_backchannel", {"metadata.json": {}}, "'timestamps' must be two times"),
        ("synthetic_user_interruption", {}, "interrupt.json: cannot be read"),
    ],
)
def test_broken_samples(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    files: dict[str, Any],
    message: str,
) -> None:
    sample(tmp_path / name / "1", files)
    assert run("nano", "--full-duplex-bench", str(tmp_path)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("moshi-local: ") == 1


def test_what_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "candor_turn_taking").mkdir()
    for arguments, message in (
        (["--voice-files", "none"], "there is no such folder of recordings"),
        (["--voice-files", str(tmp_path / "empty")], "has no recordings"),
        (["--full-duplex-bench", "none"], "there is no such folder of Full-Duplex-Bench"),
        (["--full-duplex-bench", str(tmp_path / "empty")], "has no set of Full-Duplex-Bench"),
        (["--full-duplex-bench", str(tmp_path)], "has no samples"),
        (["--ears", str(tmp_path / "empty")], "whisper"),
        (["--picture", str(tmp_path / "a.png")], "must end in .svg"),
        (["--only", "nothing"], "nothing"),
    ):
        assert run("nano", *arguments) == 2, arguments
        error = capsys.readouterr().err.lower()
        assert message.lower() in error, (arguments, error)
        assert "traceback" not in error
    assert main(["evaluate", "nano-stt"]) == 2
    assert "can transcribe, but not talk" in capsys.readouterr().err


def test_axes_without_a_voice_are_named(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", BundledQuestions(QUESTION, RATE)._said[0].pcm, RATE)
    bench = Bench(BenchOptions(recordings=tmp_path), RATE)
    assert set(bench.left_out) == {
        Axis.BACKCHANNEL,
        Axis.USER_BACKCHANNEL,
        Axis.OTHERS,
        Axis.BACKGROUND,
    }
    assert bench.count == 30


def test_rooms_and_levels_are_what_they_say() -> None:
    rng = np.random.default_rng(0)
    response = room_response(RATE, 0.35, 3.0, rng)
    tail = response[1:].astype(np.float64)
    assert 10 * np.log10(1 / np.sum(tail**2)) == pytest.approx(3.0, abs=0.01)
    # Schroeder's backward integral falls by 60 dB in RT60: here from -5 to -25 dB, times three.
    fall = 10 * np.log10(np.cumsum(tail[::-1] ** 2)[::-1] / np.sum(tail**2))
    five, twenty_five = (int(np.argmax(fall < level)) / RATE for level in (-5, -25))
    assert 3 * (twenty_five - five) == pytest.approx(0.35, rel=0.1)
    tone = np.sin(np.arange(RATE) * 0.05).astype(np.float32)
    assert sounding_level(at_level(tone, RATE, -25), RATE) == pytest.approx(-25, abs=0.1)
    padded = np.pad(at_level(tone, RATE, -25), RATE)  # silence around it doesn't count
    assert sounding_level(padded, RATE) == pytest.approx(-25, abs=0.1)
    noisy = in_noise(padded, RATE, 15.0, rng)
    floor = 20 * np.log10(np.sqrt(np.mean(noisy[:RATE] ** 2)))
    assert floor == pytest.approx(-40, abs=0.5)


def test_ctrl_c_keeps_what_is_finished(tmp_path: Path, voices: Path) -> None:
    out = tmp_path / "out"
    asked = ["evaluate", "nano", "--scenes", "4", "--only", "turn_taking", "--side-by-side", "1"]
    command = [sys.executable, "-m", "moshi_local", *asked, "--out", str(out)]
    process = subprocess.Popen(
        [*command, "--voice-files", str(voices)], stderr=subprocess.PIPE, text=True
    )
    first = out / "turn_taking" / "0" / "output.json"
    deadline = time.monotonic() + 60
    while not first.is_file() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "kept in" in error
    assert "Traceback" not in error
    finished = len(list(out.rglob("output.json")))
    assert 1 <= finished < 4
    assert not list(out.rglob("*.partial*"))


def test_a_pause_is_put_in_a_quiet_place() -> None:
    tone = np.sin(np.arange(RATE) * 0.1).astype(np.float32)
    tone[RATE // 2 : RATE // 2 + RATE // 10] *= 0.001
    paused, (start, end) = with_pause(tone, RATE, 0.7)
    assert len(paused) == len(tone) + round(0.7 * RATE)
    assert 0.5 <= start < 0.6
    assert end - start == pytest.approx(0.7)
    assert not paused[round(start * RATE) : round(end * RATE)].any()
