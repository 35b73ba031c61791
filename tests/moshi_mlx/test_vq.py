"""The quantizer: by hand, and against a search over all entries."""

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

from moshi_mlx.config import QuantizerConfig
from moshi_mlx.vq import ResidualQuantizer, SplitResidualQuantizer, codebook

CONFIG = QuantizerConfig(dimension=4, n_q=5, bins=16, input_dimension=6, output_dimension=6)


def filled(num_codebooks: int) -> SplitResidualQuantizer:
    quantizer = SplitResidualQuantizer(CONFIG, num_codebooks)
    rng = np.random.default_rng(0)
    for side in ("semantic", "acoustic")[: 1 if num_codebooks == 1 else 2]:
        part = quantizer[side]
        for linear in (part.input_proj, part.output_proj):
            linear.weight = mx.array(rng.standard_normal(linear.weight.shape), mx.float32)
        part.embedding = mx.array(rng.standard_normal(part.embedding.shape), mx.float32)
        part.half_square = part.embedding.square().sum(axis=-1) / 2
    return quantizer


def test_codebook_by_hand() -> None:
    entries = codebook(mx.array([[2.0, 4.0], [1e-5, 0.0]]), mx.array([2.0, 0.0]))
    np.testing.assert_allclose(entries, [[1.0, 2.0], [1.0, 0.0]], rtol=1e-6)
    assert codebook(mx.zeros((1, 2), mx.bfloat16), mx.ones((1,))).dtype == mx.float32


def test_residuals_by_hand() -> None:
    config = replace(CONFIG, dimension=1, bins=3, input_dimension=1, output_dimension=1)
    quantizer = ResidualQuantizer(config, 2)
    quantizer.input_proj.weight = quantizer.output_proj.weight = mx.ones((1, 1))
    quantizer.embedding = mx.array([[[0.0], [10.0], [20.0]], [[-1.0], [0.0], [3.0]]])
    quantizer.half_square = quantizer.embedding.square().sum(axis=-1) / 2
    codes = quantizer.encode(mx.array([[[12.0], [8.8], [-4.0]]]))
    assert codes.tolist() == [[[1, 1, 0], [2, 0, 0]]]
    assert quantizer.decode(codes).tolist() == [[[13.0], [9.0], [-1.0]]]
    assert quantizer.decode(codes[:, :1]).tolist() == [[[10.0], [10.0], [0.0]]]


@pytest.mark.parametrize("num_codebooks", [1, 2, 5])
def test_nearest_entry_of_every_codebook(num_codebooks: int) -> None:
    quantizer = filled(num_codebooks)
    x = np.random.default_rng(1).standard_normal((2, 7, 6)).astype(np.float32)
    codes = np.array(quantizer.encode(mx.array(x)))
    assert codes.shape == (2, num_codebooks, 7)
    assert codes.dtype == np.int32
    decoded = np.zeros_like(x)
    rows = iter(range(num_codebooks))
    for side in ("semantic", "acoustic")[: 1 if num_codebooks == 1 else 2]:
        part = quantizer[side]
        residual = x @ np.array(part.input_proj.weight).T
        total = np.zeros_like(residual)
        for entries in np.array(part.embedding):
            distances = ((residual[:, :, None] - entries) ** 2).sum(-1)
            nearest = distances.argmin(-1)
            np.testing.assert_array_equal(codes[:, next(rows)], nearest)
            residual, total = residual - entries[nearest], total + entries[nearest]
        decoded += total @ np.array(part.output_proj.weight).T
    np.testing.assert_allclose(quantizer.decode(mx.array(codes)), decoded, atol=1e-4)


def test_number_of_codebooks_is_checked() -> None:
    for wrong in (0, 6):
        with pytest.raises(ValueError, match="from 1 to 5"):
            SplitResidualQuantizer(CONFIG, wrong)
