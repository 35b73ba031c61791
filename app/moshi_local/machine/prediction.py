"""What a model needs, and what its frames would take on this machine if it were here.

Bytes come from the configuration and the files' headers alone; times are measured on matrices of
the model's sizes. `predict` has the formula. Knows nothing of devices, verdicts and the terminal.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from moshi_mlx import catalog
from moshi_mlx.backend import default_dtype, on_gpu
from moshi_mlx.cache import RingCache, position_bytes
from moshi_mlx.checkpoint import Checkpoint
from moshi_mlx.codec import MlxCodec
from moshi_mlx.config import PUBLISHED_GROUPS, LmConfig, MimiConfig, TransformerConfig
from moshi_mlx.families import generated_streams
from moshi_mlx.footprint import (
    DECODER_BYTES,
    ENCODER_BYTES,
    Needs,
    kv_bytes,
    weight_bytes,
    weight_bytes_per_frame,
)
from moshi_mlx.lm import Lm
from moshi_mlx.mimi import Mimi
from moshi_mlx.published import read_config
from moshi_mlx.transformer import attend
from moshi_mlx.trees import named_parameters
from moshi_mlx.weights import skeleton

from ..report import quantiles
from .bench import time_steps
from .launches import narrow

__all__ = [
    "Prediction",
    "Shape",
    "Speed",
    "Speeds",
    "long_conversation_ms",
    "measure_speed",
    "needs_of_checkpoint",
    "predict",
    "SMALL_RECIPE",
    "published_shape",
    "shape_of",
    "small_shape",
]

_STREAM_BYTES = 256_000_000  # more than processors' caches hold
_CACHE_BYTES = 128_000_000
_SPENT = 0.5  # seconds for each of the short measurements,
_SAMPLE = 0.05  # for a sample of them,
_FRAMES = 40  # and frames of the narrow model


@dataclass(frozen=True, slots=True)
class Shape:
    """A model without its weights: what a frame reads and what memory it takes.

    bits: 4, 8 or 16 (unquantized). `read_per_frame` and `needs` are in bytes, for the type
    that this machine computes in: bfloat16 on a GPU, float32 on the CPU. kv_bits: of keys and
    values, as `Generator` takes it.
    """

    name: str
    bits: int
    config: LmConfig
    read_per_frame: int
    needs: Needs
    kv_bits: int | None = None


def shape_of(
    name: str,
    config: LmConfig,
    bits: int,
    dtype: mx.Dtype | None = None,
    kv_bits: int | None = None,
) -> Shape:
    """The shape of a model with this configuration, quantized as the published ones are.

    Nothing of it is computed: a model's arrays have shapes before they have values.
    """
    dtype = dtype or default_dtype()
    lm = skeleton(config, bits, dtype)
    return Shape(
        name=name,
        bits=bits,
        config=config,
        read_per_frame=weight_bytes_per_frame(lm, config),
        needs=Needs(
            weight_bytes(lm), kv_bytes(config.transformer, dtype.size, kv_bits), _codec_bytes()
        ),
        kv_bits=kv_bits,
    )


def published_shape(name: str, kv_bits: int | None = None) -> Shape | None:
    """The shape of a model in the catalogue by its name or repository.

    None for other names, and for models whose configuration only their files say.
    """
    entry = catalog.find(name)
    if entry is None or entry.preset is None:
        return None
    return replace(_preset(entry.preset, entry.bits, default_dtype(), kv_bits), name=entry.name)


SMALL_RECIPE = "q3-mixed"
"""Of moshi-quantize: 3 bits for the temporal transformer, 4 for the rest, in groups of 64."""
_SMALL_BITS = {True: 3.5, False: 4.5}  # a weight, with its share of scale and bias


def small_shape(name: str) -> Shape | None:
    """A model of the catalogue made small by `SMALL_RECIPE`, with keys and values in 4 bits.

    None where `published_shape` is.
    """
    whole = published_shape(name, kv_bits=4)
    if whole is None:
        return None
    lm = skeleton(whole.config, dtype=default_dtype())

    def size(arrays: Mapping[str, mx.array]) -> int:
        bits = ((_SMALL_BITS[n.startswith("transformer.")], a) for n, a in arrays.items())
        return round(sum(a.size * b / 8 if a.ndim > 1 else a.nbytes for b, a in bits))

    weights = size(named_parameters(lm))
    share = weights / whole.needs.weights
    return replace(
        whole,
        name=f"{name}, {SMALL_RECIPE}",
        bits=3,
        read_per_frame=round(share * whole.read_per_frame),
        needs=replace(whole.needs, weights=weights),
    )


@cache
def _preset(preset: str, bits: int, dtype: mx.Dtype, kv_bits: int | None) -> Shape:
    config = read_config(preset=preset)
    return shape_of(preset, config.lm.generating(generated_streams(config)), bits, dtype, kv_bits)


def needs_of_checkpoint(checkpoint: Checkpoint, kv_bits: int | None = None) -> Needs:
    """The memory that loading a checkpoint takes; only headers of its files are read.

    Raises:
        CheckpointError: the weights don't match the config; with what loading would say.
    """
    config, dtype = checkpoint.config, default_dtype()
    arrays = checkpoint.fitting(generated_streams(config, checkpoint.name)).values()
    weights = sum(
        a.size * (dtype if mx.issubdtype(a.dtype, mx.floating) else a.dtype).size for a in arrays
    )
    conversation = kv_bytes(config.lm.transformer, dtype.size, kv_bits)
    return Needs(weights, conversation, min(_codec_bytes(), checkpoint.files.mimi.stat().st_size))


def _codec_bytes() -> int:
    """The published codec as it is in memory: on a GPU its decoder is in float16."""
    return ENCODER_BYTES + DECODER_BYTES // (2 if on_gpu() else 1)


# ------------------------------------------------------------------------------- prediction


@dataclass(frozen=True, slots=True)
class Prediction:
    """What one frame would take, by parts: milliseconds as [p50, p95]; see `predict`."""

    weights: tuple[float, float]
    conversation: tuple[float, float]
    launches: tuple[float, float]
    codec: tuple[float, float]

    @property
    def frame_ms(self) -> dict[str, float]:
        """The sums, in milliseconds. That of the p95 is more than the p95 of the sum."""
        parts = (self.weights, self.conversation, self.launches, self.codec)
        p50, p95 = (sum(part[i] for part in parts) for i in (0, 1))
        return {"p50": round(p50, 1), "p95": round(p95, 1)}


@dataclass(frozen=True, slots=True)
class Speed:
    """What this machine does with a shape's matrices: p50 and p95 of measured times.

    weights, attention: seconds per byte, of weights and of keys and values.
    launches: seconds for all of a frame's operations on next to nothing.
    codec: seconds for a frame of the published Mimi, both ways.
    """

    weights: tuple[float, float]
    attention: tuple[float, float]
    launches: tuple[float, float]
    codec: tuple[float, float]


def predict(shape: Shape, speed: Speed, positions: int | None = None) -> Prediction:
    """What a frame of a model that is not here would take on this machine.

        frame = weight bytes / bandwidth + key and value bytes / their bandwidth
                + launches · cost of a launch + codec

    Each term is measured on this machine. The bandwidth is that of a vector going through matrices
    of the model's own sizes and precision, more of them than caches hold; keys and values are
    attended at full context. Launches are not counted: the same model with all its layers, 64 wide,
    is run, and that time is their number by their cost, Python included. The codec is our Mimi of
    the published size with random weights. What a GPU does while Python prepares more is counted
    twice, so the sum should be too high rather than too low there; that was never tried on a Mac.
    Where rustymimi is the faster codec, the program takes that, which needs its file and is not
    timed here.

    Args:
        shape: of `published_shape` or `shape_of`.
        speed: of `measure_speed` with the same shape.
        positions: how far the conversation is, in frames; None: a full context, the worst.
    """
    context = shape.config.transformer.context or 1
    share = 1.0 if positions is None else min(1.0, positions / context)
    conversation = shape.needs.conversation * share

    def ms(seconds: tuple[float, float], times: float = 1.0) -> tuple[float, float]:
        return 1000 * seconds[0] * times, 1000 * seconds[1] * times

    return Prediction(
        weights=ms(speed.weights, shape.read_per_frame),
        conversation=ms(speed.attention, conversation),
        launches=ms(speed.launches),
        codec=ms(speed.codec),
    )


class Speeds:
    """This machine's speed with the published shapes, measured when first asked for."""

    def __init__(self) -> None:
        self._measured: dict[tuple[int, int | None], Speed] = {}

    def __call__(self, shape: Shape) -> Speed:
        """Takes some seconds for the first shape, about one for each other."""
        key = shape.bits, shape.kv_bits
        if key not in self._measured:
            alike = {i: s for k, s in self._measured.items() for i in (0, 1) if k[i] == key[i]}
            other = next(iter(self._measured.values()), None)
            self._measured[key] = measure_speed(shape, other, alike.get(0), alike.get(1))
        return self._measured[key]


