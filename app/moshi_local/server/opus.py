"""Ogg-Opus as it comes over a socket: pages split anywhere in, one stream a beginning out.

The container is RFC 3533, the codec sphn's. Knows nothing of messages.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from moshi_mlx import MoshiError
from moshi_mlx.arrays import Pcm

__all__ = ["OpusReader", "OpusWriter", "opus_problem"]

_CAPTURE = b"OggS"
_HEADER = 27  # bytes in front of a page's segment table
_BEGINS = 2  # bit of the header type: a stream begins with this page


def opus_problem() -> str | None:
    """Why Opus cannot be used here, in a sentence; None if it can."""
    try:
        import sphn  # noqa: F401
    except ImportError:
        return "it needs the package sphn"
    return None


class OpusReader:
    """Bytes of an Ogg-Opus stream → sound.

    Pages before the first beginning are those of a stream that another connection began: they are
    passed over. At a second beginning a new decoder starts.

    Args:
        sample_rate: of the sound, Hz.
    """

    def __init__(self, sample_rate: int) -> None:
        import sphn

        self._new = lambda: sphn.OpusStreamReader(sample_rate)
        self._decoder: sphn.OpusStreamReader | None = None
        self._bytes = bytearray()

    def read(self, data: bytes) -> Pcm:
        """Takes the next bytes; gives what they complete: float32 [n].

        Raises:
            MoshiError: this is not Ogg-Opus.
        """
        self._bytes += data
        pieces = [np.zeros(0, np.float32)]
        for page in self._pages():
            if page[5] & _BEGINS:
                self._decoder = self._new()
            if self._decoder is None:
                continue
            try:
                pieces.append(self._decoder.append_bytes(page))
            except ValueError as error:
                raise MoshiError(f"the sound is not Ogg-Opus: {error}") from error
        pcm: Pcm = np.concatenate(pieces)
        return pcm

    def _pages(self) -> Iterator[bytes]:
        """Whole pages, taken off the front of the bytes."""
        while len(self._bytes) >= len(_CAPTURE):
            if not self._bytes.startswith(_CAPTURE):
                raise MoshiError("the sound is not Ogg-Opus: a page does not begin with OggS")
            if len(self._bytes) < _HEADER:
                return
            segments = self._bytes[_HEADER - 1]
            begins = _HEADER + segments
            if len(self._bytes) < begins:
                return
            ends = begins + sum(self._bytes[_HEADER:begins])
            if len(self._bytes) < ends:
                return
            yield bytes(self._bytes[:ends])
            del self._bytes[:ends]
        if self._bytes and not _CAPTURE.startswith(bytes(self._bytes)):
            raise MoshiError("the sound is not Ogg-Opus: a page does not begin with OggS")


class OpusWriter:
    """Sound → bytes of one Ogg-Opus stream.

    Args:
        sample_rate: of the sound, Hz.
    """

    def __init__(self, sample_rate: int) -> None:
        import sphn

        self._encoder = sphn.OpusStreamWriter(sample_rate)

    def write(self, pcm: Pcm) -> bytes:
        """Bytes of a block, float32 [n] with n a frame size of Opus, such as 80 ms."""
        data: bytes = self._encoder.append_pcm(pcm)
        return data
