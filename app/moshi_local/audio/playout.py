"""The speaker's side: frames in from our thread, blocks out to the sound card's, as late as must.

A jitter buffer. Its measure is the *slack*: how much later a frame could have come before there
would be a hole. Just before a write the slack should be the *cushion*, which grows when frames
come late again and again, and shrinks when they don't. Too much is taken out of what is written;
two clocks are held together by resampling. Knows nothing of the microphone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np

from moshi_mlx.arrays import Pcm

from .counters import DeviceCounters
from .drift import DriftControl
from .portaudio import Flags
from .resample import Resampler
from .ring import Ring

__all__ = ["Playout", "shorten"]

CUSHION_SECONDS = 0.04
"""By how much a frame may be late at first."""
CUSHION_MIN_SECONDS = 0.02
CUSHION_MAX_SECONDS = 0.16
CUSHION_UP_SECONDS = 0.04
CUSHION_DOWN_SECONDS = 0.02
CALM_SECONDS = 60.0
"""So long without a hole, and with slack to spare, lowers the cushion."""
SPARE_SECONDS = 0.01
GAP_MEMORY_SECONDS = 600.0
"""One hole in this time is a stall, which no cushion of three frames can cover; the second
one raises the cushion."""
LIMIT_SECONDS = 0.24
"""What may wait before a write; a frame that comes then is left out."""
WINDOW_WRITES = 6
"""The slack that counts is the least before this many writes."""
BURST_SHARE = 0.25
"""A callback within this share of a block after another belongs to the same buffer."""
QUIET = 0.01
"""A frame with a lower peak is shortened without anybody hearing it."""
QUIET_SURPLUS_SECONDS = 0.01
LOUD_SURPLUS_SECONDS = 0.02
FADE_SECONDS = 0.005
DRIFT_SECONDS = 20.0
SINK = 0.0005
"""Seconds per second by which the slack sinks to a lower cushion, if a resampler can do it."""


class Playout:
    """What the speaker plays.

    `play` is called on the sound card's thread, all else on one other thread. `device_rate` is
    the card's (Hz), `clock` gives seconds. With `follow` the card has its own clock. All
    that is played goes to `played` too, the ring of an echo canceller's reference.
    """

    def __init__(
        self,
        *,
        sample_rate: int,
        device_rate: int,
        frame_size: int,
        follow: bool,
        counters: DeviceCounters,
        clock: Callable[[], float],
        played: Ring | None = None,
    ) -> None:
        self._rate, self._device_rate = sample_rate, device_rate
        self._frame_seconds = frame_size / sample_rate
        self._fade = round(FADE_SECONDS * sample_rate)
        longest = LIMIT_SECONDS + CUSHION_MAX_SECONDS + 2 * self._frame_seconds
        self._ring = Ring(round(2 * longest * device_rate))
        self._played = played
        needs = follow or device_rate != sample_rate
        self._resampler = Resampler(sample_rate, device_rate) if needs else None
        self._drift = DriftControl(DRIFT_SECONDS) if follow else None
        self._correction = 0.0
        self._counters = counters
        self._clock = clock
        self._mark = (0, clock(), 0.0)
        self._first = (0, clock())
        self.calls = 0
        self._starving = True
        self._starved_at = clock()
        self._begun = False
        self._slacks: deque[float] = deque(maxlen=WINDOW_WRITES)
        self.cushion = CUSHION_SECONDS
        """Seconds."""
        self._aim = CUSHION_SECONDS
        self._last_gap = -GAP_MEMORY_SECONDS
        self._calm_since = clock()
        self._least_when_calm = np.inf
        self.level = 0.0
        """The peak of the last frame, 0 to 1."""
        self.played_at = 0.0
        """When the first sample of the last frame is at the speaker, by `clock` (seconds)."""

    @property
    def drift(self) -> float:
        """By how much the card's clock is found to be faster (0.0001 is 100 ppm)."""
        return -self._drift.drift if self._drift else 0.0

    @property
    def delay(self) -> float:
        """What the resampler adds (seconds)."""
        return self._resampler.delay if self._resampler else 0.0

    # -------------------------------------------------------------- the sound card's thread

    def play(self, out: Pcm, ahead: float, flags: Flags | None) -> None:
        """Fill a block, whose first sample is at the speaker in `ahead` seconds."""
        self._counters.count(flags)
        now = self._clock()
        self._first = (self._ring.taken, now + ahead)
        filled = self._ring.take(out)
        if filled < len(out):
            out[filled:] = 0.0
            if not self._starving:
                self._counters.gaps += 1
                self._starved_at = now
                self._starving = True
        if self._played is not None:
            self._played.put(out)
        _, before, burst = self._mark
        block = len(out) / self._device_rate
        # CoreAudio may call several times at once, for a buffer longer than a block.
        at_once = burst > 0 and now - before < BURST_SHARE * block
        self._mark = (self._ring.taken, *((before, burst + block) if at_once else (now, block)))
        self.calls += 1

    # -------------------------------------------------------------------- the worker's thread

    @property
    def since_block(self) -> float:
        """The age of the last block (seconds)."""
        return self._clock() - self._mark[1]

    @property
    def slack(self) -> float:
        """The sound that waits, if the card took it sample by sample (seconds)."""
        taken, at, block = self._mark
        gone = min(self._clock() - at, block)
        return (self._ring.written - taken) / self._device_rate - gone

    @property
    def lag(self) -> float:
        """Sound that waits beyond what must (seconds)."""
        return max(0.0, self.slack - self.cushion - self._frame_seconds)

    def write(self, pcm: Pcm, *, hurry: bool) -> None:
        """Queue a frame (float32 [frame_size] at our rate); never waits.

        hurry: the next frame comes early, since its input, or a part of it, waits already.
        """
        self.level = float(np.max(np.abs(pcm)))
        now = self._clock()
        if self._starving:
            self._fill_cushion(now)
        slack = self.slack
        self._least_when_calm = min(self._least_when_calm, slack)
        if now - self._calm_since >= CALM_SECONDS:
            self._lower_cushion(now)
        if slack > LIMIT_SECONDS:
            self._counters.output_dropped_seconds += len(pcm) / self._rate
            return
        if hurry:
            self._slacks.clear()
            pcm = self._without(pcm, slack - self.cushion, QUIET_SURPLUS_SECONDS)
        else:
            self._slacks.append(slack)
            if len(self._slacks) == WINDOW_WRITES:
                surplus = min(self._slacks) - self._follow_cushion()
                if self._drift is not None:
                    self._correction = -self._drift.update(surplus, self._frame_seconds)
                    if self._aim > self.cushion:
                        self._correction -= SINK
                # A few milliseconds are left to the resampler, where there are two clocks.
                quiet = self.level < QUIET and self._drift is None
                least = QUIET_SURPLUS_SECONDS if quiet else LOUD_SURPLUS_SECONDS
                pcm = self._without(pcm, surplus, least)
        self._put(pcm)

    def _put(self, pcm: Pcm) -> None:
        index, at = self._first
        self.played_at = at + (self._ring.written - index) / self._device_rate
        if self._resampler is not None:
            pcm = self._resampler.process(pcm, self._correction)
        self._ring.put(pcm)
        self._starving = False

    def _fill_cushion(self, now: float) -> None:
        """After a hole, or at the start: silence first, as much as gives the cushion."""
        if self._begun:
            # No cushion would have covered a long stall: it says nothing about the next gap.
            short = now - self._starved_at < CUSHION_MAX_SECONDS
            if short and now - self._last_gap < GAP_MEMORY_SECONDS:
                self.cushion = min(self.cushion + CUSHION_UP_SECONDS, CUSHION_MAX_SECONDS)
            self._last_gap = now
        self._begun = True
        self._aim = self.cushion
        self._slacks.clear()
        self._calm_since, self._least_when_calm = now, np.inf
        silence = max(0.0, self.cushion - self.slack)
        self._ring.put(np.zeros(round(silence * self._device_rate), np.float32))

    def _lower_cushion(self, now: float) -> None:
        """A little less, if in all the calm there was more slack than that."""
        if self._least_when_calm >= CUSHION_DOWN_SECONDS + SPARE_SECONDS:
            self.cushion = max(self.cushion - CUSHION_DOWN_SECONDS, CUSHION_MIN_SECONDS)
        self._calm_since, self._least_when_calm = now, np.inf

    def _follow_cushion(self) -> float:
        """Where the slack should be now: a resampler takes its time to a lower cushion."""
        if self._drift is None:
            self._aim = self.cushion
        else:
            self._aim = max(self.cushion, self._aim - SINK * self._frame_seconds)
        return self._aim

    def _without(self, pcm: Pcm, surplus: float, least: float) -> Pcm:
        """`pcm` without `surplus` seconds, if that is more than `least`."""
        if surplus <= least:
            return pcm
        n = min(round(surplus * self._rate), len(pcm) - self._fade)
        self._slacks = deque((s - n / self._rate for s in self._slacks), WINDOW_WRITES)
        self._counters.output_dropped_seconds += n / self._rate
        return shorten(pcm, n, self._fade)


def shorten(pcm: Pcm, n: int, fade: int) -> Pcm:
    """`pcm` without `n` samples of its middle, what is left joined over `fade` samples."""
    at = (len(pcm) - n - fade) // 2
    up = np.linspace(0.0, 1.0, fade, dtype=np.float32)
    joint = pcm[at : at + fade] * (1.0 - up) + pcm[at + n : at + n + fade] * up
    return np.concatenate([pcm[:at], joint, pcm[at + n + fade :]])
