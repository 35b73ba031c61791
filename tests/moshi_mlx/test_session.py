"""Sessions of the bundled model: state and events."""

import json
import subprocess
import sys

import mlx.core as mx
import numpy as np
import pytest
import soundfile

import moshi_mlx
from moshi_local.machine.mlx_counters import counting
from moshi_mlx import (
    ArgumentError,
    Frame,
    Moshi,
    Sampling,
    SessionError,
    SpeechEnded,
    SpeechStarted,
    backend,
    generate,
)
from moshi_mlx.hub import bundled_folder

NANO = bundled_folder("nano")
FRAMES = 60


@pytest.fixture(scope="module")
def moshi() -> Moshi:
    return moshi_mlx.load("nano", verb="talk", codec="mlx")


@pytest.fixture(scope="module")
def question() -> np.ndarray:
    """The first seconds of the bundled recording, float32 [FRAMES, 1920]."""
    pcm, rate = soundfile.read(NANO / "question.wav", dtype="float32")
    assert rate == 24_000
    return pcm[: FRAMES * 1920].reshape(FRAMES, 1920)


def run(moshi: Moshi, question: np.ndarray, seed: int = 0) -> list[Frame]:
    hot = Sampling(temperature=0.9, top_k=20)
    with moshi.session(seed=seed, text=hot, audio=hot) as session:
        return [session.step(pcm) for pcm in question]


@pytest.fixture(scope="module")
def alone(moshi: Moshi, question: np.ndarray) -> list[Frame]:
    """A conversation by itself."""
    return run(moshi, question)


@pytest.fixture(scope="module")
def greeting(moshi: Moshi, question: np.ndarray) -> list[Frame]:
    """Likewise, drawn as the model's makers do."""
    with moshi.session() as session:
        return [session.step(pcm) for pcm in question]


