"""The ring with quantized slots: the plain ring's contents, less exactly; and its attention."""

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moshi_mlx.cache import KV_GROUPS, Quantized, RingCache, position_bytes, quantized
from moshi_mlx.config import Positions, TransformerConfig
from moshi_mlx.errors import ArgumentError
from moshi_mlx.transformer import Transformer, attend


def restored(held: Quantized) -> tuple[mx.array, mx.array]:
    """Keys and values in full, in float32."""
    group = held.width // held.scales.shape[-1]
    both = mx.dequantize(
        held.packed,
        held.scales.astype(mx.float32),
        held.biases.astype(mx.float32),
        group_size=group,
        bits=held.bits,
    )
    return both[0], both[1]


def representable(rng: np.random.Generator, shape: tuple[int, ...], bits: int) -> mx.array:
    """Whole numbers of which each group has the least and the greatest: nothing is rounded."""
    top = 2**bits - 1
    numbers = rng.integers(0, top, shape, endpoint=True)
    numbers[..., ::32], numbers[..., 1::32] = 0, top
    return mx.array(numbers.astype(np.float32))


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_quantized_ring_holds_what_the_plain_one_does(data: st.DataObject) -> None:
    """Steps and blocks of any size, past three times the context, the ring wrapping."""
    bits = data.draw(st.sampled_from(list(KV_GROUPS)), "bits")
    context = data.draw(st.integers(1, 9), "context")
    lookahead = data.draw(st.integers(1, 3), "lookahead")
    rings = [RingCache(context, lookahead, b) for b in (None, bits)]
    rng = np.random.default_rng(0)
    while rings[0].offset < 3 * context + 5:
        length = data.draw(st.integers(1, context + 4), "length")
        new = representable(rng, (2, 2, 3, length, 64), bits)
        masks = [ring.mask(length) for ring in rings]
        assert [m is None for m in masks] in ([True, True], [False, False])
        plain, small = (ring.update(new) for ring in rings)
        assert isinstance(plain, tuple)
        assert isinstance(small, Quantized)
        for a, b in zip(plain, restored(small), strict=True):
            assert mx.array_equal(a, b).item()
        if masks[0] is not None and masks[1] is not None:
            assert mx.array_equal(masks[0], masks[1]).item()
    assert rings[0].offset == rings[1].offset


@pytest.mark.parametrize(("bits", "dtype"), [(8, mx.float32), (4, mx.float32), (8, mx.bfloat16)])
def test_numbers_are_as_near_as_the_bits_allow(bits: int, dtype: mx.Dtype) -> None:
    """A step of the group's range at its ends, mostly half of one; and what 16 bits round off."""
    keys, values = (mx.random.normal((2, 3, 5, 128), key=mx.random.key(i)) for i in (0, 1))
    keys, values = keys.astype(dtype), values.astype(dtype)
    held = quantized(mx.stack([keys, values]), bits)
    assert held.scales.dtype == held.biases.dtype == {mx.float32: mx.float16}.get(dtype, dtype)
    rounded = 2**-10 if dtype == mx.float32 else 2**-7
    for exact, found in zip((keys, values), restored(held), strict=True):
        groups = np.array(exact.astype(mx.float32)).reshape(2, 3, 5, -1, KV_GROUPS[bits])
        span = np.ptp(groups, axis=-1, keepdims=True)
        step, slack = span / (2**bits - 1), rounded * np.abs(groups).max()
        off = np.abs(np.array(found).reshape(groups.shape) - groups)
        assert (off <= step + slack).all()  # MLX makes zero exact, at one end's cost
        assert np.mean(off <= 0.5 * step + slack) > 0.97
        assert off.max() > 0


