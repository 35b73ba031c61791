"""The speaker alone, for speech that is made ahead of its time: all is heard, in order.

A conversation leaves sound out to stay in time; here sound waits, and whoever makes it waits when
there is enough. Where there is too little, a pause is made, and next time more is kept. Knows
nothing of models and words.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict

import numpy as np
import soxr

from moshi_mlx import AudioDeviceError
from moshi_mlx.arrays import Pcm

from ..platform import bluetooth, first_callback_seconds, keep_awake_and_fast, quick_switches
from .card import REOPEN_SECONDS, SILENT_STARTS
from .counters import DeviceCounters
from .portaudio import Flags, PortAudioDevice, SoundDevice, StreamInfo
from .quiet import quiet_libraries
from .resample import Resampler
from .ring import Ring

__all__ = ["Playback", "playback_on"]

FIRST_SECONDS = 0.1
"""So much must wait before sound begins, at first and after a pause."""
MOST_FIRST_SECONDS = 3.2
LATENCY_SECONDS = 0.16
"""Twice what a conversation asks for: this much later speech begins, and so long a busy machine may
hold the program up without a gap."""
AHEAD_SECONDS = 20.0
"""More than this never waits."""
STILL_SECONDS = 3.0
"""So long a device that has played may not call; a conversation is not as patient."""
LOST_SECONDS = 30.0
"""So long a lost device is tried again."""
_POLL_SECONDS = 0.05


class Playback:
    """Plays what it is given through a `SoundDevice` that has no microphone.

    A context manager: entering it opens the device. A device that is lost is opened again.
    `write`, `settle` and `finish` belong to one thread.

    Args:
        device: the speaker.
        sample_rate: of what it is given (Hz).
        clock: gives seconds.

    Raises:
        AudioDeviceError: on entering, if the device cannot be opened; later, if it is lost for
            LOST_SECONDS, or never plays.
    """

    def __init__(
        self,
        device: SoundDevice,
        *,
        sample_rate: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.counters = DeviceCounters()
        self.first_sound_at: float | None = None
        """When the first sample is at the speaker, by `clock` (seconds); None before it."""
        self._device, self._rate, self._clock = device, sample_rate, clock
        self._cushion = FIRST_SECONDS
        self._ring = Ring(1)
        self._resampler: Resampler | None = None
        self._rate_out = 0
        self._played = threading.Event()
        self._starts = 0
        self._calls_before = 0
        self._opened_at = self._called_at = self._ends_at = clock()
        # Of the sound card's thread, but for `_settled`.
        self._held, self._settled = True, False

    def __enter__(self) -> Playback:
        self._open()
        return self

    def __exit__(self, *_: object) -> None:
        self._device.stop()

    # ----------------------------------------------------------------------- our thread

    def write(self, pcm: Pcm) -> None:
        """Queues sound, float32 [samples] at our rate; waits while there is no room for it.

        Raises:
            AudioDeviceError: the device is lost.
        """
        self._settled = False
        self._watch()
        piece = round(self._rate * AHEAD_SECONDS / 4)
        for start in range(0, len(pcm), piece):
            part = pcm[start : start + piece]
            self._wait(lambda part=part: self.seconds + len(part) / self._rate <= AHEAD_SECONDS)  # type: ignore[misc]
            self._ring.put(part if self._resampler is None else self._resampler.process(part))

    def settle(self) -> None:
        """Nothing more comes for now: what waits is played to its end, and no gap is counted.

        So it is until the next `write`.
        """
        self._settled = True

    def finish(self) -> None:
        """Waits until all has been heard.

        Raises:
            AudioDeviceError: the device is lost.
        """
        self.settle()
        self._wait(lambda: not len(self._ring) and self._clock() >= self._ends_at)

    @property
    def seconds(self) -> float:
        """Sound that waits to be played."""
        return len(self._ring) / self._rate_out

    def statistics(self) -> dict[str, float | int]:
        """The counters; `gaps` are pauses that were made since sound came too late."""
        counters = asdict(self.counters)
        names = ("callbacks", "output_underflows", "gaps", "restarts")
        return {"xruns": self.counters.xruns, **{name: counters[name] for name in names}}

    # ------------------------------------------------------------- the sound card's thread

    def _play(self, out: Pcm, ahead: float, flags: Flags | None) -> None:
        """Fill a block, whose first sample is at the speaker in `ahead` seconds."""
        now = self._clock()
        self.counters.count(flags)
        self.counters.callbacks += 1
        self._called_at = now
        waits = len(self._ring)
        if self._held and waits:
            self._held = not self._settled and waits < self._cushion * self._rate_out
        filled = 0 if self._held else self._ring.take(out)
        out[filled:] = 0.0
        if filled:
            if self.first_sound_at is None:
                self.first_sound_at = now + ahead
            self._ends_at = now + ahead + filled / self._rate_out
        if filled < len(out) and not self._held:
            self._held = True
            if not self._settled:
                self.counters.gaps += 1
                self._cushion = min(2 * self._cushion, MOST_FIRST_SECONDS)
        self._played.set()

    # ------------------------------------------------------------------------ the device

    def _wait(self, done: Callable[[], bool]) -> None:
        """Until `done`, while the device is watched."""
        self._watch()
        while not done():
            self._played.wait(_POLL_SECONDS)
            self._played.clear()
            self._watch()

    def _open(self) -> StreamInfo:
        info = self._device.open()
        self._starts += 1
        self._opened_at = self._called_at = self._clock()
        self._calls_before = self.counters.callbacks
        self._take_rate(info.output_rate)
        self._device.start(self._play, _ignore)
        self._info = info
        return info

    def _take_rate(self, rate: int) -> None:
        """What waits goes on at the device's rate, which may be another than before."""
        if rate == self._rate_out:
            return
        waits = np.zeros(len(self._ring), np.float32)
        self._ring.take(waits)
        before, self._rate_out = self._rate_out, rate
        self._ring = Ring(round(rate * (AHEAD_SECONDS + 1.0)))
        if len(waits):
            self._ring.put(soxr.resample(waits, before, rate))
        self._resampler = None if rate == self._rate else Resampler(self._rate, rate)

    def _watch(self) -> None:
        """Opens the device again if it is lost."""
        called = self.counters.callbacks > self._calls_before
        patience = STILL_SECONDS if called else first_callback_seconds()
        if not self._device.ended and self._clock() - self._called_at <= patience:
            return
        never = not self.counters.callbacks and not bluetooth(self._info.output_name)
        if never and self._starts >= SILENT_STARTS:
            raise AudioDeviceError(
                f'output "{self._info.output_name}" was opened {SILENT_STARTS} times and never '
                "played; choose another one with --output, or write a file with -o"
            )
        self.counters.restarts += 1
        deadline = self._clock() + LOST_SECONDS
        while True:
            self._device.stop()
            try:
                self._open()
                return
            except AudioDeviceError:
                if self._clock() >= deadline:
                    raise
            time.sleep(REOPEN_SECONDS)


@contextmanager
def playback_on(output: str | None, rate: int | None, sample_rate: int) -> Iterator[Playback]:
    """The system's speaker, or the one asked for, while the block runs.

    Args:
        output: its number or a part of its name; None is the system's own.
        rate: to open it at (Hz); None leaves that to the device.
        sample_rate: of what it will be given (Hz).

    Raises:
        AudioDeviceError: it cannot be opened.
    """
    device = PortAudioDevice(None, output, sample_rate, rate=rate, microphone=False, refresh=True)
    with (
        keep_awake_and_fast("speech"),
        quick_switches(),
        quiet_libraries(),
        Playback(device, sample_rate=sample_rate) as playback,
    ):
        yield playback


def _ignore(heard: Pcm, age: float, flags: Flags | None) -> None:
    """There is no microphone."""
