"""Parameters that are one in the published architecture and several in ours.

PyTorch's depth transformer has one set of norms and layer scales per layer, whatever the codebook;
our weight sets hold a copy each. While they are alike they are trained as one: gradients are
summed over the copies, so a model keeps its PyTorch form.
"""

import re
from collections.abc import Mapping
from typing import Any

import mlx.core as mx

from ..trees import Tree, flat, unflat

Groups = list[list[str]]

_COPY = re.compile(r"depformer\.transformers\.\d+\.(layers\.\d+\.(?:norm\d|layer_scale_\d)\.\w+)")


def shared_groups(parameters: Mapping[str, Any]) -> Groups:
    """The names of parameters that are copies of each other now, group by group."""
    groups: dict[str, list[tuple[str, mx.array]]] = {}
    for name, value in flat(parameters).items():
        if match := _COPY.fullmatch(name):
            groups.setdefault(match[1], []).append((name, value))
    return [
        [name for name, _ in copies]
        for copies in groups.values()
        if len(copies) > 1 and all(mx.array_equal(v, copies[0][1]).item() for _, v in copies)
    ]


def summed(gradients: Mapping[str, Any], groups: Groups) -> Tree:
    """Gradients where the first of a group has the sum over it and the others zero."""
    arrays = flat(gradients)
    for first, *others in groups:
        for name in others:
            arrays[first] = arrays[first] + arrays[name]
            arrays[name] = mx.zeros_like(arrays[name])
    tree: Tree = unflat(arrays)
    return tree


def copied(parameters: Mapping[str, Any], groups: Groups) -> Tree:
    """Parameters where all of a group are the first."""
    arrays = flat(parameters)
    for first, *others in groups:
        for name in others:
            arrays[name] = arrays[first]
    tree: Tree = unflat(arrays)
    return tree
