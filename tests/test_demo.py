"""The main job, as `make demo` runs it: a spoken question gets the right spoken answer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from make_question import DEFAULT as QUESTION
from recognize import Recognizer, phrases, plain

REPLIES = ("Hello! How can I help you?", "My name is Moshi.", "One, two, three, four, five.")
"""Nano's answers to make_question.TALK."""

OTHER_REPLIES = (
    "Why did the robot cross the road? It was programmed by a chicken.",
    "I am fine, thank you. And you?",
    "I can count, tell a joke, and talk about the weather.",
    "Goodbye! It was nice to talk with you.",
    "You are welcome.",
    "I think it is sunny today.",
    "Sorry, I do not have a clock.",
    "I live inside this small computer.",
    "I was trained a few minutes ago.",
    "I like music. La, la, la.",
    "Two plus two is four.",
    "The sky is blue.",
    "I am a very small speech model.",
    "I only eat numbers.",
    "Once upon a time, there was a little fox.",
    "A, B, C, D, E, F, G.",
    "Only a little. Bonjour!",
    "Good night. Sleep well.",
    "The capital of France is Paris.",
    "I am sorry to hear that.",
    "That is great news!",
    "Okay.",
    "Sorry, I forgot what I said.",
    "I have no hands, sorry.",
    "Yes, I can hear you.",
    "Today is a good day.",
    "Nice to meet you.",
    "Sorry, I did not understand.",
    "Please say that again.",
    "Yes.",
    "No.",
)

MARGIN = 0.5
"""Seconds around a phrase's words that go to the recogniser."""


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


def test_the_text_is_right(demo: tuple[dict[str, Any], np.ndarray, int]) -> None:
    summary, _, _ = demo
    said = [text for text, _, _ in phrases(summary["words"])]
    assert said == [plain(reply) for reply in REPLIES]
    assert summary["text"] == " ".join(REPLIES)


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
    summary, both, rate = demo
    recognizer = Recognizer([*REPLIES, *OTHER_REPLIES])
    heard = [
        recognizer(both[int((start - MARGIN) * rate) : int((stop + MARGIN) * rate), 1], rate)
        for _, start, stop in phrases(summary["words"])
    ]
    assert heard == [plain(reply) for reply in REPLIES]


def test_silence_is_no_reply() -> None:
    recognizer = Recognizer([*REPLIES, *OTHER_REPLIES])
    silence = np.zeros(24_000, np.float32)
    assert recognizer(silence, 24_000) not in {plain(reply) for reply in REPLIES}
