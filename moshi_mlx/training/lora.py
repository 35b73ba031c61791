"""Training of low-rank adapters: which layers get one, what is frozen, and their files.

Files have the published names, so they exchange with moshi-finetune and load in PyTorch's Moshi.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..arrays import Weights
from ..checkpoint import ADAPTER, CONFIG
from ..embedding import Embedding
from ..files import write_json
from ..layouts import to_pytorch
from ..lm import Lm
from ..lora import LoraLinear, attach, linear_layers, linear_shape
from ..safetensors import write_safetensors
from ..trees import flat
from ..weights import read_adapter
from .folder import whole_folder
from .losses import Prepared, TeacherLogits, logits_of, loss_sums


def add_lora(
    lm: Lm, rank: int, scaling: float, train_embeddings: bool = False, seed: int = 0
) -> None:
    """Freezes a model and puts an adapter beside every linear layer, in place.

    A begins at random, B at zero, so the model is the same until a step is made.

    Args:
        lm: the base, full-precision or quantized.
        rank: inner width of the adapters.
        scaling: what their part is multiplied by.
        train_embeddings: the embedding tables are trained too, in full; they cannot be quantized.
        seed: of A.
    """
    key = mx.random.key(seed)
    adapter: Weights = {}
    for path, layer in linear_layers(lm).items():
        outputs, inputs = linear_shape(layer)
        key, own = mx.random.split(key)
        bound = inputs**-0.5
        adapter[f"{path}.lora_A.weight"] = mx.random.uniform(-bound, bound, (rank, inputs), key=own)
        adapter[f"{path}.lora_B.weight"] = mx.zeros((outputs, rank))
    attach(lm, adapter, scaling, "a new adapter")
    freeze_base(lm, train_embeddings)


def continue_lora(lm: Lm, path: Path, scaling: float, train_embeddings: bool = False) -> None:
    """As `add_lora`, with a saved adapter that training resumes from."""
    adapter, full = read_adapter(path, lm.config)
    attach(lm, adapter, scaling, str(path))
    lm.load_weights(list(full.items()), strict=False)
    freeze_base(lm, train_embeddings)


def freeze_base(lm: Lm, train_embeddings: bool) -> None:
    """Leaves only the adapters trainable, and the embedding tables if asked."""
    lm.freeze()
    for module in lm.modules():
        if isinstance(module, LoraLinear):
            module.lora_A.unfreeze()
            module.lora_B.unfreeze()
        elif train_embeddings and isinstance(module, Embedding):
            module.unfreeze()


@contextmanager
def without_adapters(lm: Lm) -> Iterator[None]:
    """The base alone, for a while."""
    layers = [module for module in lm.modules() if isinstance(module, LoraLinear)]
    scalings = [layer._scaling for layer in layers]
    for layer in layers:
        layer._scaling = 0.0
    try:
        yield
    finally:
        for layer, scaling in zip(layers, scalings, strict=True):
            layer._scaling = scaling


def rehearsing_objective(lm: Lm, scales: mx.array, *arrays: mx.array) -> tuple[mx.array, mx.array]:
    """`losses.objective` of a model with adapters that is not to forget.

    The last array, bool [B], marks sequences to rehearse: there the model learns to say what the
    base says, not what the sequence has.
    """
    *parts, sequences = arrays
    prepared = Prepared(*parts)
    with without_adapters(lm):
        text, audio = logits_of(lm, prepared)
    text = mx.stop_gradient(text)
    teacher = TeacherLogits(sequences, text, None if audio is None else mx.stop_gradient(audio))
    sums = loss_sums(lm, prepared, teacher)
    return (sums[:3] * scales).sum(), sums


def adapter_of(lm: Lm) -> Weights:
    """What is trained of a model with adapters, by our names."""
    return flat(lm.trainable_parameters())


def save_adapter(
    lm: Lm, folder: Path, raw_config: Mapping[str, Any], rank: int, scaling: float
) -> None:
    """Writes `lora.safetensors` with the published names, and the `config.json` for it.

    The config is the base's with `lora`, `lora_rank` and `lora_scaling`: what PyTorch's Moshi
    takes as `--lora-weight` and `--config-path`, and `moshi_mlx.load(base, lora=folder)`.

    Raises:
        MoshiError: the disk refuses; what was there before stays.
    """
    config = {**raw_config, "lora": True, "lora_rank": rank, "lora_scaling": scaling}
    with whole_folder(folder, keep_others=True) as fresh:
        write_safetensors(fresh / ADAPTER, to_pytorch(adapter_of(lm), lm.config))
        write_json(fresh / CONFIG, config)
