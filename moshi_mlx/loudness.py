"""How loud sound is to the ear: integrated loudness in LUFS by ITU-R BS.1770-4, of one channel.

The two filters are the cookbook's for any sample rate, with pyloudnorm's parameters; they are
applied in the frequency domain, which needs no loop over samples. Knows nothing of what the sound
is for.
"""

import numpy as np
import numpy.typing as npt

from .arrays import Pcm
from .errors import ArgumentError

GATE_SECONDS = 0.4
"""Shorter sound has no loudness."""

_SHELF_GAIN, _SHELF_Q, _SHELF_HZ = 4.0, 2**-0.5, 1500.0
_HIGH_PASS_Q, _HIGH_PASS_HZ = 0.5, 38.0
_OVERLAP = 4  # blocks begin every quarter of a block
_OFFSET = -0.691
_SILENT, _RELATIVE = -70.0, -10.0  # gates: LUFS, and LU below the mean of what is not silent
_TAIL_SECONDS = 1.0  # the filters' answer has died away by then


def integrated_loudness(pcm: Pcm, rate: float) -> float:
    """Integrated loudness of sound [samples] in LUFS; −∞ of silence.

    Args:
        pcm: floats in −1 … 1.
        rate: samples per second.

    Raises:
        ArgumentError: it is shorter than a block of `GATE_SECONDS`.
    """
    if len(pcm) < GATE_SECONDS * rate:
        raise ArgumentError(
            f"loudness is measured over {GATE_SECONDS} s, this sound has {len(pcm) / rate:.2f} s"
        )
    squares = np.concatenate([[0.0], np.cumsum(_weighted(pcm, rate) ** 2)])
    step = GATE_SECONDS / _OVERLAP
    count = int(np.round((len(pcm) / rate - GATE_SECONDS) / step)) + 1
    begins = (np.arange(count) * step * rate).astype(int)
    ends = np.minimum(((np.arange(count) * step + GATE_SECONDS) * rate).astype(int), len(pcm))
    powers = (squares[ends] - squares[begins]) / (GATE_SECONDS * rate)
    heard = powers[_lufs(powers) >= _SILENT]
    if not heard.size:
        return -np.inf
    heard = powers[(_lufs(powers) > _lufs(heard.mean()) + _RELATIVE) & (_lufs(powers) > _SILENT)]
    return float(_lufs(heard.mean())) if heard.size else -np.inf


def _lufs(power: npt.ArrayLike) -> npt.NDArray[np.float64]:
    with np.errstate(divide="ignore"):
        return np.asarray(_OFFSET + 10 * np.log10(power))


def _weighted(pcm: Pcm, rate: float) -> npt.NDArray[np.float64]:
    """The sound as the ear weighs it (K-weighting)."""
    size = len(pcm) + int(_TAIL_SECONDS * rate)
    z = np.exp(-2j * np.pi * np.fft.rfftfreq(size))
    spectrum = np.fft.rfft(pcm.astype(np.float64), size)
    for b, a in (_shelf(rate), _high_pass(rate)):
        spectrum *= np.polyval(b[::-1], z) / np.polyval(a[::-1], z)
    return np.fft.irfft(spectrum, size)[: len(pcm)]


def _shelf(rate: float) -> tuple[list[float], list[float]]:
    """What the head adds above some 1500 Hz."""
    gain = 10 ** (_SHELF_GAIN / 40)
    w = 2 * np.pi * _SHELF_HZ / rate
    cos, alpha = np.cos(w), np.sin(w) / (2 * _SHELF_Q)
    up, down, slope = gain + 1, gain - 1, 2 * np.sqrt(gain) * alpha
    b = [gain * (up + down * cos + slope), -2 * gain * (down + up * cos)]
    a = [up - down * cos + slope, 2 * (down - up * cos)]
    return [*b, gain * (up + down * cos - slope)], [*a, up - down * cos - slope]


def _high_pass(rate: float) -> tuple[list[float], list[float]]:
    w = 2 * np.pi * _HIGH_PASS_HZ / rate
    cos, alpha = np.cos(w), np.sin(w) / (2 * _HIGH_PASS_Q)
    return [(1 + cos) / 2, -(1 + cos), (1 + cos) / 2], [1 + alpha, -2 * cos, 1 - alpha]
