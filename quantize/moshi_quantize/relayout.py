"""From a checkpoint of any layout to a folder in Kyutai's or in Hugging Face Transformers'.

Nothing is quantized. Tensors go one after the other; the folder appears whole or not at all. Knows
nothing of the command line.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import mlx.core as mx
import numpy as np

from moshi_mlx.arrays import Weights
from moshi_mlx.checkpoint import CONFIG, WEIGHTS, Checkpoint, open_checkpoint, write_companions
from moshi_mlx.errors import CheckpointError
from moshi_mlx.files import check_new_folder, new_folder, read_json, write_json
from moshi_mlx.layouts import to_pytorch
from moshi_mlx.tokenizer_json import tokenizer_json
from moshi_mlx.transformers_config import (
    generation_config,
    preprocessor_config,
    transformers_config,
)
from moshi_mlx.transformers_layout import CODEC, mimi_to_transformers, to_transformers
from moshi_mlx.weights import check_finite
from moshi_mlx.weights_mimi import read_mimi

from .companions import own_companions
from .convert import Progress, small_cache
from .writer import TensorWriter

Layout = Literal["mlx", "kyutai", "transformers"]

LARGEST_SHARD = 5_000_000_000
"""Bytes of a file of Transformers', as its own converter splits them."""
_TOKENIZER_JSON = "tokenizer.json"
_DTYPES = {mx.bfloat16: "bfloat16", mx.float16: "float16", mx.float32: "float32"}


def relayout(
    model: str | Path,
    target: str | Path,
    layout: Literal["kyutai", "transformers"],
    *,
    dtype: mx.Dtype | None = mx.bfloat16,
    base: str | Path | None = None,
    offline: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Writes a model in another layout.

    Args:
        model: what `open_checkpoint` takes, in full precision; an adapter is merged.
        target: the folder to make: absent or empty.
        layout: "kyutai": PyTorch's names; "transformers": what Hugging Face Transformers reads, the
            codec inside.
        dtype: of the language model; None leaves it.
        base: as `open_checkpoint` has it.
        offline: never use the network.
        progress: called with bytes done, bytes in all, and a name.

    Returns:
        The folder.

    Raises:
        CheckpointError: the model is quantized, or something cannot be read or written.
        ConfigError: the layout cannot say what the model is; names the field.
    """
    folder = Path(target).expanduser()
    check_new_folder(folder)
    source = open_checkpoint(model, base=base, offline=offline)
    config = source.config.lm
    weights = source.weights()
    if any(name.endswith(".scales") for name in weights):
        raise CheckpointError(
            f"{source.where}: is quantized, and the layout {layout} has full precision alone; give "
            "the original"
        )
    weights = {n: v if dtype is None else v.astype(dtype) for n, v in weights.items()}
    tensors = to_pytorch(weights, config)
    texts: dict[str, Mapping[str, object]] = {}
    if layout == "transformers":
        kind = _DTYPES[next(iter(weights.values())).dtype]
        where = source.name
        texts[CONFIG] = transformers_config(config, source.mimi_config, kind, where)
        texts["generation_config.json"] = generation_config(config, source.config.sampling)
        texts["preprocessor_config.json"] = preprocessor_config(source.mimi_config)
        texts[_TOKENIZER_JSON] = _tokenizer(source)
        texts["tokenizer_config.json"] = {"tokenizer_class": "PreTrainedTokenizerFast"}
        tensors = to_transformers(tensors, config)
        codec = read_mimi(source.files.mimi, source.mimi_config)
        theirs = mimi_to_transformers(codec, source.mimi_config)
        tensors |= {f"{CODEC}{name}": value for name, value in theirs.items()}
    del weights
    needed = sum(value.nbytes for value in tensors.values())
    needed += 0 if layout == "transformers" else source.files.mimi.stat().st_size
    with new_folder(folder, needed, source.folder) as fresh, small_cache():
        _write(fresh, tensors, source.where, progress)
        for name, text in texts.items():
            write_json(fresh / name, text)
        if layout == "kyutai":
            with own_companions(source) as (mimi, tokenizer, mimi_config):
                raw = source.config.raw
                write_companions(
                    fresh, raw, mimi=mimi, tokenizer=tokenizer, mimi_config=mimi_config
                )
    return folder


def _tokenizer(source: Checkpoint) -> dict[str, object]:
    path = source.files.tokenizer
    if path.name == _TOKENIZER_JSON:
        return read_json(path)
    return tokenizer_json(path.read_bytes(), str(path))


def _write(folder: Path, tensors: Weights, where: str, progress: Progress | None) -> None:
    """One file, or shards and their index."""
    shards = [*_shards(tensors)]
    total = sum(value.nbytes for value in tensors.values())
    index: dict[str, str] = {}
    done = 0
    for number, names in enumerate(shards, 1):
        file = WEIGHTS
        if len(shards) > 1:
            file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        specs = {name: (tensors[name].dtype, tensors[name].shape) for name in names}
        with TensorWriter(folder / file, specs) as writer:
            for name in names:
                value = tensors.pop(name)
                if mx.issubdtype(value.dtype, mx.floating):
                    check_finite(value, name, where)
                writer.write(name, value)
                index[name] = file
                done += value.nbytes
                if progress is not None:
                    progress(done, total, name)
    if len(shards) > 1:
        text = {"metadata": {"total_size": total}, "weight_map": index}
        (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(text, indent=1), encoding="utf-8")


def _shards(tensors: Weights) -> Iterator[list[str]]:
    """Names of the tensors of each file."""
    names: list[str] = []
    size = 0
    for name, value in tensors.items():
        if names and size + value.nbytes > LARGEST_SHARD:
            yield names
            names, size = [], 0
        names.append(name)
        size += int(np.prod(value.shape)) * value.dtype.size
    yield names
