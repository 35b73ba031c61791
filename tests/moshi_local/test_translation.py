"""`moshi-local translate`: files, what is refused, and the last words of a live translation."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

import moshi_mlx
from moshi_local.cli import main
from moshi_local.conversation import LAST_WORDS
from moshi_local.events import Event, Notice
from moshi_local.loop import StopFlag, run_loop
from moshi_local.observers.transcript import subtitles_as_srt, subtitles_as_vtt
from moshi_local.port import Read
from moshi_mlx import Model, Word
from tests import rig
from tests.fixtures import make_hibiki

RATE, FRAME_SIZE = 24_000, 1920
FRAMES = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_hibiki.write(tmp_path_factory.mktemp("models") / "hibiki")


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """FRAMES frames of noise, stereo, at a rate that has to be changed."""
    path = tmp_path / "in.wav"
    noise = 0.1 * np.random.default_rng(0).standard_normal((FRAMES * 1280, 2))
    soundfile.write(path, noise, 16_000)
    return path


def run(*arguments: str | Path) -> int:
    return main(["translate", *map(str, arguments), "--codec", "mlx"])


def test_a_file_with_all_that_is_written(
    folder: Path, recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, srt, vtt, facts = (tmp_path / name for name in ("o.flac", "o.srt", "o.vtt", "o.json"))
    beside: list[str | Path] = ["--srt", srt, "--vtt", vtt, "--json", facts]
    assert run(recording, out, "--model", folder, "--stereo", "--best-of", "2", *beside) == 0
    captured = capsys.readouterr()
    found = json.loads(facts.read_text())
    words = [Word(**word) for word in found["words"]]
    assert words
    assert [line.split()[2] for line in captured.out.splitlines()] == [w.text for w in words]
    assert f"0.6 s translated in {found['elapsed_seconds']:.1f} s, " in captured.err
    assert found["text"] == " ".join(word.text for word in words)
    assert (found["best_of"], found["quality"], found["cfg"]) == (2, "very_good", 1.0)
    both, rate = soundfile.read(out)
    assert (rate, both.shape[1]) == (RATE, 2)
    assert len(both) / rate == pytest.approx(found["output_seconds"]), "longer than its source"
    assert found["output_seconds"] > found["source_seconds"] == FRAMES / 12.5
    assert both[: FRAMES * FRAME_SIZE, 0].any()
    assert not both[FRAMES * FRAME_SIZE :, 0].any()
    assert both[FRAMES * FRAME_SIZE :, 1].any(), "the tail is there"
    assert srt.read_text() == subtitles_as_srt(words)
    assert vtt.read_text() == subtitles_as_vtt(words)


def test_subtitles_have_a_cue_for_each_phrase() -> None:
    words = [Word("a<b", 0.5, 0.7), Word("c", 0.8, 1.0), Word("d", 2.0, 2.5), Word("e", 7.9, 8.1)]
    assert subtitles_as_srt(words) == (
        "1\n00:00:00,500 --> 00:00:01,000\na<b c\n\n2\n00:00:02,000 --> 00:00:02,500\nd\n\n"
        "3\n00:00:07,900 --> 00:00:08,100\ne\n"
    )
    assert subtitles_as_vtt(words[:3]) == (
        "WEBVTT\n\n00:00:00.500 --> 00:00:01.000\na&lt;b c\n\n00:00:02.000 --> 00:00:02.500\nd\n"
    )
    assert subtitles_as_srt([]) == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["IN", "IN"], "it is the same file as the input"),
        (["EMPTY", "OUT"], "is empty: it has no samples"),
        (["TEXT", "OUT"], "as sound"),
        (["none.wav", "OUT"], "there is no file none.wav"),
        (["IN", "OUT", "--cfg", "nan"], "--cfg must be from 0 to 100, is nan"),
        (["IN", "OUT", "--best-of", "0"], "'--best-of'"),
        (["IN", "OUT", "--quality", "fine"], "quality must be one of very_bad, bad,"),
        (["IN", "OUT", "--srt", "OUT"], "its name must end in .srt"),
        (["IN", "OUT", "--json", "x.txt"], "cannot write the summary x.txt"),
        (["IN", "OUT.mp3"], "its name must end in .wav or .flac"),
        (["IN"], "give OUT, or --live"),
        ([], "give IN and OUT, or --live"),
        (["IN", "OUT", "--input", "0"], "--input goes with --live"),
        (["--live", "--stereo"], "--stereo goes with IN and OUT, not with --live"),
        (["IN", "OUT", "--live"], "--live takes no files"),
        (["IN", "OUT", "--model", "nano"], "nano is a dialogue model: it can talk, but not tr"),
    ],
)
def test_refused_in_one_line(
    arguments: list[str],
    message: str,
    folder: Path,
    recording: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty.wav").write_bytes(recording.read_bytes()[:40] + bytes(4))
    (tmp_path / "text.wav").write_text("not sound at all\n")
    before = recording.read_bytes()
    places = {"IN": recording, "OUT": tmp_path / "out.wav", "OUT.mp3": tmp_path / "out.mp3"}
    places |= {"EMPTY": tmp_path / "empty.wav", "TEXT": tmp_path / "text.wav"}
    there = set(tmp_path.iterdir())
    given = [str(places.get(argument, argument)) for argument in arguments]
    own = [] if "nano" in given else ["--model", str(folder)]
    assert run(*own, *given) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    line = captured.err.splitlines()[-1]
    assert line.startswith("moshi-local: ")
    assert message in line
    assert set(tmp_path.iterdir()) == there
    assert recording.read_bytes() == before


def test_a_translation_model_does_not_talk(
    folder: Path, recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(recording), str(tmp_path / "o.wav"), "--model", str(folder)]) == 2
    assert "it can translate, but not talk" in capsys.readouterr().err


def test_interrupted_it_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    long = tmp_path / "in.wav"
    soundfile.write(long, np.zeros(60 * 8000, np.float32), 8000)
    there = set(tmp_path.iterdir())
    command = [sys.executable, "-m", "moshi_local", "translate", str(long), str(tmp_path / "o.wav")]
    command += ["--srt", str(tmp_path / "o.srt"), "--codec", "mlx", "--model", str(folder)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as program:
        assert program.stderr is not None
        while "codec" not in program.stderr.readline():
            pass
        time.sleep(0.5)
        program.send_signal(signal.SIGINT)
        said = program.stderr.read()
    assert program.returncode == 130
    assert said == f"moshi-local: stopped; {tmp_path / 'o.wav'} was not written\n"
    assert set(tmp_path.iterdir()) == there


# ----------------------------------------------------------------------------------- live


class Microphone:
    """An AudioPort of noise without an end; `stop` is asked at frame `ends`, again at `again`."""

    def __init__(self, stop: StopFlag, ends: int, again: int = -1) -> None:
        self._stop, self._ends, self._again = stop, ends, again
        self._rng = np.random.default_rng(0)
        self.reads = 0
        self.said: list[np.ndarray] = []

    def read(self, frame: np.ndarray, timeout: float) -> Read:
        self.reads += 1
        if self.reads in (self._ends, self._again):
            self._stop.ask()
        frame[:] = self._rng.normal(0, 0.1, len(frame))
        return Read.FRAME

    def write(self, pcm: np.ndarray) -> None:
        self.said.append(pcm)


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return moshi_mlx.load(folder, verb="translate", codec="mlx")


def live(model: Model, again: int = -1) -> tuple[Microphone, list[Event]]:
    stop = StopFlag()
    port = Microphone(stop, FRAMES, again)
    events: list[Event] = []
    with model.session() as session:
        run_loop(
            session,
            port,
            frame_size=FRAME_SIZE,
            frame_rate=12.5,
            listeners=[events.append],
            stop=lambda: bool(stop),
            at_once=lambda: stop.again,
        )
    return port, events


def test_after_the_stop_the_last_words_come(model: Model) -> None:
    """As many frames as the translation still has; what the microphone brings is not heard."""
    port, events = live(model)
    rng = np.random.default_rng(0)
    with model.session() as session:
        wanted = [
            session.step(rng.normal(0, 0.1, FRAME_SIZE).astype(np.float32)) for _ in range(FRAMES)
        ]
        wanted += session.end()
    assert len(wanted) > FRAMES + 2
    *said, _, _, _, _, _, _ = port.said
    np.testing.assert_array_equal(said, [frame.pcm for frame in wanted])
    assert not np.any(port.said[len(said) :]), "for the card to play the last words"
    assert [e.text for e in events if isinstance(e, Notice)] == [LAST_WORDS]


def test_a_second_stop_ends_at_once(model: Model) -> None:
    port, _ = live(model, again=FRAMES + 2)
    assert len(port.said) == FRAMES + 2


@pytest.mark.device
def test_the_program_translates_through_the_sound_card(
    card: rig.VirtualCard, folder: Path, tmp_path: Path
) -> None:
    """Ctrl-C ends the source, and what is recorded has the frames after it."""
    events = tmp_path / "events.jsonl"
    command = [sys.executable, "-m", "moshi_local", "translate", "--live", "--model", str(folder)]
    command += ["--events", str(events), "--record", str(tmp_path / "kept"), "--seed", "1"]
    with subprocess.Popen(
        command, env=card.environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as program:
        try:
            deadline = time.monotonic() + 60
            while not events.exists() or "Opened" not in events.read_text():
                assert time.monotonic() < deadline
                time.sleep(0.1)
            time.sleep(2.0)
            program.send_signal(signal.SIGINT)
            _, errors = program.communicate(timeout=60)
        finally:
            program.kill()
    assert program.returncode == 0, errors
    assert LAST_WORDS in events.read_text()
    (sound,) = (tmp_path / "kept").glob("*.flac")
    assert soundfile.info(sound).channels == 2


@pytest.fixture
def card(tmp_path_factory: pytest.TempPathFactory) -> Iterator[rig.VirtualCard]:
    with rig.VirtualCard.start(tmp_path_factory.mktemp("rig") / "card") as running:
        yield running
