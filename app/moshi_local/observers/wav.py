"""A 16-bit WAV file that can be read at any moment while it grows.

Knows RIFF, and nothing of conversations. After every piece the sizes in the header are put
right, the sound first: a program that is killed leaves a file that ends with a whole piece.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moshi_mlx.closing import Closing

__all__ = ["MAX_BYTES", "WavWriter", "streamed_header", "to_pcm16"]

MAX_BYTES = 0xFFFF_FFFF
"""Sizes in a RIFF file have 32 bits."""
BYTES_PER_SAMPLE = 2


def to_pcm16(sound: NDArray[np.float32]) -> NDArray[np.int16]:
    """float32 in −1 … 1 as int16; what is not finite becomes silence, the rest is clipped."""
    finite = np.nan_to_num(sound, nan=0.0, posinf=0.0, neginf=0.0)
    return np.clip(np.rint(32768.0 * finite), -32768, 32767).astype(np.int16)


class WavWriter(Closing):
    """A new WAV file, readable by its owner only.

    Args:
        path: must not exist (FileExistsError).
        sample_rate: Hz.
        channels: their number.
        tags: entries of the INFO list before the sound, by their four letters (ICMT: comment).
        max_bytes: of the whole file.

    Every method may raise OSError; the file stays readable.
    """

    def __init__(
        self,
        path: Path,
        *,
        sample_rate: int,
        channels: int,
        tags: Mapping[str, str],
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self.samples = 0
        self._block = BYTES_PER_SAMPLE * channels
        self._chunks = _chunks_before_sound(sample_rate, channels, tags)
        self._start = 8 + len(self._chunks) + 8
        self._max_samples = (max_bytes - self._start) // self._block
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
        self._descriptor = os.open(path, flags, 0o600)
        try:
            self._write_header()
        except OSError:
            os.close(self._descriptor)
            path.unlink()
            raise

    @property
    def room(self) -> int:
        """Samples (per channel) that the file can still take."""
        return self._max_samples - self.samples

    def append(self, sound: NDArray[np.int16]) -> None:
        """Add int16 [samples, channels]; on an error what did fit is kept."""
        data = memoryview(sound.astype("<i2").tobytes())
        written = 0
        end = self._start + self._block * self.samples
        try:
            while written < len(data):
                written += os.pwrite(self._descriptor, data[written:], end + written)
        finally:
            self.samples += written // self._block
            self._write_header()

    def cut(self, samples: int) -> int:
        """Keep at most the first `samples` of each channel, which gives room to a full disk.

        Returns how many there are then: all, if the file is closed already.
        """
        if self._descriptor >= 0:
            self.samples = min(samples, self.samples)
            self._write_header()
            os.ftruncate(self._descriptor, self._start + self._block * self.samples)
        return self.samples

    def close(self) -> None:
        """No more will be added; may be called again."""
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)

    def _write_header(self) -> None:
        """One write, far smaller than a page: a kill does not come between its bytes."""
        size = self._block * self.samples
        riff = struct.pack("<4sI", b"RIFF", self._start - 8 + size)
        data = struct.pack("<4sI", b"data", size)
        os.pwrite(self._descriptor, riff + self._chunks + data, 0)


def streamed_header(sample_rate: int, channels: int, tags: Mapping[str, str]) -> bytes:
    """What stands before the samples where their number is not known, as in a pipe.

    The sizes in it are the largest ones, as other programs write and read them there.

    Args:
        sample_rate: Hz.
        channels: their number.
        tags: as `WavWriter` takes them.
    """
    unknown = struct.pack("<I", MAX_BYTES)
    chunks = _chunks_before_sound(sample_rate, channels, tags)
    return b"RIFF" + unknown + chunks + b"data" + unknown


def _chunks_before_sound(rate: int, channels: int, tags: Mapping[str, str]) -> bytes:
    block = BYTES_PER_SAMPLE * channels
    form = struct.pack("<HHIIHH", 1, channels, rate, rate * block, block, 8 * BYTES_PER_SAMPLE)
    info = b"INFO" + b"".join(
        _chunk(name.encode("ascii"), text.encode() + b"\0") for name, text in tags.items()
    )
    return b"WAVE" + _chunk(b"fmt ", form) + _chunk(b"LIST", info)


def _chunk(name: bytes, body: bytes) -> bytes:
    """A RIFF chunk; an odd length is followed by a zero that it does not count."""
    return struct.pack("<4sI", name, len(body)) + body + b"\0" * (len(body) % 2)
