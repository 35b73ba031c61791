"""The installed commands: Ctrl-C whenever it comes, what must be there before MLX is imported."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from moshi_mlx.blas import use_openblas, with_openblas

ROOT = Path(__file__).parents[2]


def start(code: str) -> subprocess.Popen[str]:
    """A program, as a console script starts it."""
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("command", ["talk", "quantize", "train"])
def test_ctrl_c_is_silent_whenever_it_comes(command: str) -> None:
    """Also while the command is imported; where it has ended, its exit code is its own."""
    code = f"import sys; from moshi_local.launch import start_{command} as start\n"
    code += "sys.argv[1:] = ['--help']; print('here', flush=True); sys.exit(start())"
    for wait in (0.1, 0.4, 0.9):
        child = start(code)
        assert child.stdout is not None
        assert child.stdout.readline() == "here\n"
        time.sleep(wait)  # the imports take longer than the first
        child.send_signal(signal.SIGINT)
        _, errors = child.communicate(timeout=60)
        assert child.returncode in (0, 130, -signal.SIGINT), errors  # the last: Python had ended
        assert errors == ""
        assert wait > 0.1 or child.returncode == 130


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere MLX brings a fast BLAS")
def test_mlx_finds_openblas() -> None:
    """MLX's own products come from the library that moshi_mlx put before them."""
    if use_openblas() is not None:
        pytest.skip("OpenBLAS is not installed")
    code = "import moshi_mlx.backend as b, sys; print(b.slow_reason())\n"
    code += "print('openblas' in open('/proc/self/maps').read())\n"
    late = "import mlx.core\n" + code
    environment = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}
    told = [
        subprocess.run(
            [sys.executable, "-c", c], env=environment, capture_output=True, text=True, check=True
        ).stdout.splitlines()
        for c in (code, late)
    ]
    assert told[0] == ["None", "True"]
    assert "imported before moshi_mlx" in told[1][0]
    assert with_openblas({"LD_PRELOAD": "a.so"})["LD_PRELOAD"] == "libopenblas.so.0:a.so"


@pytest.mark.parametrize("module", ["recipes.nano.train_lm", "benchmarks.stt_speed"])
def test_recipes_and_benchmarks_find_it(module: str) -> None:
    """Though they import MLX before the library, as import sorters have it."""
    if use_openblas() is not None:
        pytest.skip("OpenBLAS is not installed")
    code = f"import {module}, moshi_mlx.blas; print(moshi_mlx.blas.use_openblas())"
    environment = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}
    said = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.strip() == "None"