@pytest.fixture(scope="module")
def whole_question(moshi: Moshi) -> np.ndarray:
    """All of the bundled recording and time for the answer, float32 [frames, 1920]."""
    pcm, _ = soundfile.read(NANO / "question.wav", dtype="float32")
    pcm = np.concatenate([pcm, np.zeros(4 * moshi.sample_rate, np.float32)])
    return pcm[: len(pcm) // moshi.frame_size * moshi.frame_size].reshape(-1, moshi.frame_size)


def words_said(moshi: Moshi, frames: np.ndarray, kv_bits: int | None) -> list[str]:
    with moshi.session(kv_bits=kv_bits) as session:
        return [word.text for pcm in frames for word in session.step(pcm).words]


@pytest.fixture(scope="module")
def answer(moshi: Moshi, whole_question: np.ndarray) -> list[str]:
    """Without quantized keys and values."""
    return words_said(moshi, whole_question, None)


def equal(a: list[Frame], b: list[Frame]) -> bool:
    return all(
        x.text == y.text and x.words == y.words and np.array_equal(x.pcm, y.pcm)
        for x, y in zip(a, b, strict=True)
    )


@pytest.mark.parametrize("kv_bits", [pytest.param(8, marks=pytest.mark.gpu), 4])
def test_replies_are_the_same_with_quantized_keys_and_values(
    moshi: Moshi, whole_question: np.ndarray, answer: list[str], kv_bits: int
) -> None:
    """The bundled question is answered in the same words, past the context."""
    assert len(whole_question) > (moshi.config.lm.transformer.context or 0)
    assert words_said(moshi, whole_question, kv_bits) == answer
    assert len(answer) > 3


def test_kv_bits_where_the_backend_cannot(moshi: Moshi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "on_gpu", lambda: True)
    monkeypatch.setattr(mx.cuda, "is_available", lambda: True)
    problem = backend.kv_bits_problem()
    monkeypatch.setattr(generate, "kv_bits_problem", lambda: problem)
    with pytest.raises(ArgumentError, match="kv_bits must be None here, is 8: MLX's CUDA backend"):
        moshi.session(kv_bits=8)


def test_other_kv_bits_are_refused(moshi: Moshi) -> None:
    with pytest.raises(ValueError, match="8 or 4 bits, not 2"):
        moshi.session(kv_bits=2)


@pytest.mark.gpu
def test_frames(moshi: Moshi, question: np.ndarray) -> None:
    frames = run(moshi, question)
    delay = max(moshi.config.lm.delays)
    for i, frame in enumerate(frames):
        assert frame.index == i
        assert frame.pcm.shape == (moshi.frame_size,)
        assert frame.pcm.dtype == np.float32
        assert (frame.tokens is None) == (i < delay)
        assert frame.timing.total > 0
    assert all((frame.pcm == 0).all() for frame in frames[:delay])


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True])
def test_one_synchronisation_a_frame(moshi: Moshi, question: np.ndarray, compiled: bool) -> None:
    """As on a GPU: the same frames as part by part, words held or not, past the context."""
    context = moshi.config.lm.transformer.context or 0
    heard = np.concatenate([question] * (context // FRAMES + 1))
    sessions = [moshi.session(seed=3) for _ in range(2)]
    sessions[0]._one_go, sessions[1]._one_go = False, True
    if compiled:
        sessions[1]._generator._kind = sessions[1]._generator._kind._replace(compiled=True)
        sessions[1].reset()
        heard = heard[:FRAMES]
    for i, pcm in enumerate(heard):
        parts, whole = (session.step(pcm, hold_text=20 < i < 30) for session in sessions)
        assert equal([parts], [whole])
        np.testing.assert_array_equal(parts.tokens, whole.tokens)
    with counting() as counts:
        sessions[1].step(question[0])
    assert counts.syncs == 1
    with counting() as counts:
        sessions[0].step(question[0])
    assert counts.syncs == 3


@pytest.mark.gpu
def test_second_session_equals_a_fresh_process(moshi: Moshi, question: np.ndarray) -> None:
    run(moshi, question[:20], seed=7)  # whatever went on before leaves no trace
    mine = run(moshi, question, seed=3)
    code = (
        "import json\n"
        "import soundfile, moshi_mlx\n"
        "from tests.device import set_device\n"
        "from tests.moshi_mlx import test_session as t\n"
        "set_device()\n"
        "pcm, _ = soundfile.read(t.NANO / 'question.wav', dtype='float32')\n"
        "frames = t.run(moshi_mlx.load('nano', codec='mlx'),"
        " pcm[: t.FRAMES * 1920].reshape(t.FRAMES, 1920), seed=3)\n"
        "loudness = sum(float(abs(f.pcm).sum()) for f in frames)\n"
        "print(json.dumps([[f.text for f in frames], loudness]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )  # fmt: skip
    text, loudness = json.loads(done.stdout)
    assert text == [frame.text for frame in mine]
    ours = sum(float(np.abs(frame.pcm).sum()) for frame in mine)
    assert loudness == pytest.approx(ours, rel=1e-5)


def test_sessions_share_nothing(moshi: Moshi, question: np.ndarray, alone: list[Frame]) -> None:
    """Two conversations in turn, on other sound, are as each alone."""
    other = run(moshi, question[::-1])
    hot = Sampling(temperature=0.9, top_k=20)
    with (
        moshi.session(text=hot, audio=hot) as a,
        moshi.session(text=hot, audio=hot) as b,
    ):
        pairs = [(a.step(x), b.step(y)) for x, y in zip(question, question[::-1], strict=True)]
    assert equal([x for x, _ in pairs], alone)
    assert equal([y for _, y in pairs], other)


def test_held_text_is_padding_and_nothing_else_changes(
    moshi: Moshi, question: np.ndarray, alone: list[Frame]
) -> None:
    """The frames of which the text is held have padding; before them nothing is different."""
    hot = Sampling(temperature=0.9, top_k=20)
    padding = moshi.config.lm.text_padding_id
    late = max(moshi.config.lm.delays) - moshi.config.lm.delays[0]
    free = alone
    with moshi.session(text=hot, audio=hot) as session:
        held = [session.step(pcm, hold_text=30 <= i < 50) for i, pcm in enumerate(question)]
    text = [None if frame.tokens is None else int(frame.tokens[0]) for frame in held]
    assert equal(held[:30], free[:30])
    assert text[30 + late : 50 + late] == [padding] * 20
    assert any(f.tokens[0] != padding for f in free[30 + late : 50 + late] if f.tokens is not None)
    assert not equal(held, free)


def test_held_from_the_first_frame_there_is_no_word(moshi: Moshi, question: np.ndarray) -> None:
    with moshi.session() as session:
        held = [session.step(pcm, hold_text=True) for pcm in question]
        assert not any(frame.words or frame.partial or frame.text for frame in held)
        session.reset()
        assert any(session.step(pcm).words for pcm in question)


def test_reset_equals_fresh(moshi: Moshi, question: np.ndarray, greeting: list[Frame]) -> None:
    with moshi.session() as session:
        for pcm in question[30:50]:
            session.step(pcm)
        session.reset()
        assert equal([session.step(pcm) for pcm in question], greeting)


@pytest.mark.gpu
def test_events(greeting: list[Frame]) -> None:
    frames = greeting
    events = [event for frame in frames for event in frame.events]
    user = [e for e in events if isinstance(e, SpeechStarted | SpeechEnded) and e.side == "user"]
    assert [type(e) for e in user[:2]] == [SpeechStarted, SpeechEnded]
    assert user[0].time < user[1].time
    assert any(frame.user_speaking for frame in frames)
    assert [w for frame in frames for w in frame.words]
    for frame in frames:
        for word in frame.words:
            assert 0 <= word.start < word.end <= (frame.index + 1) / 12.5 + 1


def test_past_three_contexts(moshi: Moshi) -> None:
    """No length limit, and the memory of the first frame."""
    context = moshi.config.lm.transformer.context or 0
    quiet = np.zeros(moshi.frame_size, np.float32)
    with moshi.session() as session:
        for _ in range(3 * context + 20):
            frame = session.step(quiet)
        rings = session._generator._cache
        assert {ring.arrays()[0].shape[-2] for ring in rings} == {context}
    assert np.isfinite(frame.pcm).all()


def test_bad_input(moshi: Moshi) -> None:
    with moshi.session() as session:
        with pytest.raises(SessionError, match=r"1920 samples, this has shape \(5,\)"):
            session.step(np.zeros(5))
        frame = session.step(np.full(1920, np.nan))
        assert not frame.user_speaking
        assert np.isfinite(session.step(np.full(1920, 15.9)).pcm).all()
        with pytest.raises(SessionError, match=r"a frame is refused: .* this one up to 1e\+09"):
            session.step(np.full(1920, 1e9))
    with pytest.raises(SessionError, match="closed"):
        session.step(np.zeros(1920))


def test_what_is_beyond_the_range_is_heard_as_its_limit(moshi: Moshi, question: np.ndarray) -> None:
    """As from a file of floats, or a card that is driven too hard."""
    loudest = int(np.abs(question).max(axis=1).argmax())
    loud = (32.0 * question[loudest - 2 : loudest + 3]).astype(np.float32)
    assert np.abs(loud).max() > 5.0
    with moshi.session() as as_it_is, moshi.session() as limited:
        heard = [as_it_is.step(pcm) for pcm in loud]
        assert equal(heard, [limited.step(np.clip(pcm, -1.0, 1.0)) for pcm in loud])
        checked = as_it_is._checked(np.linspace(-3.0, 3.0, 1920))
    assert (checked.min(), checked.max()) == (-1.0, 1.0)


def test_samples_of_a_sound_card_are_scaled(moshi: Moshi, question: np.ndarray) -> None:
    """Never clipped to a square wave; other whole numbers are refused, since nobody knows how."""
    with moshi.session() as floats, moshi.session() as shorts, moshi.session() as longs:
        for pcm in question[:8]:
            short = np.round(pcm * 2**15).clip(-(2**15), 2**15 - 1).astype(np.int16)
            wanted = floats.step(short / 2**15)
            assert equal([wanted], [shorts.step(short)])
            assert equal([wanted], [longs.step(short.astype(np.int32) << 16)])
        for kind in (np.int64, np.uint8, np.bool_, np.complex64):
            with pytest.raises(SessionError, match=f"int32 samples, this one {np.dtype(kind)}"):
                floats.step(np.zeros(1920, kind))
