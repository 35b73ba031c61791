"""Bodies of HTTP's answers that grow while they are made. Knows nothing of their content.

A client that reads slowly holds up its own answer alone, and not for long.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from aiohttp import web

from moshi_mlx import MoshiError

__all__ = ["Body", "EventStream", "check_there"]

STALLED_SECONDS = 30.0
"""So long a client may read nothing."""

_log = logging.getLogger("moshi_local.server")


def check_there(request: web.Request) -> None:
    """Raises ConnectionError: the client has closed the connection."""
    if request.transport is None or request.transport.is_closing():
        raise ConnectionResetError("the client has gone")


class Body:
    """A body that is sent piece by piece; a context manager. Its errors end it early.

    Args:
        request: that it answers.
        headers: of the answer.
    """

    def __init__(self, request: web.Request, headers: Mapping[str, str]) -> None:
        self._request = request
        self.response = web.StreamResponse(headers={"Cache-Control": "no-store", **headers})

    async def __aenter__(self) -> Self:
        await self.response.prepare(self._request)
        return self

    async def write(self, data: bytes) -> None:
        """Sends a piece. Raises ConnectionError: the client has gone, or reads nothing."""
        check_there(self._request)
        if not data:
            return
        try:
            async with asyncio.timeout(STALLED_SECONDS):
                await self.response.write(data)
        except TimeoutError:
            raise ConnectionAbortedError("the client reads nothing") from None

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> bool:
        if error is None:
            await self.response.write_eof()
            return False
        if self._request.transport is not None:
            self._request.transport.abort()  # an early end must not look like a whole answer
        if isinstance(error, MoshiError):
            _log.warning("%s ended early: %s", self._request.path, error)
        return isinstance(error, ConnectionError | MoshiError)


class EventStream(Body):
    """Server-sent events."""

    def __init__(self, request: web.Request, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(request, {"Content-Type": "text/event-stream", **(headers or {})})

    async def send(self, event: Mapping[str, Any]) -> None:
        """An event, as JSON. Raises as `write`."""
        await self.write(f"data: {json.dumps(event)}\n\n".encode())

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> bool:
        if not isinstance(error, MoshiError):
            return await super().__aexit__(kind, error, _)
        about = {"message": str(error), "type": "server_error", "param": None, "code": None}
        try:
            await self.send({"type": "error", "error": about})
            await self.response.write_eof()
        except ConnectionError:
            pass
        return True
