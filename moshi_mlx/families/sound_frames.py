"""The frames of a sound with silence around it, read as they are needed. Knows no models."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..arguments import finite, samples
from ..arrays import Pcm
from ..errors import ArgumentError
from ..sounds import open_sound

SoundSource = str | Path | npt.ArrayLike | Iterator[npt.ArrayLike]
"""A sound file, samples [n] at the model's rate, or an iterator of such samples."""

_BLOCK = 1 << 16  # samples that are looked at together


class SoundFrames:
    """A sound's frames, in blocks. Memory does not grow with its length.

    Args:
        source: the sound; a file is read once here, to see that it can be read.
        name: of the argument, for messages.
        rate: samples per second.
        frame_size: samples per frame.
        before: samples of silence before it.
        after: samples of silence after it; what is less than a frame then is left out.

    Raises:
        AudioFileError: it is no sound file, or is empty or damaged.
        ArgumentError: it can be no sound.
    """

    def __init__(
        self, source: Any, name: str, *, rate: int, frame_size: int, before: int, after: int
    ) -> None:
        self._name, self._rate, self._size = name, rate, frame_size
        self.before, self._after = before, after
        self._samples = 0
        self._ended = False
        self._blocks = self._parts(source)

    @property
    def seconds(self) -> float | None:
        """The sound's length; None until its end was read."""
        return self._samples / self._rate if self._ended else None

    def _parts(self, source: Any) -> Iterator[Pcm]:
        """Its samples in blocks."""
        if isinstance(source, str | Path):
            return open_sound(Path(source)).mono(self._rate)
        if isinstance(source, Iterator):
            return (self._block(block) for block in source)
        pcm = self._block(source)
        if not pcm.size:
            raise self._empty()
        return (pcm[i : i + _BLOCK] for i in range(0, len(pcm), _BLOCK))

    def _empty(self) -> ArgumentError:
        return ArgumentError(f"{self._name} has no samples: give a sound")

    def _block(self, given: npt.ArrayLike) -> Pcm:
        pcm = samples(given)
        if pcm.ndim != 1:
            raise ArgumentError(f"{self._name} must be a file or samples [n], is {list(pcm.shape)}")
        finite(self._name, pcm)
        return pcm

    def read(self, frames: int) -> Iterator[Pcm]:
        """float32 [n, frame_size] in −1 … 1, n ≤ `frames` in the last one and equal to it before.

        Raises:
            AudioFileError, ArgumentError: as the constructor, of what is read now.
        """
        most = frames * self._size
        left = np.zeros(0, np.float32)
        for block in self._with_silence():
            left = np.concatenate([left, block]) if len(left) else block
            while len(left) >= most:
                yield left[:most].reshape(-1, self._size)
                left = left[most:]
        whole = len(left) // self._size * self._size
        if whole:
            yield left[:whole].reshape(-1, self._size)

    def _with_silence(self) -> Iterable[Pcm]:
        yield np.zeros(self.before, np.float32)
        for block in self._blocks:
            self._samples += len(block)
            yield np.clip(block, -1.0, 1.0)
        if not self._samples:
            raise self._empty()
        self._ended = True
        yield np.zeros(self._after, np.float32)
