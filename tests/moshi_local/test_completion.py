"""`moshi-local complete`, as users run it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILE = str(ROOT / "tests" / "fixtures" / "helium" / "helium" / "helium-bf16.safetensors")


def run(*arguments: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "moshi_local", "complete", *arguments]
    return subprocess.run(command, cwd=ROOT, input=given, capture_output=True, timeout=60)


def test_it_goes_on_from_an_argument_and_from_stdin() -> None:
    options = ["--model", FILE, "--max-tokens", "8", "--seed", "5"]
    done = run("hello there", *options)
    assert done.returncode == 0
    assert done.stdout.strip()
    assert b"8 tokens" in done.stderr
    again = run("-", *options, "--json", given=b"hello there")
    summary = json.loads(again.stdout)
    assert summary["text"] == done.stdout.decode()[:-1]
    assert (summary["tokens"], summary["finish_reason"]) == (8, "length")


@pytest.mark.parametrize(
    ("arguments", "given", "problem"),
    [
        (["x", "--model", "nano"], b"", "can talk, but not complete; helium-bf16, helium-q8"),
        (["x", "--model", "nowhere"], b"", "There is no model 'nowhere'. A model is one of helium"),
        (["-", "--model", FILE], b" \n", "standard input has no text"),
        (["x", "--temperature", "inf"], b"", "'--temperature': must be a finite number, is inf"),
        (["x", "--max-tokens", "0"], b"", "--max-tokens"),
        (["-", "--model", FILE], b"\xff\xfe", "not text in UTF-8"),
        (["x", "--model", FILE, "--stop", ""], b"", "empty"),
    ],
)
def test_what_is_wrong_is_one_line(arguments: list[str], given: bytes, problem: str) -> None:
    done = run(*arguments, given=given)
    assert done.returncode == 2
    assert problem in done.stderr.decode().strip().splitlines()[-1]
    assert b"Traceback" not in done.stderr
