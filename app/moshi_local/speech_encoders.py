"""Speech as the bytes of a file that grows: WAV, MP3, Ogg-Opus, FLAC, AAC, or samples alone.

What is made can be sent at once; nothing that was sent is changed. Each format that can carry a
comment says that the speech is synthetic. Knows nothing of models and sockets.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import soundfile

from moshi_mlx import MoshiError
from moshi_mlx.arrays import Pcm
from moshi_mlx.distributions import needs_extra

from .audio.files import SPEECH_FORMATS, SoundTags, tag_sound
from .observers.wav import streamed_header, to_pcm16
from .server.services import SoundEncoder

__all__ = ["ENCODED_FORMATS", "speech_encoder"]


class _Samples:
    """16-bit little-endian samples."""

    content_type = "audio/pcm"

    def __init__(self, rate: int, tags: SoundTags) -> None:
        del rate, tags

    def write(self, pcm: Pcm) -> bytes:
        return to_pcm16(pcm).astype("<i2").tobytes()

    def finish(self) -> bytes:
        return b""


class _Wav(_Samples):
    """The same behind a header that does not know how many will come."""

    content_type = "audio/wav"

    def __init__(self, rate: int, tags: SoundTags) -> None:
        self._header = streamed_header(rate, 1, {"ICMT": tags.comment, "ISFT": tags.software})

    def write(self, pcm: Pcm) -> bytes:
        header, self._header = self._header, b""
        return header + super().write(pcm)


class _Tail(io.RawIOBase):
    """A file of which what was taken is gone; what is later written over it is lost."""

    def __init__(self) -> None:
        self._gone, self._bytes, self._at = 0, bytearray(), 0

    def take(self) -> bytes:
        """What was written since the last call."""
        taken = bytes(self._bytes)
        self._gone += len(taken)
        self._bytes.clear()
        return taken

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = (0, self._at, self._gone + len(self._bytes))[whence] + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def write(self, data: Any) -> int:
        given = bytes(data)
        start = self._at - self._gone
        kept = given[max(0, -start) :]
        start = max(0, start)
        self._bytes[start : start + len(kept)] = kept
        self._at += len(given)
        return len(given)


class _Encoded:
    """What libsndfile writes."""

    def __init__(
        self, content_type: str, suffix: str, rate: int, tags: SoundTags, **how: Any
    ) -> None:
        self.content_type = content_type
        kind, subtype = SPEECH_FORMATS[suffix]
        self._tail = _Tail()
        self._file = soundfile.SoundFile(self._tail, "w", rate, 1, subtype, format=kind, **how)
        tag_sound(self._file, tags)

    def write(self, pcm: Pcm) -> bytes:
        self._file.write(pcm)
        return self._tail.take()

    def finish(self) -> bytes:
        self._file.close()
        return self._tail.take()


class _Aac:
    """ADTS, which carries no comment. Raises MoshiError without its package."""

    content_type = "audio/aac"

    def __init__(self, rate: int, tags: SoundTags) -> None:
        del tags
        with needs_extra("media", "aac needs av"):
            import av
        self._frame = av.AudioFrame
        self._tail, self._rate, self._samples = _Tail(), rate, 0
        self._file: Any = av.open(self._tail, "w", format="adts")
        self._stream: Any = self._file.add_stream("aac", rate=rate, layout="mono")

    def write(self, pcm: Pcm) -> bytes:
        if len(pcm):
            block = np.ascontiguousarray(pcm[None], np.float32)
            frame: Any = self._frame.from_ndarray(block, format="fltp", layout="mono")
            frame.sample_rate, frame.pts = self._rate, self._samples
            self._samples += len(pcm)
            self._file.mux(self._stream.encode(frame))
        return self._tail.take()

    def finish(self) -> bytes:
        self._file.mux(self._stream.encode(None))
        self._file.close()
        return self._tail.take()


# Players guess the length of a file whose header does not say it, and are right if its rate of
# bits is constant.
_CONSTANT = {"bitrate_mode": "CONSTANT", "compression_level": 0.5}
_MAKERS: dict[str, Callable[[int, SoundTags], SoundEncoder]] = {
    "mp3": lambda rate, tags: _Encoded("audio/mpeg", ".mp3", rate, tags, **_CONSTANT),
    "wav": _Wav,
    "opus": lambda rate, tags: _Encoded("audio/ogg", ".opus", rate, tags),
    "flac": lambda rate, tags: _Encoded("audio/flac", ".flac", rate, tags),
    "pcm": _Samples,
    "aac": _Aac,
}
ENCODED_FORMATS = tuple(_MAKERS)
"""By name; the first one is the usual one."""


def speech_encoder(format: str, rate: int, tags: SoundTags) -> SoundEncoder:
    """For speech of one channel.

    Args:
        format: of `ENCODED_FORMATS`.
        rate: Hz.
        tags: what the file says about itself.

    Raises:
        MoshiError: a package is missing, or the format does not know this rate.
    """
    try:
        return _MAKERS[format](rate, tags)
    except soundfile.SoundFileError as error:
        raise MoshiError(f"{format} cannot be written at {rate} Hz: {error}") from error
