"""Which tests touch which line, and how long they take: recorded once for each file of tests.

A recording outlives changes of the code: lines are followed to where they have moved.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from coverage import Coverage, CoverageData

from .making import Mutant
from .trying import OPTIONS

CODE = ("moshi_mlx", "app/moshi_local", "quantize/moshi_quantize", "recipes")
NEAREST_SECONDS, OTHERS_SECONDS = 30.0, 10.0
"""Of tests for one mutant at most, as recorded."""
COLLECTION_SECONDS = 1.0


class Recorder:
    """A pytest plugin: what each test touches, and its seconds where it passes."""

    def __init__(self, coverage: Coverage) -> None:
        self.coverage = coverage
        self.seconds: dict[str, float] = defaultdict(float)
        self.failed: set[str] = set()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.coverage.switch_context(nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] += report.duration
        if not report.passed:
            self.failed.add(report.nodeid)


def record(test_file: str, into: Path, tree: Path) -> int:
    """Run the tests of a file here, in the tree, and keep what they touch."""
    coverage = Coverage(
        data_file=str(into / "data" / _name(test_file)),
        include=[f"{folder}/*" for folder in CODE],
        config_file=False,
        data_suffix=None,
    )
    coverage.set_option("run:relative_files", True)
    coverage.erase()
    recorder = Recorder(coverage)
    coverage.start()
    pytest.main([test_file, *OPTIONS, "-m", "not device"], plugins=[recorder])
    coverage.stop()
    coverage.save()
    sources = {}
    for file in coverage.get_data().measured_files():
        text = (tree / file).read_text(encoding="utf-8")
        sources[file] = digest(text)
        (into / "sources" / sources[file]).write_text(text, encoding="utf-8")
    passed = {t: s for t, s in recorder.seconds.items() if t not in recorder.failed}
    told = {
        "digest": digest((tree / test_file).read_text(encoding="utf-8")),
        "sources": sources,
        "seconds": passed,
        "failed": sorted(recorder.failed),
    }
    (into / "tests" / _name(test_file)).write_text(json.dumps(told), encoding="utf-8")
    return 0


class Recording:
    """What is recorded of some files of tests in a folder."""

    def __init__(self, folder: Path, test_files: Iterable[str]) -> None:
        self.folder = folder
        for name in ("data", "sources", "tests"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        self.files: dict[str, dict[str, Any]] = {}
        for file in test_files:
            path = folder / "tests" / _name(file)
            if path.exists():
                self.files[file] = json.loads(path.read_text(encoding="utf-8"))
        self.seconds = {t: s for told in self.files.values() for t, s in told["seconds"].items()}
        self._touching: dict[str, dict[int, set[str]]] = {}

    def is_new(self, test_file: str, root: Path) -> bool:
        """Whether it has changed since, or was never recorded."""
        text = (root / test_file).read_text(encoding="utf-8")
        return self.files.get(test_file, {}).get("digest") != digest(text)

    def touching(self, file: str, text: str) -> dict[int, set[str]]:
        """Lines of `text` that were there when recorded → tests that touch them, "" at import."""
        if file in self._touching:
            return self._touching[file]
        found: dict[int, set[str]] = defaultdict(set)
        moved: dict[str, dict[int, int]] = {}
        for test_file, told in self.files.items():
            digest = told["sources"].get(file)
            if digest is None:
                continue
            if digest not in moved:
                moved[digest] = _moved((self.folder / "sources" / digest).read_text(), text)
            data = CoverageData(str(self.folder / "data" / _name(test_file)))
            data.read()
            for line in moved[digest].values():
                found[line]  # was there, even if no test touches it
            for line, tests in data.contexts_by_lineno(file).items():
                if line in moved[digest]:
                    found[moved[digest][line]].update(tests)
        self._touching[file] = found
        return found

    def tests(self, mutant: Mutant, text: str) -> dict[str, float]:
        """Those that can kill it → seconds, in the order in which to try.

        First those that touch its statement, or what is around it where that runs at import or is
        new; then the others of the same files, since what one test has made may serve the next.
        Files with many quick tests come first.
        """
        touching = self.touching(mutant.file, text)
        known = any(line in touching for line in mutant.lines)
        nearest = set().union(*(touching.get(line, set()) for line in mutant.lines))
        if mutant.static or "" in nearest or not known:
            whole = range(1, text.count("\n") + 1)
            for lines in (mutant.around, whole):
                nearest |= set().union(*(touching.get(line, set()) for line in lines))
                if nearest - {""}:
                    break
        nearest &= self.seconds.keys()
        if not nearest and not mutant.static:
            return {}
        files = {_file(test) for test in nearest} or set(self.files)
        others = {t for t in self.seconds if _file(t) in files} - nearest
        return self._capped(nearest, NEAREST_SECONDS) | self._capped(others, OTHERS_SECONDS)

    def marks(self, tests: Iterable[str]) -> dict[str, str]:
        """Their files, and what these were when recorded."""
        return {file: self.files[file]["digest"] for file in sorted({_file(t) for t in tests})}

    def _capped(self, tests: set[str], left: float) -> dict[str, float]:
        """The quickest, file by file; one at least."""
        by_file: dict[str, list[str]] = defaultdict(list)
        for test in sorted(tests, key=lambda test: (self.seconds[test], test)):
            left -= self.seconds[test]
            if left >= 0 or not by_file:
                by_file[_file(test)].append(test)

        def cost(file: str) -> float:
            total = COLLECTION_SECONDS + sum(self.seconds[test] for test in by_file[file])
            return total / len(by_file[file]) ** 2

        return {t: self.seconds[t] for file in sorted(by_file, key=cost) for t in by_file[file]}


def _moved(before: str, after: str) -> dict[int, int]:
    """Numbers of lines that are the same in both."""
    lines = before.splitlines(), after.splitlines()
    blocks = difflib.SequenceMatcher(None, *lines, autojunk=False).get_matching_blocks()
    return {b.a + i + 1: b.b + i + 1 for b in blocks for i in range(b.size)}


def digest(text: str) -> str:
    return hashlib.sha1(text.encode()).hexdigest()[:16]


def _file(test: str) -> str:
    return test.partition("::")[0]


def _name(test_file: str) -> str:
    return test_file.replace("/", ".")
