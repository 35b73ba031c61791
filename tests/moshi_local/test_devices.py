"""Devices and streams, with a PortAudio that needs no hardware."""

from __future__ import annotations

import io
import sys
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from moshi_local import chat
from moshi_local import platform as system
from moshi_local.audio import devices
from moshi_local.audio import portaudio as stream
from moshi_local.audio.card import LiveAudio
from moshi_local.audio.devices import (
    DeviceInfo,
    choose_devices,
    find_device,
    lasting_name,
    list_devices,
    print_devices,
)
from moshi_local.audio.portaudio import PortAudioDevice
from moshi_local.events import DeviceLost, Notice
from moshi_local.options import ModelSource
from moshi_mlx import AudioDeviceError, MoshiError
from moshi_mlx.testing import FRAME_SIZE, SAMPLE_RATE

DEVICES = [
    DeviceInfo(0, "MacBook Pro Microphone", 1, 0),
    DeviceInfo(1, "MacBook Pro Speakers", 0, 2),
    DeviceInfo(2, "USB Headset", 1, 2),
    DeviceInfo(3, "USB Headset Pro", 1, 2),
]


class FakeStream(SimpleNamespace):
    """A stream with the options that it was opened with."""

    def __init__(self, portaudio: FakePortAudio, **options: Any) -> None:
        super().__init__(**{"open": True, "active": False, "finished_callback": bool, **options})
        self._portaudio = portaudio

    def start(self) -> None:
        self.active = True
        self._portaudio.calls.append(f"start {self.kind}")
        self._portaudio.on_start.get(self.kind, lambda: None)()

    def abort(self, ignore_errors: bool) -> None:
        self._portaudio.on_abort()
        self.active = False
        self.finished_callback()

    def close(self, ignore_errors: bool) -> None:
        self.open = False
        self._portaudio.calls.append(f"close {self.kind}")


class FakePortAudio:
    """The part of sounddevice that we use: devices, and streams that only open if they may.

    A device has a name, channels in and out, its own rate, and the (rate, channels) at which it
    opens; None for any.
    """

    class PortAudioError(Exception):
        pass

    def __init__(self) -> None:
        self.devices: list[tuple[str | bytes, int, int, int, set[tuple[int, int]] | None]] = [
            ("Built-in Microphone", 1, 0, 48_000, None),
            ("Built-in Output", 0, 2, 48_000, None),
            ("Stereo Card", 2, 2, 44_100, None),
            ("Interface", 8, 8, 48_000, None),
        ]
        self.defaults = {"input": 0, "output": 1}
        self.fixed = (1593, 274)
        """The fixed latencies of a MacBook's microphone and speakers (frames)."""
        self.calls: list[str] = []
        self.on_start: dict[str, Callable[[], object]] = {}
        self.on_abort: Callable[[], object] = lambda: None
        self.on_refresh: Callable[[], None] = lambda: None
        self.opened: list[FakeStream] = []

    def query_devices(self, device: int | None = None, kind: str | None = None) -> Any:
        if kind is not None:
            if self.defaults[kind] < 0:
                raise self.PortAudioError("Error querying device -1")
            device = self.defaults[kind]
        assert device is not None
        self.calls.append(f"query {device}")
        name, inputs, outputs, rate, _ = self.devices[device]
        if isinstance(name, bytes):
            name = name.decode("utf-8")
        return {
            "index": device,
            "name": name,
            "max_input_channels": inputs,
            "max_output_channels": outputs,
            "default_samplerate": float(rate),
            "default_low_input_latency": (self.fixed[0] + 64) / rate,
            "default_low_output_latency": (self.fixed[1] + 64) / rate,
            "hostapi": 0,
        }

    @property
    def _lib(self) -> SimpleNamespace:
        def info(number: int) -> SimpleNamespace:
            name, inputs, outputs, rate, _ = self.devices[number]
            return SimpleNamespace(
                name=name,
                hostApi=0,
                maxInputChannels=inputs,
                maxOutputChannels=outputs,
                defaultSampleRate=float(rate),
                defaultLowInputLatency=0.01,
                defaultLowOutputLatency=0.01,
            )

        return SimpleNamespace(
            Pa_GetDeviceInfo=info,
            Pa_GetDefaultInputDevice=lambda: self.defaults["input"],
            Pa_GetDefaultOutputDevice=lambda: self.defaults["output"],
        )

    _ffi = SimpleNamespace(string=lambda text: text)

    def query_hostapis(self) -> Any:
        return [{"name": "Fake Audio", "devices": list(range(len(self.devices)))}]

    def _initialize(self) -> None:
        self.calls.append("refresh")
        self.on_refresh()

    def _terminate(self) -> None:
        assert not any(stream.open for stream in self.opened), "it would end them"

    @property
    def refreshes(self) -> int:
        return self.calls.count("refresh")

    def _open(self, kind: str, device: Any, channels: Any, **options: Any) -> FakeStream:
        numbers = device if isinstance(device, tuple) else (device,)
        counts = channels if isinstance(channels, tuple) else (channels,)
        for number, count in zip(numbers, counts, strict=True):
            allowed = self.devices[self.defaults[kind] if number is None else number][4]
            if allowed is not None and (options.get("samplerate"), count) not in allowed:
                raise self.PortAudioError("Invalid sample rate", -9997)
        self.calls.append(f"open {kind}")
        made = FakeStream(self, kind=kind, device=device, channels=channels, **options)
        self.opened.append(made)
        return made

    def Stream(self, **options: Any) -> FakeStream:  # noqa: N802
        return self._open("duplex", **options)

    def InputStream(self, **options: Any) -> FakeStream:  # noqa: N802
        return self._open("input", **options)

    def OutputStream(self, **options: Any) -> FakeStream:  # noqa: N802
        return self._open("output", **options)


