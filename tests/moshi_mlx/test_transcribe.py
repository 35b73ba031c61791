"""Speech to text: the reference's numbers, words and times, pauses, stalls, what is refused."""

import asyncio
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import soundfile

import moshi_mlx
from moshi_mlx import (
    ArgumentError,
    AudioFileError,
    ConfigError,
    HeardWord,
    MoshiError,
    Sampling,
    SessionError,
    SpeechStarted,
    Stt,
    TextTokenizer,
    Transcription,
    TurnEnded,
    VerbError,
    WindowRefreshed,
    WordSpoken,
    catalog,
)
from moshi_mlx.config import SttConfig
from moshi_mlx.families.hearing import Fed, Hearer, Hearing
from moshi_mlx.families.sound_clock import SoundClock
from moshi_mlx.families.sound_frames import SoundFrames
from moshi_mlx.families.stall import StallRule, StallWatch
from moshi_mlx.families.turns import TurnRule, TurnWatch
from moshi_mlx.generate import Generator
from moshi_mlx.layouts import to_mlx, to_pytorch
from moshi_mlx.published import read_config
from moshi_mlx.safetensors import read_header
from moshi_mlx.trees import named_parameters
from tests import conformance
from tests.fixtures import make_stt

CASES = Path(__file__).parents[1] / "fixtures" / "stt"
SIZE, RATE = 1920, 24_000
EPAD, PAD = 0, 3
LATE = {"audio_delay_seconds": 2.5, "audio_silence_prefix_seconds": 1.0}
GREEDY = Sampling(temperature=0)
QUESTION = make_stt.NANO / "question.wav"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_stt.write(tmp_path_factory.mktemp("models") / "stt")


def loaded(folder: Path) -> Stt:
    return moshi_mlx.load(folder, verb="transcribe", codec="mlx")


@pytest.fixture(scope="module")
def stt(folder: Path) -> Stt:
    return loaded(folder)


@pytest.fixture(scope="module")
def late(tmp_path_factory: pytest.TempPathFactory) -> Stt:
    """With a prefix and a long delay, and without pause heads."""
    where = tmp_path_factory.mktemp("models") / "late"
    return loaded(make_stt.write(where, stt_config=LATE, extra_heads_num_heads=0))


@pytest.fixture(scope="module")
def mute(tmp_path_factory: pytest.TempPathFactory) -> Stt:
    """Writes nothing but padding."""
    return loaded(make_stt.write(tmp_path_factory.mktemp("models") / "mute", quiet=1.0))


@pytest.fixture(scope="module")
def sound() -> np.ndarray:
    """A bit more than four windows of speech, in which nothing is a whole frame."""
    pcm, _ = soundfile.read(QUESTION, dtype="float32")
    return np.tile(pcm, 2)[: 120 * SIZE + 700]


@pytest.fixture(scope="module")
def spoken(stt: Stt, sound: np.ndarray) -> Transcription:
    return stt.transcribe(sound)


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    size = round(seconds * RATE)
    return np.random.default_rng(seed).normal(0, 0.1, size).astype(np.float32)


def in_order(words: tuple[HeardWord, ...], seconds: float) -> bool:
    times = [0.0, *(time for word in words for time in (word.start, word.end)), seconds]
    return times == sorted(times)


# -------------------------------------------------------------------------- the reference


@pytest.mark.parametrize("case", ["stt-vad", "stt-prefix"])
def test_reference_numbers(case: str) -> None:
    """Both alignments, past several windows; the script's words and the server's events."""
    result = conformance.run_case(CASES / case)
    assert conformance.passes(result), result
    assert {"stream.tokens", "file.tokens", "words.script", "words.server"} <= result.keys()
    assert ("file.extra_heads" in result) is (case == "stt-vad")


