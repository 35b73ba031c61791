"""One frame's step: the same numbers however it is put together, and what it asks of MLX."""

import json
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from moshi_local.machine.bench import bench_config, count_step
from moshi_local.machine.mlx_counters import counting, primitives
from moshi_mlx.backend import default_dtype, on_gpu
from moshi_mlx.cache import RingCache
from moshi_mlx.embedding import EmbeddingSum, can_stack, make_embedding
from moshi_mlx.files import read_json
from moshi_mlx.footprint import floor_ms, kv_bytes, weight_bytes_per_frame
from moshi_mlx.generate import Generator
from moshi_mlx.lm import Lm
from moshi_mlx.published import read_config
from moshi_mlx.sampling import Sampling, draw
from tests.moshi_mlx.test_lm import load

BENCH = Path(__file__).parents[1] / "fixtures" / "bench"
HOT = Sampling(temperature=1.0, top_k=20)
GUARDED = Sampling(temperature=1.0, top_k=20, repetition_penalty=1.5)


def small(bits: int = 16) -> Lm:
    """The small model of `make bench`, float32 or quantized, random weights."""
    mx.random.seed(0)
    lm = Lm(read_config(read_json(BENCH / "small.json")).lm)
    if bits < 16:
        nn.quantize(lm, {4: 32, 8: 64}[bits], bits)
    return lm


def test_compiled_is_the_same() -> None:
    """Past the context, and with a text token given in between."""
    lm = load("moshi")
    context = lm.config.transformer.context or 0
    user = np.random.default_rng(0).integers(0, lm.config.card, (context + 5, 1, 8))
    plain, fused = (
        Generator(lm, text=GUARDED, audio=GUARDED, compiled=compiled) for compiled in (False, True)
    )
    for t, codes in enumerate(user):
        text = 3 if t == 4 else None
        a, b = plain.step(codes, text=text), fused.step(codes, text=text)
        assert (a.written == b.written).all()
        assert mx.allclose(a.text_logits, b.text_logits, atol=1e-5).item()


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_one_table_for_all_streams(bits: int) -> None:
    """One gather gives the sum of the embeddings; the modules' arrays are parts of the table."""
    mx.random.seed(0)
    module = nn.Module()
    module.tables = [make_embedding(rows, 64) for rows in (7, 5, 5)]
    if bits < 16:
        nn.quantize(module, 32, bits)
    tables = module.tables
    tokens = np.array([[6, -1, 4], [0, 4, -1], [-1, -1, -1]], dtype=np.int32)

    def summed() -> mx.array:
        return tables[0](mx.array(tokens[:, :1])) + sum(
            table(mx.array(tokens[:, k : k + 1])) for k, table in enumerate(tables) if k
        )

    before = summed()
    assert can_stack(tables)
    stack = EmbeddingSum(tables)
    assert mx.array_equal(stack(mx.array(stack.rows(tokens))), before).item()
    assert mx.array_equal(summed(), before).item()
    assert stack.is_of(tables)
    assert not stack.is_of(tables[:2])
    tables[1].weight = tables[1].weight + 0
    assert not stack.is_of(tables)


def test_other_embeddings_are_not_stacked() -> None:
    assert not can_stack([make_embedding(5, 8, demux=True), make_embedding(5, 8)])
    assert not can_stack([make_embedding(5, 8), make_embedding(5, 16)])


def test_draws_as_mlx_does() -> None:
    """One row drawn with a key's number is what `mx.random.categorical` draws with that key."""
    whole = Sampling(temperature=1.0, top_k=0)
    rng = np.random.default_rng(0)
    for seed in range(50):
        logits = mx.array(rng.normal(0, 3, (1, 40)).astype(np.float32))
        key = mx.random.key(seed)
        uniform = mx.random.uniform(shape=(1,), key=key)
        assert draw(logits, uniform, whole).tolist() == (
            mx.random.categorical(logits, key=key).tolist()
        )


def test_what_has_no_weight_is_never_drawn() -> None:
    """The largest number below 1 still draws the last token that can be."""
    logits = mx.array([[0.3, 1.7, -0.4, -np.inf, -np.inf]])
    largest = mx.array(np.nextafter(np.ones(1, np.float32), 0))
    assert draw(logits, largest, Sampling(temperature=1.0, top_k=0)).tolist() == [2]
    assert draw(logits, mx.array([0.0]), Sampling(temperature=1.0, top_k=0)).tolist() == [0]


# Upstream 0.3.0's primitives per frame on the same model, from `moshi-local bench --vs-upstream`.
@pytest.mark.skipif(on_gpu(), reason="upstream was counted on the CPU")
@pytest.mark.parametrize(("bits", "upstream"), [(4, 1588), (8, 1388), (16, 1163)])
def test_a_step_asks_little(bits: int, upstream: int) -> None:
    asked = count_step(small(bits), frames=1)
    assert asked.host_syncs_per_frame == 1
    assert asked.primitives_per_frame <= 0.6 * upstream


