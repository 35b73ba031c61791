"""Gradient checkpointing: layers of a transformer are computed again in the backward pass.

Memory then holds one activation per layer instead of all within. Knows nothing of losses.
"""

import mlx.core as mx

from ..cache import Cache, KeysValues, split_pair
from ..lm import Lm
from ..transformer import CrossKv, TransformerLayer, Turns


class _PassedCache:
    """The keys and values of a layer as arguments of a pure function: nothing is kept.

    Computing a layer twice must not fill its cache twice.
    """

    def __init__(self, offset: int) -> None:
        self.offset = offset

    def mask(self, length: int) -> mx.array | None:
        raise ValueError("the mask was made before")

    def update(self, both: mx.array) -> KeysValues:
        return split_pair(both)

    def arrays(self) -> list[mx.array]:
        return []


class CheckpointedLayer(TransformerLayer):
    """A layer that keeps only its input and parameters for the backward pass."""

    def __call__(
        self,
        x: mx.array,
        cache: Cache,
        turns: Turns,
        mask: mx.array | None,
        cross: CrossKv | None = None,
    ) -> mx.array:
        if cache.offset:
            raise ValueError("a checkpointed layer takes a sequence in one pass: make it shorter")

        def inner(parameters: dict[str, object], x: mx.array) -> mx.array:
            self.update(parameters)
            return TransformerLayer.__call__(self, x, _PassedCache(0), turns, mask, cross)

        return mx.checkpoint(inner)(self.trainable_parameters(), x)


def checkpoint_layers(lm: Lm) -> None:
    """Makes the temporal transformer's layers checkpointed ones, in place."""
    for layer in lm.transformer.layers:
        layer.__class__ = CheckpointedLayer
