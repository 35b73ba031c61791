"""The microphone's side: blocks in from the sound card's thread, whole frames out to ours.

Knows nothing of the speaker, except that a `Reference` keeps what it played beside what is heard.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np

from moshi_mlx.arrays import Pcm

from .counters import DeviceCounters
from .drift import DriftControl
from .portaudio import Flags
from .resample import Resampler
from .ring import Ring

__all__ = ["Capture", "Reference"]

INPUT_LIMIT_FRAMES = 6
"""More than this never waits, however fast the model is."""
REFERENCE_CUSHION_SECONDS = 0.03
"""With two clocks, the reference is kept about this much ahead of the microphone, so that it is
there when a frame is. An echo is later: two blocks and the air are between."""
REFERENCE_JUMP_SECONDS = 0.1
"""Beyond this the reference is aligned again; up to it, only its drift is followed."""
REFERENCE_SETTLE_FRAMES = 64
"""So long the reference is left where it is, and its mean place is taken for its right one."""
REFERENCE_DRIFT_SECONDS = 60.0


class Capture:
    """What the microphone hears, in frames at our rate.

    `hear` is called on the sound card's thread, all else on one other thread. `frame_size` is
    in samples at `sample_rate`; `device_rate` is the card's (Hz); `clock` gives seconds.
    """

    def __init__(
        self,
        *,
        sample_rate: int,
        device_rate: int,
        frame_size: int,
        counters: DeviceCounters,
        clock: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        self._rate = device_rate
        self.frame_samples = frame_size * device_rate // sample_rate
        """A frame at the card's rate."""
        # Twice the limit: the reader keeps so far from the writer that they cannot meet.
        self._ring = Ring(2 * (INPUT_LIMIT_FRAMES + 2) * self.frame_samples)
        self._raw = np.zeros(self.frame_samples, np.float32)
        self._resampler = (
            None if device_rate == sample_rate else Resampler(device_rate, sample_rate)
        )
        self.delay = self._resampler.delay if self._resampler else 0.0
        self._counters = counters
        self._clock, self._wall = clock, wall
        self._bell = threading.Lock()
        self._bell.acquire()
        self._mark = (0, clock(), 0)
        self._first = (0, clock())
        self.calls = 0
        self.called_at = wall()
        """When the card called last, by the clock on the wall (seconds)."""
        self.longest_pause = 0.0
        """Between two calls, by the clock on the wall (seconds); set it to 0 after use."""
        self.level = 0.0
        """The peak of the last frame, 0 to 1."""
        self._behind = False
        self.heard_at = 0.0
        """When the first sample of the last frame was at the microphone, by `clock` (seconds)."""

    def hear(self, heard: Pcm, age: float, flags: Flags | None) -> None:
        """The card's thread: keep a block, whose first sample is `age` seconds old."""
        wall = self._wall()
        self.longest_pause = max(self.longest_pause, wall - self.called_at)
        self.called_at = wall
        self._counters.count(flags)
        self._counters.callbacks += 1
        now = self._clock()
        self._first = (self._ring.written, now - age)
        self._ring.put(heard)
        self._mark = (self._ring.written, now, len(heard))
        self.calls += 1
        # A lock used as a bell: only this thread releases it, so this never waits.
        if len(self._ring) >= self.frame_samples and self._bell.locked():
            self._bell.release()

    @property
    def backlog(self) -> int:
        """Whole frames that wait."""
        return len(self._ring) // self.frame_samples

    @property
    def behind(self) -> bool:
        """Whether more waits, or did when the last frame was read, than a block's phase."""
        return self._behind or self.backlog > 0

    @property
    def lag(self) -> float:
        """Sound that waits beyond the frame that is read next (seconds)."""
        return max(0, len(self._ring) - self.frame_samples) / self._rate

    @property
    def waits(self) -> float:
        """The age of the oldest sample that waits (seconds)."""
        written, at, _ = self._mark
        return (written - self._ring.taken) / self._rate + self._clock() - at

    def wait(self, timeout: float) -> bool:
        """Whether a frame is there, waiting for it at most `timeout` seconds."""
        if len(self._ring) < self.frame_samples:
            self._bell.acquire(timeout=timeout)
        return len(self._ring) >= self.frame_samples

    def drop_all_but(self, frames: int) -> int:
        """Keep the newest `frames`, and what belongs to a frame that is not whole yet; returns
        the samples that went (at the card's rate)."""
        surplus = self.backlog - frames
        if surplus <= 0:
            return 0
        gone = self._ring.skip(surplus * self.frame_samples)
        self._counters.input_dropped_seconds += gone / self._rate
        return gone

    def take(self, frame: Pcm) -> None:
        """Fill `frame` [frame_size] with the oldest that waits; call it when `wait` said yes."""
        index, at = self._first
        self.heard_at = at + (self._ring.taken - index) / self._rate
        self._behind = len(self._ring) - self.frame_samples > 1.5 * self._mark[2]
        self._ring.take(self._raw)
        self.level = float(np.max(np.abs(self._raw)))
        if self._resampler is None:
            frame[:] = self._raw
        else:
            self._resampler.fill(self._raw, frame)


