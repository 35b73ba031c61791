"""The loop, the rings, the watchdog: with a device and a model that need no hardware."""

from __future__ import annotations

import os
import signal
import threading
import time

import numpy as np
import pytest
from fake_moshi import FRAME_RATE, FRAME_SIZE, SAMPLE_RATE, FakeSession

from moshi_local import audio
from moshi_local.audio import (
    DeviceInfo,
    DuplexCallback,
    LiveAudio,
    Ring,
    choose_devices,
    find_device,
)
from moshi_local.events import Event, FrameDone, Lag, Opened, Restarted
from moshi_local.loop import FrameTimes, Read, run_loop, stop_on_signals, warm_up
from moshi_mlx import AudioDeviceError, WordSpoken

BLOCK = 480
CUSHION = round(audio.CUSHION_SECONDS * SAMPLE_RATE)


class Underflow:
    """The flags of a callback that came too late to fill the speaker."""

    input_underflow = False
    input_overflow = False
    output_underflow = True
    output_overflow = False


class HandDevice:
    """A duplex device whose callbacks the test makes; it may refuse to start, or to call."""

    input_name = "hand microphone"
    output_name = "hand speaker"

    def __init__(self, refusals: int = 0) -> None:
        self.refusals = refusals
        self.starts = 0
        self.stops = 0
        self.callback: DuplexCallback | None = None

    def start(self, callback) -> None:
        self.starts += 1
        if 1 < self.starts <= 1 + self.refusals:
            raise AudioDeviceError("it is gone")
        self.callback = callback

    def stop(self) -> None:
        self.stops += 1

    def call(self, heard: np.ndarray, flags=None) -> np.ndarray:
        """What the speaker gets for `heard`, block by block."""
        played = np.full_like(heard, np.nan)
        assert self.callback is not None
        for at in range(0, len(heard), BLOCK):
            self.callback(heard[at : at + BLOCK], played[at : at + BLOCK], flags)
        return played


class ClockDevice(HandDevice):
    """A duplex device that calls in real time from a thread of its own; its first `silent`
    starts never call."""

    def __init__(self, silent: int = 0, lifetime: float = 60.0) -> None:
        super().__init__()
        self.silent = silent
        self.lifetime = lifetime
        self.played: list[np.ndarray] = []
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, callback) -> None:
        super().start(callback)
        if self.starts > self.silent:
            self._end = threading.Event()
            self._thread = threading.Thread(target=self._run, args=(self._end,))
            self._thread.start()

    def stop(self) -> None:
        super().stop()
        self._end.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self, end: threading.Event) -> None:
        begun = time.monotonic()
        blocks = 0
        while time.monotonic() - begun < self.lifetime:
            blocks += 1
            if end.wait(max(0.0, begun + blocks * BLOCK / SAMPLE_RATE - time.monotonic())):
                return
            self.played.append(self.call(np.full(BLOCK, 0.5, np.float32)))


def live(device) -> LiveAudio:
    return LiveAudio(device, sample_rate=SAMPLE_RATE, frame_size=FRAME_SIZE)


def frames(n: int, start: int = 0) -> np.ndarray:
    """n frames of samples that count up."""
    return np.arange(start, start + n * FRAME_SIZE, dtype=np.float32)


def read(port: LiveAudio) -> np.ndarray:
    frame = np.empty(FRAME_SIZE, np.float32)
    assert port.read(frame, 0.0) is Read.FRAME
    return frame


def loop(session, port, **options):
    return run_loop(session, port, frame_size=FRAME_SIZE, frame_rate=FRAME_RATE, **options)


# ------------------------------------------------------------------------------------- ring


def test_ring_gives_back_what_was_put_across_its_end() -> None:
    ring, out = Ring(10), np.zeros(7, np.float32)
    for start in range(0, 70, 7):
        ring.put(np.arange(start, start + 7, dtype=np.float32)[:5])
        assert ring.take(out) == 5
        assert out[:5].tolist() == list(range(start, start + 5))
    assert ring.available == 0


def test_ring_drops_the_oldest() -> None:
    ring, out = Ring(8), np.zeros(4, np.float32)
    for start in (0, 4, 8):
        ring.put(np.arange(start, start + 4, dtype=np.float32))
    assert ring.keep_newest(4) == 8
    assert ring.take(out) == 4
    assert out.tolist() == [8, 9, 10, 11]
    assert ring.dropped == 8
    assert ring.take(out) == 0


