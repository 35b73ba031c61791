"""What attention remembers: keys and values of the positions it may still see.

`RingCache` holds exactly as many positions as `context` allows and grows up to there in steps, so
a conversation has no length limit and bounded memory. `ListCache` keeps all positions of a short
sequence (the inner positions of one frame). Knows nothing of heads, rotations or masks' use.
"""

from typing import Protocol

import mlx.core as mx
import numpy as np


class Cache(Protocol):
    """Keys and values of one attention layer; `offset` is the position of the next one."""

    offset: int

    def mask(self, length: int) -> mx.array | None:
        """Which of the keys that `update` will return each of the next `length` queries sees.

        Boolean [length, keys], or None where every query sees every key. To be asked before
        `update`; the same for every layer of a transformer.
        """

    def update(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Takes [B, H, length, D] and returns the keys and values to attend, in `mask`'s order."""

    def arrays(self) -> list[mx.array]:
        """The arrays this cache holds now."""


class RingCache:
    """A ring of slots; a query sees the keys with 0 ≤ query position - key position < context.

    Position p lives in slot p mod slots. With up to `lookahead` new positions at once, written in
    place, the ring has context + lookahead - 1 slots: the first of them still sees its oldest key.
    Longer blocks are attended in order of time, and only their end is kept.

    Args:
        context: positions a query sees, itself included.
        lookahead: positions that one streaming step brings.
        growth: slots added at a time until the ring is full-sized.
    """

    def __init__(self, context: int, lookahead: int = 1, growth: int = 256) -> None:
        self.context = context
        self.lookahead = lookahead
        self.slots = context + lookahead - 1
        self.growth = growth
        self.offset = 0
        self._keys: mx.array | None = None
        self._values: mx.array | None = None

    def mask(self, length: int) -> mx.array | None:
        if length == 1 == self.lookahead:
            return None
        delta = np.arange(self.offset, self.offset + length)[:, None] - self._layout(length)
        visible = (delta >= 0) & (delta < self.context)
        return None if visible.all() else mx.array(visible)

    def update(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        length = keys.shape[2]
        if length > self.lookahead:
            return self._update_block(keys, values)
        self._reserve(self.offset + length, keys, values)
        assert self._keys is not None and self._values is not None
        for i in range(length):
            slot = (self.offset + i) % self.slots
            self._keys[:, :, slot : slot + 1] = keys[:, :, i : i + 1]
            self._values[:, :, slot : slot + 1] = values[:, :, i : i + 1]
        self.offset += length
        filled = min(self.offset, self.slots)
        return self._keys[:, :, :filled], self._values[:, :, :filled]

    def arrays(self) -> list[mx.array]:
        return [array for array in (self._keys, self._values) if array is not None]

    def _layout(self, length: int) -> np.ndarray:
        """The position of each key that `update` returns for `length` new ones."""
        end = self.offset + length
        if length > self.lookahead:
            return np.arange(max(0, self.offset - self.context + 1), end)
        slots = np.arange(min(end, self.slots))
        return end - 1 - (end - 1 - slots) % self.slots

    def _reserve(self, end: int, keys: mx.array, values: mx.array) -> None:
        """Room for the positions before `end`, as far as the ring goes."""
        held = 0 if self._keys is None else self._keys.shape[2]
        if min(end, self.slots) <= held:
            return
        room = min(self.slots, -(-end // self.growth) * self.growth)
        self._keys = _widened(self._keys, keys, room)
        self._values = _widened(self._values, values, room)

    def _update_block(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        end = self.offset + keys.shape[2]
        if self._keys is not None and self._values is not None:
            past = np.arange(max(0, self.offset - self.context + 1), self.offset) % self.slots
            keys = mx.concatenate([mx.take(self._keys, mx.array(past), axis=2), keys], axis=2)
            values = mx.concatenate([mx.take(self._values, mx.array(past), axis=2), values], axis=2)
        kept = min(end, self.slots)
        # The kept end of the block, sorted by slot.
        order = np.argsort(np.arange(end - kept, end) % self.slots) + keys.shape[2] - kept
        # `take` keeps the axes' order of what it is given, mostly a transposed view: steps that
        # follow would read that 7 times slower on the CPU (3000 positions of 32 heads).
        self._keys = mx.contiguous(mx.take(keys, mx.array(order), axis=2))
        self._values = mx.contiguous(mx.take(values, mx.array(order), axis=2))
        self.offset = end
        return keys, values


def _widened(held: mx.array | None, like: mx.array, room: int) -> mx.array:
    batch, heads, _, dim = like.shape
    filled = 0 if held is None else held.shape[2]
    more = mx.zeros((batch, heads, room - filled, dim), dtype=like.dtype)
    return more if held is None else mx.concatenate([held, more], axis=2)


class ListCache:
    """All positions of a short sequence that comes one position at a time."""

    def __init__(self) -> None:
        self.offset = 0
        self._keys: list[mx.array] = []
        self._values: list[mx.array] = []

    def mask(self, length: int) -> mx.array | None:
        if length != 1:
            raise ValueError(f"a ListCache takes one position at a time, not {length}")
        return None

    def update(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        self._keys.append(keys)
        self._values.append(values)
        self.offset += 1
        if self.offset == 1:
            return keys, values
        both = mx.concatenate([*self._keys, *self._values], axis=2)  # one launch
        return both[:, :, : self.offset], both[:, :, self.offset :]

    def arrays(self) -> list[mx.array]:
        return [*self._keys, *self._values]
