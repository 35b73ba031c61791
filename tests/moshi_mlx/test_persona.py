"""Persona and voice: the prompt's frames, sessions that begin with it, and its kept states."""

import gc
import io
import os
import tarfile
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import moshi_mlx
from moshi_mlx import ArgumentError, CheckpointError, Sampling, SessionError, VerbError
from moshi_mlx.families import prompt_states
from moshi_mlx.families.persona import PersonaPlex
from moshi_mlx.families.prompt_states import PromptStates, prompt_folder
from moshi_mlx.families.prompts import SILENT_CODES, SINE_CODES, make_prompt, persona_text
from moshi_mlx.files import read_json
from moshi_mlx.generate import Generator
from moshi_mlx.published import read_config
from moshi_mlx.trees import named_parameters
from moshi_mlx.voices import Voice, load_voice
from moshi_mlx.weights import load_lm
from tests import conformance
from tests.moshi_mlx.test_families import NANO, nano_as, with_anna

CASES = Path(__file__).parents[1] / "fixtures" / "personaplex"
PERSONA = "You are a friendly teacher."
HOT = Sampling(temperature=10.0, top_k=200)  # nano is sure of silence


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nano as a model that takes a persona, with a voice in its folder and two in its archive."""
    folder = with_anna(tmp_path_factory.mktemp("persona") / "model")
    with tarfile.open(folder / "voices.tgz", "w:gz") as tar:
        for name in ("NATF0", "NATF1"):
            tar.add(CASES / "personaplex" / "voice.pt", f"voices/{name}.pt")
        link = tarfile.TarInfo("voices/LINK.pt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        escape = tarfile.TarInfo("../../ESCAPE.txt")
        tar.addfile(escape, io.BytesIO())
    return folder


@pytest.fixture(scope="module")
def moshi(folder: Path) -> PersonaPlex:
    moshi = moshi_mlx.load(folder, verb="talk", codec="mlx", dtype=mx.float32)
    assert isinstance(moshi, PersonaPlex)
    return moshi


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def sound(frames: int) -> np.ndarray:
    return np.random.default_rng(1).uniform(-0.3, 0.3, (frames, 1920)).astype(np.float32)


def tokens_of(session: moshi_mlx.Session, frames: int = 8) -> list[list[int]]:
    steps = [session.step(pcm).tokens for pcm in sound(frames)]
    return [tokens.tolist() for tokens in steps if tokens is not None]


# ------------------------------------------------------------------------------- the prompt


@pytest.mark.parametrize("case", ["personaplex", "personaplex-window"])
def test_the_reference(case: str) -> None:
    """The voice as codes, embeddings, .pt and our own file; see `conformance`."""
    result = conformance.run_case(CASES / case)
    ways = ("codes", "embeddings", "pt", "saved")
    kinds = ("prompt_logits", "text_logits", "audio_logits", "tokens")
    assert set(result) == {f"{way}.{kind}" for way in ways for kind in kinds}
    assert conformance.passes(result), result


def test_sets_that_nobody_runs_are_not_in_memory() -> None:
    """Also where the file has the projections of all sets in one tensor."""
    path = CASES / "personaplex" / "model.safetensors"
    config = read_config(read_json(CASES / "personaplex" / "config.json")).lm
    gc.collect()
    mx.clear_cache()  # whose buffers may be larger than what they are taken for
    before = mx.get_active_memory()
    lm = load_lm(path, config, dtype=mx.bfloat16, generated=8)
    gc.collect()
    own = sum(array.nbytes for array in named_parameters(lm).values())
    # MLX lets a view keep 16 KiB more than it needs; the other sets' projections have 32 KiB.
    assert mx.get_active_memory() - before - own < 16 * 1024


def test_a_persona_is_in_tags_once() -> None:
    assert persona_text("  You sing. ") == "<system> You sing. <system>"
    assert persona_text("<system> You sing. <system>") == "<system> You sing. <system>"
    assert persona_text("<system> half") == "<system> <system> half <system>"
    for empty in ("", " \n", "<system>", "<system> <system>"):
        assert persona_text(empty) == ""


def test_phases_that_are_left_out(moshi: PersonaPlex) -> None:
    config = moshi.lm.config
    tokens = moshi.text.encode(persona_text(PERSONA))
    voice = moshi.voice("ANNA")
    both = moshi.prompt(PERSONA, voice)
    assert both is not None
    text, said, heard = np.split(both.frames[0], [1, 9])
    assert text[0].tolist() == [3] * (9 + 6) + tokens + [3] * 6
    assert (said[:, :9] == voice.codes).all()
    assert (said[:, 9:] == np.array(SILENT_CODES)[:, None] % 512).all()
    assert (heard == np.array(SINE_CODES)[:, None] % 512).all()
    assert both.after.tolist() == [[code % 512 for code in SINE_CODES]]
    persona, spoken = moshi.prompt(PERSONA), moshi.prompt("", voice)
    assert persona is not None and spoken is not None
    assert (persona.frames == both.frames[:, :, 9:]).all()
    assert spoken.frames.shape[2] == 9 + 2 * 6
    assert moshi.prompt(" ") is moshi.prompt() is None
    with pytest.raises(ArgumentError, match=r"frames \(.* of text\), the model remembers 100"):
        moshi.prompt(PERSONA * 20)
    with pytest.raises(ArgumentError, match="the persona's tokens must be from 0 to 511, is 512"):
        make_prompt(config, text=[512])


# ------------------------------------------------------------------------------- sessions


@pytest.mark.gpu
def test_a_session_goes_on_from_its_prompt(moshi: PersonaPlex) -> None:
    """As when every frame of the prompt is stepped through with all of it forced."""
    prompt = moshi.prompt(PERSONA, "ANNA")
    assert prompt is not None
    frames = prompt.frames[0]
    generator = Generator(moshi.lm, text=HOT, audio=HOT, seed=3)
    delays = np.array(moshi.lm.config.delays[1:9])
    for t in range(frames.shape[1] - 1):
        audio = [frames[1 + k, t + 1 - d] for k, d in enumerate(delays)]
        generator.step(frames[None, 9:, t], text=frames[0, t + 1], audio=audio)
    last = [frames[1 + k, -1] if d else -2 for k, d in enumerate(delays)]
    generator.step(frames[None, 9:, -1], audio=last)
    state = moshi.codec.init_state()
    wanted = []
    for pcm in sound(8):
        frame = generator.step(moshi.codec.encode_step(pcm, state).T).frame
        assert frame is not None
        wanted.append(frame[0].tolist())
    with moshi.session(persona=PERSONA, voice="ANNA", seed=3, text=HOT, audio=HOT) as session:
        assert session.frames == 0
        assert tokens_of(session) == wanted
    with moshi.session(seed=3, text=HOT, audio=HOT) as session:
        assert tokens_of(session) != wanted


@pytest.mark.gpu
def test_reset_returns_to_the_prompt(moshi: PersonaPlex) -> None:
    """At once, and also after the ring of keys has come round."""
    codes = np.random.default_rng(2).integers(0, 512, (8, 60), dtype=np.int32)
    long = Voice("LONG", codes=codes)
    with moshi.session(persona=PERSONA, voice=long, text=HOT, audio=HOT) as session:
        first = tokens_of(session, 24)
        began = time.perf_counter()
        session.reset()
        assert time.perf_counter() - began < 0.08
        assert session.frames == 0
        assert tokens_of(session, 24) == first
        state = session.save()
        expected = tokens_of(session)
    resumed = moshi.session(state=state, text=HOT, audio=HOT)
    assert tokens_of(resumed) == expected
    with pytest.raises(SessionError, match="its persona or voice is not in its state"):
        resumed.reset()
    tokens_of(resumed)
    with pytest.raises(ArgumentError, match="give only state"):
        moshi.session(state=state, persona=PERSONA)


@pytest.mark.gpu
def test_a_persona_that_is_kept_in_sight(moshi: PersonaPlex) -> None:
    """Until the context is full nothing changes; a reset and a saved state keep it too."""
    given: dict[str, Any] = {"persona": PERSONA, "voice": "ANNA", "text": HOT, "audio": HOT}
    prompt = moshi.prompt(PERSONA, "ANNA")
    assert prompt is not None
    length = prompt.frames.shape[2]
    room = moshi.lm.config.transformer.context - length
    frames = room + 30
    with moshi.session(**given) as plain:
        usual = tokens_of(plain, frames)
    with moshi.session(**given, keep_persona=True) as session:
        assert session.opening is not None
        assert (session.opening.frames, session.opening.state.facts["kept"]) == (length, length)
        first = tokens_of(session, frames)
        assert first[:room] == usual[:room]
        assert first[room:] != usual[room:]
        state = session.save()
        expected = tokens_of(session)
        session.reset()
        assert tokens_of(session, frames) == first
    with moshi.session(state=state, text=HOT, audio=HOT) as resumed:
        assert tokens_of(resumed) == expected
    with pytest.raises(ArgumentError, match="give only state"):
        moshi.session(state=state, keep_persona=True)
    with pytest.raises(ArgumentError, match="kv_bits must be None with keep_persona, is 8"):
        moshi.session(**given, keep_persona=True, kv_bits=8)
    with pytest.raises(ArgumentError, match="keep_persona needs a persona or a voice"):
        moshi.session(persona=" ", keep_persona=True)
    with pytest.raises(ArgumentError, match="keep_persona must be True or False, is 1"):
        moshi.session(**given, keep_persona=1)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------- kept states


def test_a_prompt_is_run_once(moshi: PersonaPlex, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the same weights, prompt and kind of keys; from memory, then from the file."""
    ran: list[int] = []
    prefill = Generator.prefill

    def counted(self: Generator, *args: Any) -> Any:
        ran.append(1)
        return prefill(self, *args)

    monkeypatch.setattr(Generator, "prefill", counted)

    def begin(**changes: Any) -> list[list[int]]:
        given: dict[str, Any] = {"persona": PERSONA, "voice": "ANNA", "text": HOT, "audio": HOT}
        with moshi.session(**given | changes) as session:
            return tokens_of(session)

    moshi.__dict__.pop("_prompts", None)
    first = begin()
    guarded = Sampling(temperature=10.0, top_k=200, repetition_penalty=1.2)
    assert begin() == first != begin(seed=1)
    assert begin(text=guarded) == begin(text=guarded, prompt_cache=False)
    assert len(ran) == 2
    assert len(list(prompt_folder().iterdir())) == 1
    moshi.__dict__.pop("_prompts")  # as in a new process
    assert begin() == first
    assert len(ran) == 2
    for changes in ({"persona": "You sing."}, {"voice": None}, {"kv_bits": 8}):
        before = len(ran)
        begin(**changes)
        assert len(ran) == before + 1
    assert len(list(prompt_folder().iterdir())) == 4


