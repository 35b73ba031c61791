"""Sound files of any format: examined once, then read in blocks.

libsndfile reads most of them (WAV, FLAC, AIFF, MP3, Ogg, …), FFmpeg the others (m4a, mp4, webm, …)
where the package `av` is installed. Knows nothing of models, of what the sound is for, and of how
files are written.
"""

from __future__ import annotations

import io
import logging
import math
import re
import shlex
import struct
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from .arguments import LOUD
from .arrays import Pcm
from .distributions import install_hint
from .errors import AudioFileError
from .formats import SOUNDS, what_is

__all__ = ["Sound", "check_is_file", "open_sound"]

SAMPLE_RATES = (4_000, 768_000)
CHANNEL_COUNTS = (1, 64)
LEAST_MISSING_SECONDS = 0.05
"""Less is not told: encoders pad and trim by a block."""

_BLOCK = 1 << 16
_UNKNOWN_SAMPLES = 2**62  # what libsndfile says of a FLAC that was streamed is beyond that
_ADDRESS = re.compile(r"([a-zA-Z][\w+.-]+):/+")  # a path has one / of two left
_UNKNOWN_SIZE = 0x7FFF_F000
"""From here on, the size of a WAV's samples is one of those that are written where it is not known:
sox writes 0x7ffff000 into a pipe, arecord 0x80000000, ffmpeg 0xffffffff."""
# FFmpeg's formats that are sound in one file: none that names other files or addresses.
_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,aac,caf,amr,asf,mp3,ogg,flac,wav,aiff,flv,avi"
_GUESSED_LENGTH = {"aac", "amr", "mp3"}
"""Formats without a header that says how long they are."""

_log = logging.getLogger("moshi_mlx")

Block = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Sound:
    """A sound file that can be read to its end.

    rate: Hz.
    samples: that are really there, per channel.
    missing: seconds that its header promises beyond those.
    """

    path: Path
    rate: int
    channels: int
    samples: int
    missing: float = 0.0

    @property
    def seconds(self) -> float:
        """Its length."""
        return self.samples / self.rate

    def blocks(self) -> Iterator[Block]:
        """All of it in order: float32 [n, channels], n ≥ 1, about −1 … 1 and always finite.

        Raises:
            AudioFileError: it cannot be read, is damaged, or has a sample that isn't finite, or
                of another scale.
        """
        with closing(_decoder(self.path)) as decoder:
            yield from _checked(self.path, decoder)

    def mono(self, rate: int) -> Iterator[Pcm]:
        """All of it in order as float32 [n] at `rate`, n ≥ 1: the mean of its channels.

        Raises:
            AudioFileError: as `blocks`.
        """
        resampler = soxr.ResampleStream(self.rate, rate, 1) if rate != self.rate else None
        for block in self.blocks():
            found = block.mean(axis=1)
            if resampler is not None:
                found = resampler.resample_chunk(found)
            if len(found):
                yield found
        if resampler is not None:
            found = resampler.resample_chunk(np.zeros(0, np.float32), last=True)
            if len(found):
                yield found

    def read(self, rate: int, seconds: float = math.inf) -> Pcm:
        """Its first `seconds`, float32 [channels, samples] at `rate`. Raises AudioFileError."""
        needed = math.ceil(min(seconds, self.seconds) * self.rate)
        blocks: list[Block] = []
        for block in self.blocks():
            blocks.append(block[:needed])
            needed -= len(block)
            if needed <= 0:
                break
        sound = np.concatenate(blocks)
        if rate != self.rate:
            sound = soxr.resample(sound, self.rate, rate)
        return np.ascontiguousarray(sound.T, dtype=np.float32)


def open_sound(path: Path) -> Sound:
    """Reads a file once, and says what is in it. Logs a line where its end is missing.

    Raises:
        AudioFileError: it is no sound file, has no samples, is damaged in the middle, has a sample
            that isn't finite or of another scale, or a rate or channels outside SAMPLE_RATES and
            CHANNEL_COUNTS.
    """
    check_is_file(path)
    with closing(_decoder(path)) as decoder:
        rate, channels, promised = decoder.rate, decoder.channels, decoder.promised
        samples = sum(len(block) for block in _checked(path, decoder))
    missing = max(0.0, (promised - samples) / rate)
    if not samples:
        raise AudioFileError(f"{path} is empty: it has no samples")
    sound = Sound(path, rate, channels, samples, missing)
    if missing >= LEAST_MISSING_SECONDS:
        _log.warning(
            "%s ends after %.2f s: %.2f s that its header promises are missing",
            path, sound.seconds, missing,
        )  # fmt: skip
    return sound


