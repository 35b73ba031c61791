"""The page for browsers at `/`: its files, its settings, and what it may load.

The files are in the folder `page`, and need no build step. Knows nothing of sound or messages: the
page speaks GPT-Live's protocol, as any client does.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib import resources

from aiohttp import web

from moshi_mlx import __version__

from .messages import LONGEST_PERSONA
from .room import Room

__all__ = ["PAGE_PATHS", "add_page"]

_TYPES = {
    "index.html": "text/html",
    "style.css": "text/css",
    "icon.svg": "image/svg+xml",
    "page.js": "text/javascript",
    "live.js": "text/javascript",
    "server.js": "text/javascript",
    "recording.js": "text/javascript",
    "sound.js": "text/javascript",
    "timeline.js": "text/javascript",
    "transcript.js": "text/javascript",
    "worklets.js": "text/javascript",
}
_FIRST = "index.html"
PAGE_PATHS = frozenset("/" if name == _FIRST else f"/page/{name}" for name in _TYPES)
"""Paths that are served without a token, since they are the same for everyone."""
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; worker-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


def add_page(app: web.Application, room: Room) -> None:
    """Adds the page's routes.

    Args:
        app: of the server.
        room: of the model that talks.
    """
    folder = resources.files(__package__) / "page"
    for name, kind in _TYPES.items():
        content = (folder / name).read_bytes()
        path = "/" if name == _FIRST else f"/page/{name}"
        app.router.add_get(path, _file(content, kind))

    async def settings(_: web.Request) -> web.Response:
        return web.json_response(
            {
                "model": room.name,
                "version": __version__,
                "translates": room.translates,
                "persona": room.takes_persona,
                "longest_persona": LONGEST_PERSONA,
                "voices": room.voices,
                "captions": room.captions_after is not None,
            }
        )

    app.router.add_get("/page/settings", settings)


def _file(content: bytes, kind: str) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=content, content_type=kind, charset="utf-8", headers=_HEADERS)

    return answer
