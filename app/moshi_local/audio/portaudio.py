"""One microphone and one speaker, or one alone, as PortAudio streams, mono to those who listen.

Knows nothing of frames, delay and echo. The PortAudio callback copies and returns. A sound card
stands behind the `SoundDevice` protocol, so that tests can put a card without hardware there.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from moshi_mlx import AudioDeviceError
from moshi_mlx.arrays import Pcm

from ..platform import asks_for_microphone, sound_latency
from .devices import (
    DeviceInfo,
    choose_device,
    choose_devices,
    find_device,
    is_number,
    lasting_name,
    list_devices,
    reason_of,
    refresh_devices,
    sounddevice,
)
from .quiet import quiet_libraries

__all__ = [
    "Flags",
    "Hear",
    "Play",
    "PortAudioDevice",
    "SoundDevice",
    "StreamInfo",
    "ask_for_microphone",
    "busy",
]

BLOCK_SECONDS = 0.02
"""What a callback handles. Whole frames (0.08) took 160 ms longer on the virtual card."""
UNKNOWN_SECONDS = 0.08
"""What a block's time is taken for where PortAudio knows none."""
STOP_SECONDS = 3.0
"""So long we wait for PortAudio to stop and close. It sleeps for tenths of a second in it, and may
take a second or two with a device that is going away; on macOS it can deadlock."""
PERMISSION_ANSWER_SECONDS = 30.0
"""So long the system may hold a microphone back until the user has answered."""


class Flags(Protocol):
    """What PortAudio says about one callback (sounddevice.CallbackFlags)."""

    @property
    def input_underflow(self) -> bool: ...
    @property
    def input_overflow(self) -> bool: ...
    @property
    def output_underflow(self) -> bool: ...
    @property
    def output_overflow(self) -> bool: ...


Hear = Callable[[Pcm, float, "Flags | None"], None]
"""(heard [n], age, flags or None when nothing went wrong); mono, float32. The age is how long ago
the first of these samples was at the microphone (seconds)."""
Play = Callable[[Pcm, float, "Flags | None"], None]
"""(to be filled [n], ahead, flags or None); mono, float32. Ahead is how long it takes until the
first of these samples is at the speaker (seconds)."""


@dataclass(frozen=True, slots=True)
class StreamInfo:
    """What has been opened; rates in Hz. What was not wanted has the name "".

    one_clock: microphone and speaker run on one clock; for each block `play` is called, then
    `hear`, with the same number of samples.
    """

    input_name: str
    output_name: str
    input_rate: int
    output_rate: int
    one_clock: bool


class SoundDevice(Protocol):
    """A microphone and a speaker."""

    @property
    def ended(self) -> bool:
        """Whether a started stream has ended by itself: the device or its server is gone."""

    def open(self) -> StreamInfo:
        """Find the devices as they are now, and open them; raises AudioDeviceError."""

    def start(self, play: Play, hear: Hear) -> None:
        """From now on its own threads call `play` and `hear`; raises AudioDeviceError."""

    def stop(self) -> None:
        """Stop and close; no callback comes after it. Never raises."""


