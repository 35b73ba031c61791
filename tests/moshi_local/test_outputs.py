"""What commands write: never over what they read, said before any work, true when a disk fills."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import soundfile

import moshi_quantize
from moshi_local import cli, offline
from moshi_local.audio.files import FileAudio
from moshi_local.observers.record import Recorder
from moshi_local.port import Read
from moshi_mlx import AudioFileError, MoshiError
from moshi_mlx.errors import CheckpointError
from moshi_mlx.files import new_folder, partial_file, partial_name, replace_file
from moshi_mlx.hub import bundled_folder
from moshi_mlx.outputs import Output, WholeFile, check_outputs, model_inputs
from moshi_mlx.safetensors import write_safetensors
from moshi_mlx.testing import FRAME_SIZE, SAMPLE_RATE
from moshi_mlx.training import cli as training_cli
from moshi_mlx.training.settings import DataSection, LoraSection, RunConfig
from moshi_quantize import cli as quantize_cli
from tests.limits import largest_file

UNKNOWN = "nobody/has-this-model"
"""Looked for only after the outputs."""


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    path = tmp_path / "in.wav"
    soundfile.write(path, np.zeros(SAMPLE_RATE), SAMPLE_RATE)
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(bundled_folder("nano"), folder)
    return folder


def no_process() -> int:
    """The number of a process that has ended."""
    with subprocess.Popen(["true"]) as process:
        return process.pid


# ------------------------------------------------------------------------- before any work


def symlink(path: Path, to: Path) -> Path:
    path.symlink_to(to)
    return path


def hard_link(path: Path, to: Path) -> Path:
    path.hardlink_to(to)
    return path


@pytest.mark.parametrize(
    "name",
    [
        lambda path: path,
        lambda path: symlink(path.parent / "l.wav", path),
        lambda path: hard_link(path.parent / "h.wav", path),
        lambda path: path.parent / "." / ".." / path.parent.name / path.name,
        lambda path: symlink(path.parent / "d", path.parent) / path.name,
    ],
)
def test_an_input_is_no_output_by_any_name(sound: Path, name: Callable[[Path], Path]) -> None:
    before = sound.read_bytes()
    with pytest.raises(MoshiError, match=r"cannot write it .*same file as the input .*in\.wav"):
        check_outputs([Output(name(sound), "it")], [sound])
    assert sound.read_bytes() == before


def test_two_outputs_are_two_files(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for name, other in (
        ("a.json", "a.json"),
        ("a.json", "folder/../a.json"),
        ("old", "link"),
        ("old", "hard"),
        ("not yet", "to it"),
    ):
        (tmp_path / "old").write_text("old")
        for path, make, to in (
            ("link", Path.symlink_to, "old"),
            ("hard", Path.hardlink_to, "old"),
            ("to it", Path.symlink_to, "not yet"),
        ):
            (tmp_path / path).unlink(missing_ok=True)
            make(tmp_path / path, tmp_path / to)
        outputs = [Output(tmp_path / name, "this"), Output(tmp_path / other, "that")]
        with pytest.raises(MoshiError, match=r"cannot write that .*the same file as this"):
            check_outputs(outputs)
    check_outputs([Output(tmp_path / "a.json", "this"), Output(tmp_path / "b.json", "that")])


def test_names_that_differ_in_case_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a disk that ignores case shows: the temporary name of the one is the other's too."""
    outputs = [Output(tmp_path / "a.json", "this"), Output(tmp_path / "A.JSON", "that")]
    if not (tmp_path.parent / tmp_path.name.upper()).exists():
        check_outputs(outputs)
        exact = Path.samefile
        monkeypatch.setattr(
            Path,
            "samefile",
            lambda self, other: exact(self, other.with_name(other.name.lower())),
        )
    with pytest.raises(MoshiError, match=r"cannot write that .*the same file as this"):
        check_outputs(outputs)