def test_times_are_read_and_checked(tmp_path: Path) -> None:
    raw = json.loads((CASES / "stt-prefix" / "config.json").read_text(encoding="utf-8"))
    assert read_config(raw).stt == SttConfig(2.5, 1.0)
    assert read_config({**raw, "stt_config": {"audio_delay_seconds": 1}}).stt == SttConfig(1.0)
    assert read_config({**raw, "stt_config": None}).stt is None
    for wrong, said in (
        ({}, "stt_config: field 'audio_delay_seconds' is missing"),
        ({"audio_delay_seconds": "1"}, r"must be seconds from 0 to 60, is '1'"),
        ({"audio_delay_seconds": -1}, r"must be seconds from 0 to 60, is -1"),
        ({"audio_delay_seconds": float("nan")}, r"must be seconds from 0 to 60, is nan"),
        ({"audio_delay_seconds": 1, "more": 2}, r"field 'more' \(2\) is not understood"),
        ([1], r"field 'stt_config' must be an object, is \[1\]"),
    ):
        with pytest.raises(ConfigError, match=said):
            read_config({**raw, "stt_config": wrong})
    where = make_stt.write(tmp_path / "timeless", stt_config=None)
    with pytest.raises(ConfigError, match="field 'stt_config' is missing"):
        moshi_mlx.load(where, codec="mlx")


