"""From a checkpoint of any layout to a folder in MLX's, quantized or not, tensor by tensor.

Never holds more than a few tensors, whatever the model's size. The folder appears whole or not at
all. Knows nothing of the command line, or of how good the result is.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from moshi_mlx.arrays import Weights
from moshi_mlx.checkpoint import Checkpoint, write_companions
from moshi_mlx.errors import CheckpointError
from moshi_mlx.layouts import to_mlx
from moshi_mlx.lm import Lm
from moshi_mlx.trees import named_parameters
from moshi_mlx.voices import VOICE_SUFFIXES, VOICES
from moshi_mlx.weights import check_finite
from moshi_mlx.weights_mimi import check_mimi

from .companions import own_companions
from .recipes import Assignment, Layer, Precision, Recipe, layers_of
from .writer import Spec, TensorWriter

_RESERVED = ("README.md", "quality.json", "SOURCE_CARD.md")
_CACHE_BYTES = 256_000_000  # that MLX may keep of freed memory while it streams

Parts = dict[str, mx.array]
"""A layer's quantized tensors: weight, scales, biases."""
Emit = Callable[[Layer, Parts], None]
Progress = Callable[[int, int, str], None]
"""Called with bytes done, bytes in all (0: not counted), and what is being done."""


@dataclass(frozen=True)
class Plan:
    """What becomes of each tensor.

    `specs` are the file's tensors by their published names, `layers` all that can be quantized,
    `assignment` their precisions by path.
    """

    source: Checkpoint
    layers: tuple[Layer, ...]
    assignment: Assignment
    dtype: mx.Dtype | None
    specs: Mapping[str, Spec]
    skipped: tuple[Layer, ...]  # that should have been quantized, but no group divides them
    base: Precision | None

    @property
    def nbytes(self) -> int:
        """Of the tensors written."""
        return sum(int(np.prod(s)) * dtype.size for dtype, s in self.specs.values())

    def quantization(self) -> dict[str, Any] | None:
        """config.json's block: mlx-lm's convention, with what differs from the rest by layer."""
        if self.source.config.quantization is not None:
            return dict(self.source.config.quantization)
        if self.base is None:
            return None
        block = self.base.block
        for layer in self.layers:
            given = self.assignment[layer.path]
            if given != self.base:
                block |= dict.fromkeys(layer.names, given.block if given else False)
        return block


def make_plan(
    source: Checkpoint, recipe: Recipe, dtype: mx.Dtype | None, assignment: Assignment | None = None
) -> Plan:
    """What a recipe makes of a checkpoint.

    Args:
        source: the checkpoint.
        recipe: which precision each layer gets, unless `assignment` says it.
        dtype: of what is not quantized, and of scales and biases; None leaves it.
        assignment: precisions by path, where they were found by measuring.

    Raises:
        CheckpointError: the source doesn't match its config, or is quantized already.
        RecipeError: the recipe doesn't fit the model.
    """
    lm = source.skeleton(verify=True)
    check_mimi(source.files.mimi)  # which is copied as it is
    quantized = any(name.endswith(".scales") for name in named_parameters(lm))
    if recipe.predicate is not None and not quantized:  # it may look at the values
        lm.load_weights(list(source.weights().items()), strict=False)
    layers = () if quantized else tuple(layers_of(lm))
    config = source.config.raw
    wanted = assignment if assignment is not None else recipe.assign(layers, config)
    some = any(precision is not None for precision in wanted.values())
    if quantized and (some or recipe.default is not None):
        raise CheckpointError(f"{source.where}: is quantized already; start from the original")
    by_weight = {f"{layer.path}.weight": layer for layer in layers}
    specs: dict[str, Spec] = {}
    for name, value in source.weights().items():
        layer = by_weight.get(name)
        precision = wanted[layer.path] if layer else None
        kind = _kept(value.dtype, dtype)
        parts: dict[str, Spec] = {name: (kind, value.shape)}
        if layer is not None and precision is not None:
            quantized_specs = precision.specs(layer.shape, kind)
            parts = {f"{layer.path}.{part}": spec for part, spec in quantized_specs.items()}
        specs |= {n: parts[our] for our in parts for n in _published(our, lm)}
    chosen = [p for p in wanted.values() if p is not None]
    base = recipe.default or (max(set(chosen), key=chosen.count) if chosen else None)
    asked = recipe.assign(layers, config) if assignment is not None else wanted
    skipped = tuple(
        layer
        for layer in layers
        if recipe.default is not None and wanted[layer.path] is None and asked[layer.path] is None
        and recipe.default.fitting(layer.shape[1]) is None
    )  # fmt: skip
    return Plan(source, layers, wanted, dtype, specs, skipped, base if some else None)