# -------------------------------------------------------------------------------- live audio


def test_sound_goes_through_unchanged_after_the_cushion() -> None:
    device = HandDevice()
    with live(device) as port:
        silent = device.call(frames(1))
        assert not silent.any()
        port.write(read(port))
        heard = device.call(frames(1, FRAME_SIZE))
        port.write(read(port))
        heard = np.concatenate([heard, device.call(frames(1))])
    assert not heard[:CUSHION].any()
    np.testing.assert_array_equal(heard[CUSHION:], frames(2)[: 2 * FRAME_SIZE - CUSHION])
    assert port.counters.gaps == 0
    assert port.counters.callbacks == 3 * FRAME_SIZE // BLOCK
    assert device.stops == 1


def test_nothing_to_read_is_no_error() -> None:
    with live(HandDevice()) as port:
        assert port.read(np.empty(FRAME_SIZE, np.float32), 0.01) is Read.NOTHING


def test_a_frame_that_arrives_wakes_the_reader() -> None:
    device = HandDevice()
    with live(device) as port:
        timer = threading.Timer(0.05, device.call, [frames(1)])
        timer.start()
        began = time.monotonic()
        assert port.read(np.empty(FRAME_SIZE, np.float32), 5.0) is Read.FRAME
        assert time.monotonic() - began < 2.0
        timer.join()


def test_too_much_input_loses_the_oldest_and_says_so() -> None:
    device = HandDevice()
    limit = audio.INPUT_LIMIT_FRAMES
    with live(device) as port:
        device.call(frames(limit + 4))
        first = read(port)
        np.testing.assert_array_equal(first, frames(1, 4 * FRAME_SIZE))
        opened, lag = port.take_events(1.0)
        assert isinstance(opened, Opened)
        assert lag == Lag(time=1.0, input_dropped=4 / FRAME_RATE, output_dropped=0.0)
        assert port.take_events(2.0) == []


def test_input_far_past_the_ring_is_still_in_order() -> None:
    device = HandDevice()
    with live(device) as port:
        device.call(frames(50))
        got = np.concatenate([read(port) for _ in range(audio.INPUT_LIMIT_FRAMES)])
    np.testing.assert_array_equal(got, frames(50)[-len(got) :])


def test_too_much_output_is_cut_back_to_one_frame() -> None:
    device = HandDevice()
    with live(device) as port:
        for n in range(6):
            port.write(frames(1, n * FRAME_SIZE))
        played = device.call(np.zeros(FRAME_SIZE, np.float32))
        kept = FRAME_SIZE + CUSHION
        np.testing.assert_array_equal(played, frames(6)[-kept:][:FRAME_SIZE])
        lag = port.take_events(0.0)[-1]
    assert isinstance(lag, Lag)
    assert lag.output_dropped == pytest.approx(5 / FRAME_RATE)


def test_a_late_frame_is_one_gap_and_brings_a_new_cushion() -> None:
    device = HandDevice()
    with live(device) as port:
        port.write(frames(1))
        played = device.call(np.zeros(3 * FRAME_SIZE, np.float32))
        assert not played[CUSHION + FRAME_SIZE :].any()
        assert port.counters.gaps == 1
        port.write(np.ones(FRAME_SIZE, np.float32))
        played = device.call(np.zeros(FRAME_SIZE, np.float32))
        assert not played[:CUSHION].any()
        assert played[CUSHION:].all()


def test_flags_are_counted() -> None:
    device = HandDevice()
    with live(device) as port:
        device.call(np.zeros(3 * BLOCK, np.float32), Underflow())
    assert port.statistics()["output_underflows"] == 3
    assert port.statistics()["xruns"] == 3


# ---------------------------------------------------------------------------------- watchdog


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audio, "FIRST_CALLBACK_SECONDS", 0.15)
    monkeypatch.setattr(audio, "CALLBACK_SECONDS", 0.1)
    monkeypatch.setattr(audio, "REOPEN_SECONDS", 0.01)


@pytest.mark.usefixtures("impatient")
def test_a_stream_that_never_calls_is_opened_again() -> None:
    device = ClockDevice(silent=2)
    events: list[Event] = []
    with live(device) as port:
        report = loop(FakeSession(), port, seconds=1.2, listeners=[events.append])
    assert device.starts == 3
    assert report.frames > 2
    assert port.counters.restarts == 2
    reasons = [e.reason for e in events if isinstance(e, Restarted)]
    assert reasons == ["it started but never called"] * 2