def test_standard_output_is_an_output(tmp_path: Path) -> None:
    """`moshi-local --trace t.json > t.json`."""
    before = os.dup(1)
    with (tmp_path / "t.json").open("wb") as file:
        os.dup2(file.fileno(), 1)
    try:
        with pytest.raises(MoshiError, match="the same file as standard output"):
            check_outputs([Output(tmp_path / "t.json", "the trace")])
    finally:
        os.dup2(before, 1)
        os.close(before)


@pytest.mark.parametrize(
    ("path", "kind", "reason"),
    [
        ("none/x", "file", "there is no folder .*none$"),
        ("in.wav/x", "file", "Not a directory"),
        ("loop", "file", "symbolic links"),
        ("x" * 256, "file", "File name too long"),
        (".", "file", "it is a folder"),
        ("socket", "file", "it is not a regular file, a pipe or a character device"),
        ("socket", "stream", "it is not a regular file, a pipe or a character device"),
        (".", "stream", "it is a folder"),
        ("in.wav", "folder", "it is not a folder"),
        ("in.wav/x", "folder", "Not a directory"),
    ],
)
def test_places_that_cannot_be_written(
    sound: Path, path: str, kind: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(sound.parent)
    Path("loop").symlink_to("loop")
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind("socket")
    with pytest.raises(MoshiError, match=f"cannot write it {re.escape(path)}: .*{reason}"):
        check_outputs([Output(Path(path), "it", kind=kind)])  # type: ignore[arg-type]
    assert {each.name for each in sound.parent.iterdir()} == {"in.wav", "loop", "socket"}


def test_text_may_go_to_a_device_or_a_pipe(tmp_path: Path) -> None:
    pipe, picture = tmp_path / "pipe", tmp_path / "pipe.svg"
    for path in (pipe, picture):
        os.mkfifo(path)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    WholeFile(pipe, "the trace").write("whole")
    assert os.read(reader, 99) == b"whole"
    os.close(reader)
    WholeFile(Path("/dev/null"), "the trace").write("whole")
    with pytest.raises(MoshiError, match="the trace /dev/full: No space left on device"):
        WholeFile(Path("/dev/full"), "the trace").write("whole")
    with pytest.raises(MoshiError, match=r"it is not a regular file$"):
        WholeFile(picture, "the picture", [".svg"])
    assert pipe.is_fifo()


def test_a_full_disk_is_found_in_its_own_words(tmp_path: Path) -> None:
    for kind, name in (("file", "x" * 255), ("stream", "events"), ("folder", "new/folder")):
        output = Output(tmp_path / name, "it", kind=kind)  # type: ignore[arg-type]
        with largest_file(0), pytest.raises(MoshiError, match=rf"it .*{name}: File too large"):
            check_outputs([output])
        assert not list(tmp_path.iterdir())
        check_outputs([output])
    with largest_file(0), pytest.raises(CheckpointError, match="q: cannot be made: File too large"):
        moshi_quantize.quantize(UNKNOWN, "q4", tmp_path / "q")


def test_devices_and_pipes_take_events(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    check_outputs([Output(Path("/dev/null"), "the events", kind="stream")])
    check_outputs([Output(tmp_path / "pipe", "the events", kind="stream")])


@pytest.mark.parametrize("command", ["talk", "run", "bench", "report", "hear", "train"])
def test_programs_ask_before_they_look_for_a_model(
    command: str,
    sound: Path,
    model: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(sound.parent)
    link = symlink(Path("in.svg"), sound)
    unknown = ("--model", UNKNOWN)
    weights = next(model_inputs(model))
    cases: dict[str, list[tuple[str | Path, ...]]] = {
        "talk": [
            ("--model", model, "--trace", model / "config.json"),
            ("--model", model, "--events", weights),
            (*unknown, "--trace", "t.json", "--events", "./t.json"),
            (*unknown, "--record", sound),
            (*unknown, "--record", "new/folder", "--trace", "none/t.json"),
        ],
        "run": [
            ("run", sound, "out.wav", "--stereo", *unknown, "--picture", link),
            ("run", sound, "out.wav", "--stereo", *unknown, "--picture", "p.png"),
            ("run", sound, sound, *unknown),
            ("run", sound, "none/out.wav", *unknown),
            ("run", sound, "out.mp3", *unknown),
        ],
        "bench": [
            ("bench", *unknown, "--trace", "a.html", "--flame", "a.html"),
            ("bench", "--model", model, "--trace", model / "config.json"),
            ("bench", *unknown, "--flame", "a.png"),
        ],
        "report": [
            ("report", model, UNKNOWN, "--json", weights),
            ("report", UNKNOWN, model, "--json", "a.png", "--plot", "a.png"),
            ("report", UNKNOWN, UNKNOWN, "--plot", "a.gif"),
            ("report", UNKNOWN, UNKNOWN, "--dialogue", sound, "--json", sound),
        ],
        "hear": [("hear", UNKNOWN, sound, sound), ("hear", UNKNOWN, sound, "none/a.npz")],
        "train": [],
    }
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    main = quantize_cli.main if command in ("report", "hear") else cli.main
    for arguments in cases[command]:
        assert main([str(each) for each in arguments]) == 2
        assert " cannot write the " in capsys.readouterr().err, arguments
    if command == "train":
        data = DataSection(train=Path("run/adapter/manifest.jsonl"))
        Path("run/adapter").mkdir(parents=True)
        data.train.write_text("")
        for run in (Path("run"), sound):
            config = RunConfig(
                model=UNKNOWN, data=data, lora=LoraSection(), run_dir=run, max_steps=1
            )
            with pytest.raises(MoshiError, match="cannot write the run's"):
                training_cli.run(config)
        shutil.rmtree("run")
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before
    assert not Path("new").exists()


# --------------------------------------------------------------------------------- leftovers


def test_what_killed_programs_left_is_swept(tmp_path: Path) -> None:
    target, gone, runs = tmp_path / "out.wav", no_process(), os.getppid()
    for number in (gone, runs):
        (tmp_path / f".out.wav.{number}.partial").write_text("left")
        (tmp_path / f".in.wav.{number}.partial").write_text("of another output")
    check_outputs([Output(target, "it")])
    here = partial_name(target).name.partition("-")[2]
    for owner in (f"{gone}-00000000", f"{runs}-{here.removesuffix('.partial')}"):
        for name, days in (("new", 6), ("old", 8)):
            left = tmp_path / f".{name}.{owner}.partial"
            left.write_text("left")
            os.utime(left, (time.time() - 86_400 * days,) * 2)
            check_outputs([Output(tmp_path / name, "it")])
            assert left.exists() == (days < 7)
            left.unlink(missing_ok=True)
    assert {path.name for path in tmp_path.glob(".*")} == {
        f".out.wav.{runs}.partial",
        f".in.wav.{runs}.partial",
        f".in.wav.{gone}.partial",
    }
    left = tmp_path / f".moshi-2026-11-22T22-45-10.flac.{gone}.partial"
    left.write_text("of a recording")
    with Recorder(tmp_path, sample_rate=SAMPLE_RATE, frame_size=FRAME_SIZE, model="nano", seed=0):
        assert not left.exists()
    weights = tmp_path / "w.safetensors"
    (tmp_path / f".w.safetensors.{gone}.partial.safetensors").write_text("left")
    write_safetensors(weights, {"a": mx.zeros(1)})
    assert not list(tmp_path.glob(".w*"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    program = (
        "import sys, time\nfrom pathlib import Path\n"
        "from moshi_mlx.files import partial_file\n"
        "with partial_file(Path('x')) as partial:\n"
        "    partial.write_text('half')\n    print(flush=True)\n    time.sleep(60)\n"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert len(list(tmp_path.iterdir())) == 1
        process.send_signal(number)
        assert process.wait(10) != 0
    assert not list(tmp_path.iterdir())


def test_long_names_have_a_temporary_name(tmp_path: Path) -> None:
    names = ["x" * 255, "x" * 254 + "y", "é" * 127, ".hidden"]
    partials = {partial_name(tmp_path / name).name for name in names}
    assert len(partials) == len(names)
    for name in names:
        replace_file(tmp_path / name, [name.encode()])
    assert {path.read_text() for path in tmp_path.iterdir()} == set(names)


def test_other_threads_and_handlers_are_left_alone(tmp_path: Path) -> None:
    def write() -> None:
        with partial_file(tmp_path / "x"):
            found.append(signal.getsignal(signal.SIGTERM))

    found: list[object] = []
    thread = threading.Thread(target=write)
    thread.start()
    thread.join()
    assert found == [signal.SIG_DFL]
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        write()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert found[1] == signal.SIG_IGN
    with new_folder(tmp_path / "folder", 0):
        assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


# --------------------------------------------------------------------- a disk that fills up


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_an_answer_that_does_not_fit(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 5 * SAMPLE_RATE)
    soundfile.write(tmp_path / "in.wav", noise, SAMPLE_RATE)
    target = tmp_path / f"out{suffix}"
    target.write_text("old")
    port = FileAudio(
        tmp_path / "in.wav", target, sample_rate=SAMPLE_RATE, frame_size=FRAME_SIZE, stereo=True
    )
    pcm = np.zeros(FRAME_SIZE, np.float32)

    def answer() -> None:
        with port:
            while port.read(pcm, 0.0) is not Read.END:
                port.write(pcm)

    refused = rf"^cannot write .*out{suffix}: File too large$"
    with largest_file(50_000), pytest.raises(AudioFileError, match=refused):
        answer()
    assert target.read_text() == "old"
    assert {path.name for path in tmp_path.iterdir()} == {"in.wav", target.name}


def test_a_picture_that_does_not_fit_is_told_after_the_answer(
    tmp_path: Path, sound: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def draw(*arguments: object) -> None:
        with largest_file(100):
            drawn(*arguments)  # type: ignore[arg-type]

    drawn = offline.draw_conversation
    monkeypatch.setattr(offline, "draw_conversation", draw)
    arguments = ["run", sound, tmp_path / "out.wav", "--stereo", "--tail", "0", "--json"]
    assert cli.main([*map(str, arguments), "--picture", str(tmp_path / "p.svg")]) == 2
    said = capsys.readouterr()
    assert said.err.splitlines()[-1].endswith("cannot write the picture "
                                              f"{tmp_path / 'p.svg'}: File too large")  # fmt: skip
    assert '"frames": 13' in said.out
    assert {path.name for path in tmp_path.iterdir()} == {"in.wav", "out.wav"}


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    """MLX says that it could not write, and not why."""
    path = tmp_path / "w.safetensors"
    path.write_text("old")
    with largest_file(5000), pytest.raises(CheckpointError, match=r"written: File too large$"):
        write_safetensors(path, {"a": mx.zeros(5000)})
    assert [each.read_text() for each in tmp_path.iterdir()] == ["old"]


def test_figures_that_do_not_fit(tmp_path: Path) -> None:
    file = WholeFile(tmp_path / "figures.json", "the figures")
    with largest_file(100), pytest.raises(MoshiError, match=r"figures\.json: File too large$"):
        file.write("1" * 101)
    assert not list(tmp_path.iterdir())
    (tmp_path / "link").symlink_to("figures.json")
    WholeFile(tmp_path / "link", "the figures").write("new")
    assert (tmp_path / "figures.json").read_text() == "new"
    assert (tmp_path / "link").is_symlink()


@pytest.mark.parametrize(
    ("unbuffered", "command"),
    [
        ("", ["moshi_local", "devices", "--json"]),
        ("1", ["moshi_local", "--help"]),
        ("", ["moshi_mlx.training", "--fields"]),
        ("1", ["moshi_mlx.training", "--help"]),
        ("1", ["moshi_quantize", "--help"]),
    ],
)
def test_a_full_standard_output_is_one_line(unbuffered: str, command: list[str]) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", *command],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.split(": ", 1)[1] == "standard output: No space left on device\n"
