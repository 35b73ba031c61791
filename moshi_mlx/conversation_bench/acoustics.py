"""What a room, a line and noise make of a voice, with figures that are exact.

Sound is mono float32 [samples] in −1 … 1; levels are in dBFS, the root mean square of what sounds
against a full scale of 1. Knows nothing of scenes and models.
"""

import numpy as np

from ..activity import loudness
from ..arrays import Pcm

_WINDOW_SECONDS = 0.01
_SOUNDING_DB = -40.0  # below the loudest window: silence between words
_DECAY = 3 * np.log(10)  # by 60 dB: e to the power of minus this


def decibels_to_factor(value: float) -> float:
    """The factor of amplitude of `value` dB."""
    return float(10 ** (value / 20))


def sounding_level(pcm: Pcm, rate: float) -> float:
    """Level in dBFS of the windows of 10 ms at most 40 dB below the loudest; −∞ of silence."""
    size = round(_WINDOW_SECONDS * rate)
    rms = loudness(pcm[: len(pcm) // size * size].reshape(-1, size))
    if not rms.max(initial=0.0):
        return float("-inf")
    loud = rms[rms >= rms.max() * decibels_to_factor(_SOUNDING_DB)]
    return float(10 * np.log10(np.mean(loud**2)))


def at_level(pcm: Pcm, rate: float, dbfs: float) -> Pcm:
    """The same sound at a level, peaks beyond full scale cut off; silence stays silence."""
    level = sounding_level(pcm, rate)
    if level == float("-inf"):
        return pcm
    out: Pcm = np.clip(pcm * decibels_to_factor(dbfs - level), -1, 1).astype(np.float32)
    return out


def room_response(
    rate: float, rt60: float, direct_to_reverberant: float, rng: np.random.Generator
) -> Pcm:
    """A room's answer to a click: the direct sound, 1, and a tail of decaying noise.

    Args:
        rate: samples per second.
        rt60: seconds in which the tail falls by 60 dB; it lasts one and a half times that.
        direct_to_reverberant: energy of the direct sound over that of the tail, in dB: exact.
        rng: draws the tail, and the 2 to 8 ms before the first reflection.
    """
    length = max(2, round(1.5 * rt60 * rate))
    time = np.arange(length) / rate
    tail = rng.standard_normal(length) * np.exp(-_DECAY * time / rt60)
    tail[: max(1, round(rng.uniform(0.002, 0.008) * rate))] = 0
    tail *= decibels_to_factor(-direct_to_reverberant) / np.sqrt(np.sum(tail**2))
    tail[0] = 1.0
    out: Pcm = tail.astype(np.float32)
    return out


def convolved(pcm: Pcm, response: Pcm) -> Pcm:
    """Sound through a response, as long as before."""
    size = len(pcm) + len(response) - 1
    spectrum = np.fft.rfft(pcm, size) * np.fft.rfft(response, size)
    out: Pcm = np.fft.irfft(spectrum, size)[: len(pcm)].astype(np.float32)
    return out


def in_room(
    pcm: Pcm, rate: float, rt60: float, direct_to_reverberant: float, rng: np.random.Generator
) -> Pcm:
    """A voice in a room, at the level that it had: see `room_response`."""
    heard = convolved(pcm, room_response(rate, rt60, direct_to_reverberant, rng))
    return at_level(heard, rate, sounding_level(pcm, rate))


def pink_noise(samples: int, rate: float, rng: np.random.Generator) -> Pcm:
    """Noise of rms 1 whose power falls by 3 dB per octave above 20 Hz."""
    frequencies = np.maximum(np.fft.rfftfreq(samples, 1 / rate), 20)
    spectrum = np.fft.rfft(rng.standard_normal(samples)) / np.sqrt(frequencies)
    shaped = np.fft.irfft(spectrum, samples)
    out: Pcm = (shaped / np.sqrt(np.mean(shaped**2))).astype(np.float32)
    return out


def in_noise(pcm: Pcm, rate: float, signal_to_noise: float, rng: np.random.Generator) -> Pcm:
    """A voice with pink noise `signal_to_noise` dB below what sounds of it."""
    floor = decibels_to_factor(sounding_level(pcm, rate) - signal_to_noise)
    out: Pcm = np.clip(pcm + floor * pink_noise(len(pcm), rate, rng), -1, 1).astype(np.float32)
    return out


def band(pcm: Pcm, rate: float, low: float, high: float, order: int = 4) -> Pcm:
    """What is between two frequencies in Hz, with Butterworth's gains."""
    frequencies = np.maximum(np.fft.rfftfreq(len(pcm), 1 / rate), 1e-3)
    gains = 1 / np.sqrt(1 + (low / frequencies) ** (2 * order))
    gains /= np.sqrt(1 + (frequencies / high) ** (2 * order))
    return np.fft.irfft(np.fft.rfft(pcm) * gains, len(pcm)).astype(np.float32)


def on_telephone(pcm: Pcm, rate: float) -> Pcm:
    """300 to 3400 Hz, in eight bits by the µ-law."""
    return in_eight_bits(band(pcm, rate, 300, 3400))


def in_eight_bits(pcm: Pcm) -> Pcm:
    """What the µ-law leaves of sound, cut off beyond full scale."""
    mu = 255.0
    heard: Pcm = np.clip(pcm, -1, 1)
    folded = np.sign(heard) * np.log1p(mu * np.abs(heard)) / np.log1p(mu)
    coarse = np.round(folded * 127) / 127
    out: Pcm = (np.sign(coarse) * np.expm1(np.abs(coarse) * np.log1p(mu)) / mu).astype(np.float32)
    return out


def with_pause(pcm: Pcm, rate: float, seconds: float) -> tuple[Pcm, tuple[float, float]]:
    """Speech with a pause at its quietest place between a third and three quarters of it.

    Returns:
        The sound, and the pause's start and end in seconds.
    """
    size = round(_WINDOW_SECONDS * rate)
    rms = loudness(pcm[: len(pcm) // size * size].reshape(-1, size))
    first, last = len(rms) // 3, max(len(rms) // 3 + 1, 3 * len(rms) // 4)
    at = (first + int(np.argmin(rms[first:last]))) * size
    silence = np.zeros(round(seconds * rate), np.float32)
    fade = np.linspace(1, 0, size, dtype=np.float32)
    before, after = pcm[:at].copy(), pcm[at:].copy()
    before[-size:] *= fade[-len(before[-size:]) :]
    after[:size] *= fade[::-1][: len(after[:size])]
    return np.concatenate([before, silence, after]), (at / rate, at / rate + len(silence) / rate)
