"""Mutate decisions, run the tests that touch them, and list the mutants that live.

    python -m benchmarks.mutation [--since REVISION | --sample N --seed S] [PATH …]

With --since, mutants of lines that differ from a revision; with --sample, as many at random;
without both, all. What was found is kept in build/mutation, so that a run resumes and adds up;
mutants that lived are tried again when tests have changed. Exit code 1 if one lives that
tests/mutants-that-live.txt does not explain.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import random
import re
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import covering, trying
from .making import Mutant, Source

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "mutation"
EXPLAINED = ROOT / "tests" / "mutants-that-live.txt"
PARTS = ("moshi_mlx", "moshi_local", "moshi_quantize", "training", "recipes")
TESTS = [f"tests/{part}" for part in PARTS]
Result = dict[str, Any]


def changed_lines(diff: str) -> dict[str, set[int]]:
    """File → its lines that are new, from `git diff --unified=0`."""
    found: dict[str, set[int]] = defaultdict(set)
    file = ""
    for line in diff.splitlines():
        if line.startswith("+++ "):
            file = line[4:].removeprefix("b/")
        elif hunk := re.match(r"@@ -\S+ \+(\d+)(?:,(\d+))? @@", line):
            first, count = int(hunk[1]), int(hunk[2] or 1)
            found[file].update(range(first, first + count))
    return found


def explained(text: str) -> dict[str, str]:
    """`file scope: old → new` → the indented reason below it."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        if line[:1].isspace() and line.strip():
            found[list(found)[-1]] += f" {line.strip()}"
        elif line.strip() and not line.startswith("#"):
            found[line.strip()] = ""
    return found


def told(result: Result) -> str:
    """As in the file of explanations."""
    return f"{result['file']} {result['scope'] or 'module'}: {result['old']} → {result['new']}"


def line_of(result: Result) -> str:
    """For an editor, and for reading."""
    change = f"{result['old']} → {result['new']}"
    return f"{result['file']}:{result['line']}  {result['outcome']}  {change}"


