"""The depth transformer: within one frame, from the temporal state and the text to the codes.

Inner position k reads the temporal state and the token before (text first), and gives the logits
of codebook k. It starts over every frame. Weights lie in sets: codebook k uses the set that the
schedule names. Knows nothing of time, delays or sampling.
"""

from collections.abc import Callable, Sequence

import mlx.core as mx
import mlx.nn as nn

from .cache import FrameCache
from .config import LmConfig
from .embedding import make_embedding
from .transformer import Transformer, lockstep, make_norm


class DepthTransformer(nn.Module):
    """`dep_q` slices over shared weight sets."""

    def __init__(self, config: LmConfig) -> None:
        super().__init__()
        depth = config.depth
        if depth is None:
            raise ValueError("this configuration has no depth transformer (dep_q is 0)")
        self.config = depth
        slices = range(depth.num_slices)
        self.linear_in = [
            nn.Linear(config.transformer.dim, depth.dim, bias=False)
            for _ in range(max(depth.inputs) + 1)
        ]
        self.transformers = [Transformer(t) for t in depth.transformers]
        self.embs = [
            make_embedding(
                (config.text_card if k == 0 else config.card) + 1,
                depth.dim,
                depth.low_rank_embeddings,
                demux=k == 0 and config.demux_second_text_stream,
            )
            for k in slices
        ]
        self.linear_out = [nn.Linear(depth.dim, config.card, bias=False) for _ in slices]
        if depth.norm is not None:
            norm = depth.norm
            self.norms = [make_norm(norm, depth.dim) for _ in slices]

    def make_cache(self) -> list[FrameCache]:
        """Empty caches for one frame."""
        return [FrameCache(self.config.num_slices) for _ in self.transformers[0].layers]

    def generate(
        self,
        z: mx.array,
        text: mx.array,
        count: int,
        draw: Callable[[int, mx.array], mx.array],
        sparse: bool = False,
    ) -> list[mx.array]:
        """The tokens of codebooks 0 … count−1, each integers [N]. The slices after are not run.

        Args:
            z: temporal states [N, dim].
            text: text tokens, integers [N].
            count: codebooks to generate.
            draw: from a codebook and its logits [N, card] to its tokens [N].
            sparse: a token may be −1, which counts as zero.
        """
        cache = self.make_cache()
        tokens = [text]
        for k in range(count):
            tokens.append(draw(k, self.step(k, z, tokens[-1], cache, sparse)))
        return tokens[1:]

    def step(
        self,
        k: int,
        z: mx.array,
        previous: mx.array,
        cache: Sequence[FrameCache],
        sparse: bool = False,
    ) -> mx.array:
        """Logits [N, card] of codebook k.

        Args:
            k: the codebook; its predecessors have been stepped through with the same cache.
            z: temporal states [N, dim].
            previous: token of codebook k − 1, the text token for k = 0: integers [N].
            cache: this frame's caches.
            sparse: `previous` may be −1.
        """
        config = self.config
        table = self.embs[k]
        embedded = table(previous.astype(mx.int32)) if sparse else table.rows(previous)
        x = self.linear_in[config.inputs[k]](z) + embedded
        x = self.transformers[config.weight_sets[k]](x[:, None], cache)[:, 0]
        if config.norm is not None:
            x = self.norms[k](x)
        return self.linear_out[k](x)

    def forward(self, z: mx.array, tokens: mx.array) -> mx.array:
        """Teacher-forced logits [N, dep_q, card] for states [N, dim] and tokens [N, dep_q].

        Column k of `tokens` is the token before codebook k: the text, then codebooks 0 … dep_q−2.
        """
        config = self.config
        slices = range(config.num_slices)
        xs = [self.linear_in[config.inputs[k]](z) + self.embs[k](tokens[:, k]) for k in slices]
        sets = [self.transformers[s] for s in config.weight_sets]
        xs = lockstep(sets, xs)
        if config.norm is not None:
            xs = [self.norms[k](x) for k, x in zip(slices, xs, strict=True)]
        return mx.stack([self.linear_out[k](x) for k, x in zip(slices, xs, strict=True)], axis=1)