@pytest.fixture
def portaudio(monkeypatch: pytest.MonkeyPatch) -> FakePortAudio:
    fake = FakePortAudio()
    monkeypatch.setattr(devices, "sounddevice", lambda: fake)
    monkeypatch.setattr(stream, "sounddevice", lambda: fake)
    return fake


# ------------------------------------------------------------------------------------ finding


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


def test_devices_are_listed_with_rates_and_defaults(portaudio: FakePortAudio) -> None:
    found = list_devices()
    first = DeviceInfo(
        0,
        "Built-in Microphone",
        1,
        0,
        48_000,
        "Fake Audio",
        default_input=True,
        low_input=(1593 + 64) / 48_000,
        low_output=(274 + 64) / 48_000,
    )
    assert found[0] == first
    assert [d.index for d in found if d.is_default("output")] == [1]
    portaudio.defaults["input"] = -1
    assert not any(d.is_default("input") for d in list_devices())


def test_the_defaults_are_chosen_when_none_is_named(portaudio: FakePortAudio) -> None:
    assert [d.index for d in choose_devices(None, None)] == [0, 1]
    assert [d.index for d in choose_devices("stereo", "3")] == [2, 3]
    portaudio.defaults["input"] = -1
    assert choose_devices(None, None)[0].index == 0, "the first that can"


@pytest.mark.parametrize(
    ("name", "typed"),
    [
        ("Anna’s AirPods Pro", "anna's airpods"),
        ("Cafe\u0301 Mikro", "café"),
        ("Café Mikro", "cafe\u0301"),
        ("USB\u00a0Audio  Device", "usb audio device"),
        ("Mic² ﬁne", "mic2 fine"),
        ("Mic2", "Mic²"),
        ("Tom “Deck” – Main", 'tom "deck" - main'),
        ("Anna\u2032s Mic", "ANNA`S MIC"),
        ("Straße 5", "STRASSE"),
        ("❤\ufe0f Mic 🎧", "❤ mic 🎧"),
        ("Zero\u200bWidth\u00ad", "zerowidth"),
        ("Tab\tand\u3000wide", " tab and wide "),
        ("ＵＳＢ", "usb"),
    ],
)
def test_a_name_is_found_as_a_keyboard_types_it(name: str, typed: str) -> None:
    mac = [DeviceInfo(0, name, 1, 0), DeviceInfo(1, name, 0, 2), DeviceInfo(2, "Other", 1, 2)]
    assert find_device(typed, "input", mac).index == 0
    assert find_device(typed, "output", mac).index == 1
    assert lasting_name(mac[0], "input", mac) == name