class PortAudioDevice:
    """A `SoundDevice` through PortAudio.

    input, output: a number or a part of a name, None for the system's own.
    rate: the rate to open the devices at (Hz); None tries `sample_rate` first, then the
    device's own.
    block: samples in a callback; None for BLOCK_SECONDS, 0 lets PortAudio choose.
    separate: two streams even on one device.
    microphone: open one; without it `hear` is never called.
    speaker: open one; without it `play` is never called.
    latency: to ask of PortAudio (seconds); None is as little as a conversation can have.
    refresh: look for devices again at each opening, the first included. PortAudio otherwise knows
        only those that were there when it was started; but this ends all streams that the process
        has open through PortAudio, also those of others.

    One device, or one default for both, is one duplex stream on one clock. Two devices are two
    streams and two clocks, also on macOS, where the built-in microphone and speaker are two
    devices: PortAudio would join them in one stream, but drops or repeats samples where their
    clocks differ, while two streams let us follow the difference smoothly.
    """

    def __init__(
        self,
        input: str | None = None,
        output: str | None = None,
        sample_rate: int = 24_000,
        *,
        rate: int | None = None,
        block: int | None = None,
        separate: bool = False,
        microphone: bool = True,
        speaker: bool = True,
        latency: float | None = None,
        refresh: bool = False,
    ) -> None:
        self._specs = [input, output]
        self._microphone, self._speaker = microphone, speaker
        self._asked_latency = latency
        self._refresh = refresh
        self._sample_rate = sample_rate
        self._rate = rate
        self._block = block
        self._separate = separate
        self._streams: list[Any] = []
        self._stopping = False
        self._ended = False
        self._play: Play = _silence
        self._hear: Hear = _ignore

    @property
    def ended(self) -> bool:
        """Whether a stream ended by itself since `open`."""
        return self._ended

    def open(self) -> StreamInfo:
        """Find the devices, as they are now if we may refresh, and open them.

        Of two streams, the microphone's is started before the speaker's is opened: a Bluetooth
        headset begins a call then, and its speaker takes another rate. Raises AudioDeviceError.
        """
        if busy(0.5 * STOP_SECONDS):
            raise AudioDeviceError("PortAudio does not let go of a device: quit and start again")
        with _in_portaudio():
            for i, kind in enumerate(("input", "output")):
                # Its number may be another device's after a refresh: the name stays.
                spec = (self._specs[i] or "").strip()
                if is_number(spec):
                    found = list_devices()
                    self._specs[i] = lasting_name(find_device(spec, kind, found), kind, found)
            if self._refresh:
                refresh_devices()
            if not self._microphone:
                target = choose_device("output", self._specs[1])
                self._stopping = self._ended = False
                return self._open_speaker(target)
            if not self._speaker:
                source = choose_device("input", self._specs[0])
                self._stopping = self._ended = False
                return self._open_microphone(source)
            source, target = choose_devices(self._specs[0], self._specs[1])
            self._stopping = self._ended = False
            if source.index == target.index and not self._separate:
                return self._open_duplex(source, target)
            return self._open_separate(source, target)

    def start(self, play: Play, hear: Hear) -> None:
        """From now on PortAudio's threads call `play` and `hear`; raises AudioDeviceError."""
        self._play, self._hear = play, hear
        with _in_portaudio():
            self._start_streams()

    def stop(self) -> None:
        """Stop and close.

        On macOS PortAudio can deadlock in it, and no signal reaches a thread that waits in C: so it
        has a thread, which is left behind after STOP_SECONDS; `busy` says so.
        """
        self._stopping = True
        self._play, self._hear = _silence, _ignore
        streams, self._streams = self._streams, []
        if streams:
            _close(streams)

    # ----------------------------------------------------------------------- opening

    def _open_duplex(self, source: DeviceInfo, target: DeviceInfo) -> StreamInfo:
        def make(rate: int, channels: tuple[int, int]) -> Any:
            hear, play = _Mixer(channels[0]), _Spreader(channels[1])

            def on_block(heard: Any, played: Any, frames: int, clock: Any, status: Any) -> None:
                play(played, self._play, clock, None)
                hear(heard, self._hear, clock, status if status else None)

            return sounddevice().Stream(
                device=(source.index, target.index),
                channels=channels,
                callback=on_block,
                latency=(
                    self._latency(source, "input", rate),
                    self._latency(target, "output", rate),
                ),
                **self._options(rate),
            )

        rate = self._first_that_opens(
            make, (source, target), [(1, 1), (source.inputs, target.outputs)]
        )
        return StreamInfo(source.name, target.name, rate, rate, True)

    def _open_speaker(self, target: DeviceInfo) -> StreamInfo:
        rate = self._open_output(target)
        return StreamInfo("", target.name, rate, rate, True)

    def _open_microphone(self, source: DeviceInfo) -> StreamInfo:
        rate = self._open_input(source)
        return StreamInfo(source.name, "", rate, rate, True)

    def _open_output(self, target: DeviceInfo) -> int:
        """Opens the speaker and returns its rate."""

        def make(rate: int, channels: tuple[int, int]) -> Any:
            play = _Spreader(channels[1])

            def on_block(played: Any, frames: int, clock: Any, status: Any) -> None:
                play(played, self._play, clock, status if status else None)

            return sounddevice().OutputStream(
                device=target.index,
                channels=channels[1],
                callback=on_block,
                latency=self._latency(target, "output", rate),
                **self._options(rate),
            )

        return self._first_that_opens(make, (target,), [(0, 1), (0, target.outputs)])

    def _open_input(self, source: DeviceInfo) -> int:
        """Opens the microphone and returns its rate."""

        def make(rate: int, channels: tuple[int, int]) -> Any:
            hear = _Mixer(channels[0])

            def on_block(heard: Any, frames: int, clock: Any, status: Any) -> None:
                hear(heard, self._hear, clock, status if status else None)

            return sounddevice().InputStream(
                device=source.index,
                channels=channels[0],
                callback=on_block,
                latency=self._latency(source, "input", rate),
                **self._options(rate),
            )

        return self._first_that_opens(make, (source,), [(1, 0), (source.inputs, 0)])

    def _open_separate(self, source: DeviceInfo, target: DeviceInfo) -> StreamInfo:
        input_rate = self._open_input(source)
        self._start_streams()
        # As it is listed now: its rate may be another.
        target = next((d for d in list_devices() if d.index == target.index), target)
        output_rate = self._open_output(target)
        return StreamInfo(source.name, target.name, input_rate, output_rate, False)

    def _options(self, rate: int) -> dict[str, Any]:
        return {
            "samplerate": rate,
            "blocksize": round(BLOCK_SECONDS * rate) if self._block is None else self._block,
            "dtype": "float32",
            "finished_callback": self._on_end,
        }

    def _latency(self, device: DeviceInfo, kind: str, rate: int) -> float:
        if self._asked_latency is not None:
            return self._asked_latency
        return sound_latency(device.low_latency(kind), device.rate, rate, BLOCK_SECONDS)

    def _start_streams(self) -> None:
        """Start those that do not run."""
        sd = sounddevice()
        try:
            for stream in self._streams:
                if not stream.active:
                    stream.start()
        except sd.PortAudioError as error:
            self.stop()
            raise AudioDeviceError(f"the sound devices do not start: {reason_of(error)}") from error

    def _on_end(self) -> None:
        if not self._stopping:
            self._ended = True

    def _first_that_opens(
        self,
        make: Callable[[int, tuple[int, int]], Any],
        devices: tuple[DeviceInfo, ...],
        channels: list[tuple[int, int]],
    ) -> int:
        """Opens a stream and returns its rate: ours before the device's own, mono before its
        own channels."""
        sd = sounddevice()
        errors: list[Exception] = []
        rates = list(self._rates(devices))
        for rate in rates:
            for count in dict.fromkeys(channels):
                try:
                    stream = make(rate, count)
                except (sd.PortAudioError, ValueError) as error:
                    errors.append(error)
                else:
                    self._streams.append(stream)
                    return rate
        self.stop()
        names = " with ".join(f'"{name}"' for name in dict.fromkeys(d.name for d in devices))
        tried = " or ".join(str(rate) for rate in rates)
        # That a rate or a number of channels is refused says nothing where another error comes.
        cause = next((e for e in errors if not _is_refusal(e)), errors[0])
        raise AudioDeviceError(
            f"cannot open {names} at {tried} Hz: {reason_of(cause)}; "
            "`moshi-local devices` lists what there is"
        ) from cause

    def _rates(self, devices: tuple[DeviceInfo, ...]) -> Iterator[int]:
        """The rates to try, in order, each once; only such that a frame is whole samples."""
        if self._rate is not None:
            yield self._rate
            return
        wanted = [self._sample_rate, *(d.rate for d in devices), 48_000, 44_100, 16_000]
        yield from dict.fromkeys(r for r in wanted if r > 0 and r % 25 == 0)


