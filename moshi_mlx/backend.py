"""Where MLX computes, and what follows from it. The one place that asks."""

import mlx.core as mx

from .blas import use_openblas

CACHE_BYTES = 256 << 20
"""What MLX may keep of freed memory on a GPU. By default that is nearly all memory, and what does
not fit a later request exactly is never used again; a frame's arrays are some megabytes."""


def on_gpu() -> bool:
    """Whether MLX computes on a GPU (Metal or CUDA) by default."""
    return bool(mx.default_device().type == mx.gpu)


def slow_reason() -> str | None:
    """Why MLX multiplies slower than it need here, and how to fix it; None if it doesn't."""
    return None if on_gpu() else use_openblas()


def default_dtype() -> mx.Dtype:
    """The type to compute in: bfloat16 on a GPU, float32 on the CPU, where it is faster."""
    return mx.bfloat16 if on_gpu() else mx.float32


def compile_by_default() -> bool:
    """Whether MLX should fuse operations: on a GPU. On the CPU that needs a C++ compiler."""
    return on_gpu()


def kv_bits_problem() -> str | None:
    """Why keys and values cannot be quantized here; None if they can."""
    if not (on_gpu() and mx.cuda.is_available()):
        return None
    return "MLX's CUDA backend cannot multiply by a part of a quantized array (tried with 0.32.4)"


def prepare_gpu(needed: int | None = None) -> str | None:
    """Bounds what MLX keeps on a GPU to what a conversation needs; best before a model is loaded.

    Little of what is freed is kept for later, and on Metal the conversation's memory stays
    resident, with a tenth to spare (macOS 15 and newer). These are settings of the process. On the
    CPU it does nothing.

    Args:
        needed: bytes that the conversation takes; None: all that the device recommends.

    Returns:
        A note for a person if the memory cannot be kept resident.
    """
    if not on_gpu():
        return None
    mx.set_cache_limit(CACHE_BYTES)
    if not mx.metal.is_available():
        return None
    try:
        most = int(mx.device_info()["max_recommended_working_set_size"])
        mx.set_wired_limit(most if needed is None else min(most, needed * 11 // 10))
    except (KeyError, RuntimeError, ValueError) as error:
        return f"the model's memory may be swapped out ({error or type(error).__name__})"
    return None
