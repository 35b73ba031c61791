"""Where tests compute, and the programs that they start to compare numbers with."""

import os

import mlx.core as mx
import pytest

from moshi_mlx.backend import on_gpu

GPU = "MOSHI_TEST_GPU"


def set_device() -> None:
    """The CPU everywhere, since numbers are compared in float32; a GPU with MOSHI_TEST_GPU=1.

    Raises:
        pytest.UsageError: there is no GPU.
    """
    if os.environ.get(GPU) != "1":
        mx.set_default_device(mx.cpu)
    elif not on_gpu():
        raise pytest.UsageError(f"{GPU}=1, and MLX has no GPU: use `make test-gpu`")
