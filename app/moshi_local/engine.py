"""Several conversations through one model, whose thread makes every step.

Live and file conversations have the model to themselves; an engine is for programs that hold more
than one conversation, or that live in an event loop. Knows nothing of sound cards, files and
sockets.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar
from weakref import WeakSet

import numpy as np

from moshi_mlx import Event, Frame, Moshi, Session, SessionError
from moshi_mlx.arguments import samples
from moshi_mlx.arrays import Pcm
from moshi_mlx.closing import Closing
from moshi_mlx.session import step_sessions

from .conversation import Conversation

__all__ = ["Engine", "EngineConversation"]

T = TypeVar("T")
_Said = tuple[Frame | None, Sequence[Event]]


class Engine(Closing):
    """A model for several conversations at once.

        with Engine(lambda: moshi_mlx.load("nano", verb="talk")) as engine:
            with engine.open(seed=0) as conversation:
                frame, events = conversation.step(pcm)  # from any thread
                frame, events = await conversation.step_async(pcm)  # in an event loop

    Frames that wait are stepped together, at the price of little more than one. Each conversation
    has at most one of them waiting, so none can starve the others.

    Args:
        load: loads the model, which is the engine's from then on.

    Raises:
        MoshiError: what `load` raises.
    """

    def __init__(self, load: Callable[[], Moshi]) -> None:
        self._open: WeakSet[EngineConversation] = WeakSet()
        self._waiting: deque[_Waiting] = deque()
        self._closed = False
        self.moshi = load()

    def open(
        self,
        *,
        push_to_talk: bool = False,
        greeting_held: float = 0.0,
        guard: bool = True,
        **session: Any,
    ) -> EngineConversation:
        """A new conversation.

        Args:
            push_to_talk: as `Conversation` takes it, and `greeting_held` and `guard` too.
            greeting_held: seconds.
            guard: whether repetition without end is broken.
            session: the arguments of `Moshi.session`.

        Raises:
            SessionError: the engine is closed.
            MoshiError: what `Moshi.session` raises.
        """
        self._check_open()
        opened = self.moshi.session(**session)
        controls = Conversation(
            opened,
            frame_rate=self.moshi.frame_rate,
            push_to_talk=push_to_talk,
            greeting_held=greeting_held,
            guard=guard,
        )
        conversation = EngineConversation(self, opened, controls)
        self._open.add(conversation)
        return conversation

    def step(self, waiting: _Waiting) -> None:
        """Queues a frame. Raises SessionError once the engine is closed."""
        self._check_open()
        self._waiting.append(waiting)  # atomic, as `popleft` is
        self.moshi.worker.submit(self.step_waiting)

    def step_waiting(self) -> None:
        """Steps all frames that wait; on the model's thread, and nothing if there are none."""
        frames: list[_Waiting] = []
        with suppress(IndexError):
            while True:
                frames.append(self._waiting.popleft())
        if frames:
            self.moshi.worker.expect(1 / self.moshi.frame_rate)
        _step_all(frames)

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Queues work for the model's thread. Raises SessionError once the engine is closed."""
        self._check_open()
        return self.moshi.worker.submit(work)

    def _check_open(self) -> None:
        if self._closed:
            raise SessionError("this engine is closed: make a new one")

    def close(self, timeout: float | None = None) -> None:
        """Finishes the frames that wait, closes all conversations, and ends the model's thread.

        Args:
            timeout: seconds to wait at most for each; what hangs is left behind.
        """
        for conversation in tuple(self._open):
            with suppress(TimeoutError):
                conversation.close(timeout)
        self._closed = True
        self.moshi.worker.close(timeout)

    def forget(self, conversation: EngineConversation) -> None:
        """A conversation has been closed."""
        self._open.discard(conversation)