def _kept(kind: mx.Dtype, dtype: mx.Dtype | None) -> mx.Dtype:
    return dtype if dtype is not None and mx.issubdtype(kind, mx.floating) else kind


def _published(name: str, lm: Lm) -> list[str]:
    """The file's names of one of our tensors."""
    return list(to_mlx({name: mx.zeros(0)}, lm.config))


def write_model(
    plan: Plan,
    path: Path,
    *,
    learned: Callable[[Emit], None] | None = None,
    progress: Progress | None = None,
) -> None:
    """Writes the weights, reading, quantizing and dropping one tensor after the other.

    Args:
        plan: what becomes of each.
        path: the new safetensors file.
        learned: called first; emits the layers that it quantizes itself.
        progress: told after each tensor.

    Raises:
        CheckpointError: a tensor has values that are not finite, or the disk doesn't take the file.
    """
    lm = plan.source.skeleton()
    weights = plan.source.weights()
    total = sum(value.nbytes for value in weights.values())
    done = 0
    by_weight = {f"{layer.path}.weight": layer for layer in plan.layers}
    with TensorWriter(path, plan.specs) as writer, small_cache():

        def put(tensors: Weights) -> None:
            for name, value in tensors.items():
                check_finite(value, name, plan.source.where)
                for published in _published(name, lm):
                    writer.write(published, value)

        def emit(layer: Layer, parts: Parts) -> None:
            nonlocal done
            put({f"{layer.path}.{part}": value for part, value in parts.items()})
            done += weights.pop(f"{layer.path}.weight").nbytes
            if progress is not None:
                progress(done, total, layer.name)

        if learned is not None:
            learned(emit)
        for name in list(weights):
            layer = by_weight.get(name)
            precision = plan.assignment[layer.path] if layer else None
            value = weights[name]
            size = value.nbytes
            value = value.astype(_kept(value.dtype, plan.dtype))
            if layer is not None and precision is not None:
                del weights[name]
                mx.eval(value)
                check_finite(value, name, plan.source.where)
                put({f"{layer.path}.{k}": v for k, v in precision.quantize(value).items()})
            else:
                del weights[name]
                put({name: value})
            del value
            done += size
            if progress is not None:
                progress(done, total, name)


@contextmanager
def small_cache() -> Iterator[None]:
    """MLX keeps little of what is freed, for a while."""
    before = mx.set_cache_limit(_CACHE_BYTES)
    try:
        yield
    finally:
        mx.set_cache_limit(before)


def write_rest(plan: Plan, folder: Path, *, link_mimi: bool = False) -> None:
    """config.json, codec, tokenizer, and the source's own card with its terms."""
    block = plan.quantization()
    config = {**plan.source.config.raw, **({} if block is None else {"quantization": block})}
    with own_companions(plan.source) as (mimi, tokenizer, mimi_config):
        write_companions(
            folder,
            config,
            mimi=mimi,
            tokenizer=tokenizer,
            mimi_config=mimi_config,
            link_mimi=link_mimi,
            reserved=_RESERVED,
        )
    copy_voices(plan.source, folder)
    if card := plan.source.card:
        shutil.copyfile(card, folder / "SOURCE_CARD.md")


def copy_voices(source: Checkpoint, folder: Path) -> None:
    """The archive or the folder of voices, of models that come with them."""
    if source.files.voices is not None:
        shutil.copyfile(source.files.voices, folder / source.files.voices.name)
    voices = [p for p in (source.folder / VOICES).glob("*") if p.suffix in VOICE_SUFFIXES]
    for path in filter(Path.is_file, voices):
        (folder / VOICES).mkdir(exist_ok=True)
        shutil.copyfile(path, folder / VOICES / path.name)
