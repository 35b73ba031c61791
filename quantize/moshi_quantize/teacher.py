"""A language model's logits on given tokens, layer by layer, in little memory.

Teacher forcing needs each layer once for the whole sequence, so each is read, used and dropped: a
model of 15 GB is examined in less than 3. Others can look at a layer's inputs while it is used, and
change its weights (`Visit`): to measure what that does, or to quantize it for what it sees.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_unflatten

from moshi_mlx.arrays import Weights
from moshi_mlx.checkpoint import Checkpoint
from moshi_mlx.lm import Lm
from moshi_mlx.trees import named_leaves, named_parameters

from .convert import small_cache
from .recipes import Precision

IN_MEMORY = 1_500_000_000
"""Bytes that the weights have in float32, up to which a model is read once and kept."""

Visit = Callable[[str, nn.Module, mx.array], None]
"""Called with a layer's path, the layer with its weights, and its input; may change the weights."""

_LAYERS = (nn.Linear, nn.Embedding)
_TOGETHER = 8  # dialogues in one pass


class _Streamed(nn.Module):
    """Stands for a layer: reads its weights, uses them, drops them."""

    def __init__(self, path: str, leaf: nn.Module, teacher: "Teacher") -> None:
        super().__init__()
        self._path = path
        self._leaf = leaf
        self._empty = named_parameters(leaf)
        self._teacher = teacher

    def __call__(self, x: mx.array) -> mx.array:
        leaf: Any = self._leaf
        leaf.load_weights(list(self._teacher.read(self._path).items()))
        if self._teacher.visit is not None:
            self._teacher.visit(self._path, leaf, x)
        y = leaf(x)
        assert isinstance(y, mx.array)
        mx.eval(y)
        leaf.load_weights(list(self._empty.items()))
        return y


class Logits(NamedTuple):
    """Of text and of every codebook: log-probabilities, float32 [N, cards], N predicted tokens."""

    streams: list[mx.array]


class Teacher:
    """Gives the logits of a checkpoint, computed in float32 with what its weights stand for.

    Args:
        source: the checkpoint, quantized or not.
        in_memory: bytes that the weights have in float32, up to which they are kept.
        kv_bits: quantize keys and values, as in a conversation with `--kv-bits`.
    """

    def __init__(
        self, source: Checkpoint, in_memory: int = IN_MEMORY, kv_bits: int | None = None
    ) -> None:
        self.source = source
        self.kv_bits = kv_bits
        self.visit: Visit | None = None
        self._packed = named_leaves(source.skeleton())
        self.lm = Lm(source.config.lm)
        leaves = {p: m for p, m in named_leaves(self.lm).items() if isinstance(m, _LAYERS)}
        inside = tuple(f"{path}." for path in leaves)
        # Norms and the like are small: they are there from the beginning.
        small = [(n, _float(v)) for n, v in source.weights().items() if not n.startswith(inside)]
        self.lm.load_weights(small, strict=False)
        mx.eval([value for _, value in small])
        self._kept: dict[str, Weights] = {}
        size = sum(
            value.size for leaf in leaves.values() for value in named_parameters(leaf).values()
        )
        self.streams = 4 * size > in_memory
        """Whether the weights are read again for each pass."""
        if not self.streams:
            self._kept = {path: self.read(path) for path in leaves}
            mx.eval(self._kept)
        stands = [(path, _Streamed(path, leaf, self)) for path, leaf in leaves.items()]
        self.lm.update_modules(tree_unflatten(stands))

    def read(self, path: str) -> Weights:
        """A layer's tensors in float32."""
        if path in self._kept:
            return self._kept[path]
        start = f"{path}."
        found = {
            n[len(start) :]: v for n, v in self.source.weights().items() if n.startswith(start)
        }
        leaf: Any = self._packed[path]
        if "scales" in found:
            precision = Precision(leaf.bits, leaf.group_size, leaf.mode)
            found = {"weight": precision.dequantize({n: _float(v) for n, v in found.items()})}
        return {n: _float(v) for n, v in found.items()}

    def __call__(self, codes: mx.array, visit: Visit | None = None) -> Logits:
        """Log-probabilities of every token of dialogues [B, 1 + n_q, T], given those before it."""
        parts = [
            self._pass(codes[i : i + _TOGETHER], visit) for i in range(0, len(codes), _TOGETHER)
        ]
        streams = zip(*(part.streams for part in parts), strict=True)
        return Logits([mx.concatenate(list(stream)) for stream in streams])

    def _pass(self, codes: mx.array, visit: Visit | None) -> Logits:
        self.visit = visit
        try:
            with small_cache():
                out = self.lm.forward(codes, kv_bits=self.kv_bits)
        finally:
            self.visit = None
        audio = [out.audio_logits[:, k] for k in range(out.audio_logits.shape[1])]
        streams = []
        for k, logits in enumerate([out.text_logits[:, 0], *audio]):
            # Where a token or a prediction is missing, there is nothing to compare.
            there = mx.array(np.flatnonzero(np.array(out.masks[:, k])).astype(np.int32))
            flat = logits.reshape(-1, logits.shape[-1])[there].astype(mx.float32)
            streams.append(flat - mx.logsumexp(flat, axis=-1, keepdims=True))
        mx.eval(streams)
        return Logits(streams)

    def one_pass(self, codes: mx.array, visit: Visit) -> None:
        """All dialogues at once, for a visit that wants to see each layer once."""
        self._pass(codes, visit)


def _float(value: mx.array) -> mx.array:
    return value.astype(mx.float32) if mx.issubdtype(value.dtype, mx.floating) else value


class Distance(NamedTuple):
    """How far one model's predictions are from another's.

    kl: nats, text first, then each codebook: mean of KL(original ‖ other) over the tokens;
    top1: share of tokens for which both think the same one likeliest.
    """

    kl: list[float]
    top1: list[float]

    @property
    def frame_kl(self) -> float:
        """Nats per frame: by the chain rule, the KL of all that is said in a frame."""
        return sum(self.kl)


def distance(original: Logits, other: Logits) -> Distance:
    """Between two models on the same tokens."""
    kl: list[float] = []
    top1: list[float] = []
    for p, q in zip(original.streams, other.streams, strict=True):
        there = len(p) > 0
        mean = float(np.array(mx.mean(mx.sum(mx.exp(p) * (p - q), axis=-1)))) if there else 0.0
        kl.append(max(mean, 0.0))  # below zero only by rounding
        same = mx.argmax(p, -1) == mx.argmax(q, -1)
        top1.append(float(np.array(mx.mean(same))) if there else 1.0)
    return Distance(kl, top1)
