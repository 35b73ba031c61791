"""What is wrong is refused where it comes in, by name and value, and leaves nothing changed."""

import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import soundfile

import moshi_mlx
from moshi_mlx import ArgumentError, CheckpointError, ConfigError, Moshi, MoshiError, SessionError
from moshi_mlx.arguments import integers, real, samples, seed_of, whole
from moshi_mlx.codec import MlxCodec
from moshi_mlx.conditions import Conditioner, Masked
from moshi_mlx.config import ConditionerConfig
from moshi_mlx.generate import Generator
from moshi_mlx.guidance import Guidance
from moshi_mlx.hub import bundled_folder
from moshi_mlx.sampling import Sampling
from moshi_mlx.state import SavedState, load_state
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
    odd_but_quiet = [NAN, -INF, -15.5, 0.5]
    np.testing.assert_array_equal(samples(np.array(odd_but_quiet)), odd_but_quiet)
    for wrong in (np.uint8, np.uint16, np.int8, np.int64, np.uint32, np.bool_, np.complex64):
        with pytest.raises(ArgumentError, match=f"this one {np.dtype(wrong)}"):
            samples(np.zeros(4, wrong))
    for loud in ([3.0, -32767.0], [0.5, -32767.25], [NAN, INF, 32767.0], [1e300], [16.5]):
        peak = f"{max(abs(x) for x in loud if abs(x) < INF):g}"
        said = rf"sound has floats in −1 … 1, this one up to {re.escape(peak)}: divide 16-bit"
        with pytest.raises(ArgumentError, match=said):
            samples(np.array(loud))
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
    odd: Any
    for odd in (5, "x", [5], {"mood": "a"}):
        with pytest.raises(ArgumentError, match="conditions must be 1 mappings, are"):
            Generator(load("small-sum"), text=GREEDY, audio=GREEDY, conditions=odd)
    for odd in (3, 2.0, True):
        with pytest.raises(ArgumentError, match=f"guidance must be a Guidance, is {odd}"):
            Generator(load("moshi"), text=GREEDY, audio=GREEDY, guidance=odd)
    for odd in ("x", 1, 0):
        with pytest.raises(ArgumentError, match="compiled must be true or false, is"):
            Generator(load("moshi"), text=GREEDY, audio=GREEDY, compiled=odd)
    odd = Masked(np.zeros((1, 4)), 5)  # type: ignore[arg-type]
    with pytest.raises(
        ConfigError, match=r"conditioner 'x' takes an mx\.array or a Masked of them"
    ):
        Conditioner("x", ConditionerConfig("tensor", 4), 4)([odd])


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
    odd: Any
    for odd in (None, 5, "x", [[1], [1, 2]], [[None]], [[["x"] * 3] * (1 + lm.config.n_q)]):
        generator = Generator(lm, text=GREEDY, audio=GREEDY)
        for takes in (lm.forward, generator.prefill):
            with pytest.raises(ArgumentError, match=r"(codes|frames).* must be"):
                takes(odd)
    wanted = lm.forward(codes).text_logits
    for same in (np.array(codes), np.array(codes).tolist(), np.array(codes, np.float64)):
        np.testing.assert_array_equal(lm.forward(same).text_logits, wanted)
    with pytest.raises(ArgumentError, match="conditions must be a Conditions, is 5"):
        lm.forward(codes, 5)  # type: ignore[arg-type]


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
            mimi.encode_step(wrong[None, None], state)
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
    odd: Any
    for odd in (None, 5, "x", [[1], [1, 2]], [[[None]]]):
        for takes in (mimi.encode, mimi.decode):
            with pytest.raises(ArgumentError, match=r"(sound|codes|pcm) (must|has)"):
                takes(odd)
        for steps in (mimi.encode_step, mimi.decode_step):
            with pytest.raises(ArgumentError, match=r"(sound|codes|pcm) (must|has)"):
                steps(odd, state)
            array = codes[None] if steps == mimi.decode_step else pcm[None, None]
            with pytest.raises(ArgumentError, match="state must be a MimiState, is"):
                steps(array, odd)
    for same in (codes[None], codes[None].tolist(), codes[None].astype(np.float64)):
        np.testing.assert_array_equal(mimi.decode(same), mimi.decode(mx.array(codes[None])))
    for heard in (pcm[None, None], pcm[None, None].tolist()):
        np.testing.assert_array_equal(mimi.encode(heard), mimi.encode(mx.array(pcm)[None, None]))
    for streams in (0, 0.5, True):
        with pytest.raises(ArgumentError, match="batch must be a whole number"):
            mimi.init_state(streams)  # type: ignore[arg-type]
        with pytest.raises(ArgumentError, match="num_codebooks must be a whole number"):
            moshi_mlx.Mimi(mimi.config, streams)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def saved(moshi: Moshi) -> SavedState:
    with moshi.session() as session:
        for _ in range(3):
            session.step(np.zeros(moshi.frame_size))
        return session.save()


