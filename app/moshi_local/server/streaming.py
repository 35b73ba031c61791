"""The sockets of Kyutai's moshi-server: sound in and words out, or words in and sound out.

Messages are maps in MessagePack with a "type". Unmute and the scripts of delayed-streams-modeling
speak this. A client that sends or reads slowly holds up its own work alone.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import msgpack
import numpy as np
from aiohttp import WSCloseCode, WSMessage, WSMsgType, web

from moshi_mlx import MoshiError
from moshi_mlx.arrays import Pcm

from .bodies import STALLED_SECONDS
from .opus import OpusReader, OpusWriter, opus_problem
from .services import (
    ArrivingText,
    LiveTranscription,
    RequestError,
    Services,
    SpeechService,
    TranscriptionService,
)

__all__ = ["serve_asr", "serve_tts"]

_IDLE_SECONDS = 120.0  # so long a client may send no sound
_MOST_MESSAGES = 16  # of sound that wait; the socket is not read meanwhile
_log = logging.getLogger("moshi_local.server")

_LARGEST_MESSAGE = 2**20
_HEARTBEAT = 20.0
_MOST_MARKERS, _LONGEST_ID = 1000, 100
_OPEN_WORD_FRAMES = 12  # so long a marker waits for the end of a word beyond the delay
_PAUSE_HEADS = 4
_FORMATS = ("OggOpus", "Pcm", "PcmMessagePack", "OggOpusMessagePack")
_END = b"\0"


async def serve_asr(request: web.Request, services: Services) -> web.WebSocketResponse:
    """Answers a request for `/api/asr-streaming`. Raises RequestError."""
    transcriber = services.need_transcriber()
    client = await _opened(request)
    asr = _Asr(client)
    return await client.serve(asr.read(), asr.work(transcriber))


async def serve_tts(request: web.Request, services: Services) -> web.WebSocketResponse:
    """Answers a request for `/api/tts_streaming`. Raises RequestError."""
    speaker = services.need_speaker()
    client = await _opened(request)
    tts = _Tts(client)
    return await client.serve(tts.read(), tts.work(speaker, request.query))


async def _opened(request: web.Request) -> _Client:
    socket = web.WebSocketResponse(
        max_msg_size=_LARGEST_MESSAGE, heartbeat=_HEARTBEAT, compress=False
    )
    await socket.prepare(request)
    return _Client(socket)


@dataclass
class _Client:
    """A socket. `packs`: it reads maps; else bytes of sound alone."""

    socket: web.WebSocketResponse
    packs: bool = True

    async def serve(
        self, reading: Coroutine[Any, Any, None], work: Coroutine[Any, Any, None]
    ) -> web.WebSocketResponse:
        """Does the work until it is done or the client has gone, and closes the socket."""
        why: tuple[int, str] = (WSCloseCode.OK, "")
        tasks = [asyncio.ensure_future(reading), asyncio.ensure_future(work)]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        except RequestError as error:
            code = error.refused.code
            busy = code == "busy"
            why = (
                WSCloseCode.TRY_AGAIN_LATER if busy else WSCloseCode.POLICY_VIOLATION,
                str(error),
            )
        except MoshiError as error:
            why = (WSCloseCode.POLICY_VIOLATION, str(error))
        except (ConnectionError, TimeoutError):
            pass
        except Exception:
            _log.exception("%s failed", type(self).__name__)
            why = (WSCloseCode.INTERNAL_ERROR, "the server failed: see its log")
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        with suppress(ConnectionError, TimeoutError, RuntimeError):
            if why[1] and self.packs:
                await self.send("Error", message=why[1])
            async with asyncio.timeout(STALLED_SECONDS):
                await self.socket.close(code=why[0], message=why[1].encode()[:120])
        return self.socket

    async def send(self, kind: str, **fields: Any) -> None:
        """A map. Raises ConnectionError, TimeoutError."""
        await self.send_bytes(msgpack.packb({"type": kind, **fields}, use_single_float=True))

    async def send_bytes(self, data: bytes) -> None:
        """Raises ConnectionError, TimeoutError."""
        async with asyncio.timeout(STALLED_SECONDS):
            await self.socket.send_bytes(data)


def _map_of(message: WSMessage) -> dict[str, Any]:
    """A client's message. Raises RequestError."""
    try:
        found = msgpack.unpackb(message.data)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise _wrong("a message must be a map in MessagePack") from error
    if not isinstance(found, dict) or not isinstance(found.get("type"), str):
        raise _wrong("a message must be a map in MessagePack with a type")
    return found


