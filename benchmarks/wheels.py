"""Is there a wheel of everything for every Python and platform that we name? Needs uv.

A command, not a test: it asks the package index. It prints a line for each platform and Python,
and exits 1 if something would have to be compiled there. With `--install-cuda`, on Linux, it
installs the `cuda` extra with pip into a fresh environment (2 GB) instead, and exits 1 if the
library there is not CUDA's: the CPU's package has a file of that name too.
"""

import os
import re
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).parent.parent
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
PLATFORMS = {  # uv's name of the platform, and the extra that its users install
    "aarch64-apple-darwin": ("", "dev"),
    "x86_64-manylinux_2_35": ("", "dev", "cuda"),
    "aarch64-manylinux_2_35": ("", "cuda"),
}


def missing(platform: str, python: str, extra: str) -> str:
    """What uv says if no set of wheels fits the tested versions; "" if one does."""
    command = ["uv", "pip", "compile", "--quiet", "pyproject.toml", "--only-binary", ":all:"]
    command += ["--python-platform", platform, "--python-version", python]
    command += ["--constraints", "constraints.txt", *(["--extra", extra] if extra else [])]
    env = os.environ | {"MACOSX_DEPLOYMENT_TARGET": "14.0"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    return "" if done.returncode == 0 else done.stderr.strip()


def owner_of_library(site: Path) -> str:
    """The distribution whose libmlx.so, by its size, lies in an environment; else "none"."""
    size = (site / "mlx" / "lib" / "libmlx.so").stat().st_size
    for record in site.glob("mlx_*.dist-info/RECORD"):
        if re.search(rf"^mlx/lib/libmlx\.so,.*,{size}$", record.read_text(), re.MULTILINE):
            return record.parent.name.partition("-")[0]
    return "none"


def library_of_cuda_extra(folder: Path) -> str:
    """The owner in a new environment after `pip install .[cuda]`."""
    venv.create(folder, with_pip=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, "-c", "constraints.txt", ".[cuda]"], cwd=ROOT, check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    return owner_of_library(site)


def main() -> int:
    if sys.argv[1:] == ["--install-cuda"]:
        with tempfile.TemporaryDirectory() as name:
            owner = library_of_cuda_extra(Path(name))
        print(f"libmlx.so is of {owner}")
        return 0 if owner.startswith("mlx_cuda") else 1
    with (ROOT / "pyproject.toml").open("rb") as file:
        print("Python", tomllib.load(file)["project"]["requires-python"], "on macOS 14 and Linux")
    failed = 0
    for platform, extras in PLATFORMS.items():
        for extra in extras:
            for python in PYTHONS:
                why = missing(platform, python, extra)
                failed += bool(why)
                what = f"with {extra}" if extra else "runtime"
                print(f"{platform:24} {python:5} {what:10} {why or 'all wheels'}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
