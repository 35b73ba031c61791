"""Split residual vector quantizer: latents to codes and back.

One semantic codebook and the acoustic ones, each with its own projection; the acoustic
codebooks quantize what the ones before them left over (Défossez et al. 2024, section 3.3). Has no
state. Knows nothing of frames or of training.
"""

import mlx.core as mx
import mlx.nn as nn

from .arguments import whole
from .config import QuantizerConfig

_LEAST_USAGE = 1e-5


def codebook(embedding_sum: mx.array, cluster_usage: mx.array) -> mx.array:
    """What training stores, [bins, dim] sums and [bins] counts → float32 [bins, dim] entries."""
    usage = mx.maximum(cluster_usage.astype(mx.float32), _LEAST_USAGE)
    return embedding_sum.astype(mx.float32) / usage[:, None]


class ResidualQuantizer(nn.Module):
    """Codebooks one after the other; `embedding` is [K, bins, dim]."""

    def __init__(self, config: QuantizerConfig, num_codebooks: int) -> None:
        super().__init__()
        self.input_proj = nn.Linear(config.input_dimension, config.dimension, bias=False)
        self.output_proj = nn.Linear(config.dimension, config.output_dimension, bias=False)
        self.embedding = mx.zeros((num_codebooks, config.bins, config.dimension))
        # |e|² / 2 of every entry; follows from `embedding`, kept beside it for speed.
        self.half_square = mx.zeros((num_codebooks, config.bins))

    def encode(self, x: mx.array) -> mx.array:
        """[B, T, input_dimension] → int32 [B, K, T]."""
        residual = self.input_proj(x)
        codes = []
        for embedding, half_square in zip(self.embedding, self.half_square, strict=True):
            # The nearest entry: |x - e|² is least where x·e - |e|²/2 is largest.
            scores = mx.addmm(half_square, residual, embedding.T, beta=-1.0)
            nearest = mx.argmax(scores, axis=-1)
            residual = residual - embedding[nearest]
            codes.append(nearest)
        return mx.stack(codes, axis=1).astype(mx.int32)

    def decode(self, codes: mx.array) -> mx.array:
        """int32 [B, k, T], any k ≤ K, → [B, T, output_dimension]."""
        books = mx.arange(codes.shape[1], dtype=codes.dtype)[:, None]
        return self.output_proj(self.embedding[books, codes].sum(axis=1))


class SplitResidualQuantizer(nn.Module):
    """The semantic codebook and `num_codebooks` - 1 acoustic ones."""

    def __init__(self, config: QuantizerConfig, num_codebooks: int) -> None:
        super().__init__()
        whole("num_codebooks", num_codebooks, 1, config.n_q)
        self.semantic = ResidualQuantizer(config, 1)
        if num_codebooks > 1:
            self.acoustic = ResidualQuantizer(config, num_codebooks - 1)

    def encode(self, x: mx.array) -> mx.array:
        """[B, T, input_dimension] → int32 [B, K, T], the semantic codebook first."""
        codes = self.semantic.encode(x)
        if "acoustic" in self:
            codes = mx.concatenate([codes, self.acoustic.encode(x)], axis=1)
        return codes

    def decode(self, codes: mx.array) -> mx.array:
        """int32 [B, k, T], 1 ≤ k ≤ K, each from 0 to bins - 1, → [B, T, output_dimension]."""
        x = self.semantic.decode(codes[:, :1])
        return x + self.acoustic.decode(codes[:, 1:]) if codes.shape[1] > 1 else x
