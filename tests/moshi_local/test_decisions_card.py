"""The watch over the card: what it tells, when, and how soon it opens the card again."""

from __future__ import annotations

import time

import numpy as np
import pytest

from moshi_local import platform as system
from moshi_local.audio import card as live
from moshi_local.audio.card import LiveAudio
from moshi_local.audio.portaudio import StreamInfo
from moshi_local.events import DeviceLost, Event, Lag, MicrophoneDead, Notice, Opened, Resumed
from moshi_local.options import EchoMode
from moshi_local.port import Read
from moshi_mlx import AudioDeviceError
from moshi_mlx.testing import FRAME_SIZE, SAMPLE_RATE
from tests.fakes.card import HandCard


class Port:
    """A port over a card by hand, on a clock that is set by hand."""

    def __init__(self, card: HandCard | None = None, **options: object) -> None:
        self.card = card or HandCard()
        self.now = 0.0
        self.port = LiveAudio(
            self.card,
            sample_rate=SAMPLE_RATE,
            frame_size=FRAME_SIZE,
            clock=lambda: self.now,
            wall=lambda: self.now,
            **{"echo": EchoMode.off, **options},  # type: ignore[arg-type]
        )
        self.frame = np.zeros(FRAME_SIZE, np.float32)
        self.events: list[Event] = []

    def hear(self, frames: int = 1, level: float = 0.1, step: float = 0.08) -> None:
        """Frames that come in time and are answered."""
        for _ in range(frames):
            self.now += step
            self.card.call(np.full(FRAME_SIZE, level, np.float32))
            if self.port.read(self.frame, 0.0) is Read.FRAME:
                self.port.write(self.frame)
            self.events += self.port.take_events(self.now)

    def of(self, kind: type) -> list:
        self.events += self.port.take_events(self.now)
        return [event for event in self.events if isinstance(event, kind)]


@pytest.mark.parametrize(
    ("heard", "spoken", "told"),
    [(0.0, 0.04, False), (0.0, 0.05, True), (0.001, 0.0, True), (0.0, 0.0, False)],
)
def test_lateness_is_told_from_40_ms_on_and_once(heard: float, spoken: float, told: bool) -> None:
    with Port().port as port:
        port.take_events(0.0)
        port.counters.input_dropped_seconds = heard
        port.counters.output_dropped_seconds = spoken
        assert port.take_events(2.0) == ([Lag(2.0, heard, spoken)] if told else [])
        assert port.take_events(3.0) == []
        assert port.statistics()["lags"] == port.counters.lags == int(told)
        port.counters.output_dropped_seconds += 0.045
        (more,) = port.take_events(4.0)
        assert isinstance(more, Lag)
        assert more.output_dropped == pytest.approx(0.045 if told else spoken + 0.045)


def test_lateness_is_told_when_it_is_over() -> None:
    side = Port()
    with side.port as port:
        port.take_events(0.0)
        port.counters.input_dropped_seconds = 0.5
        side.card.call(np.zeros(FRAME_SIZE, np.float32))
        assert port.take_events(1.0) == [], "a frame still waits"
        assert port.read(side.frame, 0.0) is Read.FRAME
        assert port.take_events(2.0) == [Lag(2.0, 0.5, 0.0)]


@pytest.mark.parametrize(
    ("steps", "frames"),
    [([], 0), ([0.08], 0), ([0.2], 0), ([0.065], 1), ([0.06], 2), ([0.04], 5), ([0.0], 5),
     ([0.06, 0.06, 3.0], 2)],
)  # fmt: skip
def test_how_much_of_a_backlog_can_be_worked_off(steps: list[float], frames: int) -> None:
    """In 0.6 s, at most 5 frames; a single stall says nothing of the model's pace."""
    with Port().port as port:
        port._steps.extend(steps)
        assert port._frames_to_catch_up() == frames


def test_the_statistics_say_how_things_are() -> None:
    side = Port()
    with side.port as port:
        assert "delay_ms" not in port.statistics()
        assert port.delay() is None
        side.hear(20)
        found = port.statistics()
    assert found["callbacks"] == 80
    assert (found["input_rate"], found["output_rate"]) == (SAMPLE_RATE, SAMPLE_RATE)
    assert (found["echo_cancelled"], found["cushion_ms"], found["drift_ppm"]) == (0, 40, 0.0)
    assert found["delay_ms"] == round(1000 * (port.delay() or 0.0), 1)
    assert found["lag_ms"] == round(1000 * port.lag(), 1)


