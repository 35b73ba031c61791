"""Every way in which PersonaPlex comes, as small random models; see `make_persona_folders`."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import moshi_mlx
from moshi_mlx.errors import MoshiError
from moshi_mlx.families.persona import PersonaPlex
from moshi_mlx.lm import Lm
from moshi_mlx.published import PRESETS
from moshi_mlx.safetensors import read_safetensors
from moshi_mlx.weights import fill, shaped_like, used_weights
from tests.fixtures import make_persona_folders as made


@pytest.fixture(autouse=True)
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the preset says, in small."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setitem(PRESETS, "personaplex", made.FIELDS)


def load(folder: Path) -> PersonaPlex:
    moshi = moshi_mlx.load(folder, verb="talk", codec="mlx", dtype=mx.float32)
    assert isinstance(moshi, PersonaPlex)
    return moshi


def expected(bits: int | None, group: int = made.GROUP, *, everything: bool = False) -> Lm:
    """The same weights from our names, with the sets that are run in a conversation."""
    weights = made.weights()
    if bits is not None:
        weights = made.quantized(weights, bits, group, everything=everything)
    config = made.CONFIG.generating(8)
    weights = used_weights(weights, config)
    lm = shaped_like(weights, config, None, "here")
    fill(lm, weights, "here", mx.float32)
    return lm


def same(lm: Lm, other: Lm) -> None:
    """Logits to the last bit."""
    codes = np.random.default_rng(0).integers(0, 500, (1, 17, 12), dtype=np.int32)
    ours, theirs = lm.forward(mx.array(codes)), other.forward(mx.array(codes))
    assert mx.array_equal(ours.text_logits, theirs.text_logits).item()
    assert mx.array_equal(ours.audio_logits, theirs.audio_logits).item()


def test_as_published(tmp_path: Path) -> None:
    """config.json has no field of the model, the file all 16 sets: 8 are loaded."""
    moshi = load(made.published(tmp_path / "model"))
    assert (moshi.config.lm.dep_q, moshi.lm.config.dep_q) == (16, 8)
    same(moshi.lm, expected(None))


@pytest.mark.parametrize("bits", [None, 4, 8])
def test_in_parts(bits: int | None, tmp_path: Path) -> None:
    moshi = load(made.in_parts(tmp_path / "model", bits))
    assert (moshi.config.lm.dep_q, moshi.lm.config.dep_q) == (16, 8)
    assert moshi.config.lm == made.CONFIG
    same(moshi.lm, expected(bits))
    assert (moshi.audio_sampling.temperature, moshi.text_sampling.top_k) == (0.6, 20)
    assert moshi.voices() == ["NATF0"]
    with moshi.session(voice="NATF0", persona="hello", prompt_cache=False) as session:
        assert session.step(np.zeros(1920, np.float32)) is not None


@pytest.mark.parametrize(
    ("file", "bits", "group", "more"),
    [
        ("model.moshi_mlx.safetensors", 4, 32, {}),
        ("model.q8.safetensors", 8, 64, {"quantization": {"bits": 8, "group_size": 64}}),
    ],
)
def test_by_other_converters(
    file: str, bits: int, group: int, more: dict[str, Any], tmp_path: Path
) -> None:
    """Neither the file's name nor, in the first, its quantization is in config.json."""
    moshi = load(made.bundle(tmp_path / "model", file, {**made.NAMES, **more}, bits, group))
    same(moshi.lm, expected(bits, group, everything=True))


def test_a_quantization_that_shapes_do_not_tell(tmp_path: Path) -> None:
    folder = made.bundle(tmp_path / "unclear", "model.q4.safetensors", made.NAMES, 4, 32)
    scales = mx.zeros((512, 1), dtype=mx.uint8)
    changed(folder, "model.q4.safetensors", text_linear__scales=scales)
    refused(folder, "'text_linear.weight' has 4 bits in groups of 64: no mode has these")


def changed(folder: Path, file: str, **tensors: mx.array | None) -> None:
    path = folder / file
    weights = read_safetensors(path)
    for name, value in tensors.items():
        name = name.replace("__", ".")
        weights.pop(name, None)
        if value is not None:
            weights[name] = value
    mx.eval(weights)
    mx.save_safetensors(str(path), weights)


def refused(folder: Path, words: str) -> None:
    with pytest.raises(MoshiError, match=words) as caught:
        moshi_mlx.load(folder, verb="talk", codec="mlx")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("part", ["temporal", "depformer", "embeddings"])
def test_a_part_is_missing(part: str, tmp_path: Path) -> None:
    folder = made.in_parts(tmp_path / "model", 4)
    (folder / f"{part}.safetensors").unlink()
    refused(folder, rf"There is no {part}.safetensors in .*model\. Put the file there")


def test_parts_that_do_not_fit(tmp_path: Path) -> None:
    folder = made.in_parts(tmp_path / "model", 4)
    changed(folder, "temporal.safetensors", layers__1__self_attn__in_proj_scales=mx.zeros((192, 5)))
    refused(folder, "transformer.layers.1.self_attn.in_proj.weight.*is not a quantization of")
    changed(folder, "temporal.safetensors", layers__1__self_attn__in_proj_scales=None)
    refused(folder, "in_proj.biases|in_proj.weight")
    folder = made.in_parts(tmp_path / "other", 4)
    changed(folder, "embeddings.safetensors", emb__3__weight=mx.zeros((513, 32)))
    refused(folder, r"tensor 'audio_embs.3.weight' is \(513, 32\), the config says \(513, 64\)")
    changed(folder, "depformer.safetensors", out_norm__alpha=mx.zeros((1, 1, 64)))
    refused(folder, r"depformer.safetensors: tensor 'out_norm.alpha' is in another file too|two")
    folder = made.in_parts(tmp_path / "third", 8)
    config = json.loads((folder / "config.json").read_text())
    config["depformer"]["rope"] = True
    (folder / "config.json").write_text(json.dumps(config))
    refused(folder, "depformer: field 'rope' .* is not understood")


def test_a_voice_of_another_model(tmp_path: Path) -> None:
    folder = made.in_parts(tmp_path / "model", 4)
    path = folder / "voices" / "NATF0.safetensors"
    changed(path.parent, path.name, embeddings=mx.zeros((6, 1, 1, 32)))
    with pytest.raises(MoshiError, match=r"NATF0 is for another model: .* width 32, this model"):
        load(folder).session(voice="NATF0")
