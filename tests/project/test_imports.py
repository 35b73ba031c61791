"""The direction of the arrows between our modules, read from their imports."""

import ast
import importlib
import importlib.metadata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = {
    "moshi_mlx": ROOT / "moshi_mlx",
    "moshi_local": ROOT / "app" / "moshi_local",
    "moshi_quantize": ROOT / "quantize" / "moshi_quantize",
}
NETWORK = {"huggingface_hub", "requests", "httpx", "httpx2", "aiohttp", "socket", "ssl", "ftplib"}
NETWORK |= {"http", "urllib.request", "xmlrpc", "smtplib", "socketserver"}
TERMINAL_AND_SOUND = {"sounddevice", "rich", "typer", "argparse", "click"}
TORCH = {"torch", "torchaudio", "tensorflow", "jax"}

# The parts of moshi_mlx that a part may import (errors and version always; a part that is not
# listed is free). In order of DESIGN.md: from what knows nothing to what joins everything.
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "arrays": set(),
    "backend": set(),
    "catalog": set(),
    "config": set(),
    "files": set(),
    "text": set(),
    "trees": set(),
    "worker": set(),
    "events": {"text"},
    "hub": {"catalog", "files"},
    "published": {"config"},
    "safetensors": {"arrays", "files"},
    "cache": {"config"},
    "footprint": {"cache", "config", "trees"},
    "transformer": {"backend", "cache", "config", "embedding"},
    "conv": {"config"},
    "vq": {"config"},
    "seanet": {"backend", "conv", "config"},
    "mimi": {"cache", "config", "conv", "embedding", "seanet", "transformer", "vq"},
    "delays": {"arrays", "config"},
    "sampling": {"config"},
    "layouts": {"arrays", "config"},
    "lora": set(),
}
# What a part must not import, where it is freer than a list could say.
FORBIDDEN: dict[str, set[str]] = {
    "lm": {"mimi", "session", "generate", "text", "hub", "weights"},
    "depth": {"mimi", "session", "generate", "text", "hub", "weights", "lm"},
    "embedding": {"mimi", "session", "generate", "lm", "depth", "text", "hub"},
    "step": {"mimi", "session", "generate", "delays", "text", "hub", "weights"},
    "generate": {"mimi", "session", "text", "hub", "conv", "seanet", "vq"},
    "weights": {"session", "generate", "text", "hub", "checkpoint", "families"},
    "session": {"checkpoint", "families", "hub", "weights", "catalog"},
    "checkpoint": {"families", "generate", "session", "training"},
    "codec": {"lm", "depth", "generate", "session"},
}


def imports(path: Path, package: str, top: Path) -> Iterator[str]:
    """All modules that a file imports, at any depth, by absolute name."""
    parts = [package, *path.relative_to(top).with_suffix("").parts]
    here = parts[:-1]  # the package of this module, for relative imports
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def modules(package: str) -> list[tuple[str, set[str]]]:
    """(dotted name inside the package, its imports) of every file of a package that is there."""
    top = FOLDERS[package]
    return [
        (".".join(path.relative_to(top).with_suffix("").parts), set(imports(path, package, top)))
        for path in sorted(top.rglob("*.py"))
    ]


def uses(imported: set[str], names: set[str]) -> set[str]:
    """Those of `names` that are imported, or something inside them."""
    return {n for n in names if any(i == n or i.startswith(f"{n}.") for i in imported)}


def parts(imported: set[str]) -> set[str]:
    """The parts of moshi_mlx that are imported: "moshi_mlx.hub.resolve" → "hub"."""
    known = {path.stem for path in FOLDERS["moshi_mlx"].glob("*.py")} | {"training", "families"}
    split = [name.split(".") for name in imported]
    return {n[1] for n in split if n[0] == "moshi_mlx" and len(n) > 1 and n[1] in known}


def test_programs_import_the_library_and_never_each_other() -> None:
    for package, others in {
        "moshi_mlx": {"moshi_local", "moshi_quantize"},
        "moshi_local": {"moshi_quantize"},
        "moshi_quantize": {"moshi_local"},
    }.items():
        for name, imported in modules(package):
            assert not uses(imported, others), f"{package}.{name}"


def test_the_library_has_no_terminal_no_sound_card_and_no_torch() -> None:
    for name, imported in modules("moshi_mlx"):
        if not name.startswith("training."):
            assert not uses(imported, TERMINAL_AND_SOUND | TORCH), name


def test_only_hub_uses_the_network() -> None:
    for name, imported in modules("moshi_mlx"):
        assert name == "hub" or not uses(imported, NETWORK), name


def test_heavy_packages_are_imported_where_they_are_used() -> None:
    """mlx-lm brings transformers; the hub's client is not needed for local models."""
    for path in FOLDERS["moshi_mlx"].rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert not uses(set(names), {"mlx_lm", "huggingface_hub", "rustymimi"}), path


def test_arrows_inside_the_library() -> None:
    for name, imported in modules("moshi_mlx"):
        used = parts(imported) - {"errors", name}
        if name in ALLOWED:
            assert used <= ALLOWED[name], f"{name} imports {sorted(used - ALLOWED[name])}"
        wrong = used & FORBIDDEN.get(name, set())
        assert not wrong, f"{name} imports {sorted(wrong)}"
        if not name.startswith("training") and name != "__init__":
            assert "training" not in used, f"{name} imports training"


def test_config_needs_no_mlx() -> None:
    for name, imported in modules("moshi_mlx"):
        if name in ("catalog", "config", "errors", "files", "hub", "published", "text"):
            assert not uses(imported, {"mlx"}), name


def test_the_reader_of_imports_sees_them(tmp_path: Path) -> None:
    """The rules above hold nothing if `imports` is blind."""
    (tmp_path / "deep").mkdir()
    path = tmp_path / "deep" / "module.py"
    path.write_text("from ..hub import a\nfrom . import b\ndef f():\n    import c.d\n")
    seen = {"moshi_mlx.hub", "moshi_mlx.hub.a", "moshi_mlx.deep", "moshi_mlx.deep.b", "c.d"}
    assert set(imports(path, "moshi_mlx", tmp_path)) == seen
    assert uses(seen, {"c", "moshi_mlx.dee"}) == {"c"}


@pytest.mark.parametrize("package", FOLDERS)
def test_public_names(package: str) -> None:
    if not (FOLDERS[package] / "__init__.py").is_file():
        pytest.skip(f"{package} is not there yet")
    module: Any = importlib.import_module(package)
    assert module.__all__, "a public package lists its names"
    assert len(set(module.__all__)) == len(module.__all__)
    for name in module.__all__:
        assert hasattr(module, name), f"{package}.{name}"


def test_one_version() -> None:
    import moshi_mlx

    version = getattr(moshi_mlx, "__version__", None)
    assert version in (None, importlib.metadata.version("moshi-local"))