# ------------------------------------------------------------------ threads inside PortAudio

_inside: dict[object, float] = {}
"""The calls of PortAudio that have not returned, and since when (monotonic seconds)."""


def busy(seconds: float = 0.0) -> bool:
    """Whether a thread has been inside PortAudio for longer than `seconds`.

    Where one is at the end of the program, Python must not end in the usual way: sounddevice would
    then wait for PortAudio.
    """
    now = time.monotonic()
    return any(now - since >= seconds for since in tuple(_inside.values()))


@contextmanager
def _in_portaudio() -> Iterator[None]:
    """Around calls that may take long, or never return."""
    call = object()
    _inside[call] = time.monotonic()
    try:
        with quiet_libraries():
            yield
    finally:
        del _inside[call]


def _close(streams: list[Any]) -> None:
    """Stop and close them on a thread, and wait for it for STOP_SECONDS."""

    def close() -> None:
        with _in_portaudio():
            for stream in streams:
                stream.abort(ignore_errors=True)
                stream.close(ignore_errors=True)

    thread = threading.Thread(target=close, name="close sound", daemon=True)
    thread.start()
    thread.join(STOP_SECONDS)


@contextmanager
def ask_for_microphone(input: str | None) -> Iterator[None]:
    """While it lasts the microphone runs, where the system asks the user for permission then.

    So the question comes while the model is loaded, not in the first seconds of the conversation,
    which would begin with silence. The stream is closed at the end: the conversation looks for
    devices again, for which no stream may be open. Only where the user has not been asked yet,
    since a Bluetooth headset that listens plays everything like a telephone. Errors are not told
    here: the conversation will meet them.
    """
    if not asks_for_microphone():
        yield
        return
    streams: list[Any] = []

    def listen() -> None:
        with _in_portaudio(), suppress(Exception):
            found = list_devices()
            chosen = find_device(input, "input", found) if input else None
            stream = sounddevice().InputStream(device=chosen and chosen.index, channels=1)
            streams.append(stream)
            stream.start()

    thread = threading.Thread(target=listen, name="ask for microphone", daemon=True)
    thread.start()
    patience = 0.0  # where the model cannot be loaded
    try:
        yield
        patience = PERMISSION_ANSWER_SECONDS
    finally:
        thread.join(patience)
        if not thread.is_alive():
            _close(streams)