def test_slices_whose_tokens_are_given_are_not_run() -> None:
    lm = load("moshi")

    class Never(nn.Linear):
        def __call__(self, x: mx.array) -> mx.array:
            raise AssertionError("this slice is not needed")

    lm.depformer.linear_out[3:] = [Never(1, 1)] * 5
    generator = Generator(lm, text=HOT, audio=HOT, generated=3)
    generator.step(np.zeros((1, generator.given)))
    assert weight_bytes_per_frame(lm, lm.config, generated=3) < weight_bytes_per_frame(
        lm, lm.config
    )


@pytest.mark.parametrize(("bits", "bytes_per_weight"), [(16, 4), (4, 0.75), (8, 1.125)])
def test_weight_bytes(bits: int, bytes_per_weight: float) -> None:
    """Within 2 % of the matrices' sizes worked out from the configuration."""
    dim, hidden, depth, depth_hidden = 256, 704, 128, 384
    layers = 4 * dim * (4 * dim + 3 * hidden)
    slices = 8 * (dim * depth + 2 * depth * (4 * depth + 3 * depth_hidden) + depth * 2048)
    weights = layers + dim * 32000 + slices
    lm = small(bits)
    found = weight_bytes_per_frame(lm, lm.config)
    assert found == pytest.approx(weights * bytes_per_weight, rel=0.02)


def test_report() -> None:
    """What `moshi-local bench --json` prints has the fields of DESIGN.md."""
    mine, upstream = bench_config(BENCH / "small.json", 4, frames=2, rounds=1)
    assert upstream is None
    found = json.loads(json.dumps(mine.as_dict()))
    assert found["host_syncs_per_frame"] == 1
    for times in ("frame_ms", "python_ms"):
        assert list(found[times]) == ["p50", "p95", "p99", "max"]
    sizes = ("weight_bytes_per_frame", "kv_bytes_per_frame", "peak_memory_bytes")
    assert all(found[size] > 0 for size in sizes)
    assert found["primitives_per_frame"] > 0


def test_roofline() -> None:
    """Weights in two bytes, and 3000 keys and values of 4 layers, at 68 GB/s."""
    lm = small()
    transformer = lm.config.transformer
    kept = kv_bytes(transformer, 2)
    assert kept == 2 * 4 * 3000 * 256 * 2
    assert kv_bytes(transformer, 2, 8) == kept * 8.5 / 16
    size = weight_bytes_per_frame(lm, lm.config, float_size=2)
    assert size == weight_bytes_per_frame(lm, lm.config) / 2
    assert floor_ms(size + kept)["M1"] == pytest.approx((size + kept) / 68e6, abs=1e-3)


def test_quantized_keys_and_values_are_counted() -> None:
    """8.5 bits a number in the figures, and in what a conversation holds at full context."""
    lm = load("moshi-mlx")
    c = lm.config.transformer
    generator = Generator(lm, text=HOT, audio=HOT, kv_bits=8)
    for _ in range((c.context or 0) + 3):
        generator.step(np.zeros((1, generator.given)))
    held = sum(array.nbytes for ring in generator._cache for array in ring.arrays())
    assert held == kv_bytes(c, 4, 8, 10_000) == kv_bytes(c, 4, 8)
    reports = [bench_config(BENCH / "small.json", 4, 2, rounds=1, kv_bits=b)[0] for b in (None, 8)]
    plain, packed = (report.kv_bytes_per_frame for report in reports)
    assert packed / plain == 8.5 / (8 * default_dtype().size)
    assert [report.kv_bits for report in reports] == [None, 8]
    # Quantized, two casts, three in place of one into the ring, queries scaled.
    more = reports[1].primitives_per_frame - reports[0].primitives_per_frame
    assert 0 < more <= 20 * 4


def test_counting() -> None:
    x = mx.array([[1.0, 2.0]])
    with counting() as counts:
        y = (x + 1).T  # an addition, the broadcast of its 1, and a view
        assert np.array(y).tolist() == [[2.0], [3.0]]
        mx.async_eval(x * y)
    assert counts.syncs == 1
    assert counts.launches == 2  # the addition and, later, the product
    assert counts.primitives["Transpose"] == 1
    assert primitives(y).total() == 0


def test_ring_is_contiguous_after_a_block() -> None:
    """However the block lay, the steps after it read keys in order."""
    cache = RingCache(8)
    cache.update(mx.random.normal((2, 1, 20, 2, 4)).transpose(0, 1, 3, 2, 4))
    for array in cache.arrays():
        assert np.array(array, copy=False).flags.c_contiguous
