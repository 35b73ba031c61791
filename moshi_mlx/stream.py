"""Frames of a session for an event loop. Knows nothing of what a step does."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from concurrent.futures import Future
from typing import Generic, TypeVar

import numpy.typing as npt

from .errors import ArgumentError, SessionError

F = TypeVar("F")
Source = Iterable[npt.ArrayLike] | AsyncIterable[npt.ArrayLike]


class _End:
    """Of a source."""


class FrameStream(AsyncIterator[F], Generic[F]):
    """What a session says to the frames of a source; made by `Session.stream`.

    A frame whose caller is cancelled, as by `asyncio.wait_for`, is the next one that is given. The
    session is free again when the stream has ended, was cancelled or closed, or is left.

    Args:
        source: the other side's frames.
        begin: takes the session, or raises.
        submit: begins a step.
        end: gives the session back.
    """

    def __init__(
        self,
        source: Source,
        begin: Callable[[], None],
        submit: Callable[[npt.ArrayLike], "Future[F]"],
        end: Callable[[], None],
    ) -> None:
        self._begun = self._ended = self._awaited = False
        if not isinstance(source, Iterable | AsyncIterable):
            raise ArgumentError(f"source must be an iterable of frames, is {source!r}")
        self._frames = _each(source)
        self._begin, self._submit, self._end = begin, submit, end
        self._loop: asyncio.AbstractEventLoop | None = None
        self._coming: asyncio.Future[npt.ArrayLike | _End] | None = None
        self._step: asyncio.Future[F] | None = None

    async def __anext__(self) -> F:
        if self._ended:
            raise StopAsyncIteration
        if self._awaited:
            raise SessionError("a stream gives one frame after the other: await one at a time")
        loop = asyncio.get_running_loop()
        if self._loop not in (None, loop):
            self._finish()
            raise SessionError("this stream was begun in another event loop: make a new one")
        self._loop = loop
        self._awaited = True
        try:
            return await self._next()
        except asyncio.CancelledError:
            try:
                if self._step is not None:  # until it is made, the session is in use
                    await asyncio.wait([self._step])
            finally:
                self._give_back()
            raise
        except BaseException:
            self._finish()
            raise
        finally:
            self._awaited = False

    async def _next(self) -> F:
        if not self._begun:
            self._begin()
            self._begun = True
        if self._step is None:
            if self._coming is None:
                self._coming = asyncio.ensure_future(self._frame())
                self._coming.add_done_callback(_seen)
            pcm = await asyncio.shield(self._coming)
            self._coming = None
            if isinstance(pcm, _End):
                raise StopAsyncIteration
            self._step = asyncio.wrap_future(self._submit(pcm))
        frame = await asyncio.shield(self._step)
        self._step = None
        return frame

    async def _frame(self) -> "npt.ArrayLike | _End":
        """The source's next frame, or its end, which no task may raise."""
        return await anext(self._frames, _End())

    async def aclose(self) -> None:
        """Ends it, once a step on its way is done."""
        if self._coming is not None:
            self._coming.cancel()
        if self._step is not None:
            await asyncio.wait([self._step])
        self._finish()

    def __del__(self) -> None:
        self._finish()

    def _finish(self) -> None:
        self._give_back()
        self._ended = True

    def _give_back(self) -> None:
        if self._begun:
            self._begun = False
            self._end()


def _seen(coming: "asyncio.Future[npt.ArrayLike | _End]") -> None:
    """Whoever gave up on a frame need not be told of its source's error by asyncio."""
    if not coming.cancelled():
        coming.exception()


async def _each(source: Source) -> AsyncIterator[npt.ArrayLike]:
    if isinstance(source, AsyncIterable):
        async for pcm in source:
            yield pcm
    else:
        for pcm in source:
            yield pcm
