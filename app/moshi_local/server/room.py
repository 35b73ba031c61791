"""The places that a model has for conversations, and one socket's way through one.

Knows nothing of a protocol's messages: those are in the modules beside this one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from aiohttp import WSCloseCode, WSMessage, WSMsgType, web

from moshi_mlx import Event, Frame, MoshiError

from .talk import Outbox, SocketSteps, Talk, TalkError

__all__ = ["Room", "SocketProtocol", "Wishes", "converse"]

OPENING_SECONDS = 10.0
"""In which a client must say what it wants."""
FLUSH_SECONDS = 2.0
"""In which it must have read the last messages."""
LETTING_GO_SECONDS = 5.0

_log = logging.getLogger("moshi_local.server")


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a client asks of its conversation; None where it says nothing.

    sampling: by the names of `options.SamplingFlags`.
    captions: the words of its user are wanted, where there is a model for them.
    """

    seed: int | None = None
    persona: str | None = None
    voice: str | None = None
    sampling: Mapping[str, float | int] = field(default_factory=dict)
    captions: bool = False


class SocketProtocol(Protocol):
    """What differs between the kinds of sockets. All of it runs in the event loop."""

    wanted: asyncio.Future[Wishes]
    """Done when the client has said what it wants."""

    def begin(self, steps: SocketSteps) -> None:
        """The conversation is ready."""

    def receive(self, message: WSMessage) -> None:
        """The client has sent something. Raises TalkError."""

    def say(self, frame: Frame | None, events: Sequence[Event]) -> None:
        """A step was made; without a frame the model rests."""

    def end(self, why: TalkError | None) -> None:
        """The last words to the client; None: it ends as it should."""