def test_the_weights_are_part_of_the_key(moshi: PersonaPlex) -> None:
    prompt = moshi.prompt(PERSONA)
    assert prompt is not None
    states = PromptStates(moshi.files)
    generator = Generator(moshi.lm, text=HOT, audio=HOT)
    key = states._key(prompt, generator, None)
    assert key == PromptStates(moshi.files)._key(prompt, generator, None)
    assert moshi.files.config is not None
    status = moshi.files.config.stat()
    os.utime(moshi.files.config, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert states._key(prompt, generator, None) != key


@pytest.mark.parametrize("damage", [b"", b"nonsense", None])
def test_a_damaged_state_is_made_again(moshi: PersonaPlex, damage: bytes | None) -> None:
    moshi.__dict__.pop("_prompts", None)
    with moshi.session(persona=PERSONA) as session:
        wanted = tokens_of(session)
    (path,) = prompt_folder().iterdir()
    good = path.read_bytes()
    path.write_bytes(good[:-4] + b"\xff" * 4 if damage is None else damage)
    moshi.__dict__.pop("_prompts")
    with moshi.session(persona=PERSONA) as session:
        assert tokens_of(session) == wanted
    if damage is not None:
        assert path.read_bytes() == good


def test_a_full_folder_and_one_that_cannot_be_written(
    moshi: PersonaPlex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The states that were not used for longest go; without a folder there are none."""
    moshi.__dict__.pop("_prompts", None)
    paths = []
    for n, persona in enumerate(("One.", "Two.", "Three.")):
        before = set(prompt_folder().glob("*"))
        moshi.session(persona=persona).close()
        (path,) = set(prompt_folder().glob("*")) - before
        os.utime(path, (1000 + n, 1000 + n))
        paths.append(path)
    moshi.__dict__.pop("_prompts")
    moshi.session(persona="One.").close()  # used: no longer the oldest
    size = max(path.stat().st_size for path in paths)
    monkeypatch.setattr(prompt_states, "MOST_BYTES", int(3.5 * size))
    moshi.session(persona="Four.").close()
    assert [path.exists() for path in paths] == [True, False, True]
    monkeypatch.setattr(prompt_states, "MOST_BYTES", 1000)
    moshi.session(persona="Five.").close()
    assert not list(prompt_folder().glob("*"))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    moshi.session(persona="Six.").close()


# ------------------------------------------------------------------------------- voices


def test_voices_of_a_model(moshi: PersonaPlex, folder: Path, tmp_path: Path) -> None:
    """In its folder and its archive, from which no link and nothing outside is read."""
    assert moshi.voices() == ["ANNA", "NATF0", "NATF1"]
    anna, file = moshi.voice("ANNA"), folder / "voices" / "ANNA.safetensors"
    for same in ("ANNA.pt", file, str(file), anna):
        assert moshi.voice(same).fingerprint == anna.fingerprint
    published = load_voice(CASES / "personaplex" / "voice.pt")
    assert moshi.voice("NATF1").fingerprint == published.fingerprint
    assert moshi.voice("NATF1").name == "NATF1"
    with pytest.raises(ArgumentError, match=r"no voice 'natf': did you mean NATF1 or NATF0\?"):
        moshi.session(voice="natf")
    with pytest.raises(ArgumentError, match="no voice 'LINK': It has ANNA, NATF0, NATF1"):
        moshi.voice("LINK")
    with pytest.raises(ArgumentError, match=r"voice NATF0 is for another model: .* width 48"):
        moshi.session(voice="NATF0")
    with pytest.raises(CheckpointError, match=r"none\.pt"):
        moshi.session(voice=tmp_path / "none.pt")
    for wrong in ("", 3, b"ANNA"):
        with pytest.raises(ArgumentError, match="voice must be a name, a path or a Voice"):
            moshi.session(voice=wrong)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="persona must be a text, is 3"):
        moshi.session(persona=3)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="prompt_cache must be True or False"):
        moshi.session(persona=PERSONA, prompt_cache=1)  # type: ignore[arg-type]


def test_a_damaged_archive(folder: Path, tmp_path: Path) -> None:
    broken = nano_as(tmp_path / "model", model_type="personaplex")
    content = (folder / "voices.tgz").read_bytes()
    (broken / "voices.tgz").write_bytes(content[:100] + bytes(50) + content[150:])
    model = moshi_mlx.load(broken, verb="talk", codec="mlx")
    with pytest.raises(CheckpointError, match=r"voices\.tgz: cannot be read, fetch it again"):
        model.voices()


def test_other_models_take_neither() -> None:
    nano = moshi_mlx.load("nano", verb="talk", codec="mlx")
    assert nano.voices() == []
    with pytest.raises(VerbError, match="nano cannot be given a persona: use personaplex"):
        nano.session(persona=PERSONA)
    with pytest.raises(VerbError, match="nano cannot be given a voice: use personaplex"):
        nano.session(voice="NATF2")
    with pytest.raises(VerbError, match="nano cannot be given a voice: use personaplex"):
        nano.voice_from_sound(sound(20).ravel(), name="ADA")


def test_a_voice_from_sound(moshi: PersonaPlex, tmp_path: Path) -> None:
    """Of the question that comes with nano: its codes are those of the codec, from its start."""
    from moshi_mlx.sounds import open_sound

    (pcm,) = open_sound(NANO / "question.wav").read(moshi.sample_rate, seconds=4.5)
    voice = moshi.voice_from_sound(pcm, name="Q")
    assert voice.codes is not None and voice.codes.max() < 512
    voice.save(tmp_path / "Q.safetensors", consent="Synthetic speech.")
    with moshi.session(voice=tmp_path / "Q.safetensors") as session:
        assert len(tokens_of(session)) == 8
