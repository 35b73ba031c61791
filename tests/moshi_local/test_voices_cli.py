"""Persona and voice on the command line: `run` with them, `voices`, and what is refused."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import soundfile

import moshi_mlx
from moshi_local import offline, voices
from moshi_local.cli import main
from moshi_local.config_file import config_path
from moshi_local.conversation import Conversation
from moshi_local.events import FrameDone
from moshi_local.observers.record import Recorder
from moshi_local.options import SamplingFlags
from moshi_local.role import LARGEST_PERSONA, own_voices
from moshi_mlx import catalog
from moshi_mlx.sounds import open_sound
from moshi_mlx.voices import load_voice
from tests.fixtures import make_tts
from tests.moshi_mlx.test_families import NANO, with_anna
from tests.moshi_mlx.test_hub import hub_of
from tests.moshi_mlx.test_voices import packed, parts

PERSONAPLEX = Path(__file__).parents[1] / "fixtures" / "personaplex" / "personaplex"
PERSONA = "You are a friendly teacher."
CONSENT = "Ada Example, made up, agreed on 3 May."


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nano as a model that takes a persona, with one voice, and one of another model."""
    folder = with_anna(tmp_path_factory.mktemp("persona") / "model")
    (folder / "voices" / "OTHER.pt").symlink_to(PERSONAPLEX / "voice.pt")
    return folder


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four seconds of the bundled question: good enough to be a voice."""
    path = tmp_path_factory.mktemp("speech") / "ada.wav"
    (pcm,) = open_sound(NANO / "question.wav").read(24_000, seconds=4.5)
    soundfile.write(path, pcm, 24_000)
    return path


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("XDG_CONFIG_HOME", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))


@pytest.fixture
def heard(tmp_path: Path) -> Path:
    path = tmp_path / "in.wav"
    soundfile.write(path, 0.01 * np.random.default_rng(0).standard_normal(12_000), 24_000)
    return path


def said(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[str, str]:
    """stdout and stderr of a command that succeeds."""
    code = main([str(a) for a in arguments])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return captured.out, captured.err


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The one line of a command that must fail with exit code 2; before it only what is loaded."""
    assert main([str(a) for a in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    *before, line = captured.err.splitlines()
    assert line.startswith("moshi-local: ")
    assert all(other.startswith(("loading ", "codec ")) for other in before)
    return line


def add(model: Path, speech: Path, name: str = "ADA", *more: str) -> list[str]:
    given = ["voices", "add", name, str(speech), "--model", str(model)]
    return [*given, "--i-have-consent", CONSENT, *more]


# ------------------------------------------------------------------------------- run


def test_run_with_persona_and_voice(
    model: Path, heard: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Who speaks is told, the prompt is kept for the next time, and the answer is the same."""
    text = tmp_path / "teacher.txt"
    text.write_bytes(b"\xef\xbb\xbf" + PERSONA.encode() + b"\n")
    hot = ["--temperature", "10", "--temperature-text", "10", "--tail", "0.4", "--codec", "mlx"]
    given = ["run", str(heard), "--model", str(model), "--voice", "ANNA", *hot]
    first, second, third, kept, plain = (tmp_path / f"{n}.wav" for n in range(5))
    out, err = said(capsys, *given, first, "--persona", PERSONA, "--json")
    summary = json.loads(out)
    assert (summary["persona"], summary["voice"]) == (PERSONA, "ANNA")
    assert f"persona: {PERSONA}\nvoice ANNA: with consent “made up”, 20" in err
    assert " frames: " in err and "earlier" not in err
    _, err = said(capsys, *given, second, "--persona", f"@{text}")
    assert "kept from an earlier conversation" in err
    _, err = said(capsys, *given, third, "--persona", f"@{text}", "--no-prompt-cache")
    assert "earlier" not in err
    _, err = said(capsys, *given, kept, "--persona", PERSONA, "--keep-persona")
    assert "it stays in sight" in err
    said(capsys, "run", heard, plain, "--model", model, "--persona", " ", "--voice", " ", *hot)
    answer = first.read_bytes()
    assert answer == second.read_bytes() == third.read_bytes() == kept.read_bytes()
    assert answer != plain.read_bytes()


def test_a_warm_up_ends_after_the_prompt(
    model: Path, heard: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a long recording some frames are timed first: the answer is the same as without."""
    given = ["run", str(heard), "--model", str(model), "--persona", PERSONA, "--voice", "ANNA"]
    given += ["--temperature", "10", "--temperature-text", "10", "--keep-persona", "--tail", "0.4"]
    short, long = tmp_path / "short.wav", tmp_path / "long.wav"
    assert main([*given, str(short)]) == 0
    monkeypatch.setattr(offline, "LONG_SECONDS", 0.1)
    assert main([*given, str(long)]) == 0
    assert short.read_bytes() == long.read_bytes()
    moshi = moshi_mlx.load(model, verb="talk", codec="mlx")
    flags = SamplingFlags(temperature=10.0, temperature_text=10.0)
    text, audio = flags.text(moshi.text_sampling), flags.audio(moshi.audio_sampling)
    pcm, _ = soundfile.read(heard, dtype="float32")
    answer, _ = soundfile.read(short, dtype="float32")
    frames = np.pad(pcm, (0, len(answer) - len(pcm))).reshape(-1, moshi.frame_size)
    with moshi.session(persona=PERSONA, voice="ANNA", text=text, audio=audio) as session:
        wanted = np.concatenate([session.step(frame).pcm for frame in frames])
    np.testing.assert_allclose(answer, wanted.clip(-1, 1), atol=1e-4)


def test_the_key_that_starts_over_comes_back_to_the_persona(model: Path) -> None:
    moshi = moshi_mlx.load(model, verb="talk", codec="mlx", dtype=mx.float32)
    sampling = moshi_mlx.Sampling(temperature=10.0, top_k=200)
    session = moshi.session(persona=PERSONA, voice="ANNA", text=sampling, audio=sampling)
    conversation = Conversation(session, frame_rate=moshi.frame_rate)

    def tokens() -> Iterator[list[int]]:
        for _ in range(6):
            frame = conversation.step(np.zeros(moshi.frame_size, np.float32))
            assert frame is not None and frame.tokens is not None
            yield frame.tokens.tolist()

    first = list(tokens())
    conversation.ask_reset()
    assert list(tokens()) == first


def test_a_persona_of_the_configuration_file(
    model: Path, heard: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A table of `run`; a blank on the command line takes it back."""
    config_path().parent.mkdir(parents=True)
    lines = f'model = "{model}"\npersona = "{PERSONA}"\nvoice = "ANNA"\ncodec = "mlx"\ntail = 0.1\n'
    config_path().write_text(f"[run]\n{lines}")
    target = heard.with_name("out.wav")
    assert "persona: You are" in said(capsys, "run", heard, target)[1]
    none = ("--model", "nano", "--tail", "0", "--persona", " ", "--voice", " ")
    assert "persona" not in said(capsys, "run", heard, target, *none)[1]


# ------------------------------------------------------------------------------- refused


class _Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("run!",)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--voice", "ANA"], "has no voice 'ANA': did you mean ANNA? It has ANNA, OTHER"),
        (["--voice", "OTHER"], "voice OTHER is for another model: it has 17 streams and width 48"),
        (["--voice", "./evil.pt"], "evil.pt: "),
        (["--voice", "./text.pt"], "text.pt: "),
        (["--voice", "./text.safetensors"], "text.safetensors: "),
        (["--voice", "./none.pt"], "none.pt: "),
        (["--persona", "word " * 10_000], "the model remembers 100: make the persona or the voice"),
        (["--persona", "@none.txt"], "--persona @none.txt: none.txt cannot be read: No such file"),
        (["--persona", "@."], "cannot be read: Is a directory"),
        (["--persona", "@evil.pt"], "the file is a pickle"),
        (["--persona", "@latin.txt"], "the file is not text in UTF-8: give a text file"),
        (["--persona", "@large.txt"], "has more than 100 kB, which is too much"),
        (["--persona", "@empty.txt"], "--persona @empty.txt: the file has no text"),
        (["--keep-persona"], "--keep-persona goes with --persona or --voice"),
        (["--persona", PERSONA, "--keep-persona", "--kv-bits", "8"],
         "--keep-persona does not go with --kv-bits"),
    ],
)  # fmt: skip
def test_what_cannot_be_said_or_spoken_with(
    given: list[str],
    message: str,
    model: Path,
    heard: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One line, exit code 2, and nothing is written."""
    monkeypatch.chdir(heard.parent)
    evil = pickle.dumps({"embeddings": _Code()}, 2)
    Path("evil.pt").write_bytes(packed(parts() | {"voice/data.pkl": evil}).getvalue())
    for name in ("text.pt", "text.safetensors"):
        Path(name).write_text("a text\n")
    Path("latin.txt").write_bytes("Grüße".encode("latin-1"))
    Path("large.txt").write_text("a" * (LARGEST_PERSONA + 1))
    Path("empty.txt").write_bytes(b"\xef\xbb\xbf \n")
    assert message in refused(capsys, "run", heard, "out.wav", "--model", model, *given)
    assert not Path("out.wav").exists()


@pytest.mark.parametrize("name", ["nano", "moshiko", "moshika-q4", "kyutai/moshiko-mlx-q8"])
def test_models_that_take_no_persona_are_refused_before_they_are_loaded(
    name: str, heard: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for given, what in (("--persona", "a persona"), ("--voice", "a voice")):
        for command in (["run", str(heard), str(heard.with_name("out.wav"))], []):
            assert main([*command, "--model", name, given, "NATF2"]) == 2
            wanted = f"moshi-local: {name} cannot be given {what}: use personaplex\n"
            assert capsys.readouterr().err == wanted


def test_no_answer_into_the_personas_file(
    model: Path, heard: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = heard.with_name("persona.wav")
    text.write_text(PERSONA)
    line = refused(capsys, "run", heard, text, "--model", model, "--persona", f"@{text}")
    assert "it is the same file as the input" in line
    assert text.read_text() == PERSONA


# ------------------------------------------------------------------------------- voices


def test_a_voice_of_ones_own(
    model: Path, speech: Path, heard: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Made, listed, shown, spoken with and removed."""
    out, _ = said(capsys, *add(model, speech))
    path = own_voices() / "ADA.safetensors"
    assert f"saved as {path}" in out
    assert load_voice(path).about["consent"] == CONSENT
    for text in (said(capsys, "voices")[0], said(capsys, "voices", "show", "ADA")[0]):
        assert "Ada Example" in text
    listed = json.loads(said(capsys, "voices", "--json")[0])
    (own,) = listed["own"]
    assert (own["name"], own["consent"], own["source"]) == ("ADA", CONSENT, "ada.wav")
    assert own == json.loads(said(capsys, "voices", "show", path, "--json")[0])
    rows = {row["model"]: row for row in listed["models"]}
    assert "NATF2" in rows["personaplex"]["voices"] and rows["personaplex"]["choice"]
    assert not rows["nano"]["choice"] and rows["nano"]["licence"] == "MIT"
    here = json.loads(said(capsys, "voices", "--model", model, "--json")[0])["models"]
    assert [row["here"] for row in here] == [["ANNA", "OTHER"]]
    _, err = said(
        capsys,
        "run",
        heard,
        heard.with_name("out.wav"),
        "--model",
        model,
        "--voice",
        "ADA",
        "--tail",
        "0",
    )
    assert f"voice ADA: with consent “{CONSENT}”, {own['date'][:10]}\n" in err
    assert "there is a voice ADA already" in refused(capsys, *add(model, speech, "ada"))
    said(capsys, *add(model, speech, "ADA", "--force"))
    assert "did you mean ADA? You have ADA" in refused(capsys, "voices", "remove", "ADDA")
    said(capsys, "voices", "remove", "ADA")
    assert not list(own_voices().iterdir())
    assert "you have no voice 'ADA'" in refused(capsys, "voices", "show", "ADA")


def test_consent_is_asked_for_on_a_terminal(
    model: Path, speech: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = add(model, speech)[:-2]
    line = refused(capsys, *command)
    assert "consent" in line and "--i-have-consent" in line
    for stream in ("stdin", "stderr"):
        monkeypatch.setattr(f"sys.{stream}.isatty", lambda: True)
    asked: list[str] = []
    answers = iter([" ", CONSENT])

    def prompt(question: str, **_: Any) -> str:
        asked.append(question)
        return next(answers)

    monkeypatch.setattr(voices.typer, "prompt", prompt)
    assert "consent" in refused(capsys, *command)
    assert not own_voices().exists()
    said(capsys, *command)
    assert asked == [voices.CONSENT_QUESTION] * 2
    assert load_voice(own_voices() / "ADA.safetensors").about["consent"] == CONSENT


def test_recordings_that_are_no_voice(
    model: Path, speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is written, and what was there stays."""
    pcm, rate = soundfile.read(speech, dtype="float32")
    short, clipped, long = (tmp_path / f"{name}.wav" for name in ("short", "clipped", "long"))
    soundfile.write(short, pcm[rate : rate + rate // 10], rate)
    soundfile.write(clipped, np.clip(20 * pcm, -1, 1), rate)
    soundfile.write(long, np.zeros(121 * 4000, np.float32), 4000)
    (tmp_path / "text.wav").write_text("a text")
    for path, message in (
        (short, "voice ADA needs 1 to 60 s of speech, the sound has 0.1 s"),
        (clipped, "samples are clipped"),
        (long, "has 121 s of sound: cut 1 to 60 s of one speaker out of it"),
        (tmp_path / "text.wav", "cannot read"),
        (tmp_path / "none.wav", "there is no file"),
    ):
        assert message in refused(capsys, *add(model, path))
    for name in ("../ADA", ".ADA", " ", "a b", "x" * 65, "-"):
        line = refused(capsys, "voices", "add", "--i-have-consent", CONSENT, "--", name, speech)
        assert "a voice cannot be called" in line
    assert "has a voice ANNA already" in refused(capsys, *add(model, speech, "anna"))
    assert "has a voice NATF2 already" in refused(
        capsys, *add(Path("personaplex"), speech, "natf2")
    )
    line = refused(capsys, *add(model, speech)[:-1], " ")
    assert "a voice is only made with its speaker's consent" in line
    line = refused(capsys, *add(model, speech)[:-1], "")
    assert "the argument after '--i-have-consent' is empty" in line
    line = refused(capsys, *add(model, speech)[:-1], "x" * 1001)
    assert "has 1001 characters: use 1000 at most" in line
    line = refused(capsys, *add(Path("nano"), speech))
    assert line == "moshi-local: nano cannot be given a voice: use personaplex"
    assert not own_voices().exists()
    said(capsys, *add(model, clipped, "ADA", "--accept-faults"))
    damaged = own_voices() / "BEN.safetensors"
    damaged.write_text("a text")
    assert str(damaged) in refused(capsys, "voices", "show", "BEN")
    found = json.loads(said(capsys, "voices", "--json")[0])["own"]
    assert [voice["name"] for voice in found] == ["ADA", "BEN"]
    assert "BEN" in said(capsys, "voices")[0]


@pytest.mark.parametrize("format", ["wav", "flac"])
def test_a_recorded_conversation_is_no_voice(
    format: Any, model: Path, speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever was recorded there has not agreed to that; by the file's tags."""
    moshi = moshi_mlx.load("nano", verb="talk", codec="mlx")
    recorder = Recorder(
        tmp_path, sample_rate=24_000, frame_size=1920, model="nano", seed=0, format=format
    )
    with moshi.session() as session, recorder:
        heard = np.zeros(1920, np.float32)
        for _ in range(3):
            frame = session.step(heard)
            recorder(FrameDone(0.0, frame, heard))
    line = refused(capsys, *add(model, recorder.path))
    assert "is a recording that moshi-local made of a conversation" in line
    assert not own_voices().exists()


# ------------------------------------------------------------------------------- to hear


def test_published_voices_are_listed_and_heard(
    tmp_path: Path, speech: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a program that asks a hub, then without it."""
    names = ["alba-mackenna/casual.wav", "expresso/ex01 a.wav", "odd/one.wav"]
    files = dict.fromkeys(names, speech.read_bytes()) | {"README.md": b"", f"{names[0]}.x": b""}
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")

    def ask(*arguments: str) -> tuple[int, str, str]:
        done = subprocess.run(
            [sys.executable, "-m", "moshi_local", "voices", *arguments],
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr

    with hub_of({catalog.VOICE_REPOSITORY: files}) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        assert ask("published")[1].splitlines() == [
            "alba-mackenna/casual.wav  (CC BY 4.0)",
            "expresso/ex01 a.wav  (CC BY-NC 4.0)",
            "odd/one.wav  (see its folder's card)",
        ]
        found = json.loads(ask("published", "ALBA", "cas", "--json")[1])
        assert found == [{"name": names[0], "licence": "CC BY 4.0"}]
        code, _, told = ask("play", "alba-mackenna/casul.wav", "-o", str(tmp_path / "a.wav"))
        assert code == 2 and f"did you mean {names[0]}?" in told
        assert ask("play", names[0], "-o", str(tmp_path / "a.wav"))[0] == 0
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, out, told = ask("play", names[0], "-o", str(tmp_path / "b.flac"))
    assert (code, out) == (0, ""), told
    assert told == "alba-mackenna/casual.wav of kyutai/tts-voices, licence CC BY 4.0\n"
    pcm, rate = soundfile.read(tmp_path / "b.flac")
    np.testing.assert_allclose(pcm, soundfile.read(speech)[0], atol=1e-4)
    assert rate == 24_000
    assert json.loads(ask("--json")[1])["published"]["here"] == names[:1]


def test_a_voice_for_speech_from_text(
    speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Made for a model that goes on from recordings, with the same rule of consent."""
    speaker = make_tts.write(tmp_path / "prefix", prefix=True)
    assert "by --i-have-consent" in refused(capsys, *add(speaker, speech)[:-2])
    said(capsys, *add(speaker, speech))
    voice = load_voice(own_voices() / "ADA.safetensors")
    assert voice.codes is not None
    assert len(voice.codes) == 4
    target, plain = tmp_path / "o.wav", tmp_path / "p.wav"
    given = ("--model", speaker, "--codec", "mlx")
    _, told = said(capsys, "speak", "Hello.", "-o", target, "--voice", "ADA", *given)
    assert f"voice ADA: with consent “{CONSENT}”, 20" in told
    said(capsys, "speak", "Hello.", "-o", plain, *given)
    assert target.read_bytes() != plain.read_bytes()
    line = refused(capsys, *add(speaker, target, "BEN"))
    assert "is synthetic speech that moshi-local made" in line
    for model in ("tts-1.6b", make_tts.write(tmp_path / "ahead")):
        assert "takes published voices alone" in refused(capsys, *add(Path(model), speech, "BEN"))
    rows = json.loads(said(capsys, "voices", "--json")[0])["models"]
    assert [row["model"] for row in rows if row["published"]] == ["tts-1.6b", "tts-0.75b"]
    (row,) = json.loads(said(capsys, "voices", "--json", "--model", model)[0])["models"]
    assert row["here"] == ["alice", "bob"]


def test_a_voice_of_ones_own_is_heard(
    model: Path, speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said(capsys, *add(model, speech))
    target = tmp_path / "ada.wav"
    _, told = said(capsys, "voices", "play", "ADA", "-o", target, "--model", model)
    assert told == "voice ADA, 4.0 s\n"
    pcm, rate = soundfile.read(target)
    assert len(pcm) / rate == pytest.approx(4.0)
    assert np.abs(pcm).max() > 0.1
    line = refused(capsys, "voices", "play", "ADA", "-o", target)
    assert "no model is here that makes sound of them" in line
    line = refused(capsys, "voices", "play", PERSONAPLEX / "voice.pt", "-o", target)
    assert "is what a model read of a recording, which cannot be played" in line
    assert "you have no voice 'BEN'" in refused(capsys, "voices", "play", "BEN", "-o", target)
    assert "there is no file BEN.wav" in refused(capsys, "voices", "play", "BEN.wav", "-o", target)
    line = refused(capsys, "voices", "play", "alba/x.wav", "-o", target)
    assert "there is no voice 'alba/x.wav': the published ones are in alba-mackenna, " in line
    line = refused(capsys, "voices", "play", "ADA", "-o", tmp_path / "a.txt")
    assert "its name must end in .wav or .flac" in line


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_reader_of_the_list_that_has_seen_enough_is_no_error(options: list[str]) -> None:
    command = [sys.executable, "-m", "moshi_local", "voices", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as program:
        assert program.stdout is not None
        program.stdout.close()
        _, errors = program.communicate()
    assert (program.returncode, errors) == (0, b"")


def test_models_without_voices_are_not_suggested(capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, "voices", "--model", "nonesuch")
    assert "There is no model 'nonesuch'. A model is one of nano, nano-tts, moshiko-bf16, " in line
    assert "stt" not in line
