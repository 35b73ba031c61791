"""What attention remembers: keys and values of the positions it may still see.

`RingCache` holds exactly as many positions as `context` allows, so a conversation has no length
limit and constant memory; it can hold them in few bits (`Quantized`). `FrameCache` keeps all
positions of a short sequence (the inner positions of one frame). Keys and values come and are held
together, so that taking a position is one launch on a GPU. Knows nothing of rotations, queries or
masks' use.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import mlx.core as mx
import numpy as np

from .errors import ArgumentError

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
            # An index alone would gather, a copy of it all.
            self.packed[which, ...],
            self.scales[which, ...],
            self.biases[which, ...],
            transpose=transpose,
            group_size=self.width // self.scales.shape[-1],
            bits=self.bits,
        )


def split_pair(both: mx.array) -> tuple[mx.array, mx.array]:
    """Keys and values [2, …], as views."""
    keys, values = mx.split(both, 2)
    return keys.squeeze(0), values.squeeze(0)


Turn = Callable[[mx.array, int], mx.array]
"""Rotates keys [B, H, n, D] by as many positions more."""
KeysValues = tuple[mx.array, mx.array] | Quantized
"""Keys and values, each [B, H, n, D]; or both quantized."""


def quantized(both: mx.array, bits: int) -> Quantized:
    """Keys and values [2, B, H, n, D] in `bits` bits."""
    dim = both.shape[-1]
    group, width = _grouping(dim, bits)
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

    def update(self, both: mx.array) -> KeysValues:
        """Takes keys and values [2, B, H, length, D], returns those to attend in `mask`'s order."""

    def arrays(self) -> list[mx.array]:
        """The arrays this cache holds now."""


