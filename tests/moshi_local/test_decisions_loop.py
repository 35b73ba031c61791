"""Limits and constants of the loop, the conversation and the warming up, each with its value."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest

from moshi_local import chat
from moshi_local import platform as system
from moshi_local.conversation import Conversation, LoopGuard, needed
from moshi_local.events import Event, GreetingHeld, LoopBroken, Notice, Paused
from moshi_local.loop import StopFlag, run_loop
from moshi_local.options import SoundFlags
from moshi_local.port import Read
from moshi_local.report import warm_up
from moshi_mlx import Frame, MoshiError, WordSpoken
from moshi_mlx.testing import FRAME_RATE, FRAME_SIZE, FakeSession


class Port:
    """Frames until there are none; None for one that does not come in time."""

    def __init__(self, frames: list[np.ndarray | None], wait: float = 0.0) -> None:
        self.frames = frames
        self.wait = wait
        self.timeouts: list[float] = []
        self.written: list[np.ndarray] = []

    def read(self, frame: np.ndarray, timeout: float) -> Read:
        self.timeouts.append(timeout)
        time.sleep(self.wait)
        if not self.frames:
            return Read.END
        heard = self.frames.pop(0)
        if heard is None:
            return Read.NOTHING
        frame[:] = heard
        return Read.FRAME

    def write(self, pcm: np.ndarray) -> None:
        self.written.append(pcm)


def loop(session, port, **options):
    return run_loop(session, port, frame_size=FRAME_SIZE, frame_rate=FRAME_RATE, **options)


def ones(n: int) -> list[np.ndarray | None]:
    return [np.ones(FRAME_SIZE, np.float32)] * n


# ----------------------------------------------------------------------------------- the loop


def test_the_loop_ends_after_its_seconds() -> None:
    port = Port(ones(1000), wait=0.01)
    report = loop(FakeSession(), port, seconds=0.1)
    assert 1 <= report.frames <= 10
    assert 0.1 <= report.elapsed < 1.0
    assert loop(FakeSession(), Port(ones(3)), seconds=0.0).frames == 0
    assert loop(FakeSession(), Port(ones(3))).frames == 3, "no limit where none is set"


def test_a_frame_that_does_not_come_is_waited_for_again() -> None:
    port, session = Port([None, *ones(1), None, None, *ones(1)]), FakeSession()
    assert loop(session, port).frames == len(session.heard) == len(port.written) == 2
    assert set(port.timeouts) == {0.2}
    assert len(port.timeouts) == 6


def test_what_a_port_knows_is_told_on_the_conversations_clock() -> None:
    class Knowing(Port):
        def take_events(self, now: float) -> list[Event]:
            return [Notice(now, "told")]

        def statistics(self) -> dict[str, int]:
            return {"xruns": 7}

        def delay(self) -> float | None:
            return None

        def lag(self) -> float:
            return 0.0

        def levels(self) -> tuple[float, float]:
            return 0.0, 0.0

    events: list[Event] = []
    report = loop(FakeSession(), Knowing([*ones(2), None]), listeners=[events.append])
    told = [event.time for event in events if isinstance(event, Notice)]
    assert told == pytest.approx([0.0, 0.08, 0.16, 0.16]), "the end is asked too"
    assert report.port == {"xruns": 7}


def test_an_error_of_ours_is_passed_on_as_it_is() -> None:
    class Failing(FakeSession):
        def step(self, pcm: np.ndarray, *, hold_text: bool = False) -> Frame:
            raise MoshiError("the words to the user")

    with pytest.raises(MoshiError, match=r"^the words to the user$") as caught:
        loop(Failing(), Port(ones(1)))
    assert type(caught.value) is MoshiError


def test_a_bare_session_has_no_guard() -> None:
    class Stuck(FakeSession):
        def step(self, pcm: np.ndarray, *, hold_text: bool = False) -> Frame:
            frame = super().step(pcm, hold_text=hold_text)
            word = frame.words[0] if frame.words else None
            again = [WordSpoken(word.end, replace(word, text="la"))] if word else []
            return replace(frame, events=tuple(again))

    events: list[Event] = []
    session = Stuck()
    loop(session, Port(ones(12 * 8)), listeners=[events.append])
    assert len([e for e in events if isinstance(e, WordSpoken) and e.word.text == "la"]) == 8
    assert not [e for e in events if isinstance(e, LoopBroken)]
    assert not any(session.held)


def test_a_stop_flag_is_set_by_a_signal_or_by_being_asked() -> None:
    assert not StopFlag()
    asked, signalled = StopFlag(), StopFlag()
    asked.ask()
    signalled.signal = 2
    assert (bool(asked), bool(signalled)) == (True, True)


# ------------------------------------------------------------------------------- warming up


class Noting:
    """A session that keeps what it was stepped with."""

    def __init__(self, delay: float = 0.0) -> None:
        self.heard: list[np.ndarray] = []
        self.resets: list[int] = []
        self.delay = delay

    def step(self, pcm: np.ndarray) -> object:
        self.heard.append(pcm.copy())
        time.sleep(self.delay)
        return None

    def reset(self) -> None:
        self.resets.append(len(self.heard))


def test_warming_up_steps_on_quiet_noise_and_resets_once_at_the_end() -> None:
    session = Noting(delay=0.001)
    times = warm_up(session, 480, 4)
    assert len(session.heard) == 3 + 4
    assert session.resets == [7]
    assert len(times) == 4
    assert all(0.001 <= t < 1.0 for t in times)
    noise = np.stack(session.heard)
    assert noise.shape == (7, 480)
    assert noise.dtype == np.float32
    assert 0.009 < np.abs(noise).max() <= 0.01
    assert abs(noise.mean()) < 0.001
    assert len({frame.tobytes() for frame in session.heard}) == 7


def test_warming_up_has_defaults_and_a_limit() -> None:
    session = Noting()
    assert warm_up(session, 480) == []
    assert len(session.heard) == 3
    slow = Noting(delay=0.01)
    assert len(warm_up(slow, 480, 100, before=2, limit=0.005)) == 1, "one at least"
    assert len(slow.heard) == 3
    slow = Noting(delay=0.01)
    assert 1 <= len(warm_up(slow, 480, 100, before=0, limit=0.05)) <= 5


# --------------------------------------------------------------------------- the conversation


class Mute(FakeSession):
    """It never speaks, and hears the user where the input is not silent."""

    def step(self, pcm: np.ndarray, *, hold_text: bool = False) -> Frame:
        frame = super().step(pcm, hold_text=hold_text)
        return replace(frame, speaking=False, user_speaking=bool(pcm.any()), words=(), events=())


def go(talk: Conversation, frames: int, level: float = 0.0) -> list[Event]:
    for _ in range(frames):
        talk.step(np.full(FRAME_SIZE, level, np.float32))
    return list(talk.take_events())


def test_the_model_rests_after_three_seconds() -> None:
    talk = Conversation(Mute(), frame_rate=10.0)
    talk.mute(True)
    assert not [e for e in go(talk, 30) if isinstance(e, Paused)]
    assert go(talk, 1) == [Paused(3.0, paused=True)]
    assert talk.paused


@pytest.mark.parametrize(("seconds", "frames"), [(1.0, 13), (0.08, 1), (30.0, 375)])
def test_the_greeting_is_held_for_whole_frames(seconds: float, frames: int) -> None:
    session = Mute()
    go(Conversation(session, frame_rate=12.5, greeting_held=seconds), frames + 3)
    assert session.held == [True] * frames + [False] * 3


def test_the_user_ends_the_greeting_with_the_frame_after_the_first_sound() -> None:
    session = Mute()
    talk = Conversation(session, frame_rate=10.0, greeting_held=9.0)
    go(talk, 2)
    assert go(talk, 1, level=0.5) == [GreetingHeld(3 / 10.0, held=False)]
    go(talk, 1)
    assert session.held == [True, True, True, False]


def test_how_often_a_phrase_must_come() -> None:
    assert [needed(n) for n in (1, 2, 3, 12)] == [6, 4, 4, 4]
    guard = LoopGuard()
    assert [guard.add(word) for word in ["la"] * 6] == [None] * 5 + [("la", 6)]
    assert [guard.add("la") for _ in range(6)] == [None] * 5 + [("la", 6)], "it begins again"
    words = [f"w{n}" for n in range(13)]
    assert not any(guard.add(word) for word in words * 4), "13 words are no phrase"
    guard.clear()
    assert [guard.add(word) for word in words[:12] * 4][-1] == (" ".join(words[:12]), 4)


def test_a_broken_loop_holds_words_back_for_a_second_and_a_half() -> None:
    class Stuck(Mute):
        def step(self, pcm: np.ndarray, *, hold_text: bool = False) -> Frame:
            frame = super().step(pcm, hold_text=hold_text)
            if len(self.heard) > 6:
                return frame
            word = WordSpoken(0.1 * len(self.heard), word_of(len(self.heard)))
            return replace(frame, events=(word,))

    def word_of(n: int):
        from moshi_mlx import Word

        return Word("la", 0.1 * n - 0.1, 0.1 * n)

    session = Stuck()
    events = go(Conversation(session, frame_rate=10.0), 30)
    assert [e for e in events if isinstance(e, LoopBroken)] == [LoopBroken(0.6, "la", 6)]
    assert session.held == [False] * 6 + [True] * 15 + [False] * 9


# ------------------------------------------------------------------------- the default device


@pytest.mark.parametrize(
    ("sound", "noticed"),
    [
        (SoundFlags(), [False, True, False, True, False]),
        (SoundFlags(input="Mic"), [False, False, False, True, False]),
        (SoundFlags(output="Speaker"), [False, True, False, False, False]),
    ],
)
def test_a_new_default_device_is_noticed_once_and_only_where_it_is_used(
    monkeypatch: pytest.MonkeyPatch, sound: SoundFlags, noticed: list[bool]
) -> None:
    defaults = [(1, 2), (1, 2), (3, 2), (3, 2), (3, 4), None]
    monkeypatch.setattr(system, "default_devices", lambda: defaults.pop(0))
    changed = chat._default_changed(sound)
    assert changed is not None
    assert [changed() for _ in range(5)] == noticed


def test_a_system_that_cannot_tell_and_named_devices_are_not_watched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(system, "default_devices", lambda: None)
    assert chat._default_changed(SoundFlags()) is None
    monkeypatch.setattr(system, "default_devices", lambda: (1, 2))
    assert chat._default_changed(SoundFlags(input="a", output="b")) is None
