"""OpenAI's `/v1/audio/speech`: a text in, its sound out while it is made."""

from __future__ import annotations

import asyncio
import base64
import json
import math
from typing import TYPE_CHECKING, Any

from aiohttp import web

from moshi_mlx import MoshiError

from .bodies import STALLED_SECONDS, Body, EventStream, check_there
from .messages import as_object
from .services import RequestError, Services, SoundEncoder, SpeechService

if TYPE_CHECKING:  # the family is imported with its first model
    from moshi_mlx.families.speech_stream import SpeechStream, SpokenChunk

__all__ = ["serve_speech", "synthetic_headers"]

LONGEST_INPUT = 20_000
_LARGEST_REQUEST = 2**18
_SPEEDS = 0.25, 4.0


def synthetic_headers(speaker: SpeechService) -> dict[str, str]:
    """What an answer says about the sound in it; a file in it says so itself too."""
    return {"X-Synthetic-Speech": f"moshi-local; model={speaker.model.name}"}


async def serve_speech(request: web.Request, services: Services) -> web.StreamResponse:
    """Answers a request. Raises RequestError."""
    speaker = services.need_speaker()
    asked = await _asked(request)
    script = asked.get("input")
    if not isinstance(script, str) or not script.strip():
        raise _wrong("input must be the text to speak", "input")
    if len(script) > LONGEST_INPUT:
        raise _wrong(f"input has at most {LONGEST_INPUT} characters", "input")
    voice = asked.get("voice")
    if isinstance(voice, dict):
        voice = voice.get("id")
    if voice is not None and not isinstance(voice, str):
        raise _wrong("voice must be a name", "voice")
    format = asked.get("response_format") or speaker.formats[0]
    if format not in speaker.formats:
        raise _wrong(f"response_format is one of {', '.join(speaker.formats)}", "response_format")
    streams = asked.get("stream_format") or "audio"
    if streams not in ("audio", "sse"):
        raise _wrong("stream_format is audio or sse", "stream_format")
    options: dict[str, Any] = {"voice": speaker.voice(voice), "speed": _speed(asked.get("speed"))}
    if (seed := asked.get("seed")) is not None:
        options["seed"] = seed
    async with speaker.places.one():
        check_there(request)
        try:
            encoder = speaker.encoder(format)
            async with speaker.speech(script, **options) as stream:
                first = await anext(stream, None)  # what is wrong shows before the header goes out
                if first is None:
                    raise _wrong("input has no word to speak", "input")
                if streams == "sse":
                    return await _events(request, speaker, encoder, stream, first, script)
                headers = {"Content-Type": encoder.content_type, **synthetic_headers(speaker)}
                async with Body(request, headers) as body:
                    await body.write(encoder.write(speaker.mixed(first.pcm)))
                    async for chunk in stream:
                        await body.write(encoder.write(speaker.mixed(chunk.pcm)))
                    await body.write(encoder.finish())
                return body.response
        except MoshiError as error:
            raise RequestError.of(error) from error


async def _events(
    request: web.Request,
    speaker: SpeechService,
    encoder: SoundEncoder,
    stream: SpeechStream,
    first: SpokenChunk,
    script: str,
) -> web.StreamResponse:
    """Server-sent events; tokens are pieces of the text and frames of the sound, counted."""
    samples = 0
    async with EventStream(request, synthetic_headers(speaker)) as events:

        async def send(data: bytes) -> None:
            if data:
                audio = base64.b64encode(data).decode()
                await events.send({"type": "speech.audio.delta", "audio": audio})

        chunk: SpokenChunk | None = first
        while chunk is not None:
            pcm = speaker.mixed(chunk.pcm)
            samples += len(pcm)
            await send(encoder.write(pcm))
            chunk = await anext(stream, None)
        await send(encoder.finish())
        read = len(speaker.model.text.encode(script))
        said = samples // speaker.model.frame_size
        usage = {"input_tokens": read, "output_tokens": said, "total_tokens": read + said}
        await events.send({"type": "speech.audio.done", "usage": usage})
    return events.response


async def _asked(request: web.Request) -> dict[str, Any]:
    if request.content_type != "application/json":
        raise _wrong("the header Content-Type must be application/json", "input")
    try:
        async with asyncio.timeout(STALLED_SECONDS):
            body = await request.content.read(_LARGEST_REQUEST + 1)
            while len(body) <= _LARGEST_REQUEST:
                if not (more := await request.content.read(_LARGEST_REQUEST)):
                    break
                body += more
    except TimeoutError:
        raise RequestError(408, "timeout", "the body did not come", "input") from None
    if len(body) > _LARGEST_REQUEST:
        raise RequestError(413, "too_large", "the request is too long", "input")
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        raise _wrong("the body is not JSON", "input") from None
    if not isinstance(asked, dict):
        raise _wrong("the body must be an object", "input")
    return dict(as_object(asked))


def _speed(asked: Any) -> float:
    """OpenAI's factor, 0.25 … 4, as the model's −2 … 2. Raises RequestError."""
    if asked is None:
        return 0.0
    low, high = _SPEEDS
    if isinstance(asked, bool) or not isinstance(asked, int | float) or not low <= asked <= high:
        raise _wrong(f"speed is a number from {low} to {high:g}", "speed")
    return math.log2(asked)


def _wrong(message: str, param: str) -> RequestError:
    return RequestError(400, "invalid_value", message, param)
