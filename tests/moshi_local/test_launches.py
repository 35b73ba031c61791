"""Kernels that a GPU would launch for a frame, counted without one."""

import mlx.core as mx
import pytest

from moshi_local.machine.bench import AUDIO, TEXT
from moshi_local.machine.launches import codec_launches, launches, step_launches
from moshi_mlx.published import read_config

MOST = 1450
"""For a frame of Moshi in 4 bits, there and back; it was 2024 once."""


def test_views_are_free_and_each_input_of_a_concatenation_counts() -> None:
    x = mx.zeros((4, 6))
    mx.eval(x)
    assert launches(x) == 0
    assert launches(x.reshape(6, 4).T, x[1:]) == 0
    assert launches(mx.concatenate([x, x, x])) == 3
    fused = mx.compile(lambda x: mx.exp(x + x) * x)
    assert launches(fused(x) @ x.T) == 2


@pytest.mark.parametrize(
    ("bits", "parts"),
    [
        (4, {"temporal": 406, "depth": 572, "sampling": 90}),
        (16, {"temporal": 403, "depth": 548, "sampling": 90}),
    ],
)
def test_a_step_of_moshi(bits: int, parts: dict[str, int]) -> None:
    """More would be slower on every GPU: find out why, before these numbers are changed."""
    config = read_config(preset="moshi").lm
    assert step_launches(config, bits, TEXT, AUDIO, generated=8) == parts


def test_a_frame_of_moshi() -> None:
    config = read_config(preset="moshi").lm
    codec = codec_launches()
    assert codec == {"encode": 204, "decode": 173}
    assert sum((step_launches(config, 4, TEXT, AUDIO, 8) | codec).values()) <= MOST
