"""A pretended GPU: where MLX computes on the CPU, what asks for its device is told it is Metal.

Python imports this module as it starts when this folder is on PYTHONPATH, so subprocesses have the
GPU too. `make test-gpu` puts it there; on a Mac, or where MLX has a GPU, the GPU is a real one.

What follows from a GPU is then run and tested: bfloat16 by default, fused steps (where there is a
C++ compiler: MLX calls it on the CPU), the layout of the weights, the formulas behind
`backend.on_gpu`, a limit to the GPU's memory. `argpartition` sorts, as on Metal, so a seed draws as
it does there. Metal's kernels, its speed and its memory are not tested: the CPU computes.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MLX = "mlx.core"
APPLE_M2 = {
    "device_name": "Apple M2",
    "architecture": "applegpu_g14g",
    "memory_size": 17_179_869_184,
    "max_buffer_length": 9_534_832_640,
    "max_recommended_working_set_size": 11_453_251_584,
    "resource_limit": 499_000,
}
"""What `mx.device_info` says on a Mac with 16 GB."""


class Finder(MetaPathFinder):
    """Finds MLX as ever, but loads it with the pretended GPU."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != MLX:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = PretendingLoader(spec.loader)
        return spec


class PretendingLoader(Loader):
    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        pretend(module)


def pretend(mx: Any) -> None:
    """Gives `mlx.core` a GPU, its default device, if it has none."""
    gpu, info = mx.Device(mx.gpu), mx.device_info
    sort, partition = mx.argsort, mx.argpartition
    if mx.default_device() == gpu:
        return
    default = gpu

    def set_default_device(device: Any) -> None:
        nonlocal default
        default = device if isinstance(device, mx.Device) else mx.Device(device)

    def device_info(device: Any = None) -> dict[str, Any]:
        return dict(APPLE_M2) if (device or default) == gpu else info(mx.cpu)

    def argpartition(a: Any, kth: int, axis: int | None = -1, *, stream: Any = None) -> Any:
        if default == gpu:
            return sort(a, axis=axis, stream=stream)
        return partition(a, kth, axis=axis, stream=stream)

    mx.default_device = lambda: default
    mx.set_default_device = set_default_device
    mx.device_info = device_info
    mx.metal.is_available = lambda: True
    mx.set_wired_limit = lambda limit: 0
    mx.argpartition = argpartition


sys.meta_path.insert(0, Finder())
