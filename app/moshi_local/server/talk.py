"""The conversation of one socket: what it hears and when, and what waits to be sent.

The model is never kept waiting by a socket: what comes in is bounded, and so is what goes out.
Knows nothing of the messages of a protocol, nor of how a conversation is made.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from aiohttp import WSCloseCode, web

from moshi_mlx import Event, Frame, MoshiError
from moshi_mlx.arrays import Pcm

__all__ = ["Controls", "TalkError", "Outbox", "SocketSteps", "Talk"]

_PATIENCE_SECONDS = 0.12
"""So long the model waits for a client's sound; then it hears silence, in real time."""
IDLE_SECONDS = 30.0
"""So long it goes on by itself while no one speaks."""
CROWDED_PACE = 1.5
"""Times real time that a conversation may go while there are others, so that they keep theirs."""
CROWDED_BURST_SECONDS = 0.5
MOST_UNSENT_SECONDS = 5.0
"""Sound that may wait for a client that reads slowly."""
MOST_UNSENT_MESSAGES, MOST_UNSENT_SIZE = 2000, 8 * 2**20
PING_SECONDS = 5.0


class Controls(Protocol):
    """What may be asked of a conversation at any time."""

    def mute(self, muted: bool) -> None:
        """Close its microphone, or no longer."""

    def ask_reset(self) -> None:
        """Start over at the next frame."""

    def hush(self) -> None:
        """Say no new word until the model is silent."""


class SocketSteps(Protocol):
    """A conversation, as the engine has it."""

    @property
    def controls(self) -> Controls:
        """For any thread."""

    async def step_async(self, pcm: Pcm) -> tuple[Frame | None, Sequence[Event]]:
        """Hears [frame_size] samples; gives the frame, or None while the model rests."""

    def close(self, timeout: float | None = None) -> Sequence[Event]:
        """Ends it."""


class TalkError(MoshiError):
    """A conversation ends, and why: for the client.

    code: for programs.
    close: of the websocket.
    """

    def __init__(
        self, message: str, code: str = "error", close: int = WSCloseCode.POLICY_VIOLATION
    ) -> None:
        super().__init__(message)
        self.code, self.close = code, close


class Talk:
    """Sound of any block length in, frames out.

    Args:
        sample_rate: of the model, Hz.
        frame_size: samples of a frame.
        fills: while a client sends nothing, the model hears silence, so that it can finish what it
            says; else it stands still.
        most_seconds: of sound that may wait; what is older is thrown away.
        crowded: whether there are other conversations now.
    """

    def __init__(
        self,
        sample_rate: int,
        frame_size: int,
        *,
        fills: bool,
        most_seconds: float,
        crowded: Callable[[], bool],
    ) -> None:
        self.sample_rate, self.frame_size = sample_rate, frame_size
        self._fills, self._crowded = fills, crowded
        self._most = round(most_seconds * sample_rate)
        self._pieces: deque[Pcm] = deque()
        self._samples = 0
        self._came = asyncio.Event()
        self._ended = False
        self.dropped = 0
        """Samples thrown away since they came too fast."""

    @property
    def frame_seconds(self) -> float:
        """Of a frame."""
        return self.frame_size / self.sample_rate

    def hear(self, pcm: Pcm) -> None:
        """Takes float32 [n]."""
        if not len(pcm):
            return
        self._pieces.append(pcm)
        self._samples += len(pcm)
        if (over := self._samples - self._most) > 0:
            self._take(over)
            self.dropped += over
        self._came.set()

    def end(self) -> None:
        """No more sound will come: what is here is heard, and then `frames` ends."""
        self._ended = True
        self._came.set()

    async def frames(
        self, steps: SocketSteps
    ) -> AsyncIterator[tuple[Frame | None, Sequence[Event]]]:
        """Steps a conversation through the sound as it comes."""
        loop = asyncio.get_running_loop()
        due = loop.time() + _PATIENCE_SECONDS  # when the model hears silence instead
        quiet = 0.0  # seconds filled while no one spoke
        paced = loop.time()  # when a crowded server would have come this far
        while True:
            filled = False
            if self._samples < self.frame_size and not self._ended:
                rests = not self._fills or quiet >= IDLE_SECONDS
                filled = await self._nothing_by(None if rests else due)
                if not filled:
                    continue
            if self._ended and not self._samples:
                return
            wait = paced - CROWDED_BURST_SECONDS - loop.time()
            if wait > 0 and self._crowded():
                await asyncio.sleep(wait)
            frame, events = await steps.step_async(self._next())
            now = loop.time()
            paced = min(max(paced, now), now + CROWDED_BURST_SECONDS)
            paced += self.frame_seconds / CROWDED_PACE
            due = max(due + self.frame_seconds, now) if filled else now + _PATIENCE_SECONDS
            speaking = frame is not None and frame.speaking
            quiet = quiet + self.frame_seconds if filled and not speaking else 0.0
            yield frame, events

    async def _nothing_by(self, due: float | None) -> bool:
        """Waits for sound; whether none came in time."""
        self._came.clear()
        try:
            async with asyncio.timeout_at(due):
                await self._came.wait()
        except TimeoutError:
            return True
        return False

    def _next(self) -> Pcm:
        """A frame, filled up with silence where there is less."""
        heard = self._take(min(self._samples, self.frame_size))
        return np.pad(heard, (0, self.frame_size - len(heard)))

    def _take(self, count: int) -> Pcm:
        """The oldest samples."""
        taken: list[Pcm] = []
        self._samples -= count
        while count:
            piece = self._pieces.popleft()
            if len(piece) > count:
                self._pieces.appendleft(piece[count:])
                piece = piece[:count]
            taken.append(piece)
            count -= len(piece)
        return np.concatenate([np.zeros(0, np.float32), *taken])