def measure_speed(
    shape: Shape,
    other: Speed | None = None,
    same_bits: Speed | None = None,
    same_kv_bits: Speed | None = None,
) -> Speed:
    """Measures for some seconds; what others that were measured have in common is taken."""
    c = shape.config.transformer
    weights = same_bits.weights if same_bits else _per_byte(*_matrix_pass(c, shape.bits))
    if same_kv_bits is not None:
        attention = same_kv_bits.attention
    else:
        attention = _per_byte(*_attention_pass(c, shape.kv_bits))
    if other is not None:
        return replace(other, weights=weights, attention=attention)
    small = skeleton(narrow(shape.config), dtype=default_dtype())
    mx.eval(small.parameters())
    generated = min(small.config.dep_q, small.config.n_q // 2)
    return Speed(
        weights, attention, quantiles(time_steps(small, _FRAMES, generated))[:2], _codec_times()
    )


def long_conversation_ms(lm: Lm, kv_bits: int | None = None) -> float:
    """Milliseconds that a step takes for attending a full context; takes half a second."""
    c = lm.config.transformer
    p50, _ = _per_byte(*_attention_pass(c, kv_bits))
    return 1000 * p50 * kv_bytes(c, lm.out_norm.weight.dtype.size, kv_bits)


Pass = Callable[[int], None]
"""Work repeated a number of times in one evaluation, as in a frame."""


def _per_byte(work: Pass, size: int) -> tuple[float, float]:
    """Seconds per byte, p50 and p95. Each sample takes about as long as a frame may.

    Args:
        work: what to time.
        size: bytes that it reads each time.
    """
    once = min(_repeat(lambda: work(1)))
    rounds = max(1, round(_SAMPLE / once))
    p50, p95, *_ = quantiles(_repeat(lambda: work(rounds)))
    return p50 / size / rounds, p95 / size / rounds


def _repeat(run: Callable[[], None]) -> list[float]:
    """Seconds of each run, for half a second, at least twice after a first."""
    run()
    times: list[float] = []
    while len(times) < 2 or sum(times) < _SPENT:
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return times


def _matrix_pass(c: TransformerConfig, bits: int) -> tuple[Pass, int]:
    """A vector's way through the matrices of some layers, and the bytes that it reads."""
    kv_dim = c.num_kv_heads * c.head_dim
    if c.gating == "none":
        widths = [(c.dim, c.feedforward), (c.feedforward, c.dim)]
    else:
        widths = [(c.dim, 2 * c.gated_hidden), (c.gated_hidden, c.dim)]
    widths = [(c.dim, c.dim + 2 * kv_dim), (c.dim, c.dim), *widths]
    dtype = default_dtype()
    layers: list[nn.Module] = []
    size = 0
    for _ in range(c.num_layers):
        for inputs, outputs in widths:
            layer: nn.Module = nn.Linear(inputs, outputs, bias=False)
            layer.set_dtype(dtype)
            if bits in PUBLISHED_GROUPS:
                layer = layer.to_quantized(PUBLISHED_GROUPS[bits], bits)
            arrays = named_parameters(layer)
            # Values don't matter, but must be nowhere near zero: such numbers can be slow.
            layer.update({name: mx.ones_like(array) for name, array in arrays.items()})
            mx.eval(layer.parameters())
            size += sum(array.nbytes for array in arrays.values())
            layers.append(layer)
        if size >= _STREAM_BYTES:
            break
    x = mx.ones((1, 1, max(inputs for inputs, _ in widths)), dtype=dtype)

    def work(rounds: int) -> None:
        # All depend on the one before, as in a model: none may begin early.
        y = x
        for i, layer in enumerate(layers * rounds):
            y = layer(x[..., : widths[i % len(widths)][0]] + 1e-6 * y[..., :1])
        mx.eval(y)

    return work, size


def _attention_pass(c: TransformerConfig, kv_bits: int | None) -> tuple[Pass, int]:
    """One query a layer over full caches of some layers, and the bytes that it reads."""
    dtype = default_dtype()
    shape = (2, 1, c.num_kv_heads, c.context or 1, c.head_dim)
    size = (c.context or 1) * position_bytes(c.num_kv_heads, c.head_dim, dtype.size, kv_bits)
    count = min(c.num_layers, -(-_CACHE_BYTES // size))
    rings = [RingCache(c.context or 1, bits=kv_bits) for _ in range(count)]
    layers = [ring.update(mx.ones(shape, dtype)) for ring in rings]
    query = mx.ones((1, c.num_heads, 1, c.head_dim), dtype)
    mx.eval([attend(query, held) for held in layers])  # what is held too

    def work(rounds: int) -> None:
        y = query
        for held in layers * rounds:
            y = attend(y, held)
        mx.eval(y)

    return work, count * size


def _codec_times() -> tuple[float, float]:
    """Seconds for a frame, to codes and back."""
    mimi = Mimi(MimiConfig())
    mx.eval(mimi.parameters())
    codec = MlxCodec(mimi)
    state = codec.init_state()
    rng = np.random.default_rng(0)

    def run() -> None:
        pcm = rng.uniform(-0.1, 0.1, codec.frame_size).astype(np.float32)
        codec.decode_step(codec.encode_step(pcm, state), state)

    return quantiles(_repeat(run))[:2]
