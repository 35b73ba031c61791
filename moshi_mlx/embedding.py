"""Token embeddings with the rule that token −1 gives zero, quantized or not.

Knows the variants of the published models. Knows nothing of which stream a token is from.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeGuard

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from .arrays import Tokens
from .backend import on_gpu
from .config import ZERO_TOKEN

Table = nn.Embedding | nn.QuantizedEmbedding
_ARRAYS = ("weight", "scales", "biases")


def _zero_where_no_token(rows: mx.array, tokens: mx.array) -> mx.array:
    return mx.where((tokens == ZERO_TOKEN)[..., None], mx.zeros((), rows.dtype), rows)


def _dequantized_rows(
    kind: nn.QuantizedEmbedding, arrays: Mapping[str, mx.array], tokens: mx.array
) -> mx.array:
    """Rows [..., dim] of a quantized table for integers [...].

    Args:
        kind: says how it is quantized.
        arrays: weight, scales and, in some modes, biases.
        tokens: the rows' numbers.
    """
    how: dict[str, Any] = {"group_size": kind.group_size, "bits": kind.bits, "mode": kind.mode}
    weight, scales, biases = map(arrays.get, _ARRAYS)
    assert weight is not None and scales is not None
    if on_gpu() or biases is None:
        found = None if biases is None else biases[tokens]
        return mx.dequantize(weight[tokens], scales[tokens], found, **how)
    # On the CPU MLX unpacks with some 20 primitives; a row times 1 is one, with the same numbers.
    one = mx.ones((1, 1), scales.dtype)
    weight, scales, biases = (a.reshape(len(a), 1, -1) for a in (weight, scales, biases))
    rows = mx.gather_qmm(one, weight, scales, biases, None, tokens, transpose=False, **how)
    return rows.squeeze(-2)


class QuantizedEmbedding(nn.QuantizedEmbedding):
    """A quantized table: integer tokens [...] → [..., dim], zero for token −1."""

    def rows(self, tokens: mx.array) -> mx.array:
        """The same where no token is −1."""
        return _dequantized_rows(self, self, tokens)

    def __call__(self, tokens: mx.array) -> mx.array:
        return _zero_where_no_token(self.rows(mx.maximum(tokens, 0)), tokens)


class Embedding(nn.Embedding):
    """A table of rows: integer tokens [...] → [..., dim], zero for token −1."""

    def rows(self, tokens: mx.array) -> mx.array:
        """The same where no token is −1."""
        rows: mx.array = super().__call__(tokens)
        return rows

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
            separate projections; right is −1 where there is only one.
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

    def rows(self, tokens: mx.array) -> mx.array:
        """The same where no token is −1."""
        if self._demux:
            return self(tokens.astype(mx.int32))  # the sum below may be −1
        return self.low_rank(super().rows(tokens))

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


class EmbeddingSum:
    """The sum of several streams' embeddings by one gather from one table.

    The tables are laid one after the other, then a row of zeros for token −1, and the modules'
    own arrays become views of that: nothing is held twice.

    Args:
        tables: plain embeddings, alike but for their number of rows; see `can_stack`.
    """

    def __init__(self, tables: Sequence[Table]) -> None:
        rows = [table.weight.shape[0] for table in tables]
        self._tables = tables
        self._starts = np.cumsum([0, *rows])
        self._stacks: dict[str, mx.array] = {}
        self._views: list[tuple[Table, str, mx.array]] = []
        for name in _ARRAYS:
            arrays = [table[name] for table in tables if table.get(name) is not None]
            if not arrays:
                continue
            none = mx.zeros((1, arrays[0].shape[1]), dtype=arrays[0].dtype)
            stack = mx.concatenate([*arrays, none])
            views = [stack[i:j] for i, j in pairwise(self._starts.tolist())]
            mx.eval(stack, views)
            del arrays
            self._stacks[name] = stack
            for table, view in zip(tables, views, strict=True):
                table[name] = view
                self._views.append((table, name, view))

    def is_of(self, tables: Sequence[nn.Module]) -> bool:
        """It was made of these very modules, and no array of theirs was replaced since."""
        same = [id(table) for table in tables] == [id(table) for table in self._tables]
        return same and all(table.get(name) is view for table, name, view in self._views)

    def rows(self, tokens: Tokens) -> Tokens:
        """Tokens [B, streams] → their rows in the one table, on the host."""
        rows = np.where(tokens == ZERO_TOKEN, self._starts[-1], tokens + self._starts[:-1])
        return np.asarray(rows, dtype=np.int32)

    def __call__(self, rows: mx.array) -> mx.array:
        """Rows [B, streams] → the sum [B, 1, dim]."""
        table = self._tables[0]
        if isinstance(table, nn.QuantizedEmbedding):
            x = _dequantized_rows(table, self._stacks, rows)
        else:
            x = self._stacks["weight"][rows]
        return mx.sum(x, axis=1, keepdims=True)


def can_stack(tables: Sequence[nn.Module]) -> TypeGuard[Sequence[Table]]:
    """Whether these are plain embeddings of one kind."""
    first = tables[0]
    if type(first) not in (Embedding, QuantizedEmbedding):
        return False
    return all(type(t) is type(first) and _kind(t) == _kind(first) for t in tables)


def _kind(table: nn.Module) -> list[object]:
    """What tables must have in common."""
    arrays = [table.get(name) for name in _ARRAYS]
    settings = [getattr(table, name, None) for name in ("group_size", "bits", "mode")]
    return [*settings, *(None if a is None else (a.shape[1:], a.dtype) for a in arrays)]
