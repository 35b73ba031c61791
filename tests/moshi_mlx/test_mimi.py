"""Mimi: against the reference's numbers and rustymimi, in chunks, without end; and its loading."""

import json
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

import moshi_mlx
from moshi_mlx import weights_mimi
from moshi_mlx.backend import on_gpu
from moshi_mlx.codec import Codec, MlxCodec, RustCodec, choose_codec
from moshi_mlx.config import MimiConfig
from moshi_mlx.errors import CheckpointError, ConfigError, MoshiError
from moshi_mlx.files import read_json
from moshi_mlx.hub import bundled_folder
from moshi_mlx.mimi import Mimi, MimiState
from moshi_mlx.published import read_mimi_config
from moshi_mlx.trees import named_parameters
from moshi_mlx.weights_mimi import from_published, load_mimi
from tests.fixtures import make_mimi
from tests.fixtures.make_mimi_expected import DATA, FRAMES, NANO, signal

LEAST_EQUAL = 0.98  # random codebooks have near ties
PCM_TOLERANCE = 1e-3
FRAME_CODES = mx.array(np.random.default_rng(0).integers(0, 31, (1, 4, 6)), mx.int32)


def parameters(mimi: Mimi) -> dict[str, mx.array]:
    return named_parameters(mimi)


@pytest.fixture(scope="module")
def small() -> Mimi:
    config = read_mimi_config(read_json(DATA / "small.json"))
    return load_mimi(DATA / "small.safetensors", 4, config)


@pytest.fixture(scope="module")
def nano_config() -> MimiConfig:
    return read_mimi_config(read_json(NANO / "mimi_config.json"))