def check_is_file(path: Path) -> None:
    """Raises AudioFileError where there is no file, or something that might never end."""
    if not path.exists():
        if address := _ADDRESS.match(str(path)):
            where = f"{address[1]}://{str(path)[address.end() :]}"
            raise AudioFileError(f"{where} is an address: fetch the file first, and give its path")
        raise AudioFileError(f"there is no file {path}")
    if path.is_dir():
        raise AudioFileError(f"{path} is not a file but a folder")
    if not path.is_file():
        raise AudioFileError(
            f"{path} is not a file but a pipe or a device, whose end is not known: "
            "write the sound to a file first"
        )


def _checked(path: Path, decoder: _Decoder) -> Iterator[Block]:
    """The decoder's blocks, all of which are finite and of the scale of floats."""
    read = 0
    for block in decoder.blocks():
        good = (np.abs(block) <= LOUD).all(axis=1)  # what compares with NaN is false
        if not good.all():
            row = int(np.argmin(good))
            at, loudest = (read + row) / decoder.rate, np.abs(block[row]).max()
            problem = "that is not a finite number"
            if np.isfinite(loudest):
                problem = f"of {loudest:g}: floats must be in −1 … 1, write the file again so"
            raise AudioFileError(f"{path} has a sample at {at:.3f} s {problem}")
        read += len(block)
        yield block


def _check_header(path: Path, rate: int, channels: int) -> None:
    for what, value, unit, (least, most) in (
        ("sample rate", rate, " Hz", SAMPLE_RATES),
        ("number of channels", channels, "", CHANNEL_COUNTS),
    ):
        if not least <= value <= most:
            raise AudioFileError(
                f"{path}: its header says a {what} of {value}{unit}, which must be "
                f"{least} to {most}{unit}; write the file again with the right one"
            )


# --------------------------------------------------------------------------------- decoders


class _Decoder(Protocol):
    """An open file. `promised` is how many samples its header says, as far as it does."""

    rate: int
    channels: int
    promised: int

    def blocks(self) -> Iterator[Block]: ...
    def close(self) -> None: ...


def _decoder(path: Path) -> _Decoder:
    """libsndfile, or FFmpeg for what it cannot read. Raises AudioFileError."""
    try:
        try:
            return _Sndfile(path)
        except soundfile.SoundFileError as error:
            reason = _words(error)
        if not path.stat().st_size:
            raise AudioFileError(f"{path} is empty: it has no samples")
        what = what_is(path)
        if what is not None and what not in SOUNDS:
            raise AudioFileError(f"cannot read {path} as sound: it is {what}")
        return _FFmpeg(path)
    except ImportError:
        raise AudioFileError(
            f"cannot read {path} as sound: {reason}. If it is m4a, AAC, mp4 or webm, "
            f"`{install_hint('media')}`, or convert it: `{_conversion(path)}`"
        ) from None
    except OSError as error:
        raise AudioFileError(f"cannot read {path} as sound: {_words(error)}") from error
    except ValueError as error:
        raise AudioFileError(
            f"cannot read {path} as sound: libsndfile says: {reason}; FFmpeg says: {_words(error)}"
        ) from error


def _conversion(path: Path) -> str:
    """A command that makes a WAV of a file with what the system has."""
    source, target = (shlex.quote(str(p)) for p in (path, path.with_name(f"{path.stem}.new.wav")))
    if sys.platform == "darwin":
        return f"afconvert -f WAVE -d LEI16 {source} {target}"
    return f"ffmpeg -i {source} {target}"


def _damaged(path: Path, seconds: float, error: Exception) -> AudioFileError:
    return AudioFileError(f"{path} is damaged at {seconds:.2f} s: {_words(error)}")


def _words(error: Exception) -> str:
    """A library's words on one line, without the file name that it puts in front."""
    text = getattr(error, "error_string", None) or getattr(error, "strerror", None) or str(error)
    return " ".join(str(text).split()).rstrip(".")


