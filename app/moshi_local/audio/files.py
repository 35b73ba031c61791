"""Sound files as an `AudioPort`: any rate and channel count in, 24 kHz WAV or FLAC out.

Knows nothing of models. Files are read and written piece by piece, so that hours of sound need
little memory. The output has a temporary name until it is whole.
"""

from __future__ import annotations

import math
import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from moshi_mlx import ArgumentError, AudioFileError
from moshi_mlx.arguments import finite, path_of, real, samples, whole
from moshi_mlx.arrays import Pcm
from moshi_mlx.files import SoundSink, partial_file
from moshi_mlx.outputs import Output, check_outputs
from moshi_mlx.sounds import SAMPLE_RATES, Sound, check_is_file, open_sound

from ..port import Read

__all__ = ["FileAudio", "SoundTags", "SoundWriter", "check_sound_files", "tag_sound", "write_sound"]

_MOST_SAMPLES = 2**20  # of a frame
_DAY = 86_400.0
FORMATS = {".wav": ("WAV", "PCM_16"), ".flac": ("FLAC", "PCM_16")}
"""What libsndfile calls a lossless file and its samples, by suffix."""
SPEECH_FORMATS = {
    **FORMATS,
    ".mp3": ("MP3", "MPEG_LAYER_III"),
    ".opus": ("OGG", "OPUS"),
    ".ogg": ("OGG", "VORBIS"),
}
"""And those that lose something."""


@dataclass(frozen=True, slots=True)
class SoundTags:
    """What a sound file says about itself."""

    title: str
    comment: str
    software: str
    date: str


class SoundWriter:
    """A sound file that is written piece by piece, whole in the end or absent.

    A context manager; without `finish` nothing is left behind.

    Args:
        target: is replaced if it exists; its suffix is one of SPEECH_FORMATS.
        rate: Hz.
        channels: their number.
        tags: what the file says about itself.

    Raises:
        AudioFileError: on entering and later, if it cannot be written.
    """

    def __init__(
        self, target: Path, rate: int, channels: int = 1, tags: SoundTags | None = None
    ) -> None:
        self._target, self._rate, self._channels, self._tags = target, rate, channels, tags
        self._closing = ExitStack()

    def __enter__(self) -> SoundWriter:
        name, subtype = SPEECH_FORMATS[self._target.suffix.lower()]
        with ExitStack() as stack:
            self._partial = stack.enter_context(partial_file(Path(os.path.realpath(self._target))))
            with _errors(self._target):
                self._sink = stack.enter_context(SoundSink(self._partial))
                self._file = stack.enter_context(
                    soundfile.SoundFile(
                        self._sink, "w", self._rate, self._channels, subtype, format=name
                    )
                )
                if self._tags is not None:
                    tag_sound(self._file, self._tags)
            self._closing = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._closing.__exit__(*error)

    def write(self, sound: npt.NDArray[np.float32]) -> None:
        """Appends float32 [samples] or [samples, channels] in −1 … 1. Raises AudioFileError."""
        with _errors(self._target):
            self._file.write(sound)
            self._sink.check()

    def finish(self) -> None:
        """The file is whole: it gets its name. Raises AudioFileError."""
        with _errors(self._target):
            self._file.close()
            self._sink.check()
            self._sink.close()
            self._partial.replace(os.path.realpath(self._target))


def tag_sound(file: soundfile.SoundFile, tags: SoundTags) -> None:
    """Lets a file that is being written say this about itself."""
    for field in fields(tags):
        setattr(file, field.name, getattr(tags, field.name))


class FileAudio:
    """A recording in place of the microphone, a new file in place of the speaker.

    The input is followed by `tail` seconds of silence, at most a day, so that a reply is heard.
    With `stereo` the output has the input on the left. A source that `check_sound_files` has read
    already is not read twice. Raises MoshiError.
    """

    def __init__(
        self,
        source: str | Path | Sound,
        target: str | Path,
        *,
        sample_rate: int,
        frame_size: int,
        tail: float = 0.0,
        stereo: bool = False,
    ) -> None:
        target = path_of("target", target)
        whole("sample_rate", sample_rate, *SAMPLE_RATES)
        whole("frame_size", frame_size, 1, _MOST_SAMPLES)
        real("tail", tail, 0, _DAY)
        if not isinstance(source, Sound):
            source = check_sound_files(path_of("source", source), target)
        self._source, self._target = source, target
        self._rate, self._frame_size, self._stereo = sample_rate, frame_size, stereo
        heard = math.ceil(math.ceil(source.samples * sample_rate / source.rate) / frame_size)
        self.frames = heard + math.ceil(tail * sample_rate / frame_size)
        self._given = 0
        self._samples = self._frames()
        self._heard = np.zeros(frame_size, np.float32)
        self._output = SoundWriter(target, sample_rate, 2 if stereo else 1)

    def __enter__(self) -> FileAudio:
        self._output.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._samples.close()
        try:
            if kind is None and self.whole:
                self._output.finish()
        finally:
            self._output.__exit__(kind, error, trace)

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
        """Append the answer to the frame that was read last, [frame_size]. Raises MoshiError."""
        pcm = samples(pcm)
        if pcm.shape != (self._frame_size,):
            raise ArgumentError(f"pcm must be [{self._frame_size}], is {list(pcm.shape)}")
        finite("pcm", pcm)
        self._output.write(np.column_stack([self._heard, pcm]) if self._stereo else pcm)

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


def write_sound(target: Path, sound: npt.NDArray[np.float32], rate: int) -> None:
    """Puts a file there, whole or not at all.

    Args:
        target: is replaced if it exists; .wav or .flac.
        sound: float32 [samples] or [samples, channels] in −1 … 1.
        rate: Hz.

    Raises:
        AudioFileError: it cannot be written.
    """
    with SoundWriter(target, rate, 1 if sound.ndim == 1 else sound.shape[1]) as file:
        file.write(sound)
        file.finish()


@contextmanager
def _errors(target: Path) -> Iterator[None]:
    try:
        yield
    except (soundfile.SoundFileError, OSError) as error:
        raise AudioFileError(f"cannot write {target}: {_reason(error)}") from error


def check_sound_files(
    source: Path,
    target: Path,
    outputs: Sequence[Output] = (),
    inputs: Iterable[Path | None] = (),
    what: str = "the answer",
) -> Sound:
    """Reads all of `source`, when it is known that `target` can be written.

    Args:
        source: the recording.
        target: the answer.
        outputs: what the same command writes besides.
        inputs: what it reads besides.
        what: `target` holds, for messages.

    Raises:
        MoshiError: `source` is not sound to its end, or something cannot be written.
    """
    check_is_file(source)
    check_outputs([Output(target, what, tuple(FORMATS)), *outputs], [source, *inputs])
    return open_sound(source)


def _reason(error: Exception) -> str:
    """The library's words on one line, without the file name that it puts in front."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = getattr(error, "error_string", None) or str(error)
    return " ".join(text.split()).rstrip(".")