@pytest.mark.parametrize("spec", ["²", "٣", "①", "9" * 5000, "", " ", "\u200b"])
def test_what_is_no_number_of_a_device_is_no_crash(spec: str) -> None:
    with pytest.raises(AudioDeviceError, match="matches no device"):
        find_device(spec, "input", DEVICES[:1])
    assert find_device("00", "input", DEVICES).index == 0


def test_the_cause_is_told_and_not_that_a_rate_was_refused(portaudio: FakePortAudio) -> None:
    """PortAudio's own words, those of the system below it, and what they mean."""
    refused = portaudio.PortAudioError("Error opening Stream: Invalid sample rate", -9997)
    busy = portaudio.PortAudioError("Error opening Stream: Device unavailable", -9985)
    told = portaudio.PortAudioError(
        "Unanticipated host error", -9999, (8, -16, "Device or resource busy")
    )
    for errors, expected in (
        ([refused] * 9, "Invalid sample rate (it does not run at this rate)"),
        ([refused, busy, refused], "Device unavailable (another program may be using it)"),
        ([told], "Unanticipated host error: Device or resource busy"),
    ):
        left: list[Exception] = list(errors)

        def fail(left: list[Exception] = left, **options: Any) -> FakeStream:
            raise left.pop(0) if len(left) > 1 else left[0]

        portaudio.Stream = fail  # type: ignore[method-assign]
        with pytest.raises(AudioDeviceError) as caught:
            PortAudioDevice("stereo", "stereo").open()
        assert f"{expected}; `moshi-local devices`" in str(caught.value)


def test_a_name_that_is_not_utf8_does_not_end_the_listing(portaudio: FakePortAudio) -> None:
    """sounddevice raises then, for the whole list."""
    portaudio.devices[0] = (b"Mikro\xe9", 1, 0, 48_000, None)
    found = list_devices()
    assert [d.name for d in found[:2]] == ["Mikro\ufffd", "Built-in Output"]
    assert found[0].inputs == 1
    assert found[0].is_default("input")
    portaudio.devices[0] = (b"Mikro\xe9", 1, 0, 48_000, set())
    with pytest.raises(AudioDeviceError, match="cannot open"):
        PortAudioDevice().open()


def test_sounddevice_has_what_is_used_then() -> None:
    """It is not public."""
    sd = devices.sounddevice()
    assert sd._ffi.string(sd._ffi.new("char[]", b"\xe9")) == b"\xe9"
    for name in ("Pa_GetDeviceInfo", "Pa_GetDefaultInputDevice", "Pa_GetDefaultOutputDevice"):
        assert callable(getattr(sd._lib, name))


def test_no_device_at_all_is_one_clear_error(portaudio: FakePortAudio) -> None:
    portaudio.devices = portaudio.devices[1:2]
    portaudio.defaults = {"input": -1, "output": 0}
    with pytest.raises(AudioDeviceError, match="there is no input device"):
        choose_devices(None, None)


def test_devices_are_printed_as_they_are() -> None:
    text = io.StringIO()
    odd = DeviceInfo(0, "Card [bold] 1", 2, 0, 44_100, "ALSA", default_input=True)
    print_devices(Console(file=text, width=100), [odd])
    header, line = text.getvalue().splitlines()
    assert header.split() == ["device", "in", "out", "rate", "through", "default"]
    assert line.split() == ["0", "Card", "[bold]", "1", "2", "44100", "ALSA", "input"]


