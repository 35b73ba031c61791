"""The direction of the arrows between our modules, read from their imports."""

import ast
import importlib
import importlib.metadata
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
FOLDERS = {
    "moshi_mlx": ROOT / "moshi_mlx",
    "moshi_local": ROOT / "app" / "moshi_local",
    "moshi_quantize": ROOT / "quantize" / "moshi_quantize",
    "recipes": ROOT / "recipes",
}
WHEEL = ("moshi_mlx", "moshi_local", "moshi_quantize")
NETWORK = {"huggingface_hub", "requests", "httpx", "httpx2", "aiohttp", "socket", "ssl", "ftplib"}
NETWORK |= {"http", "urllib.request", "xmlrpc", "smtplib", "socketserver"}
TERMINAL_AND_SOUND = {"sounddevice", "rich", "typer", "argparse", "click"}
TORCH = {"torch", "torchaudio", "tensorflow", "jax"}

# The parts of moshi_mlx that a part may import (errors and arguments always; a part that is not
# listed is free), from what knows nothing to what joins everything.
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "arrays": set(),
    "arguments": {"arrays"},
    "backend": {"blas"},
    "blas": set(),
    "catalog": set(),
    "config": set(),
    "distributions": set(),
    "files": {"formats"},
    "formats": set(),
    "outputs": {"catalog", "files", "hub"},
    "program": set(),
    "text": {"files", "formats", "tokenizer_json"},
    "tokenizer_json": set(),
    "trees": set(),
    "worker": {"threads"},
    "threads": set(),
    "sounds": {"arrays", "distributions", "formats"},
    "adapter_formats": {"arrays", "fields"},
    "bases": {"catalog", "config", "files", "hub", "published"},
    "text_models": {
        "arrays",
        "backend",
        "catalog",
        "fields",
        "config",
        "files",
        "hub",
        "lm",
        "published",
        "safetensors",
        "text",
        "weights",
    },
    "stream": set(),
    "lora": set(),
    "loudness": {"arrays"},
    "torch_files": set(),
    "voices": {
        "arrays",
        "catalog",
        "codec",
        "formats",
        "loudness",
        "safetensors",
        "threads",
        "torch_files",
    },
    "events": {"text"},
    "activity": {"arrays", "events"},
    "hub": {
        "catalog",
        "files",
        "formats",
        "published",
        "safetensors",
        "tokenizer_json",
        "transformers_config",
    },
    "fields": set(),
    "transformers_config": {"config", "fields"},
    "transformers_layout": {"arrays", "config"},
    "published": {"config", "fields", "transformers_config"},
    "safetensors": {"arrays", "files", "formats"},
    "state": {"config", "safetensors", "threads"},
    "cache": {"config"},
    "footprint": {"cache", "config", "trees"},
    "transformer": {"backend", "cache", "config", "embedding"},
    "conv": {"config"},
    "vq": {"config"},
    "seanet": {"backend", "conv", "config"},
    "mimi": {
        "cache",
        "config",
        "conv",
        "embedding",
        "seanet",
        "state",
        "threads",
        "transformer",
        "vq",
    },
    "delays": {"arrays", "config"},
    "sampling": {"config"},
    "guidance": set(),
    "layouts": {"adapter_formats", "arrays", "config", "transformers_layout"},
}
# What a part must not import, where it is freer than a list could say.
FORBIDDEN: dict[str, set[str]] = {
    "lm": {"mimi", "session", "generate", "text", "hub", "weights"},
    "depth": {"mimi", "session", "generate", "text", "hub", "weights", "lm"},
    "embedding": {"mimi", "session", "generate", "lm", "depth", "text", "hub"},
    "step": {"mimi", "session", "generate", "delays", "text", "hub", "weights"},
    "generate": {"mimi", "session", "text", "hub", "conv", "seanet", "vq", "weights"},
    "weights": {"session", "generate", "text", "hub", "checkpoint", "families"},
    "session": {"checkpoint", "families", "hub", "weights", "catalog"},
    "codec": {"lm", "depth", "generate", "session"},
    "checkpoint": {"families", "generate", "session", "training"},
}
# Rooms of the app, which never import each other, and what any of them may import.
ROOMS = {"audio", "terminal", "observers", "machine", "server"}
SHARED = {"events", "port", "report", "platform", "options"}
EXCEPTIONS = {("machine", "audio.devices")}
# Modules of the app that join rooms; all others are in a room or shared.
JOINING = {"__init__", "__main__", "arguments", "assembly", "captions", "chat", "cli"}
JOINING |= {"beside", "completion"}
JOINING |= {
    "config_file",
    "conversation",
    "engine",
    "evaluation",
    "first_start",
    "launch",
    "listening",
}
JOINING |= {"loop", "offline", "piping", "role", "serving", "speaking", "texts", "transcription"}
JOINING |= {"translation", "voices", "voice_services", "whole_words", "word_formats"}
JOINING |= {"captioned", "speech_encoders"}


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
    """(dotted name inside the package, its imports) of every file of a package."""
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
            outside = others | {"recipes", "benchmarks", "tests", "examples"}
            assert not uses(imported, outside), f"{package}.{name}"


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
        used = parts(imported) - {"errors", "arguments", name}
        if name in ALLOWED:
            assert used <= ALLOWED[name], f"{name} imports {sorted(used - ALLOWED[name])}"
        wrong = used & FORBIDDEN.get(name, set())
        assert not wrong, f"{name} imports {sorted(wrong)}"
        if not name.startswith("training") and name != "__init__":
            assert "training" not in used, f"{name} imports training"