def test_a_damaged_saved_conversation_is_refused(moshi: Moshi, saved: SavedState) -> None:
    missing = SavedState({k: v for k, v in saved.arrays.items() if "cache.0" not in k}, saved.facts)
    ring = {"generator.ring": saved.arrays["generator.ring"][:, 1:]}
    misshapen = SavedState({**saved.arrays, **ring}, saved.facts)
    name = "generator.cache.0.0"
    short = SavedState({**saved.arrays, name: saved.arrays[name][..., 1:, :]}, saved.facts)
    for broken in (missing, misshapen, short, SavedState(saved.arrays, {})):
        with pytest.raises(SessionError, match=r"^the saved conversation is damaged \(.+\)$"):
            moshi.session(state=broken)
    with moshi.session(state=saved) as session:
        assert session.frames == 3


RING, CACHE = "generator.ring", "generator.cache.1.0"
ENCODER, DECODER = "codec.encoder", "codec.decoder"


def spoilt(array: mx.array, value: Any, at: Any) -> mx.array:
    found = np.array(array)
    found[at] = value
    return mx.array(found)


@pytest.mark.parametrize(
    ("name", "spoil", "says"),
    [
        (RING, lambda a: spoilt(a, 10**6, (0, 1, 1)), "ring's codes must be .* is 1000000"),
        (RING, lambda a: spoilt(a, 2**31 - 1, (0, 0, 0)), "ring's text must be"),
        (RING, lambda a: spoilt(a, -3, (0, 16, 0)), "ring's codes must be .* is -3"),
        (RING, lambda a: spoilt(a, -2, (0, 1, 0)), "ring lacks tokens"),
        (RING, lambda a: mx.full(a.shape, NAN), "ring must be .* of .*int32, is .* of .*float32"),
        (RING, lambda a: mx.full(a.shape, 10**12), "ring must be .* of .*int32, is .* of .*int64"),
        (CACHE, lambda a: spoilt(a, NAN, (0, 0, 0, 1, 0)), r"not finite: 'cache\.1\.0'"),
        (CACHE, lambda a: a.astype(mx.int8), "is .* of .*int8"),
        (CACHE, None, r"missing or not known: 'cache\.1\.0'"),
        ("generator.cache.99.0", lambda a: a, r"missing or not known: 'cache\.99\.0'"),
        ("generator.recent", lambda a: mx.zeros((2, 1, 5), mx.int32), "recent must be"),
        ("generator.known", lambda a: mx.full((1, 1, 9), 10**7, mx.int32), "known's text must"),
        ("generator.known", lambda a: mx.zeros((4, 1, 9), mx.int32), "length of known must be"),
        (f"{ENCODER}.0.0", None, r"missing or not known: '0\.0'"),
        (f"{ENCODER}.0.0", lambda a: spoilt(a, INF, 0), r"not finite: '0\.0'"),
        (f"{ENCODER}.0.0", lambda a: a.astype(mx.int8), "of .*int8"),
        (f"{ENCODER}.0.0", lambda a: a[:, 1:], r"0\.0 must be"),
        (f"{DECODER}.0.0", lambda a: mx.zeros((1, 7, 3)), r"0\.0 must be"),
    ],
)
def test_arrays_of_a_saved_conversation(
    moshi: Moshi, saved: SavedState, name: str, spoil: Any, says: str
) -> None:
    arrays = dict(saved.arrays)
    found = arrays.pop(name, mx.zeros((1, 2)))
    if spoil is not None:
        arrays[name] = spoil(found)
    with pytest.raises(SessionError, match=rf"^the saved conversation is damaged \(.*{says}"):
        moshi.session(state=SavedState(arrays, saved.facts))


