"""What attention remembers: keys and values of the positions it may still see.

`RingCache` holds exactly as many positions as `context` allows and grows up to there in steps, so
a conversation has no length limit and bounded memory; it can hold them in few bits (`Quantized`).
`ListCache` keeps all positions of a short sequence (the inner positions of one frame). Knows
nothing of rotations, queries or masks' use.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import mlx.core as mx
import numpy as np

KV_GROUPS = {8: 64, 4: 32}
"""Bits that keys and values can be quantized to → numbers that share a scale and a bias, where
that divides a head's width; else 32 do, and other widths are filled up with zeros."""
_SMALL_GROUP = 32
_SCALE_BYTES = 2


@dataclass(frozen=True)
class Quantized:
    """Keys and values in few bits: each array is [2, B, H, n, …] of `mx.quantize`, keys first.

    Groups run along the width of a head. Scales and biases have 16 bits: the type of what came,
    float16 where that was float32.
    """

    packed: mx.array
    scales: mx.array
    biases: mx.array
    bits: int

    @property
    def width(self) -> int:
        """Of a head, filled up to whole groups."""
        return self.packed.shape[-1] * 32 // self.bits

    def scores(self, queries: mx.array) -> mx.array:
        """Queries [B, H, M, width] by the keys: [B, H, M, n]."""
        return self._matmul(queries, 0, transpose=True)

    def mixed(self, weights: mx.array) -> mx.array:
        """The values' sums by weights [B, H, M, n]: [B, H, M, width]."""
        return self._matmul(weights, 1, transpose=False)

    def _matmul(self, x: mx.array, which: int, transpose: bool) -> mx.array:
        return mx.quantized_matmul(
            x,
            self.packed[which],
            self.scales[which],
            self.biases[which],
            transpose=transpose,
            group_size=self.width // self.scales.shape[-1],
            bits=self.bits,
        )


KeysValues = tuple[mx.array, mx.array] | Quantized
"""Keys and values, each [B, H, n, D]; or both quantized."""


def quantized(keys: mx.array, values: mx.array, bits: int) -> Quantized:
    """Keys and values [B, H, n, D] in `bits` bits."""
    dim = keys.shape[-1]
    group, width = _grouping(dim, bits)
    both = mx.stack([keys, values])
    if width > dim:
        both = mx.pad(both, [(0, 0)] * 4 + [(0, width - dim)])
    packed, scales, biases = mx.quantize(both, group_size=group, bits=bits)
    if scales.dtype == mx.float32:
        scales, biases = scales.astype(mx.float16), biases.astype(mx.float16)
    return Quantized(packed, scales, biases, bits)


