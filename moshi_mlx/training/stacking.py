"""A model's weights in few arrays: an optimizer then launches few kernels on a GPU.

Hidden matrices of a shape are one stack, all others one vector; copies that are trained as one are
there once. Knows names and shapes; nothing of losses.
"""

import math

import mlx.core as mx
import numpy as np

from ..trees import Tree, flat, unflat
from .optimizers import is_hidden_matrix
from .sharing import shared_groups

Stacks = dict[str, mx.array]

_REST = "rest"


class Stacking:
    """Which parameter is where; `stacked` and `tree` go there and back.

    Args:
        parameters: the tree of what is trained.
    """

    def __init__(self, parameters: Tree) -> None:
        arrays = flat(parameters)
        self._order = list(arrays)
        self._copy_of = {
            name: first for first, *others in shared_groups(parameters) for name in others
        }
        self._stacks: dict[str, list[str]] = {}
        self._rest: dict[str, tuple[int, ...]] = {}
        for name, array in arrays.items():
            if name in self._copy_of:
                continue
            if is_hidden_matrix(name, array):
                self._stacks.setdefault("x".join(map(str, array.shape)), []).append(name)
            else:
                self._rest[name] = array.shape

    def stacked(self, parameters: Tree) -> Stacks:
        """The arrays of a tree of parameters: stacks [n, rows, columns] and a vector."""
        arrays = flat(parameters)
        stacks = {key: mx.stack([arrays[n] for n in names]) for key, names in self._stacks.items()}
        if self._rest:
            stacks[_REST] = mx.concatenate([arrays[name].reshape(-1) for name in self._rest])
        return stacks

    def tree(self, stacks: Stacks) -> Tree:
        """The tree of parameters again; what is computed from it has gradients of the stacks."""
        arrays: dict[str, mx.array] = {}
        for key, names in self._stacks.items():
            parts = mx.split(stacks[key], len(names))
            arrays |= {name: part[0] for name, part in zip(names, parts, strict=True)}
        if self._rest:
            ends = np.cumsum([math.prod(shape) for shape in self._rest.values()])
            parts = mx.split(stacks[_REST], ends[:-1].tolist())
            for (name, shape), part in zip(self._rest.items(), parts, strict=True):
                arrays[name] = part.reshape(shape)
        arrays |= {name: arrays[first] for name, first in self._copy_of.items()}
        tree: Tree = unflat({name: arrays[name] for name in self._order})
        return tree
