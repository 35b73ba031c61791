"""Two descriptors as an `AudioPort`: 16-bit samples in, as many out.

Samples are little-endian, mono, at the model's rate. Knows nothing of models.
"""

from __future__ import annotations

import os
import threading
from queue import Empty, SimpleQueue

import numpy as np

from moshi_mlx import AudioFileError
from moshi_mlx.arrays import Pcm

from ..port import Read

__all__ = ["PipeAudio"]

_FULL = 32768.0
_BLOCK = 65_536
_MOST_BLOCKS = 16


class PipeAudio:
    """A program in front, a program behind.

    Args:
        source: a descriptor to read.
        target: a descriptor to write.
        frame_size: samples.
    """

    def __init__(self, source: int, target: int, *, frame_size: int) -> None:
        self._target = target
        self._bytes = 2 * frame_size
        self._waiting = bytearray()
        self._owed = 0  # bytes that the answer to the last frame has
        self._ended = False
        self.reader_gone = False
        self._blocks: SimpleQueue[bytes | OSError] = SimpleQueue()
        self._room = threading.Semaphore(_MOST_BLOCKS)
        # A thread, since Windows cannot wait for a pipe with a timeout.
        threading.Thread(target=self._fill, args=[source], daemon=True).start()

    def read(self, frame: Pcm, timeout: float) -> Read:
        """The next frame, the last one filled up with silence. Raises AudioFileError."""
        while len(self._waiting) < self._bytes and not self._ended:
            try:
                block = self._blocks.get(timeout=timeout)
            except Empty:
                return Read.NOTHING
            self._room.release()
            if isinstance(block, OSError):
                raise AudioFileError(f"stdin cannot be read: {block.strerror}") from block
            self._ended = not block
            self._waiting += block
        whole = min(len(self._waiting), self._bytes) & ~1
        if self.reader_gone or not whole:
            return Read.END
        heard = np.frombuffer(bytes(self._waiting[:whole]), "<i2")
        del self._waiting[:whole]
        frame[: len(heard)] = heard / np.float32(_FULL)
        frame[len(heard) :] = 0.0
        self._owed = whole
        return Read.FRAME

    def write(self, pcm: Pcm) -> None:
        """The answer to the frame that was read last, as long as that was. Raises AudioFileError.

        When no one reads any more, the next `read` ends.
        """
        samples = np.clip(np.rint(pcm * _FULL), -_FULL, _FULL - 1).astype("<i2")
        data = samples.tobytes()[: self._owed]
        try:
            while data:
                data = data[os.write(self._target, data) :]
        except BrokenPipeError:
            self.reader_gone = True
        except OSError as error:
            raise AudioFileError(f"stdout cannot be written: {error.strerror}") from error

    def _fill(self, source: int) -> None:
        while True:
            self._room.acquire()
            try:
                block: bytes | OSError = os.read(source, _BLOCK)
            except OSError as error:
                block = error
            self._blocks.put(block)
            if not block or isinstance(block, OSError):
                return
