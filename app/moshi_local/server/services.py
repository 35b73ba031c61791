"""What a server does beside talking: speech to text, and text to speech. How requests queue.

Knows nothing of a protocol's messages, nor of how a model is loaded.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

import numpy as np

from moshi_mlx import MoshiError, Word
from moshi_mlx.arrays import Pcm

from .access import Refused

if TYPE_CHECKING:  # the families are imported with their first model
    from moshi_mlx import HeardWord, Stt, TranscriptionSession
    from moshi_mlx.families.speak import Tts
    from moshi_mlx.families.speech_stream import SpeechStream
    from moshi_mlx.families.transcribe import Passage
    from moshi_mlx.families.transcription_session import HeardFrame

__all__ = [
    "ArrivingText",
    "DEFAULT_VOICE",
    "LiveTranscription",
    "Places",
    "RequestError",
    "Services",
    "SoundEncoder",
    "SpeechService",
    "TranscriptionService",
]

T = TypeVar("T")

DEFAULT_VOICE = "default"
"""What the model's own choice of a voice is called."""
TURN_SECONDS = 60.0
"""So long a request waits for its turn."""
TEXT_SECONDS = 120.0
"""So long speech waits for more of its text."""
MOST_UNSPOKEN = 100_000
"""Characters of text that may wait to be spoken."""


