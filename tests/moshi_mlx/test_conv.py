"""Convolutions: against a plain one worked out sample by sample, and in chunks of any size."""

from itertools import pairwise
from typing import get_args

import mlx.core as mx
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moshi_mlx.conv import (
    Conv1d,
    ConvState,
    ConvTranspose1d,
    Padding,
    pack_conv,
    pack_conv_transpose,
)

Array = npt.NDArray[np.float32]


def plain_conv(
    x: Array, w: Array, bias: Array, stride: int, dilation: int, replicate: bool
) -> Array:
    """x [B, T, I], PyTorch's w [O, I, K] → [B, T / stride, O]."""
    kernel = w.shape[2]
    past = (kernel - 1) * dilation + 1 - stride
    y = np.zeros((x.shape[0], x.shape[1] // stride, w.shape[0]), np.float32)
    for t in range(y.shape[1]):
        for k in range(kernel):
            source = t * stride + k * dilation - past
            if source >= 0 or replicate:
                y[:, t] += x[:, max(source, 0)] @ w[:, :, k].T
    return y + bias


def plain_transpose(x: Array, w: Array, bias: Array, stride: int) -> Array:
    """x [B, T, I], PyTorch's w [I, O, K] → [B, T · stride, O]: every input adds its K samples."""
    batch, length, _ = x.shape
    y = np.zeros((batch, length * stride + w.shape[2], w.shape[1]), np.float32)
    for t in range(length):
        for k in range(w.shape[2]):
            y[:, t * stride + k] += x[:, t] @ w[:, :, k]
    return y[:, : length * stride] + bias


def chunked(layer: Conv1d | ConvTranspose1d, x: Array, cuts: list[int]) -> Array:
    """The layer over x in chunks that end at the cuts."""
    state = ConvState()
    ends = sorted({0, *cuts, x.shape[1]})
    return np.concatenate([layer(mx.array(x[:, a:b]), state) for a, b in pairwise(ends)], axis=1)


def normal(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_conv_by_hand() -> None:
    conv = Conv1d(1, 1, 3)
    conv.weight = mx.array([100.0, 10.0, 1.0]).reshape(3, 1, 1)
    conv.bias = mx.array([0.5])
    y = conv(mx.array([1.0, 2.0, 3.0, 4.0]).reshape(1, 4, 1), ConvState())
    assert y.reshape(-1).tolist() == [1.5, 12.5, 123.5, 234.5]


def test_replicate_by_hand() -> None:
    conv = Conv1d(1, 1, 4, stride=2, bias=False, padding="replicate")
    conv.weight = mx.array([1000.0, 100.0, 10.0, 1.0]).reshape(4, 1, 1)
    y = conv(mx.array([1.0, 2.0, 3.0, 4.0]).reshape(1, 4, 1), ConvState())
    assert y.reshape(-1).tolist() == [1112.0, 1234.0]


def test_transpose_by_hand() -> None:
    conv = ConvTranspose1d(1, 1, 4, stride=2)
    conv.weight = pack_conv_transpose(mx.array([1.0, 2.0, 3.0, 4.0]).reshape(1, 1, 4), 2)
    conv.bias = mx.array([0.5, 0.5])
    y = conv(mx.array([1.0, 10.0]).reshape(1, 2, 1), ConvState())
    assert y.reshape(-1).tolist() == [1.5, 2.5, 13.5, 24.5]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_conv_in_chunks(data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, 4))
    dilation = data.draw(st.integers(1, 3)) if stride == 1 else 1
    kernel = data.draw(st.integers(stride, 9))
    batch, inputs, outputs = (data.draw(st.integers(1, 3)) for _ in range(3))
    strides = data.draw(st.integers(1, 20))
    cuts = [stride * c for c in data.draw(st.lists(st.integers(0, strides), max_size=4))]
    padding: Padding = data.draw(st.sampled_from(get_args(Padding)))
    x, w = normal(0, batch, strides * stride, inputs), normal(1, outputs, inputs, kernel)
    conv = Conv1d(inputs, outputs, kernel, stride=stride, dilation=dilation, padding=padding)
    conv.weight, bias = pack_conv(mx.array(w)), normal(2, outputs)
    conv.bias = mx.array(bias)
    expected = plain_conv(x, w, bias, stride, dilation, padding == "replicate")
    np.testing.assert_allclose(chunked(conv, x, cuts), expected, atol=1e-4)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_transpose_in_chunks(data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, 4))
    kernel = data.draw(st.integers(stride, 11))
    batch, inputs, outputs = (data.draw(st.integers(1, 3)) for _ in range(3))
    length = data.draw(st.integers(1, 20))
    cuts = data.draw(st.lists(st.integers(0, length), max_size=4))
    depthwise = data.draw(st.booleans())
    outputs = inputs if depthwise else outputs
    x, bias = normal(0, batch, length, inputs), normal(2, outputs)
    published = normal(1, inputs, 1 if depthwise else outputs, kernel)
    conv = ConvTranspose1d(inputs, outputs, kernel, stride=stride, depthwise=depthwise)
    packed = pack_conv_transpose(mx.array(published), stride, depthwise=depthwise)
    assert packed.shape == conv.weight.shape
    conv.weight, conv.bias = packed, mx.tile(mx.array(bias), stride)
    full = published * np.eye(inputs, dtype=np.float32)[:, :, None] if depthwise else published
    np.testing.assert_allclose(
        chunked(conv, x, cuts), plain_transpose(x, full, bias, stride), atol=1e-4
    )


def test_many_positions_take_the_same_value_tap_by_tap() -> None:
    """Long steps of short kernels are computed another way; the numbers are the same."""
    x, w, bias = normal(0, 2, 120, 8), normal(1, 5, 8, 3), np.zeros(5, np.float32)
    conv = Conv1d(8, 5, 3, dilation=2, bias=False)
    conv.weight = pack_conv(mx.array(w))
    expected = plain_conv(x, w, bias, 1, 2, replicate=False)
    np.testing.assert_allclose(chunked(conv, x, []), expected, atol=1e-4)
    np.testing.assert_allclose(chunked(conv, x, list(range(0, 120, 10))), expected, atol=1e-4)


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="span"):
        Conv1d(1, 1, 2, stride=3)
    with pytest.raises(ValueError, match="span"):
        ConvTranspose1d(1, 1, 2, stride=3)
    with pytest.raises(ValueError, match="depthwise"):
        ConvTranspose1d(1, 2, 2, stride=2, depthwise=True)
    with pytest.raises(ValueError, match="strides"):
        Conv1d(1, 1, 4, stride=2)(mx.zeros((1, 3, 1)), ConvState())
