"""The loop: with a port and a model that need no hardware."""

from __future__ import annotations

import io
import os
import signal
import time
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from moshi_local.conversation import Conversation
from moshi_local.events import Event, FrameDone, Paused, ResetDone
from moshi_local.loop import run_loop, stop_on_signals
from moshi_local.port import Read
from moshi_local.report import FrameTimes, warm_up
from moshi_local.terminal.lines import print_report
from moshi_mlx import Frame, SessionError, WordSpoken
from moshi_mlx.testing import FRAME_RATE, FRAME_SIZE, FakeSession


def frames(n: int, start: int = 0) -> np.ndarray:
    """n frames of samples that count up."""
    return np.arange(start, start + n * FRAME_SIZE, dtype=np.float32)


def loop(session, port, **options):
    return run_loop(session, port, frame_size=FRAME_SIZE, frame_rate=FRAME_RATE, **options)


# --------------------------------------------------------------------------------- the loop


class ListPort:
    """An AudioPort over a list of frames."""

    def __init__(self, heard: list[np.ndarray]) -> None:
        self.heard = list(heard)
        self.said: list[np.ndarray] = []

    def read(self, frame: np.ndarray, timeout: float) -> Read:
        if not self.heard:
            return Read.END
        frame[:] = self.heard.pop(0)
        return Read.FRAME

    def write(self, pcm: np.ndarray) -> None:
        self.said.append(pcm)

    def take_events(self, now: float) -> list[Event]:
        return []

    def statistics(self) -> dict[str, float]:
        return {"things": 3}

    def delay(self) -> float:
        return 0.25

    def lag(self) -> float:
        return 0.01 * len(self.said)

    def levels(self) -> tuple[float, float]:
        return 0.0, 0.0


def test_every_frame_is_stepped_told_and_written() -> None:
    port = ListPort(list(frames(13).reshape(13, -1)))
    events: list[Event] = []
    report = loop(FakeSession(), port, listeners=[events.append])
    np.testing.assert_array_equal(np.concatenate(port.said), frames(13))
    assert [e.frame.index for e in events if isinstance(e, FrameDone)] == list(range(13))
    assert [e.word.text for e in events if isinstance(e, WordSpoken)] == ["word11", "last"]
    assert report.frames == 13
    assert report.seconds == pytest.approx(13 / 12.5)
    assert report.text == "word11 last"
    summary = report.as_dict()
    assert summary["words"][0] == {"text": "word11", "start": 0.56, "end": 0.96}
    assert summary["things"] == 3
    assert set(summary["frame_ms"]) == {"p50", "p95", "p99", "max"}
    assert set(summary["stages_ms"]) == {"encode", "model", "decode"}


def test_no_frames_is_a_report_too() -> None:
    report = loop(FakeSession(), ListPort([]))
    assert report.frames == 0
    assert report.real_time_factor == 0.0
    assert report.as_dict()["frame_ms"]["max"] == 0.0


def test_what_is_told_of_a_frame() -> None:
    """Its clock, what was heard (kept: the loop's own buffer goes on), its time, lag and delay."""
    events: list[Event] = []
    port = ListPort(list(frames(3).reshape(3, -1)))
    loop(FakeSession({1: 0.05}), port, listeners=[events.append])
    done = [event for event in events if isinstance(event, FrameDone)]
    assert [event.time for event in done] == pytest.approx([0.08, 0.16, 0.24])
    np.testing.assert_array_equal(np.concatenate([event.heard for event in done]), frames(3))
    assert [event.lag for event in done] == [0.01, 0.02, 0.03]
    assert {event.delay for event in done} == {0.25}
    assert done[1].took >= 0.05


def test_while_the_model_rests_the_port_is_given_silence_and_nothing_is_told() -> None:
    class Silent(FakeSession):
        def step(self, pcm: np.ndarray, *, hold_text: bool = False) -> Frame:
            return replace(super().step(pcm, hold_text=hold_text), speaking=False)

    port, session = ListPort([np.ones(FRAME_SIZE, np.float32)] * 60), Silent()
    talk = Conversation(session, frame_rate=FRAME_RATE)
    talk.mute(True)
    events: list[Event] = []
    report = loop(talk, port, listeners=[events.append])
    assert report.frames == len(session.heard) == 38  # the first after 3 s
    assert not np.any(session.heard), "the microphone is closed"
    assert len(port.said) == 60
    assert not np.any(port.said)
    assert isinstance(events[-3], FrameDone)
    assert events[-2] == Paused(38 / FRAME_RATE, paused=True)