def position_bytes(heads: int, dim: int, float_size: int, bits: int | None = None) -> int:
    """Bytes of the keys and values of one position, as a `RingCache` holds them.

    Args:
        heads: of keys.
        dim: a head's width.
        float_size: bytes of a number that is not quantized.
        bits: as `RingCache` takes it.
    """
    if bits is None:
        return 2 * heads * dim * float_size
    group, width = _grouping(dim, bits)
    return 2 * heads * (width * bits // 8 + width // group * 2 * _SCALE_BYTES)


def _grouping(dim: int, bits: int) -> tuple[int, int]:
    """Numbers in a group, and a head's width in whole groups."""
    group = KV_GROUPS[bits] if dim % KV_GROUPS[bits] == 0 else _SMALL_GROUP
    return group, -(-dim // group) * group


class Cache(Protocol):
    """Keys and values of one attention layer; `offset` is the position of the next one."""

    offset: int

    def mask(self, length: int) -> mx.array | None:
        """Which of the keys that `update` will return each of the next `length` queries sees.

        Boolean [length, keys], or None where every query sees every key. To be asked before
        `update`; the same for every layer of a transformer.
        """

    def update(self, keys: mx.array, values: mx.array) -> KeysValues:
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
        bits: quantize keys and values to 8 or 4 bits, new ones before they are attended; None: no.

    Raises:
        ValueError: the bits are none of `KV_GROUPS`.
    """

    def __init__(
        self, context: int, lookahead: int = 1, growth: int = 256, bits: int | None = None
    ) -> None:
        if bits is not None and bits not in KV_GROUPS:
            raise ValueError(f"keys and values are quantized to 8 or 4 bits, not {bits}")
        self.context = context
        self.lookahead = lookahead
        self.slots = context + lookahead - 1
        self.growth = growth
        self.bits = bits
        self.offset = 0
        self._held: list[mx.array] = []  # each [..., slots, D]

    def mask(self, length: int) -> mx.array | None:
        if length == 1 == self.lookahead:
            return None
        delta = np.arange(self.offset, self.offset + length)[:, None] - self._layout(length)
        visible = (delta >= 0) & (delta < self.context)
        return None if visible.all() else mx.array(visible)

    def update(self, keys: mx.array, values: mx.array) -> KeysValues:
        if self.bits is None:
            keys, values = self._put([keys, values])
            return keys, values
        new = quantized(keys, values, self.bits)
        packed, scales, biases = self._put([new.packed, new.scales, new.biases])
        return Quantized(packed, scales, biases, self.bits)

    def arrays(self) -> list[mx.array]:
        return list(self._held)

    def restore(self, offset: int, arrays: Sequence[mx.array]) -> None:
        """Continues where a cache of the same kind had this offset and these arrays."""
        self.offset = offset
        # Copies: a step writes in place.
        self._held = [mx.array(array) for array in arrays]

    def _layout(self, length: int) -> np.ndarray:
        """The position of each key that `update` returns for `length` new ones."""
        end = self.offset + length
        if length > self.lookahead:
            return np.arange(max(0, self.offset - self.context + 1), end)
        slots = np.arange(min(end, self.slots))
        return end - 1 - (end - 1 - slots) % self.slots

    def _put(self, new: list[mx.array]) -> list[mx.array]:
        """Takes arrays [..., length, D] and returns what is to be attended of each."""
        length = new[0].shape[-2]
        if length > self.lookahead:
            return self._put_block(new)
        self._reserve(self.offset + length, new)
        for i in range(length):
            slot = (self.offset + i) % self.slots
            for held, array in zip(self._held, new, strict=True):
                held[..., slot : slot + 1, :] = array[..., i : i + 1, :]
        self.offset += length
        filled = min(self.offset, self.slots)
        return [held[..., :filled, :] for held in self._held]

    def _reserve(self, end: int, new: Sequence[mx.array]) -> None:
        """Room for the positions before `end`, as far as the ring goes."""
        room = self._held[0].shape[-2] if self._held else 0
        if min(end, self.slots) <= room:
            return
        more = min(self.slots, -(-end // self.growth) * self.growth) - room
        empty = [mx.zeros((*a.shape[:-2], more, a.shape[-1]), dtype=a.dtype) for a in new]
        self._held = self._joined(empty)

    def _joined(self, new: list[mx.array]) -> list[mx.array]:
        """What is held, with what follows it."""
        if not self._held:
            return new
        return [mx.concatenate([a, b], axis=-2) for a, b in zip(self._held, new, strict=True)]

    def _put_block(self, new: list[mx.array]) -> list[mx.array]:
        end = self.offset + new[0].shape[-2]
        past = np.arange(max(0, self.offset - self.context + 1), self.offset) % self.slots
        self._held = [mx.take(held, mx.array(past), axis=-2) for held in self._held]
        attended = self._joined(new)
        kept = min(end, self.slots)
        # The kept end of the block, sorted by slot.
        order = np.argsort(np.arange(end - kept, end) % self.slots)
        order += attended[0].shape[-2] - kept
        # `take` keeps the axes' order of what it is given, mostly a transposed view: steps that
        # follow would read that 7 times slower on the CPU (3000 positions of 32 heads).
        self._held = [mx.contiguous(mx.take(array, mx.array(order), axis=-2)) for array in attended]
        self.offset = end
        return attended


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
