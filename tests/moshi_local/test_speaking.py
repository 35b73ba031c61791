"""`moshi-local speak`: files of every kind, text that arrives, scripts, and what is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from benchmarks import speaking as benchmark
from moshi_local.cli import main
from moshi_local.observers.record import made_here
from moshi_local.observers.transcript import subtitles_as_srt, subtitles_as_vtt
from moshi_mlx import SpokenWord, Voice
from moshi_mlx.sounds import open_sound
from tests import rig
from tests.fixtures import make_tts

TEXT = "Hello there, my friends."
SCRIPT = 'A: Hi.\nB: Yes? <break time="100ms"/>\nno\nA: So.\n'
RATE = 24_000
PERSONA_VOICE = str(Path(make_tts.__file__).parent / "personaplex" / "personaplex" / "voice.pt")
HELIUM = str(Path(make_tts.__file__).parent / "helium" / "helium")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tts.write(tmp_path_factory.mktemp("models") / "tts")


def command(model: Path, *arguments: str | Path) -> list[str]:
    return ["speak", *map(str, arguments), "--model", str(model), "--codec", "mlx"]


def run(model: Path, *arguments: str | Path) -> None:
    assert main(command(model, *arguments)) == 0


def program(model: Path, *arguments: str | Path, **options: Any) -> subprocess.Popen[bytes]:
    """The program; its text arrives through a pipe."""
    return subprocess.Popen(
        [sys.executable, "-m", "moshi_local", *command(model, *arguments)],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


def give(speak: subprocess.Popen[bytes], piece: str) -> None:
    assert speak.stdin is not None
    speak.stdin.write(piece.encode())
    speak.stdin.flush()


def loaded(speak: subprocess.Popen[bytes]) -> None:
    """Waits until the program has its model."""
    assert speak.stderr is not None
    while b"codec" not in speak.stderr.readline():
        assert speak.poll() is None


@contextmanager
def stdin_of(content: bytes) -> Iterator[None]:
    """In this process, standard input that has this, and ends."""
    source, sink = os.pipe()
    os.write(sink, content)
    os.close(sink)
    before = sys.stdin
    with os.fdopen(source) as sys.stdin:
        yield
    sys.stdin = before


@pytest.fixture(scope="module")
def spoken(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """TEXT as a WAV."""
    path = tmp_path_factory.mktemp("spoken") / "spoken.wav"
    run(model, TEXT, "-o", path)
    return path


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("XDG_CONFIG_HOME", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home" / name))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


# ----------------------------------------------------------------------------- files


@pytest.mark.parametrize("suffix", [".flac", ".mp3", ".opus", ".OGG"])
def test_every_format_has_the_same_sound_and_says_that_it_is_synthetic(
    suffix: str, model: Path, spoken: Path, tmp_path: Path
) -> None:
    target = tmp_path / f"out{suffix}"
    run(model, TEXT, "-o", target)
    wanted, _ = soundfile.read(spoken)
    pcm, rate = soundfile.read(target)
    assert rate == RATE
    assert abs(len(pcm) - len(wanted)) < 0.1 * RATE, "encoders pad"
    levels = [np.sqrt(np.mean(sound**2)) for sound in (pcm, wanted)]
    assert levels[0] == pytest.approx(levels[1], rel=0.2)
    with soundfile.SoundFile(target) as file:
        assert file.title == "Synthetic speech"
        assert f"synthetic speech by {model}; made with moshi-local" in file.comment
    assert made_here(target) == made_here(spoken) == "speech"


def test_words_with_their_times(
    model: Path, spoken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.md"
    text.write_text(f"\ufeff{TEXT}\n")
    out, srt, vtt, facts = (tmp_path / name for name in ("o.wav", "o.srt", "o.vtt", "o.json"))
    run(model, text, "-o", out, "--srt", srt, "--vtt", vtt, "--json", facts)
    captured = capsys.readouterr()
    assert captured.out == ""
    found = json.loads(facts.read_text())
    assert {word.pop("speaker") for word in found["words"]} == {"A"}
    words = [SpokenWord(**word) for word in found["words"]]
    assert [word.text for word in words] == TEXT.split()
    assert all(word.start < word.end for word in words)
    assert found["text"] == TEXT
    assert found["output_seconds"] == pytest.approx(soundfile.info(out).duration, abs=0.001)
    assert 0 < found["first_sound_seconds"] <= found["elapsed_seconds"]
    assert f"first sound after {found['first_sound_seconds']:.2f} s\n" in captured.err
    assert f"times as fast as it is heard: {out}\n" in captured.err
    assert srt.read_text() == subtitles_as_srt(words)
    assert vtt.read_text() == subtitles_as_vtt(words)
    assert out.read_bytes() == spoken.read_bytes(), "a file's text is as its own"


def test_a_pipe_gets_a_wav(model: Path, spoken: Path, tmp_path: Path) -> None:
    piped = tmp_path / "piped.wav"
    with program(model, TEXT, "-o", "-", stdout=subprocess.PIPE) as speak:
        piped.write_bytes(speak.communicate()[0])
    assert speak.returncode == 0
    sound = open_sound(piped)
    np.testing.assert_allclose(sound.read(RATE)[0], soundfile.read(spoken)[0], atol=1e-4)
    assert made_here(piped) == "speech"


def test_interrupted_it_leaves_nothing(model: Path, tmp_path: Path) -> None:
    target = tmp_path / "o.mp3"
    with program(model, "-", "-o", target, "--srt", tmp_path / "o.srt") as speak:
        give(speak, TEXT)
        loaded(speak)
        time.sleep(0.5)
        speak.send_signal(signal.SIGINT)
        assert speak.stderr is not None
        said = speak.stderr.read().decode()
    assert speak.returncode == 130
    assert said == f"moshi-local: stopped; {target} was not written\n"
    assert not list(tmp_path.glob("*.*"))


# ----------------------------------------------------------------------------- text that arrives


def test_text_in_bursts_is_spoken_as_in_one_go(model: Path, spoken: Path, tmp_path: Path) -> None:
    """Pieces end inside words, and the pauses are long."""
    target = tmp_path / "o.wav"
    with program(model, "-", "-o", target, "--json", tmp_path / "o.json") as speak:
        loaded(speak)
        for piece in ("He", "llo the", "re, m", "y fr", "ien"):
            give(speak, piece)
            time.sleep(0.15)
        give(speak, "ds.")
        speak.communicate()
    assert speak.returncode == 0
    assert target.read_bytes() == spoken.read_bytes()
    found = json.loads((tmp_path / "o.json").read_text())
    assert found["text"] == TEXT
    assert "inf" not in str(found["first_sound_seconds"])


def test_it_waits_for_text_without_a_sound(model: Path) -> None:
    """With three words known the first one is spoken; nothing more until more is known."""
    with program(model, "-", "-o", "-", stdout=subprocess.PIPE) as speak:
        assert speak.stdout is not None
        loaded(speak)
        os.set_blocking(speak.stdout.fileno(), False)
        sizes = []
        for piece in ("Hello there, ", "this ", "", "is a "):
            give(speak, piece)
            time.sleep(0.4)
            sizes.append(len(speak.stdout.read() or b""))
        os.set_blocking(speak.stdout.fileno(), True)
        rest = speak.communicate()[0]
    assert sizes[0] == sizes[2] == 0, sizes
    assert sizes[3] > 0
    assert len(rest) > 0
    assert speak.returncode == 0


# ----------------------------------------------------------------------------- scripts


def test_two_speakers(model: Path, tmp_path: Path) -> None:
    """Lines and JSON say the same, with two voices; also from standard input."""
    other = next((model / "voices").glob("bob*"))
    voices = ("--voice", "alice", "--voice", other)
    lines, as_json, arriving, one = (tmp_path / f"{n}.wav" for n in range(4))
    script, turns = tmp_path / "s.txt", tmp_path / "s.json"
    script.write_text(SCRIPT)
    said = [
        {"speaker": "A", "text": "Hi."},
        {"speaker": "B", "text": "Yes? <BREAK time='0.1s' /> no"},
        {"text": "So."},
    ]
    turns.write_text(json.dumps({"turns": said}))
    run(model, script, "-o", lines, *voices)
    run(model, turns, "-o", as_json, *voices)
    run(model, script, "-o", one, "--voice", "alice")
    assert lines.read_bytes() == as_json.read_bytes()
    assert lines.read_bytes() != one.read_bytes()
    for text in (SCRIPT, turns.read_text()):
        with stdin_of(text.encode()):
            run(model, "-", "-o", arriving, *voices)
        assert lines.read_bytes() == arriving.read_bytes()


def test_a_cue_has_one_speaker_and_one_voice_for_two_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    srt = tmp_path / "o.srt"
    for text in (script := "A: yes no\nB: no yes\n", "-", "A: yes no"):
        with stdin_of(script.encode()):
            run(Path("nano-tts"), text, "-o", tmp_path / "o.wav", "--srt", srt)
        told = capsys.readouterr().err.count("note: nano-tts has one voice: both speakers")
        cues = [cue.split("\n", 2)[2] for cue in srt.read_text().split("\n\n")]
        if text == "A: yes no":
            assert (told, cues) == (0, ["yes no\n"])
        else:
            assert (told, cues) == (1, ["yes no", "no yes\n"])


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("hi <break", "'<break' has no > at its end: it is spoken as text"),
        ('hi <break time="1s" no', " has no > at its end"),
        ("hi <emphasis>yes", "'<emphasis>' is spoken as text: the only tag is <break/>"),
        ("...", "the text has no letter and no digit"),
        ("a < b <3 <break/> c", None),
    ],
)
def test_what_may_not_be_meant_is_told(
    text: str, note: str | None, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for given in (text, "-"):
        with stdin_of(text.encode()):
            run(model, given, "-o", tmp_path / "o.wav")
        notes = [line for line in capsys.readouterr().err.splitlines() if "note: " in line]
        assert len(notes) == (note is not None)
        assert note is None or note in notes[0]


def test_numbers_are_written_out_and_shown(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where the text arrives, sentence by sentence."""
    pytest.importorskip("num2words")
    sounds = []
    for number, text in enumerate(("It is 5 km. At 6:30.", "-")):
        target, facts = tmp_path / f"{number}.wav", tmp_path / "o.json"
        with stdin_of(b"It is 5 km. At 6:30."):
            run(model, text, "-o", target, "--normalize", "en", "--json", facts)
        assert "It is five kilometers." in capsys.readouterr().err
        spoken = json.loads(facts.read_text())["text"]
        assert " ".join(spoken.split()) == "It is five kilometers. At six thirty."
        sounds.append(target.read_bytes())
    assert sounds[0] == sounds[1]


