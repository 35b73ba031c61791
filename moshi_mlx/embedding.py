"""Token embeddings with the rule that token −1 gives zero, quantized or not.

Knows the variants of the published models. Knows nothing of which stream a token is from.
"""

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from .config import ZERO_TOKEN


def _zero_where_no_token(rows: mx.array, tokens: mx.array) -> mx.array:
    return mx.where((tokens == ZERO_TOKEN)[..., None], mx.zeros((), rows.dtype), rows)


class QuantizedEmbedding(nn.QuantizedEmbedding):
    """A quantized table: integer tokens [...] → [..., dim], zero for token −1."""

    def __call__(self, tokens: mx.array) -> mx.array:
        return _zero_where_no_token(super().__call__(mx.maximum(tokens, 0)), tokens)


class Embedding(nn.Embedding):
    """A table of rows: integer tokens [...] → [..., dim], zero for token −1."""

    def __call__(self, tokens: mx.array) -> mx.array:
        return _zero_where_no_token(super().__call__(mx.maximum(tokens, 0)), tokens)

    def to_quantized(
        self,
        group_size: int | None = None,
        bits: int | None = None,
        mode: str = "affine",
        quantize_input: bool = False,
    ) -> QuantizedEmbedding:
        """MLX's hook for `nn.quantize`; keeps the rule for token −1."""
        if quantize_input:
            raise ValueError("an embedding has no input to quantize")
        # MLX's own defaults stand behind None, which its annotations don't say.
        make: Any = QuantizedEmbedding.from_embedding
        quantized = make(self, group_size, bits, mode)
        assert isinstance(quantized, QuantizedEmbedding)
        return quantized


class ProjectedEmbedding(Embedding):
    """A table followed by projections without bias, so that token −1 still gives zero.

    Args:
        rows: rows of the table.
        dim: width of the result.
        low_rank: width of the table, where that is less than `dim`.
        demux: a token may hold two, left + rows · (right + 1), which share the table and have
            projections of their own; right is −1 where there is only one.
    """

    def __init__(self, rows: int, dim: int, low_rank: int | None, demux: bool) -> None:
        width = low_rank or dim
        super().__init__(rows, width)
        self._rows = rows
        self._demux = demux
        if demux:
            self.out1 = nn.Linear(width, dim, bias=False)
            self.out2 = nn.Linear(width, dim, bias=False)
        if low_rank is not None:  # with demux it is in the files, but has no part
            self.low_rank = nn.Linear(width, dim, bias=False)

    def __call__(self, tokens: mx.array) -> mx.array:
        if not self._demux:
            return self.low_rank(super().__call__(tokens))
        none = tokens == ZERO_TOKEN
        left = mx.where(none, ZERO_TOKEN, tokens % self._rows)
        right = mx.where(none, ZERO_TOKEN, tokens // self._rows - 1)
        return self.out1(super().__call__(left)) + self.out2(super().__call__(right))


def make_embedding(
    rows: int, dim: int, low_rank: int | None = None, demux: bool = False
) -> Embedding:
    """The embedding that the configuration asks for."""
    if low_rank is None and not demux:
        return Embedding(rows, dim)
    return ProjectedEmbedding(rows, dim, low_rank, demux)
