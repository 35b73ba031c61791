"""Speech as it is made, from a script that is there or arrives: for a loop, or an event loop.

Knows when more of the script is needed. Knows nothing of how speech is made.
"""

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from enum import Enum, auto
from typing import Any, Protocol

import numpy as np

from .closing import Closing
from .errors import ArgumentError, SessionError, shown
from .speech import Speech
from .speech_sound import SpokenChunk, SpokenWord
from .worker import Worker

Pieces = Iterable[str] | AsyncIterable[str]
"""Of a script that arrives, cut anywhere."""


class Wants(Enum):
    """What speech cannot go on without."""

    MORE = auto()
    """More of the script."""
    NOTHING = auto()
    """It has ended."""


class Speaking(Protocol):
    """Speech on its way; used on the model's thread alone."""

    def next(self) -> SpokenChunk | Wants:
        """The next piece, or why there is none."""

    def add(self, piece: str) -> None:
        """More of the script. Raises ArgumentError."""

    def complete(self) -> None:
        """There is no more of the script. Raises ArgumentError."""


class SpeechStream(Closing, Iterator[SpokenChunk], AsyncIterator[SpokenChunk]):
    """Speech, piece by piece, for `for` or `async for`; made by `Tts.speak`.

    It is made as it is asked for. While text lacks it waits: no padding is spoken meanwhile. Errors
    of the text's own iterator reach the caller.

    Args:
        worker: of the model.
        begin: gives the speech; called on the model's thread, at the first piece.
        pieces: of a script that arrives; None: all of it is there.
        sample_rate: samples per second.
    """

    def __init__(
        self,
        worker: Worker,
        begin: Callable[[], Speaking],
        pieces: Pieces | None,
        sample_rate: int,
    ) -> None:
        if not isinstance(pieces, Iterable | AsyncIterable | None):
            raise ArgumentError(f"script must be text or an iterable of text, is {shown(pieces)}")
        self._worker = worker
        self._begin: Callable[[], Speaking] | None = begin
        self._speaking: Speaking | None = None
        self._pieces = pieces
        self._iterator: Any = None
        self._ended = False
        self._task: asyncio.Task[SpokenChunk | None] | None = None
        self._since: float | None = None if pieces is not None else time.monotonic()
        self.sample_rate = sample_rate
        """Samples per second."""
        self.first_sound_seconds: float | None = None
        """From the first of the text to the first sound; None before it."""

    def __iter__(self) -> "SpeechStream":
        return self

    def __next__(self) -> SpokenChunk:
        self._not_awaited()
        try:
            while not self._ended:
                found = self._worker.call(self._step)
                if isinstance(found, SpokenChunk):
                    return self._given(found)
                if found is Wants.NOTHING:
                    self.close()
                else:
                    self._take(self._next_piece())
        except BaseException:
            self.close()
            raise
        raise StopIteration

    def __aiter__(self) -> "SpeechStream":
        return self

    async def __anext__(self) -> SpokenChunk:
        if self._ended and self._task is None:
            raise StopAsyncIteration
        if self._task is None:
            self._task = asyncio.ensure_future(self._awaited())
        # Whoever gives up on a piece gets it the next time.
        try:
            chunk = await asyncio.shield(self._task)
        except asyncio.CancelledError:
            raise
        except BaseException:
            self._task = None
            self.close()
            raise
        self._task = None
        if chunk is None:
            raise StopAsyncIteration
        return chunk

    async def _awaited(self) -> SpokenChunk | None:
        """The next piece; None at the end."""
        while not self._ended:
            found = await asyncio.wrap_future(self._worker.submit(self._step))
            if isinstance(found, SpokenChunk):
                return self._given(found)
            if found is Wants.NOTHING:
                self.close()
            else:
                self._take(await self._coming_piece())
        return None

    def all(self) -> Speech:
        """The rest of it, joined.

        Raises:
            MoshiError: as each piece.
        """
        chunks = list(self)
        words: list[SpokenWord] = [word for chunk in chunks for word in chunk.words]
        pcm = np.concatenate([np.zeros(0, np.float32), *(chunk.pcm for chunk in chunks)])
        return Speech(pcm, tuple(words), self.sample_rate)

    def close(self) -> None:
        """Ends it and lets go of all that it held, the text's iterator too."""
        self._ended = True
        self._speaking = self._begin = None
        iterator, self._iterator = self._iterator, None
        if self._task is not None and self._task is not _current_task():
            self._task.cancel()
            self._task = None
        if not isinstance(iterator, AsyncIterator) and hasattr(iterator, "close"):
            try:
                iterator.close()
            except (ValueError, RuntimeError):  # it is at work on another thread
                return

    async def aclose(self) -> None:
        """The same, for an iterator of an event loop too."""
        iterator = self._iterator
        self.close()
        if isinstance(iterator, AsyncIterator) and hasattr(iterator, "aclose"):
            await iterator.aclose()

    def _step(self) -> SpokenChunk | Wants:
        """On the model's thread."""
        if self._speaking is None:
            if self._begin is None:
                return Wants.NOTHING
            self._speaking, self._begin = self._begin(), None
        return self._speaking.next()

    def _given(self, chunk: SpokenChunk) -> SpokenChunk:
        if self.first_sound_seconds is None:
            self.first_sound_seconds = time.monotonic() - (self._since or time.monotonic())
        return chunk

    def _next_piece(self) -> str | None:
        """Of the script; None at its end."""
        if isinstance(self._pieces, AsyncIterable) and not isinstance(self._pieces, Iterable):
            raise SessionError("the script is an asynchronous iterator: use async for")
        if self._iterator is None:
            self._iterator = iter(self._pieces or ())
        return next(self._iterator, None)

    async def _coming_piece(self) -> str | None:
        if not isinstance(self._pieces, AsyncIterable):
            return await asyncio.to_thread(self._next_piece)
        if self._iterator is None:
            self._iterator = aiter(self._pieces)
        try:
            found: str = await anext(self._iterator)
        except StopAsyncIteration:
            return None
        return found

    def _take(self, piece: str | None) -> None:
        speaking = self._speaking
        if speaking is None:  # closed meanwhile
            return
        if self._since is None:
            self._since = time.monotonic()
        if piece is None:
            speaking.complete()
        else:
            speaking.add(piece)

    def _not_awaited(self) -> None:
        if self._task is not None:
            raise SessionError("this stream is used by async for: await its next piece there")


def _current_task() -> "asyncio.Task[Any] | None":
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None
