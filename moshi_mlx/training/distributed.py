"""Several machines, or processes, that train one model: everyone takes its own batches.

Gradients and counts are summed over the peers, so the step is that of one process with all their
batches. Knows nothing of models.
"""

from collections.abc import Sequence

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from ..trees import Tree, flat, unflat

# Gradients travel in pieces of about this many numbers: few messages, little extra memory.
_PIECE = 1 << 24


class Peers:
    """This process among those that `mlx.launch` started; alone without it.

    Args:
        group: of mx.distributed; None is alone.
    """

    def __init__(self, group: mx.distributed.Group | None = None) -> None:
        self._group = group
        self.rank = 0 if group is None else group.rank()
        self.size = 1 if group is None else group.size()

    @classmethod
    def found(cls) -> "Peers":
        """The peers of `mlx.launch`'s making, if any."""
        group = mx.distributed.init()
        return cls(group if group.size() > 1 else None)

    @property
    def is_first(self) -> bool:
        """The one that writes files and talks."""
        return self.rank == 0

    def sum_numbers(self, numbers: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """The sums over the peers of a few numbers, in float32 there and back."""
        if self._group is None:
            return numbers
        sent = mx.array(numbers.astype(np.float32))
        return np.array(mx.distributed.all_sum(sent, group=self._group), dtype=np.float64)

    def from_first(self, tree: Tree) -> Tree:
        """The first one's tree of arrays, for all."""
        if self._group is None:
            return tree
        mine = flat(tree)
        if not self.is_first:
            mine = {name: mx.zeros_like(array) for name, array in mine.items()}
        return self.sum_tree(unflat(mine))

    def sum_tree(self, tree: Tree) -> Tree:
        """The sums over the peers of a tree of arrays."""
        if self._group is None:
            return tree
        arrays = flat(tree)
        out: list[mx.array] = []
        for piece in _pieces(list(arrays.values())):
            joined = mx.concatenate([array.reshape(-1) for array in piece])
            total = mx.distributed.all_sum(joined, group=self._group)
            ends = np.cumsum([array.size for array in piece])[:-1].tolist()
            parts = mx.split(total, ends)
            out += [part.reshape(a.shape) for part, a in zip(parts, piece, strict=True)]
        summed: Tree = unflat(dict(zip(arrays, out, strict=True)))
        return summed


def _pieces(arrays: Sequence[mx.array]) -> list[list[mx.array]]:
    """The arrays in order, together up to the size of a piece, each piece of one type."""
    pieces: list[list[mx.array]] = []
    room = 0
    for array in arrays:
        if not pieces or array.size > room or array.dtype != pieces[-1][0].dtype:
            pieces.append([])
            room = _PIECE
        pieces[-1].append(array)
        room -= array.size
    return pieces