FACTS: dict[str, list[Any]] = {
    "generator.step": [0, 4, -1, 10**30, 2**70, "x", None, 2.0, True],
    "generator.offset": [0, 2, 4, "x"],
    "generator.seed": [-1, 2**70, "x"],
    "codec.encoder.offset": [0, 1, -2, 2**70, None],
    "index": [10**30, 2**70, 4, -3, "x", None],
    "user": [None, 5, [], [True], [1, 0], [True, 2**70], [True, "x"], [False, -1], {}],
    "moshi": ["xy", [0, 0]],
    "words": [None, [], {}],
    "words.frame": [4, -1, "x", None],
    "words.start": [4, -1, "x"],
    "words.last": [4, None],
    "words.text": [5, None, "of no beginning"],
    "words.bytes": ["zz", "6161", "ff", 5],
}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, vs in FACTS.items() for v in vs])
def test_facts_of_a_saved_conversation(
    moshi: Moshi, saved: SavedState, name: str, value: Any
) -> None:
    with pytest.raises(SessionError, match=r"^the saved conversation is damaged \([^\n]+\)$"):
        moshi.session(state=SavedState(saved.arrays, changed(saved.facts, name, value)))


def changed(facts: Any, name: str, value: Any) -> Any:
    first, _, rest = name.partition(".")
    return {**facts, first: changed(facts[first], rest, value) if rest else value}


def test_a_word_of_a_saved_conversation(moshi: Moshi, saved: SavedState) -> None:
    begun = {"frame": 3, "start": 1, "last": 2, "text": "half", "bytes": "e2"}
    with moshi.session(state=SavedState(saved.arrays, {**saved.facts, "words": begun})) as session:
        assert session.flush()[0].text == "half\ufffd"
    half = {**begun, "text": "\ud800"}
    with pytest.raises(SessionError, match=r"damaged .*whole characters"):
        moshi.session(state=SavedState(saved.arrays, {**saved.facts, "words": half}))


