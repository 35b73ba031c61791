"""GPTQ (Frantar et al. 2022, arXiv 2210.17323; mlx-lm's `quant/gptq.py` for MLX's formats).

Each layer's columns are rounded one after the other, and what rounding one does to the layer's
outputs, on inputs that it really gets, is made up for by those that follow. The layers go in the
order of the pass, each seeing what the quantized ones before it give. One layer at a time is held,
so that a model of any size goes through; mlx-lm's needs all of it and the Hessians of all layers.
"""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import numpy.typing as npt

from moshi_mlx.arrays import Codes
from moshi_mlx.checkpoint import Checkpoint

from .convert import Emit
from .recipes import Assignment, Layer, Precision
from .teacher import Teacher

Floats = npt.NDArray[np.float32]
_DAMPING = 0.01  # of the Hessian's mean diagonal


def pack(values: npt.NDArray[np.uint8], bits: int) -> mx.array:
    """Whole numbers [rows, inputs] below 2**bits → MLX's packed uint32, lowest bits first."""
    each = np.unpackbits(values[..., None], axis=-1, count=bits, bitorder="little")
    stream = np.packbits(each.reshape(len(values), -1), axis=-1, bitorder="little")
    return mx.array(stream.view(np.uint32))


def quantize_for(
    weight: mx.array, inputs: mx.array, precision: Precision, dtype: mx.Dtype
) -> dict[str, mx.array]:
    """Affine quantization of weights [outputs, inputs] for inputs [..., inputs].

    Returns packed weights, scales and biases, these in `dtype`.
    """
    x = np.array(inputs.reshape(-1, inputs.shape[-1]).astype(mx.float32))
    w = np.array(weight.astype(mx.float32))
    upper = _inverse_factor(x.T @ x)
    most = 2**precision.bits - 1
    values = np.empty(w.shape, np.uint8)
    scales, biases = [], []
    group = precision.group_size
    for start in range(0, w.shape[1], group):
        end = start + group
        parts = precision.quantize(mx.array(w[:, start:end]).astype(dtype))
        scales.append(parts["scales"])
        biases.append(parts["biases"])
        scale = np.array(parts["scales"].astype(mx.float32))[:, 0]
        bias = np.array(parts["biases"].astype(mx.float32))[:, 0]
        safe = np.where(scale == 0, 1, scale)
        errors = np.empty((len(w), group), np.float32)
        for k in range(start, end):
            values[:, k] = np.clip(np.rint((w[:, k] - bias) / safe), 0, most)
            error = (w[:, k] - (scale * values[:, k] + bias)) / upper[k, k]
            w[:, k + 1 : end] -= np.outer(error, upper[k, k + 1 : end])
            errors[:, k - start] = error
        w[:, end:] -= errors @ upper[start:end, end:]
    return {
        "weight": pack(values, precision.bits),
        "scales": mx.concatenate(scales, axis=1),
        "biases": mx.concatenate(biases, axis=1),
    }


def _inverse_factor(hessian: Floats) -> Floats:
    """The upper Cholesky factor of the damped Hessian's inverse."""
    h = hessian.astype(np.float64)
    mean = float(np.mean(np.diag(h))) or 1.0
    h[np.diag_indices_from(h)] += _DAMPING * mean
    lower = np.linalg.cholesky(np.linalg.inv(h))
    return np.ascontiguousarray(lower.T).astype(np.float32)


def quantize_layers(
    source: Checkpoint, layers: list[Layer], assignment: Assignment, dtype: mx.Dtype, codes: Codes,
    emit: Emit,
) -> None:  # fmt: skip
    """Quantizes, in one pass over dialogues [N, 1 + n_q, T], all layers that it goes through."""
    by_path = {layer.path: layer for layer in layers}
    again: dict[str, mx.array] = {}  # layers that several slices share: as quantized the first time

    def visit(path: str, leaf: nn.Module, x: mx.array) -> None:
        layer = by_path.get(path)
        precision = assignment[path] if layer is not None else None
        if layer is None or precision is None:
            return
        if path in again:
            leaf.weight = again[path]
            return
        if precision.mode == "affine" and isinstance(leaf, nn.Linear):
            parts = quantize_for(leaf.weight, x, precision, dtype)
        else:
            parts = precision.quantize(leaf.weight.astype(dtype))
        emit(layer, parts)
        leaf.weight = precision.dequantize(parts).astype(mx.float32)
        mx.eval(leaf.weight)
        if layer.uses > 1:
            again[path] = leaf.weight

    Teacher(source).one_pass(mx.array(codes), visit)