class EngineConversation(Closing):
    """A conversation through an engine; made by `Engine.open`. One frame at a time.

    `controls` is the conversation itself, for what may be called from any thread: `mute`,
    `toggle_mute`, `talk`, `ask_reset`.
    """

    def __init__(self, engine: Engine, session: Session, controls: Conversation) -> None:
        self.controls = controls
        self._engine, self._session = engine, session
        self._turn = threading.Lock()
        self._closed = False

    def step(self, pcm: Pcm, timeout: float | None = None) -> tuple[Frame | None, Sequence[Event]]:
        """Hears [frame_size] samples and says a frame; blocks until it is there.

        Args:
            pcm: the other side's sound, as `Session.step` takes it; it is copied.
            timeout: seconds to wait at most; the frame is stepped all the same.

        Returns:
            The frame, None while the model rests, and what happened since the last one.

        Raises:
            SessionError: the conversation is closed, or another frame of it is being stepped.
            TimeoutError: the frame was not there in time.
        """
        waiting = self._frame(pcm)
        if self._engine.moshi.worker.is_caller:  # in a session's hook
            _step_all([waiting])
        else:
            self._submit(waiting)
        return waiting.said.result(timeout)

    async def step_async(self, pcm: Pcm) -> tuple[Frame | None, Sequence[Event]]:
        """The same for an event loop. A frame whose caller is cancelled is stepped all the same."""
        waiting = self._frame(pcm)
        self._submit(waiting)
        return await asyncio.shield(asyncio.wrap_future(waiting.said))

    def close(self, timeout: float | None = None) -> Sequence[Event]:
        """Closes the session, once a frame that waits has been stepped. May be called again.

        Args:
            timeout: seconds to wait at most; it is closed all the same.

        Returns:
            What happened since the last frame, with the word that was still open.

        Raises:
            TimeoutError: that was not there in time.
        """
        if self._closed:
            return []
        self._closed = True
        self._engine.forget(self)

        def work() -> Sequence[Event]:
            self.controls.finish()
            self._session.close()
            return self.controls.take_events()

        if self._engine.moshi.worker.is_caller:
            return work()
        return self._engine.submit(work).result(timeout)

    def _frame(self, pcm: Pcm) -> _Waiting:
        if self._closed:
            raise SessionError("this conversation is closed: open a new one")
        heard = np.array(samples(pcm))
        if heard.shape != (self._engine.moshi.frame_size,):
            raise SessionError(
                f"a frame is {self._engine.moshi.frame_size} samples, this has shape {heard.shape}"
            )
        if not self._turn.acquire(blocking=False):
            raise SessionError("a frame of this conversation is still being stepped: wait for it")
        return _Waiting(self, self._session, heard)

    def _submit(self, waiting: _Waiting) -> None:
        try:
            self._engine.step(waiting)
        except BaseException:
            self._turn.release()
            raise

    def said(self, frame: Frame | None) -> _Said:
        """What a step gave, and that another one can be made."""
        self._turn.release()
        return frame, self.controls.take_events()


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A frame that is to be stepped."""

    conversation: EngineConversation
    session: Session
    heard: Pcm
    said: Future[_Said] = field(default_factory=Future)

    def end(self, frame: Frame | None) -> None:
        """Its step was made; None: the model rests."""
        self.said.set_result(self.conversation.said(frame))

    def fail(self, error: BaseException) -> None:
        """Its step was not made."""
        self.conversation.said(None)
        self.said.set_exception(error)


def _step_all(frames: Sequence[_Waiting]) -> None:
    """A step for each, together where that can be."""
    stepped: list[tuple[_Waiting, bool]] = []
    for waiting in frames:
        controls = waiting.conversation.controls
        try:
            if controls.ending or len(frames) == 1:
                waiting.end(controls.step(waiting.heard))
            elif (hold := controls.begin_step(waiting.heard)) is None:
                waiting.end(None)
            else:
                stepped.append((waiting, hold))
        except BaseException as error:
            waiting.fail(error)
    try:
        found = step_sessions(
            [waiting.session for waiting, _ in stepped],
            [waiting.heard for waiting, _ in stepped],
            [hold for _, hold in stepped],
        )
    except BaseException as error:
        for waiting, _ in stepped:
            waiting.fail(error)
        return
    for (waiting, _), frame in zip(stepped, found, strict=True):
        waiting.conversation.controls.end_step(frame)
        waiting.end(frame)
