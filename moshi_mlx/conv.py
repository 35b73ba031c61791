"""Causal convolutions over [B, T, C] whose streaming state is a value the caller holds.

A step takes any number of positions (whole strides) and a state; offline is one long step from a
fresh state. A transposed convolution is a causal convolution whose output channels are the
`stride` samples of each position, so it has the same state: the inputs that are still needed.
Knows nothing of what the layers are used for, nor of the published layout of the weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import mlx.core as mx
import mlx.nn as nn

Padding = Literal["constant", "replicate"]


@dataclass
class ConvState:
    """The inputs of the past that the next step needs, [B, P, C]; None in a fresh stream."""

    past: mx.array | None = None

    def arrays(self) -> list[mx.array]:
        return [] if self.past is None else [self.past]

    def save(self) -> list[mx.array]:
        """The arrays themselves: a step makes new ones."""
        return self.arrays()

    def restore(self, arrays: Sequence[mx.array]) -> None:
        """Continues from what `save` gave; nothing is checked."""
        self.past = arrays[0] if arrays else None


def _with_past(x: mx.array, past: int, state: ConvState, padding: Padding) -> mx.array:
    """[B, T, C] → [B, past + T, C]; a fresh stream's past is zeros, or its first sample."""
    if past == 0:
        return mx.contiguous(x)
    if state.past is None:
        batch, _, channels = x.shape
        first = mx.zeros((1, 1, 1), dtype=x.dtype) if padding == "constant" else x[:, :1]
        state.past = mx.broadcast_to(first, (batch, past, channels))
    x = mx.concatenate([state.past, x], axis=1)
    state.past = x[:, -past:]
    return x


def _convolve(
    x: mx.array, weight: mx.array, bias: mx.array | None, stride: int, dilation: int
) -> mx.array:
    """[B, P + T, C], weights [K, C, O] and bias [O] → [B, T / stride, O], without padding.

    x lies in order, as what `_with_past` has joined.

    Either one product of all windows, or one product per tap without copying the windows. On the
    CPU backend (mlx 0.32.4 with OpenBLAS, 2 cores, milliseconds, best of 60):

        channels, kernel, stride, positions     conv1d  windows  taps
           1 →   64  k7  s1  1920                 0.12     0.12  0.26
          64 →   32  k3  s1  1920                 0.56     0.55  0.28
          64 →    1  k3  s1  1920                 0.41     0.36  0.16
          64 →  128  k8  s4   480                 0.66     0.67  1.18
         128 →   64  k3  s1   480                 0.52     0.51  0.43
         512 → 1024  k16 s8     2                 6.39     5.14  39
        1024 → 4096  k2  s1     2                10.16     4.89  36

    so taps serve short kernels over many positions. Metal could not be tried.
    """
    kernel, channels, _ = weight.shape
    batch, length, _ = x.shape
    positions = (length - (kernel - 1) * dilation - 1) // stride + 1
    if stride == 1 and kernel <= 3 and positions >= kernel * channels:
        y = _product(x[:, :positions], weight[0, ...], bias)
        for k in range(1, kernel):
            y = mx.addmm(y, x[:, k * dilation : k * dilation + positions], weight[k, ...])
        return y
    windows = mx.as_strided(
        x,
        (batch, positions, kernel, channels),
        (length * channels, stride * channels, dilation * channels, 1),
    )
    return _product(
        windows.reshape(batch, positions, -1), weight.reshape(kernel * channels, -1), bias
    )


def _product(x: mx.array, weight: mx.array, bias: mx.array | None) -> mx.array:
    return x @ weight if bias is None else mx.addmm(bias, x, weight)


