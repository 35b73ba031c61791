"""What a command writes: looked at first, and never put over an input or another output."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import soundfile

from moshi_local.cli import main
from moshi_mlx import MoshiError
from moshi_mlx.files import partial_file, partial_name, replace_file
from moshi_mlx.hub import bundled_folder
from moshi_mlx.outputs import Output, WholeFile, check_outputs, is_stdout, model_inputs
from moshi_quantize.cli import main as quantize_main

NANO = bundled_folder("nano")
GONE = 2**22 + 1
"""No process has such a number."""


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    path = tmp_path / "in.wav"
    soundfile.write(path, np.zeros(2400), 24_000)
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def refused(arguments: Sequence[object], capsys: pytest.CaptureFixture[str]) -> str:
    """What a command says that ends before its work: no model is looked for."""
    assert main([str(argument) for argument in arguments]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "loading" not in said
    return said


def test_outputs_that_are_inputs(sound: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = sound.parent
    before = sound.read_bytes()
    (folder / "link.wav").symlink_to(sound)
    os.link(sound, folder / "hard.wav")
    (folder / "sub").mkdir()
    (folder / "link.svg").symlink_to(sound)
    for out in ("in.wav", "link.wav", "hard.wav", "sub/../in.wav"):
        assert "same file as the input" in refused(["run", sound, folder / out], capsys)
    picture = ["run", sound, folder / "out.wav", "--stereo", "--picture", folder / "link.svg"]
    assert "same file as the input" in refused(picture, capsys)
    assert sound.read_bytes() == before
    assert names(folder) == ["hard.wav", "in.wav", "link.svg", "link.wav", "sub"]


def test_a_models_own_files_are_inputs(tmp_path: Path, sound: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(NANO, model)
    (tmp_path / "w.wav").symlink_to(model / "model.safetensors")
    found = set(model_inputs(model))
    assert {model / "model.safetensors", model / "config.json"} <= found
    with pytest.raises(MoshiError, match=r"same file as the input .*model.safetensors"):
        check_outputs([Output(tmp_path / "w.wav", "the answer")], model_inputs(str(model)))
    assert NANO / "mimi.safetensors" in set(model_inputs("nano"))


def test_two_outputs_of_one_name(sound: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = sound.parent
    out = folder / "out.flac"
    (folder / "sub").mkdir()
    with pytest.raises(MoshiError, match=r"the picture .*: the answer goes there too"):
        check_outputs(
            [Output(out, "the answer"), Output(folder / "sub/../out.flac", "the picture")]
        )
    (folder / "link.svg").symlink_to(out)
    said = refused(["run", sound, out, "--stereo", "--picture", folder / "link.svg"], capsys)
    assert "the answer goes there too" in said
    assert names(folder) == ["in.wav", "link.svg", "sub"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("none/out.svg", "there is no folder"),
        ("in.wav/out.svg", "Not a directory"),
        ("out.gif", "must end in"),
        ("folder.svg", "it is a folder"),
        ("x" * 300 + ".svg", "File name too long"),
    ],
)
def test_a_picture_that_cannot_be(
    name: str, reason: str, sound: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (sound.parent / "folder.svg").mkdir()
    arguments = [
        "run",
        sound,
        sound.parent / "out.wav",
        "--stereo",
        "--picture",
        sound.parent / name,
    ]
    said = refused([*arguments, "--model", "no/such-model"], capsys)
    assert reason in said
    assert Path(name).name in said
    assert names(sound.parent) == ["folder.svg", "in.wav"]


def test_other_outputs_are_looked_at_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    none = tmp_path / "none" / "file"
    for command in (
        ["bench", "--model", "no/such-model", "--trace", none],
        ["--model", "no/such-model", "--trace", none],
        ["--model", "no/such-model", "--events", none],
        ["--model", "no/such-model", "--record", "/dev/null/x"],
    ):
        assert "cannot write" in refused(command, capsys)
    for arguments in (
        ["report", "no/such", "no/other", "--json", none, "--dialogue", "nano"],
        ["hear", "no/such", NANO / "question.wav", none.with_suffix(".npz")],
    ):
        assert quantize_main([str(argument) for argument in arguments]) == 2
        assert "there is no folder" in capsys.readouterr().err


def test_the_disk_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In the system's own words, with the file's name; nothing stays."""

    def full(self: Path, data: bytes) -> int:
        raise OSError(28, os.strerror(28), str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(MoshiError, match=r"out\.wav: No space left on device"):
        check_outputs([Output(tmp_path / "out.wav", "the answer")])
    with pytest.raises(MoshiError, match=r"new/deep: No space left on device"):
        check_outputs([Output(tmp_path / "new" / "deep", "the recording into", kind="folder")])
    assert names(tmp_path) == []


def test_streams_may_be_devices(tmp_path: Path) -> None:
    check_outputs([Output(Path("/dev/null"), "the events", kind="stream")])
    with pytest.raises(MoshiError, match="not a regular file"):
        check_outputs([Output(Path("/dev/null"), "the trace")])
    with pytest.raises(MoshiError, match="it is a folder"):
        check_outputs([Output(tmp_path, "the events", kind="stream")])
    assert not is_stdout(Path("/dev/null"))


def test_a_replaced_folder_has_no_input_in_it(tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (manifest := tmp_path / "run" / "checkpoints" / "train.jsonl").touch()
    output = Output(tmp_path / "run" / "checkpoints", "the checkpoints", kind="replaced folder")
    with pytest.raises(MoshiError, match=r"the input .*train\.jsonl is in it"):
        check_outputs([output], [manifest])
    check_outputs([output], [tmp_path / "other.jsonl", None])


def test_what_killed_programs_left_is_swept(tmp_path: Path) -> None:
    """Of the same target, and only if their process is gone."""
    target = tmp_path / "out.wav"
    gone, other = tmp_path / f".out.wav.{GONE}.partial", tmp_path / f".in.wav.{GONE}.partial"
    living = tmp_path / f".out.wav.{os.getppid()}.partial"
    for path in (gone, other, living):
        path.touch()
    check_outputs([Output(target, "the answer")])
    assert names(tmp_path) == sorted([other.name, living.name])
    gone.touch()
    replace_file(target, [b"whole"])
    assert names(tmp_path) == sorted([other.name, living.name, "out.wav"])


def test_a_whole_file_or_none(tmp_path: Path) -> None:
    target, link = tmp_path / "trace.json", tmp_path / "link.json"
    target.write_text("old")
    link.symlink_to(target)
    WholeFile(link, "the trace").write("new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    partial = partial_name(target)
    with suppress(ZeroDivisionError), partial_file(target) as given:
        assert given == partial
        partial.write_text("half")
        raise ZeroDivisionError
    assert (target.read_text(), names(tmp_path)) == ("new", ["link.json", "trace.json"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_runs_leave_nothing(number: signal.Signals, tmp_path: Path) -> None:
    """What was being written is removed at once."""
    code = (
        "import pathlib, time\n"
        "from moshi_mlx.files import partial_file\n"
        f"with partial_file(pathlib.Path({str(tmp_path / 'out')!r})) as partial:\n"
        "    partial.touch()\n"
        "    print('here', flush=True)\n"
        "    time.sleep(60)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "here\n"
    time.sleep(0.05)
    assert names(tmp_path)
    child.send_signal(number)
    child.communicate(timeout=30)
    assert child.returncode != 0
    assert names(tmp_path) == []