# ------------------------------------------------------------------------------------ opening


def test_one_device_is_one_stream_and_two_are_two(portaudio: FakePortAudio) -> None:
    info = PortAudioDevice("stereo", "stereo").open()
    assert [s.kind for s in portaudio.opened] == ["duplex"]
    assert info.one_clock
    info = PortAudioDevice().open()
    assert sorted(s.kind for s in portaudio.opened[1:]) == ["input", "output"]
    assert not info.one_clock
    assert (info.input_name, info.output_name) == ("Built-in Microphone", "Built-in Output")
    info = PortAudioDevice("stereo", "stereo", separate=True).open()
    assert not info.one_clock


def test_our_rate_and_one_channel_before_its_own(portaudio: FakePortAudio) -> None:
    PortAudioDevice("stereo", "stereo").open()
    first = portaudio.opened[0]
    assert (first.samplerate, first.channels, first.blocksize) == (24_000, (1, 1), 480)
    portaudio.devices[2] = ("Stereo Card", 2, 2, 44_100, {(44_100, 2)})
    info = PortAudioDevice("stereo", "stereo").open()
    second = portaudio.opened[1]
    assert (second.samplerate, second.channels, second.blocksize) == (44_100, (2, 2), 882)
    assert info.input_rate == info.output_rate == 44_100


def test_two_devices_may_have_two_rates(portaudio: FakePortAudio) -> None:
    portaudio.devices[0] = ("Built-in Microphone", 1, 0, 16_000, {(16_000, 1)})
    portaudio.devices[1] = ("Built-in Output", 0, 2, 48_000, {(48_000, 2)})
    info = PortAudioDevice().open()
    assert (info.input_rate, info.output_rate) == (16_000, 48_000)


def test_a_rate_can_be_forced(portaudio: FakePortAudio) -> None:
    assert PortAudioDevice(rate=16_000).open().output_rate == 16_000
    portaudio.devices[1] = ("Built-in Output", 0, 2, 48_000, {(48_000, 1)})
    with pytest.raises(AudioDeviceError, match=r'"Built-in Output" at 16000 Hz: Invalid sample'):
        PortAudioDevice(rate=16_000).open()


def test_after_a_refresh_the_name_counts_not_the_number(portaudio: FakePortAudio) -> None:
    device = PortAudioDevice("2", "2", refresh=True)
    portaudio.calls.clear()
    assert device.open().input_name == "Stereo Card"
    device.stop()
    portaudio.devices.insert(2, ("Newcomer", 2, 2, 48_000, None))
    assert device.open().input_name == "Stereo Card"
    assert portaudio.refreshes == 2
    device.stop()
    del portaudio.devices[3]
    with pytest.raises(AudioDeviceError, match='"Stereo Card" matches no device'):
        device.open()


def test_a_stream_that_ends_by_itself_is_noticed_and_our_own_stop_is_not(
    portaudio: FakePortAudio,
) -> None:
    device = PortAudioDevice("stereo", "stereo")
    device.open()
    device.stop()
    assert not device.ended
    device.open()
    portaudio.opened[-1].finished_callback()
    assert device.ended
    device.open()
    assert not device.ended


@pytest.mark.parametrize("rate", [24_000, 48_000])
def test_on_macos_the_devices_buffers_are_a_block(
    portaudio: FakePortAudio, monkeypatch: pytest.MonkeyPatch, rate: int
) -> None:
    """A MacBook's microphone and speakers: 20 ms at their 48 kHz are 960 frames."""
    monkeypatch.setattr(system, "MACOS", True)
    PortAudioDevice(rate=rate).open()
    fixed = dict(zip(("input", "output"), portaudio.fixed, strict=True))
    for opened in portaudio.opened:
        assert host_frames(opened, fixed[opened.kind]) == 960
    duplex = PortAudioDevice("stereo", "stereo", rate=rate)
    duplex.open()
    assert portaudio.opened[-1].latency == tuple(
        pytest.approx((882 + n) / rate) for n in portaudio.fixed
    ), "a device at 44.1 kHz"