def test_rooms_of_the_app() -> None:
    """They import what they share and the library, never each other."""
    top = FOLDERS["moshi_local"]
    known = {".".join(p.relative_to(top).with_suffix("").parts) for p in top.rglob("*.py")}
    for name, imported in modules("moshi_local"):
        room = name.partition(".")[0]
        used = {i.removeprefix("moshi_local.") for i in imported if i.startswith("moshi_local.")}
        used = {u for u in used if u in known or u in ROOMS}
        if room in ROOMS:
            outside = {u for u in used if u.partition(".")[0] != room} - SHARED
            outside -= {there for here, there in EXCEPTIONS if here == room}
            outside -= {there.partition(".")[0] for here, there in EXCEPTIONS if here == room}
            assert not outside, f"{name} imports {sorted(outside)}"
        elif name in SHARED:
            assert used <= SHARED, f"{name} imports {sorted(used - SHARED)}"
        else:
            assert name in JOINING, f"{name} is in no room, and not among those that join them"


def test_no_import_goes_in_circles() -> None:
    """Over all packages, imports inside functions too."""
    known: dict[str, set[str]] = {}
    for package in FOLDERS:
        for name, imported in modules(package):
            whole = f"{package}.{name}".removesuffix(".__init__")
            known[whole] = imported
    arrows = {
        name: {i for i in imported if i in known} - {name} for name, imported in known.items()
    }
    # A package's own parts import their package by `from . import part`: that is not its content.
    for name, targets in arrows.items():
        arrows[name] = {t for t in targets if not name.startswith(f"{t}.")}
    left = {name: set(targets) for name, targets in arrows.items()}
    while leaves := [name for name, targets in left.items() if not targets & left.keys()]:
        for name in leaves:
            del left[name]
    assert not left, {name: sorted(targets & left.keys()) for name, targets in left.items()}


def test_a_name_is_defined_once() -> None:
    """A public class, function or constant at the top of a module means one thing."""
    common = {"main", "app", "T", "FAMILY"}
    places: dict[str, list[str]] = defaultdict(list)
    for package in WHEEL:
        for path in sorted(FOLDERS[package].rglob("*.py")):
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                names: list[str] = []
                if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                    names = [node.name]
                elif isinstance(node, ast.Assign):
                    names = [t.id for t in node.targets if isinstance(t, ast.Name)]
                elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                    names = [node.target.id]
                for name in names:
                    where = str(path.relative_to(ROOT))
                    public = not name.startswith("_") and name not in common
                    if public and where not in places[name]:  # an overload is there twice
                        places[name].append(where)
    double = {name: where for name, where in places.items() if len(where) > 1}
    assert not double, double


def test_config_needs_no_mlx() -> None:
    for name, imported in modules("moshi_mlx"):
        if name in (
            "catalog",
            "config",
            "distributions",
            "errors",
            "files",
            "hub",
            "published",
            "text",
        ):
            assert not uses(imported, {"mlx"}), name


