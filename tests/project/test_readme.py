"""The README's Python code runs, block after block, as somebody would type it."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_python_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = README.read_text(encoding="utf-8")
    blocks = list(BLOCK.finditer(text))
    assert blocks
    names: dict[str, object] = {"__name__": "readme"}
    for block in blocks:
        line = text.count("\n", 0, block.start(1))  # so that a traceback shows the README's line
        exec(compile("\n" * line + block[1], str(README), "exec"), names)
    assert not list(tmp_path.iterdir()), "an example leaves no files behind"


def test_first_lines_are_the_two_commands() -> None:
    lines = README.read_text(encoding="utf-8").splitlines()
    assert [line.split("#")[0].strip() for line in lines[1:3]] == ["make demo", "make test"]


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README.read_text(encoding="utf-8")):
        assert "://" in target or (README.parent / target).exists(), target