def table(results: list[Result], reasons: dict[str, str]) -> str:
    """By folder, in Markdown."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for result in results:
        outcome = result["outcome"]
        if outcome != "killed" and told(result) in reasons:
            outcome = "explained"
        for folder in (str(Path(result["file"]).parent), "all"):
            counts[folder][outcome] += 1
    columns = ("killed", "lived", "untested", "explained")
    lines = [["", "mutants", *columns, "killed, %"], ["---"] * 7]
    for folder, count in sorted(counts.items(), key=lambda item: (item[0] == "all", item[0])):
        share = 100 * count["killed"] / max(1, count.total() - count["explained"])
        numbers = (count.total(), *(count[name] for name in columns))
        lines.append([folder, *map(str, numbers), f"{share:.0f}"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def python_files(paths: list[str]) -> Iterator[str]:
    """Relative to the root, of files and folders."""
    for path in paths:
        whole = ROOT / path
        for file in sorted(whole.rglob("*.py")) if whole.is_dir() else [whole]:
            yield str(file.relative_to(ROOT))


def chosen(options: argparse.Namespace) -> dict[str, tuple[Source, list[Mutant]]]:
    """The mutants that are asked for, of each file."""
    paths = options.paths or list(covering.CODE)
    lines: dict[str, set[int]] | None = None
    if options.since:
        command = ["git", "diff", "--unified=0", options.since, "--", *paths]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
        lines = changed_lines(done.stdout)
    found = {}
    for file in python_files(paths):
        if lines is None or file in lines:
            source = Source(file, (ROOT / file).read_text(encoding="utf-8"))
            kept = [x for x in source.mutants if lines is None or x.line in lines[file]]
            found[file] = source, kept
    if options.sample is not None:
        everything = [mutant for _, mutants in found.values() for mutant in mutants]
        count = min(options.sample, len(everything))
        sample = {x.id for x in random.Random(options.seed).sample(everything, count)}
        found = {f: (s, [x for x in xs if x.id in sample]) for f, (s, xs) in found.items()}
    return found


def record(trees: list[Path], test_files: list[str], again: bool) -> covering.Recording:
    """The recording, with files of tests that are new in it."""
    recording = covering.Recording(BUILD, test_files)
    new = [file for file in test_files if again or recording.is_new(file, ROOT)]
    jobs = [(file, functools.partial(covering.record, file, BUILD)) for file in new]
    for ended in trying.pool(jobs, trees):
        print(f"recorded {ended.key} in {ended.seconds:.0f} s", flush=True)
    return covering.Recording(BUILD, test_files) if new else recording


def run(options: argparse.Namespace, trees: list[Path]) -> list[Result]:
    """Try the mutants whose fate is not known; what is known of all that were asked for."""
    for tree in trees:
        trying.copy_tree(ROOT, tree)
    trying.preload()
    test_files = [f for f in python_files(TESTS) if Path(f).name.startswith("test_")]
    recording = record(trees, test_files, options.record)
    journal = BUILD / "results.jsonl"
    lines = journal.read_text(encoding="utf-8").splitlines() if journal.exists() else []
    known: dict[str, Result] = {result["id"]: result for result in map(json.loads, lines)}
    asked = chosen(options)
    fates: dict[str, Result] = {}

    def trials() -> Iterator[trying.Trial]:
        for source, mutants in asked.values():
            for mutant in mutants:
                tests = recording.tests(mutant, source.text)
                told_tests = covering.digest(json.dumps([recording.marks(tests), list(tests)]))
                result = known.get(mutant.id)
                if result and (result["outcome"] == "killed" or result["tests"] == told_tests):
                    fates[mutant.id] = result | {"line": mutant.line}
                    continue
                old, new = source.difference(mutant)
                fates[mutant.id] = {
                    "id": mutant.id, "file": mutant.file, "scope": mutant.scope,
                    "line": mutant.line, "old": old, "new": new, "tests": told_tests,
                    "outcome": "untested", "by": "", "seconds": 0.0,
                }  # fmt: skip
                if tests:
                    yield trying.Trial(mutant.id, mutant.file, source.mutated(mutant), tests)
                else:
                    keep(fates[mutant.id])

    def keep(result: Result) -> None:
        with journal.open("a", encoding="utf-8") as file:
            print(json.dumps(result, ensure_ascii=False), file=file)
        if result["outcome"] != "killed":
            print(
                f"{result['outcome']}  {result['file']}:{result['line']}  {told(result)}",
                flush=True,
            )

    for verdict in trying.try_all(trials(), trees, ROOT):
        fates[verdict.key] |= {
            "outcome": verdict.outcome, "by": verdict.by, "seconds": round(verdict.seconds, 1),
        }  # fmt: skip
        keep(fates[verdict.key])
    return list(fates.values())


def main() -> int:
    """Mutate, test, print; 1 if a mutant lives without a reason."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("paths", nargs="*", metavar="PATH", help="files and folders of code")
    parser.add_argument("--since", metavar="REVISION", help="lines that differ from it")
    parser.add_argument("--sample", type=int, metavar="N", help="as many mutants at random")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--record", action="store_true", help="record again what tests touch")
    options = parser.parse_args()
    os.nice(10)
    with tempfile.TemporaryDirectory(prefix="mutants-", ignore_cleanup_errors=True) as folder:
        trees = [Path(folder) / f"tree-{i}" for i in range(options.workers)]
        results = run(options, trees)
    reasons = explained(EXPLAINED.read_text(encoding="utf-8")) if EXPLAINED.exists() else {}
    print(table(results, reasons))
    left = [r for r in results if r["outcome"] != "killed" and told(r) not in reasons]
    for result in sorted(left, key=lambda r: (r["file"], r["line"])):
        print(line_of(result))
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