def brought_by_the_base() -> set[str]:
    """Import names of what an install without extras brings, here and now."""
    seen: set[str] = set()
    waiting = ["moshi-local"]
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in seen:
            continue
        with suppress(importlib.metadata.PackageNotFoundError):
            for line in importlib.metadata.requires(name) or ():
                needed = Requirement(line)
                if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                    waiting.append(needed.name)
                    # mlx[cpu], the one extra that the base asks for
                    waiting += [f"{needed.name}-{extra}" for extra in needed.extras]
            seen.add(name)
    found = importlib.metadata.packages_distributions().items()
    return {top for top, owners in found if seen & {canonicalize_name(o) for o in owners}}


def test_every_module_of_the_wheel_is_imported_without_the_extras() -> None:
    """In a process that finds the base dependencies and the standard library, nothing else."""
    names = [
        f"{package}.{name}".removesuffix(".__init__")
        for package in WHEEL
        for name, _ in modules(package)
    ]
    base = brought_by_the_base() | {*WHEEL, *sys.stdlib_module_names}
    assert not base & {"torch", "matplotlib", "pyinstrument", "pocketsphinx", "pystoi", "pytest"}
    base.discard("yaml")  # the hub's client brings it for itself
    code = f"""
import importlib, sys
BASE = {base!r}

class OnlyTheBase:
    def find_spec(name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in BASE and not top.startswith("_"):
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, OnlyTheBase)
for name in {names!r}:
    importlib.import_module(name)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_reader_of_imports_sees_them(tmp_path: Path) -> None:
    """The rules above hold nothing if `imports` is blind."""
    (tmp_path / "deep").mkdir()
    path = tmp_path / "deep" / "module.py"
    path.write_text("from ..hub import a\nfrom . import b\ndef f():\n    import c.d\n")
    seen = {"moshi_mlx.hub", "moshi_mlx.hub.a", "moshi_mlx.deep", "moshi_mlx.deep.b", "c.d"}
    assert set(imports(path, "moshi_mlx", tmp_path)) == seen
    assert uses(seen, {"c", "moshi_mlx.dee"}) == {"c"}


@pytest.mark.parametrize("package", WHEEL)
def test_public_names(package: str) -> None:
    """What a package lists is there; what it brings of its own and doesn't use itself is listed."""
    module: Any = importlib.import_module(package)
    assert module.__all__, "a public package lists its names"
    assert len(set(module.__all__)) == len(module.__all__)
    for name in module.__all__:
        assert hasattr(module, name), f"{package}.{name}"
    nodes = list(ast.walk(ast.parse(Path(module.__file__).read_text(encoding="utf-8"))))
    own = [node for node in nodes if isinstance(node, ast.ImportFrom) and node.level]
    brought = {alias.asname or alias.name for node in own for alias in node.names}
    used = {node.id for node in nodes if isinstance(node, ast.Name)}
    assert brought - used - set(module.__all__) == set()
    assert set(getattr(module, "_PARTS", module.__all__)) == set(module.__all__)


def test_every_module_that_the_rules_name_is_there() -> None:
    """A rule for a module that was renamed holds nothing."""
    library = {path.stem for path in FOLDERS["moshi_mlx"].glob("*.py")} | {"families", "training"}
    named = {*ALLOWED, *FORBIDDEN}.union(*ALLOWED.values(), *FORBIDDEN.values())
    assert named <= library
    app = {path.stem for path in FOLDERS["moshi_local"].iterdir()}
    assert app | {"server"} >= ROOMS | SHARED | JOINING


def test_names_that_programs_may_have() -> None:
    """What was public in the first version still is."""
    import moshi_mlx

    names = """AudioDeviceError AudioFileError CheckpointError Codec ConfigError Event Frame
    HubError
    Lm LmConfig LmOutput Mimi MimiConfig ModelConfig Moshi MoshiError Sampling Session SessionError
    SpeechEnded SpeechStarted TextSaid TextTokenizer Timing TokenizerError Word WordSpoken
    load load_mimi"""
    assert set(names.split()) <= set(moshi_mlx.__all__)


def test_one_version() -> None:
    import moshi_mlx

    assert moshi_mlx.__version__ == importlib.metadata.version("moshi-local")
