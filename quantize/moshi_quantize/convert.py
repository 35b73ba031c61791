"""From a checkpoint of any layout to a folder in MLX's, quantized or not.

Knows which layers the published recipes quantize and how. Knows nothing of the command line.
"""

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from moshi_mlx.config import LmConfig, read_config, read_json
from moshi_mlx.errors import CheckpointError
from moshi_mlx.hub import ModelFiles, resolve
from moshi_mlx.lm import Lm
from moshi_mlx.weights import load_lm, named_parameters, to_mlx


@dataclass(frozen=True)
class Recipe:
    """Affine quantization of every Linear and Embedding whose inputs the group divides."""

    bits: int
    group_size: int


# As published: upstream's moshi_mlx reads these.
RECIPES = {4: Recipe(bits=4, group_size=32), 8: Recipe(bits=8, group_size=64)}


def quantized(lm: Lm, recipe: Recipe) -> Lm:
    """Quantizes a model in place and returns it."""

    def divides(_: str, module: nn.Module) -> bool:
        if not hasattr(module, "to_quantized"):
            return False
        return bool(module.weight.shape[-1] % recipe.group_size == 0)

    nn.quantize(lm, recipe.group_size, recipe.bits, class_predicate=divides)
    return lm


def mlx_weights(lm: Lm, config: LmConfig) -> dict[str, mx.array]:
    """A model's tensors by their published MLX names."""
    return to_mlx(named_parameters(lm), config)


def convert(
    source: str | Path, target: Path, *, recipe: Recipe | None, dtype: mx.Dtype = mx.bfloat16
) -> Path:
    """Writes a folder that `moshi_mlx.load` runs: weights, config.json, tokenizer, Mimi.

    The folder appears whole or not at all.

    Args:
        source: what `moshi_mlx.load` takes.
        target: a folder that isn't there yet.
        recipe: how to quantize; None only converts.
        dtype: type of what is not quantized, and of scales and biases.

    Raises:
        MoshiError: the source cannot be read, or the target is there already.
    """
    if target.exists():
        raise CheckpointError(f"{target}: is there already; name a new folder")
    files = resolve(source)
    config = read_config(read_json(files.config) if files.config else None, str(files.config))
    if recipe is not None and config.quantization is not None:
        raise CheckpointError(f"{files.weights[0]}: is quantized already; start from the original")
    lm = load_lm(files.weights, config.lm, dtype=dtype, quantization=config.quantization)
    if recipe is not None:
        quantized(lm, recipe)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as name:
        folder = Path(name) / "model"
        folder.mkdir()
        _write(folder, files, mlx_weights(lm, config.lm), _config(files, config.raw, recipe))
        folder.rename(target)
    return target


def _config(files: ModelFiles, raw: Any, recipe: Recipe | None) -> dict[str, Any]:
    config = dict(raw)
    config["moshi_name"] = "model.safetensors"
    config["mimi_name"] = files.mimi.name
    config["tokenizer_name"] = files.tokenizer.name
    if files.mimi_config is not None:
        config["mimi_config_name"] = files.mimi_config.name
    if recipe is not None:
        config["quantization"] = {
            "group_size": recipe.group_size, "bits": recipe.bits, "mode": "affine",
        }  # fmt: skip
    return config


def _write(
    folder: Path, files: ModelFiles, weights: dict[str, mx.array], config: dict[str, Any]
) -> None:
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    for path in (files.mimi, files.mimi_config, files.tokenizer):
        if path is not None:
            shutil.copyfile(path, folder / path.name)