@dataclass
class _Unsent:
    message: bytes | str
    seconds: float  # of sound; 0: it is something else, and is never thrown away


@dataclass
class Outbox:
    """What waits for a client. Sound is thrown away where it does not read, and then the client.

    ping: a message for when nothing else was sent for PING_SECONDS; None: none.
    """

    ping: bytes | None = None
    dropped: float = 0.0  # seconds of sound
    _waiting: deque[_Unsent] = field(default_factory=deque)
    _seconds: float = 0.0
    _size: int = 0
    _put: asyncio.Event = field(default_factory=asyncio.Event)
    _finished: bool = False

    def put(self, message: bytes | str, seconds: float = 0.0) -> None:
        """Queues a message.

        Args:
            message: binary or text.
            seconds: of the sound in it.

        Raises:
            TalkError: the client has not read for too long.
        """
        self._waiting.append(_Unsent(message, seconds))
        self._seconds += seconds
        self._size += len(message)
        while self._seconds > MOST_UNSENT_SECONDS:
            oldest = next(unsent for unsent in self._waiting if unsent.seconds)
            self._waiting.remove(oldest)
            self._seconds -= oldest.seconds
            self._size -= len(oldest.message)
            self.dropped += oldest.seconds
        if len(self._waiting) > MOST_UNSENT_MESSAGES or self._size > MOST_UNSENT_SIZE:
            raise TalkError(
                "this client reads too slowly", "slow_reader", WSCloseCode.TRY_AGAIN_LATER
            )
        self._put.set()

    def finish(self) -> None:
        """Nothing more comes: `run` ends when all is sent."""
        self._finished = True
        self._put.set()

    async def run(self, socket: web.WebSocketResponse) -> None:
        """Sends what is put, until `finish` or the client is gone."""
        while True:
            while self._waiting:
                unsent = self._waiting.popleft()
                self._seconds -= unsent.seconds
                self._size -= len(unsent.message)
                await _send(socket, unsent.message)
            if self._finished:
                return
            self._put.clear()
            try:
                async with asyncio.timeout(None if self.ping is None else PING_SECONDS):
                    await self._put.wait()
            except TimeoutError:
                assert self.ping is not None
                await _send(socket, self.ping)


async def _send(socket: web.WebSocketResponse, message: bytes | str) -> None:
    if isinstance(message, bytes):
        await socket.send_bytes(message)
    else:
        await socket.send_str(message)