class Conv1d(nn.Module):
    """A causal convolution: position t of the output sees the input up to the end of stride t.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel: taps; kernel and dilation must span at least a stride.
        stride: positions of the input per position of the output.
        dilation: positions between taps.
        bias: whether to add a learned bias.
        padding: what comes before the stream: zeros, or its first sample repeated.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        bias: bool = True,
        padding: Padding = "constant",
    ) -> None:
        super().__init__()
        self.stride, self.dilation, self.padding = stride, dilation, padding
        self.past = (kernel - 1) * dilation + 1 - stride
        if self.past < 0:
            raise ValueError(f"a kernel of {kernel} does not span a stride of {stride}")
        scale = (in_channels * kernel) ** -0.5
        self.weight = mx.random.uniform(-scale, scale, (kernel, in_channels, out_channels))
        if bias:
            self.bias = mx.zeros((out_channels,))

    def __call__(self, x: mx.array, state: ConvState) -> mx.array:
        """[B, T, in] → [B, T / stride, out]; T in whole strides.

        Raises:
            ValueError: T is not a whole number of strides.
        """
        if x.shape[1] % self.stride:
            raise ValueError(
                f"{x.shape[1]} positions are not a whole number of strides of {self.stride}"
            )
        x = _with_past(x, self.past, state, self.padding)
        return _convolve(x, self.weight, self.get("bias"), self.stride, self.dilation)


class ConvTranspose1d(nn.Module):
    """A causal transposed convolution: position t of the input makes `stride` samples.

    The tails of earlier positions add to them: with taps w[0 … kernel - 1], sample r of position t
    is bias + Σ_j w[j · stride + r] · x[t - j]. So the weights are [pieces, in, stride · out], piece
    j last to first, with kernel = pieces · stride (zeros at the end for a kernel in between).

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel: taps, at least `stride`.
        stride: samples of the output per position of the input.
        bias: whether to add a learned bias; it is there once for each of the `stride` samples.
        depthwise: one filter per channel, without mixing them; weights [pieces, stride, channels].
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        stride: int,
        bias: bool = True,
        depthwise: bool = False,
    ) -> None:
        super().__init__()
        if kernel < stride:
            raise ValueError(f"a kernel of {kernel} does not span a stride of {stride}")
        if depthwise and in_channels != out_channels:
            raise ValueError(f"depthwise, but {in_channels} channels in, {out_channels} out")
        self.stride, self.depthwise = stride, depthwise
        pieces = -(-kernel // stride)
        self.past = pieces - 1
        scale = (in_channels * kernel) ** -0.5
        inner = (stride, in_channels) if depthwise else (in_channels, stride * out_channels)
        self.weight = mx.random.uniform(-scale, scale, (pieces, *inner))
        if bias:
            self.bias = mx.zeros((stride * out_channels,))

    def __call__(self, x: mx.array, state: ConvState) -> mx.array:
        """[B, T, in] → [B, T · stride, out]."""
        batch, length, _ = x.shape
        x = _with_past(x, self.past, state, "constant")
        if self.depthwise:
            x = x[:, :, None]
            y = x[:, :length] * self.weight[0, ...]
            for j in range(1, self.past + 1):
                y = y + x[:, j : j + length] * self.weight[j, ...]
            if "bias" in self:
                y = y + self.bias.reshape(self.stride, -1)
        else:
            y = _convolve(x, self.weight, self.get("bias"), 1, 1)
        return y.reshape(batch, length * self.stride, -1)


def pack_conv(weight: mx.array) -> mx.array:
    """PyTorch's [out, in, K] → `Conv1d.weight`."""
    return mx.contiguous(weight.transpose(2, 1, 0))


def pack_conv_transpose(weight: mx.array, stride: int, *, depthwise: bool = False) -> mx.array:
    """PyTorch's [in, out, K] (depthwise: [channels, 1, K]) → `ConvTranspose1d.weight`."""
    inputs, outputs, kernel = weight.shape
    pieces = -(-kernel // stride)
    weight = mx.pad(weight, [(0, 0), (0, 0), (0, pieces * stride - kernel)])
    weight = weight.reshape(inputs, outputs, pieces, stride)[:, :, ::-1]
    if depthwise:
        return mx.contiguous(weight[:, 0].transpose(1, 2, 0))
    return mx.contiguous(weight.transpose(2, 0, 3, 1)).reshape(pieces, inputs, stride * outputs)
