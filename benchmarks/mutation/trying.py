"""Mutants against tests, each in a child of this process and in a copy of the tree.

A child begins with everything imported that is not ours and not MLX, which cannot be forked once
it has computed. A test that takes ten times its time, as in a loop without end, kills.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import itertools
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PRELOADED = (
    "numpy", "hypothesis", "typer.testing", "rich.live", "soundfile", "soxr", "samplerate",
    "sentencepiece", "huggingface_hub", "safetensors.numpy", "yaml", "matplotlib.pyplot",
)  # fmt: skip
OPTIONS = ("-q", "-p", "no:cacheprovider", "-p", "no:anyio", "--assert=plain")
SLOW, GRACE_SECONDS, COLLECTION_SECONDS = 10, 10.0, 60.0
MEMORY_BYTES = 16 << 30
FOLDERS = (".", "app", "quantize")
VERDICT = "verdict"
Job = Callable[[Path], int]


def preload() -> None:
    """Import what children need, where it is installed."""
    for name in PRELOADED:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def copy_tree(root: Path, target: Path) -> None:
    """What git knows or would add."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=root, stdout=subprocess.PIPE, text=True, check=True)
    for name in filter(None, done.stdout.split("\0")):
        if (root / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, target / name)


class Judge:
    """A pytest plugin: the chosen tests in their order, a limit for each, which one failed."""

    def __init__(self, seconds: dict[str, float], verdict: Path) -> None:
        self.seconds, self.verdict = seconds, verdict
        self.done: set[str] = set()

    def limit(self, name: str, seconds: float) -> None:
        """The process ends if what begins now takes longer."""
        self.verdict.write_text(name, encoding="utf-8")
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, seconds)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        order = {test: i for i, test in enumerate(self.seconds)}
        chosen = (item for item in items if item.nodeid in order and item.nodeid not in self.done)
        items[:] = sorted(chosen, key=lambda item: order[item.nodeid])

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.done.add(nodeid)
        self.limit(nodeid, GRACE_SECONDS + SLOW * self.seconds[nodeid])


def _inside(tree: Path, job: Job) -> int:
    """Start a child that does the job in the tree; its process id."""
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        os.setsid()
        os.chdir(tree)
        places = [str((tree / folder).resolve()) for folder in FOLDERS]
        os.environ["PYTHONPATH"] = os.pathsep.join(places)
        sys.path[:0] = places
        for name in [name for name in sys.modules if name.partition(".")[0] == "benchmarks"]:
            del sys.modules[name]
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        nothing = os.open(os.devnull, os.O_RDWR)
        log = os.open(f"{tree}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for number, target in ((0, nothing), (1, log), (2, log)):
            os.dup2(target, number)
        code = job(tree)
    finally:
        os._exit(code)


@dataclass(frozen=True)
class Ended:
    """A job, the tree that it ran in, its exit code (a signal's is negative) and its seconds."""

    key: str
    tree: Path
    code: int
    seconds: float


def pool(jobs: Iterable[tuple[str, Job]], trees: list[Path]) -> Iterator[Ended]:
    """Each job in a child, as many at a time as there are trees, in the order in which they end.

    A tree is used again once the caller asks for the next.
    """
    running: dict[int, tuple[str, Path, float]] = {}
    free = list(trees)

    def next_ended() -> Ended:
        child, status = os.wait()
        key, tree, began = running.pop(child)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child, signal.SIGKILL)  # what the tests have started
        return Ended(key, tree, os.waitstatus_to_exitcode(status), time.monotonic() - began)

    try:
        for key, job in jobs:
            if not free:
                ended = next_ended()
                yield ended
                free.append(ended.tree)
            tree = free.pop()
            running[_inside(tree, job)] = key, tree, time.monotonic()
        while running:
            yield next_ended()
    finally:
        for child in running:
            os.killpg(child, signal.SIGKILL)


@dataclass(frozen=True)
class Trial:
    """A file's text in place of what it is, and the tests that it has to pass, with seconds."""

    key: str
    file: str
    text: str
    seconds: dict[str, float]


@dataclass(frozen=True)
class Verdict:
    """`by` is the test that failed, or ran out of time."""

    key: str
    outcome: str
    by: str
    seconds: float


def try_all(trials: Iterable[Trial], trees: list[Path], root: Path) -> Iterator[Verdict]:
    """Whether the tests see the change; the trees are copies of the root."""
    files: dict[str, str] = {}
    stamps = itertools.count(int(time.time()))

    def jobs() -> Iterator[tuple[str, Job]]:
        for trial in trials:
            files[trial.key] = trial.file
            yield trial.key, functools.partial(_judge, trial, next(stamps))

    for ended in pool(jobs(), trees):
        file = files[ended.key]
        shutil.copy2(root / file, ended.tree / file)
        by = (ended.tree / VERDICT).read_text(encoding="utf-8")
        outcome, by = {0: ("lived", ""), 5: ("untested", "")}.get(ended.code, ("killed", by))
        if ended.code < 0:
            by += f" ({signal.Signals(-ended.code).name})"
        yield Verdict(ended.key, outcome, by, ended.seconds)


def _judge(trial: Trial, stamp: int, tree: Path) -> int:
    """Run the chosen tests until one fails; pytest's exit code."""
    (tree / trial.file).write_text(trial.text, encoding="utf-8")
    # Bytecode goes by time and size, and another mutant may be as long.
    os.utime(tree / trial.file, (stamp, stamp))
    judge = Judge(trial.seconds, tree / VERDICT)
    options = ["-x", "--tb=line", f"--basetemp={tree.parent / (tree.name + '.tmp')}"]
    outcome = pytest.ExitCode.NO_TESTS_COLLECTED
    for file, _ in itertools.groupby(trial.seconds, key=lambda test: test.partition("::")[0]):
        # File by file: most mutants are dead before the second is collected.
        judge.limit(f"{file}: collection", COLLECTION_SECONDS)
        code = pytest.main([file, *OPTIONS, *options], plugins=[judge])
        if code == pytest.ExitCode.OK:
            outcome = pytest.ExitCode.OK
        elif code != pytest.ExitCode.NO_TESTS_COLLECTED:
            return int(code)
    return int(outcome)
