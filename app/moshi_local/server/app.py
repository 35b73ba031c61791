"""Routes, limits and errors of the server. Knows no field of any message.

Who may ask is in `access`; what is said over a socket, in the module of its protocol.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from aiohttp import hdrs, web
from aiohttp.typedefs import Middleware

from moshi_mlx import __version__

from .access import Access, Refused
from .kyutai import serve_chat
from .live import serve_live
from .opus import opus_problem
from .pages import PAGE_PATHS, add_page
from .realtime import serve_realtime
from .room import Room
from .services import RequestError, Services
from .speech import serve_speech
from .streaming import serve_asr, serve_tts
from .transcriptions import serve_transcriptions

__all__ = ["make_app"]

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_Serve = Callable[[web.Request, Services], Awaitable[web.StreamResponse]]
_OPEN_TO_ALL = {*PAGE_PATHS, "/health"}
"""What needs no token: it tells nothing."""
_LARGEST_BODY = 25 * 2**20
_SERVED = (
    "/, /api/chat, /v1/live/sessions, /v1/realtime, /v1/audio/transcriptions, /v1/audio/speech, "
    "/api/asr-streaming, /api/tts_streaming, /v1/models, /health"
)

_log = logging.getLogger("moshi_local.server")


def make_app(
    room: Room | None, access: Access, services: Services | None = None
) -> web.Application:
    """The application.

    Args:
        room: of the model that talks; None: none does.
        access: who may ask.
        services: what there is besides.
    """
    services = services or Services()
    names = [*([] if room is None else [room.name]), *services.names]
    app = web.Application(middlewares=[_errors, _guard(access)], client_max_size=_LARGEST_BODY)
    began = int(time.time())

    async def health(_: web.Request) -> web.Response:
        status = "ready" if room is None or room.free else "busy"
        taken = 0 if room is None else room.taken
        about = {
            "status": status,
            "model": next(iter(names), None),
            "models": names,
            "sessions": taken,
        }
        return web.json_response(about)

    def model(name: str) -> dict[str, object]:
        return {"id": name, "object": "model", "created": began, "owned_by": "moshi-local"}

    async def models(_: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [model(name) for name in names]})

    async def one_model(request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if name not in names:
            known = ", ".join(names)
            raise RequestError(
                404, "model_not_found", f"there is no model {name[:60]}; there are {known}"
            )
        return web.json_response(model(name))

    def talking() -> Room:
        if room is None:
            raise RequestError(
                404,
                "model_not_found",
                "no model that talks is loaded: start the server without --model none",
                "model",
            )
        return room

    async def kyutai(request: web.Request) -> web.StreamResponse:
        room = talking()
        if problem := opus_problem():
            return _json(Refused(501, "no_opus", f"/api/chat is not served here: {problem}"))
        return await serve_chat(request, room)

    async def openai_live(request: web.Request) -> web.StreamResponse:
        return await serve_live(request, talking())

    async def openai_realtime(request: web.Request) -> web.StreamResponse:
        return await serve_realtime(request, talking())

    at_work: set[asyncio.Task[object]] = set()

    def until_shutdown(handler: _Serve) -> _Handler:
        """A service's requests end with the server, and do not wait to be done."""

        async def served(request: web.Request) -> web.StreamResponse:
            task = asyncio.current_task()
            assert task is not None
            at_work.add(task)
            try:
                return await handler(request, services)
            finally:
                at_work.discard(task)

        return served

    async def end_work(_: web.Application) -> None:
        for task in tuple(at_work):
            task.cancel()

    async def build_info(_: web.Request) -> web.Response:
        return web.json_response({"build_info": {"version": __version__}})

    app.router.add_get("/health", health)
    app.router.add_get("/v1/models", models)
    app.router.add_get("/api/build_info", build_info)
    for path in ("/api/chat", "//api/chat"):
        app.router.add_get(path, kyutai)
    app.router.add_get("/v1/live/sessions", openai_live)
    app.router.add_get("/v1/realtime", openai_realtime)
    app.router.add_get("/v1/models/{name:.+}", one_model)
    app.router.add_post("/v1/audio/transcriptions", until_shutdown(serve_transcriptions))
    app.router.add_post("/v1/audio/speech", until_shutdown(serve_speech))
    app.router.add_get("/api/asr-streaming", until_shutdown(serve_asr))
    app.router.add_get("/api/tts_streaming", until_shutdown(serve_tts))
    app.on_shutdown.append(end_work)
    if room is not None:
        add_page(app, room)
    return app


def _guard(access: Access) -> Middleware:
    @web.middleware
    async def guard(request: web.Request, handler: _Handler) -> web.StreamResponse:
        problem = access.host_problem(request.headers, request.secure)
        if problem is None and request.path not in _OPEN_TO_ALL:
            problem = access.token_problem(request.headers, request.query)
        if problem is not None:
            return _json(problem)
        return await handler(request)

    return guard


@web.middleware
async def _errors(request: web.Request, handler: _Handler) -> web.StreamResponse:
    """Errors as JSON, in the shape that OpenAI's clients read; never a traceback."""
    try:
        return await handler(request)
    except RequestError as error:
        return _json(error.refused)
    except web.RequestPayloadError as error:
        return _json(Refused(400, "invalid_request", f"the body cannot be read: {error}"))
    except web.HTTPNotFound:
        return _json(Refused(404, "not_found", f"nothing is served here; there are {_SERVED}"))
    except web.HTTPException as error:
        if error.status < 400:
            raise
        refused = _json(Refused(error.status, "invalid_request", error.reason or "refused"))
        if hdrs.ALLOW in error.headers:
            refused.headers[hdrs.ALLOW] = error.headers[hdrs.ALLOW]
        return refused
    except ConnectionError:  # the client has gone: this is not read
        return web.Response(status=400)
    except Exception:
        _log.exception("%s failed", request.path)
        return _json(Refused(500, "server_error", "the server failed: see its log"))


def _json(problem: Refused) -> web.Response:
    kind = "invalid_request_error" if problem.status < 500 else "server_error"
    error = {"message": problem.message, "type": kind, "param": problem.param}
    return web.json_response({"error": {**error, "code": problem.code}}, status=problem.status)