def test_a_reset_sets_the_clock_of_the_events_back_but_not_that_of_the_report() -> None:
    session = FakeSession()
    talk = Conversation(session, frame_rate=FRAME_RATE)
    events: list[Event] = []

    def listen(event: Event) -> None:
        events.append(event)
        if isinstance(event, FrameDone) and len(events) < 16 and event.frame.index == 12:
            talk.ask_reset()

    report = loop(talk, ListPort(list(frames(25).reshape(25, -1))), listeners=[listen])
    assert session.resets == 1
    assert [e.time for e in events if isinstance(e, ResetDone)] == [1.04]
    assert [e.time for e in events if isinstance(e, FrameDone)][12:14] == [1.04, 0.08]
    ends = [(word.text, round(word.end, 6)) for word in report.words]
    assert ends == [("word11", 0.96), ("last", 1.04), ("word11", 2.0), ("last", 2.0)]
    assert report.seconds == 2.0


def test_a_model_that_fails_is_one_clear_error() -> None:
    class Failing(FakeSession):
        def step(self, pcm: np.ndarray, *, hold_text: bool = False) -> Frame:
            if len(self.heard) == 4:
                raise ValueError("shapes (1,2) and (3,4)")
            return super().step(pcm, hold_text=hold_text)

    port, told = ListPort(list(frames(9).reshape(9, -1))), list[Event]()
    with pytest.raises(SessionError, match=r"the model failed in frame 4: ValueError: shapes"):
        loop(Failing(), port, listeners=[told.append])
    np.testing.assert_array_equal(np.concatenate(port.said), frames(4))
    assert len([event for event in told if isinstance(event, FrameDone)]) == 4


def test_stop_is_heard_between_frames() -> None:
    session, port = FakeSession(), ListPort(list(frames(9).reshape(9, -1)))
    report = loop(session, port, stop=lambda: len(session.heard) == 4)
    assert report.frames == 4


def test_times_are_percentiles_of_what_was_added() -> None:
    times = FrameTimes(capacity=100)
    times.add(9.0, (0.0, 9.0, 0.0))
    for n in range(1, 101):
        times.add(n / 1000, (0.001, n / 1000 - 0.002, 0.001))
    summary = times.summary()
    assert times.count == 101
    assert summary["frame"] == {"p50": 50.5, "p95": 95.05, "p99": 99.01, "max": 9000.0}
    assert summary["encode"]["p99"] == 1.0


def test_warm_up_leaves_a_fresh_session() -> None:
    session = FakeSession()
    warm_up(session, FRAME_SIZE)
    assert session.resets == 1
    assert session.heard == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_asks_the_second_interrupts(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with stop_on_signals() as stop:
        assert not stop
        os.kill(os.getpid(), number)
        time.sleep(0.01)
        assert stop
        assert stop.signal == number
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
        assert signal.getsignal(number) == before, "a third one is as if nobody watched"
    assert signal.getsignal(number) == before


def test_a_signal_that_was_ignored_still_is() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_signals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.01)
            assert not stop
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_stop_can_be_asked_for() -> None:
    with stop_on_signals() as stop:
        stop.ask()
        assert stop
        assert stop.signal is None


class Bare:
    """A port that reads and writes, and knows nothing else."""

    def __init__(self, frames: int) -> None:
        self.left = frames
        self.written: list[np.ndarray] = []

    def read(self, frame: np.ndarray, timeout: float) -> Read:
        self.left -= 1
        frame[:] = 0.1
        return Read.END if self.left < 0 else Read.FRAME

    def write(self, pcm: np.ndarray) -> None:
        self.written.append(pcm.copy())


def test_a_port_need_only_read_and_write() -> None:
    """The loop, its report in words and in JSON, and what listens."""
    port, told = Bare(5), list[object]()
    report = run_loop(
        FakeSession(), port, frame_size=FRAME_SIZE, frame_rate=FRAME_RATE, listeners=[told.append]
    )
    assert (report.frames, len(port.written)) == (5, 5)
    done = [event for event in told if isinstance(event, FrameDone)]
    assert [(event.lag, event.delay) for event in done] == [(0.0, None)] * 5
    text = io.StringIO()
    print_report(Console(file=text), report, 0.08)
    assert "5 frames" in text.getvalue()
    assert "callbacks" not in text.getvalue()
    assert report.as_dict()["frames"] == 5