def host_frames(opened: FakeStream, fixed: int) -> int:
    """The device's buffer as CalculateOptimalBufferSize in PortAudio's pa_mac_core.c has it."""
    variable = max(int(opened.latency * opened.samplerate) - fixed, 1)
    return -(-variable // opened.blocksize) * opened.blocksize


def test_elsewhere_the_latency_is_as_tried(portaudio: FakePortAudio) -> None:
    PortAudioDevice().open()
    PortAudioDevice("stereo", "stereo").open()
    assert [s.latency for s in portaudio.opened] == [0.08, 0.08, (0.08, 0.08)]


# ------------------------------------------------------------------------------ order of calls


def calls(portaudio: FakePortAudio) -> list[str]:
    return [call for call in portaudio.calls if not call.startswith("query")]


def test_the_microphone_runs_before_the_speaker_is_looked_at(portaudio: FakePortAudio) -> None:
    """A Bluetooth headset that begins a call changes its speaker's rate."""

    def begin_call() -> None:
        portaudio.devices[1] = ("AirPods", 0, 1, 16_000, {(16_000, 1)})

    portaudio.devices[:2] = [("AirPods", 1, 0, 24_000, None), ("AirPods", 0, 2, 44_100, None)]
    portaudio.on_start["input"] = begin_call
    device = PortAudioDevice()
    info = device.open()
    assert (info.input_rate, info.output_rate) == (24_000, 16_000)
    assert calls(portaudio) == ["open input", "start input", "open output"]
    device.start(lambda *_: None, lambda *_: None)
    assert calls(portaudio)[3:] == ["start output"], "each once"


def test_devices_are_looked_for_again_at_each_opening_if_we_may(portaudio: FakePortAudio) -> None:
    device = PortAudioDevice("0", "1", refresh=True)
    device.open()
    assert portaudio.calls.index("refresh") < portaudio.calls.index("open input")
    device.stop()
    device.open()
    assert portaudio.refreshes == 2
    device.stop()
    theirs = portaudio.InputStream(device=3, channels=1, samplerate=48_000)
    for _ in range(2):
        ours = PortAudioDevice()
        ours.open()
        ours.stop()
    assert theirs.open
    assert portaudio.refreshes == 2, "not where it would end a stream of others"


def test_the_number_is_of_the_list_that_the_user_saw(portaudio: FakePortAudio) -> None:
    """Another device comes while the model is loaded."""
    device = PortAudioDevice("2", "2", refresh=True)
    news = ("Newcomer", 2, 2, 48_000, None)
    portaudio.on_refresh = lambda: portaudio.devices.insert(0, news)
    assert device.open().input_name == "Stereo Card"


@pytest.mark.parametrize("may_ask", [True, False])
def test_the_microphone_is_asked_for_while_the_model_is_loaded(
    portaudio: FakePortAudio, monkeypatch: pytest.MonkeyPatch, may_ask: bool
) -> None:
    monkeypatch.setattr(stream, "asks_for_microphone", lambda: may_ask)
    started = threading.Event()
    portaudio.on_start["input"] = started.set
    with stream.ask_for_microphone("stereo"):
        assert not may_ask or started.wait(5.0)
        portaudio.calls.append("the model is loaded")
    device = PortAudioDevice(refresh=True)
    device.open()
    early = ["open input", "start input"] if may_ask else []
    late = ["close input"] if may_ask else []
    assert calls(portaudio)[: len(early) + len(late) + 2] == [
        *early,
        "the model is loaded",
        *late,
        "refresh",
    ]
    if may_ask:
        assert portaudio.opened[0].device == 2


def test_a_model_that_cannot_be_loaded_waits_for_no_answer(
    portaudio: FakePortAudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "asks_for_microphone", lambda: True)
    answer, asked = threading.Event(), threading.Event()

    def start() -> None:
        asked.set()
        answer.wait(20.0)

    portaudio.on_start["input"] = start
    began = time.monotonic()
    with pytest.raises(MoshiError, match="no such"), stream.ask_for_microphone(None):
        raise MoshiError("no such model" if asked.wait(4.0) else "the microphone was not opened")
    assert time.monotonic() - began < 5.0
    answer.set()


def test_no_microphone_is_no_error_while_the_model_is_loaded(
    portaudio: FakePortAudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "asks_for_microphone", lambda: True)
    with stream.ask_for_microphone("none such"):
        pass
    assert not portaudio.opened


# ----------------------------------------------------------------------- a PortAudio that hangs


def test_a_stop_that_never_returns_is_left_behind(
    portaudio: FakePortAudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "STOP_SECONDS", 0.2)
    heard: list[int] = []
    free = threading.Event()
    device = PortAudioDevice("stereo", "stereo", refresh=True)
    device.open()
    device.start(lambda *_: None, lambda pcm, *_: heard.append(len(pcm)))
    portaudio.on_abort = lambda: bool(free.wait(20.0))
    began = time.monotonic()
    device.stop()
    assert 0.2 <= time.monotonic() - began < 2.0
    assert stream.busy()
    block = np.zeros((480, 1), np.float32)
    portaudio.opened[-1].callback(block, block, 480, CLOCK, None)
    assert not heard, "no callback comes through"
    device.stop()
    refreshes = portaudio.refreshes
    with pytest.raises(AudioDeviceError, match="does not let go of a device"):
        device.open()
    assert portaudio.refreshes == refreshes, "it would hang too"
    free.set()
    deadline = time.monotonic() + 5.0
    while stream.busy() and time.monotonic() < deadline:
        time.sleep(0.005)
    device.open()
    device.stop()


def test_a_stop_that_hangs_while_the_card_is_reopened_is_told(
    portaudio: FakePortAudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "STOP_SECONDS", 0.1)
    free, now = threading.Event(), [0.0]
    frame = np.zeros(FRAME_SIZE, np.float32)
    texts: list[str] = []
    device = PortAudioDevice("stereo", "stereo", refresh=True)
    port = LiveAudio(device, sample_rate=SAMPLE_RATE, frame_size=FRAME_SIZE, clock=lambda: now[0])
    with port:
        portaudio.on_abort = lambda: bool(free.wait(20.0))
        portaudio.opened[-1].finished_callback()
        deadline = time.monotonic() + 10.0
        while len(texts) < 2 and time.monotonic() < deadline:
            port.read(frame, 0.01)
            now[0] += 0.1
            events = port.take_events(0.0)
            texts += [e.text for e in events if isinstance(e, Notice)]
            texts += [e.reason for e in events if isinstance(e, DeviceLost)]
        free.set()
    stuck = "PortAudio does not let go of a device: quit and start again"
    assert texts == ["a sound device, or the sound system, is gone", f"still no sound: {stuck}"]


def test_a_conversation_opens_its_card_after_the_model_is_loaded(
    portaudio: FakePortAudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The microphone for permission before; and Python switches sooner while it lasts."""
    monkeypatch.setattr(stream, "asks_for_microphone", lambda: True)
    started, load, intervals = threading.Event(), chat.load_model, []
    portaudio.on_start["input"] = started.set

    def loaded(*arguments: Any) -> Any:
        assert started.wait(10.0)
        portaudio.calls.append("loaded")
        return load(*arguments)

    def stop_here(*_: Any, **__: Any) -> None:
        intervals.append(sys.getswitchinterval())
        raise MoshiError("far enough")

    monkeypatch.setattr(chat, "load_model", loaded)
    monkeypatch.setattr(chat, "run_loop", stop_here)
    before = sys.getswitchinterval()
    options = chat.ChatOptions(ModelSource("nano"), plain=True)
    with pytest.raises(MoshiError, match="far enough"):
        chat.chat(options)
    assert [c for c in calls(portaudio) if not c.startswith("close")] == [
        "open input",
        "start input",
        "loaded",
        "refresh",
        "open input",
        "start input",
        "open output",
        "start output",
    ]
    assert (intervals, sys.getswitchinterval()) == ([system.SWITCH_SECONDS], before)


CLOCK = SimpleNamespace(currentTime=10.0, inputBufferAdcTime=9.97, outputBufferDacTime=10.05)
NO_CLOCK = SimpleNamespace(currentTime=0.0, inputBufferAdcTime=0.0, outputBufferDacTime=0.0)


@pytest.mark.parametrize(("channels", "heard"), [(1, [1.0, 2.0]), (2, [6.0, 7.0]), (8, [1.0, 2.0])])
def test_one_channel_is_heard_and_two_are_played(
    portaudio: FakePortAudio, channels: int, heard: list[float]
) -> None:
    portaudio.devices[3] = ("Interface", channels, channels, 48_000, {(48_000, channels)})
    device = PortAudioDevice("interface", "interface")
    device.open()
    got: list[Any] = []

    def hear(pcm: Any, age: float, flags: Any) -> None:
        got.append((pcm.tolist(), age, flags))

    def play(pcm: Any, ahead: float, flags: Any) -> None:
        pcm[:] = (0.5, 0.25)
        got.append((ahead, flags))

    device.start(play, hear)
    data = np.array([[1.0 + 10 * c, 2.0 + 10 * c] for c in range(channels)], np.float32).T
    out = np.full((2, channels), np.nan, np.float32)
    portaudio.opened[-1].callback(data, out, 2, CLOCK, "late")
    assert got == [
        (pytest.approx(0.05), None),
        (heard, pytest.approx(0.03), "late"),
    ], "what is played comes first"
    assert out[:, :2].T.tolist() == [[0.5, 0.25]] * min(channels, 2)
    assert not out[:, 2:].any()
    portaudio.opened[-1].callback(data, out, 2, NO_CLOCK, None)
    assert got[2][0] == got[3][1] == stream.UNKNOWN_SECONDS, "PortAudio knows no times"


def test_blocks_of_any_size_pass(portaudio: FakePortAudio) -> None:
    portaudio.devices[2] = ("Stereo Card", 2, 2, 44_100, {(44_100, 2)})
    device = PortAudioDevice("stereo", "stereo", block=0)
    device.open()
    lengths: list[int] = []
    device.start(
        lambda pcm, ahead, flags: lengths.append(len(pcm)),
        lambda pcm, age, flags: lengths.append(len(pcm)),
    )
    assert portaudio.opened[-1].blocksize == 0
    for n in (1, 511, 10_000):
        block = np.zeros((n, 2), np.float32)
        portaudio.opened[-1].callback(block, block.copy(), n, CLOCK, None)
    assert lengths == [1, 1, 511, 511, 10_000, 10_000]


def test_a_bluetooth_headset_is_remembered_by_name() -> None:
    """On macOS it is two devices of one name; two equal USB headsets have only their numbers."""
    pair = [DeviceInfo(0, "AirPods", 1, 0), DeviceInfo(1, "AirPods", 0, 2)]
    assert lasting_name(pair[0], "input", pair) == lasting_name(pair[1], "output", pair)
    assert find_device("AirPods", "input", pair).index == 0
    assert find_device("AirPods", "output", pair).index == 1
    twins = [DeviceInfo(0, "USB Headset", 1, 2), DeviceInfo(1, "USB Headset", 1, 2)]
    assert lasting_name(twins[1], "input", twins) == "1"
