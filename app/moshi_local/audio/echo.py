"""What the speaker plays and the microphone hears again, taken out of what the model hears.

WebRTC's AEC3 removes an echo to nothing, and a part of a voice that speaks at the same time with
it. Beside it, a linear filter removes less of the echo and none of the voice. Their mixture has
both: figures from `python -m benchmarks.echo`. Knows nothing of sound cards; not for their threads.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from moshi_mlx.arrays import Pcm

from ..options import EchoMode
from ..platform import headphones

__all__ = ["EchoCanceller", "EchoMode", "LinearCanceller", "needs_canceller"]

BLEND = 0.3
"""How much of the linear filter's output goes to AEC3's, at most."""
TRUST_DECIBELS = 20.0
"""So much must the linear filter have been seen to remove for BLEND; less brings less."""
TRUST_FALL = 0.2
"""Decibels per second by which what has been seen is forgotten."""
AEC3_DELAY = 223
"""Samples at 24 kHz by which AEC3's output is later than its input, measured."""
NOISE_DELAY = 175
"""The same for noise suppression alone."""
AEC_SECONDS = 0.02
TAIL_SECONDS = 0.5
"""How late an echo may be, with the latencies of both directions, for the linear filter. Beyond,
AEC3 is alone."""
SILENCE = 1e-3
"""A reference with a lower amplitude teaches nothing."""


def needs_canceller(mode: EchoMode, output_name: str) -> bool:
    """Whether sound that is played on `output_name` would come back into the microphone."""
    if mode is not EchoMode.auto:
        return mode is EchoMode.on
    return not headphones(output_name)


class LinearCanceller:
    """An adaptive linear filter from the reference to its echo: what is left is the microphone.

    The partitioned-block frequency-domain Kalman filter (Enzner and Vary 2006; Kuech, Mabande
    and Enzner 2014): each weight has a variance, which sets its step, so that it learns fast at
    first, and hardly while another person speaks. `block` is in samples, `tail` in blocks.
    """

    MEMORY = 0.999
    """What a weight keeps from block to block; the rest is how an echo path may change."""
    NOISE_MEMORY = 0.5
    TURNS = 4
    """Weights are made causal in rotation, a quarter of them each block: it costs the most."""

    def __init__(self, block: int, tail: int) -> None:
        self._block = block
        shape = (tail, block + 1)
        self._spectra = np.zeros(shape, np.complex64)
        self._weights = np.zeros(shape, np.complex64)
        self._variances = np.ones(shape, np.float32)
        self._noise = np.zeros(block + 1, np.float32)
        self._both = np.zeros(2 * block, np.float32)
        self._error = np.zeros(2 * block, np.float32)
        self._silence = 4 * block**2 * SILENCE**2
        self._turn = 0

    def step(self, heard: Pcm, played: Pcm) -> Pcm:
        """`heard` [block] without the echo of `played` [block]."""
        n, weights = self._block, self._weights
        self._both[:n], self._both[n:] = self._both[n:], played
        self._spectra = np.roll(self._spectra, 1, axis=0)
        self._spectra[0] = np.fft.rfft(self._both)
        spectra = self._spectra
        echo = np.fft.irfft(np.sum(spectra * weights, axis=0))[n:]
        left: Pcm = heard - echo.astype(np.float32)
        power = spectra.real**2 + spectra.imag**2
        if float(power.max(initial=0.0)) > self._silence:
            self._error[n:] = left
            error = np.fft.rfft(self._error)
            self._noise += (1.0 - self.NOISE_MEMORY) * (np.abs(error) ** 2 - self._noise)
            total = np.sum(power * self._variances, axis=0) + 2.0 * self._noise + 1e-6
            gain = self._variances / total
            weights += gain * error * spectra.conj()
            turn = slice(self._turn, None, self.TURNS)
            self._turn = (self._turn + 1) % self.TURNS
            causal = np.fft.irfft(weights[turn], axis=1)
            causal[:, n:] = 0.0
            weights[turn] = np.fft.rfft(causal, axis=1)
            keep = np.float32(self.MEMORY**2)
            self._variances *= keep * (1.0 - 0.5 * gain * power)
            self._variances += (1.0 - keep) * (weights.real**2 + weights.imag**2)
        return left


class EchoCanceller:
    """The microphone without the speaker, frame by frame; a state for each opening of the card.

    sample_rate is in Hz, frame_size a whole number of 20 ms. With `cancel` off it only
    suppresses noise. A frame of 80 ms takes about 3 ms.
    """

    def __init__(
        self,
        sample_rate: int,
        frame_size: int,
        *,
        cancel: bool = True,
        noise_suppression: bool = False,
        blend: float = BLEND,
    ) -> None:
        from pywebrtc_audio import AudioProcessor

        self._block = round(AEC_SECONDS * sample_rate)
        if frame_size % self._block:
            raise ValueError(f"a frame of {frame_size} samples is not whole blocks of 20 ms")
        self._lateness = round(AEC3_DELAY * sample_rate / 24_000)
        self._blend = blend
        self._aec3: Any = None
        self._noise: Any = None
        self.delay = 0.0
        """Seconds by which the output is later than the microphone."""
        if cancel:
            self.delay += AEC3_DELAY / 24_000
            self._aec3 = AudioProcessor(
                sample_rate=sample_rate, echo_cancellation=True, high_pass_filter=True
            )
        if noise_suppression:
            self.delay += NOISE_DELAY / 24_000
            self._noise = AudioProcessor(
                sample_rate=sample_rate, noise_suppression=True, ns_level=1, high_pass_filter=True
            )
        self._linear = LinearCanceller(self._block, round(TAIL_SECONDS / AEC_SECONDS))
        self._left = np.zeros(self._lateness + frame_size, np.float32)
        self._powers = [1e-10, 1e-10]
        self._removed = 0.0

    def process(self, heard: Pcm, played: Pcm) -> Pcm:
        """One frame of the microphone, and what was played meanwhile (both float32
        [frame_size]); returns a frame that is `delay` later."""
        if self._aec3 is not None:
            heard = self._cancel(heard, played)
        if self._noise is not None:
            heard = self._noise.process(heard)
        return heard

    def _cancel(self, heard: Pcm, played: Pcm) -> Pcm:
        clean = self._aec3.process(heard, played)
        # The linear filter's output, late by as much as AEC3's.
        self._left[: self._lateness] = self._left[-self._lateness :]
        for at in range(0, len(heard), self._block):
            block = slice(at, at + self._block)
            left = self._linear.step(heard[block], played[block])
            self._left[self._lateness + at : self._lateness + at + self._block] = left
            self._watch(heard[block], left, played[block])
        blend = self._blend * min(1.0, self._removed / TRUST_DECIBELS)
        mixed: Pcm = clean + np.float32(blend) * self._left[: len(heard)]
        return mixed / np.float32(1.0 + blend)

    def _watch(self, heard: Pcm, left: Pcm, played: Pcm) -> None:
        """How much the linear filter removes, at its best of late (decibels)."""
        self._removed = max(0.0, self._removed - TRUST_FALL * AEC_SECONDS)
        if float(np.max(np.abs(played))) < 10 * SILENCE:
            return
        for i, pcm in enumerate((heard, left)):
            self._powers[i] += 0.05 * (float(np.dot(pcm, pcm)) - self._powers[i])
        now = 10.0 * math.log10((self._powers[0] + 1e-10) / (self._powers[1] + 1e-10))
        self._removed = max(self._removed, now)