class _Sndfile:
    """A file that libsndfile reads. Raises SoundFileError."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._raw = path.open("rb")
        try:
            size = path.stat().st_size
            wav = _wav_layout(self._raw, size)
            if wav is None:
                part = _Part(b"", self._raw, 0, size)
            else:
                _check_header(path, wav.rate, wav.channels)
                part = _Part(wav.header(), self._raw, wav.start, wav.there)
            self._file = soundfile.SoundFile(part)
            self.rate, self.channels = self._file.samplerate, self._file.channels
            _check_header(path, self.rate, self.channels)
        except BaseException:
            self._raw.close()
            raise
        share = _promised_share(self._file.extra_info) if wav is None else wav.promised_share
        known = self._file.frames < _UNKNOWN_SAMPLES
        self.promised = round(self._file.frames * share) if known else 0

    def blocks(self) -> Iterator[Block]:
        """The samples. What cannot be read is the end, or else AudioFileError."""
        read = 0
        while True:
            block = np.full((_BLOCK, self.channels), np.nan, np.float32)
            try:
                n = len(self._file.read(out=block))
            except soundfile.SoundFileError as error:
                n = int(np.argmax(np.isnan(block[:, 0])))  # what was read before it
                if self._goes_on():
                    raise _damaged(self._path, (read + n) / self.rate, error) from error
            if n:
                yield block[:n]
            if n < _BLOCK:
                return
            read += n

    def _goes_on(self) -> bool:
        """Whether the last sample can be read, from a new start."""
        with closing(_Sndfile(self._path)) as again:
            try:
                again._file.seek(again._file.frames - 1)
                return len(again._file.read(1)) == 1
            except soundfile.SoundFileError:
                return False

    def close(self) -> None:
        """Gives the file back."""
        self._file.close()
        self._raw.close()


class _FFmpeg:
    """A file that FFmpeg reads through PyAV. Raises ImportError, ValueError, AudioFileError."""

    def __init__(self, path: Path) -> None:
        import av

        self._path = path
        self._av = av
        self._raw = path.open("rb")
        try:
            # The open file, since FFmpeg would take some names for addresses.
            options = {"format_whitelist": _FORMATS}
            self._file: Any = av.open(self._raw, options=options, metadata_errors="ignore")
            if not self._file.streams.audio:
                raise AudioFileError(f"{path} has no sound in it")
            self._stream: Any = self._file.streams.audio[0]
            if self._stream.codec_context is None:
                raise AudioFileError(f"{path} is in a format that FFmpeg cannot decode")
            self.rate, self.channels = self._stream.rate, self._stream.channels
            _check_header(path, self.rate, self.channels)
        except av.FFmpegError as error:
            self._raw.close()
            raise ValueError(_words(error)) from error
        except BaseException:
            self._raw.close()
            raise
        self.promised = round(self._seconds() * self.rate)

    def _seconds(self) -> float:
        """How long the sound is by the header; 0 where it does not say."""
        if self._file.format.name in _GUESSED_LENGTH:
            return 0.0
        if self._stream.duration is not None:
            return float(self._stream.duration * self._stream.time_base)
        alone = len(self._file.streams) == 1
        return (self._file.duration or 0) / self._av.time_base if alone else 0.0

    def blocks(self) -> Iterator[Block]:
        """The samples. What cannot be read is the end, or else AudioFileError."""
        resampler = self._av.AudioResampler("flt", self._stream.layout, self.rate)
        error: Exception | None = None
        read = 0
        for packet in self._file.demux(self._stream):
            try:
                frames = packet.decode()
            except self._av.FFmpegError as problem:
                error = error or problem
                continue
            for frame in frames:
                if error is not None:
                    raise _damaged(self._path, read / self.rate, error) from error
                frame.pts = None
                for part in resampler.resample(frame):
                    block: Any = part.to_ndarray().reshape(-1, self.channels)
                    read += len(block)
                    yield block

    def close(self) -> None:
        """Gives the file back."""
        self._file.close()
        self._raw.close()


# ------------------------------------------------------------------------------- WAV headers


@dataclass(frozen=True)
class _Wav:
    """Where a WAV's samples are; sizes in bytes, `said` None where the writer did not know it."""

    format: bytes
    start: int
    said: int | None
    there: int

    @property
    def rate(self) -> int:
        return int.from_bytes(self.format[4:8], "little")

    @property
    def channels(self) -> int:
        return int.from_bytes(self.format[2:4], "little")

    @property
    def promised_share(self) -> float:
        """What the header promises in relation to what is there."""
        return 1.0 if self.said is None or not self.there else self.said / self.there

    def header(self) -> bytes:
        """One that has the right sizes and nothing else."""
        form = b"fmt " + struct.pack("<I", len(self.format)) + self.format
        if self.there < 0xFFFF_0000:
            riff, data = 4 + len(form) + 8 + self.there, self.there
            return b"RIFF" + struct.pack("<I", riff) + b"WAVE" + form + _chunk_head(b"data", data)
        sizes = struct.pack("<QQQI", 4 + 36 + len(form) + 8 + self.there, self.there, 0, 0)
        head = _chunk_head(b"RF64", 0xFFFF_FFFF) + b"WAVE" + _chunk_head(b"ds64", len(sizes))
        return head + sizes + form + _chunk_head(b"data", 0xFFFF_FFFF)


