"""What is wrong is refused where it comes in, by name and value, and leaves nothing changed."""

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import soundfile

import moshi_mlx
from moshi_mlx import ArgumentError, Moshi, MoshiError, SessionError
from moshi_mlx.arguments import integers, real, samples, seed_of, whole
from moshi_mlx.codec import MlxCodec
from moshi_mlx.generate import Generator
from moshi_mlx.guidance import Guidance
from moshi_mlx.hub import bundled_folder
from moshi_mlx.sampling import Sampling
from moshi_mlx.state import SavedState
from tests.moshi_mlx.test_lm import load

GREEDY = Sampling(temperature=0)
NANO = bundled_folder("nano")
NAN, INF = float("nan"), float("inf")


@pytest.fixture(scope="module")
def moshi() -> Moshi:
    return moshi_mlx.load("nano", verb="talk", codec="mlx")


def test_whole_numbers() -> None:
    assert [whole("n", n, 1, 8) for n in (1, np.int16(8), np.uint8(3))] == [1, 8, 3]
    assert whole("n", 10**30, 0) == 10**30
    for wrong in (0, 9, 2.0, NAN, True, np.True_, "3", None, [3]):
        with pytest.raises(ArgumentError, match=r"n must be a whole number from 1 to 8, is"):
            whole("n", wrong, 1, 8)
    assert seed_of(2**32 - 1) == 2**32 - 1
    for wrong in (-1, 2**32, 0.5, "0"):
        with pytest.raises(ArgumentError, match="seed must be"):
            seed_of(wrong)


def test_real_numbers() -> None:
    assert [real("x", x, -1, 1) for x in (-1, 1.0, np.float32(0.5))] == [-1.0, 1.0, 0.5]
    for wrong in (-1.01, 1.01, NAN, INF, -INF, True, "0", None, 10**400, 1j):
        with pytest.raises(ArgumentError, match=r"x must be from -1 to 1, is"):
            real("x", wrong, -1, 1)


def test_tokens_are_integers_in_range() -> None:
    for good in ([-1, 63], np.array([-1.0, 63.0]), mx.array([-1, 63]), np.array([0], np.uint64)):
        found = integers("codes", good, -1, 63)
        assert found.dtype == np.int32
        np.testing.assert_array_equal(found, np.array(good))
    for wrong, said in (
        ([0, 64], "64"), ([-2, 0], "-2"), ([10**12], "1000000000000"), ([0.5], "0.5"),
        ([NAN], "nan"), ([INF], "inf"), (mx.array([3.5], mx.bfloat16), "3.5"),
        (np.array([2**63], np.uint64), "9223372036854775808"),
    ):  # fmt: skip
        with pytest.raises(ArgumentError, match=f"codes must be from -1 to 63, is {said}"):
            integers("codes", wrong, -1, 63)
    odd: Any
    for odd in ([True], ["1"], [1j], [None], [[1], [1, 2]]):
        with pytest.raises(ArgumentError, match="codes must be"):
            integers("codes", odd, -1, 63)


def test_sound_is_scaled_or_refused_never_clipped() -> None:
    np.testing.assert_array_equal(samples(np.array([-(2**15), 2**14], np.int16)), [-1, 0.5])
    np.testing.assert_array_equal(samples(np.array([-(2**31), 2**30], np.int32)), [-1, 0.5])
    for floats in (np.float16, np.float32, np.float64):
        found = samples(np.array([0.5, -1.25], floats))
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, [0.5, -1.25])
    np.testing.assert_array_equal(samples(mx.array([0.5], mx.bfloat16)), [0.5])
    assert np.isinf(samples(np.array([1e300]))).all()
    for wrong in (np.uint8, np.uint16, np.int8, np.int64, np.uint32, np.bool_, np.complex64):
        with pytest.raises(ArgumentError, match=f"this one {np.dtype(wrong)}"):
            samples(np.zeros(4, wrong))
    with pytest.raises(ArgumentError, match="whole numbers up to 32767: divide 16-bit samples by"):
        samples(np.array([3.0, -32767.0]))
    for odd in (None, "loud", [[0.1], [0.1, 0.2]], object()):
        with pytest.raises(ArgumentError, match="sound"):
            samples(odd)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "given",
    [
        {"seed": 0.5}, {"seed": NAN}, {"seed": -1}, {"seed": 2**32}, {"seed": "1"},
        {"text": 0.7}, {"audio": {"temperature": 1}}, {"kv_bits": 2}, {"kv_bits": NAN},
        {"kv_bits": "8"}, {"conditions": {"mood": "a"}}, {"state": 5}, {"state": {}},
    ],
)  # fmt: skip
def test_a_session_refuses_by_name_and_value(moshi: Moshi, given: dict[str, Any]) -> None:
    with pytest.raises(MoshiError) as error:
        moshi.session(**given)
    (name, value), said = next(iter(given.items())), str(error.value)
    known = {"kv_bits": "quantized to 8 or 4 bits", "conditions": "no conditioners"}.get(name, name)
    assert known in said
    assert repr(value).strip("'") in said or name == "conditions"


@pytest.mark.parametrize(
    "given", [{"batch": 0}, {"batch": 1.5}, {"generated": 9}, {"generated": -1}]
)
def test_a_generator_refuses_by_name_and_value(given: dict[str, Any]) -> None:
    (name, value) = next(iter(given.items()))
    with pytest.raises(ArgumentError, match=f"{name} must be a whole number .* is {value}"):
        Generator(load("moshi"), text=GREEDY, audio=GREEDY, **given)
    with pytest.raises(ArgumentError, match=r"coefficient must be .* is nan"):
        Guidance(NAN)
    with pytest.raises(ArgumentError, match="conditions must be 1 mappings, are 2"):
        Generator(load("small-sum"), text=GREEDY, audio=GREEDY, conditions=[{}, {}])


