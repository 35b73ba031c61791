"""A script that arrives in pieces says what it says at once."""

from __future__ import annotations

import random

import pytest

from moshi_mlx import ArgumentError
from moshi_mlx.families.speech_script import ArrivingScript, ScriptReader, entries_of, turns_of

TEXTS = (
    "Hello there you.",
    "A: hi\nB: yes\nno\n\n  A : x",
    "B: first\nA:second B: not",
    "\r\nA: a\r\nB: b\r\n",
    "A",
    "B ",
    "Apple: x\nB: y",
    "A: Apple\nApple B\nB",
    'A:<break time="1s"/>\nB: w <bre',
    "[laughs] hi",
    "[1]x",
    "{x} y",
    '["a", "b"]',
    '[{"text":"u"},{"text":"v", "speaker": "A"}]',
    '{"a',
    "{}",
    " [ ]",
    "[ ] x",
    "",
)


def reader() -> ScriptReader:
    return ScriptReader(lambda word: [len(word)], frame_rate=12.5, speakers=True)


def arrived(pieces: list[str]) -> object:
    script, words = ArrivingScript(), reader()
    words.turn(0)
    found = []
    try:
        said = [turn for piece in pieces for turn in script.read(piece)] + script.end()
    except ArgumentError as error:
        return str(error)
    for speaker, text in said:
        if speaker is not None:
            found += words.end()
            words.turn(speaker)
        found += words.read(text)
    return found + words.end()


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_say_what_the_whole_says(text: str) -> None:
    try:
        wanted: object = entries_of(reader(), turns_of(text))
    except ArgumentError as error:
        wanted = str(error)
    rng = random.Random(0)
    assert arrived([*text]) == wanted
    for _ in range(20):
        cuts = sorted(rng.sample(range(len(text) + 1), min(len(text), 4)))
        pieces = [text[i:j] for i, j in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        assert arrived(pieces) == wanted, pieces


def test_lines_are_spoken_before_they_end() -> None:
    script = ArrivingScript()
    assert script.read("A") == []
    assert script.read(": one") == [(0, ""), (None, " one")]
    assert script.read(" two\nB") == [(None, " two\n")]
    assert script.read("ut\nB:") == [(None, "But\n"), (1, "")]
    assert ArrivingScript().read("An apple") == [(None, "An apple")]