@pytest.mark.parametrize(
    ("rates", "wrong"), [((11_001, 24_000), "hand microphone"), ((24_000, 44_101), "hand speaker")]
)
def test_a_rate_without_whole_frames_is_refused(rates: tuple[int, int], wrong: str) -> None:
    card = HandCard(input_rate=rates[0], output_rate=rates[1], one_clock=False)
    with (
        pytest.raises(AudioDeviceError, match=rf'"{wrong}" runs at \d+ Hz.*such as 48000'),
        Port(card).port,
    ):
        pass


@pytest.mark.parametrize(("pause", "told"), [(4.9, []), (5.1, [5.1])])
def test_from_five_seconds_on_it_was_sleep(pause: float, told: list[float]) -> None:
    side = Port()
    with side.port:
        side.hear(3)
        side.now += pause - 0.08
        side.hear(1)
        assert [event.slept for event in side.of(Resumed)] == pytest.approx(told)


@pytest.mark.parametrize(("heard_before", "seconds"), [(False, 3.0), (True, 30.0)])
def test_after_so_many_seconds_of_zeros_a_microphone_is_dead(
    monkeypatch: pytest.MonkeyPatch, heard_before: bool, seconds: float
) -> None:
    monkeypatch.setattr(system, "MACOS", False)
    side = Port()
    with side.port:
        side.hear(1, level=0.5 if heard_before else 0.0)
        frames = int(seconds / 0.08 + 0.999) - (not heard_before)
        side.hear(frames - 1, level=0.0)
        assert side.of(MicrophoneDead) == []
        side.hear(2, level=0.0)
        (dead,) = side.of(MicrophoneDead)
    assert dead.advice == system.microphone_advice()


@pytest.mark.parametrize(("settled", "followed"), [(2.9, False), (3.1, True)])
def test_a_new_default_device_is_followed_once_the_card_has_settled(
    settled: float, followed: bool
) -> None:
    side = Port(default_changed=lambda: True)
    with side.port as port:
        side.hear(37)  # 2.96 s, in which nothing is asked
        assert port._default is not None
        assert port._default._thread is None
        side.now = settled - 0.08
        side.hear(1)
        if port._default._thread is not None:
            port._default._thread.join(5)
        side.hear(1, step=0.02)
        reasons = [event.reason for event in side.of(DeviceLost)]
    assert reasons == ["the system's default device has changed"] * followed


def test_where_both_devices_are_named_no_default_is_asked_for() -> None:
    side = Port()
    with side.port as port:
        assert port.levels() == (0.0, 0.0)
        side.hear(1)
        side.now = 10.0
        side.hear(2)
        assert port._default is None
        assert side.of(DeviceLost) == []


def test_the_reasons_for_a_loss_are_true_ones() -> None:
    side = Port()
    with side.port:
        side.hear(2)
        side.card.ended = True
        side.port.read(side.frame, 0.0)
        (lost,) = side.of(DeviceLost)
    assert lost.reason == "a sound device, or the sound system, is gone"
    assert side.port.counters.restarts == 1


def test_a_card_that_is_back_is_opened_at_once_however_long_it_was_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The pause between two attempts does not grow."""
    monkeypatch.setattr(live, "REOPEN_SECONDS", 0.02)
    opened: list[float] = []

    class Card(HandCard):
        def open(self) -> StreamInfo:
            opened.append(time.monotonic())
            return super().open()

    side = Port(Card(refusals=25))
    with side.port as port:
        side.hear(2)
        side.card.ended = True
        deadline = time.monotonic() + 10
        while len(side.of(Opened)) < 2 and time.monotonic() < deadline:
            port.read(side.frame, 0.01)
    assert len(opened) == 27
    pauses = np.diff(opened[1:])
    assert pauses.min() >= 0.02
    assert np.median(pauses[-8:]) < 2 * np.median(pauses[:8])


def test_the_pause_between_two_attempts_is_half_a_second() -> None:
    assert live.REOPEN_SECONDS == 0.5


@pytest.mark.parametrize(("gone", "told"), [(9.9, 0), (10.1, 1)])
def test_after_ten_seconds_the_reason_is_told(gone: float, told: int) -> None:
    side = Port(HandCard(refusals=10**6))
    with side.port as port:
        side.hear(2)
        side.card.ended = True
        port.read(side.frame, 0.0)
        deadline = time.monotonic() + 10
        while not port._trouble and time.monotonic() < deadline:
            time.sleep(0.001)
        side.now += gone
        for _ in range(3):
            port.read(side.frame, 0.0)
        assert [notice.text for notice in side.of(Notice)] == ["still no sound: it is gone"] * told