class RequestError(Exception):
    """A request cannot be served, and why.

    param: the field that is wrong.
    """

    def __init__(self, status: int, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.refused = Refused(status, code, message, param)

    @classmethod
    def of(cls, error: MoshiError, param: str | None = None) -> RequestError:
        """What the library says about a client's request."""
        return cls(400, "invalid_value", str(error), param)


class Places:
    """Requests at the same time; others wait, up to a number.

    Args:
        count: at the same time.
        waiting: at most.
    """

    def __init__(self, count: int = 4, waiting: int = 16) -> None:
        self.count, self._most = count, waiting
        self._turns = asyncio.Semaphore(count)
        self._waiting = 0

    @asynccontextmanager
    async def one(self, *, waits: bool = True) -> AsyncIterator[None]:
        """A place, in the order in which they are asked for.

        Args:
            waits: for a free one.

        Raises:
            RequestError: too many wait, none was free in time, or at once where it does not wait.
        """
        if self._turns.locked() and (not waits or self._waiting >= self._most):
            raise RequestError(503, "busy", "busy: all places are taken: try again later")
        self._waiting += 1
        try:
            async with asyncio.timeout(TURN_SECONDS):
                await self._turns.acquire()
        except TimeoutError:
            raise RequestError(503, "busy", "busy: no place was free in time") from None
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._turns.release()


# ------------------------------------------------------------------------ speech to text


@dataclass(frozen=True)
class TranscriptionService:
    """A model that writes down what it hears.

    model: whose thread does the work.
    executor: where what waits for that thread waits; it has a thread for each place.
    subtitles: words as SubRip or WebVTT.
    phrases: words by phrases.
    kv_bits: as `Stt.session` takes it.
    languages: that it understands.
    at_once: frames of a recording that one job of the model's thread takes.
    uploads: files that are received or wait to be heard.
    """

    model: Stt
    executor: Executor
    subtitles: Callable[[Literal["srt", "vtt"], Sequence[Word]], str]
    phrases: Callable[[Sequence[Word]], Sequence[Sequence[Word]]]
    kv_bits: int | None = None
    languages: tuple[str, ...] = ("en",)
    at_once: int = 12
    places: Places = field(default_factory=Places)
    uploads: Places = field(default_factory=lambda: Places(16, 0))

    async def passages(self, path: Path, called: str) -> AsyncIterator[Passage]:
        """A recording in any format, as it is heard.

        Args:
            path: of the file.
            called: what errors call it.

        Raises:
            MoshiError: it cannot be read.
        """
        from moshi_mlx.files import named_as
        from moshi_mlx.sounds import open_sound

        def begin() -> Iterator[Passage]:
            with named_as(Path(called), path):
                sound = open_sound(path).mono(self.model.sample_rate)
                return self.model.transcribing([sound], kv_bits=self.kv_bits, at_once=self.at_once)

        def following(passages: Iterator[Passage]) -> Passage | None:
            with named_as(Path(called), path):
                return next(passages, None)

        passages = await self._do(begin)
        while (passage := await self._do(partial(following, passages))) is not None:
            yield passage

    @asynccontextmanager
    async def live(self) -> AsyncIterator[LiveTranscription]:
        """A live transcription, which is let go when this ends. Raises MoshiError."""
        session = await self._do(partial(self.model.session, kv_bits=self.kv_bits))
        try:
            yield LiveTranscription(self.model, session)
        finally:
            with suppress(MoshiError):
                self.model.worker.submit(session.close)

    async def _do(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self.executor, work)


class LiveTranscription:
    """Sound of any block length in, frames that were heard out. For one task.

    Args:
        model: of the session.
        session: fresh.
    """

    def __init__(self, model: Stt, session: TranscriptionSession) -> None:
        self.sample_rate, self.frame_size = model.sample_rate, model.frame_size
        self.delay_frames = math.ceil(session.delay_seconds * model.frame_rate)
        self._worker, self._session = model.worker, session
        self._rest = np.zeros(0, np.float32)

    @property
    def waiting(self) -> int:
        """Samples that are no frame yet."""
        return len(self._rest)

    async def hear(self, pcm: Pcm) -> AsyncIterator[HeardFrame]:
        """Takes float32 [n] at `sample_rate`; what each frame brought. Raises MoshiError."""
        self._rest = np.concatenate([self._rest, pcm])
        while len(self._rest) >= self.frame_size:
            frame, self._rest = self._rest[: self.frame_size], self._rest[self.frame_size :]
            yield await self._submit(partial(self._session.step, frame))

    async def finish(self) -> tuple[HeardWord, ...]:
        """Nothing more comes: the words that are still on their way. Raises MoshiError."""
        words: list[HeardWord] = []
        if len(self._rest):
            async for frame in self.hear(np.zeros(-len(self._rest) % self.frame_size, np.float32)):
                words += frame.words
        return (*words, *await self._submit(self._session.flush))

    async def _submit(self, work: Callable[[], T]) -> T:
        return await asyncio.wrap_future(self._worker.submit(work))


# ------------------------------------------------------------------------ text to speech


class SoundEncoder(Protocol):
    """Sound → bytes of a file, as it is made.

    content_type: of the bytes.
    """

    content_type: str

    def write(self, pcm: Pcm) -> bytes:
        """Takes float32 [n]; gives what can be sent now."""

    def finish(self) -> bytes:
        """That was all; gives the rest."""


@dataclass(frozen=True)
class SpeechService:
    """A model that speaks.

    model: whose thread does the work.
    executor: where what waits for that thread waits.
    voices: that clients may ask for, by name; the first one is taken where they ask for none.
    encoder: makes one of a format, of `formats`. Raises MoshiError.
    formats: names of them, the usual one first.
    mixed: one channel of a chunk's sound.
    seed: gives one for speech whose clients give none.
    folder: of voices that are named.
    kv_bits: as `Tts.speak` takes it.
    languages: that it speaks.
    """

    model: Tts
    executor: Executor
    voices: dict[str, Any]
    encoder: Callable[[str], SoundEncoder]
    formats: tuple[str, ...]
    mixed: Callable[[Any], Pcm]
    seed: Callable[[], int]
    folder: Path
    kv_bits: int | None = None
    languages: tuple[str, ...] = ("en",)
    places: Places = field(default_factory=Places)

    def voice(self, name: Any) -> Any:
        """A voice by its name, as `Tts.speak` takes it. Raises RequestError."""
        if not name:
            return next(iter(self.voices.values()))
        if not isinstance(name, str):
            raise RequestError(400, "invalid_value", "voice must be a name", "voice")
        if name not in self.voices:
            known = ", ".join(self.voices)
            raise RequestError(
                400, "voice_not_found", f"there is no voice {name[:60]}; there are {known}", "voice"
            )
        return self.voices[name]

    @asynccontextmanager
    async def speech(
        self, script: str | AsyncIterable[str], **options: Any
    ) -> AsyncIterator[SpeechStream]:
        """Begins to speak; what is left of it is dropped when this ends.

        Args:
            script: a text, or pieces of one that arrives.
            options: as `Tts.speak` has them.

        Raises:
            MoshiError: as `Tts.speak`.
        """
        options = {"seed": self.seed(), "kv_bits": self.kv_bits, **options}
        options["voices_folder"] = self.folder
        make = partial(self.model.speak, script, **options)
        stream = await asyncio.get_running_loop().run_in_executor(self.executor, make)
        try:
            yield stream
        finally:
            stream.close()


class ArrivingText:
    """A text that comes in pieces; an iterator of them for an event loop.

    Args:
        gap: what stands between two pieces.
    """

    def __init__(self, gap: str = "") -> None:
        self._gap = gap
        self._came: asyncio.Queue[str | None] = asyncio.Queue()
        self._unspoken = 0

    def put(self, text: Any) -> None:
        """More of it. Raises RequestError: it is no text, or more than may wait."""
        if not isinstance(text, str):
            raise RequestError(400, "invalid_value", "text must be text", "text")
        self._unspoken += len(text)
        if self._unspoken > MOST_UNSPOKEN:
            raise RequestError(413, "too_large", "more text came than may wait to be spoken")
        self._came.put_nowait(text)

    def end(self) -> None:
        """That was all."""
        self._came.put_nowait(None)

    def __aiter__(self) -> AsyncIterator[str]:
        return self._pieces()

    async def _pieces(self) -> AsyncIterator[str]:
        while True:
            try:
                async with asyncio.timeout(TEXT_SECONDS):
                    text = await self._came.get()
            except TimeoutError:
                raise RequestError(408, "timeout", "no text came for too long") from None
            if text is None:
                return
            self._unspoken -= len(text)
            yield text + self._gap


@dataclass(frozen=True)
class Services:
    """What is there beside a model that talks; None: not that."""

    transcriber: TranscriptionService | None = None
    speaker: SpeechService | None = None

    @property
    def names(self) -> list[str]:
        """Of the models."""
        both = (self.transcriber, self.speaker)
        return [each.model.name for each in both if each is not None]

    def need_transcriber(self) -> TranscriptionService:
        """Raises RequestError if there is none."""
        if self.transcriber is None:
            raise _missing("transcribes", "--stt nano-stt")
        return self.transcriber

    def need_speaker(self) -> SpeechService:
        """Raises RequestError if there is none."""
        if self.speaker is None:
            raise _missing("speaks a text", "--tts nano-tts")
        return self.speaker


def _missing(does: str, option: str) -> RequestError:
    return RequestError(
        404,
        "model_not_found",
        f"no model that {does} is loaded: start the server with `moshi-local serve {option}`",
        "model",
    )
