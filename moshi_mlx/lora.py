"""Low-rank adapters on a language model's linear layers: W·x + scaling · B·(A·x).

The base may be quantized. Knows modules and their names, nothing of files or of training.
"""

from collections.abc import Mapping

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from .errors import CheckpointError

Base = nn.Linear | nn.QuantizedLinear

LORA_A, LORA_B = ".lora_A.weight", ".lora_B.weight"


class LoraLinear(nn.Module):
    """A linear layer with an adapter beside it (Hu et al. 2021, arXiv 2106.09685).

    Args:
        base: the layer; it is left as it is.
        a: [rank, inputs]; b: [outputs, rank].
        scaling: what the adapter's part is multiplied by.
    """

    def __init__(self, base: Base, a: mx.array, b: mx.array, scaling: float) -> None:
        super().__init__()
        self.base = base
        self.lora_A = _linear(a)
        self.lora_B = _linear(b)
        self._scaling = scaling

    def __call__(self, x: mx.array) -> mx.array:
        y = self.base(x)
        return y + (self._scaling * self.lora_B(self.lora_A(x))).astype(y.dtype)


def _linear(weight: mx.array) -> nn.Linear:
    layer = nn.Linear(1, 1, bias=False)
    layer.weight = weight
    return layer


def linear_layers(model: nn.Module) -> dict[str, Base]:
    """All linear layers, by path; those that have an adapter aren't among them."""
    layers = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.QuantizedLinear)
    }
    adapted = [path for path, module in model.named_modules() if isinstance(module, LoraLinear)]
    inside = tuple(f"{path}." for path in adapted)
    return {path: layer for path, layer in layers.items() if not path.startswith(inside)}


def linear_shape(layer: Base) -> tuple[int, int]:
    """Outputs and inputs, quantized or not."""
    outputs, inputs = layer.weight.shape
    if isinstance(layer, nn.QuantizedLinear):
        inputs = inputs * 32 // layer.bits
    return outputs, inputs


def adapter_pairs(
    adapter: Mapping[str, mx.array], where: str
) -> dict[str, tuple[mx.array, mx.array]]:
    """An adapter's tensors by the path of their layer: A and B.

    Raises:
        CheckpointError: a tensor has no partner.
    """
    pairs: dict[str, tuple[mx.array, mx.array]] = {}
    for name, value in adapter.items():
        end = LORA_A if name.endswith(LORA_A) else LORA_B
        path = name.removesuffix(end)
        a, b = adapter.get(path + LORA_A), adapter.get(path + LORA_B)
        if path == name or a is None or b is None:
            raise CheckpointError(f"{where}: tensor '{name}' has no partner")
        if value is a and (a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]):
            raise CheckpointError(f"{where}: tensor '{name}' {a.shape} doesn't fit {b.shape}")
        pairs[path] = (a, b)
    return pairs


def attach(model: nn.Module, adapter: Mapping[str, mx.array], scaling: float, where: str) -> None:
    """Puts an adapter beside the layers it is for, in place.

    Raises:
        CheckpointError: a tensor fits no layer.
    """
    layers = linear_layers(model)
    adapted: list[tuple[str, nn.Module]] = []
    for path, (a, b) in adapter_pairs(adapter, where).items():
        if path not in layers:
            raise CheckpointError(f"{where}: there is no layer '{path}' to adapt in the base")
        if (b.shape[0], a.shape[1]) != linear_shape(layers[path]):
            raise CheckpointError(
                f"{where}: the adapter of '{path}' is for {(b.shape[0], a.shape[1])}, the base's "
                f"layer is {linear_shape(layers[path])}"
            )
        adapted.append((path, LoraLinear(layers[path], a, b, scaling)))
    if adapted:
        model.update_modules(tree_unflatten(adapted))
