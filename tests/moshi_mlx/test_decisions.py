"""Decisions that show in few places: names as published, defaults, formulas, what is resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import moshi_mlx
from moshi_mlx.config import TransformerConfig
from moshi_mlx.files import read_json
from moshi_mlx.layouts import from_pytorch, to_pytorch
from moshi_mlx.published import read_config, read_mimi_config
from moshi_mlx.sampling import Sampling, draw
from moshi_mlx.seanet import elu
from moshi_mlx.transformer import TransformerLayer

FIXTURES = Path(__file__).parents[1] / "fixtures"


@pytest.mark.parametrize("case", ["cross", "long-delays", "norms", "shared", "sum"])
def test_written_names_are_the_published_ones(case: str) -> None:
    """Every tensor of a checkpoint of the reference comes back under its name, unchanged."""
    folder = FIXTURES / "lm" / f"small-{case}"
    config = read_config(read_json(folder / "config.json")).lm
    published = mx.load(str(folder / "model.safetensors"))
    assert isinstance(published, dict)
    published["depformer_norms.0.alpha"] = mx.ones((1, 1, 8))
    written = to_pytorch(from_pytorch(published, config), config)
    assert written.keys() == published.keys()
    assert all(mx.array_equal(written[name], published[name]).item() for name in published)


def test_what_a_codec_is_where_its_file_does_not_say() -> None:
    data: dict[str, Any] = read_json(FIXTURES / "mimi" / "small.json")
    fields = data["transformer"]
    for name in ("dim_feedforward", "max_period", "positional_embedding", "norm", "gating"):
        del fields[name]
    del fields["layer_scale"], data["seanet"]["true_skip"]
    config = read_mimi_config(data)
    read = config.transformer
    assert (read.feedforward, read.kv_repeat, read.max_period) == (2048, 1, 10_000)
    assert (read.positions, read.norm, read.gating) == ("rope", "layer_norm", "none")
    assert not read.layer_scale
    assert config.seanet.true_skip


def test_elu_is_the_exponential_function_less_one() -> None:
    x = np.concatenate([np.linspace(-40, 4, 20_001), [-1e-6, 0.0, 1e-6]]).astype(np.float32)
    expected = np.where(x > 0, x, np.expm1(np.minimum(x.astype(np.float64), 0)))
    np.testing.assert_allclose(np.array(elu(mx.array(x))), expected, rtol=1e-6, atol=2e-7)


def test_the_likeliest_times_min_p_is_kept() -> None:
    """The threshold itself, which is met by equal probabilities, and by min_p 1."""
    logits = mx.zeros((1, 4))
    last = draw(logits, mx.array([0.99]), Sampling(temperature=1.0, top_k=0, min_p=1.0))
    assert last.item() == 3


def test_every_residual_branch_is_scaled() -> None:
    """With all scales at zero a layer gives what it takes, with one of them it does not."""
    config = TransformerConfig(
        dim=8, num_heads=2, num_layers=1, feedforward=32, context=4, layer_scale=True,
        cross_attention=True,
    )  # fmt: skip
    layer = TransformerLayer(config)
    names = ("layer_scale_1", "layer_scale_2", "layer_scale_cross")
    x = mx.random.normal((1, 3, 8), key=mx.random.key(0))
    cross = layer.cross_attention.keys_values(x)
    for one in (None, *names):
        for name in names:
            scale = mx.ones if name == one else mx.zeros
            getattr(layer, name).scale = scale((8,))
        changed = not mx.array_equal(layer.finish(x, x, cross), x).item()
        assert changed == (one is not None), one


def test_a_resumed_session_goes_on_to_the_bit() -> None:
    """In the middle of a sound, so that the codec has a past."""
    nano = moshi_mlx.load("nano", verb="talk", codec="mlx")
    pcm = np.random.default_rng(0).uniform(-0.3, 0.3, (8, nano.frame_size)).astype(np.float32)
    with nano.session(seed=3) as session:
        for frame in pcm[:5]:
            session.step(frame)
        state = session.save()
        expected = [session.step(frame) for frame in pcm[5:]]
    with nano.session(state=state) as resumed:
        for frame, wanted in zip(pcm[5:], expected, strict=True):
            found = resumed.step(frame)
            assert found.index == wanted.index
            np.testing.assert_array_equal(found.pcm, wanted.pcm)
