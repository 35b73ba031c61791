"""The sound card: devices by number or name, one duplex stream, bounded rings, a watchdog.

Knows nothing of models. The PortAudio callback copies and returns: it takes no lock that anybody
holds, logs nothing and allocates no buffer; all decisions are made on the thread that calls
`LiveAudio.read` and `LiveAudio.write`. A sound card stands behind the `DuplexDevice` protocol, so
that tests can put a card without hardware there.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from moshi_mlx import AudioDeviceError

from .events import Event, Lag, Opened, Restarted
from .loop import Read

__all__ = [
    "DeviceCounters",
    "DeviceInfo",
    "DuplexCallback",
    "DuplexDevice",
    "Flags",
    "LiveAudio",
    "PortAudioDevice",
    "Ring",
    "choose_devices",
    "find_device",
    "list_devices",
]

FloatArray = NDArray[np.float32]

BLOCK_SECONDS = 0.02
"""What a callback handles. Whole frames (0.08) took 160 ms longer on the virtual card."""
LATENCY_SECONDS = 0.08
"""What PortAudio is asked for, each way. On the virtual card, on a Linux machine with two to six
times the work it could do, runs of 15 to 20 s had xruns: 0.04 ("low") in 2 of 3, 0.06 in 1 of 6,
0.08 in 0 of 6 (a minute at 0.08 had 4 once). From microphone to speaker it was 220 ms at 0.04
and 280 ms at 0.08."""
CUSHION_SECONDS = 0.04
"""Silence put before the first frame played, so that a frame may be late by this much."""
INPUT_LIMIT_FRAMES = 6
OUTPUT_LIMIT_FRAMES = 3
FIRST_CALLBACK_SECONDS = 2.0
CALLBACK_SECONDS = 1.0
REOPEN_SECONDS = 0.2
RESTARTS_IN_A_ROW = 5


# ---------------------------------------------------------------------------------- devices


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """A sound device as PortAudio lists it."""

    index: int
    name: str
    inputs: int
    outputs: int

    def channels(self, kind: str) -> int:
        """The number of channels of `kind`, "input" or "output"."""
        return self.inputs if kind == "input" else self.outputs


def _sounddevice() -> Any:
    """The sounddevice module; imported late, since it needs the PortAudio library."""
    try:
        import sounddevice
    except OSError as error:
        raise AudioDeviceError(
            f"the PortAudio library is missing ({error}); "
            "on Debian or Ubuntu: apt-get install libportaudio2"
        ) from error
    return sounddevice


def list_devices() -> list[DeviceInfo]:
    """All sound devices that PortAudio sees now."""
    sd = _sounddevice()
    try:
        found = sd.query_devices()
    except sd.PortAudioError as error:
        raise AudioDeviceError(f"cannot list the sound devices: {_reason(error)}") from error
    return [
        DeviceInfo(i, d["name"], d["max_input_channels"], d["max_output_channels"])
        for i, d in enumerate(found)
    ]


def find_device(spec: str | int, kind: str, devices: list[DeviceInfo]) -> DeviceInfo:
    """The device with number `spec`, or the one device whose name contains `spec`.

    `kind` is "input" or "output". A whole name goes before a part of one; case does not count.
    Raises AudioDeviceError, with the devices there are, when none or several fit.
    """
    usable = [d for d in devices if d.channels(kind) > 0]
    listing = ", ".join(f'{d.index} "{d.name}"' for d in usable) or "none"
    text = str(spec).strip()
    if text.isdigit():
        fits = [d for d in usable if d.index == int(text)]
    else:
        names = [(d, d.name.casefold()) for d in usable]
        fits = [d for d, name in names if name == text.casefold()]
        fits = fits or [d for d, name in names if text.casefold() in name]
    if len(fits) == 1:
        return fits[0]
    problem = "matches several devices" if fits else "matches no device"
    raise AudioDeviceError(f'{kind} "{text}" {problem}; {kind} devices: {listing}')


def choose_devices(input: str | None, output: str | None) -> tuple[int | None, int | None]:
    """The numbers of the devices asked for; None for the system's own. Raises AudioDeviceError."""
    devices = list_devices()
    chosen: list[int | None] = []
    for kind, spec in (("input", input), ("output", output)):
        if spec is not None:
            chosen.append(find_device(spec, kind, devices).index)
        elif any(d.channels(kind) for d in devices):
            chosen.append(None)
        else:
            raise AudioDeviceError(
                f"there is no {kind} device; plug one in, or use `moshi-local run` with files"
            )
    return chosen[0], chosen[1]


# ------------------------------------------------------------------------------ the stream


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


DuplexCallback = Callable[[FloatArray, FloatArray, "Flags | None"], None]
"""(heard [n], to be filled [n], flags or None when nothing went wrong); mono, float32."""


