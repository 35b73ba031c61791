"""A conversation as files: stereo sound (the user left, Moshi right), transcript, subtitles.

While it runs the sound is a WAV file, and all files are valid after every frame, so a program
that is killed leaves them readable. An orderly end makes FLAC of the WAV. Times in the files are
those of the recording, which continue when the session's clock starts again.
"""

from __future__ import annotations

import datetime
import math
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal

import numpy as np
import soundfile
from numpy.typing import NDArray

from moshi_mlx import WordSpoken, __version__
from moshi_mlx.files import SoundSink, partial_file, sweep
from moshi_mlx.outputs import Output, check_outputs

from ..events import Event, FrameDone, Paused, RecordingStopped, ResetDone, WordHeard
from .event_log import event_as_dict
from .transcript import Subtitles, TranscriptFile
from .wav import BYTES_PER_SAMPLE, MAX_BYTES, WavWriter, to_pcm16

__all__ = ["SOFTWARE", "Recorder", "SPEECH_TAG", "made_here", "recording_output"]

CHANNELS = ("user", "moshi")
SAVE_SECONDS = 5.0
"""Seconds of sound between two saves of the transcript, while it is small."""
SAVE_BYTES_PER_SECOND = 100_000
"""What saving a large one may write on average."""
FILL_FRAMES = 50
"""Frames of silence written at a time."""
DISK_SECONDS = 2.0
"""So long `close` waits for a disk that another thread waits for."""
ROOM_BYTES = 3 * 4096
"""What the end of a recording needs of a full disk beside the words and events."""
CAPTIONS_SECONDS = 12.0
"""So late the words of the user may come."""
FLAC_SAMPLES = 1 << 16
"""Samples turned into FLAC at a time."""
SOFTWARE = "moshi-local"
"""In the tags of every sound file that this program makes."""
SPEECH_TAG = "synthetic speech by"
"""So the comment of speech without a conversation begins."""


def recording_output(folder: Path) -> Output:
    """A folder of recordings, for `check_outputs`."""
    return Output(folder, "the recording into", kind="folder", private=True)


def made_here(path: Path) -> Literal["a conversation", "speech"] | None:
    """What this program made a sound file of, by its tags; None if it did not make it."""
    try:
        with soundfile.SoundFile(path) as file:
            software, comment = file.software, file.comment
    except (soundfile.SoundFileError, OSError):
        return None
    if comment.startswith(SPEECH_TAG) and SOFTWARE in comment:
        return "speech"
    ours = software.startswith(SOFTWARE) or f"made with {SOFTWARE}" in comment
    return "a conversation" if ours else None


def _now() -> datetime.datetime:
    return datetime.datetime.now().astimezone()


@dataclass(frozen=True, slots=True)
class _Part:
    """A WAV file of the recording, which has its first sample at `start` of the whole."""

    path: Path
    start: int


