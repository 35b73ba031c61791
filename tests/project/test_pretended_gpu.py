"""The GPU of `make test-gpu` where MLX has none: in a process that was only given its folder."""

import os
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import pytest

FOLDER = Path(__file__).parents[1] / "pretended_gpu"
PROGRAM = """
import mlx.core as mx
from moshi_mlx import backend
assert backend.on_gpu() and backend.compile_by_default()
assert backend.default_dtype() == mx.bfloat16
assert mx.metal.is_available() and mx.set_wired_limit(1 << 30) == 0
assert mx.device_info()["device_name"] == "Apple M2"
assert "memory_size" not in mx.device_info(mx.cpu)
numbers = mx.random.normal((1000,), key=mx.random.key(0))
in_order = mx.argsort(numbers)
assert mx.array_equal(mx.argpartition(numbers, 10), in_order).item()
mx.set_default_device(mx.cpu)
assert not backend.on_gpu() and "memory_size" not in mx.device_info()
assert not mx.array_equal(mx.argpartition(numbers, 10), in_order).item()
"""


@pytest.mark.skipif(mx.device_count(mx.gpu) > 0, reason="MLX has a real one here")
def test_a_process_has_it() -> None:
    paths = os.pathsep.join([str(FOLDER), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=os.environ | {"PYTHONPATH": paths},
        stderr=subprocess.PIPE,
    )
    assert done.returncode == 0, done.stderr.decode()
