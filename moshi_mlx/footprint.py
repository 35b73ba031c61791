"""Sizes: what a model takes in memory, and what a frame of it must read.

Counts bytes by shapes and types; reads no values. Knows nothing of speed but the memory bandwidths
that makers state.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from .cache import position_bytes
from .config import LmConfig, TransformerConfig
from .trees import named_leaves, named_parameters

BANDWIDTHS = {
    "M1": 68,
    "M2, M3": 100,
    "M4": 120,
    "M1 Pro, M2 Pro": 200,
    "M4 Pro": 273,
    "M1 Max, M2 Max": 400,
    "M4 Max": 546,
    "Ultra": 800,
}
"""Memory bandwidth by chip in GB/s, as stated by Apple."""

ENCODER_BYTES, DECODER_BYTES = 174_000_000, 160_000_000
"""The published Mimi in float32: encoder with the quantizer of 8 codebooks, and decoder."""
CODEC_BYTES = ENCODER_BYTES + DECODER_BYTES
WORKING_BYTES = 300_000_000
"""Python, MLX and what a step computes, beside weights, conversation and codec: an allowance.
Nano took 77 MB on Linux; with Metal it was not measured."""


def gb(size: float) -> str:
    """Bytes for a person: "4.6 GB", "12 MB"."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.0f} MB"


@dataclass(frozen=True, slots=True)
class Needs:
    """Memory that a conversation takes at its longest, in bytes.

    conversation: keys and values of a full context.
    """

    weights: int
    conversation: int
    codec: int = CODEC_BYTES
    working: int = WORKING_BYTES

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.conversation + self.codec + self.working

    def __str__(self) -> str:
        return (
            f"{gb(self.total)} of memory ({gb(self.weights)} weights, {gb(self.conversation)} "
            f"for a long conversation, {gb(self.codec + self.working)} codec and working memory)"
        )


def weight_bytes(model: nn.Module) -> int:
    """Bytes of a model's tensors."""
    return sum(array.nbytes for array in named_parameters(model).values())


def weight_bytes_per_frame(
    lm: nn.Module,
    config: LmConfig,
    *,
    generated: int | None = None,
    float_size: int | None = None,
    arrays: Mapping[str, mx.array] | None = None,
) -> int:
    """Bytes of weights that a frame must read: all matrices once per use, one row per embedding.

    Args:
        lm: the model.
        config: its configuration.
        generated: audio streams that are generated; None: all that it can.
        float_size: bytes of a float; None: those of its type.
        arrays: tensors whose sizes count in place of the model's, by the same paths.
    """
    slices = config.dep_q if generated is None else generated
    total = 0
    for path, module in named_leaves(lm).items():
        own = named_parameters(module)
        counted = [own[n] if arrays is None else arrays[f"{path}.{n}"] for n in own]
        size = sum(_nbytes(array, float_size) for array in counted)
        if isinstance(module, nn.Embedding | nn.QuantizedEmbedding):
            size //= module.weight.shape[0]
        elif "condition_provider" in path:
            size = 0
        total += size * uses_per_frame(path, config, slices)
    return total


def uses_per_frame(path: str, config: LmConfig, generated: int) -> int:
    """How often a frame uses a module: a weight set of the depth transformer once per slice."""
    depth, parts = config.depth, path.split(".")
    if depth is None or parts[:1] != ["depformer"]:
        return 1
    if parts[1] == "linear_in":
        return depth.inputs[:generated].count(int(parts[2]))
    if parts[1] == "transformers":
        return depth.weight_sets[:generated].count(int(parts[2]))
    return int(int(parts[2]) < generated)


def kv_bytes(
    config: TransformerConfig,
    float_size: int,
    kv_bits: int | None = None,
    frames: int | None = None,
) -> int:
    """Bytes of the temporal transformer's keys and values; a frame reads all of them.

    Args:
        config: of the transformer.
        float_size: bytes of a float.
        kv_bits: as `Generator` takes it.
        frames: of the conversation so far; None: a full context.
    """
    context = config.context or 0
    positions = context if frames is None else min(frames, config.context or frames)
    size = position_bytes(config.num_kv_heads, config.head_dim, float_size, kv_bits)
    return config.num_layers * positions * size


def floor_ms(nbytes: int) -> dict[str, float]:
    """A prediction, measured nowhere: chip → milliseconds that reading these bytes takes there.

    No frame that reads them can be faster; launches, synchronisation, codec and Python come on top.
    """
    return {chip: round(nbytes / (speed * 1e6), 3) for chip, speed in BANDWIDTHS.items()}


def _nbytes(array: mx.array, float_size: int | None) -> int:
    if float_size is None or not mx.issubdtype(array.dtype, mx.floating):
        return array.nbytes
    return array.size * float_size
