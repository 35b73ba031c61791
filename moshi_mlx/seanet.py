"""SEANet: strided causal convolutions with residual blocks, from samples to latents and back.

(Tagliasacchi et al. 2020, as used in SoundStream and EnCodec.) Knows nothing of transformers or
codes. The state of a stream is one `ConvState` per layer.
"""

from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn

from .backend import on_gpu
from .config import SeanetConfig
from .conv import Conv1d, ConvState, ConvTranspose1d

# Compiled for each shape: without shapes MLX broadcasts every number in a separate step, and cuts
# what has too many steps into several kernels.


@mx.compile
def _elu(x: mx.array) -> mx.array:
    return mx.maximum(x, mx.expm1(mx.minimum(x, 0.0)))


@mx.compile
def _approximant(x: mx.array) -> mx.array:
    """1 - exp(-h) for h = -min(x, 0) / 16: a Padé approximant. Without a choice by sign a compiler
    makes vectors of it."""
    h = (mx.abs(x) - x) * (1 / 32)
    return h * (1 + h * (1 / 10 + h * (1 / 60))) / (1 + h * (3 / 5 + h * (3 / 20 + h * (1 / 60))))


@mx.compile
def _squared(x: mx.array, t: mx.array) -> mx.array:
    """ELU of x, where t is its approximant: four times 1 - exp(-2h) = t (2 - t)."""
    for _ in range(4):
        t = t * (2 - t)
    return (x + mx.abs(x)) * 0.5 - t


def elu(x: mx.array) -> mx.array:
    """max(x, exp(min(x, 0)) - 1).

    On the CPU from sums, products and a quotient, with an error below 2e-7: there MLX's exponential
    functions go number by number on x86.
    """
    fused: mx.array = _elu(x) if on_gpu() else _squared(x, _approximant(x))
    return fused


class Elu(nn.Module):
    """ELU as a layer of a list; its state stays empty."""

    def __call__(self, x: mx.array, state: ConvState) -> mx.array:
        return elu(x)


class Residual(nn.Module):
    """x + linear(elu(conv(elu(x)))), with a learned shortcut unless `true_skip`."""

    def __init__(self, config: SeanetConfig, dim: int, dilation: int) -> None:
        super().__init__()
        hidden = dim // config.compress
        self.conv = Conv1d(dim, hidden, config.residual_kernel_size, dilation=dilation)
        self.linear = nn.Linear(hidden, dim)
        if not config.true_skip:
            self.shortcut = nn.Linear(dim, dim)

    def __call__(self, x: mx.array, state: ConvState) -> mx.array:
        y = self.linear(elu(self.conv(elu(x), state)))
        return y + (self.shortcut(x) if "shortcut" in self else x)


SeanetLayer = Conv1d | ConvTranspose1d | Elu | Residual


def _residuals(config: SeanetConfig, dim: int) -> list[SeanetLayer]:
    return [Residual(config, dim, config.dilation_base**j) for j in range(config.n_residual_layers)]


class Seanet(nn.Module):
    """Layers one after the other, numbered as in the published files."""

    def __init__(self, model: Sequence[SeanetLayer]) -> None:
        super().__init__()
        self.model = list(model)

    def init_state(self) -> list[ConvState]:
        return [ConvState() for _ in self.model]

    def __call__(self, x: mx.array, state: Sequence[ConvState]) -> mx.array:
        for layer, layer_state in zip(self.model, state, strict=True):
            x = layer(x, layer_state)
        return x


class SeanetEncoder(Seanet):
    """[B, T, channels] samples → [B, T / hop, dimension]; T in whole hops."""

    def __init__(self, config: SeanetConfig) -> None:
        dim = config.n_filters
        model: list[SeanetLayer] = [Conv1d(config.channels, dim, config.kernel_size)]
        for ratio in reversed(config.ratios):
            model += _residuals(config, dim)
            model += [Elu(), Conv1d(dim, 2 * dim, 2 * ratio, stride=ratio)]
            dim *= 2
        model += [Elu(), Conv1d(dim, config.dimension, config.last_kernel_size)]
        super().__init__(model)


class SeanetDecoder(Seanet):
    """[B, T, dimension] → [B, T · hop, channels] samples."""

    def __init__(self, config: SeanetConfig) -> None:
        dim = config.n_filters * 2 ** len(config.ratios)
        model: list[SeanetLayer] = [Conv1d(config.dimension, dim, config.kernel_size)]
        for ratio in config.ratios:
            model += [Elu(), ConvTranspose1d(dim, dim // 2, 2 * ratio, stride=ratio)]
            dim //= 2
            model += _residuals(config, dim)
        model += [Elu(), Conv1d(dim, config.channels, config.last_kernel_size)]
        super().__init__(model)