@pytest.mark.usefixtures("impatient")
def test_a_stream_that_stops_calling_is_opened_again() -> None:
    device = ClockDevice(lifetime=0.4)
    events: list[Event] = []
    with live(device) as port:
        loop(FakeSession(), port, seconds=0.9, listeners=[events.append])
    assert device.starts == 2
    assert [e.reason for e in events if isinstance(e, Restarted)] == ["it stopped calling"]


@pytest.mark.usefixtures("impatient")
def test_a_device_that_comes_back_late_is_tried_again() -> None:
    device = ClockDevice(silent=1)
    device.refusals = 2
    with live(device) as port:
        report = loop(FakeSession(), port, seconds=1.0)
    assert device.starts == 4
    assert report.frames > 0


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("refusals", [0, 100])
def test_a_dead_device_is_an_error_in_the_end(refusals: int) -> None:
    device = HandDevice(refusals)
    with live(device) as port, pytest.raises(AudioDeviceError, match=r"hand microphone.*5 times"):
        loop(FakeSession(), port, seconds=30)
    assert device.starts == 1 + audio.RESTARTS_IN_A_ROW


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


def test_every_frame_is_stepped_told_and_written() -> None:
    port = ListPort(list(frames(13).reshape(13, -1)))
    events: list[Event] = []
    report = loop(FakeSession(), port, listeners=[events.append])
    np.testing.assert_array_equal(np.concatenate(port.said), frames(13))
    assert [e.frame.index for e in events if isinstance(e, FrameDone)] == list(range(13))
    assert [e.word.text for e in events if isinstance(e, WordSpoken)] == ["word11"]
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


def test_stop_is_heard_between_frames() -> None:
    session, port = FakeSession(), ListPort(list(frames(9).reshape(9, -1)))
    report = loop(session, port, stop=lambda: len(session.heard) == 4)
    assert report.frames == 4


def test_a_stall_drops_a_bounded_amount_and_the_delay_returns() -> None:
    device, session = ClockDevice(), FakeSession({10: 1.2})
    events: list[Event] = []
    with live(device) as port:
        report = loop(session, port, seconds=3.5, listeners=[events.append])
        waiting = port._output.available
    lags = [e for e in events if isinstance(e, Lag)]
    assert sum(lag.input_dropped for lag in lags) > 0.3
    assert waiting <= FRAME_SIZE + 2 * CUSHION
    assert port.counters.gaps >= 1
    assert report.as_dict()["frame_ms"]["max"] > 1200
    tail = np.concatenate(device.played[-25:])
    assert tail.all(), "half a second later there are no holes any more"


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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_set_the_flag_once(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with stop_on_signals() as stop:
        assert not stop
        os.kill(os.getpid(), number)
        time.sleep(0.01)
        assert stop
        assert signal.getsignal(number) == before, "a second one ends the program"
    assert signal.getsignal(number) == before


# ----------------------------------------------------------------------------------- devices

DEVICES = [
    DeviceInfo(0, "MacBook Pro Microphone", 1, 0),
    DeviceInfo(1, "MacBook Pro Speakers", 0, 2),
    DeviceInfo(2, "USB Headset", 1, 2),
    DeviceInfo(3, "USB Headset Pro", 1, 2),
]


@pytest.mark.parametrize(
    ("spec", "kind", "index"),
    [("0", "input", 0), (1, "output", 1), ("macbook", "input", 0), ("macbook", "output", 1),
     ("usb headset", "input", 2), ("pro", "output", None), ("set pro", "output", 3)],
)  # fmt: skip
def test_devices_are_found_by_number_or_name(spec: str, kind: str, index: int | None) -> None:
    if index is None:
        with pytest.raises(AudioDeviceError, match="several"):
            find_device(spec, kind, DEVICES)
    else:
        assert find_device(spec, kind, DEVICES).index == index


@pytest.mark.parametrize("spec", ["1", "9", "speakers", "none such"])
def test_a_wrong_device_is_named_with_those_there_are(spec: str) -> None:
    with pytest.raises(AudioDeviceError, match=f'input "{spec}" matches no device.*2 "USB Hea'):
        find_device(spec, "input", DEVICES)


def test_no_device_at_all_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audio, "list_devices", list)
    with pytest.raises(AudioDeviceError, match="there is no input device"):
        choose_devices(None, None)