class RingCache:
    """A ring of slots; a query sees the keys with 0 ≤ query position - key position < context.

    Position p lives in slot p mod slots. With up to `lookahead` new positions at once, written in
    place, the ring has context + lookahead - 1 slots, so that the first of them still sees its
    oldest key; and as many more as make whole steps, which then lie side by side. Longer blocks are
    attended in order of time, and only their end is kept.

    The arrays have their full size from the start: no step allocates or copies one.

    Args:
        context: positions a query sees, itself included.
        lookahead: positions that one streaming step brings.
        bits: quantize keys and values to 8 or 4 bits, new ones before they are attended; None: no.

    Raises:
        ArgumentError: the bits are none of `KV_GROUPS`.
    """

    def __init__(self, context: int, lookahead: int = 1, bits: int | None = None) -> None:
        if bits is not None and (not isinstance(bits, int) or bits not in KV_GROUPS):
            raise ArgumentError(f"keys and values are quantized to 8 or 4 bits, not {bits!r}")
        self.context = context
        self.lookahead = lookahead
        self.slots = -(-(context + lookahead - 1) // lookahead) * lookahead
        self.bits = bits
        self.offset = 0
        self.kept = 0
        self._held: list[mx.array] = []  # each [2, B, H, slots, …]
        self._kept_keys: mx.array | None = None  # [B, H, kept, D], as they were rotated
        self._turn: Turn | None = None

    def reserve(self, batch: int, heads: int, dim: int, dtype: mx.Dtype) -> None:
        """Makes the arrays, which the first `update` does otherwise."""
        self._reserve(self._parts(mx.zeros((2, batch, heads, 1, dim), dtype)))

    def reset(self) -> None:
        """Forgets all positions and keeps the arrays."""
        self.offset = 0
        self._keep(0, None)

    def keep(self, positions: int, turn: Turn) -> None:
        """The first positions stay, in place of the oldest of the context (Xiao et al. 2023).

        Once the context is full, they are attended as if they stood right before the others: at
        distances that the model has been trained with.

        Args:
            positions: how many; fewer than the context, and there already.
            turn: rotates keys further.

        Raises:
            ArgumentError: there are not as many, or keys and values are quantized.
        """
        if self.bits is not None or self.lookahead != 1:
            raise ArgumentError("quantized keys and values cannot be kept")
        most = min(self.offset, self.slots - 1)
        if self.offset > self.slots or not 0 <= positions <= most:
            raise ArgumentError(f"from 0 to {most} positions can be kept, not {positions}")
        self._keep(positions, turn)

    def _keep(self, positions: int, turn: Turn | None) -> None:
        self.kept, self._turn = positions, turn
        self._kept_keys = mx.array(self._held[0][0, ..., :positions, :]) if positions else None

    def mask(self, length: int) -> mx.array | None:
        if length == 1 == self.lookahead:
            return None
        delta = np.arange(self.offset, self.offset + length)[:, None] - self._layout(length)
        visible = (delta >= 0) & (delta < self.context)
        return None if visible.all() else mx.array(visible)

    def update(self, both: mx.array) -> KeysValues:
        new = self._parts(both)
        length = both.shape[-2]
        put = self._put_step if length <= self.lookahead else self._put_block
        held = put(new, length)
        if self.bits is None:
            return split_pair(held[0])
        packed, scales, biases = held
        return Quantized(packed, scales, biases, self.bits)

    def arrays(self) -> list[mx.array]:
        return list(self._held)

    def save(self) -> list[mx.array]:
        """Copies of what is filled; what is kept as it was at its own position."""
        copies = [mx.array(held) for held in self.filled_at(self.offset)]
        if self._kept_keys is not None and copies:
            copies[0][0, ..., : self.kept, :] = self._kept_keys
        return copies

    def filled_at(self, offset: int) -> list[mx.array]:
        """What there is to be saved at an offset: the slots of the arrays that are filled there."""
        return [held[..., : min(offset, self.slots), :] for held in self._held if offset]

    def restore(
        self, offset: int, arrays: Sequence[mx.array], kept: int = 0, turn: Turn | None = None
    ) -> None:
        """Continues where a cache of the same kind had this offset and saved these arrays.

        What it kept it keeps again. Nothing is checked: `filled_at` says what arrays must be like.
        """
        self.offset = offset
        self._reserve(arrays)
        for held, array in zip(self._held, arrays, strict=False):  # none at offset 0
            held[..., : self._filled, :] = array
        self._keep(kept, turn)

    @property
    def _filled(self) -> int:
        """Slots that have had a position."""
        return min(self.offset, self.slots)

    def _parts(self, both: mx.array) -> list[mx.array]:
        """Keys and values as they are held."""
        if self.bits is None:
            return [both]
        new = quantized(both, self.bits)
        return [new.packed, new.scales, new.biases]

    def _reserve(self, like: Sequence[mx.array]) -> None:
        """Arrays for all slots, unless they are there, for positions like these."""
        if not self._held:
            shapes = [(*array.shape[:-2], self.slots, array.shape[-1]) for array in like]
            self._held = [mx.zeros(s, a.dtype) for s, a in zip(shapes, like, strict=True)]

    def _layout(self, length: int) -> np.ndarray:
        """The position of each key that `update` returns for `length` new ones."""
        end = self.offset + length
        if length > self.lookahead:
            return np.arange(max(0, self.offset - self.context + 1), end)
        slots = np.arange(min(end, self.slots))
        return end - 1 - (end - 1 - slots) % self.slots

    def _put_step(self, new: list[mx.array], length: int) -> list[mx.array]:
        """Takes arrays [..., length, D] and returns what is to be attended of each."""
        self._write(new)
        if self._turn is not None and self._kept_keys is not None and self.offset >= self.slots:
            moved = self._turn(self._kept_keys, self.offset - self.slots + 1)
            self._held[0][0, ..., : self.kept, :] = moved
        self.offset += length
        return [held[..., : self._filled, :] for held in self._held]

    def _put_block(self, new: list[mx.array], length: int) -> list[mx.array]:
        if self.kept and self.offset + length > self.slots:
            raise ValueError("what is kept would fall out of the context within a block")
        attended = new
        if self.offset:
            past = np.arange(max(0, self.offset - self.context + 1), self.offset) % self.slots
            kept = [mx.take(held, mx.array(past), axis=-2) for held in self._held]
            attended = [mx.concatenate([a, b], axis=-2) for a, b in zip(kept, new, strict=True)]
        gone = max(0, length - self.slots)
        self.offset += gone
        self._write([array[..., gone:, :] for array in new])
        self.offset += length - gone
        return attended

    def _write(self, new: list[mx.array]) -> None:
        """Puts at most as many positions as there are slots into theirs."""
        self._reserve(new)
        ring = self.slots - self.kept
        slot, length = self.offset, new[0].shape[-2]
        if slot >= self.slots:
            slot = self.kept + (slot - self.kept) % ring
        first = min(length, self.slots - slot)
        for held, array in zip(self._held, new, strict=True):
            held[..., slot : slot + first, :] = array[..., :first, :]
            if first < length:
                held[..., : length - first, :] = array[..., first:, :]


class FrameCache:
    """All positions of a short sequence that comes one position at a time.

    Args:
        length: of the sequence.
    """

    def __init__(self, length: int) -> None:
        self.offset = 0
        self._length = length
        self._held: mx.array | None = None

    def mask(self, length: int) -> mx.array | None:
        if length != 1:
            raise ValueError(f"a FrameCache takes one position at a time, not {length}")
        return None

    def update(self, both: mx.array) -> tuple[mx.array, mx.array]:
        slot = self.offset
        self.offset += 1
        if self._held is None:  # a view, which the next position makes an array
            self._held = mx.broadcast_to(both, (*both.shape[:-2], self._length, both.shape[-1]))
        else:
            self._held[..., slot : self.offset, :] = both
        return split_pair(self._held[..., : self.offset, :])

    def arrays(self) -> list[mx.array]:
        return [] if self._held is None else [self._held]