class Room:
    """A model's places.

    Args:
        name: of the model, as clients are told it.
        sample_rate: Hz.
        frame_size: samples.
        open: makes a conversation; it may take seconds, and has its own thread.
        places: conversations at the same time.
        takes_persona: it can be given a persona and a voice.
        voices: names of those that it can be given.
        minutes: that a conversation may last; None: as long as it likes.
        captions_after: so long after a word was said it may be told (seconds); None: users' words
            are not told.
    """

    def __init__(
        self,
        name: str,
        sample_rate: int,
        frame_size: int,
        open: Callable[[Wishes], SocketSteps],
        *,
        places: int = 1,
        takes_persona: bool = False,
        voices: Sequence[str] = (),
        minutes: float | None = None,
        captions_after: float | None = None,
    ) -> None:
        self.name, self.sample_rate, self.frame_size = name, sample_rate, frame_size
        self.places, self.takes_persona, self.voices = places, takes_persona, tuple(voices)
        self.minutes, self.captions_after = minutes, captions_after
        self.taken = 0
        self._open = open
        self._closing: set[asyncio.Task[None]] = set()
        self._talks: set[asyncio.Task[Any]] = set()

    @property
    def free(self) -> bool:
        """Whether another conversation can begin."""
        return self.taken < self.places

    def talk(self, *, fills: bool, most_seconds: float) -> Talk:
        """What a socket's sound goes into."""
        return Talk(
            self.sample_rate,
            self.frame_size,
            fills=fills,
            most_seconds=most_seconds,
            crowded=lambda: self.taken > 1,
        )

    @asynccontextmanager
    async def place(self, wishes: Wishes) -> AsyncIterator[SocketSteps]:
        """A conversation in a free place, which is free again at once when this ends.

        Raises:
            TalkError: there is none free, or the wishes cannot be met.
        """
        if not self.free:
            others = "another conversation is" if self.places == 1 else "all places are"
            raise TalkError(
                f"busy: {others} going on: try again later",
                "session_limit_reached",
                WSCloseCode.TRY_AGAIN_LATER,
            )
        self.taken += 1
        opening = asyncio.ensure_future(asyncio.to_thread(self._open, wishes))
        try:
            yield await asyncio.shield(opening)
        except MoshiError as error:
            if isinstance(error, TalkError):
                raise
            raise TalkError(str(error), "invalid_request_error") from error
        finally:
            self.taken -= 1
            self._keep(self._closing, self._closed(opening))

    async def _closed(self, opening: asyncio.Future[SocketSteps]) -> None:
        """Ends a conversation, even one that is still being made when its client has gone."""
        with suppress(Exception):
            steps = await opening
            await asyncio.to_thread(steps.close, LETTING_GO_SECONDS)

    def _keep(self, among: set[asyncio.Task[Any]], work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        among.add(task)
        task.add_done_callback(among.discard)

    @asynccontextmanager
    async def shown(self) -> AsyncIterator[None]:
        """While a socket's task runs: `close` ends it."""
        task = asyncio.current_task()
        assert task is not None
        self._talks.add(task)
        try:
            yield
        finally:
            self._talks.discard(task)

    async def close(self) -> None:
        """Ends all conversations, and waits until they are."""
        for task in tuple(self._talks):
            task.cancel("shutdown")
        await asyncio.gather(*self._talks, return_exceptions=True)
        await asyncio.gather(*self._closing, return_exceptions=True)


async def converse(
    socket: web.WebSocketResponse, room: Room, protocol: SocketProtocol, talk: Talk, outbox: Outbox
) -> None:
    """One socket's conversation, from the first message to the closed socket.

    Args:
        socket: open.
        room: where a place is wanted.
        protocol: of the socket.
        talk: what the protocol gives its sound to.
        outbox: what the protocol puts its messages into.
    """
    loop = asyncio.get_running_loop()
    why: TalkError | None = None
    began = loop.time()
    writer = loop.create_task(outbox.run(socket))
    work = [
        loop.create_task(_read(socket, protocol)),
        loop.create_task(_speak(room, protocol, talk)),
        writer,
    ]
    try:
        async with room.shown(), asyncio.timeout(room.minutes and 60 * room.minutes):
            done, _ = await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    except TalkError as error:
        why = error
    except TimeoutError:
        why = TalkError(f"{room.minutes:g} minutes are over", "expired", WSCloseCode.OK)
    except asyncio.CancelledError:
        why = TalkError("the server stops", "connection_lost", WSCloseCode.GOING_AWAY)
    except (ConnectionError, RuntimeError):  # it has gone while something was sent
        pass
    except Exception:
        _log.exception("a conversation failed")
        why = TalkError(
            "the server failed: see its log", "server_error", WSCloseCode.INTERNAL_ERROR
        )
    for task in work[:2]:
        task.cancel()
    await asyncio.gather(*work[:2], return_exceptions=True)
    with suppress(Exception):
        if not socket.closed:
            protocol.end(why)
        outbox.finish()
        async with asyncio.timeout(FLUSH_SECONDS):
            await writer
    writer.cancel()
    with suppress(Exception):
        async with asyncio.timeout(FLUSH_SECONDS):
            message = b"" if why is None else str(why).encode()[:120]
            await socket.close(code=WSCloseCode.OK if why is None else why.close, message=message)
    reason = "closed" if why is None else why.code
    late = f", {talk.dropped / talk.sample_rate:.1f} s of its sound came too fast" * (
        talk.dropped > 0
    )
    unread = f", {outbox.dropped:.1f} s of sound were not read" * (outbox.dropped > 0)
    _log.info("conversation of %.1f s: %s%s%s", loop.time() - began, reason, late, unread)


async def _read(socket: web.WebSocketResponse, protocol: SocketProtocol) -> None:
    """Until the client closes."""
    async for message in socket:
        if message.type is WSMsgType.ERROR:
            return
        protocol.receive(message)


async def _speak(room: Room, protocol: SocketProtocol, talk: Talk) -> None:
    """Until the client has no more sound."""
    try:
        async with asyncio.timeout(OPENING_SECONDS):
            wishes = await protocol.wanted
    except TimeoutError:
        raise TalkError("nothing was asked for in time", "timeout") from None
    async with room.place(wishes) as steps:
        protocol.begin(steps)
        async for frame, events in talk.frames(steps):
            protocol.say(frame, events)
