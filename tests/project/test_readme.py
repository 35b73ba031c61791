"""README, contributing guide and docs: their code runs, their links and commands lead somewhere."""

import re
import shlex
from pathlib import Path

import mlx.core as mx
import pytest
import typer

from moshi_local import cli
from moshi_local.machine import prediction
from moshi_mlx import catalog
from moshi_mlx.footprint import gb
from moshi_quantize import cli as quantize_cli

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [
    README,
    ROOT / "CONTRIBUTING.md",
    ROOT / "SAFETY.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def test_python_blocks_run() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    names: dict[str, object] = {"__name__": "readme"}
    for block in blocks:
        exec(compile(block, str(README), "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert "://" in target or (page.parent / target).exists(), target


def commands(page: Path) -> list[str]:
    """Lines of shell blocks, and inline code."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"```(?:sh|bash|shell|console)?\n(.*?)```", text, re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return lines + re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))


def options_of(command: object) -> set[str]:
    return {option for p in command.params for option in (*p.opts, *p.secondary_opts)}  # type: ignore[attr-defined]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_exist(page: Path) -> None:
    """Those of the programs with their options, modules that are run, targets of make."""
    programs = {
        "moshi-local": typer.main.get_command(cli.app),
        "moshi-quantize": typer.main.get_command(quantize_cli.app),
    }
    for line in commands(page):
        line = re.sub(r"(^|\s)#.*", "", line).strip().removeprefix("$ ")
        if match := re.match(r"make (\w[\w-]*)", line):
            assert re.search(rf"^{match[1]}:", MAKEFILE, re.MULTILINE), line
        if match := re.match(r"python3? -m (\w+(?:\.\w+)+)", line):
            path = ROOT / match[1].replace(".", "/")
            assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), line
        for name, program in programs.items():
            if not line.startswith(f"{name} "):
                continue
            words = shlex.split(line.replace("…", ""))[1:]
            inner = getattr(program, "commands", {})
            default = inner.get("quantize", program) if name == "moshi-quantize" else program
            command = inner.get(words[0], default) if words else program
            deeper = getattr(command, "commands", {}) if command is not program else {}
            command = deeper.get(words[1], command) if len(words) > 1 else command
            known = options_of(command) | {"--help", "--install-completion", "--show-completion"}
            for word in words:
                if re.match(r"--?[a-z]", word):
                    assert word.partition("=")[0] in known, f"{line}: {word}"


def test_the_table_of_models_is_the_catalogues(monkeypatch: pytest.MonkeyPatch) -> None:
    """Downloads and needs as the catalogue and the footprint have them, for a GPU's bfloat16."""
    monkeypatch.setattr(prediction, "default_dtype", lambda: mx.bfloat16)
    monkeypatch.setattr(prediction, "on_gpu", lambda: True)
    text = README.read_text(encoding="utf-8")
    for entry in catalog.ENTRIES:
        if entry.bundled:
            assert f"{entry.name} (bundled" in text
            continue
        row = next(line for line in text.splitlines() if f"`{entry.name}`" in line and "GB" in line)
        shape, small = (prediction.published_shape(entry.name, bits) for bits in (None, 8))
        assert gb(entry.nbytes) in row
        if entry.preset is None:  # its shape is in its files alone
            continue
        assert shape is not None
        assert small is not None
        assert gb(shape.needs.total) in row
        assert "--kv-bits 8" not in row or gb(small.needs.total) in row
