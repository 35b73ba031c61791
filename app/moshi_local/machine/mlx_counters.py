"""Counts what a step asks of MLX: evaluations that Python waits for, and primitives of the graph.

Every function by which values reach Python is watched; before one runs, the graph that it is
about to evaluate is counted. Used for our step and for upstream's, in its own Python: imports
nothing but MLX and NumPy.
"""

import io
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np

__all__ = ["VIEWS", "MlxCounts", "counting", "primitives"]

_VIEWS = """AsStrided Broadcast BroadcastAxes ExpandDims Flatten NumberOfElements Reshape Slice
Split Squeeze StopGradient Transpose Unflatten View"""
VIEWS = frozenset(_VIEWS.split())
"""Primitives that as a rule copy nothing and launch nothing."""

_READS = ("__bool__", "__int__", "__float__", "__index__", "item", "tolist")
_LABEL = re.compile(r'\[label ="(\w+)"')


def primitives(*arrays: mx.array) -> Counter[str]:
    """The primitives still to be run for these arrays: name → how many."""
    text = io.StringIO()
    mx.export_to_dot(text, *arrays)
    return Counter(_LABEL.findall(text.getvalue()))


@dataclass
class MlxCounts:
    """What was seen while counting.

    syncs: evaluations that Python waited for.
    primitives: of all graphs evaluated, by name; what `mx.compile` fused counts once.
    waited: seconds in those evaluations.
    """

    syncs: int = 0
    primitives: Counter[str] = field(default_factory=Counter)
    waited: float = 0.0

    @property
    def launches(self) -> int:
        """Primitives without views."""
        return sum(n for name, n in self.primitives.items() if name not in VIEWS)

    @property
    def views(self) -> int:
        """Primitives that are views."""
        return sum(self.primitives.values()) - self.launches


@contextmanager
def counting(graphs: bool = True) -> Iterator[MlxCounts]:
    """MlxCounts all evaluations by any thread inside the block; not to be nested.

    Args:
        graphs: also count primitives, which takes time: times measured then mean nothing.
    """
    counts = MlxCounts()
    inside = False
    begun: dict[int, mx.array] = {}

    def watched(original: Callable[..., Any]) -> Callable[..., Any]:
        def watch(*args: Any, **kwargs: Any) -> Any:
            nonlocal inside
            arrays = [] if inside else _arrays(args)
            if not arrays:
                return original(*args, **kwargs)
            inside = True
            try:
                found = primitives(*arrays) if graphs else None
                counts.primitives += found or Counter()
                if original is async_eval:
                    begun.update({id(array): array for array in arrays})
                else:  # what was evaluated before is only copied
                    waits = found is None or found.total() or any(id(a) in begun for a in arrays)
                    counts.syncs += bool(waits)
                began = time.perf_counter()
                result = original(*args, **kwargs)
                counts.waited += time.perf_counter() - began
                return result
            finally:
                inside = False

        return watch

    async_eval = mx.async_eval
    places: list[tuple[Any, str]] = [(mx.array, name) for name in _READS]
    places += [(mx, "eval"), (mx, "async_eval"), (np, "array"), (np, "asarray")]
    originals = [getattr(holder, name) for holder, name in places]
    try:
        for (holder, name), original in zip(places, originals, strict=True):
            setattr(holder, name, watched(original))
        yield counts
    finally:
        for (holder, name), original in zip(places, originals, strict=True):
            setattr(holder, name, original)


def _arrays(tree: Any) -> list[mx.array]:
    """MLX's arrays in what a function was given."""
    if isinstance(tree, mx.array):
        return [tree]
    if isinstance(tree, dict):
        tree = list(tree.values())
    if isinstance(tree, list | tuple):
        return [array for item in tree for array in _arrays(item)]
    return []
