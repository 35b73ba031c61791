"""A language model in which some codebooks count for nothing wherever they are read.

They are still drawn. Knows modules; nothing of speakers.
"""

import copy
from collections.abc import Sequence

import mlx.core as mx

from ..embedding import Embedding
from ..lm import Lm


class _Nothing(Embedding):
    """Zero for every token: integers [...] → [..., dim]."""

    def __init__(self, dim: int, dtype: mx.Dtype) -> None:
        super().__init__(1, dim)
        self.weight = mx.zeros((1, dim), dtype)

    def rows(self, tokens: mx.array) -> mx.array:
        return mx.zeros((*tokens.shape, self.weight.shape[1]), self.weight.dtype)

    def __call__(self, tokens: mx.array) -> mx.array:
        return self.rows(tokens)


def without_codebooks(lm: Lm, unused: Sequence[int]) -> Lm:
    """A model of the same arrays, in which these codebooks read as zero.

    Args:
        lm: stays as it is.
        unused: their numbers, from 0.
    """
    other, dtype = copy.copy(lm), lm.out_norm.weight.dtype
    for name in ("_frame_steps", "_embedding_sum"):
        other.__dict__.pop(name, None)
    object.__setattr__(other, "_embedding_sum", None)
    other.audio_embs = list(lm.audio_embs)
    other.depformer = copy.copy(lm.depformer)
    other.depformer.embs = list(lm.depformer.embs)
    for k in unused:
        other.audio_embs[k] = _Nothing(lm.config.transformer.dim, dtype)
        if k + 1 < len(other.depformer.embs):
            other.depformer.embs[k + 1] = _Nothing(lm.depformer.config.dim, dtype)
    return other
