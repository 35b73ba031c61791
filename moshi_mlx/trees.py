"""Trees of arrays ↔ flat dicts by path, and the parts of a model by path, typed."""

from collections.abc import Mapping
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

Tree = dict[str, Any]


def flat(tree: Any) -> dict[str, mx.array]:
    """All arrays by path ("layers.0.weight"), in the tree's order."""
    return dict(cast(list[tuple[str, mx.array]], tree_flatten(tree)))


def unflat(arrays: Mapping[str, mx.array]) -> Any:
    """The tree of a flat dict, in its order: a dict, or a list if the paths begin with numbers."""
    return tree_unflatten(list(arrays.items()))


def named_parameters(model: nn.Module) -> dict[str, mx.array]:
    """A model's tensors by path."""
    return flat(model.parameters())


def named_leaves(model: nn.Module) -> dict[str, Any]:
    """A model's modules that have no further modules inside, by path."""
    return dict(tree_flatten(model.leaf_modules(), is_leaf=nn.Module.is_module))
