"""What the Makefile runs on machines that are not this one: programs that stand before the PATH."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYTHONS = ["python3", "python3.14", "python3.13", "python3.12", "python3.11"]
TOO_OLD = "exit 1"
FITS = f'exec "{sys.executable}" "$@"'

pytestmark = pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")


def make(
    folder: Path,
    programs: dict[str, str],
    *arguments: str,
    target: str = "demo",
    dry: bool = True,
) -> str:
    """The lines that `make TARGET` would run, or what it says where `dry` is False."""
    for name, text in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
        (folder / name).chmod(0o755)
    done = subprocess.run(
        ["make", *(["-n"] if dry else []), target, f"VENV={folder}/venv", *arguments],
        cwd=ROOT,
        env={"PATH": f"{folder}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode == 0) == dry, done.stderr
    return done.stdout if dry else done.stderr


def test_the_first_python_that_fits(tmp_path: Path) -> None:
    """A new Mac's python3 is Apple's 3.9."""
    old = dict.fromkeys(PYTHONS, TOO_OLD)
    assert f"python3.12 -m venv {tmp_path}/venv" in make(
        tmp_path, old | {"python3.12": FITS}, "UV="
    )
    assert f"python3 -m venv {tmp_path}/venv" in make(tmp_path, old | {"python3": FITS}, "UV=")


def test_no_python_that_fits(tmp_path: Path) -> None:
    said = make(tmp_path, dict.fromkeys(PYTHONS, TOO_OLD), "UV=", dry=False)
    assert "Python 3.11 to 3.14 is needed" in said
    assert "install uv" in said


def test_uv_finds_or_fetches_one(tmp_path: Path) -> None:
    programs = dict.fromkeys(PYTHONS, TOO_OLD) | {"uv": "exit 0"}
    assert "uv venv --quiet --python '>=3.11,<3.15'" in make(tmp_path, programs)
    assert "uv venv --quiet --python python3.12 " in make(tmp_path, programs, "PYTHON=python3.12")


def test_a_hidden_environment_is_shown_again(tmp_path: Path) -> None:
    """Python skips hidden .pth files, and with them an editable install."""
    programs = dict.fromkeys(PYTHONS, FITS)
    assert "chflags" not in make(tmp_path, programs | {"uname": "echo Linux"}, "UV=")
    lines = make(tmp_path, programs | {"uname": "echo Darwin"}, "UV=").splitlines()
    install = next(i for i, line in enumerate(lines) if line.endswith("-e ."))
    assert lines[install + 1].startswith(f"chflags -R nohidden {tmp_path}/venv")


def test_float32_is_multiplied_as_float32(tmp_path: Path) -> None:
    """The reference's numbers are missed with TF32, which is MLX's default on newer GPUs."""
    programs = dict.fromkeys(PYTHONS, FITS) | {"ldconfig": "exit 0"}
    for target, program in (
        ("test", "pytest"),
        ("check", "pytest"),
        ("bench", "moshi-local bench"),
    ):
        lines = make(tmp_path, programs, "UV=", "PYTHON=python3", target=target).splitlines()
        started = [line for line in lines if f"/bin/{program}" in line]
        assert started
        assert all("MLX_ENABLE_TF32=0 " in line for line in started)


def test_the_gpu_is_real_on_a_mac_and_pretended_elsewhere(tmp_path: Path) -> None:
    programs = dict.fromkeys(PYTHONS, FITS)
    for system, pretended in (("Linux", True), ("Darwin", False)):
        named = programs | {"uname": f"echo {system}"}
        (line,) = [
            line
            for line in make(
                tmp_path, named, "UV=", "PYTHON=python3", target="test-gpu"
            ).splitlines()
            if line.endswith("/bin/pytest -m gpu")
        ]
        assert "MOSHI_TEST_GPU=1 " in line
        assert (f'PYTHONPATH="{ROOT}/tests/pretended_gpu' in line) == pretended
