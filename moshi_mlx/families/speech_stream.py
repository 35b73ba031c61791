"""Speech while it is made, for a loop or an event loop, of a text that is there or arrives.

Knows when more of the text is needed, and which words have an end. Knows nothing of how a model
speaks, or of its codec.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..arrays import Pcm
from ..closing import Closing
from ..errors import ArgumentError, SessionError, shown
from ..speech import Speech, SpokenWord
from ..worker import Worker
from .speech_machine import SpeechMachine
from .speech_script import ArrivingScript, ScriptReader

Pieces = Iterator[str] | AsyncIterator[str]
"""Of a text that arrives, cut anywhere."""


@dataclass(frozen=True, slots=True)
class SpokenChunk:
    """A piece of speech.

    pcm: float32 [samples] in −1 … 1; of two speakers [samples, 2] where the model keeps them apart.
    words: those whose beginning and end are known by now, with their times in seconds from the
        first sample of all; a pause is one without text. Their sound may still be to come.
    """

    pcm: Pcm
    words: tuple[SpokenWord, ...]


class Speaking(Protocol):
    """A text on its way through a model; used on the model's thread alone."""

    @property
    def done(self) -> bool:
        """Nothing more is to be heard."""

    @property
    def ready(self) -> bool:
        """The next step needs no text that has not come."""

    @property
    def nothing(self) -> Pcm:
        """Sound of no length."""

    def step(self) -> Pcm | None:
        """The next step's sound, if it has any."""


class Words:
    """Words of a text as the machine begins them → words with times.

    Args:
        machine: of the text.
        frame_rate: steps per second.
        before: steps before the sound's first sample.
    """

    def __init__(self, machine: SpeechMachine, frame_rate: float, before: int) -> None:
        self._machine, self._rate, self._before = machine, frame_rate, before
        self._told = 0

    def new(self) -> tuple[SpokenWord, ...]:
        """Those whose end has been found since the last call: where what follows begins."""
        begun, end_step = self._machine.begun, self._machine.end_step
        known = len(begun) - (end_step is None)
        found = []
        for i in range(self._told, known):
            end = begun[i + 1].step if i + 1 < len(begun) else end_step
            assert end is not None
            times = [(step - self._before) / self._rate for step in (begun[i].step, end)]
            found.append(SpokenWord(begun[i].text, times[0], times[1], begun[i].speaker))
        self._told = max(self._told, known)
        return tuple(found)


