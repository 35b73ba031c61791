"""`moshi-local transcribe`: recordings in every format, what is refused, the microphone live."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

import moshi_mlx
from moshi_local.cli import main
from moshi_local.observers.transcript import subtitles_as_srt, subtitles_as_vtt
from moshi_local.word_formats import WordFormat, word_writer
from moshi_mlx import Stt, Word
from moshi_mlx.hub import bundled_folder
from tests import rig
from tests.fixtures import make_stt

HELIUM = str(Path(make_stt.__file__).parent / "helium" / "helium")
QUESTION = bundled_folder("nano") / "question.wav"
SECONDS = {"one": 2.0, "two": 3.5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_stt.write(tmp_path_factory.mktemp("models") / "stt")


@pytest.fixture(scope="module")
def model(folder: Path) -> Stt:
    found = moshi_mlx.load(folder, verb="transcribe", codec="mlx")
    assert isinstance(found, Stt)
    return found


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Noise of two lengths, stereo, at a rate that has to be changed."""
    there = tmp_path_factory.mktemp("sounds")
    rng = np.random.default_rng(0)
    for name, seconds in SECONDS.items():
        noise = 0.1 * rng.standard_normal((round(seconds * 16_000), 2))
        soundfile.write(there / f"{name}.wav", noise, 16_000)
    return {name: there / f"{name}.wav" for name in SECONDS}


@pytest.fixture(scope="module")
def words(model: Stt, recordings: dict[str, Path]) -> dict[str, list[Word]]:
    """What the library writes of each recording alone."""
    return {name: [*model.transcribe(path).words] for name, path in recordings.items()}


def run(*arguments: str | Path) -> int:
    return main(["transcribe", *map(str, arguments), "--codec", "mlx"])


def line_of(words: list[Word]) -> str:
    return " ".join(word.text for word in words) + "\n"


