"""The ring of keys and values: which positions a query sees, and going on from a saved state.

Every key is the number of its position, so that what is attended can be read off.
"""

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moshi_mlx.cache import KeysValues, RingCache

HEADS, DIM = 2, 4


def positions(start: int, length: int) -> mx.array:
    """Keys p and values −p of positions from `start`: [2, 1, HEADS, length, DIM]."""
    p = np.arange(start, start + length, dtype=np.float32)
    one = np.broadcast_to(p[None, None, :, None], (1, HEADS, length, DIM))
    return mx.array(np.stack([one, -one]))


def seen(held: KeysValues, mask: mx.array | None, length: int) -> list[list[int]]:
    """Of each query, the positions whose keys it attends, in order."""
    assert isinstance(held, tuple)
    keys, values = (np.array(array) for array in held)
    assert (keys == -values).all(), "keys and values go together"
    assert (keys == keys[:, :1, :, :1]).all(), "heads go together"
    numbers = keys[0, 0, :, 0].astype(int)
    allowed = np.ones((length, len(numbers)), bool) if mask is None else np.array(mask)
    return [sorted(numbers[row].tolist()) for row in allowed]


def take(cache: RingCache, length: int) -> list[list[int]]:
    mask = cache.mask(length)
    return seen(cache.update(positions(cache.offset, length)), mask, length)


def window(query: int, context: int) -> list[int]:
    return list(range(max(0, query - context + 1), query + 1))


@settings(deadline=None, max_examples=80)
@given(st.integers(1, 9), st.integers(1, 4), st.lists(st.integers(1, 14), min_size=1, max_size=12))
def test_a_query_sees_the_context_and_nothing_else(
    context: int, lookahead: int, lengths: list[int]
) -> None:
    """Itself and the `context` − 1 before it, each once, however the positions come."""
    cache = RingCache(context, lookahead)
    for length in lengths:
        start = cache.offset
        assert take(cache, length) == [window(start + i, context) for i in range(length)]
    cache.reset()
    assert take(cache, 2) == [window(i, context) for i in range(2)]


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 7),
    st.integers(1, 3),
    st.lists(st.integers(1, 9), min_size=1, max_size=6),
    st.lists(st.integers(1, 9), min_size=1, max_size=4),
)
def test_a_saved_ring_goes_on(
    context: int, lookahead: int, before: list[int], after: list[int]
) -> None:
    """From any moment, before and after it went round; what is saved does not change."""
    cache = RingCache(context, lookahead)
    for length in before:
        take(cache, length)
    offset, saved = cache.offset, cache.save()
    at_once = [np.array(array) for array in saved]
    wanted = [take(cache, length) for length in after]
    for array, then in zip(saved, at_once, strict=True):
        np.testing.assert_array_equal(array, then)
    for _ in range(2):  # and once more, from the same
        again = RingCache(context, lookahead)
        again.restore(offset, saved)
        assert [take(again, length) for length in after] == wanted


@pytest.mark.parametrize("bits", [8, 4])
def test_a_saved_quantized_ring_goes_on(bits: int) -> None:
    """Bit for bit, after it went round."""
    rng = np.random.default_rng(0)
    new = [mx.array(rng.normal(size=(2, 1, 2, 1, 64)).astype(np.float32)) for _ in range(17)]
    cache, again = RingCache(5, bits=bits), RingCache(5, bits=bits)
    for both in new[:8]:
        cache.update(both)
    again.restore(cache.offset, cache.save())
    for both in new[8:]:
        cache.update(both)
        again.update(both)
        for a, b in zip(cache.arrays(), again.arrays(), strict=True):
            np.testing.assert_array_equal(a, b)


def test_what_a_query_has_seen_is_not_written_over() -> None:
    """The next position, in the same slot, leaves what was returned as it was."""
    cache = RingCache(3)
    held = [cache.update(positions(p, 1)) for p in range(7)]
    for p, each in enumerate(held):
        assert seen(each, None, 1) == [window(p, 3)]
