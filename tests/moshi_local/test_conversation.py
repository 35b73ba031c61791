"""What the user wants of a conversation, and broken loops: with a model that is a script."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from moshi_local.conversation import HOLD_SECONDS, REST_SECONDS, Conversation, LoopGuard
from moshi_local.events import (
    Event,
    GreetingHeld,
    LoopBroken,
    MicrophoneClosed,
    Paused,
    ResetDone,
)
from moshi_mlx import ArgumentError, Frame, SpeechStarted, Timing, Word, WordSpoken

RATE = 10.0
"""Frames per second: easier to count in than 12.5."""
REST = round(REST_SECONDS * RATE)
HOLD = round(HOLD_SECONDS * RATE)


class Script:
    """A session that says a word of `words` per frame (None for none) and notes what it hears."""

    def __init__(self, words: Sequence[str | None] = ()) -> None:
        self.words = words
        self.heard: list[float] = []
        self.held: list[bool] = []
        self.speaks_until = 0
        self.user_from = 10**9
        self.resets = 0

    def step(self, pcm: np.ndarray, *, hold_text: bool = False) -> Frame:
        index = len(self.heard)
        self.heard.append(float(pcm[0]))
        self.held.append(hold_text)
        text = self.words[index] if index < len(self.words) else None
        end = (index + 1) / RATE
        words = () if text is None else (Word(text, end - 0.1, end),)
        events: list[Event] = [WordSpoken(end, word) for word in words]
        if index == self.user_from:
            events.insert(0, SpeechStarted(index / RATE, "user"))
        return Frame(
            index=index,
            pcm=np.zeros(4, np.float32),
            text="",
            words=words,
            partial="",
            speaking=index < self.speaks_until,
            user_speaking=index >= self.user_from,
            tokens=None,
            events=tuple(events),
            timing=Timing(0.0, 0.0, 0.0),
        )

    def flush(self) -> tuple[Word, ...]:
        return (Word("open", 0.0, 0.1),)

    def reset(self) -> None:
        self.heard.clear()
        self.held.clear()
        self.resets += 1


def go(talk: Conversation, frames: int) -> tuple[int, list[Event]]:
    """Steps on ones; how many frames the model made, and the events."""
    made = [talk.step(np.ones(4, np.float32)) is not None for _ in range(frames)]
    return sum(made), list(talk.take_events())


# --------------------------------------------------------------------------- the microphone


def test_a_muted_microphone_is_heard_as_silence() -> None:
    script = Script()
    talk = Conversation(script, frame_rate=RATE)
    go(talk, 2)
    talk.toggle_mute()
    pcm = np.ones(4, np.float32)
    talk.step(pcm)
    assert not pcm.any(), "the caller sees what was heard"
    assert talk.take_events() == [MicrophoneClosed(0.2, closed=True)]
    talk.toggle_mute()
    assert go(talk, 1) == (1, [MicrophoneClosed(0.3, closed=False)])
    assert script.heard == [1, 1, 0, 1]


def test_the_model_rests_after_silence_and_goes_on_when_the_microphone_opens() -> None:
    script = Script()
    script.speaks_until = 5
    talk = Conversation(script, frame_rate=RATE)
    talk.mute(True)
    made, events = go(talk, 5 + REST + 20)
    assert made == 5 + REST
    assert events == [MicrophoneClosed(0.0, closed=True), Paused((5 + REST) / RATE, paused=True)]
    assert talk.paused
    assert talk.seconds == (5 + REST) / RATE, "its clock stands meanwhile"
    talk.mute(False)
    made, events = go(talk, 3)
    assert made == 3
    assert [type(e) for e in events] == [MicrophoneClosed, Paused]
    assert script.heard == [0] * (5 + REST) + [1, 1, 1]


def test_silence_before_the_microphone_closes_does_not_count() -> None:
    talk = Conversation(Script(), frame_rate=RATE)
    assert go(talk, 10 * REST) == (10 * REST, []), "an open microphone never makes it rest"
    talk.mute(True)
    assert go(talk, REST + 5)[0] == REST


def test_push_to_talk_is_open_only_while_held() -> None:
    script = Script()
    talk = Conversation(script, frame_rate=RATE, push_to_talk=True)
    go(talk, 1)
    talk.talk(True)
    go(talk, 2)
    talk.mute(True)
    go(talk, 1)
    talk.mute(False)
    talk.talk(False)
    _, events = go(talk, 1)
    assert script.heard == [0, 1, 1, 0, 0]
    assert not [e for e in events if isinstance(e, MicrophoneClosed)], "it was closed already"


def test_without_push_to_talk_the_key_means_nothing() -> None:
    script = Script()
    talk = Conversation(script, frame_rate=RATE)
    talk.talk(True)
    talk.talk(False)
    assert go(talk, 1) == (1, [])
    assert script.heard == [1]


# --------------------------------------------------------------------------------- the reset


def test_reset_is_taken_at_the_next_frame_with_the_open_word_before_it() -> None:
    script = Script()
    talk = Conversation(script, frame_rate=RATE)
    go(talk, 7)
    talk.ask_reset()
    assert script.resets == 0
    made, events = go(talk, 2)
    assert (made, script.resets, len(script.heard)) == (2, 1, 2)
    assert events == [WordSpoken(0.1, Word("open", 0.0, 0.1)), ResetDone(0.7)]
    assert talk.seconds == 0.2


def test_a_resting_model_is_awake_after_a_reset() -> None:
    talk = Conversation(Script(), frame_rate=RATE, push_to_talk=True)
    go(talk, REST + 5)
    talk.ask_reset()
    made, events = go(talk, 4)
    assert made == 4
    assert [type(e) for e in events] == [WordSpoken, Paused, ResetDone]


# ------------------------------------------------------------------------------ the greeting


def test_the_greeting_is_held_until_the_user_sounds() -> None:
    script = Script()
    script.user_from = 6
    talk = Conversation(script, frame_rate=RATE, greeting_held=2.0)
    _, events = go(talk, 30)
    assert script.held == [True] * 7 + [False] * 23
    assert [e for e in events if isinstance(e, GreetingHeld)] == [
        GreetingHeld(0.0, held=True),
        GreetingHeld(0.7, held=False),
    ]


def test_a_refused_frame_tells_nothing() -> None:
    script = Script()
    talk = Conversation(script, frame_rate=RATE, greeting_held=2.0)
    for _ in range(2):
        with pytest.raises(IndexError):
            talk.step(np.zeros(0, np.float32))
    assert not talk.take_events()
    talk.step(np.zeros(4, np.float32))
    assert talk.take_events() == [GreetingHeld(0.0, held=True)]


def test_the_greeting_is_held_for_so_long_at_most_and_again_after_a_reset() -> None:
    script = Script()
    talk = Conversation(script, frame_rate=RATE, greeting_held=2.0)
    go(talk, 30)
    assert script.held == [True] * 20 + [False] * 10
    talk.ask_reset()
    go(talk, 30)
    assert script.held == [True] * 20 + [False] * 10


def test_by_default_nothing_is_held() -> None:
    script = Script()
    assert go(Conversation(script, frame_rate=RATE), 5) == (5, [])
    assert script.held == [False] * 5


# ---------------------------------------------------------------------------------- the loop


def first_alarm(text: str) -> tuple[int, str, int] | None:
    """After how many words of `text` the guard speaks up, and what it says."""
    guard = LoopGuard()
    for count, word in enumerate(text.split(), 1):
        if found := guard.add(word):
            return count, *found
    return None


@pytest.mark.parametrize(
    ("text", "alarm"),
    [
        ("la " * 9, (6, "la", 6)),
        ("well, " + "I see. " * 9, (9, "I see.", 4)),
        ("How are you? how are you how ARE you, how are you", (12, "how are you", 4)),
        ("a b c d e f g h i j k l " * 4, (48, "a b c d e f g h i j k l", 4)),
        ("one two two " * 4, (12, "one two two", 4)),
    ],
)
def test_a_loop_is_noticed_at_once(text: str, alarm: tuple[int, str, int]) -> None:
    assert first_alarm(text) == alarm


@pytest.mark.parametrize(
    "text",
    [
        "La, la, la.",
        "No, no, no, no, no!",
        "I see. I see. I see.",
        "a b c d e f g h i j k l m " * 4,  # a phrase of 13 words
        "Hello! How can I help you? " * 3 + "My name is Moshi.",
        "One, two, three, four, five. " * 3,
        "— … — … — … — … — …",
        "yes and yes or yes but yes then yes so yes if yes",
    ],
)
def test_no_false_alarm(text: str) -> None:
    assert first_alarm(text) is None


def test_a_loop_is_broken_by_a_pause() -> None:
    script = Script(["I", "see."] * 4)
    talk = Conversation(script, frame_rate=RATE)
    _, events = go(talk, 40)
    assert [e for e in events if isinstance(e, LoopBroken)] == [LoopBroken(0.8, "I see.", 4)]
    assert script.held == [False] * 8 + [True] * HOLD + [False] * (32 - HOLD)


def test_what_was_said_before_the_user_spoke_is_no_part_of_a_loop() -> None:
    script = Script(["I", "see."] * 6)
    script.user_from = 6
    _, events = go(Conversation(script, frame_rate=RATE), 12)
    assert not [e for e in events if isinstance(e, LoopBroken)]


def test_a_reset_ends_a_loop_and_its_pause() -> None:
    script = Script(["la"] * 6)
    talk = Conversation(script, frame_rate=RATE)
    go(talk, 6)
    talk.ask_reset()
    go(talk, 5)
    assert script.held == [False] * 5


def test_what_was_said_before_a_reset_is_no_part_of_a_loop() -> None:
    script = Script(["la"] * 5)
    talk = Conversation(script, frame_rate=RATE)
    go(talk, 5)
    talk.ask_reset()
    _, events = go(talk, 5)
    assert not [e for e in events if isinstance(e, LoopBroken)]


def test_without_the_guard_nothing_is_broken() -> None:
    script = Script(["la"] * 30)
    _, events = go(Conversation(script, frame_rate=RATE, guard=False), 30)
    assert len(events) == 30
    assert not any(script.held)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("greeting_held", float("nan")), ("greeting_held", -1), ("greeting_held", "x"),
        ("greeting_held", float("inf")), ("frame_rate", 0), ("frame_rate", float("nan")),
        ("frame_rate", None),
    ],
)  # fmt: skip
def test_numbers_that_cannot_be_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ArgumentError, match=f"{name} must be from .* is {value!r}"):
        Conversation(Script(), **{"frame_rate": RATE, name: value})
