"""Where MLX computes, and what follows from it. The one place that asks."""

import mlx.core as mx


def on_gpu() -> bool:
    """Whether MLX computes on a GPU (Metal or CUDA) by default."""
    return bool(mx.default_device().type == mx.gpu)


def default_dtype() -> mx.Dtype:
    """The type to compute in: bfloat16 on a GPU, float32 on the CPU, where it is faster."""
    return mx.bfloat16 if on_gpu() else mx.float32


def compile_by_default() -> bool:
    """Whether MLX should fuse operations: on a GPU. On the CPU that needs a C++ compiler."""
    return on_gpu()