@pytest.fixture(scope="module")
def full_size(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file of the published size, 385 MB."""
    path = tmp_path_factory.mktemp("mimi") / "mimi.safetensors"
    make_mimi.write(path, 0)
    yield path
    path.unlink()


def pcm_of(mimi: Mimi, frames: int, batch: int = 1, seed: int = 0) -> mx.array:
    rng = np.random.default_rng(seed)
    return mx.array(rng.standard_normal((batch, 1, frames * mimi.frame_size)), mx.float32)


def both_in_steps(
    mimi: Mimi, pcm: mx.array, codes: mx.array, ends: list[int], state: MimiState | None = None
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """pcm's codes and codes' pcm, in steps that end at those frames, on one shared state."""
    state = mimi.init_state(pcm.shape[0]) if state is None else state
    heard, said = [], []
    for a, b in pairwise(ends):
        size = mimi.frame_size
        heard.append(mimi.encode_step(pcm[..., a * size : b * size], state))
        said.append(mimi.decode_step(codes[..., a:b], state))
        mx.eval(heard[-1], said[-1], *state.arrays())
    return np.array(mx.concatenate(heard, axis=-1)), np.array(mx.concatenate(said, axis=-1))


# ---- against others


def test_the_reference_offline_and_frame_by_frame(full_size: Path) -> None:
    expected = load_file(DATA / "expected_seed0.safetensors")
    mimi = load_mimi(full_size)
    codes, frames = mx.array(expected["codes"])[None], expected["pcm_out_frames"]
    pcm = mx.array(expected["pcm_in"]).reshape(1, 1, -1)
    whole = np.array(mimi.encode(pcm)), np.array(mimi.decode(codes))
    steps = both_in_steps(mimi, pcm, codes, list(range(codes.shape[-1] + 1)))
    for heard, said in (whole, steps):
        assert (heard[0] == expected["codes"]).mean() >= LEAST_EQUAL
        said = said.reshape(-1, mimi.frame_size)[frames]
        np.testing.assert_allclose(said, expected["pcm_out"], atol=PCM_TOLERANCE)


def test_rustymimi_until_its_window_is_full(full_size: Path) -> None:
    rustymimi = pytest.importorskip("rustymimi")
    path, frames, block = full_size, 125, 25
    rust, mimi = rustymimi.Tokenizer(str(path), num_codebooks=8), load_mimi(path)
    pcm = pcm_of(mimi, frames, seed=1)
    size = mimi.frame_size
    starts = range(0, frames, block)
    blocks = [np.array(pcm[..., i * size : (i + block) * size]) for i in starts]
    codes = np.concatenate([rust.encode_step(x) for x in blocks], axis=-1)
    said = np.concatenate(
        [rust.decode_step(np.ascontiguousarray(codes[..., i : i + block])) for i in starts], axis=-1
    )
    assert (np.array(mimi.encode(pcm)) == codes).mean() >= LEAST_EQUAL
    ours = mimi.decode(mx.array(codes.astype(np.int32)))
    np.testing.assert_allclose(ours, said, atol=PCM_TOLERANCE)


def test_rust_codec_is_the_same_codec(full_size: Path) -> None:
    pytest.importorskip("rustymimi")
    path = full_size
    rust, ours = choose_codec("rust", path), choose_codec("mlx", path)
    assert isinstance(rust, RustCodec)
    assert isinstance(ours, MlxCodec)
    frame = np.random.default_rng(2).uniform(-0.5, 0.5, 2 * rust.frame_size).astype(np.float32)
    outputs = []
    for codec in (rust, ours):
        assert (codec.sample_rate, codec.frame_size, codec.num_codebooks) == (24_000, 1920, 8)
        state, other = codec.init_state(), codec.init_state()
        size = codec.frame_size
        codes = [codec.encode_step(frame[i : i + size], state) for i in (0, size)]
        assert [c.shape for c in codes] == [(8, 1), (8, 1)]
        assert all(c.dtype == np.int32 for c in codes)
        # The other state has heard nothing of it.
        np.testing.assert_array_equal(codec.encode_step(frame, other), np.hstack(codes))
        pcm = codec.decode_step(np.hstack(codes), state)
        assert pcm.shape == (2 * size,)
        assert pcm.dtype == np.float32
        outputs.append((np.hstack(codes), pcm))
        for wrong in (np.zeros(1000), np.zeros((1, size)), np.zeros(0)):
            with pytest.raises(ValueError, match="pcm"):
                codec.encode_step(wrong, state)
        for wrong in (np.zeros((9, 1)), np.zeros(8), np.full((8, 1), -1), np.full((8, 1), 2048)):
            with pytest.raises(ValueError, match="codes"):
                codec.decode_step(wrong, state)
    (rust_codes, rust_pcm), (our_codes, our_pcm) = outputs
    np.testing.assert_array_equal(rust_codes, our_codes)
    np.testing.assert_allclose(rust_pcm, our_pcm, atol=PCM_TOLERANCE)


@pytest.mark.gpu
def test_auto_takes_the_codec_that_is_clearly_faster(full_size: Path) -> None:
    pytest.importorskip("rustymimi")
    path = full_size
    for rust_seconds, chosen in ((0.05, RustCodec), (0.097, MlxCodec), (0.2, MlxCodec)):
        seconds = {"rust": rust_seconds, "mlx": 0.1}
        codec = choose_codec("auto", path, measure=lambda c, s=seconds: s[c.name])  # type: ignore[misc]
        assert isinstance(codec, chosen)
    codec = choose_codec("auto", path)  # really timed
    assert codec.name in ("mlx", "rust")
    pcm = np.zeros(codec.frame_size)
    heard = [codec.encode_step(pcm, codec.init_state()) for _ in range(2)]
    np.testing.assert_array_equal(heard[0], heard[1])  # a state that was timed serves nobody


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["nano", "small"])
def test_other_shapes_are_the_reference(name: str) -> None:
    """nano; and several dilated residual blocks with learned shortcuts; past the context."""
    folder, stem = (NANO, "mimi") if name == "nano" else (DATA, "small")
    config = read_json(folder / ("mimi_config.json" if name == "nano" else "small.json"))
    expected = load_file(DATA / f"expected_{name}.safetensors")
    mimi = load_mimi(folder / f"{stem}.safetensors", 8, read_mimi_config(config))
    codes = mx.array(expected["codes"])[None]
    pcm = mx.array(signal(FRAMES * mimi.frame_size)).reshape(1, 1, -1)
    whole = np.array(mimi.encode(pcm)), np.array(mimi.decode(codes))
    for heard, said in (whole, both_in_steps(mimi, pcm, codes, list(range(FRAMES + 1)))):
        assert (heard[0] == expected["codes"]).mean() >= LEAST_EQUAL
        np.testing.assert_array_equal(heard[0, :, 0], expected["codes"][:, 0])  # the padding
        said = said.reshape(-1, mimi.frame_size)[expected["pcm_out_frames"]]
        tolerance = 4 * PCM_TOLERANCE if on_gpu() else PCM_TOLERANCE  # in float16
        np.testing.assert_allclose(said, expected["pcm_out"], atol=tolerance)


# ---- streams


@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(1, 23), max_size=8))
def test_any_chunks_equal_the_whole(small: Mimi, cuts: list[int]) -> None:
    frames = 24  # the transformers see 3
    pcm = pcm_of(small, frames, batch=2)
    codes = mx.random.randint(0, small.config.quantizer.bins, (2, 4, frames), key=mx.random.key(0))
    whole = both_in_steps(small, pcm, codes, [0, frames])
    ends = sorted({0, *cuts, frames})
    steps = both_in_steps(small, pcm, codes, ends)
    assert (steps[0] == whole[0]).mean() >= LEAST_EQUAL
    np.testing.assert_allclose(steps[1], whole[1], atol=1e-4)


def test_offline_blocks_equal_one_step(small: Mimi) -> None:
    frames = 120
    pcm = pcm_of(small, frames)
    codes = mx.random.randint(0, small.config.quantizer.bins, (1, 4, frames), key=mx.random.key(0))
    heard, said = both_in_steps(small, pcm, codes, [0, frames])
    assert (np.array(small.encode(pcm)) == heard).mean() >= LEAST_EQUAL
    np.testing.assert_allclose(small.decode(codes), said, atol=1e-4)


def test_the_past_is_heard_and_the_future_is_not(small: Mimi) -> None:
    pcm, size = np.array(pcm_of(small, 6, batch=8)), small.frame_size
    codes, said = (np.array(x) for x in (small.encode(mx.array(pcm)), small.decode(FRAME_CODES)))
    pcm[..., 2 * size : 3 * size] *= -1
    changed = np.array(small.encode(mx.array(pcm)))
    np.testing.assert_array_equal(changed[..., :2], codes[..., :2])
    assert (changed[..., 2] != codes[..., 2]).any()
    assert (changed[..., 3:] != codes[..., 3:]).any()
    other = np.array(FRAME_CODES)
    other[..., 2] += 1
    differs = np.array(small.decode(mx.array(other)) != said).reshape(6, size).any(axis=1)
    assert differs.tolist() == [False, False, True, True, True, True]


def test_a_fresh_state_knows_nothing_of_the_stream_before(small: Mimi) -> None:
    pcm, ends = pcm_of(small, 10), list(range(11))
    codes = mx.random.randint(0, small.config.quantizer.bins, (1, 4, 10), key=mx.random.key(0))
    first = both_in_steps(small, pcm, codes, ends)
    again = both_in_steps(small, pcm, codes, ends)
    np.testing.assert_array_equal(again[0], first[0])
    np.testing.assert_array_equal(again[1], first[1])
    used = small.init_state()
    both_in_steps(small, pcm_of(small, 10, seed=1), codes, ends, used)
    later = both_in_steps(small, pcm, codes, ends, used)
    assert (later[1] != first[1]).any()


def test_directions_do_not_touch_each_other(small: Mimi) -> None:
    pcm, ends = pcm_of(small, 10), list(range(11))
    codes = mx.random.randint(0, small.config.quantizer.bins, (1, 4, 10), key=mx.random.key(0))
    heard, said = both_in_steps(small, pcm, codes, ends)
    state = small.init_state()
    alone = [small.encode_step(p, state) for p in mx.split(pcm, 10, axis=-1)]
    np.testing.assert_array_equal(mx.concatenate(alone, axis=-1), heard)
    assert not state.decoder.arrays()
    back = [small.decode_step(c, state) for c in mx.split(codes, 10, axis=-1)]
    np.testing.assert_allclose(mx.concatenate(back, axis=-1), said, atol=1e-5)


def test_memory_stays_flat(small: Mimi) -> None:
    """As long as the state is evaluated with each result, nothing piles up, one direction alone."""
    state, sizes, memory = small.init_state(), [], []
    frame = pcm_of(small, 1)
    for _ in range(400):
        mx.eval(small.encode_step(frame, state), *state.arrays())
        sizes.append(sum(array.nbytes for array in state.arrays()))
        memory.append(mx.get_active_memory())
    assert len(set(sizes[50:])) == 1
    # Nine convolutions (the downsampling one is the ninth), keys with values of two layers.
    assert len(state.arrays()) == 9 + 2
    assert memory[-1] <= memory[50] + 1024


def test_fewer_codebooks(small: Mimi) -> None:
    codes = small.encode(pcm_of(small, 4))
    assert codes.shape == (1, 4, 4)
    assert small.decode(codes[:, :1]).shape == (1, 1, 4 * small.frame_size)
    assert (np.array(small.decode(codes[:, :2])) != np.array(small.decode(codes))).any()


def test_wrong_shapes_are_refused(small: Mimi) -> None:
    state, size = small.init_state(), small.frame_size
    for shape in [(1, 1, size + 1), (1, 1, 0), (1, 2, size), (1, size)]:
        for method in (small.encode, lambda x: small.encode_step(x, state)):
            with pytest.raises(ValueError, match=r"pcm must be \[batch, 1, frames of 8 samples\]"):
                method(mx.zeros(shape))
    for shape in [(1, 5, 1), (1, 0, 1), (1, 4, 0), (4, 1)]:
        for method in (small.decode, lambda x: small.decode_step(x, state)):
            with pytest.raises(ValueError, match="codes must be"):
                method(mx.zeros(shape, mx.int32))
    with pytest.raises(ValueError, match="batch"):
        small.encode_step(mx.zeros((2, 1, size)), state)
    with pytest.raises(ValueError, match="batch"):
        small.decode_step(mx.zeros((2, 4, 1), mx.int32), state)
    assert not state.arrays()  # nothing of it was heard


# ---- files


@pytest.fixture
def nano_weights() -> dict[str, mx.array]:
    weights = mx.load(str(NANO / "mimi.safetensors"))
    assert isinstance(weights, dict)
    return weights


def saved(weights: dict[str, mx.array], folder: Path) -> Path:
    path = folder / "mimi.safetensors"
    mx.save_safetensors(str(path), weights)
    return path


def same_parameters(a: Mimi, b: Mimi) -> bool:
    ours, theirs = parameters(a), parameters(b)
    return ours.keys() == theirs.keys() and all(
        mx.array_equal(ours[name], theirs[name]).item() for name in ours
    )


def test_published_names_cover_the_module() -> None:
    """Names and shapes of the published file are exactly those of the published config."""
    shapes = json.loads((DATA / "keys.json").read_text())
    lazy = {name: mx.zeros(shape) for name, shape in shapes.items()}
    for num_codebooks in (1, 8, 32):
        expected = parameters(Mimi(MimiConfig(), num_codebooks))
        renamed = from_published(lazy, MimiConfig(), num_codebooks)
        assert {n: v.shape for n, v in renamed.items()} == {n: v.shape for n, v in expected.items()}


def test_other_names_of_the_same(
    nano_weights: dict[str, mx.array], nano_config: MimiConfig, tmp_path: Path
) -> None:
    """Attention as `in_projs.{i}`, codebooks by the names they had in training, half precision."""
    plain = load_mimi(NANO / "mimi.safetensors", config=nano_config)
    renames = {
        "in_proj_weight": "in_projs.0.weight",
        "out_proj.weight": "out_projs.0.weight",
        "_codebook._initialized": "_codebook.inited",
        "cluster_usage": "cluster_size",
        "embedding_sum": "embed_avg",
    }
    other = {}
    for name, value in nano_weights.items():
        for old, new in renames.items():
            name = name.replace(old, new)
        other[name] = value
    assert other.keys() != nano_weights.keys()
    assert same_parameters(load_mimi(saved(other, tmp_path), config=nano_config), plain)
    halves = {name: value.astype(mx.bfloat16) for name, value in nano_weights.items()}
    loaded = load_mimi(saved(halves, tmp_path), config=nano_config)
    assert all(value.dtype == mx.float32 for value in parameters(loaded).values())


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("decoder.model.14.conv.conv.bias", None, "missing"),
        ("quantizer.rvq_rest.vq.layers.3._codebook.embedding_sum", None, "missing"),
        ("encoder.model.0.conv.conv.weight", (8, 1, 6), "config says"),
        ("decoder.model.2.convtr.convtr.weight", (128, 64, 15), "config says"),
        ("quantizer.rvq_first.vq.layers.0._codebook.cluster_usage", (500,), "config says"),
        ("quantizer.rvq_first.input_proj.weight", (64, 128, 2), "config says"),
        ("encoder.model.99.conv.conv.bias", (8,), "doesn't know"),
    ],
)
def test_files_that_do_not_match_are_refused(
    nano_weights: dict[str, mx.array],
    nano_config: MimiConfig,
    tmp_path: Path,
    name: str,
    change: tuple[int, ...] | None,
    message: str,
) -> None:
    nano_weights.pop(name, None)
    if change is not None:
        nano_weights[name] = mx.zeros(change)
    path = saved(nano_weights, tmp_path)
    with pytest.raises(CheckpointError, match=message) as error:
        load_mimi(path, config=nano_config)
    assert str(path) in str(error.value)


def test_files_that_are_no_mimi_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a Mimi"):
        load_mimi(NANO / "model.safetensors")
    with pytest.raises(CheckpointError, match="No such file"):
        load_mimi(tmp_path / "nothing.safetensors")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes((NANO / "mimi.safetensors").read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="truncated"):
        load_mimi(broken)


# ---- choosing


def test_choice_of_the_codec(nano_config: MimiConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(codec: Codec[Any]) -> float:
        raise AssertionError("timed, where there is no choice")

    nano = NANO / "mimi.safetensors"
    assert isinstance(choose_codec("auto", nano, config=nano_config, measure=never), MlxCodec)
    with pytest.raises(MoshiError, match="one of auto, mlx, rust"):
        choose_codec("opus", nano)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "rustymimi", None)
    with pytest.raises(MoshiError, match="not installed"):
        choose_codec("rust", nano)


def test_rust_is_for_the_published_size(nano_config: MimiConfig) -> None:
    pytest.importorskip("rustymimi")
    with pytest.raises(MoshiError, match="published size"):
        choose_codec("rust", NANO / "mimi.safetensors", config=nano_config)
    with pytest.raises(CheckpointError, match="rustymimi cannot read it") as error:
        choose_codec("rust", NANO / "mimi.safetensors")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("block", "problem"),
    [
        ({"seanet": {"ratios": [8, 6, 4, 5]}}, "'seanet.ratios' must be"),
        ({"seanet": {"n_filterz": 16}}, "n_filterz"),
        ({"transformer": 4}, "'transformer' must be an object"),
        ({"transformer": {"num_layers": 0}}, "'num_layers' must be a whole number"),
        ({"quantizer": {}}, "quantizer"),
    ],
)
def test_a_decoder_of_another_size_must_fit(block: dict[str, object], problem: str) -> None:
    raw = read_json(NANO / "mimi_config.json")
    wide = read_mimi_config(raw)
    assert (wide.seanet.n_filters, wide.decoding.seanet.n_filters) == (8, 16)
    assert (wide.transformer.num_layers, wide.decoding.transformer.num_layers) == (2, 4)
    with pytest.raises(ConfigError, match=problem):
        read_mimi_config({**raw, "decoder": block})


def test_on_a_gpu_the_decoder_is_smaller_and_the_codes_are_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its error is far below what 16 bits of a quiet recording can hold; nothing else changes."""
    exact = moshi_mlx.load("nano", codec="mlx").mimi
    monkeypatch.setattr(weights_mimi, "on_gpu", lambda: True)
    small = moshi_mlx.load("nano", codec="mlx").mimi
    pcm, _ = soundfile.read(bundled_folder("nano") / "question.wav", dtype="float32")
    heard = mx.array(pcm[: 30 * exact.frame_size])[None, None]
    codes = exact.encode(heard)
    assert mx.array_equal(small.encode(heard), codes).item()
    wanted, said = exact.decode(codes), small.decode(codes)
    assert said.dtype == mx.float32
    error = float(mx.sum((said - wanted) ** 2) / mx.sum(wanted**2))
    assert 0 < error < 1e-5
    sizes = [sum(a.nbytes for a in named_parameters(m.decoder).values()) for m in (exact, small)]
    assert sizes[1] == sizes[0] / 2