@pytest.mark.parametrize("dim", [16, 32, 64, 96, 128])
@pytest.mark.parametrize("bits", [8, 4])
def test_attention_is_that_of_the_restored(dim: int, bits: int) -> None:
    """Two sequences, grouped keys, several queries with a mask and one without; odd widths."""
    mx.random.seed(dim)
    keys, values = (mx.random.normal((2, 2, 9, dim)) for _ in "kv")
    held = quantized(mx.stack([keys, values]), bits)
    keys, values = (x[..., :dim] for x in restored(held))
    causal = mx.array(np.tril(np.ones((4, 9), bool), 5))
    for length, mask in ((4, causal), (1, None)):
        q = mx.random.normal((2, 6, length, dim))
        expected = mx.fast.scaled_dot_product_attention(q, keys, values, scale=dim**-0.5, mask=mask)
        assert mx.allclose(attend(q, held, mask), expected, atol=1e-5).item()
        assert mx.allclose(attend(q, (keys, values), mask), expected, atol=1e-6).item()


@pytest.mark.parametrize(
    ("bits", "dim", "share"),
    [(8, 128, 8.5 / 16), (8, 64, 8.5 / 16), (8, 32, 9 / 16), (4, 128, 5 / 16), (4, 32, 5 / 16)],
)
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_bytes_are_what_is_claimed(bits: int, dim: int, share: float, dtype: mx.Dtype) -> None:
    """Of 16 bits a number: by the formula, in the ring's arrays, and in MLX's memory."""
    context, heads = 1500, 256 // dim * 8
    ring = RingCache(context, bits=bits)
    position = mx.ones((2, 1, heads, 1, dim), dtype=dtype)
    mx.eval(position)
    before = mx.get_active_memory()
    for _ in range(context + 5):
        ring.update(position)
        mx.eval(ring.arrays())
    plain = 2 * context * heads * dim * 2
    claimed = context * position_bytes(heads, dim, dtype.size, bits)
    assert claimed == share * plain
    assert sum(array.nbytes for array in ring.arrays()) == claimed
    assert mx.get_active_memory() - before == pytest.approx(claimed, rel=0.02)


def test_other_bits_are_refused() -> None:
    with pytest.raises(ValueError, match="quantized to 8 or 4 bits, not 5"):
        RingCache(4, bits=5)


@pytest.mark.parametrize("positions", ["rope", "rope_concat", "none"])
@pytest.mark.parametrize("kept", [1, 3])
def test_what_is_kept_is_seen_right_before_the_others(positions: Positions, kept: int) -> None:
    """As by a model that never had what lies between; until the context is full nothing changes."""
    context, count = 8, 30
    config = TransformerConfig(
        dim=32, num_layers=1, num_heads=2, kv_repeat=2, feedforward=64,
        gating="none", positions=positions, context=context,
    )  # fmt: skip
    model = Transformer(config)
    x = mx.array(np.random.default_rng(0).normal(size=(1, count, 32)).astype(np.float32))
    rings, plain = model.make_cache(), model.make_cache()
    for t in range(count):
        y = model(x[:, t : t + 1], rings)
        if t + 1 == kept:
            rings[0].keep(kept, model.turned)
        if t < context:
            assert mx.array_equal(y, model(x[:, t : t + 1], plain))
            continue
        seen = [*range(kept), *range(t - context + kept + 1, t + 1)]
        wanted = model(x[:, mx.array(seen)], model.make_cache())[:, -1:]
        np.testing.assert_allclose(np.array(y), np.array(wanted), atol=2e-6)
        if t == 17:  # saved and resumed
            again = model.make_cache()
            again[0].restore(t + 1, rings[0].save(), kept, model.turned)
            rings = again


def test_what_cannot_be_kept() -> None:
    ring = RingCache(4)
    ring.update(mx.zeros((2, 1, 1, 2, 8)))
    for positions in (-1, 3):
        with pytest.raises(ArgumentError, match="from 0 to 2 positions can be kept"):
            ring.keep(positions, lambda keys, _: keys)
    small = RingCache(4, bits=8)
    with pytest.raises(ArgumentError, match="quantized keys"):
        small.keep(0, lambda keys, _: keys)
