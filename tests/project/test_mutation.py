"""The mutation tester: which changes it makes, which tests it takes, and what it says of them."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("mutmut", reason="the extra mutants is not installed")
pytest.importorskip("coverage", reason="the extra mutants is not installed")

from benchmarks.mutation import __main__ as program
from benchmarks.mutation import covering, trying
from benchmarks.mutation.making import Source

CODE = '''"""A module."""
__all__ = ["half"]
LIMIT = 3

def half(x: int, *, up: bool = True) -> int:
    """Half of it."""
    if x < LIMIT and not up:
        raise ValueError(f"{x + 1} is too small")
    log.info("half", x)
    seen.append(x)
    return max(x // 2, 1)
'''
TESTS = """import code_of_it
def test_weak(): assert code_of_it.half(8) == 4
def test_strong():
    code_of_it.half(2)
    assert code_of_it.half(1) == 1
"""


def test_decisions_are_changed_and_messages_are_not() -> None:
    source = Source("code.py", CODE)
    found = {(mutant.line, *source.difference(mutant)) for mutant in source.mutants}
    condition, result = "if x < LIMIT and not up:", "return max(x // 2, 1)"
    assert found == {
        (3, "LIMIT = 3", "LIMIT = 4"),
        (5, CODE.splitlines()[4], CODE.splitlines()[4].replace("True", "False")),
        (7, condition, "if True:"),
        (7, condition, "if False:"),
        (7, condition, "if x < LIMIT or not up:"),
        (7, condition, "if x <= LIMIT and not up:"),
        (7, condition, "if x < LIMIT and up:"),
        (10, "seen.append(x)", "pass"),
        (11, result, "return"),
        (11, result, "return min(x // 2, 1)"),
        (11, result, "return max(x / 2, 1)"),
        (11, result, "return max(x // 3, 1)"),
        (11, result, "return max(x // 2, 2)"),
    }
    assert {mutant.line for mutant in source.mutants if mutant.static} == {3, 5}
    moved = Source("code.py", "import log\n" + CODE)
    assert [x.id for x in moved.mutants] == [x.id for x in source.mutants]


def test_calls_and_assignments() -> None:
    text = "def f(a, b):\n    x = g(a, b, c=1)\n    x = x + 1\n    self.y = b\n    return x\n"
    source = Source("code.py", text)
    changes = {source.difference(mutant)[1] for mutant in source.mutants}
    assert {"x = g(b, a, c=1)", "x = g(a, b)", "x = g(a, b, c=2)", "pass", "x = x - 1"} <= changes
    deleted = [x.line for x in source.mutants if source.difference(x)[1] == "pass"]
    assert deleted == [3, 4]  # the first assignment of a name is no decision


def test_lines_of_a_difference() -> None:
    diff = "--- a/x.py\n+++ b/x.py\n@@ -3,0 +4,2 @@ def f\n+a\n+b\n@@ -9 +11 @@\n-c\n+d\n"
    assert program.changed_lines(diff) == {"x.py": {4, 5, 11}}


def test_what_is_explained_counts_for_itself() -> None:
    reasons = program.explained("# why\n\na/b.py f: x → y\n    Both are\n    the same.\n")
    assert reasons == {"a/b.py f: x → y": " Both are the same."}
    one = {"file": "a/b.py", "scope": "f", "line": 1, "old": "x", "new": "y", "outcome": "lived"}
    results = [one, one | {"new": "z"}, one | {"outcome": "killed"}, one | {"file": "c/d.py"}]
    lines = program.table(results, reasons).splitlines()
    assert lines[2:] == [
        "| a | 3 | 1 | 1 | 0 | 1 | 50 |",
        "| c | 1 | 0 | 1 | 0 | 0 | 0 |",
        "| all | 4 | 1 | 2 | 0 | 1 | 33 |",
    ]


def test_nearest_tests_come_first_and_lines_are_followed(tmp_path: Path) -> None:
    """Recorded, then tried after a line was added above and a line was written new."""
    recording = covering.Recording(tmp_path, [])
    recording.seconds = {"t.py::slow": 3.0, "t.py::fast": 1.0, "t.py::near": 2.0, "u.py::far": 0.1}
    recording.files = {"t.py": {"sources": {"code.py": "d"}}}
    (tmp_path / "sources" / "d").write_text(CODE)
    data = covering.CoverageData(str(tmp_path / "data" / "t.py"))
    data.set_context("")
    data.add_lines({"code.py": [3, 5]})
    data.set_context("t.py::near")
    data.add_lines({"code.py": [7, 10, 11]})
    data.set_context("t.py::slow")
    data.add_lines({"code.py": [7]})
    data.write()
    text = "import log\n" + CODE.replace("seen.append(x)", "seen.append(x + x)")
    chosen = {m.line: list(recording.tests(m, text)) for m in Source("code.py", text).mutants}
    near, fast, slow = "t.py::near", "t.py::fast", "t.py::slow"
    assert chosen[12] == [near, fast, slow]
    assert chosen[8] == [near, slow, fast]
    assert chosen[11] == [near, slow, fast]  # new: what touches the function
    assert chosen[4] == chosen[6] == [near, slow, fast]  # at import: the same


def test_a_mutant_is_killed_or_lives(tmp_path: Path) -> None:
    """In a copy of the tree, by the chosen tests, and not longer than they may take."""
    root, trees = tmp_path / "root", [tmp_path / "tree"]
    for folder in (root, *trees):
        folder.mkdir()
        (folder / "code_of_it.py").write_text("def half(x): return max(x // 2, 1)\n")
        (folder / "test_it.py").write_text(TESTS)
        (folder / "pytest.ini").write_text("[pytest]\n")
    weak, strong = "test_it.py::test_weak", "test_it.py::test_strong"
    lower, endless = "def half(x): return x // 2\n", "def half(x):\n    while True: pass\n"
    trials = [
        trying.Trial("same", "code_of_it.py", lower, {weak: 0.1}),
        trying.Trial("seen", "code_of_it.py", lower, {weak: 0.1, strong: 0.1}),
        trying.Trial("late", "code_of_it.py", endless, {strong: -0.95}),
    ]
    found = {v.key: (v.outcome, v.by) for v in trying.try_all(trials, trees, root)}
    assert found == {
        "same": ("lived", ""),
        "seen": ("killed", strong),
        "late": ("killed", f"{strong} (SIGALRM)"),
    }
    assert (trees[0] / "code_of_it.py").read_text().endswith("1)\n")