@pytest.mark.parametrize("facts", [{}, {"facts": "nope"}, {"facts": "[1]"}, {"facts": "[" * 10**5}])
def test_a_file_with_broken_facts(moshi: Moshi, facts: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    metadata = {"format": "moshi-local state 2", **facts}
    mx.save_safetensors(str(path), {"a": mx.zeros(1)}, metadata)
    with pytest.raises(SessionError, match=r"^the saved conversation is damaged"):
        moshi.session(state=path)


def test_a_generator_that_refuses_a_state_goes_on_as_it_was() -> None:
    lm = load("moshi")
    here, there = (Generator(lm, text=GREEDY, audio=GREEDY) for _ in range(2))
    codes = np.zeros((1, here.given), int)
    for generator in (here, there):
        generator.step(codes)
    state = here.save()
    bad = {**state.arrays, "ring": spoilt(state.arrays["ring"], 10**6, (0, 0, 1))}
    with pytest.raises(SessionError, match="damaged"):
        here.restore(SavedState(bad, state.facts))
    np.testing.assert_array_equal(here.step(codes).written, there.step(codes).written)


def in_a_thread(work: Callable[[], Any]) -> Any:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    return found[0]


def test_a_state_of_one_thread_serves_another(moshi: Moshi, tmp_path: Path) -> None:
    generator = Generator(load("moshi"), text=GREEDY, audio=GREEDY, compiled=False)
    logits = in_a_thread(lambda: generator.prefill(np.zeros((1, 17, 4), int)))
    assert np.isfinite(np.array(logits)).all()
    state = in_a_thread(generator.save)
    state.save(tmp_path / "state.safetensors")
    again = Generator(generator.lm, text=GREEDY, audio=GREEDY, compiled=False)
    in_a_thread(lambda: again.restore(state))
    codes = np.zeros((1, again.given), int)
    np.testing.assert_array_equal(again.step(codes).written, generator.step(codes).written)
    silence = np.zeros(moshi.frame_size)
    with moshi.session() as session:
        in_a_thread(lambda: session.step(silence))
        whole_state = in_a_thread(session.save)
        resumed = in_a_thread(lambda: moshi.session(state=whole_state))
        np.testing.assert_array_equal(session.step(silence).pcm, resumed.step(silence).pcm)


def test_a_step_takes_the_shapes_that_it_names() -> None:
    """Nothing is spread by accident: one number over codebooks, one row over conversations."""
    generator = Generator(load("moshi"), batch=2, text=GREEDY, audio=GREEDY)
    codes = np.zeros((2, generator.given), int)
    wrong: list[dict[str, Any]] = [
        {"audio": 5}, {"audio": [[5]]}, {"audio": [[5] * 8]}, {"overwrite": 7}, {"text": [1]},
        {"text": [[1, 1]]}, {"on_text": lambda tokens: tokens[:1]},
    ]  # fmt: skip
    for given in wrong:
        with pytest.raises(ArgumentError, match=f"{next(iter(given))}.* must be .* or .*, are"):
            generator.step(codes, **given)
    named: list[dict[str, Any]] = [
        {"audio": [5] * 8}, {"audio": [[5] * 8] * 2}, {"text": 1}, {"text": [1, 2]},
    ]  # fmt: skip
    for given in named:
        generator.step(codes, **given)
    guided = Generator(load("moshi"), text=GREEDY, audio=GREEDY, guidance=Guidance(2.0))
    for mask in (True, [True], [[True]]):
        with pytest.raises(ArgumentError, match=r"null_mask must be \[1, 17\] or \[17\], are"):
            guided.step(codes[:1], null_mask=mask)


@pytest.mark.parametrize(
    "given",
    [
        {"name": 5}, {"name": None}, {"dtype": mx.int32}, {"dtype": "q"}, {"codec": 3},
        {"lora": 3}, {"lora": b"x"}, {"lora": ""}, {"weights": 3}, {"weights": ""},
        {"offline": "x"},
    ],
)  # fmt: skip
def test_load_refuses_by_name_and_value(given: dict[str, Any]) -> None:
    with pytest.raises(MoshiError, match=f"{next(iter(given))} must be"):
        moshi_mlx.load(**{"name": "nano", **given})


@pytest.mark.parametrize("path", [5, None, b"x", "", "a\0b", ["x"]])
def test_what_is_no_path_is_refused(path: Any) -> None:
    for takes in (load_state, SavedState().save, moshi_mlx.load_mimi, moshi_mlx.TextTokenizer):
        with pytest.raises(ArgumentError, match="path must be text or a path, is"):
            takes(path)
    with pytest.raises(CheckpointError, match="cannot be written"):
        SavedState().save(Path())


def test_a_tokenizer_refuses_what_is_no_text_and_no_token(moshi: Moshi) -> None:
    text: Any = moshi.text
    for wrong in (5, None, b"abc", ["a"], NAN, "\ud800"):
        with pytest.raises(ArgumentError, match="text must be a str of whole characters, is"):
            text.encode(wrong)
    for token in (None, "a", 1.5, NAN, True, -3, 2**31, 2**70):
        for takes in (text.piece, text.piece_bytes, lambda token: text.decode([4, token])):
            with pytest.raises(ArgumentError, match="token must be a whole number from -2 to"):
                takes(token)
    with pytest.raises(ArgumentError, match="ids must be tokens, are 5"):
        text.decode(5)
    assert text.decode(np.array(text.encode("yes"))) == "yes"


def test_what_is_no_source_of_frames_is_refused(moshi: Moshi) -> None:
    with moshi.session() as session:
        with pytest.raises(ArgumentError, match="source must be an iterable of frames, is 5"):
            session.stream(5)  # type: ignore[arg-type]
        session.step(np.zeros(moshi.frame_size))