def _is_refusal(error: Exception) -> bool:
    """Whether another rate or number of channels may help."""
    return error.args[1:2] in ((-9997,), (-9998,))


def _silence(played: Pcm, ahead: float, flags: Flags | None) -> None:
    played[:] = 0.0


def _ignore(heard: Pcm, age: float, flags: Flags | None) -> None:
    pass


def _plausible(seconds: float) -> float:
    """What PortAudio says about a block's time, or UNKNOWN_SECONDS if it knows nothing."""
    return seconds if 0.0 < seconds < 2.0 else UNKNOWN_SECONDS


class _Scratch:
    """A mono buffer for blocks of any size; a new one only for a block longer than all before."""

    def __init__(self) -> None:
        self._buffer = np.zeros(4096, np.float32)

    def __call__(self, n: int) -> Pcm:
        if n > len(self._buffer):
            self._buffer = np.zeros(n, np.float32)
        return self._buffer[:n]


class _Mixer:
    """What was heard [n, channels] as one channel: the mean of two, the first of more."""

    def __init__(self, channels: int) -> None:
        self._stereo = channels == 2
        self._scratch = _Scratch()

    def __call__(self, heard: Pcm, hear: Hear, clock: Any, flags: Flags | None) -> None:
        age = _plausible(clock.currentTime - clock.inputBufferAdcTime)
        if self._stereo:
            mono = self._scratch(len(heard))
            np.add(heard[:, 0], heard[:, 1], out=mono)
            np.multiply(mono, np.float32(0.5), out=mono)
        else:
            mono = heard[:, 0]
        hear(mono, age, flags)


class _Spreader:
    """One channel on the first two of [n, channels], silence on the others."""

    def __init__(self, channels: int) -> None:
        self._one = channels == 1
        self._scratch = _Scratch()

    def __call__(self, played: Pcm, play: Play, clock: Any, flags: Flags | None) -> None:
        ahead = _plausible(clock.outputBufferDacTime - clock.currentTime)
        if self._one:
            play(played[:, 0], ahead, flags)
            return
        mono = self._scratch(len(played))
        play(mono, ahead, flags)
        played[:, 0] = mono
        played[:, 1] = mono
        played[:, 2:] = 0.0