def test_a_refused_step_changes_nothing() -> None:
    """Whatever was refused, and also a hook that fails in the middle: the next step is the same."""
    lm = load("moshi")
    here, there = (Generator(lm, text=GREEDY, audio=GREEDY) for _ in range(2))
    codes = np.zeros((1, here.given), int)

    def failing(tokens: Any) -> Any:
        raise KeyError("mine")

    refused: list[dict[str, Any]] = [
        {"text": 10**7}, {"audio": NAN}, {"overwrite": [1, 2]}, {"null_mask": [True]},
        {"on_text": lambda tokens: tokens + 10**6}, {"on_text": failing},
    ]  # fmt: skip
    for step in range(4):
        for given in refused:
            with pytest.raises((ArgumentError, KeyError)):
                here.step(codes + step, **given)
        for wrong in (codes[:, 1:], codes - 2, codes + 10**7, codes + 0.5):
            with pytest.raises(ArgumentError, match="codes must be"):
                here.step(wrong)
        np.testing.assert_array_equal(
            here.step(codes + step).written, there.step(codes + step).written
        )


def test_the_language_model_reads_no_foreign_memory() -> None:
    lm = load("moshi")
    codes = mx.zeros((1, 1 + lm.config.n_q, 3), mx.int32)
    for stream in (0, 1, lm.config.n_q):
        for wrong in (10**7, -2):
            bad = mx.array(np.array(codes))
            bad[0, stream, 1] = wrong
            with pytest.raises(ArgumentError, match=f"codes' {'audio' if stream else 'text'} must"):
                lm.forward(bad)
    for shape in ((1, 3, 3), (1 + lm.config.n_q, 3), (1, 1 + lm.config.n_q, 0)):
        with pytest.raises(ArgumentError, match=r"codes must be \[batch, 17, frames\]"):
            lm.forward(mx.zeros(shape, mx.int32))


def test_the_codec_reads_no_foreign_memory_and_keeps_no_nan(moshi: Moshi) -> None:
    mimi = moshi.mimi
    codec = MlxCodec(mimi)
    size, books = mimi.frame_size, mimi.num_codebooks
    pcm, _ = soundfile.read(NANO / "question.wav", dtype="float32", frames=size)
    state, undisturbed = codec.init_state(), codec.init_state()
    for wrong in (np.full(size, NAN), np.full(size, INF), np.zeros(size, np.int64), pcm[1:]):
        with pytest.raises(ArgumentError, match=r"pcm must be|this one int64"):
            codec.encode_step(wrong, state)
        with pytest.raises(ArgumentError, match=r"pcm must be|this one int64"):
            mimi.encode_step(wrong[None, None], state)  # type: ignore[arg-type]
    codes = codec.encode_step(pcm, state)
    np.testing.assert_array_equal(codes, codec.encode_step(pcm, undisturbed))
    whole16 = np.round(pcm * 2**15).clip(-(2**15), 2**15 - 1).astype(np.int16)
    again = mimi.encode(mx.array(whole16)[None, None])[0]
    floats = mimi.encode(mx.array(whole16.astype(np.float32) / 2**15)[None, None])[0]
    np.testing.assert_array_equal(again, floats)

    for code in (10**7, -1, mimi.config.quantizer.bins, 0.5):
        with pytest.raises(ArgumentError, match=f"codes must be from 0 to .* is {code}"):
            mimi.decode(mx.full((1, books, 2), code))
        with pytest.raises(ArgumentError, match=f"codes must be from 0 to .* is {code}"):
            codec.decode_step(np.full((books, 1), code), state)
    said = codec.decode_step(codes, state)
    np.testing.assert_array_equal(said, codec.decode_step(codes, undisturbed))
    for streams in (0, 0.5, True):
        with pytest.raises(ArgumentError, match="batch must be a whole number"):
            mimi.init_state(streams)  # type: ignore[arg-type]
        with pytest.raises(ArgumentError, match="num_codebooks must be a whole number"):
            moshi_mlx.Mimi(mimi.config, streams)  # type: ignore[arg-type]


def test_a_damaged_saved_conversation_is_refused(moshi: Moshi) -> None:
    with moshi.session() as session:
        for _ in range(3):
            session.step(np.zeros(moshi.frame_size))
        saved = session.save()
    missing = SavedState({k: v for k, v in saved.arrays.items() if "cache.0" not in k}, saved.facts)
    ring = {"generator.ring": saved.arrays["generator.ring"][:, 1:]}
    misshapen = SavedState({**saved.arrays, **ring}, saved.facts)
    name = "generator.cache.0.0"
    short = SavedState({**saved.arrays, name: saved.arrays[name][..., 1:, :]}, saved.facts)
    for broken in (missing, misshapen, short, SavedState(saved.arrays, {})):
        with pytest.raises(SessionError, match="saved conversation"):
            moshi.session(state=broken)
    with moshi.session(state=saved) as session:
        assert session.frames == 3


@pytest.mark.parametrize(
    "given", [{"name": 5}, {"name": None}, {"dtype": mx.int32}, {"dtype": "q"}]
)
def test_load_refuses_by_name_and_value(given: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match=f"{next(iter(given))} must be"):
        moshi_mlx.load(**{"name": "nano", **given})


def test_what_is_no_source_of_frames_is_refused(moshi: Moshi) -> None:
    with moshi.session() as session:
        with pytest.raises(ArgumentError, match="source must be an iterable of frames, is 5"):
            session.stream(5)  # type: ignore[arg-type]
        session.step(np.zeros(moshi.frame_size))
