"""Sound files as an `AudioPort`: any rate and channel count in, 24 kHz WAV or FLAC out.

Knows nothing of models. Files are read and written piece by piece, so that hours of sound need
little memory. The output has a temporary name until it is whole.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import numpy as np
import soundfile
import soxr

from moshi_mlx import AudioFileError
from moshi_mlx.arrays import Pcm
from moshi_mlx.files import partial_name
from moshi_mlx.sounds import Sound, check_is_file, open_sound

from ..port import Read

__all__ = ["FileAudio", "check_sound_files"]

FORMATS = {".wav": "WAV", ".flac": "FLAC"}


class FileAudio:
    """A recording in place of the microphone, a new file in place of the speaker.

    The input is followed by `tail` seconds of silence, so that a reply is heard. With `stereo`
    the output has the input on the left. A source that `check_sound_files` has read already is not
    read twice. Raises AudioFileError.
    """

    def __init__(
        self,
        source: Path | Sound,
        target: Path,
        *,
        sample_rate: int,
        frame_size: int,
        tail: float = 0.0,
        stereo: bool = False,
    ) -> None:
        if isinstance(source, Path):
            source = check_sound_files(source, target)
        self._source, self._target = source, target
        self._rate, self._frame_size, self._stereo = sample_rate, frame_size, stereo
        heard = math.ceil(math.ceil(source.samples * sample_rate / source.rate) / frame_size)
        self.frames = heard + math.ceil(tail * sample_rate / frame_size)
        self._given = 0
        self._samples = self._frames()
        self._heard = np.zeros(frame_size, np.float32)
        self._partial = partial_name(target)
        self._output: soundfile.SoundFile | None = None

    def __enter__(self) -> FileAudio:
        try:
            self._output = soundfile.SoundFile(
                self._partial,
                "w",
                samplerate=self._rate,
                channels=2 if self._stereo else 1,
                format=FORMATS[self._target.suffix.lower()],
                subtype="PCM_16",
            )
        except (soundfile.SoundFileError, OSError) as error:
            raise AudioFileError(f"cannot write {self._target}: {_reason(error)}") from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._samples.close()
        try:
            if self._output is not None:
                self._output.close()
            if kind is None and self.whole:
                self._partial.replace(self._target)
        except (soundfile.SoundFileError, OSError) as problem:
            raise AudioFileError(f"cannot write {self._target}: {_reason(problem)}") from problem
        finally:
            with suppress(OSError):
                self._partial.unlink()

    @property
    def whole(self) -> bool:
        """Whether all of the recording has been read; if not, no output is left behind."""
        return self._given == self.frames

    def read(self, frame: Pcm, timeout: float) -> Read:
        """The next frame of the recording, then the silence, then END; never waits."""
        if self.whole:
            return Read.END
        frame[:] = next(self._samples, 0.0)
        self._heard[:] = frame
        self._given += 1
        return Read.FRAME

    def write(self, pcm: Pcm) -> None:
        """Append the answer to the frame that was read last."""
        assert self._output is not None, "FileAudio is a context manager"
        try:
            self._output.write(np.column_stack([self._heard, pcm]) if self._stereo else pcm)
        except (soundfile.SoundFileError, OSError) as error:
            raise AudioFileError(f"cannot write {self._target}: {_reason(error)}") from error

    def _frames(self) -> Generator[Pcm]:
        """The recording as whole frames, the last one filled up with zeros."""
        waiting = np.zeros(0, np.float32)
        for block in self._mono():
            waiting = np.concatenate([waiting, block])
            whole = len(waiting) // self._frame_size * self._frame_size
            yield from waiting[:whole].reshape(-1, self._frame_size)
            waiting = waiting[whole:]
        if len(waiting):
            yield np.pad(waiting, (0, self._frame_size - len(waiting)))

    def _mono(self) -> Iterator[Pcm]:
        """The recording in pieces, mixed to one channel at the output's rate."""
        rate = self._source.rate
        if rate == self._rate:
            for block in self._source.blocks():
                yield block.mean(axis=1)
            return
        resampler = soxr.ResampleStream(rate, self._rate, 1, dtype="float32")
        for block in self._source.blocks():
            yield resampler.resample_chunk(block.mean(axis=1))
        yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)


def check_sound_files(source: Path, target: Path) -> Sound:
    """Reads all of `source`. Raises AudioFileError if it is not sound to its end, or if `target`
    cannot be written."""
    check_is_file(source)
    if target.suffix.lower() not in FORMATS:
        raise AudioFileError(f"the output {target} must end in {' or '.join(FORMATS)}")
    if not target.parent.is_dir():
        raise AudioFileError(f"there is no folder {target.parent} for the output {target.name}")
    if target.is_dir():
        raise AudioFileError(f"the output {target} is a folder")
    if target.exists() and target.samefile(source):
        raise AudioFileError(f"input and output are the same file: {source}")
    return open_sound(source)


def _reason(error: Exception) -> str:
    """The library's words on one line, without the file name that it puts in front."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = getattr(error, "error_string", None) or str(error)
    return " ".join(text.split()).rstrip(".")