def test_every_layout_and_what_it_says_of_its_heads(
    stt: Stt, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The files decide whether there are heads; PyTorch's names and MLX's give the same words."""
    weights = dict(named_parameters(stt.lm))
    words = stt.transcribe(noise(1)).text
    headless = {name: value for name, value in weights.items() if "extra_heads" not in name}
    caplog.set_level("INFO", "moshi_mlx")
    for name, tensors, named, heads in (
        ("mlx", to_mlx(weights, stt.lm.config), 4, 4),
        ("mlx-without", to_mlx(headless, stt.lm.config), 4, 0),
        ("candle", to_pytorch(weights, stt.lm.config), 0, 4),
        ("pytorch", to_pytorch(headless, stt.lm.config), 0, 0),
    ):
        raw = make_stt.config_of(extra_heads_num_heads=named)
        where = tmp_path / name
        where.mkdir()
        mx.save_safetensors(str(where / raw["moshi_name"]), dict(tensors))
        for part in ("mimi_name", "mimi_config_name", "tokenizer_name"):
            (where / raw[part]).symlink_to(make_stt.NANO / raw[part])
        (where / "config.json").write_text(json.dumps(raw), encoding="utf-8")
        caplog.clear()
        model = loaded(where)
        assert model.heads == heads
        said = "4 pause heads" if heads else "no pause heads: turns are not told"
        assert caplog.messages == [f"{where} has {said}"]
        found = model.transcribe(noise(1))
        assert found.text == words
        assert all((word.pauses is not None) is bool(heads) for word in found.words)
    assert "extra_heads.3.weight" in read_header(tmp_path / "candle" / raw["moshi_name"])


def test_names_of_the_catalogue() -> None:
    for name in ("stt", "stt-1b", "stt-1b-en_fr", "kyutai/stt-1b-en_fr-candle"):
        entry = catalog.find(name)
        assert entry is not None
        assert entry.repository == "kyutai/stt-1b-en_fr-candle"
    for name in ("stt-2.6b", "stt-2.6b-en"):
        entry = catalog.find(name)
        assert entry is not None
        assert entry.repository == "kyutai/stt-2.6b-en"


# ------------------------------------------------------------------------------ whole files


def test_words_come_in_order_past_several_windows(
    stt: Stt, late: Stt, sound: np.ndarray, spoken: Transcription
) -> None:
    for model, found in ((stt, spoken), (late, late.transcribe(sound))):
        assert found.seconds == len(sound) / RATE
        assert len(found.words) > 30
        assert in_order(found.words, found.seconds)
        assert found.text == " ".join(word.text for word in found.words)
        # No word is of the silence before or after, and the last ones come.
        assert found.words[-1].end > found.seconds - 1
        heads = [word.pauses for word in found.words if word.pauses is not None]
        assert len(heads) == (len(found.words) if model.heads else 0)
        assert all(len(p) == 4 and 0 <= min(p) <= max(p) <= 1 for p in heads)


def test_a_batch_is_what_each_is_alone(
    stt: Stt, late: Stt, sound: np.ndarray, spoken: Transcription
) -> None:
    short = sound[: 30 * SIZE + 1]
    brief = stt.transcribe(short)
    assert stt.transcribe([short, sound, short]) == [brief, spoken, brief]
    assert late.transcribe([short, sound])[0] == late.transcribe(short)


def test_what_a_model_hears(late: Stt, monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence of the prefix and of the delay and a second, and whole frames only."""
    heard: list[np.ndarray] = []
    encode = late.codec.encode_step

    def listening(pcm: np.ndarray, state: Any) -> np.ndarray:
        heard.append(np.array(pcm))
        return encode(pcm, state)

    monkeypatch.setattr(late.codec, "encode_step", listening)
    late._quiet  # noqa: B018
    heard.clear()
    pcm = noise(0.7)
    late.transcribe(pcm)
    padded = np.concatenate([np.zeros(RATE), pcm, np.zeros(round(3.5 * RATE))])
    np.testing.assert_array_equal(np.concatenate(heard), padded[: len(padded) // SIZE * SIZE])


def test_a_file_an_array_and_an_iterator_are_the_same(
    stt: Stt, tmp_path: Path, sound: np.ndarray, spoken: Transcription
) -> None:
    file = tmp_path / "sound.wav"
    soundfile.write(file, sound, RATE, subtype="FLOAT")
    assert stt.transcribe(file) == stt.transcribe(str(file)) == spoken
    assert stt.transcribe(iter(np.array_split(sound, 7))) == spoken
    told: list[float] = []
    assert stt.transcribe([file], progress=told.append) == [spoken]
    assert told == sorted(told)
    assert told[-1] == spoken.seconds
    assert len(told) > 10


def test_other_rates_and_channels_are_read_block_by_block(tmp_path: Path) -> None:
    stereo = np.stack([noise(3), noise(3, 1)], axis=1)
    path = tmp_path / "stereo.flac"
    soundfile.write(path, stereo, 44_100)
    whole = moshi_mlx.sounds.open_sound(path).read(RATE).mean(axis=0)
    sound = SoundFrames(path, "source", rate=RATE, frame_size=SIZE, before=100, after=50)
    blocks = list(sound.read(5))
    assert {len(block) for block in blocks[:-1]} == {5}
    ours = np.concatenate(blocks).reshape(-1)
    padded = np.concatenate([np.zeros(100), whole, np.zeros(50)])
    np.testing.assert_allclose(ours, padded[: len(ours)], atol=1e-6)
    assert len(padded) - len(ours) < SIZE
    assert sound.seconds == len(whole) / RATE


def test_words_come_while_it_runs(stt: Stt, sound: np.ndarray, spoken: Transcription) -> None:
    words: list[HeardWord] = []
    passages = stt.transcribing([sound])
    first = next(passages)
    assert (first.source, first.ended, round(first.seconds, 2)) == (0, False, 0.96)
    for passage in [first, *passages]:
        words += passage.words
        assert [e.word for e in passage.events if isinstance(e, WordSpoken)] == [*passage.words]
    assert passage.ended
    assert tuple(words) == spoken.words


def test_what_is_no_sound_is_refused(stt: Stt, tmp_path: Path) -> None:
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"no sound")
    any_stt: Any = stt
    wrong: list[tuple[Callable[[], Any], type[MoshiError], str]] = [
        (lambda: stt.transcribe(tmp_path / "none.wav"), AudioFileError, "there is no file"),
        (lambda: stt.transcribe(broken), AudioFileError, "cannot read"),
        (lambda: stt.transcribe([]), ArgumentError, "sources must be 1 to 64 sounds"),
        (lambda: stt.transcribing("a.wav"), ArgumentError, "sources must be a list"),
        (lambda: stt.transcribe(np.zeros((2, 9))), ArgumentError, r"source must be a file or"),
        (lambda: stt.transcribe(np.zeros(0)), ArgumentError, "source has no samples"),
        (lambda: stt.transcribe(np.full(9, np.nan)), ArgumentError, "source must be finite"),
        (lambda: stt.transcribe([noise(1), np.zeros(0)]), ArgumentError, "source 1 has no"),
        (lambda: stt.transcribe(iter([])), ArgumentError, "source has no samples"),
        (lambda: any_stt.transcribe(noise(1), progress=3), ArgumentError, "progress must be"),
        (lambda: stt.transcribe(noise(1), seed=-1), ArgumentError, "seed must be"),
        (lambda: stt.transcribe(noise(1), stall_seconds=0), ArgumentError, "stall_seconds must"),
        (lambda: stt.transcribe(noise(1), refresh_at=2), ArgumentError, "refresh_at must be"),
        (lambda: stt.transcribe(noise(1), threshold=2), ArgumentError, "threshold must be"),
        (lambda: stt.session(hold=-1), ArgumentError, "hold must be"),
        (lambda: stt.transcribe(noise(1), spell=""), ArgumentError, "spell must be words"),
        (lambda: stt.transcribe(noise(1), spell=3), ArgumentError, "spell must be text"),
        (lambda: stt.session(spell_sound=noise(1)), ArgumentError, "give both"),
        (lambda: stt.translate(noise(1)), VerbError, "it can transcribe, but not translate"),
    ]
    for call, kind, said in wrong:
        with pytest.raises(kind, match=said) as caught:
            call()
        assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------- live


def frames_of(pcm: np.ndarray) -> np.ndarray:
    return pcm[: len(pcm) // SIZE * SIZE].reshape(-1, SIZE)


def test_a_session_says_what_a_file_run_does(
    stt: Stt, sound: np.ndarray, spoken: Transcription
) -> None:
    with stt.session() as session:
        heard = [session.step(pcm) for pcm in frames_of(sound)]
        words = [word for frame in heard for word in frame.words]
        last = session.flush()
        assert last
        session.reset()
        assert [session.step(pcm) for pcm in frames_of(sound)[:9]][-1].index == 8
    texts = [word.text for word in spoken.words]
    assert [word.text for word in words] == texts[: len(words)]
    assert [frame.index for frame in heard] == list(range(120))
    assert any(isinstance(event, SpeechStarted) for frame in heard for event in frame.events)
    assert heard[50].pauses is not None
    assert len(heard[50].pauses) == 4
    with pytest.raises(SessionError, match="this session is closed"):
        session.step(np.zeros(SIZE))


def test_sound_after_a_flush_keeps_its_times(late: Stt) -> None:
    pcm = frames_of(noise(12))
    session = late.session()
    before = [word for frame in pcm[:75] for word in session.step(frame).words]
    before += session.flush()
    assert before[-1].end <= 6.0
    after = [word for frame in pcm[75:] for word in session.step(frame).words]
    after += session.flush()
    assert in_order((*before, *after), 12.0)
    assert after[0].start >= before[-1].end
    assert after[-1].end > 11.0
    assert session.flush() == () or session.flush()[0].start >= after[-1].end


def test_a_session_streams(stt: Stt) -> None:
    async def streamed() -> list[int]:
        async with asyncio.timeout(20):
            return [frame.index async for frame in stt.session().stream(frames_of(noise(0.5)))]

    assert asyncio.run(streamed()) == list(range(6))


def test_frames_of_other_shapes_are_refused(stt: Stt) -> None:
    session = stt.session()
    for wrong in (np.zeros(9), np.zeros((1, SIZE)), np.zeros(SIZE, np.int64)):
        with pytest.raises(SessionError):
            session.step(wrong)
    assert session.step(np.zeros(SIZE, np.int16)).index == 0


# ------------------------------------------------------------- words and times, without a model


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer(CASES / "stt-vad" / "tokenizer.model")


def hearer_of(
    tokenizer: TextTokenizer, delay: float = 0.4, prefix: int = 0, **rules: Any
) -> Hearer:
    lm = read_config(conformance.read_json(CASES / "stt-vad" / "config.json")).lm
    quiet = np.zeros((prefix, 8), np.int32)
    times = SttConfig(delay, prefix / 12.5)
    stall = StallRule(rules.pop("stall", None), **rules)
    return Hearer(tokenizer, lm, times, 12.5, quiet, stall, TurnRule())


def run(hearer: Hearer, tokens: list[int], first: float = 0, loud: bool = True) -> list[HeardWord]:
    """What these tokens make of frames of the sound from `first` on."""
    pcm = np.full(SIZE, 0.1 if loud else 0.0, np.float32)
    words: list[HeardWord] = []
    for i, token in enumerate(tokens):
        hearer.waiting.append(Fed(np.zeros(8, np.int32), first + i, pcm=pcm))
        words += hearer.heard(hearer.take(), token, None)[0].words
    return words


def test_the_text_after_a_frame_is_that_of_the_next_one(tokenizer: TextTokenizer) -> None:
    """So a first piece after frame 9 begins at frame 10, less a delay of 5 frames."""
    begins, goes_on = pieces_of(tokenizer)
    hearer = hearer_of(tokenizer)
    words = run(hearer, [PAD] * 8 + [EPAD, begins, goes_on, PAD, EPAD, begins] + [PAD] * 5)
    assert [(round(w.start, 6), round(w.end, 6)) for w in words] == [(0.4, 0.72), (0.72, 1.12)]
    assert words[0].text == words[1].text + tokenizer.piece(goes_on)


def pieces_of(tokenizer: TextTokenizer) -> tuple[int, int]:
    """A piece with the boundary and one without."""
    pieces = [tokenizer.piece(token) for token in range(4, tokenizer.vocab_size)]
    begins = next(i for i, piece in enumerate(pieces) if piece.startswith(" ") and piece.strip())
    goes_on = next(i for i, piece in enumerate(pieces) if piece and " " not in piece)
    return 4 + begins, 4 + goes_on


def test_pieces_without_a_boundary_are_one_word_over_an_epad(tokenizer: TextTokenizer) -> None:
    begins, goes_on = pieces_of(tokenizer)
    hearer = hearer_of(tokenizer)
    words = run(hearer, [PAD] * 8 + [begins, PAD, EPAD, goes_on, EPAD, goes_on] + [PAD] * 5)
    assert [word.text for word in words] == [
        tokenizer.piece(begins).strip() + 2 * tokenizer.piece(goes_on)
    ]
    text = run(hearer, [EPAD, goes_on] * 200, 19)  # without any boundary
    assert len(text) > 5
    assert in_order(tuple(words + text), hearer.seconds)


def test_a_script_without_spaces_is_parted_at_epads(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = TextTokenizer(CASES / "stt-vad" / "tokenizer.model")
    _, goes_on = pieces_of(tokenizer)
    monkeypatch.setattr(tokenizer, "piece_bytes", lambda token: "本".encode() * (token > PAD))
    hearer = hearer_of(tokenizer)
    words = run(hearer, [*[PAD] * 6, goes_on, goes_on, EPAD, goes_on, *[PAD] * 6])
    assert [word.text for word in words] == ["本本", "本"]


def test_text_within_the_delay_is_of_nothing_heard(tokenizer: TextTokenizer) -> None:
    begins, _ = pieces_of(tokenizer)
    assert run(hearer_of(tokenizer), [EPAD, begins, EPAD, begins, begins, *[PAD] * 6]) == [
        HeardWord(tokenizer.piece(begins).strip(), 0.0, 0.4)
    ]


def test_a_clock_over_silence_that_was_put_in() -> None:
    clock = SoundClock()
    for frame in range(10):
        clock.hear(frame, frame - 2.5, True)
    for frame in range(10, 14):
        clock.hear(frame, 7.5, False)
    for frame in range(14, 20):
        clock.hear(frame, frame - 6.5, True)
    frames = [0, 2.5, 9.5, 11, 13.9, 14, 15.25]
    assert [clock.moment(f) for f in frames] == [-2.5, 0, 7, 7.5, 7.5, 7.5, 8.75]
    clock.begin()
    clock.hear(20, 3.0, True)
    assert [clock.moment(f) for f in (19.5, 20, 22)] == [2.5, 3.0, 5.0]


def test_turns_end_once_and_after_a_word() -> None:
    def told(pauses: list[float], words: dict[int, float], **rule: float) -> list[float]:
        watch, ends = TurnWatch(TurnRule(**rule), 10.0), []
        for frame, value in enumerate(pauses):
            if frame in words:
                watch.word(words[frame])
            ends += [event.time for event in watch.step(frame, (1.0, 1.0, value, 0.0))]
        return ends

    assert told([0.9] * 5, {}) == []
    assert told([0.1, 0.9, 0.9, 0.1, 0.9], {0: 0.0}) == [0.2]
    # The turn's last word comes after its end, and makes no other turn.
    assert told([0.1, 0.9, 0.9, 0.9, 0.9], {0: 0.0, 3: 0.1}) == [0.2]
    assert told([0.1, 0.9, 0.1, 0.1, 0.9], {0: 0.0, 3: 0.25}) == [0.2, 0.5]
    assert told([0.6] * 5, {0: 0.0}, threshold=0.7) == []
    assert told([0.6, 0.6, 0.1, *[0.6] * 4], {0: 0.0}, hold=0.3) == [0.7]


def test_turns_are_told_by_a_session(stt: Stt) -> None:
    pcm = frames_of(noise(8))
    ends = [
        event.time
        for threshold in (0.2, 1.0)
        for session in [stt.session(threshold=threshold)]
        for i, frame in enumerate(pcm)
        for event in session.step(frame).events
        if isinstance(event, TurnEnded) and event.time == (i + 1) / 12.5
    ]
    assert ends
    assert ends == sorted(ends)


# ---------------------------------------------------------------------------------- stalls


def test_when_a_window_is_refreshed() -> None:
    watch = StallWatch(StallRule(1.0, at_latest=0.5), 0.2, 10.0, 100)

    def frames(count: int, loud: bool, paused: bool = False) -> list[bool]:
        return [watch.step(loud, paused) for _ in range(count)]

    assert not any(frames(40, False, paused=True) + frames(11, True))
    watch.wrote()
    assert not any(frames(12, True))
    assert frames(1, True, paused=True) == [True]  # 1.3 s of sound, 0.2 of which may be on its way
    watch.refreshed()
    assert frames(28, True) == [*[False] * 27, True]  # at latest, and twice as late
    watch.refreshed()
    watch.wrote()
    assert frames(18, True) == [*[False] * 17, True]
    window = StallWatch(StallRule(None, used=0.5), 0.2, 10.0, 100)
    assert not any(window.step(True, False) for _ in range(200))
    assert window.step(False, True)


def test_what_was_not_written_down_is_heard_again_once(tokenizer: TextTokenizer) -> None:
    begins, _ = pieces_of(tokenizer)
    hearer = hearer_of(tokenizer, prefix=2)
    run(hearer, [PAD] * 10, -2, loud=False)
    words = run(hearer, [begins, *[PAD] * 20], 8)
    run(hearer, [PAD] * 20, 29)
    end = words[0].end * 12.5
    said = hearer.renewed()
    assert said.events == (WindowRefreshed(49 / 12.5, (len(hearer.waiting) - 2) / 12.5),)
    again = list(hearer.waiting)
    moments = [fed.moment for fed in again]
    assert moments == [moments[0] + i for i in range(len(moments))]
    assert moments[-1] == 48
    assert end - 1 < moments[2] <= end  # after the silence in front
    assert [fed.pcm is None for fed in again[:3]] == [True, True, False]
    late = [PAD] * 6 + [begins] * (len(again) - 6)
    found: list[HeardWord] = []
    for token in late:
        found += hearer.heard(hearer.take(), token, None)[0].words
    assert in_order((*words, *found), 49 / 12.5)
    # Two frames of silence in front, and a delay of five: that text is where the sound begins.
    assert found[0].start == words[0].end
    run(hearer, [PAD] * 30, 49)
    hearer.renewed()
    while hearer.waiting:  # nothing comes of it
        hearer.heard(hearer.take(), PAD, None)
    run(hearer, [PAD] * 5, 79)
    hearer.renewed()
    assert [fed.moment for fed in hearer.waiting] == [77, 78, *range(79, 84)]


def test_words_that_are_heard_again_come_after_those_that_were_written(
    tokenizer: TextTokenizer,
) -> None:
    """Even where the model writes of the silence in front, or a bit sooner than its delay."""
    begins, _ = pieces_of(tokenizer)
    for delay, prefix in ((0.4, 3), (0.5, 0)):
        hearer = hearer_of(tokenizer, delay, prefix)
        words = run(hearer, [*[PAD] * 8, begins, *[PAD] * 40])
        hearer.renewed()
        again: list[HeardWord] = []
        for i in range(20):
            fed = hearer.take()
            again += hearer.heard(fed, PAD if i < int(delay * 12.5) - 1 else begins, None)[0].words
        assert again[0].start == pytest.approx(words[0].end, abs=0.08)
        assert in_order((*words, *again), hearer.seconds)


def test_what_is_heard_again_is_no_stall(tokenizer: TextTokenizer) -> None:
    begins, _ = pieces_of(tokenizer)
    hearer = hearer_of(tokenizer, stall=1.0, at_latest=0.0)
    pcm = np.full(SIZE, 0.1, np.float32)

    def told(tokens: list[int], first: int | None) -> list[bool]:
        found = []
        for i, token in enumerate(tokens):
            if first is not None:
                hearer.waiting.append(Fed(np.zeros(8, np.int32), first + i, pcm=pcm))
            found.append(hearer.heard(hearer.take(), token, None)[1])
        return found

    assert not any(told([begins, *[PAD] * 15] * 4, 0))  # never 1.4 s without text
    assert told([PAD] * 2, 64) == [False, True]
    hearer.renewed()
    count = len(hearer.waiting)
    assert count > 10
    assert not any(told([PAD] * count, None))
    assert not any(told([PAD] * 30, 66))
    assert told([PAD], 96) == [True]  # twice as late


def test_a_mute_model_begins_anew_in_a_pause(mute: Stt) -> None:
    pcm = noise(7)
    pcm[4 * RATE : 5 * RATE] = 0
    short = noise(2)

    def told(passages: Any, source: int = 0) -> list[Any]:
        return [
            event
            for passage in passages
            for event in passage.events
            if isinstance(event, WindowRefreshed) and passage.source == source
        ]

    alone = told(mute.transcribing([pcm]))
    assert [(round(e.time, 2), round(e.unheard_seconds, 2)) for e in alone] == [(4.48, 4.48)]
    together = list(mute.transcribing([short, pcm]))
    assert told(together, 1) == alone
    assert told(together, 0) == []
    assert told(mute.transcribing([pcm], stall_seconds=None)) == []
    session = mute.session()
    events = [event for frame in frames_of(pcm) for event in session.step(frame).events]
    assert [event for event in events if isinstance(event, WindowRefreshed)] == alone


def test_a_refresh_leaves_the_rows_beside_it_alone(
    tmp_path: Path, stt: Stt, sound: np.ndarray
) -> None:
    """One sound has pauses in which its window is refreshed, the other has none."""
    stt = loaded(make_stt.write(tmp_path / "terse", quiet=0.07))
    broken = sound[: 100 * SIZE].copy()
    broken[40 * SIZE : 55 * SIZE] = 0
    steady = noise(5)
    how: dict[str, Any] = {"refresh_at": 1.0}
    events = [e for p in stt.transcribing([broken], **how) for e in p.events]
    assert any(isinstance(event, WindowRefreshed) for event in events)
    both = stt.transcribe([steady, broken], **how)
    assert both == [stt.transcribe(steady), stt.transcribe(broken, **how)]
    assert in_order(both[1].words, both[1].seconds)


# ------------------------------------------------------------------------------- spellings


def test_a_spelling_is_all_that_may_be_written(stt: Stt) -> None:
    tokens = stt.text.encode("two months")
    spelling = stt._spelling("two  months", noise(3))
    assert spelling is not None
    assert len(spelling.codes) == 38 + 10
    lm = stt.lm
    generator = Generator(lm, text=GREEDY, audio=GREEDY, generated=0)
    written: list[int] = []
    step = generator.step

    def listening(*args: Any, **how: Any) -> Any:
        made = step(*args, **how)
        written.append(int(made.written[0, 0]))
        return made

    generator.step = listening  # type: ignore[method-assign]
    hearing = Hearing(generator, spelling, 7)
    spelt = [token for token in written[1:] if token not in (EPAD, PAD)]
    assert spelt[: len(tokens)] == tokens
    assert hearing.told().all()
    plain = stt.transcribe(noise(2))
    assert stt.transcribe(noise(2), spell="two months").seconds == plain.seconds
    shown = stt.transcribe(noise(2), spell="two months", spell_sound=noise(3))
    assert shown.text != plain.text
    assert in_order(shown.words, shown.seconds)


def test_without_a_recording_the_words_are_written_over_silence(stt: Stt) -> None:
    words = [stt.text.encode(word) for word in ("two", "months")]
    spelling = stt._spelling("two months", None)
    assert spelling is not None
    written = [EPAD, *words[0], EPAD, *words[1]]
    assert spelling.forced.tolist() == written + [PAD] * 10
    assert len(spelling.codes) == len(spelling.forced)


def test_only_what_is_allowed_is_written(stt: Stt) -> None:
    def generator() -> Generator:
        return Generator(stt.lm, batch=2, text=GREEDY, audio=GREEDY, generated=0)

    codes = np.zeros((2, 8), np.int32)
    free = generator().step(codes)
    best = np.argsort(-np.array(free.text_logits))
    mask = np.ones((2, stt.lm.config.text_card), bool)
    mask[0, best[0, 0]] = False
    assert generator().step(codes, allowed=mask).written[:, 0].tolist() == [
        best[0, 1], best[1, 0]
    ]  # fmt: skip
    heard: list[int] = []

    def hook(tokens: np.ndarray) -> np.ndarray:
        heard.extend(tokens.tolist())
        return np.array([5, 6])

    step = generator().step(codes, allowed=mask, on_text=hook)
    assert heard == [best[0, 1], best[1, 0]]
    assert step.written[:, 0].tolist() == [5, 6]
    for wrong, said in (
        (np.ones(3, bool), "allowed must be"),
        (np.ones_like(mask, np.int32), "allowed must be bool"),
        (np.zeros_like(mask), "allowed must have a token"),
    ):
        with pytest.raises(ArgumentError, match=said):
            generator().step(codes, allowed=wrong)


def test_a_turn_does_not_end_after_the_sound(stt: Stt) -> None:
    """Which ends within a frame: that one's pause is told of at the end of the sound."""
    seconds = 1.97
    pcm = noise(2)[: round(seconds * RATE)]
    frames = math.ceil(len(pcm) / SIZE)
    how: Any = {"threshold": 0.0, "hold": (frames - 1) / 12.5}
    ends = [
        event.time
        for passage in stt.transcribing([pcm], **how)
        for event in passage.events
        if isinstance(event, TurnEnded)
    ]
    assert ends == [pytest.approx(seconds)]
