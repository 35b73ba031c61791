"""The distribution's name, and living beside another one that has a folder of ours."""

import importlib
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import moshi_mlx
from benchmarks.wheels import owner_of_library
from moshi_mlx import MoshiError
from moshi_mlx.distributions import install_hint, installation_problem, needs_extra

ROOT = Path(__file__).parents[2]
PACKAGE = Path(moshi_mlx.__file__).parent
PROGRAMS = ["moshi_local", "moshi_quantize", "moshi_mlx.training"]
THEIRS = "# Copyright (c) Kyutai, all rights reserved.\n__version__ = '0.3.0'\n"


def test_no_hint_has_the_old_name() -> None:
    """`pip install moshi-mlx` would bring another project."""
    old = re.compile(
        r"moshi[-_]mlx\[|\b(install|upgrade|add|uvx|pipx run|--with)( -\S+)* ['\"]?moshi[-_]mlx\b",
        re.IGNORECASE,
    )
    files = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split("\0")
    names = [n for n in files if n.endswith((".py", ".md", ".toml", ".yml", "Makefile", "run"))]
    if not names:
        pytest.skip("not a git checkout")
    for name in names:
        text = (ROOT / name).read_text(encoding="utf-8") if (ROOT / name).is_file() else ""
        assert name.startswith("tests/project/") or not old.search(text), name


def test_hints_are_made_in_one_place() -> None:
    assert install_hint("train") == "pip install 'moshi-local[train]'"
    for folder in ("moshi_mlx", "app", "quantize", "recipes"):
        for path in (ROOT / folder).rglob("*.py"):
            if path.name != "distributions.py":
                assert "pip install" not in path.read_text(encoding="utf-8"), path


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """Our packages as an installer lays them, by links where nothing is changed."""
    place = tmp_path / "site"
    place.mkdir()
    (place / "moshi_mlx").mkdir()
    for path in PACKAGE.iterdir():
        if path.name not in ("__init__.py", "__pycache__"):
            (place / "moshi_mlx" / path.name).symlink_to(path)
    shutil.copyfile(PACKAGE / "__init__.py", place / "moshi_mlx" / "__init__.py")
    (place / "moshi_local").symlink_to(ROOT / "app" / "moshi_local")
    (place / "moshi_quantize").symlink_to(ROOT / "quantize" / "moshi_quantize")
    return place


def said(place: Path, *command: str) -> tuple[int, str]:
    """Runs a module in `place` as a program: its exit code, and what it says on stderr.

    Our own folders are taken off the path: behind a package without `__init__.py` they would win.
    """
    code = "import pathlib, runpy, sys\n"
    code += "sys.path = [p for p in sys.path if not pathlib.Path(p, 'moshi_mlx').is_dir()]\n"
    code += f"sys.path.insert(0, {str(place)!r})\n"
    code += f"sys.argv[1:] = {list(command[1:])!r}\n"
    code += f"runpy.run_module({command[0]!r}, run_name='__main__', alter_sys=True)\n"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=place, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stderr


def test_alone_all_is_well(installed: Path) -> None:
    assert installation_problem() is None
    assert installation_problem(installed / "moshi_mlx") is None


def test_theirs_came_first(installed: Path) -> None:
    """Ours works, and says at import what will break it."""
    (installed / "moshi_mlx" / "local.py").write_text("")
    problem = installation_problem(installed / "moshi_mlx")
    assert problem is not None
    assert "works for now" in problem
    assert "pip uninstall -y moshi-mlx moshi-local, then pip install moshi-local" in problem
    code, errors = said(installed, "moshi_local", "--version")
    assert (code, errors) == (0, f"{problem}\n")


@pytest.mark.parametrize("program", PROGRAMS)
def test_theirs_came_later(installed: Path, program: str) -> None:
    """Their files have replaced ours: one line, no traceback."""
    (installed / "moshi_mlx" / "local.py").write_text("")
    (installed / "moshi_mlx" / "__init__.py").write_text(THEIRS)
    code, errors = said(installed, program, "--help")
    assert code == 2, errors
    assert errors.count("\n") == 1, errors
    assert "its files have replaced ours, and the command moshi-local is now its own" in errors


@pytest.mark.parametrize("program", PROGRAMS)
def test_theirs_was_removed(installed: Path, program: str) -> None:
    """What both owned is gone: `moshi_mlx` is a namespace without content, one line again."""
    (installed / "moshi_mlx" / "__init__.py").unlink()
    code, errors = said(installed, program, "--help")
    assert code == 2, errors
    assert errors.count("\n") == 1, errors
    assert "its removal has taken some of our files away" in errors


