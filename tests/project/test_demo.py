"""The main job, as `make demo` runs it: a spoken question gets the right spoken answer."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from moshi_mlx.hub import bundled_folder
from moshi_mlx.text import plain_words
from moshi_quantize.listening import recognize
from tests.fixtures.make_question import DEFAULT as QUESTION

KNOWN = (bundled_folder("nano") / "sentences.txt").read_text(encoding="utf-8").splitlines()
REPLIES = ("Hello! How can I help you?", "My name is Moshi.", "One, two, three, four, five.")
"""Nano's answers to make_question.TALK."""

MARGIN = 0.5
"""Seconds around a phrase's words that go to the recogniser."""


def plain(text: str) -> str:
    return " ".join(plain_words(text))


def phrases(
    words: Sequence[dict[str, float | str]], pause: float = 1.0
) -> list[tuple[str, float, float]]:
    """The `words` of a `--json` summary as (plain text, start, end), split at pauses (seconds)."""
    found: list[tuple[str, float, float]] = []
    for word in words:
        text, start, end = str(word["text"]), float(word["start"]), float(word["end"])
        if found and start - found[-1][2] < pause:
            before = found.pop()
            found.append((f"{before[0]} {text}", before[1], end))
        else:
            found.append((text, start, end))
    return [(plain(text), start, end) for text, start, end in found]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], np.ndarray, int]:
    """The summary, the stereo sound and its rate."""
    target = tmp_path_factory.mktemp("demo") / "conversation.wav"
    command = [sys.executable, "-m", "moshi_local", "run", str(QUESTION), str(target)]
    command += ["--stereo", "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    both, rate = soundfile.read(target, dtype="float32")
    return json.loads(done.stdout), both, rate


def test_the_recording_is_small_and_as_described() -> None:
    about = soundfile.info(QUESTION)
    assert (about.samplerate, about.channels, about.subtype) == (24_000, 1, "PCM_16")
    assert about.duration <= 12
    assert Path(QUESTION).stat().st_size < 600_000


@pytest.mark.gpu
def test_the_text_is_right(demo: tuple[dict[str, Any], np.ndarray, int]) -> None:
    summary, _, _ = demo
    said = [text for text, _, _ in phrases(summary["words"])]
    assert said == [plain(reply) for reply in REPLIES]
    assert summary["text"] == " ".join(REPLIES)


@pytest.mark.gpu
def test_each_reply_comes_after_its_question(demo: tuple[dict[str, Any], np.ndarray, int]) -> None:
    summary, both, rate = demo
    asked = np.flatnonzero(np.abs(both[:, 0]) > 0.02) / rate
    starts = [asked[0], *asked[1:][np.diff(asked) > 1.0]]
    ends = [*asked[:-1][np.diff(asked) > 1.0], asked[-1]]
    replies = phrases(summary["words"])
    assert len(starts) == len(replies)
    for end, next_start, (_, start, stop) in zip(ends, [*starts[1:], np.inf], replies, strict=True):
        assert end < start < end + 1.5
        assert stop < next_start


def test_the_sound_is_heard_as_the_right_replies(
    demo: tuple[dict[str, Any], np.ndarray, int],
) -> None:
    """By an independent recognizer that knows all of nano's replies."""
    pytest.importorskip("pocketsphinx")
    summary, both, rate = demo
    heard = [
        recognize(both[int((start - MARGIN) * rate) : int((stop + MARGIN) * rate), 1], rate, KNOWN)
        for _, start, stop in phrases(summary["words"])
    ]
    assert heard == list(REPLIES)


def test_silence_is_no_reply() -> None:
    pytest.importorskip("pocketsphinx")
    assert recognize(np.zeros(24_000, np.float32), 24_000, KNOWN) not in REPLIES
