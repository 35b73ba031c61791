"""The distribution's name, and living beside another one that has a folder of ours."""

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import moshi_mlx
from moshi_mlx.distributions import install_hint, installation_problem

ROOT = Path(__file__).parents[2]
PACKAGE = Path(moshi_mlx.__file__).parent
THEIRS = "# Copyright (c) Kyutai, all rights reserved.\n__version__ = '0.3.0'\n"


def test_no_hint_has_the_old_name() -> None:
    """`pip install moshi-mlx` would bring another project."""
    old = re.compile(
        r"moshi[-_]mlx\[|(install|upgrade)( -\S+)* ['\"]?moshi[-_]mlx\b", re.IGNORECASE
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
    code = f"import sys; sys.path.insert(0, {str(place)!r})\n"
    code += f"sys.argv[1:] = {list(command[1:])!r}\nimport runpy\n"
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
    (installed / "moshi_mlx" / "run_inference.py").write_text("")
    problem = installation_problem(installed / "moshi_mlx")
    assert problem is not None
    assert "works for now" in problem
    assert "pip uninstall -y moshi-mlx moshi-local, then pip install moshi-local" in problem
    code, errors = said(installed, "moshi_local", "--version")
    assert code == 0
    assert "works for now" in errors


@pytest.mark.parametrize("program", ["moshi_local", "moshi_quantize", "moshi_mlx.training"])
def test_theirs_came_later(installed: Path, program: str) -> None:
    """Their files have replaced ours: one line, no traceback."""
    (installed / "moshi_mlx" / "run_inference.py").write_text("")
    (installed / "moshi_mlx" / "__init__.py").write_text(THEIRS)
    code, errors = said(installed, program, "--help")
    assert code == 2
    assert errors.count("\n") == 1, errors
    assert "its files have replaced ours, and the command moshi-local is now its own" in errors


def test_theirs_was_removed(installed: Path) -> None:
    (installed / "moshi_mlx" / "__init__.py").unlink()
    # Without it the folder is a namespace, which an editable install would shadow.
    problem = installation_problem(installed / "moshi_mlx")
    assert problem is not None
    assert "its removal has taken some of our files away" in problem


def test_the_wheel_has_the_packages_alone(tmp_path: Path) -> None:
    """Built as for an upload; also says that a build needs nothing but the tree."""
    pytest.importorskip("hatchling")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("moshi_local-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {
        "moshi_mlx", "moshi_local", "moshi_quantize"
    }  # fmt: skip
    for file in ("model.safetensors", "question.wav", "sentences.txt", "MODEL_CARD.md"):
        assert f"moshi_mlx/bundled/nano/{file}" in names
    assert "moshi_mlx/py.typed" in names
