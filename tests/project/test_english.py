"""Help, messages, docstrings and docs are written as an English-speaking engineer writes."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CODE = ["moshi_mlx", "app", "quantize", "recipes", "benchmarks", "examples"]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
WORST = re.compile(
    r"\bso many\b|\banew\b|\bof (its|their) own\b|\bfor ever\b|\bholds 80\b|\bthe way out\b"
    r"|\bin turn\b|\b(ms|bits|nats|MB|GB) a (frame|weight|step|number|token)\b"
    r"|\bsomebody\b|\bnobody\b|(?<!there )\bis no (option|token|folder|place|code|number|drift)\b"
    r"|\bno whole\b|\btimes? a second\b|\bonce a second\b",
    re.IGNORECASE,
)
# What nano hears and says is people's English.
SPOKEN = ("recipes/nano/script.py", "recipes/nano/speech.py")


def texts(path: Path) -> Iterator[str]:
    """String constants and docstrings of a module; pieces of an f-string joined."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.JoinedStr):
            yield "".join(p.value if isinstance(p, ast.Constant) else "{}" for p in node.values)  # type: ignore[misc]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


@pytest.mark.parametrize("folder", CODE)
def test_no_riddles_in_code(folder: str) -> None:
    found = {
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in (ROOT / folder).rglob("*.py")
        if str(path.relative_to(ROOT)) not in SPOKEN
        for text in texts(path)
        if (match := WORST.search(" ".join(text.split())))
    }
    assert not found, sorted(found)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_riddles_in_docs(page: Path) -> None:
    text = " ".join(page.read_text(encoding="utf-8").split())
    assert not WORST.findall(text), [m[0] for m in WORST.finditer(text)]


def test_public_docstrings_have_one_dialect() -> None:
    """Google's: sections end with a colon on their own line; no reST fields, no NumPy rules."""
    for folder in CODE:
        for path in (ROOT / folder).rglob("*.py"):
            for text in texts(path):
                assert ":param" not in text, path
                assert not re.search(r"^\s*(Parameters|Returns)\n\s*-{3,}", text, re.MULTILINE), (
                    path
                )