class SpeechStream(Closing):
    """Speech while it is made; made by `Tts.speak`. An iterator, sync or async, of `SpokenChunk`.

    Nothing is made before it is asked for. Where the text lacks it waits, and no pause is spoken.
    An error of the text's own iterator reaches the caller, and ends the speech.

    Args:
        worker: of the model.
        speaking: the text on its way.
        machine: of the text.
        words: of the text.
        reader: reads the text that arrives.
        text: what arrives of it; None: all of it is there.
        sample_rate: samples per second.
    """

    def __init__(
        self,
        worker: Worker,
        speaking: Speaking,
        machine: SpeechMachine,
        words: Words,
        reader: ScriptReader,
        text: Pieces | None,
        sample_rate: int,
    ) -> None:
        self._worker, self._machine, self._reader = worker, machine, reader
        self._speaking: Speaking | None = speaking
        self._words, self._text, self._script = words, text, ArrivingScript()
        self._nothing = speaking.nothing
        self._closed = False
        self._began: float | None = None
        self._coming: asyncio.Task[SpokenChunk | None] | None = None
        self.sample_rate = sample_rate
        """Samples per second."""
        self.first_sound_seconds: float | None = None
        """From the first request, or the first text that arrived, to the first sound."""

    def __iter__(self) -> Iterator[SpokenChunk]:
        return self

    def __next__(self) -> SpokenChunk:
        """The next piece. Waits for text where that arrives.

        Raises:
            ArgumentError: something in the text makes no sense.
            SessionError: the stream is closed, or used by `async for`.
        """
        self._check()
        if self._coming is not None:
            raise SessionError("this speech is used by async for: ask for its next piece there")
        with self._ending():
            while self._speaking is not None:
                found = self._worker.call(self._step)
                if not isinstance(found, _Wait):
                    return self._given(found)
                self._read(self._next_piece())
        raise StopIteration

    def __aiter__(self) -> AsyncIterator[SpokenChunk]:
        return self

    async def __anext__(self) -> SpokenChunk:
        """The next piece; one whose caller is cancelled is the next one that is given.

        Raises:
            ArgumentError: something in the text makes no sense.
            SessionError: the stream is closed.
        """
        self._check()
        if self._coming is None:
            self._coming = asyncio.ensure_future(self._made())
        try:
            chunk = await asyncio.shield(self._coming)
        finally:
            if self._coming.done():
                self._coming = None
        if chunk is None:
            raise StopAsyncIteration
        return chunk

    async def _made(self) -> SpokenChunk | None:
        """The next piece; None at the end."""
        with self._ending():
            while self._speaking is not None:
                found = await asyncio.wrap_future(self._worker.submit(self._step))
                if not isinstance(found, _Wait):
                    return self._given(found)
                self._read(await self._coming_piece())
        return None

    def all(self) -> Speech:
        """All that is left, as one."""
        chunks = [*self]
        sound = [self._nothing, *(chunk.pcm for chunk in chunks)]
        words = tuple(word for chunk in chunks for word in chunk.words)
        return Speech(np.concatenate(sound), words, self.sample_rate)

    def close(self) -> None:
        """Lets go of it, and of the text's iterator. May be called again, from anywhere."""
        self._closed = True
        self._let_go()

    def _let_go(self) -> None:
        self._speaking = None
        text, self._text = self._text, None
        if isinstance(text, Iterator) and hasattr(text, "close"):
            with suppress(ValueError):  # it is at work on another thread
                text.close()

    def _ending(self) -> "_Ending":
        return _Ending(self._let_go)

    def _check(self) -> None:
        if self._closed:
            raise SessionError("this speech is closed: ask for it again")
        if self._began is None and self._text is None:
            self._began = time.monotonic()

    def _step(self) -> "SpokenChunk | _Wait":
        """On the model's thread."""
        speaking = self._speaking
        while speaking is not None and not speaking.done:
            if not speaking.ready:
                return _Wait()
            pcm = speaking.step()
            if pcm is not None:
                return SpokenChunk(pcm, self._words.new())
        words = self._words.new()
        if not words:
            raise _Over
        return SpokenChunk(self._nothing, words)

    def _given(self, chunk: SpokenChunk) -> SpokenChunk:
        if self.first_sound_seconds is None and len(chunk.pcm):
            now = time.monotonic()
            self.first_sound_seconds = now - (now if self._began is None else self._began)
        return chunk

    def _next_piece(self) -> str | None:
        if isinstance(self._text, AsyncIterator):
            raise SessionError("the text arrives in an event loop: use async for")
        return None if self._text is None else next(self._text, None)

    async def _coming_piece(self) -> str | None:
        if not isinstance(self._text, AsyncIterator):
            return await asyncio.to_thread(self._next_piece)
        try:
            return await anext(self._text)
        except StopAsyncIteration:
            return None

    def _read(self, piece: str | None) -> None:
        """More text, or the end of it."""
        if self._began is None:
            self._began = time.monotonic()
        if piece is not None and not isinstance(piece, str):
            raise ArgumentError(f"text must come in pieces of text, not {shown(piece)}")
        for speaker, text in self._script.end() if piece is None else self._script.read(piece):
            if speaker is not None:
                self._machine.add(self._reader.end())
                self._reader.turn(speaker)
            self._machine.add(self._reader.read(text))
        if piece is None:
            self._machine.add(self._reader.end())
            self._machine.ended = True


class _Wait:
    """More of the text is needed."""


class _Over(Exception):  # noqa: N818 - it is no error
    """Nothing is left."""


class _Ending:
    """Ends a stream at its end and at every error, and lets the end itself pass silently."""

    def __init__(self, let_go: Callable[[], None]) -> None:
        self._let_go = let_go

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, *rest: Any) -> bool:
        if kind is not None:
            self._let_go()
        return kind is _Over