class Recorder:
    """A listener that writes `moshi-DATE.wav` (or .flac), .json and .vtt into `folder`.

    A context manager: files are made when it begins, with names that are not there yet, readable
    by their owner only; without a frame they are removed at the end. Writing may wait for the
    disk, so let a `Dispatcher` deliver to it; frames that it lost are silence in the recording.
    After `close` it ignores events.

    Args:
        folder: made if it is missing.
        sample_rate: Hz.
        frame_size: samples of a frame.
        model: name of what speaks, for the tag and the transcript.
        seed: for the transcript.
        format: of the sound after an orderly end.
        captions: the name of what writes down what the user says, if anything does.
        on_stopped: told when nothing more can be recorded, or at the end, when the WAV could
            not be made FLAC; from the thread that tells the events, or that closes.
        now: local time with its zone.
        max_bytes: of a WAV file; the sound continues in a second one.

    Raises:
        MoshiError: on entering, if the folder cannot be written to.
    """

    def __init__(
        self,
        folder: Path,
        *,
        sample_rate: int,
        frame_size: int,
        model: str,
        seed: int | None,
        format: Literal["flac", "wav"] = "flac",
        captions: str | None = None,
        on_stopped: Callable[[RecordingStopped], None] | None = None,
        now: Callable[[], datetime.datetime] = _now,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self.problem: str | None = None
        self._folder = folder
        self._rate, self._frame_size = sample_rate, frame_size
        self._model, self._seed, self._format = model, seed, format
        self._captions = captions
        self._on_stopped = on_stopped
        self._started = now()
        self._max_bytes = max_bytes
        self._tag = (
            f"right channel: synthetic speech by Moshi ({model}), left channel: the user; "
            f"made with {SOFTWARE} {__version__}"
        )
        self._made = ExitStack()  # its folder
        self._lock = threading.RLock()
        self._recording = False
        self._closed = False
        self._time = 0.0  # of the last event, on the session's clock
        self._parts: list[_Part] = []
        self._files: list[Path] = []  # beside the sound
        self._flac: Path | None = None
        self._frames = 0
        self._base: int | None = None  # the recording's frame that is the session's frame 0
        self._saved = 0.0

    def __enter__(self) -> Recorder:
        output = recording_output(self._folder)
        check_outputs([output])
        sweep(self._folder, "moshi-*")
        try:
            self._made.enter_context(output.made())
            self._open()
        except OSError as error:
            self._remove()
            self._made.close()
            raise output.cannot(error.strerror or str(error)) from error
        self._recording = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Who presses Ctrl-C again does not want to wait for FLAC.
        self.close(convert=error is None or isinstance(error, Exception))

    @property
    def path(self) -> Path:
        """The file with the sound, as it is named now; its first part if there are more."""
        return self._flac or self._parts[0].path

    @property
    def seconds(self) -> float:
        """Seconds of sound that are recorded."""
        return self._frames * self._frame_size / self._rate

    def __call__(self, event: Event) -> None:
        """Record what `event` brings; never raises OSError, but stops."""
        with self._lock:
            if not self._recording:
                return
            self._time = event.time
            try:
                self._take(event)
            except OSError as error:
                self._stop(f"{error.strerror or error}: {self.path.name} ends here")

    def close(self, convert: bool = True) -> None:
        """Write what is left, and with `convert` make FLAC if that is wanted.

        Never raises for the disk's sake: see `problem`. Waits DISK_SECONDS at most for a thread
        that is still in here; then the files stay as they are, which is readable.
        """
        if not self._lock.acquire(timeout=DISK_SECONDS):
            self.problem = self.problem or "the disk does not answer"
            return
        try:
            if not self._closed and self._parts:
                self._closed = True
                self._finish(convert)
                self._made.close()
        finally:
            self._lock.release()

    # ------------------------------------------------------------------------ while it runs

    def _open(self) -> None:
        """New files with a name that none has."""
        name = f"moshi-{self._started:%Y-%m-%dT%H-%M-%S}"
        stem, again = name, 1
        while True:
            others = [self._folder / f"{stem}.{kind}" for kind in ("flac", "json", "vtt")]
            if not any(path.exists() for path in others):
                with suppress(FileExistsError):
                    self._wav = self._new_part(self._folder / f"{stem}.wav")
                    break
            again += 1
            stem = f"{name}_{again}"
        _, json, vtt = others
        self._subtitles = Subtitles(
            vtt,
            f"{self._tag}. Times are of {stem}",
            late=0.0 if self._captions is None else CAPTIONS_SECONDS,
        )
        self._transcript = TranscriptFile(json)
        self._files = [vtt, json]
        self._save()

    def _new_part(self, path: Path) -> WavWriter:
        tags = {
            "ICMT": self._tag,
            "INAM": "Conversation with Moshi",
            "ISFT": f"{SOFTWARE} {__version__}",
            "ICRD": f"{self._started:%Y-%m-%d}",
        }
        wav = WavWriter(
            path, sample_rate=self._rate, channels=2, tags=tags, max_bytes=self._max_bytes
        )
        self._parts.append(_Part(path, self._frames * self._frame_size))
        return wav

    def _take(self, event: Event) -> None:
        match event:
            case FrameDone(frame=frame, heard=heard):
                self._fill_to(frame.index)
                self._append(to_pcm16(np.column_stack([heard, frame.pcm])))
                self._subtitles.wait(self.seconds)
            case WordSpoken(word=word) | WordHeard(word=word):
                user = isinstance(event, WordHeard)
                start, end = (max(0.0, self._at(time)) for time in (word.start, word.end))
                self._transcript.add_word("user" if user else "moshi", word.text, start, end)
                self._subtitles.add_word("You" if user else "Moshi", word.text, start, end)
            case ResetDone():
                self._subtitles.end_phrases()
                self._add_event(event)
                self._base = self._frames
            case _:
                self._add_event(event)
        pace = SAVE_SECONDS + self._transcript.size / SAVE_BYTES_PER_SECOND
        # While the model rests no frame comes that would bring about a save.
        if self.seconds - self._saved >= pace or isinstance(event, Paused):
            self._save()

    def _at(self, time: float) -> float:
        """Seconds of the session's clock as seconds of the recording."""
        return time + (self._base or 0) * self._frame_size / self._rate

    def _add_event(self, event: Event) -> None:
        about = event_as_dict(event)
        self._transcript.add_event({**about, "time": round(max(0.0, self._at(event.time)), 3)})

    def _fill_to(self, index: int) -> None:
        """Silence for the frames before frame `index` of the session that never came."""
        if self._base is None:  # we may have come in the middle of a conversation
            self._base = self._frames - index
        elif self._base + index < self._frames:  # a new one, and its ResetDone was lost
            self._base = self._frames
        missing = self._base + index - self._frames
        if not missing:
            return
        about = {"seconds": round(missing * self._frame_size / self._rate, 3)}
        self._transcript.add_event(
            {"event": "FramesMissing", "time": round(self.seconds, 3), **about}
        )
        while missing:
            frames = min(missing, FILL_FRAMES)
            self._append(np.zeros((frames * self._frame_size, 2), np.int16))
            missing -= frames

    def _append(self, sound: NDArray[np.int16]) -> None:
        """Whole frames, int16 [samples, 2]; a frame is never in two files."""
        if len(sound) > self._wav.room:
            self._wav.close()
            first = self._parts[0].path
            self._wav = self._new_part(
                first.with_name(f"{first.stem}-{len(self._parts) + 1}{first.suffix}")
            )
        self._wav.append(sound)
        self._frames += len(sound) // self._frame_size

    def _save(self, finished: bool = False) -> None:
        """Replace the transcript. Raises OSError."""
        sound = self._parts if self._flac is None else [_Part(self._flac, 0)]
        self._transcript.save(
            {
                "note": self._tag,
                "model": self._model,
                "seed": self._seed,
                **({} if self._captions is None else {"captions": self._captions}),
                "started": self._started.isoformat(timespec="seconds"),
                "sample_rate": self._rate,
                "channels": CHANNELS,
                "sound": [
                    {"file": part.path.name, "start": round(part.start / self._rate, 3)}
                    for part in sound
                ],
                "seconds": round(self.seconds, 3),
                "finished": finished,
                "problem": self.problem,
            }
        )
        self._saved = self.seconds

    def _stop(self, reason: str) -> None:
        """Nothing more is recorded; say so."""
        self._recording = False
        self.problem = reason
        with suppress(OSError):
            self._save_the_end()
        with suppress(OSError):
            self._wav.close()
        if self._on_stopped is not None:
            self._on_stopped(RecordingStopped(self._time, reason))

    def _save_the_end(self) -> None:
        """Save the transcript of a recording that stopped; a full disk takes it for some sound.

        Raises OSError.
        """
        self._drop(0)  # but what there is of the next one
        try:
            self._save()
        except OSError:
            room = self._transcript.size + ROOM_BYTES
            self._drop(math.ceil(room / (self._frame_size * len(CHANNELS) * BYTES_PER_SAMPLE)))
            self._save()

    def _drop(self, frames: int) -> None:
        """Take the last frames out of the WAV that is open. Raises OSError."""
        start = self._parts[-1].start
        samples = max(0, (self._frames - frames) * self._frame_size - start)
        self._frames = (start + self._wav.cut(samples)) // self._frame_size

    # --------------------------------------------------------------------------- at the end

    def _finish(self, convert: bool) -> None:
        stopped = not self._recording
        self._recording = False
        if not self._frames:
            with suppress(OSError):
                self._wav.close()
            with suppress(OSError):
                self._subtitles.close()
            self._remove()
            return
        try:
            try:
                self._subtitles.close()
            finally:
                self._save(finished=not stopped)
        except OSError as error:
            if not stopped:
                self._stop(f"{error.strerror or error}: {self.path.name} lacks its end")
            return
        finally:
            with suppress(OSError):
                self._wav.close()
        if convert and self._format == "flac" and not stopped:
            try:
                self._make_flac()
            except (soundfile.SoundFileError, OSError) as error:
                words = getattr(error, "strerror", None) or str(error)
                reason = " ".join(words.split()).rstrip(".")
                self._stop(f"{self.path.name} was not made FLAC: {reason}")

    def _make_flac(self) -> None:
        """One FLAC file of all parts; they are removed when it is whole."""
        flac = self._parts[0].path.with_suffix(".flac")
        if flac.exists():
            raise FileExistsError(f"there is a {flac.name} already")
        with partial_file(flac) as partial, SoundSink(partial, 0o600) as sink:
            with soundfile.SoundFile(
                sink, "w", self._rate, len(CHANNELS), "PCM_16", format="FLAC"
            ) as file:
                file.comment = self._tag
                file.title = "Conversation with Moshi"
                file.software = f"{SOFTWARE} {__version__}"
                file.date = f"{self._started:%Y-%m-%d}"
                for part in self._parts:
                    for block in soundfile.blocks(part.path, FLAC_SAMPLES, dtype="int16"):
                        file.write(block)
                        sink.check()
            sink.check()
            partial.replace(flac)
        self._flac = flac
        try:
            self._save(finished=True)
        except OSError:
            self._flac = None
            flac.unlink()
            raise
        for part in self._parts:
            part.path.unlink()

    def _remove(self) -> None:
        """Nothing was heard: leave nothing behind."""
        for path in [*(part.path for part in self._parts), *self._files]:
            with suppress(OSError):
                path.unlink()
