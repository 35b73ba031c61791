"""A language model's logits on given tokens, layer by layer, in little memory.

Teacher forcing needs each layer once for the whole sequence, so each is read, used and dropped: a
model of 15 GB is examined in less than 3. Others can look at a layer's inputs while it is used, and
change its weights (`Visit`): to measure what that does, or to quantize it for what it sees.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from moshi_mlx.lm import Lm
from moshi_mlx.weights import Weights, named_leaves, named_parameters

from .convert import small_cache
from .source import Source

IN_MEMORY = 1_500_000_000
"""Bytes of weights up to which a model is read once and kept."""

Visit = Callable[[str, nn.Module, mx.array], None]
"""Called with a layer's path, the layer with its weights, and its input; may change the weights."""

_LAYERS = (nn.Linear, nn.QuantizedLinear, nn.Embedding, nn.QuantizedEmbedding)
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
    """Gives the logits of a checkpoint, computed in float32.

    Args:
        source: the checkpoint, quantized or not.
        in_memory: bytes of weights up to which they are kept.
    """

    def __init__(self, source: Source, in_memory: int = IN_MEMORY) -> None:
        self.source = source
        self.visit: Visit | None = None
        self.lm: Lm = source.skeleton()
        self.kept: Weights | None = None
        weights = source.weights()
        leaves = {p: m for p, m in named_leaves(self.lm).items() if isinstance(m, _LAYERS)}
        inside = tuple(f"{path}." for path in leaves)
        # Norms and the like are small: they are there from the beginning.
        small = {n: _float(v) for n, v in weights.items() if not n.startswith(inside)}
        if source.nbytes <= in_memory:
            self.kept = {n: _float(v) for n, v in weights.items() if n.startswith(inside)}
            mx.eval(self.kept)
        mx.eval(small)
        stands = [(path, _Streamed(path, leaf, self)) for path, leaf in leaves.items()]
        self.lm.load_weights(list(small.items()), strict=False)
        self.lm.update_modules(tree_unflatten(stands))

    @property
    def streams(self) -> bool:
        """Whether the weights are read anew for each pass."""
        return self.kept is None

    def read(self, path: str) -> Weights:
        """A layer's tensors, in float32 where they are floating-point."""
        weights = self.kept if self.kept is not None else self.source.weights()
        start = f"{path}."
        found = {n[len(start) :]: v for n, v in weights.items() if n.startswith(start)}
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
                out = self.lm.forward(codes)
        finally:
            self.visit = None
        streams = []
        logits = [out.text_logits[:, 0], *(out.audio_logits[:, k] for k in range(out.audio_logits.shape[1]))]
        for k, stream in enumerate(logits):
            # Where a token or a prediction is missing, there is nothing to compare.
            there = mx.array([i for i, m in enumerate(out.masks[:, k].reshape(-1).tolist()) if m], mx.int32)
            flat = stream.reshape(-1, stream.shape[-1])[there].astype(mx.float32)
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
        """Nats a frame: by the chain rule, the KL of all that is said in a frame."""
        return sum(self.kl)


def distance(original: Logits, other: Logits) -> Distance:
    """Between two models on the same tokens."""
    kl, top1 = [], []
    for p, q in zip(original.streams, other.streams, strict=True):
        kl.append(mx.mean(mx.sum(mx.exp(p) * (p - q), axis=-1)).item() if len(p) else 0.0)
        top1.append(mx.mean(mx.argmax(p, -1) == mx.argmax(q, -1)).item() if len(p) else 1.0)
    return Distance([float(str(v)) for v in kl], [float(str(v)) for v in top1])
