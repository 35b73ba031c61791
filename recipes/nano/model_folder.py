"""A training's newest checkpoint as a folder for `moshi_mlx.load`.

Knows files; nothing of what a model is for.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx

from moshi_mlx.checkpoint import write_companions
from moshi_mlx.files import write_json
from moshi_mlx.layouts import to_pytorch
from moshi_mlx.lm import Lm
from moshi_mlx.published import read_config
from moshi_mlx.safetensors import read_safetensors, write_safetensors
from moshi_mlx.training.trainer import save_weights
from moshi_mlx.trees import named_parameters


def newest_checkpoint(run: Path) -> Path:
    """The newest checkpoint of a run.

    Raises:
        FileNotFoundError: there is none.
    """
    checkpoints = sorted((run / "checkpoints").glob("step_????????"))
    if not checkpoints:
        raise FileNotFoundError(f"no checkpoint under {run}; train first")
    return checkpoints[-1]


def trained(run: Path, config: Mapping[str, Any]) -> Lm:
    """The model of a run's newest checkpoint, without what only the training had."""
    lm = Lm(read_config(config, str(run)).lm)
    weights = read_safetensors(newest_checkpoint(run) / "weights.safetensors")
    lm.load_weights([(name, weights[name]) for name in named_parameters(lm)])
    return lm


def export_model(
    run: Path, config: Mapping[str, Any], model: Path, codec: Path, tokenizer: Path
) -> None:
    """Writes a run's newest checkpoint in bfloat16, with its codec and its tokenizer.

    Args:
        run: the training's folder.
        config: what config.json says.
        model: the folder to write; it is made if it isn't there.
        codec: the folder of `mimi.safetensors` and `mimi_config.json`.
        tokenizer: the SentencePiece model.
    """
    model.mkdir(parents=True, exist_ok=True)
    save_weights(trained(run, config), model / "model.safetensors", mx.bfloat16)
    write_companions(
        model,
        config,
        mimi=codec / "mimi.safetensors",
        tokenizer=tokenizer,
        mimi_config=codec / "mimi_config.json",
    )
    size = sum(f.stat().st_size for f in model.iterdir())
    print(f"{model}: {newest_checkpoint(run).name}, {size / 1e6:.2f} MB")


def export_on_nano(run: Path, config: Mapping[str, Any], model: Path, tokenizer: Path) -> None:
    """Writes a run's newest checkpoint in bfloat16 with its tokenizer; the codec is the base's.

    In PyTorch's layout, in which weights that steps of the depth transformer share are there once.

    Args:
        run: the training's folder.
        config: what config.json says, the base too.
        model: the folder to write; it is made if it isn't there.
        tokenizer: the SentencePiece model.
    """
    model.mkdir(parents=True, exist_ok=True)
    lm = trained(run, config)
    weights = {name: value.astype(mx.bfloat16) for name, value in named_parameters(lm).items()}
    write_safetensors(model / config["moshi_name"], to_pytorch(weights, lm.config))
    shutil.copyfile(tokenizer, model / config["tokenizer_name"])
    write_json(model / "config.json", config)
    size = sum(f.stat().st_size for f in model.iterdir())
    print(f"{model}: {newest_checkpoint(run).name}, {size / 1e6:.2f} MB")
