"""Sound in the formats that sockets carry: 16-bit samples, and the telephone's 8-bit ones.

The telephone's are those of ITU-T G.711. Knows nothing of messages.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import soxr

from moshi_mlx.arrays import Pcm

__all__ = ["SampleFormat", "SampleDecoder", "SampleEncoder", "FormatName"]

FormatName = Literal["audio/pcm", "audio/pcmu", "audio/pcma"]
_FULL = 32768.0


@dataclass(frozen=True, slots=True)
class SampleFormat:
    """What a client sends or wants: little-endian 16-bit samples, µ-law or A-law; Hz."""

    type: FormatName = "audio/pcm"
    rate: int = 24_000


def _mu_law() -> npt.NDArray[np.int16]:
    """The sample of each µ-law byte (G.711, table 2)."""
    code = ~np.arange(256, dtype=np.uint8)
    sign, exponent, mantissa = code & 0x80, (code >> 4) & 7, code & 15
    size = (((mantissa.astype(np.int32) << 3) + 0x84) << exponent) - 0x84
    return np.where(sign, -size, size).astype(np.int16)


def _a_law() -> npt.NDArray[np.int16]:
    """The sample of each A-law byte (G.711, table 1)."""
    code = np.arange(256, dtype=np.uint8) ^ 0x55
    sign, exponent, mantissa = code & 0x80, (code >> 4) & 7, code & 15
    low = (mantissa.astype(np.int32) << 4) + 8
    size = np.where(exponent == 0, low, (low + 0x100) << np.maximum(exponent - 1, 0))
    return np.where(sign, size, -size).astype(np.int16)


_TABLES = {"audio/pcmu": _mu_law(), "audio/pcma": _a_law()}


class SampleDecoder:
    """Bytes as they come → sound of the model; half a sample waits for the rest."""

    def __init__(self, format: SampleFormat, sample_rate: int) -> None:
        self._table = _TABLES.get(format.type)
        self._odd = b""
        self._resampler = _resampler(format.rate, sample_rate)

    def decode(self, data: bytes) -> Pcm:
        """float32 [n], in −1 … 1."""
        if self._table is not None:
            samples = self._table[np.frombuffer(data, np.uint8)]
        else:
            data = self._odd + data
            whole = len(data) & ~1
            samples, self._odd = np.frombuffer(data[:whole], "<i2"), data[whole:]
        pcm = samples.astype(np.float32) / _FULL
        return pcm if self._resampler is None else self._resampler.resample_chunk(pcm)


class SampleEncoder:
    """Sound of the model → bytes."""

    def __init__(self, format: SampleFormat, sample_rate: int) -> None:
        table = _TABLES.get(format.type)
        self._codes: npt.NDArray[np.uint8] | None = None
        if table is not None:
            self._codes = np.argsort(table, kind="stable").astype(np.uint8)
            values = table[self._codes].astype(np.float32)
            self._borders = (values[1:] + values[:-1]) / 2
        self._resampler = _resampler(sample_rate, format.rate)

    def encode(self, pcm: Pcm) -> bytes:
        """Bytes of float32 [n]; beyond −1 … 1 it is clipped."""
        if self._resampler is not None:
            pcm = self._resampler.resample_chunk(pcm)
        samples = np.clip(np.rint(pcm * _FULL), -_FULL, _FULL - 1)
        if self._codes is not None:
            return self._codes[np.searchsorted(self._borders, samples)].tobytes()
        return samples.astype("<i2").tobytes()


def _resampler(source: int, target: int) -> soxr.ResampleStream | None:
    return None if source == target else soxr.ResampleStream(source, target, 1)