def test_options_change_the_speech(model: Path, tmp_path: Path) -> None:
    sounds = set()
    for option in ("--seed=0", "--seed=1", "--cfg=3", "--codebooks=4", "--voice=bob"):
        run(model, "Hi.", "-o", tmp_path / "o.wav", option)
        sounds.add((tmp_path / "o.wav").read_bytes())
    assert len(sounds) == 5


# ----------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (['{}'], "a list of turns, or an object that has one as \"turns\", is {}"),
        (["null.json"], "null.json: a script in JSON is a list of turns"),
        (["words.json"], "words.json: the script cannot be read as JSON: Expecting value: line 1"),
        (["key.json"], "key.json: turn 2 of the script has the field 'sex', which it cannot"),
        (["voice.json"], "turn 1 of the script has the field 'voice', which it cannot have: v"),
        (['{"turns": ["a"], "id": 1}'], "the script has the field 'id', which it cannot have: it"),
        (['[{"text": "a", "text": "b"}]'], "the field 'text' twice in one place"),
        ([" "], "the text has no word to speak"),
        ([":::"], "the text has no word to speak"),
        (['<break time="1s"/>'], "the text has no word to speak"),
        (["none.txt"], "none.txt cannot be read: No such file"),
        (["FOLDER"], "cannot be read: Is a directory"),
        (["latin.txt"], "latin.txt is not text in UTF-8: give a text file"),
        (["empty.txt"], "empty.txt has no text"),
        (["sound.txt"], "sound.txt is a RIFF file (sound or video): give a text file"),
        (["tagged.txt"], "tagged.txt: "),
        (["a <break time='2h'/> b"], "is no break: write <break time="),
        (["a <break time='61s'/> b"], "a break has at most 60 s"),
        (["a <break strength='loud'/> b"], "the strength is one of none, x-weak"),
        (["[1]"], "turn 1 of the script must be a text, or {"),
        (['{"turns": 3}'], "a script in JSON is a list of turns"),
        (['["a", {"speaker": "C", "text": "b"}]'], "turn 2 of the script must be a text"),
        (['[{"speaker": "A"}]'], "turn 1 of the script must be a text"),
        (["broken.json"], "broken.json: the script cannot be read as JSON: "),
        (["a", "--voice", "nobody"], "there is no voice 'nobody' for this model: here are alice"),
        (["a", "--voice", "empty.txt"], "empty.txt: "),
        (["a", "--voice", "other.safetensors"], "is a voice that was made for the model 1@2; "),
        (["a", "--voice", "mine.safetensors"], "is a voice of a recording, for personaplex or"),
        (["a", "--voice", PERSONA_VOICE], "is a voice for personaplex; this model takes those"),
        (["a", *["--voice", "alice"] * 3], "--voice is there 3 times: a script has two speakers"),
        (["a", "--model", "nano-tts", "--voice", "x"], "nano-tts has one voice, and cannot"),
        (["a", "--cfg", "2.2"], "cfg must be one of 1.0, 1.5"),
        (["a", "--cfg", "nan"], "'--cfg': must be a finite number, is nan"),
        (["a", "--cfg", "101"], "'--cfg': must be"),
        (["a", "--temperature", "inf"], "'--temperature': must be a finite number, is inf"),
        (["https://x.org/a.txt"], "https://x.org/a.txt is an address: fetch the file first"),
        (["a", "--speed", "3"], "must be a number from -2 to 2, is '3'"),
        (["a", "--normalize", "de"], "language must be en or fr, is 'de'"),
        (["a", "--codebooks", "99"], "codebooks must be a whole number from 1 to 6"),
        (["a", "--seed", "-1"], "'--seed': must be a number from 0 to"),
        (["a", "--temperature", "-1"], "'--temperature'"),
        (["a", "--srt", "x.txt"], "cannot write the subtitles x.txt: its name must end in .srt"),
        (["a", "--json", "no/x.json"], "there is no folder no"),
        (["a", "--output", "0"], "--output goes with the speaker, not with -o"),
        (["a", "-o", "x.m4a"], "its name must end in .wav or .flac or .mp3"),
        (["a", "-o", "FOLDER"], "cannot write the speech"),
        (["text.txt", "--srt", "text.srt", "-o", "LINK"], "it is the same file as the input"),
        (["a", "--model", "nonesuch"], "'nonesuch'. A model is one of nano-tts, tts-1.6b, tts-0.7"),
        (["a", "--model", HELIUM], "is a text model: it can complete, but not speak; nano-tts,"),
        (["a", "--model", HELIUM], f"`moshi-local complete PROMPT --model {HELIUM}` runs it"),
        (["a", "--model", "nano"], "it can talk, but not speak; nano-tts, tts-1.6b, tts-0.75b can"),
        (["a", "b"], "unexpected extra argument"),
        ([], "Missing argument"),
    ],
)  # fmt: skip
def test_refused_in_one_line(
    arguments: list[str],
    message: str,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    Path("latin.txt").write_bytes("Grüße".encode("latin-1"))
    Path("empty.txt").write_text("\n")
    Path("text.txt").write_text("a text")
    Path("link.wav").symlink_to("text.txt")
    Path("sound.txt").write_bytes(b"RIFF\x00\xff\x00\xffWAVE")
    Path("tagged.txt").write_text("a <break time='two'/> b")
    Path("broken.json").write_text('["a", ')
    Path("null.json").write_text("null")
    Path("words.json").write_text("only words")
    Path("key.json").write_text('["a", {"text": "b", "sex": "x"}]')
    Path("voice.json").write_text('[{"text": "b", "voice": "alice"}]')
    raw = json.loads((model / "config.json").read_text())
    other = make_tts.write_voice(folder, "x", {**raw, "model_id": {"sig": 1, "epoch": 2}}, 0)
    other.rename("other.safetensors")
    Voice("mine", codes=np.zeros((4, 9), np.int32)).save("mine.safetensors", consent="made up")
    there = set(folder.iterdir())
    places = {"FOLDER": str(tmp_path), "LINK": "link.wav"}
    given = [places.get(argument, argument) for argument in arguments]
    own = [] if "--model" in given else ["--model", str(model)]
    target = [] if "-o" in given else ["-o", "out.wav"]
    assert main(["speak", *given, *own, *target, "--codec", "mlx"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    *before, line = captured.err.splitlines()
    assert line.startswith("moshi-local: ")
    assert message in line
    assert all(other.startswith(("loading ", "codec ", "nano-tts is a")) for other in before)
    assert set(folder.iterdir()) == there


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (b"", "standard input has no text"),
        (b" \n", "standard input has no text"),
        (b"a\xff", "standard input is not text in UTF-8"),
        (b"a\0b", "standard input is not text: it has zero bytes"),
        (b'["a", 1]', "turn 2 of the script must be a text"),
        (b"{}", "a script in JSON is a list of turns"),
        (b"a <break time=x/> b", "is no break: write"),
    ],
)
def test_text_that_arrives_and_is_none(
    given: bytes, message: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with stdin_of(given):
        assert main(command(model, "-", "-o", tmp_path / "out.wav")) == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith("moshi-local: ")
    assert message in line
    assert not list(tmp_path.glob("*.*"))


# ----------------------------------------------------------------------------- the speaker


@pytest.fixture
def card(tmp_path_factory: pytest.TempPathFactory) -> Iterator[rig.VirtualCard]:
    with rig.VirtualCard.start(tmp_path_factory.mktemp("rig") / "card") as running:
        yield running


@pytest.mark.device
def test_the_speaker_plays_all_of_it_in_whole_words(
    card: rig.VirtualCard, model: Path, tmp_path: Path
) -> None:
    """Through a pipe in bursts: the same samples, with silence between words alone."""
    text = f"{TEXT} And so on."
    run(model, text, "-o", tmp_path / "whole.wav")
    given = ["--model", str(model)]
    run_ = benchmark.spoken_in_bursts(card, tmp_path, text, given, seed=0, stalls=(2.0, 3.0))
    assert not run_.exit_code, run_.told
    wanted, _ = soundfile.read(tmp_path / "whole.wav", dtype="float32")
    assert run_.facts["output_seconds"] == pytest.approx(len(wanted) / RATE, abs=0.001)
    assert run_.facts["gaps"] == 0
    assert run_.first_sound is not None
    heard = np.count_nonzero(run_.speaker) / RATE
    assert heard == pytest.approx(np.count_nonzero(wanted) / RATE, abs=0.2)
    assert run_.silences(), "the text came too late"
    assert all(seconds < 0.15 for seconds in run_.from_words())