class Reference:
    """What was played, for the time of each frame that is heard.

    The speaker's side puts into `ring` all that it plays, at `device_rate`. On one clock it is
    counted with the microphone's samples. On two, the level of the ring steers a resampler, so
    that an echo stays where it is in relation to the reference, within a few milliseconds.
    """

    def __init__(
        self, *, sample_rate: int, device_rate: int, frame_size: int, one_clock: bool
    ) -> None:
        self._rate = device_rate
        self._frame_samples = frame_size * device_rate // sample_rate
        self.ring = Ring(2 * (INPUT_LIMIT_FRAMES + 2) * self._frame_samples)
        self._resampler = (
            None
            if one_clock and device_rate == sample_rate
            else Resampler(device_rate, sample_rate)
        )
        self._drift = None if one_clock else DriftControl(REFERENCE_DRIFT_SECONDS)
        self._aligned = False
        self._frames = 0
        self._place = 0.0
        self._fraction = 0.0
        self._owed = 0
        self._frame_seconds = frame_size / sample_rate

    def skip(self, seconds: float) -> None:
        """Leave out what belongs to a part of the microphone's sound that was dropped."""
        self.ring.skip(round(seconds * self._rate))

    def take(self, frame: Pcm, since_block: float, mic_waits: float) -> None:
        """Fill `frame` [frame_size] with what was played.

        since_block: the age of the speaker's last block; mic_waits: the microphone's sound that
        is younger than this frame (seconds).
        """
        correction, samples = 0.0, float(self._frame_samples)
        self._owed -= self.ring.skip(self._owed)
        if self._drift is not None:
            waiting = len(self.ring) - self._owed - self._frame_samples
            ahead = waiting / self._rate + since_block - mic_waits - REFERENCE_CUSHION_SECONDS
            if abs(ahead) > REFERENCE_JUMP_SECONDS or not self._aligned:
                if not self._align(ahead):
                    frame[:] = 0.0
                    return
                ahead = 0.0
            correction = self._follow(ahead)
            # More samples for the same time: the ring goes down.
            samples = self._frame_samples * (1.0 + correction) + self._fraction
        whole = int(samples)
        self._fraction = samples - whole
        raw = np.zeros(whole, np.float32)
        # What comes too late to be used is left out then, so that the rest keeps its place.
        self._owed += whole - self.ring.take(raw)
        if self._resampler is None:
            frame[:] = raw
        else:
            self._resampler.fill(raw, frame, 1.0 / (1.0 + correction) - 1.0)

    def _align(self, ahead: float) -> bool:
        """Put the reference in its place; False if it must wait for more to be played."""
        self._aligned = ahead >= 0.0
        self._frames, self._place = 0, 0.0
        if self._aligned:
            self.ring.skip(round(ahead * self._rate))
        return self._aligned

    def _follow(self, ahead: float) -> float:
        """The correction that keeps the reference where it settled."""
        assert self._drift is not None
        self._frames += 1
        if self._frames <= REFERENCE_SETTLE_FRAMES:
            self._place += (ahead - self._place) / self._frames
            return self._drift.correction
        return self._drift.update(ahead - self._place, self._frame_seconds)