def _wrong(message: str) -> RequestError:
    return RequestError(400, "invalid_value", message)


# ------------------------------------------------------------------------ speech to text


@dataclass
class _Asr:
    """A socket that sends sound."""

    client: _Client
    _came: asyncio.Queue[dict[str, Any]] = field(
        default_factory=lambda: asyncio.Queue(_MOST_MESSAGES)
    )
    _frames: int = 0
    _markers: list[tuple[int, Any]] = field(default_factory=list)  # the frame that each waits for
    _opus: OpusReader | None = None

    async def read(self) -> None:
        """Until the client closes; no faster than the model hears."""
        async for message in self.client.socket:
            if message.type is WSMsgType.BINARY:
                await self._came.put(_map_of(message))

    async def work(self, transcriber: TranscriptionService) -> None:
        """Until the client sends nothing for too long. Raises RequestError, MoshiError."""
        try:
            async with transcriber.places.one(waits=False), transcriber.live() as live:
                await self.client.send("Ready")
                while True:
                    await self._take(live, await self._next())
        except RequestError as error:
            if error.refused.code == "busy":
                raise RequestError(503, "busy", "no free channels") from error
            raise

    async def _next(self) -> dict[str, Any]:
        try:
            async with asyncio.timeout(_IDLE_SECONDS):
                return await self._came.get()
        except TimeoutError:
            raise RequestError(408, "timeout", "no sound came for too long") from None

    async def _take(self, live: LiveTranscription, message: Mapping[str, Any]) -> None:
        match message["type"]:
            case "Audio":
                await self._hear(live, _samples(message.get("pcm")))
            case "OggOpus":
                await self._hear(live, self._decoded(live, message.get("data")))
            case "Marker":
                if (
                    len(self._markers) >= _MOST_MARKERS
                    or len(repr(message.get("id"))) > _LONGEST_ID
                ):
                    raise _wrong(f"at most {_MOST_MARKERS} markers wait, each with a short id")
                due = self._frames + (live.waiting > 0) + live.delay_frames
                self._markers.append((due, message.get("id")))

    def _decoded(self, live: LiveTranscription, data: Any) -> Pcm:
        if self._opus is None:
            if problem := opus_problem():
                raise _wrong(f"OggOpus is not read here: {problem}")
            self._opus = OpusReader(live.sample_rate)
        if isinstance(data, list):  # as moshi-server's own clients send it
            try:
                data = bytes(data)
            except (TypeError, ValueError):
                raise _wrong("data must be bytes: whole numbers from 0 to 255") from None
        if not isinstance(data, bytes):
            raise _wrong("data must be bytes")
        return self._opus.read(data)

    async def _hear(self, live: LiveTranscription, pcm: Pcm) -> None:
        send = self.client.send
        async for frame in live.hear(pcm):
            self._frames += 1
            for word in frame.words:
                await send("Word", text=word.text, start_time=word.start)
                await send("EndWord", stop_time=word.end)
            pauses = frame.pauses or (0.0,) * _PAUSE_HEADS
            await send("Step", step_idx=frame.index, prs=[*pauses], buffered_pcm=live.waiting)
            patience = _OPEN_WORD_FRAMES if frame.partial else 0
            while self._markers and self._frames >= self._markers[0][0] + patience:
                await send("Marker", id=self._markers.pop(0)[1])


