"""`moshi-local pipe`, as another program runs it."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from moshi_mlx.sounds import open_sound

ROOT = Path(__file__).parents[2]
QUESTION = ROOT / "moshi_mlx" / "bundled" / "nano" / "question.wav"
COMMAND = [sys.executable, "-m", "moshi_local", "pipe", "--seed", "0"]


def samples(extra: int = 0) -> bytes:
    """A spoken question and time for the answer, and some samples that make no whole frame."""
    pcm = open_sound(QUESTION).read(24_000).mean(axis=0)[:36_000]
    pcm = np.pad(pcm, (0, 84_480 + extra))
    return bytes((pcm * 32767).astype("<i2").tobytes())


def test_as_many_samples_come_out_as_went_in_and_nothing_else(tmp_path: Path) -> None:
    """Once at once with events on stderr; once in odd pieces, with events in a file."""
    heard = samples(extra=777)
    whole = subprocess.run(COMMAND, cwd=ROOT, input=heard, capture_output=True, timeout=60)
    assert whole.returncode == 0
    assert len(whole.stdout) == len(heard)
    lines = [json.loads(line) for line in whole.stderr.splitlines()]
    words = [line["word"]["text"] for line in lines if line["event"] == "WordSpoken"]
    assert words == ["Hello!", "How", "can", "I", "help", "you?"]

    events = tmp_path / "events.jsonl"
    process = subprocess.Popen(
        [*COMMAND, "--events", str(events)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdin is not None
    for i in range(0, len(heard), 30_001):
        process.stdin.write(heard[i : i + 30_001])
        process.stdin.flush()
        time.sleep(0.02)
    said, _ = process.communicate(timeout=60)
    assert said == whole.stdout
    again = [json.loads(line) for line in events.read_text().splitlines()]
    assert [line["event"] for line in again] == [line["event"] for line in lines]


def test_the_answer_to_a_frame_comes_before_the_next_is_given() -> None:
    process = subprocess.Popen(
        COMMAND, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdin is not None
    assert process.stdout is not None
    for _ in range(5):
        process.stdin.write(bytes(3840))
        process.stdin.flush()
        assert len(process.stdout.read(3840)) == 3840
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 128 + signal.SIGTERM
    process.communicate()


def test_a_reader_that_goes_away_ends_it() -> None:
    process = subprocess.Popen(
        COMMAND, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdout.close()
    process.stdin.write(samples())
    process.stdin.flush()
    assert process.wait(30) == 128 + signal.SIGPIPE
    assert process.stderr is not None
    assert b"Traceback" not in process.stderr.read()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [(["--events", "-"], "stdout carries sound alone"), (["--model", "hibiki"], "can translate")],
)
def test_what_cannot_be_piped_is_one_line(arguments: list[str], problem: str) -> None:
    done = subprocess.run(
        [*COMMAND, *arguments], cwd=ROOT, input=b"", capture_output=True, timeout=60
    )
    assert done.returncode == 2
    assert problem in done.stderr.decode().splitlines()[-1]
    assert done.stdout == b""


def test_a_terminal_is_refused() -> None:
    import pty

    ours, theirs = pty.openpty()
    done = subprocess.run(COMMAND, cwd=ROOT, stdin=theirs, capture_output=True, timeout=60)
    assert done.returncode == 2
    assert "stdin is a terminal" in done.stderr.decode()
    del ours
