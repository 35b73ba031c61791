"""The language model: temporal transformer over frames, depth transformer within a frame.

Knows tokens and logits. Knows nothing of sound, of sampling, or of a conversation's state.
"""

from collections.abc import Sequence
from copy import copy
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import numpy.typing as npt

from .arguments import integers, on_host
from .cache import Cache
from .conditions import ConditionProvider, Conditions
from .config import ZERO_TOKEN, LmConfig
from .delays import delayed, undelayed
from .depth import DepthTransformer
from .embedding import EmbeddingSum, can_stack, make_embedding
from .errors import ArgumentError, shown
from .threads import mlx_work
from .transformer import CrossKv, Transformer, make_norm


class LmOutput(NamedTuple):
    """Teacher-forced logits, aligned with the codes: entry t predicts code t.

    text_logits: [B, 1, T, text_card]; audio_logits: [B, dep_q, T, card];
    masks: bool [B, 1 + dep_q, T], text first: False where there is no code or no prediction.
    """

    text_logits: mx.array
    audio_logits: mx.array
    masks: mx.array


class Lm(nn.Module):
    """Moshi's language model."""

    def __init__(self, config: LmConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.transformer.dim
        self.text_emb = make_embedding(config.text_rows, dim, demux=config.demux_second_text_stream)
        self.audio_embs = [make_embedding(config.card + 1, dim) for _ in range(config.n_q)]
        self.transformer = Transformer(config.transformer)
        self._embedding_sum: EmbeddingSum | None = None
        self.out_norm = make_norm(config.transformer.norm, dim)
        self.text_linear = nn.Linear(dim, config.text_card_out, bias=False)
        self.extra_heads = [
            nn.Linear(dim, config.extra_heads_dim, bias=False) for _ in range(config.extra_heads)
        ]
        if config.depth is not None:
            self.depformer = DepthTransformer(config)
        if config.conditioners:
            self.condition_provider = ConditionProvider(config.conditioners, config.fuser, dim)

    def stack_embeddings(self) -> EmbeddingSum | None:
        """All streams' tables as one; made at first use and again when one was replaced.

        None where they are not alike, as with a demultiplexed or projected text embedding.
        """
        tables = [self.text_emb, *self.audio_embs]
        if self._embedding_sum is None or not self._embedding_sum.is_of(tables):
            self._embedding_sum = EmbeddingSum(tables) if can_stack(tables) else None
        return self._embedding_sum

    def without_streams(self, streams: Sequence[int]) -> "Lm":
        """The same model, its arrays shared, for which what it reads of some streams is zero."""
        other = copy(self)
        other.__dict__.pop("_frame_steps", None)  # they belong to this one
        other._embedding_sum = None
        other.text_emb = copy(self.text_emb)
        other.audio_embs = [copy(table) for table in self.audio_embs]
        for k in streams:
            table = other.audio_embs[k]
            for name in ("weight", "biases") if "scales" in table else ("weight",):
                table[name] = mx.zeros_like(table[name])
        return other

    def embed(self, tokens: mx.array, conditions: Conditions | None = None) -> mx.array:
        """Sum of all streams' embeddings: integers [B, 1 + n_q, T] → [B, T, dim]."""
        x = self.text_emb(tokens[:, 0])
        for k, emb in enumerate(self.audio_embs):
            x = x + emb(tokens[:, 1 + k])
        if conditions is not None and conditions.sum is not None:
            x = x + conditions.sum.astype(x.dtype)
        return x

    def cross(self, conditions: Conditions | None) -> list[CrossKv] | None:
        """What the layers cross-attend, prepared once; None where the model doesn't."""
        if conditions is None or conditions.cross is None:
            return None
        dtype = self.out_norm.weight.dtype
        return self.transformer.cross_keys_values(conditions.cross.astype(dtype))

    def temporal(
        self,
        tokens: mx.array,
        cache: Sequence[Cache] | None = None,
        conditions: Conditions | None = None,
        cross: Sequence[CrossKv] | None = None,
    ) -> tuple[mx.array, mx.array]:
        """The temporal transformer: delayed tokens [B, 1 + n_q, T] that follow those in `cache`.

        Returns the states [B, T, dim] and the text logits [B, T, text_card].
        """
        z = self.transformer(self.embed(tokens, conditions), cache, cross)
        z = self.out_norm(z)
        return z, self.text_linear(z)

    @mlx_work
    def forward(
        self,
        codes: npt.ArrayLike | mx.array,
        conditions: Conditions | None = None,
        kv_bits: int | None = None,
    ) -> LmOutput:
        """Teacher forcing: the logits of every code given all before it.

        Args:
            codes: integers [B, 1 + n_q, T]: text, the model's own audio, the other side's; −1
                where there is no token.
            conditions: of the models that have conditioners.
            kv_bits: keys and values as a `Generator` with `kv_bits` has them.

        Raises:
            ArgumentError: the shape is wrong, or a token is none of the model's.
        """
        config = self.config
        codes = self._checked(codes)
        if not isinstance(conditions, Conditions | None):
            raise ArgumentError(f"conditions must be a Conditions, is {shown(conditions)}")
        batch, _, length = codes.shape
        sequence = delayed(codes, config.delays, config.initial_tokens)
        inputs, targets = sequence[:, :, :-1], sequence[:, :, 1:]
        cache = None if kv_bits is None else self.transformer.make_cache(bits=kv_bits)
        z, text = self.temporal(inputs, cache, conditions, self.cross(conditions))
        dep_q = config.dep_q
        if config.depth is not None:
            tokens = targets[:, :dep_q].transpose(0, 2, 1).reshape(batch * length, dep_q)
            audio = self.depformer.forward(z.reshape(batch * length, -1), tokens)
            audio = audio.reshape(batch, length, dep_q, -1).transpose(0, 2, 1, 3)
            audio, audio_mask = undelayed(audio, config.delays[1 : 1 + dep_q])
        else:
            audio = mx.zeros((batch, 0, length, config.card), dtype=text.dtype)
            audio_mask = mx.zeros((1, 0, length), dtype=mx.bool_)
        text, text_mask = undelayed(text[:, None], config.delays[:1])
        there = codes[:, : 1 + dep_q] != ZERO_TOKEN
        return LmOutput(text, audio, mx.concatenate([text_mask, audio_mask], axis=1) & there)

    def _checked(self, codes: npt.ArrayLike | mx.array) -> mx.array:
        """As int32."""
        config = self.config
        found = on_host("codes", codes)
        if found.ndim != 3 or found.shape[1] != 1 + config.n_q or not found.size:
            raise ArgumentError(
                f"codes must be [batch, {1 + config.n_q}, frames], are {list(found.shape)}"
            )
        text = integers("codes' text", found[:, :1], ZERO_TOKEN, config.text_limit - 1)
        audio = integers("codes' audio", found[:, 1:], ZERO_TOKEN, config.card - 1)
        return mx.array(np.concatenate([text, audio], axis=1))