class DuplexDevice(Protocol):
    """One microphone and one speaker on one clock."""

    @property
    def input_name(self) -> str: ...
    @property
    def output_name(self) -> str: ...
    def start(self, callback: DuplexCallback) -> None:
        """Open and start; raises AudioDeviceError."""

    def stop(self) -> None:
        """Stop and close; no callback comes after it. Never raises."""


class PortAudioDevice:
    """A duplex `sounddevice.Stream`, mono float32; looks its devices up anew at every start."""

    def __init__(self, input: str | None, output: str | None, sample_rate: int) -> None:
        self._specs = (input, output)
        self._rate = sample_rate
        self._stream: Any = None
        self._started_before = False
        self.input_name = input or "default"
        self.output_name = output or "default"

    def start(self, callback: DuplexCallback) -> None:
        """Open and start; raises AudioDeviceError."""
        sd = _sounddevice()
        if self._started_before:
            refresh_devices()
        self._started_before = True
        chosen = choose_devices(*self._specs)

        def on_block(heard: Any, played: Any, frames: int, clock: Any, status: Any) -> None:
            callback(heard[:, 0], played[:, 0], status if status else None)

        try:
            self._stream = sd.Stream(
                samplerate=self._rate,
                blocksize=round(BLOCK_SECONDS * self._rate),
                device=chosen,
                channels=1,
                dtype="float32",
                latency=LATENCY_SECONDS,
                callback=on_block,
            )
            self.input_name, self.output_name = (
                sd.query_devices(number)["name"] for number in self._stream.device
            )
            self._stream.start()
        except (sd.PortAudioError, ValueError) as error:
            self.stop()
            raise AudioDeviceError(
                f'cannot open input "{self.input_name}" with output "{self.output_name}" '
                f"at {self._rate} Hz: {_reason(error)}"
            ) from error

    def stop(self) -> None:
        """Stop and close."""
        if self._stream is not None:
            self._stream.abort(ignore_errors=True)
            self._stream.close(ignore_errors=True)
            self._stream = None