def test_text_on_standard_output(
    folder: Path,
    recordings: dict[str, Path],
    words: dict[str, list[Word]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert words["one"]
    assert words["one"] != words["two"]
    assert run(recordings["one"], "--model", folder) == 0
    captured = capsys.readouterr()
    assert captured.out == line_of(words["one"])
    assert "2.0 s transcribed in " in captured.err
    assert " times real time\n" in captured.err


@pytest.mark.parametrize("batch", ["1", "2"])
def test_several_recordings_come_in_their_order(
    batch: str,
    folder: Path,
    recordings: dict[str, Path],
    words: dict[str, list[Word]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Side by side or not, the shorter one after the longer one: each is as it is alone."""
    names = ["two", "one", "two"]
    paths = [recordings[name] for name in names]
    assert run(*paths, "--model", folder, "--batch", batch) == 0
    wanted = "".join(f"==> {recordings[n]} <==\n{line_of(words[n])}" for n in names)
    assert capsys.readouterr().out == wanted


def test_json_has_all_that_is_known(
    folder: Path,
    recordings: dict[str, Path],
    words: dict[str, list[Word]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(recordings["one"], "--model", folder, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["source"], found["seconds"]) == (str(recordings["one"]), 2.0)
    assert (found["model"], found["pause_heads"]) == (str(folder), 4)
    assert found["text"] + "\n" == line_of(words["one"])
    for got, word in zip(found["words"], words["one"], strict=True):
        assert (got["text"], got["start"], got["end"]) == (
            word.text,
            round(word.start, 3),
            round(word.end, 3),
        )
        assert len(got["pauses"]) == 4
        assert all(0 <= p <= 1 for p in got["pauses"])


def test_files_into_a_folder_and_by_their_name(
    folder: Path,
    recordings: dict[str, Path],
    words: dict[str, list[Word]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    there = tmp_path / "new"
    how: list[str | Path] = ["--model", folder, "--format", "srt", "--batch", "1"]
    assert run(*recordings.values(), *how, "-o", there) == 0
    assert capsys.readouterr().out == ""
    for name, found in words.items():
        assert (there / f"{name}.srt").read_text() == subtitles_as_srt(found)
    assert run(recordings["one"], "--model", folder, "-o", tmp_path / "one.vtt") == 0
    assert (tmp_path / "one.vtt").read_text() == subtitles_as_vtt(words["one"])
    assert run(*recordings.values(), "--model", folder, "-o", tmp_path / "two.srt") == 2
    assert "two.srt is one file, and there are 2 recordings" in capsys.readouterr().err


def test_a_recording_from_standard_input(
    folder: Path,
    recordings: dict[str, Path],
    words: dict[str, list[Word]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = recordings["one"].read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert run("-", "--model", folder, "-o", f"{tmp_path}/") == 0
    assert (tmp_path / "stdin.txt").read_text() == line_of(words["one"])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    assert run("-", "--model", folder) == 2
    assert "standard input is empty: it has no samples" in capsys.readouterr().err


def test_a_model_without_pause_heads(
    recordings: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plain = make_stt.write(tmp_path / "plain", extra_heads_num_heads=0)
    assert run(recordings["one"], "--model", plain, "--format", "json") == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert found["pause_heads"] == 0
    assert all("pauses" not in word for word in found["words"])
    assert "no pause heads: ends of turns are not told" in captured.err
    assert run(recordings["one"], "--model", plain, "--turn-hold", "1") == 2
    assert "has no pause heads and cannot tell turns" in capsys.readouterr().err


def test_every_format_piece_by_piece() -> None:
    words = [Word("a\tb", 0.5, 0.7), Word("c", 0.8, 1.0), Word("d", 2.0, 2.5)]
    found: dict[str, list[str]] = {}
    for kind in WordFormat:
        writer = word_writer(kind)
        facts: dict[str, Any] = {"text": "é", "words": [{"text": "a"}, {"text": "b"}], "none": []}
        found[kind] = [writer.begin(), *map(writer.add, words), writer.end(facts)]
    assert found["txt"] == ["", "a\tb", " c", "\nd", "\n"]
    assert found["tsv"] == [
        "start\tend\ttext\n", "0.500\t0.700\ta b\n", "0.800\t1.000\tc\n", "2.000\t2.500\td\n", "",
    ]  # fmt: skip
    assert found["json"] == [
        "", "", "", "",
        '{\n "text": "é",\n "words": [\n  {"text": "a"},\n  {"text": "b"}\n ],\n "none": []\n}\n',
    ]  # fmt: skip
    assert "".join(found["srt"]) == subtitles_as_srt(words)
    assert found["srt"][3] == "1\n00:00:00,500 --> 00:00:01,000\na b c\n", "with the next phrase"
    assert "".join(found["vtt"]) == subtitles_as_vtt(words)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give FILE, or --live"),
        (["none.wav"], "there is no file none.wav"),
        (["TEXT"], "as sound"),
        (["EMPTY"], "is empty: it has no samples"),
        (["IN", "none.wav", "-o", "FOLDER"], "there is no file none.wav"),
        (["IN", "IN", "--format", "srt"], "2 recordings as srt are one file each: give a folder"),
        (["IN", "IN", "-o", "FOLDER"], "would both become one.txt in "),
        (["IN", "TWO", "-o", "IN"], "cannot write transcripts into"),
        (["IN", "-o", "IN"], "it is the same file as the input"),
        (["IN", "-o", "nowhere/o.txt"], "there is no folder nowhere"),
        (["IN", "-o", "o.srt", "--format", "json"], "is named as srt, and --format says json"),
        (["IN", "-o", "o.docx"], ".docx is not a format of transcripts: name it .txt or .json or"),
        (["https://x.org/a.wav"], "https://x.org/a.wav is an address: fetch the file first"),
        (["IN", "--format", "docx"], "'--format'"),
        (["IN", "--batch", "0"], "'--batch'"),
        (["IN", "--batch", "many"], "'--batch'"),
        (["IN", "--turn-threshold", "2"], "'--turn-threshold'"),
        (["IN", "--turn-hold", "nan"], "'--turn-hold'"),
        (["IN", "--spell-sound", "IN"], "--spell-sound goes with --spell"),
        (["IN", "--spell", "a", "--spell-sound", "none.wav"], "there is no file none.wav"),
        (["IN", "--kv-bits", "3"], "'--kv-bits'"),
        (["IN", "--json", "--format", "srt"], "--json is --format json, and --format says srt"),
        (["-", "-"], "- is there twice"),
        (["IN", "--input", "0"], "--input goes with --live"),
        (["IN", "--events", "-"], "--events goes with --live"),
        (["--live", "--batch", "2"], "--batch goes with files, not with --live"),
        (["--live", "IN"], "--live takes no files"),
        (["--live", "--format", "srt"], "--format goes with --output, where it goes with --live"),
        (["IN", "--model", "nonesuch"], "A model is one of nano-stt, stt-1b, stt-2.6b, a folder"),
        (["IN", "--model", HELIUM], "is a text model: it can complete, but not transcribe; nano"),
        (["IN", "--model", "nano"], "nano is a dialogue model: it can talk, but not transcribe"),
        (["IN", "--model", "hibiki"], "it can translate, but not transcribe; "),
    ],
)
def test_refused_in_one_line(
    arguments: list[str],
    message: str,
    folder: Path,
    recordings: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty.wav").write_bytes(recordings["one"].read_bytes()[:40] + bytes(4))
    (tmp_path / "text.wav").write_text("not sound at all\n")
    places = {"IN": recordings["one"], "TWO": recordings["two"], "FOLDER": tmp_path / "new"}
    places |= {"EMPTY": tmp_path / "empty.wav", "TEXT": tmp_path / "text.wav"}
    there, before = set(tmp_path.iterdir()), recordings["one"].read_bytes()
    given = [str(places.get(argument, argument)) for argument in arguments]
    own = [] if "--model" in given else ["--model", str(folder)]
    assert run(*own, *given) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    line = captured.err.splitlines()[-1]
    assert line.startswith("moshi-local: ")
    assert message in line
    assert set(tmp_path.iterdir()) == there
    assert recordings["one"].read_bytes() == before


def test_a_recording_without_a_word_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    soundfile.write(tmp_path / "quiet.wav", np.zeros(24_000), 24_000)
    for path, told in ((tmp_path / "quiet.wav", True), (QUESTION, False)):
        out = tmp_path / "o.any"
        assert run("--model", "nano-stt", str(path), "-o", str(out), "--format", "txt") == 0
        assert (f"note: no word was heard in {path}\n" in capsys.readouterr().err) is told
        assert bool(out.read_text()) is not told


def test_a_reader_that_has_seen_enough_is_no_error(folder: Path) -> None:
    """As `moshi-local transcribe … | head`."""
    command = [sys.executable, "-m", "moshi_local", "transcribe", str(QUESTION)]
    with subprocess.Popen(
        [*command, "--model", str(folder), "--codec", "mlx"],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as program:
        assert program.stdout is not None
        assert program.stderr is not None
        assert program.stdout.read(1)
        program.stdout.close()
        errors = program.stderr.read()
    assert program.returncode == 0
    assert errors.splitlines()[1:] == ["codec mlx"]


def test_interrupted_it_leaves_nothing_half_written(folder: Path, tmp_path: Path) -> None:
    """What has been shown stays; the file of a recording that was not finished is absent."""
    long = tmp_path / "long.wav"
    soundfile.write(long, np.random.default_rng(0).normal(0, 0.1, 600 * 8000), 8000)
    there = set(tmp_path.iterdir())
    command = [sys.executable, "-m", "moshi_local", "transcribe", str(long), "--codec", "mlx"]
    command += ["--model", str(folder)]

    def interrupted(*options: str) -> tuple[str, str]:
        with subprocess.Popen(
            [*command, *options], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as program:
            assert program.stderr is not None
            assert program.stdout is not None
            while "codec" not in program.stderr.readline():
                pass
            if options:
                time.sleep(0.3)
            else:
                program.stdout.read(100)
            program.send_signal(signal.SIGINT)
            said, errors = program.communicate()
        assert program.returncode == 130
        return said, errors

    _, errors = interrupted()  # some of it has appeared
    assert errors == "moshi-local: stopped\n"
    said, errors = interrupted("-o", str(tmp_path / "o.txt"))
    assert said == ""
    assert errors == f"moshi-local: stopped; {tmp_path / 'o.txt'} was not written\n"
    assert set(tmp_path.iterdir()) == there


# ----------------------------------------------------------------------------------- live


@pytest.mark.device
def test_the_microphone_live(
    card: rig.VirtualCard, folder: Path, recordings: dict[str, Path], tmp_path: Path
) -> None:
    """Only a microphone is opened; Ctrl-C ends it, and the last words come and are written."""
    events, target = tmp_path / "events.jsonl", tmp_path / "live.json"
    command = [sys.executable, "-m", "moshi_local", "transcribe", "--live", "--model", str(folder)]
    command += ["--events", str(events), "-o", str(target), "--turn-threshold", "0.3"]
    with subprocess.Popen(
        command, env=card.environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as program:
        try:
            deadline = time.monotonic() + 60
            while not events.exists() or "Opened" not in events.read_text():
                assert time.monotonic() < deadline
                time.sleep(0.1)
            card.play(recordings["one"]).wait()
            streams = {
                kind: subprocess.run(
                    ["pactl", "list", kind], env=card.environment, capture_output=True, text=True
                ).stdout
                for kind in ("source-outputs", "sink-inputs")
            }
            program.send_signal(signal.SIGINT)
            said, errors = program.communicate(timeout=60)
        finally:
            program.kill()
    assert program.returncode == 0, errors
    assert 'listening: input "' in said
    assert "output" not in said
    assert "ALSA plug-in" in streams["source-outputs"]
    assert "ALSA plug-in" not in streams["sink-inputs"], "no speaker is opened"
    lines = [json.loads(line) for line in events.read_text().splitlines()]
    frames = [line for line in lines if line["event"] == "FrameDone"]
    heard = [line["word"]["text"] for line in lines if line["event"] == "WordHeard"]
    assert all(len(frame["pauses"]) == 4 for frame in frames)
    assert any(frame["user_speaking"] for frame in frames)
    assert len(frames) > 20
    assert [word["text"] for word in json.loads(target.read_text())["words"]] == heard
    assert heard


@pytest.fixture
def card(tmp_path_factory: pytest.TempPathFactory) -> Iterator[rig.VirtualCard]:
    with rig.VirtualCard.start(tmp_path_factory.mktemp("rig") / "card") as running:
        yield running