def _samples(pcm: Any) -> Pcm:
    """float32 [n] of a message's list. Raises RequestError."""
    try:
        found = np.asarray(pcm, np.float32)
    except (TypeError, ValueError):
        found = np.zeros((0, 0), np.float32)
    if found.ndim != 1:
        raise _wrong("pcm must be a list of numbers")
    return found


# ------------------------------------------------------------------------ text to speech


@dataclass
class _Tts:
    """A socket that sends text."""

    client: _Client
    _text: ArrivingText = field(default_factory=lambda: ArrivingText(" "))  # whole words

    async def read(self) -> None:
        """Until the client closes. Raises RequestError."""
        async for message in self.client.socket:
            if message.type is WSMsgType.TEXT:
                self._text.put(message.data)
            elif message.data == _END:
                self._text.end()
            elif message.type is WSMsgType.BINARY:
                self._take(_map_of(message))

    def _take(self, message: Mapping[str, Any]) -> None:
        match message["type"]:
            case "Text":
                self._text.put(message.get("text"))
            case "Eos":
                self._text.end()
            case "Voice":
                raise _wrong("a voice is asked for by its name, as `voice` of the address")

    async def work(self, speaker: SpeechService, query: Mapping[str, str]) -> None:
        """Until all is spoken. Raises RequestError, MoshiError."""
        format = query.get("format") or _FORMATS[0]
        if format not in _FORMATS:
            raise _wrong(f"format is one of {', '.join(_FORMATS)}")
        client = self.client
        client.packs = format.endswith("MessagePack")
        encode = _encoder(format, speaker.model.sample_rate)
        options = _options(speaker, query)
        async with speaker.places.one(), speaker.speech(self._text, **options) as stream:
            if client.packs:
                await client.send("Ready")
            async for chunk in stream:
                pcm = speaker.mixed(chunk.pcm)
                if client.packs:
                    for word in chunk.words:
                        if word.text:
                            times = {"start_s": word.start, "stop_s": word.end}
                            await client.send("Text", text=word.text, **times)
                if len(pcm):
                    data = encode(pcm)
                    if not client.packs:
                        await client.send_bytes(data)
                    elif isinstance(data, list):
                        await client.send("Audio", pcm=data)
                    else:
                        await client.send("OggOpus", data=data)


def _encoder(format: str, rate: int) -> Any:
    """What makes of float32 [n] what is sent. Raises RequestError."""
    if format == "Pcm":
        return lambda pcm: pcm.astype("<f4").tobytes()
    if format == "PcmMessagePack":
        return lambda pcm: pcm.tolist()
    if problem := opus_problem():
        raise _wrong(f"{format} is not made here: {problem}")
    return OpusWriter(rate).write


def _options(speaker: SpeechService, query: Mapping[str, str]) -> dict[str, Any]:
    """What the address asks for; what the model lacks is passed over. Raises RequestError."""
    voice = speaker.voice(query.get("voice"))
    options: dict[str, Any] = {"voice": voice}
    drawn: dict[str, Any] = {}
    if "seed" in query:
        options["seed"] = int(_number(query, "seed", 0, 2**32 - 1))
    if "cfg_alpha" in query and voice is not None:
        options["cfg"] = _number(query, "cfg_alpha", -100, 100)
    if "temperature" in query:
        drawn["temperature"] = _number(query, "temperature", 0.0, 2.0)
    if "top_k" in query:
        drawn["top_k"] = int(_number(query, "top_k", 0, 2**20))
    if drawn:
        options["audio"] = replace(speaker.model.audio_sampling, **drawn)
    return options


def _number(query: Mapping[str, str], name: str, low: float, high: float) -> float:
    """Brought into its range. Raises RequestError."""
    try:
        value = float(query[name])
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise _wrong(f"{name} must be a number, is {query[name][:40]!r}")
    return min(max(value, low), high)