def _chunk_head(name: bytes, size: int) -> bytes:
    return name + struct.pack("<I", size)


def _wav_layout(file: BinaryIO, size: int) -> _Wav | None:
    """What the chunks of a WAV say; None if it is none, or has no format before its samples.

    Recorders that are killed leave sizes of 0, and programs that write into a pipe the largest
    ones: what follows is the sound then.
    """
    head = file.read(12)
    if head[:4] not in (b"RIFF", b"RF64", b"BW64") or head[8:] != b"WAVE":
        return None
    form, long = b"", 0
    for name, start, said in _chunks(file, 12, size):
        if name == b"data":
            break
        file.seek(start)
        if name == b"fmt ":
            form = file.read(min(said, 64))
        elif name == b"ds64":
            long = int.from_bytes(file.read(16)[8:], "little")
    else:
        return None
    if len(form) < 16:
        return None
    left = size - start
    if said == 0xFFFF_FFFF and long:
        return _Wav(form, start, long, min(long, left))
    if said == 0 and _is_chunks(file, start, size):
        return _Wav(form, start, 0, 0)
    if said == 0 or (said >= _UNKNOWN_SIZE and said > left):
        return _Wav(form, start, None, left)
    return _Wav(form, start, said, min(said, left))


def _chunks(file: BinaryIO, at: int, size: int) -> Iterator[tuple[bytes, int, int]]:
    """(name, where its content starts, its size as it is said) of each chunk from `at` on."""
    while at + 8 <= size:
        file.seek(at)
        name, said = struct.unpack("<4sI", file.read(8))
        yield name, at + 8, said
        at += 8 + said
        if said % 2:
            file.seek(at)
            at += file.read(1) == b"\0"  # some writers leave out what pads an odd chunk


def _is_chunks(file: BinaryIO, at: int, size: int) -> bool:
    """Whether nothing but whole chunks is from `at` to the end."""
    for name, start, said in _chunks(file, at, size):
        if not (name.isascii() and name.decode().isprintable()):
            return False
        at = start + said + said % 2
    return at in (size, size + 1)


def _promised_share(log: str) -> float:
    """What a file's header promises in relation to what is there, as libsndfile logs it."""
    said = re.findall(r"^\s*(?:riff|FORM|SSND|Data Size)\s*: (\d+) \(should be (\d+)\)", log, re.M)
    promised, there = (int(number) for number in said[-1]) if said else (1, 1)
    return promised / there if 0 < there < promised < _UNKNOWN_SIZE else 1.0


class _Part(io.RawIOBase):
    """`head` and, after it, `size` bytes of a file from `start` on, as a file without a name:
    soundfile would take a name for a format."""

    def __init__(self, head: bytes, file: BinaryIO, start: int, size: int) -> None:
        self._head, self._file, self._start = head, file, start
        self._at, self._end = 0, len(head) + size

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """As of any file."""
        self._at = max(0, (0, self._at, self._end)[whence] + offset)
        return self._at

    def tell(self) -> int:
        """As of any file."""
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fills `buffer` whole, unless the end comes first."""
        view = memoryview(buffer)
        first = self._head[self._at : self._at + len(view)]
        view[: len(first)] = first
        at = self._at + len(first)
        rest = view[len(first) : len(first) + max(0, self._end - at)]
        n = len(first)
        if rest:
            self._file.seek(self._start + at - len(self._head))
            n += self._file.readinto(rest)  # type: ignore[attr-defined]
        self._at += n
        return n
