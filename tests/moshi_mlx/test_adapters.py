"""Adapters beside a checkpoint, and every check that a checkpoint's files must pass."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from moshi_mlx.arrays import Weights
from moshi_mlx.checkpoint import ADAPTER, find_files, open_checkpoint
from moshi_mlx.errors import CheckpointError, ConfigError, HubError
from moshi_mlx.files import read_json
from moshi_mlx.layouts import to_mlx
from moshi_mlx.lora import LoraLinear
from moshi_mlx.published import read_config
from moshi_mlx.trees import named_parameters
from moshi_mlx.weights import load_lm
from tests.moshi_mlx.test_families import nano_as
from tests.moshi_mlx.test_weights import CASES, config_of, save, tensors_of

LAYER = "transformer.layers.0.gating.linear_in"


def pair(outputs: int, inputs: int, layer: str = LAYER) -> Weights:
    """An adapter of rank 2 with random numbers."""
    a, b = (
        0.1 * mx.random.normal(shape, key=mx.random.key(i))
        for i, shape in enumerate([(2, inputs), (outputs, 2)])
    )
    return {f"{layer}.lora_A.weight": a, f"{layer}.lora_B.weight": b}


def product(adapter: Weights) -> np.ndarray:
    a, b = (np.array(adapter[f"{LAYER}.lora_{half}.weight"], np.float64) for half in "AB")
    return b @ a


def nanos_layer() -> np.ndarray:
    weights = open_checkpoint("nano").weights()
    return np.array(weights[f"{LAYER}.weight"].astype(mx.float32), np.float64)


# ---------------------------------------------------------------------------------- the scaling


def adapter_folder(folder: Path, config: dict[str, Any] | None) -> Path:
    folder.mkdir()
    save(folder / ADAPTER, pair(*nanos_layer().shape))
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("config", "scaling"),
    [({"lora_scaling": 5.0}, 5.0), ({"lora_scaling": 1}, 1.0), ({"lora": True}, 2.0), (None, 2.0)],
)
def test_the_scaling_is_the_adapters(
    config: dict[str, Any] | None, scaling: float, tmp_path: Path
) -> None:
    """From the config.json beside it, 2 where that does not say: W + scaling · B·A."""
    folder = adapter_folder(tmp_path / "adapter", config)
    wanted = nanos_layer() + scaling * product(pair(*nanos_layer().shape))
    opened = [
        open_checkpoint(folder, base="nano"),
        open_checkpoint(folder / ADAPTER, base="nano"),
        open_checkpoint("nano", lora=folder),
    ]
    for checkpoint in opened:
        merged = checkpoint.weights()[f"{LAYER}.weight"]
        np.testing.assert_allclose(merged.astype(mx.float32), wanted, atol=0.02)
    layer = opened[0].load_lm(mx.float32).transformer.layers[0].gating.linear_in
    np.testing.assert_allclose(layer.weight, wanted, atol=0.02)


def test_the_scaling_of_a_model_that_has_its_adapter(tmp_path: Path) -> None:
    """In one folder with it, where one config.json says all."""
    folder = nano_as(tmp_path / "model", lora_scaling=5.0)
    save(folder / ADAPTER, pair(*nanos_layer().shape))
    checkpoint = open_checkpoint(folder, lora=folder)
    wanted = nanos_layer() + 5 * product(pair(*nanos_layer().shape))
    merged = checkpoint.weights()[f"{LAYER}.weight"].astype(mx.float32)
    np.testing.assert_allclose(merged, wanted, atol=0.02)


@pytest.mark.parametrize("wrong", [0, -1, "2", True, None])
def test_a_scaling_that_cannot_be(wrong: object, tmp_path: Path) -> None:
    folder = adapter_folder(tmp_path / "adapter", {"lora_scaling": wrong})
    with pytest.raises(ConfigError, match=rf"config\.json: field 'lora_scaling' .* {wrong!r}$"):
        open_checkpoint(folder, base="nano")


@pytest.mark.parametrize("scaling", [0.25, 3.0])
def test_beside_a_quantized_layer(scaling: float, tmp_path: Path) -> None:
    """W·x + scaling · B·(A·x), with the numbers that the quantized layer itself gives."""
    adapter = pair(1408, 256)
    path = CASES / "mlx-q4" / "model.q4.safetensors"
    config = config_of("mlx-q4")
    lora = save(tmp_path / "lora.safetensors", adapter)
    lm = load_lm(path, config, dtype=mx.float32, lora=lora, lora_scaling=scaling)
    layer = lm.transformer.layers[0].gating.linear_in
    assert isinstance(layer, LoraLinear)
    x = mx.random.normal((3, 256), key=mx.random.key(9))
    plain = load_lm(path, config, dtype=mx.float32).transformer.layers[0].gating.linear_in(x)
    wanted = np.array(plain) + scaling * np.array(x, np.float64) @ product(adapter).T
    np.testing.assert_allclose(layer(x), wanted, atol=1e-4)


# ----------------------------------------------------------------------------------- the checks


def test_an_adapter_for_quantized_weights_cannot_be_merged(tmp_path: Path) -> None:
    folder = nano_as(tmp_path / "model")
    lm = open_checkpoint("nano").load_lm(mx.float32)
    nn.quantize(lm, 64, 4, class_predicate=lambda path, _: path == LAYER)
    (folder / "model.safetensors").unlink()
    save(folder / "model.safetensors", to_mlx(named_parameters(lm), lm.config))
    lora = save(tmp_path / "lora.safetensors", pair(*nanos_layer().shape))
    checkpoint = open_checkpoint(folder, lora=lora)
    with pytest.raises(CheckpointError, match="an adapter can only be merged into full precision"):
        checkpoint.weights()
    assert isinstance(checkpoint.load_lm().transformer.layers[0].gating.linear_in, LoraLinear)


@pytest.mark.parametrize("name", ["model.safetensors", "mimi.safetensors", ADAPTER])
def test_every_file_is_looked_at_when_it_is_opened(name: str, tmp_path: Path) -> None:
    """The weights, the codec, the adapter: each cut short, and named."""
    folder = nano_as(tmp_path / "model")
    whole = (folder / name).read_bytes() if name != ADAPTER else b"x" * 200
    (folder / name).unlink(missing_ok=True)
    (folder / name).write_bytes(whole[: len(whole) // 2])
    lora = folder if name == ADAPTER else None
    said = rf"model/{name}: is (truncated|not a safetensors|a text file, not safetensors)"
    with pytest.raises(CheckpointError, match=said):
        open_checkpoint(folder, lora=lora)


@pytest.mark.parametrize(
    ("quantized", "adapter", "message"),
    [
        (False, pair(352, 64, "transformer.layers.7.gating.linear_in"), "no layer '.*7.gating"),
        (False, pair(352, 65), r"the adapter of '.*linear_in' doesn't fit the base's \(352, 64\)"),
        (False, pair(351, 64), r"the adapter of '.*linear_in' doesn't fit the base's \(352, 64\)"),
        (False, {**pair(352, 64), f"{LAYER}.lora_A.weight": mx.zeros((3, 64))}, "fit"),
        (True, pair(1408, 128), r"is for \(1408, 128\), the base's layer is \(1408, 256\)"),
        (
            True,
            {**pair(1408, 256), "out_norm.weight": mx.zeros(9)},
            r"\(9,\) is to replace \(256,\)",
        ),
        (True, {**pair(1408, 256), "other.weight": mx.zeros(9)}, r"\(9,\) is to replace nothing"),
    ],
)
def test_an_adapter_that_does_not_fit(
    quantized: bool, adapter: Weights, message: str, tmp_path: Path
) -> None:
    case, file = ("mlx-q4", "model.q4.safetensors") if quantized else ("moshi", "model.safetensors")
    lora = save(tmp_path / "lora.safetensors", adapter)
    with pytest.raises(CheckpointError, match=rf"lora\.safetensors: .*{message}"):
        load_lm(CASES / case / file, config_of(case), lora=lora)


def unweighted(weights: Weights) -> None:
    del weights[f"{LAYER}.weight"]


def unpacked(weights: Weights) -> None:
    weights[f"{LAYER}.weight"] = mx.zeros((1408, 256))


def flat_scales(weights: Weights) -> None:
    weights[f"{LAYER}.scales"] = mx.zeros((1408,))


def regrouped(weights: Weights) -> None:
    weights[f"{LAYER}.scales"] = mx.zeros((1408, 7))


def rebitted(weights: Weights) -> None:
    weights[f"{LAYER}.weight"] = mx.zeros((1408, 56), mx.uint32)


def unknown_mode(weights: Weights) -> None:
    weights[f"{LAYER}.scales"] = mx.zeros((1408, 4), mx.uint8)
    del weights[f"{LAYER}.biases"]


def retyped(weights: Weights) -> None:
    """A layer that is not quantized has whole numbers."""
    weights["out_norm.weight"] = weights["out_norm.weight"].astype(mx.int32)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (unweighted, r"tensor '.*linear_in\.weight' is missing"),
        (unpacked, r"has scales, but is .*float32 \(1408, 256\), not packed uint32"),
        (flat_scales, r"has scales, but is .*, not packed uint32"),
        (regrouped, r"with scales \(1408, 7\) is not a quantization of \(1408, 256\)"),
        (rebitted, r"\(1408, 56\) with scales .* is not a quantization of"),
        (unknown_mode, r"has 4 bits in groups of 64: no mode has these"),
        (retyped, r"tensor 'out_norm\.weight' is .*int32, not floating-point"),
    ],
)
def test_quantized_layers_that_make_no_sense(
    spoil: Callable[[Weights], None], message: str, tmp_path: Path
) -> None:
    weights = tensors_of("mlx-q4")
    spoil(weights)
    path = save(tmp_path / "bad.safetensors", weights)
    with pytest.raises(CheckpointError, match=rf"bad\.safetensors: .*{message}"):
        load_lm(path, config_of("mlx-q4"))


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({LAYER: {"bits": 8}}, "has bits 4, config.json says 8"),
        ({LAYER: {"group_size": 64}}, "has group_size 32, config.json says 64"),
        ({"mode": "mxfp4"}, "has mode affine, config.json says mxfp4"),
        ({LAYER: False}, "is quantized, config.json says it isn't"),
    ],
)
def test_what_config_says_of_a_quantization_is_checked(said: dict[str, Any], message: str) -> None:
    path = CASES / "mlx-q4" / "model.q4.safetensors"
    block = {"bits": 4, "group_size": 32, "mode": "affine"} | said
    with pytest.raises(CheckpointError, match=message):
        load_lm(path, config_of("mlx-q4"), quantization=block)


def test_more_layers_than_tensors() -> None:
    """Refused before a model of that size is begun."""
    config = read_config(read_json(CASES / "moshi" / "config.json") | {"num_layers": 10**6}).lm
    with pytest.raises(CheckpointError, match=r"has \d+ tensors, the config says 1000000 layers"):
        load_lm(CASES / "moshi" / "model.safetensors", config)


def test_an_adapter_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(HubError, match=r"There is no file or folder .*nope: give an adapter's"):
        find_files("nano", lora=tmp_path / "nope")
    with pytest.raises(HubError, match=r"The folder .* has no lora\.safetensors: give an"):
        find_files("nano", lora=tmp_path)
    (tmp_path / "adapter_model.bin").write_bytes(b"x")
    with pytest.raises(HubError, match=r"adapter_model\.bin is not safetensors"):
        find_files("nano", lora=tmp_path)
