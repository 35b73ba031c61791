"""A conversation of a server whose user's words are written down by a second model.

That model works on the same thread as the one that talks, when that has nothing to do. Should it
fail, the conversation goes on.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from contextlib import suppress

import numpy as np

from moshi_mlx import Event, Frame, MoshiError
from moshi_mlx.arrays import Pcm
from moshi_mlx.worker import Worker

from .captions import WAITING_SECONDS, Captions
from .conversation import Conversation
from .engine import EngineConversation
from .listening import Listening

__all__ = ["CaptionedConversation"]

_log = logging.getLogger("moshi_local.server")


class CaptionedConversation:
    """As an `EngineConversation`; its events have the user's words too, as they come.

    Args:
        conversation: with the model that talks.
        session: writes down what it hears; fresh.
        worker: of the model of `session`.
        frame_rate: frames per second, of both.
    """

    def __init__(
        self,
        conversation: EngineConversation,
        session: Listening,
        worker: Worker,
        frame_rate: float,
    ) -> None:
        self._conversation, self._session, self._worker = conversation, session, worker
        self._heard: deque[Event] = deque()
        self._captions = Captions(session, frame_rate=frame_rate, tell=self._heard.append)
        self._waiting: deque[tuple[int, Pcm]] = deque()
        self._most = round(WAITING_SECONDS * frame_rate)
        self._ended = False

    @property
    def controls(self) -> Conversation:
        """For any thread."""
        return self._conversation.controls

    async def step_async(self, pcm: Pcm) -> tuple[Frame | None, Sequence[Event]]:
        """As `EngineConversation.step_async`."""
        frame, events = await self._conversation.step_async(pcm)
        if frame is not None and not self._ended:
            self._take(frame.index, np.zeros_like(pcm) if self.controls.muted else pcm)
        heard = [self._heard.popleft() for _ in range(len(self._heard))]
        return frame, [*events, *heard]

    def close(self, timeout: float | None = None) -> Sequence[Event]:
        """As `EngineConversation.close`."""
        self._ended = True
        self._waiting.clear()
        try:
            return self._conversation.close(timeout)
        finally:
            self._worker.submit(self._session.close)

    def _take(self, index: int, pcm: Pcm) -> None:
        self._waiting.append((index, pcm))
        if len(self._waiting) > self._most:  # the older half is lost
            for _ in range(self._most // 2):
                self._waiting.popleft()
        self._worker.submit(self._hear)

    def _hear(self) -> None:
        """One frame; on the model's thread."""
        with suppress(IndexError):  # it was dropped meanwhile
            heard = self._waiting.popleft()
            self._write_down(*heard)

    def _write_down(self, index: int, pcm: Pcm) -> None:
        try:
            if not self._ended:
                self._captions.hear(index, pcm)
        except Exception as error:
            self._ended = True
            kind = "" if isinstance(error, MoshiError) else f"{type(error).__name__}: "
            _log.warning("there are no more captions: %s%s", kind, error)
