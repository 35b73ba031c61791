"""How many kernels a GPU would launch for one frame, counted from MLX's graphs on any machine.

MLX builds the same graph for every device but for its fused kernels, which the CPU takes apart:
those are replaced by one primitive each that nothing fuses with. What a GPU computes does not
matter here, so nothing is evaluated on one; Metal's own counters were never compared with this.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_map

from moshi_mlx.config import LmConfig, MimiConfig, TransformerConfig
from moshi_mlx.mimi import Mimi
from moshi_mlx.sampling import Sampling, draw
from moshi_mlx.step import Given, Heard, Recent, StepKind, Stepped, frame_step
from moshi_mlx.weights import skeleton

from .mlx_counters import VIEWS

__all__ = ["codec_launches", "launches", "narrow", "step_launches"]

_NODE = re.compile(r"\{ (\d+) \[label =\"(\w+)\"")
_EDGE = re.compile(r"^\"\w+\" -> (\d+)$", re.MULTILINE)
_FREE = (VIEWS - {"AsStrided"}) | {"Depends"}
"""Views; windows of a signal are not, since what multiplies them wants a copy."""
_SORTED_AT_ONCE = 2048
"""Numbers that one kernel of Metal sorts; for more it takes about ten."""
_POSITION = 300
"""Of the frame that is counted: any at which the delays are filled."""


def launches(*arrays: mx.array) -> int:
    """Kernels of the graph still to be run for these arrays.

    One for each primitive that is no view; one for each input of a concatenation.
    """
    text = io.StringIO()
    mx.export_to_dot(text, *arrays)
    inputs = Counter(_EDGE.findall(text.getvalue()))
    return sum(
        inputs[node] if name == "Concatenate" else name not in _FREE
        for node, name in _NODE.findall(text.getvalue())
    )


def step_launches(
    config: LmConfig, bits: int, text: Sampling, audio: Sampling, generated: int | None = None
) -> dict[str, int]:
    """Kernels for a frame of a compiled model, by parts: temporal, depth and sampling.

    Args:
        config: the model's; what is counted has all its layers, but is narrow.
        bits: 4, 8 or 16, as published; only whether it is quantized counts.
        text: how text is drawn.
        audio: how codes are drawn.
        generated: streams that are generated; `dep_q` if None.
    """
    config = narrow(config)
    lm = skeleton(config, bits, mx.bfloat16)
    _fill(lm)
    count = config.dep_q if generated is None else generated
    cache = lm.transformer.make_cache()
    for ring in cache:
        c = config.transformer
        ring.reserve(1, c.num_kv_heads, c.head_dim, mx.bfloat16)
        ring.offset = _POSITION
    key, tokens = mx.random.key(0), mx.zeros((1 + count,), mx.uint32)
    z = mx.zeros((1, config.transformer.dim), mx.bfloat16)
    logits = mx.zeros((1 + count, 1, config.text_card), mx.bfloat16)
    uniform = mx.zeros((1 + count, 1))
    codes, there = (
        mx.zeros((1, config.n_q - count), mx.int32),
        mx.ones(config.n_q - count, mx.int32),
    )
    mx.eval([ring.arrays() for ring in cache], codes, there, key, tokens, z, logits, uniform)
    with _as_on_a_gpu():
        step = frame_step(lm, StepKind(text, audio, count, None, True))
        given = Given(np.zeros(1, np.uint32), None, count)
        read = np.zeros((1, 1 + config.n_q), np.int32)
        streams = config.n_q - count
        heard = Heard(codes, there) if streams else None
        drawn = step(read, [cache], [key], given, Recent(None, None), Stepped((), None), heard)
        total = launches(drawn.tokens)

        def depth(z: mx.array, tokens: mx.array) -> list[mx.array]:
            found: list[mx.array] = []

            def known(k: int, logits: mx.array) -> mx.array:
                found.append(logits)
                return tokens[1 + k : 2 + k]

            lm.depformer.generate(z, tokens[:1], count, known)
            return found

        def sampling(logits: mx.array, uniform: mx.array) -> list[mx.array]:
            codes = logits[1:, :, : config.card]
            return [
                draw(logits[0, ...], uniform[0, ...], text),
                *(draw(codes[k, ...], uniform[1 + k, ...], audio) for k in range(count)),
            ]

        inner = launches(*mx.compile(depth)(z, tokens)) if count else 0
        drawing = launches(*mx.compile(sampling)(logits, uniform))
    return {"temporal": total - inner - drawing, "depth": inner, "sampling": drawing}


def codec_launches(config: MimiConfig | None = None, num_codebooks: int = 8) -> dict[str, int]:
    """Kernels for a frame of our Mimi: encode and decode."""
    mimi = Mimi(config or MimiConfig(), num_codebooks)
    mimi.drop_scales()
    _fill(mimi)
    state = mimi.init_state()
    pcm = mx.zeros((1, mimi.config.channels, mimi.frame_size))
    codes = mx.zeros((1, num_codebooks, 1), mx.int32)
    mx.eval(mimi.encode_step(pcm, state), mimi.decode_step(codes, state), *state.arrays())
    with _as_on_a_gpu():
        heard, said = mimi.encode_step(pcm, state), mimi.decode_step(codes, state)
        return {
            "encode": launches(heard, *state.encoder.arrays()),
            "decode": launches(said, *state.decoder.arrays()),
        }


def narrow(config: LmConfig) -> LmConfig:
    """The same layers, slices, vocabularies and delays, but narrow: a model of launches alone.

    Heads are 64 wide, the narrowest for which Metal has one kernel for an attention.
    """

    def transformer(c: TransformerConfig) -> TransformerConfig:
        small = replace(c, dim=128, num_heads=2, kv_repeat=1, feedforward=192)
        return replace(small, cross_attention=False)

    depth = config.depth
    if depth is not None:
        low_rank = depth.low_rank_embeddings and 32
        transformers = tuple(transformer(t) for t in depth.transformers)
        depth = replace(depth, transformers=transformers, low_rank_embeddings=low_rank)
    main = transformer(config.transformer)
    return replace(config, transformer=main, depth=depth, conditioners={}, fuser=None)


def _fill(module: nn.Module) -> None:
    """Gives all arrays a value that takes no memory."""
    parameters = module.parameters()
    module.update(tree_map(lambda a: mx.broadcast_to(mx.array(0, a.dtype), a.shape), parameters))
    mx.eval(module.parameters())


# ---------------------------------------------------------------------- kernels of a GPU


def _kernel(x: mx.array, *others: Any) -> mx.array:
    """One launch that needs all of these; what it computes means nothing."""
    needed = [other for other in others if isinstance(other, mx.array)]
    (x,) = mx.depends([x], needed) if needed else [x]
    return mx.cummin(x, axis=-1)


def _one(x: mx.array, *others: Any, **named: Any) -> mx.array:
    return _kernel(x, *others, *named.values())


def _dequantize(w: mx.array, scales: mx.array, biases: Any = None, **how: Any) -> mx.array:
    width = w.shape[-1] * 32 // how["bits"]
    return _kernel(mx.broadcast_to(scales[..., :1], (*w.shape[:-1], width)), w, biases)


def _sorted(x: mx.array, *others: Any, **named: Any) -> mx.array:
    for _ in range(1 if x.shape[-1] <= _SORTED_AT_ONCE else 10):
        x = _kernel(x)
    return x.view(mx.uint32)


@contextmanager
def _as_on_a_gpu() -> Iterator[None]:
    """MLX seems to be on a GPU, its fused kernels are one primitive, nothing is evaluated early."""
    gpu = mx.Device(mx.gpu)
    replaced: list[tuple[Any, str, Callable[..., Any]]] = [
        (mx, "default_device", lambda: gpu),
        (mx, "async_eval", lambda *_: None),
        (mx, "dequantize", _dequantize),
        (mx, "argpartition", _sorted),
        (mx, "argsort", _sorted),
        *((mx.fast, name, _one) for name in ("rms_norm", "layer_norm", "rope")),
        (mx.fast, "scaled_dot_product_attention", _one),
    ]
    originals = [getattr(holder, name) for holder, name, _ in replaced]
    try:
        for holder, name, function in replaced:
            setattr(holder, name, function)
        yield
    finally:
        for (holder, name, _), original in zip(replaced, originals, strict=True):
            setattr(holder, name, original)