@pytest.mark.parametrize("more", ["", "import a_package_that_is_not_there\n"])
def test_theirs_hides_a_checkout(installed: Path, more: str) -> None:
    """Beside an editable install nothing is overwritten, but theirs is found first."""
    theirs = installed / "moshi_mlx"
    shutil.rmtree(theirs)
    theirs.mkdir()
    (theirs / "__init__.py").write_text(THEIRS + more)
    info = installed / "moshi_mlx-0.3.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: moshi-mlx\nVersion: 0.3.0\n")
    (info / "RECORD").write_text("moshi_mlx/__init__.py,,\n")
    code, errors = said(installed, "moshi_local", "--help")
    assert code == 2, errors
    assert errors.count("\n") == 1, errors
    assert f"{theirs} is another moshi_mlx" in errors
    assert "hides the library of this checkout. To fix it: pip uninstall moshi-mlx, or" in errors


def test_no_driver_for_mlx_on_cuda(installed: Path) -> None:
    """An extension module whose library is not there, as MLX for CUDA is without the driver."""
    compiler = shutil.which("gcc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs gcc on Linux")
    (installed / "mlx").mkdir()
    (installed / "mlx" / "__init__.py").touch()
    empty = installed / "empty.c"
    empty.touch()
    build = [compiler, "-shared", "-fPIC", str(empty), "-Wl,--no-as-needed"]
    driver = installed / "libcuda.so.1"
    subprocess.run([*build, f"-Wl,-soname,{driver.name}", "-o", str(driver)], check=True)
    subprocess.run([*build, str(driver), "-o", str(installed / "mlx" / "core.so")], check=True)
    driver.unlink()
    code, errors = said(installed, "moshi_local", "--help")
    assert code == 2, errors
    assert errors.count("\n") == 1, errors
    assert "NVIDIA's driver is missing. To fix it: install the driver, or replace" in errors


def test_an_import_that_needs_an_extra_says_which() -> None:
    with (
        pytest.raises(MoshiError, match=r"^plots need it: pip install 'moshi-local\[train\]'$"),
        needs_extra("train", "plots need it"),
    ):
        importlib.import_module("a_package_that_is_not_there")


def test_whose_library_an_environment_has(tmp_path: Path) -> None:
    """MLX's packages for the CPU and for CUDA have a file of one name; the later one stays."""
    for name, size in (("mlx_cpu", 3), ("mlx_cuda_12", 5)):
        info = tmp_path / f"{name}-0.32.4.dist-info"
        info.mkdir()
        (info / "RECORD").write_text(f"mlx/lib/libmlx.so,sha256=abc,{size}\n{name}/x,,\n")
    library = tmp_path / "mlx" / "lib" / "libmlx.so"
    library.parent.mkdir(parents=True)
    for size, owner in ((3, "mlx_cpu"), (5, "mlx_cuda_12"), (4, "none")):
        library.write_bytes(bytes(size))
        assert owner_of_library(tmp_path) == owner


def test_a_build_has_the_packages_alone(tmp_path: Path) -> None:
    """Built as for an upload: the wheel from the unpacked source, which needs nothing else."""
    pytest.importorskip("hatchling")

    def build(folder: Path, kind: str) -> Path:
        command = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(tmp_path)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        (built,) = tmp_path.glob({"sdist": "*.tar.gz", "wheel": "*.whl"}[kind])
        return built

    archive = build(ROOT, "sdist")
    assert archive.stat().st_size < 31e6
    with tarfile.open(archive) as source:
        source.extractall(tmp_path, filter="data")
    (unpacked,) = (path for path in tmp_path.iterdir() if path.is_dir())
    for name in ("constraints.txt", "SAFETY.md", "LICENSE", "README.md"):
        assert (unpacked / name).read_bytes() == (ROOT / name).read_bytes()
    for name in ("examples", "docs"):
        assert any((unpacked / name).iterdir())
    assert not (unpacked / "tests").exists()
    wheel = build(unpacked, "wheel")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {
        "moshi_mlx", "moshi_local", "moshi_quantize"
    }  # fmt: skip
    for file in ("model.safetensors", "question.wav", "sentences.txt", "MODEL_CARD.md"):
        assert f"moshi_mlx/bundled/nano/{file}" in names
    for small in ("nano-stt", "nano-tts"):
        for file in ("model.safetensors", "tokenizer.model", "config.json", "MODEL_CARD.md"):
            assert f"moshi_mlx/bundled/{small}/{file}" in names
    for file in ("index.html", "style.css", "page.js", "worklets.js"):
        assert f"moshi_local/server/page/{file}" in names
    assert "moshi_mlx/py.typed" in names
    assert wheel.stat().st_size < 31e6
