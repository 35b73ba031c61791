"""The command line: options, errors on one line, and short real runs with nano."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import soundfile

import moshi_local
import moshi_mlx
from moshi_local import cli, offline
from moshi_local.chat import ChatOptions
from moshi_local.cli import SamplingFlags, main
from moshi_mlx import Sampling
from moshi_mlx.backend import default_dtype
from moshi_mlx.hub import bundled_folder

RATE = 24_000


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """Half a second of noise, at a rate that has to be changed."""
    path = tmp_path / "in.wav"
    noise = 0.01 * np.random.default_rng(0).standard_normal((8000, 2))
    soundfile.write(path, noise, 16_000)
    return path


def error_line(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The one line on stderr of a command that must fail with exit code 2."""
    assert main([str(a) for a in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    line = captured.err.splitlines()[-1]
    assert line.startswith("moshi-local: ")
    assert all(other.startswith(("loading ", "codec ")) for other in captured.err.splitlines()[:-1])
    return line


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"moshi-local {moshi_mlx.__version__}\n"


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"]])
def test_help_names_the_options(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    text = capsys.readouterr().out
    for option in ("--model", "--codec", "--seed", "--temperature", "--top-k", "--json"):
        assert option in text


def test_public_names_are_there() -> None:
    for name in moshi_local.__all__:
        assert hasattr(moshi_local, name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-q", "5"], "'--quantized': must be 4 or 8"),
        (["-q", "4", "--model", "nano"], "--model goes neither"),
        (["--seed", "1", "run", "a.wav", "b.wav"], "options of run go after run"),
        (["--nonsense"], "No such option"),
        (["dance"], "No such command"),
        (["run"], "Missing argument"),
        (["run", "a.wav", "b.wav", "--top-p", "2"], "--top-p"),
        (["run", "a.wav", "b.wav", "--kv-bits", "5"], "'--kv-bits': must be 4 or 8"),
        (["--kv-bits", "16"], "'--kv-bits': must be 4 or 8"),
        (["bench", "--kv-bits", "0"], "'--kv-bits': must be 4 or 8"),
        (["run", "", "b.wav"], "the argument after 'run' is empty"),
        (["run", "none.wav", "b.wav"], "there is no file none.wav"),
        (
            ["run", "a.wav", "b.wav", "--tail", "-1"],
            "'--tail': must be a number from 0 to 3600",
        ),
        (["run", "a.wav", "b.wav", "--seed", "x"], "'--seed': must be a whole number from 0 to 42"),
        (["--codec", "gpu"], "'--codec': 'gpu' is not one of 'auto', 'mlx', 'rust'."),
        (["bench", "--bits", "4"], "--bits goes with --config"),
    ],
)
def test_wrong_use_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in error_line(capsys, *arguments)


def test_unknown_model_is_one_line(recording: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = recording.with_name("out.wav")
    assert "nanoo" in error_line(capsys, "run", recording, target, "--model", "nanoo")
    assert not target.exists()


def test_a_refused_conversation_leaves_no_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "new" / "kept"
    error_line(capsys, "--record", folder, "--input", "no such microphone")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "model"),
    [((None, None, None), None), ((None, 4, None), "moshiko-q4"), ((None, 8, None), "moshiko-q8"),
     (("moshika-q8", None, None), "moshika-q8"), ((None, 4, "a/b"), "a/b")],
)  # fmt: skip
def test_options_that_name_a_model(
    arguments: tuple[str | None, int | None, str | None], model: str | None
) -> None:
    assert cli.named_model(*arguments) == model


def test_sampling_flags_change_only_what_they_say() -> None:
    default, greedy = Sampling(temperature=0.7, top_k=25), Sampling(temperature=0.0, top_k=1)
    assert SamplingFlags().text(default) is None
    assert SamplingFlags(temperature=0.5).text(default) is None
    assert SamplingFlags(temperature=0.5).audio(default) == Sampling(temperature=0.5, top_k=25)
    assert SamplingFlags(min_p=0.1).text(default) == Sampling(0.7, 25, min_p=0.1)
    assert SamplingFlags(temperature_text=0.7).text(greedy) == Sampling(temperature=0.7)
    assert SamplingFlags(temperature=0.0).audio(default) == Sampling(temperature=0.0, top_k=25)


@pytest.mark.gpu
def test_run_writes_the_answer_and_a_summary(
    recording: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = recording.with_name("out.wav")
    arguments = ["run", str(recording), str(target), "--json", "--stereo", "--tail", "0.5"]
    assert main(arguments) == 0
    summary = json.loads(capsys.readouterr().out)
    both, rate = soundfile.read(target)
    assert (rate, both.shape) == (RATE, (14 * 1920, 2))
    assert summary["frames"] == 14
    assert summary["seconds"] == pytest.approx(14 * 0.08)
    assert 0 < summary["real_time_factor"] < 100
    assert summary["frame_ms"]["p50"] <= summary["frame_ms"]["max"]
    assert both[:, 0].any()


def test_of_a_cut_and_long_recording_both_is_told(
    recording: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(offline, "LONG_SECONDS", 0.2)
    recording.write_bytes(recording.read_bytes()[:-12_000])
    assert main(["run", str(recording), str(recording.with_name("out.wav")), "--tail", "0"]) == 0
    notes = capsys.readouterr().err
    assert f"{recording} has 0 min of sound: about 0 min of work\n" in notes
    (line,) = caplog.messages
    assert line == f"{recording} ends after 0.31 s: 0.19 s that its header promises are missing"


def test_lengths_are_told_in_hours_and_minutes() -> None:
    told = [offline._duration(seconds) for seconds in (601, 3569, 3571, 11_110)]
    assert told == ["10 min", "59 min", "1 h 00 min", "3 h 05 min"]


def test_run_is_the_same_with_the_same_seed(recording: Path) -> None:
    first, second, other = (recording.with_name(f"{n}.wav") for n in "abc")
    options = ["--temperature", "4", "--top-k", "0", "--tail", "0.4"]
    for target, seed in ((first, "3"), (second, "3"), (other, "4")):
        assert main(["run", str(recording), str(target), "--seed", seed, *options]) == 0
    assert first.read_bytes() == second.read_bytes()
    assert first.read_bytes() != other.read_bytes()


@pytest.mark.gpu
def test_kv_bits_reach_the_session(
    recording: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sessions: list[int | None] = []
    make = moshi_mlx.Moshi.session

    def seen(moshi: moshi_mlx.Moshi, **given: Any) -> moshi_mlx.Session:
        sessions.append(given["kv_bits"])
        return make(moshi, **given)

    monkeypatch.setattr(moshi_mlx.Moshi, "session", seen)
    arguments = ["run", str(recording), str(recording.with_name("out.wav")), "--tail", "0"]
    assert main(arguments) == 0
    assert main([*arguments, "--kv-bits", "8"]) == 0
    capsys.readouterr()
    assert main(["bench", "--frames", "1", "--kv-bits", "4", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kv_bits"] == 4
    assert sessions == [None, 8, 4]
    live: list[ChatOptions] = []
    monkeypatch.setattr(cli, "chat", live.append)
    assert main(["--kv-bits", "8"]) == 0
    assert live[0].kv_bits == 8


def test_float16_answers_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    question = bundled_folder("nano") / "question.wav"
    loaded: list[mx.Dtype] = []
    load = moshi_mlx.load

    def seen(name: str, **given: Any) -> moshi_mlx.Moshi:
        moshi = load(name, **given)
        loaded.append(moshi.lm.out_norm.weight.dtype)
        return moshi

    said = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(moshi_mlx, "load", seen)
        for option in ([], ["--float16"]):
            arguments = ["run", str(question), str(tmp_path / "out.wav"), "--json", *option]
            assert main(arguments) == 0
            said.append([word["text"] for word in json.loads(capsys.readouterr().out)["words"]])
    assert loaded == [default_dtype(), mx.float16]
    assert said[0] == said[1] != []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_run_leaves_no_file(tmp_path: Path, number: signal.Signals) -> None:
    source, target = tmp_path / "in.wav", tmp_path / "out.wav"
    soundfile.write(source, np.zeros(600 * RATE), RATE)
    command = [sys.executable, "-m", "moshi_local", "run", str(source), str(target)]
    run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert run.stderr is not None
    assert any(line.startswith("codec ") for line in run.stderr)  # the model is loaded
    deadline = time.monotonic() + 60
    while len(list(tmp_path.iterdir())) == 1 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(list(tmp_path.iterdir())) == 2, "the output under its temporary name"
    run.send_signal(number)
    try:
        _, errors = run.communicate(timeout=30)
    finally:
        run.kill()
    assert run.returncode == 128 + number
    assert errors.splitlines()[-1] == f"moshi-local: stopped; {target} was not written"
    assert [p.name for p in tmp_path.iterdir()] == ["in.wav"]