def refresh_devices() -> None:
    """Make PortAudio look for devices again (its list is frozen otherwise); no stream may be open.

    sounddevice has no public call for this; these two are what its own issue tracker advises.
    """
    sd = _sounddevice()
    try:
        sd._terminate()
        sd._initialize()
    except sd.PortAudioError as error:
        raise AudioDeviceError(f"PortAudio does not start again: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """PortAudio's words on one line."""
    return " ".join(str(error.args[0] if error.args else error).split())


# --------------------------------------------------------------------------------- the rings


class Ring:
    """A ring of samples for one writer and one reader on two threads, without a lock.

    Writing never waits and never fails: the writer goes over the oldest samples. Two counters
    that only grow (`written`, `taken`) say what is in it; each is set by one side only.
    """

    def __init__(self, capacity: int) -> None:
        self._data = np.zeros(capacity, np.float32)
        self.written = 0
        self.taken = 0
        self.dropped = 0

    @property
    def available(self) -> int:
        """Samples that wait to be read."""
        return self.written - self.taken

    def put(self, pcm: FloatArray) -> None:
        """Writer's side: append `pcm` (at most half the capacity)."""
        data, n = self._data, len(pcm)
        at = self.written % len(data)
        first = min(n, len(data) - at)
        data[at : at + first] = pcm[:first]
        data[: n - first] = pcm[first:]
        self.written += n

    def take(self, out: FloatArray) -> int:
        """Reader's side: fill `out` as far as there are samples; returns how many there were."""
        data = self._data
        n = min(len(out), self.available)
        at = self.taken % len(data)
        first = min(n, len(data) - at)
        out[:first] = data[at : at + first]
        out[first:n] = data[: n - first]
        self.taken += n
        return n

    def keep_newest(self, n: int) -> int:
        """Reader's side: throw all but the newest `n` samples away; returns how many went."""
        gone = max(0, self.available - n)
        self.taken += gone
        self.dropped += gone
        return gone


@dataclass(slots=True)
class DeviceCounters:
    """What the sound card did. Flags are counted by callback; `gaps` are holes in the output."""

    callbacks: int = 0
    input_underflows: int = 0
    input_overflows: int = 0
    output_underflows: int = 0
    output_overflows: int = 0
    gaps: int = 0
    restarts: int = 0

    @property
    def xruns(self) -> int:
        """Callbacks that PortAudio flagged, each kind counted."""
        return (
            self.input_underflows
            + self.input_overflows
            + self.output_underflows
            + self.output_overflows
        )


class LiveAudio:
    """Frames from a microphone and to a speaker: an `AudioPort` over a `DuplexDevice`.

    `read` and `write` belong to one thread. Input that waits longer than INPUT_LIMIT_FRAMES goes,
    oldest first; output that waits longer than OUTPUT_LIMIT_FRAMES is cut back to one frame, so
    that delay does not stay after a stall. A stream that does not call is opened again.
    """

    def __init__(self, device: DuplexDevice, *, sample_rate: int, frame_size: int) -> None:
        self._device = device
        self._rate = sample_rate
        self._cushion = np.zeros(round(CUSHION_SECONDS * sample_rate), np.float32)
        self._input_limit = INPUT_LIMIT_FRAMES * frame_size
        self._output_limit = OUTPUT_LIMIT_FRAMES * frame_size
        self._output_keep = frame_size + len(self._cushion)
        # Twice the limit: the reader keeps so far from the writer that they cannot meet.
        self._input = Ring(2 * self._input_limit)
        self._output = Ring(2 * self._output_limit + len(self._cushion))
        self._starving = True
        self._frame_size = frame_size
        self._arrived = threading.Lock()
        self._arrived.acquire()
        self._calls_seen = 0
        self._last_call = 0.0
        self._patience = FIRST_CALLBACK_SECONDS
        self._restarts_in_a_row = 0
        self._reported = (0, 0)
        self._events: list[Event] = []
        self.counters = DeviceCounters()

    def __enter__(self) -> LiveAudio:
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        self._device.stop()

    # -------------------------------------------------------------- the callback's thread

    def _callback(self, heard: FloatArray, played: FloatArray, flags: Flags | None) -> None:
        counters = self.counters
        counters.callbacks += 1
        if flags is not None:
            counters.input_underflows += flags.input_underflow
            counters.input_overflows += flags.input_overflow
            counters.output_underflows += flags.output_underflow
            counters.output_overflows += flags.output_overflow
        self._input.put(heard)
        output = self._output
        if output.available > self._output_limit:
            output.keep_newest(self._output_keep)
        filled = output.take(played)
        if filled < len(played):
            played[filled:] = 0.0
            if not self._starving:
                counters.gaps += 1
                self._starving = True
        # A lock used as a bell: only this thread releases it, so this never waits.
        if self._input.available >= self._frame_size and self._arrived.locked():
            self._arrived.release()

    # ---------------------------------------------------------------- the worker's thread

    def read(self, frame: FloatArray, timeout: float) -> Read:
        """Fill `frame` with the next frame heard; NOTHING when none came in `timeout` seconds."""
        if self._input.available < len(frame):
            self._arrived.acquire(timeout=timeout)
        self._watch()
        if self._input.available > self._input_limit:
            self._input.keep_newest(self._input_limit)
        if self._input.available < len(frame):
            return Read.NOTHING
        self._input.take(frame)
        return Read.FRAME

    def write(self, pcm: FloatArray) -> None:
        """Queue a frame for the speaker; never waits."""
        if self._starving:
            self._output.put(self._cushion)
        self._output.put(pcm)
        self._starving = False

    def take_events(self, now: float) -> list[Event]:
        """What happened since the last call; `now` is on the session's clock (seconds)."""
        before, dropped = self._reported, (self._input.dropped, self._output.dropped)
        if dropped != before:
            self._reported = dropped
            lost = [(n - b) / self._rate for n, b in zip(dropped, before, strict=True)]
            self._events.append(Lag(now, lost[0], lost[1]))
        events, self._events = self._events, []
        return [replace(event, time=now) for event in events]

    def statistics(self) -> dict[str, float | int]:
        """The counters, and the sound thrown away (seconds), for a report."""
        return {
            **asdict(self.counters),
            "xruns": self.counters.xruns,
            "input_dropped_seconds": self._input.dropped / self._rate,
            "output_dropped_seconds": self._output.dropped / self._rate,
        }

    def _start(self) -> None:
        self._calls_seen = self.counters.callbacks
        self._patience = FIRST_CALLBACK_SECONDS
        self._device.start(self._callback)
        self._last_call = time.monotonic()
        self._events.append(Opened(0.0, self._device.input_name, self._device.output_name))

    def _watch(self) -> None:
        """Open the stream again when it has not called for too long."""
        now, calls = time.monotonic(), self.counters.callbacks
        if calls != self._calls_seen:
            self._calls_seen, self._last_call = calls, now
            self._patience, self._restarts_in_a_row = CALLBACK_SECONDS, 0
        elif now - self._last_call > self._patience:
            never = self._patience == FIRST_CALLBACK_SECONDS
            self._restart("it started but never called" if never else "it stopped calling")

    def _restart(self, reason: str) -> None:
        """Open the device again; AudioDeviceError after RESTARTS_IN_A_ROW without one callback."""
        while self._restarts_in_a_row < RESTARTS_IN_A_ROW:
            self._restarts_in_a_row += 1
            self.counters.restarts += 1
            self._device.stop()
            self._input.keep_newest(0)
            self._events.append(Restarted(0.0, reason))
            try:
                return self._start()
            except AudioDeviceError as error:
                reason = str(error)
                time.sleep(REOPEN_SECONDS)
        raise AudioDeviceError(
            f'input "{self._device.input_name}" with output "{self._device.output_name}" was '
            f"opened {RESTARTS_IN_A_ROW} times and delivers no sound: {reason}"
        )
