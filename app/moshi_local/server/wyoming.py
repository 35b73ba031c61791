"""Wyoming, the protocol of Home Assistant's voice assistants: speech to text, and text to speech.

An event is a line of JSON, and after it as many bytes of JSON and of sound as the line says. There
are no keys: whoever can connect is served.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from moshi_mlx import MoshiError, __version__
from moshi_mlx.text import gap_between

from .bodies import STALLED_SECONDS
from .formats import SampleDecoder, SampleEncoder, SampleFormat
from .services import (
    MOST_UNSPOKEN,
    ArrivingText,
    LiveTranscription,
    RequestError,
    Services,
    TranscriptionService,
)

__all__ = ["WyomingServer"]

_IDLE_SECONDS = 300.0
MOST_CONNECTIONS = 64
_LONGEST_LINE = 2**16
_LARGEST_DATA = 2**20
_LARGEST_PAYLOAD = 2**22
_RATES = 4000, 192_000
_MOST_CHANNELS = 8

_log = logging.getLogger("moshi_local.server")


@dataclass(frozen=True, slots=True)
class _WyomingEvent:
    type: str
    data: Mapping[str, Any]
    payload: bytes = b""


async def _read(reader: asyncio.StreamReader) -> _WyomingEvent | None:
    """The next event; None at the end. Raises RequestError."""
    try:
        line = await reader.readline()
    except ValueError:
        raise _wrong("a line is too long") from None
    if not line:
        return None
    head = _object(line)
    kind = head.get("type")
    if not isinstance(kind, str):
        raise _wrong("an event has a type")
    data = dict(_as_map(head.get("data")))
    if size := _size(head, "data_length", _LARGEST_DATA):
        data |= _object(await reader.readexactly(size))
    payload = b""
    if size := _size(head, "payload_length", _LARGEST_PAYLOAD):
        payload = await reader.readexactly(size)
    return _WyomingEvent(kind, data, payload)


def _object(text: bytes) -> Mapping[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise _wrong("this is not a line of JSON")
    return found


def _as_map(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _size(head: Mapping[str, Any], name: str, most: int) -> int:
    size = head.get(name) or 0
    if not isinstance(size, int) or not 0 <= size <= most:
        raise _wrong(f"{name} is at most {most}")
    return size


def _wrong(message: str) -> RequestError:
    return RequestError(400, "invalid_value", message)


class _Connection:
    """One client; several requests may follow on each other.

    Args:
        services: what there is.
        reader: of the socket.
        writer: of the socket.
    """

    def __init__(
        self, services: Services, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._services, self._reader, self._writer = services, reader, writer
        self._hearing: _Hearing | None = None
        self._arriving: ArrivingText | None = None
        self._speaking: asyncio.Task[None] | None = None

    async def serve(self) -> None:
        """Until the client closes, or sends nothing for too long."""
        try:
            while True:
                async with asyncio.timeout(_IDLE_SECONDS):
                    event = await _read(self._reader)
                if event is None:
                    return
                try:
                    await self._take(event)
                except (RequestError, MoshiError) as error:
                    await self._drop()
                    await self._tell(error)
        except RequestError as error:  # what follows cannot be read
            await self._tell(error)
        except (TimeoutError, ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            await self._drop()

    async def _drop(self) -> None:
        """Lets go of what is being done."""
        speaking, self._speaking, self._arriving = self._speaking, None, None
        if speaking is not None:
            speaking.cancel()
            await asyncio.gather(speaking, return_exceptions=True)
        hearing, self._hearing = self._hearing, None
        if hearing is not None:
            await hearing.close()

    async def _tell(self, error: Exception) -> None:
        code = error.refused.code if isinstance(error, RequestError) else "invalid_value"
        await self._send("error", text=str(error), code=code)

    async def _take(self, event: _WyomingEvent) -> None:
        match event.type:
            case "describe":
                await self._send("info", **_info(self._services))
            case "ping":
                await self._send("pong", text=event.data.get("text"))
            case "audio-start":
                await self._begin_hearing(event.data)
            case "audio-chunk":
                if self._hearing is None:
                    await self._begin_hearing(event.data)
                assert self._hearing is not None
                await self._said(await self._hearing.hear(event.payload, self._reader.at_eof))
            case "audio-stop":
                await self._end_hearing()
            case "synthesize" if self._arriving is None:  # else it repeats what arrives
                text = event.data.get("text")
                if not isinstance(text, str) or not text.strip() or len(text) > MOST_UNSPOKEN:
                    raise _wrong(f"text must be what to speak, at most {MOST_UNSPOKEN} characters")
                await self._speak(text, event.data.get("voice"))
            case "synthesize-start":
                await self._drop()
                arriving = self._arriving = ArrivingText()
                work = self._speak(arriving, event.data.get("voice"))
                self._speaking = asyncio.create_task(work)
            case "synthesize-chunk" if self._arriving is not None:
                self._arriving.put(event.data.get("text"))
            case "synthesize-stop" if self._arriving is not None:
                self._arriving.end()
                speaking, self._arriving = self._speaking, None
                if speaking is not None:
                    await speaking
                self._speaking = None
                await self._send("synthesize-stopped")

    # ------------------------------------------------------------------- speech to text

    async def _begin_hearing(self, format: Mapping[str, Any]) -> None:
        await self._drop()
        transcriber = self._services.need_transcriber()
        self._hearing = _Hearing(format)
        await self._hearing.open(transcriber)
        await self._send("transcript-start", language=transcriber.languages[0])

    async def _said(self, text: str) -> None:
        if text:
            await self._send("transcript-chunk", text=text)

    async def _end_hearing(self) -> None:
        hearing, self._hearing = self._hearing, None
        if hearing is None:
            await self._send("transcript", text="")
            return
        try:
            await self._said(await hearing.finish())
        finally:
            await hearing.close()
        await self._send("transcript", text=hearing.text)
        await self._send("transcript-stop")

    # ------------------------------------------------------------------- text to speech

    async def _speak(self, text: str | ArrivingText, asked: Any) -> None:
        """Sends sound as it is made. Raises RequestError, MoshiError."""
        speaker = self._services.need_speaker()
        voice = speaker.voice(_as_map(asked).get("name"))
        rate = speaker.model.sample_rate
        format = {"rate": rate, "width": 2, "channels": 1}
        encoder = SampleEncoder(SampleFormat(rate=rate), rate)
        async with (
            speaker.places.one(),
            speaker.speech(text, voice=voice) as stream,
        ):
            begun = False
            async for chunk in stream:
                pcm = speaker.mixed(chunk.pcm)
                if len(pcm):
                    if not begun:
                        await self._send("audio-start", **format)
                    begun = True
                    await self._send("audio-chunk", encoder.encode(pcm), **format)
            if not begun:
                await self._send("audio-start", **format)
            await self._send("audio-stop")

    async def _send(self, kind: str, payload: bytes = b"", /, **data: Any) -> None:
        """Raises ConnectionError, TimeoutError."""
        content = json.dumps(data).encode()
        head = {"type": kind, "version": __version__, "data_length": len(content)}
        if payload:
            head["payload_length"] = len(payload)
        self._writer.write(json.dumps(head).encode() + b"\n" + content + payload)
        async with asyncio.timeout(STALLED_SECONDS):
            await self._writer.drain()


class _Hearing:
    """Sound that is being transcribed, 16-bit samples of any rate. Raises RequestError.

    Args:
        format: "rate", "width" in bytes, "channels".
    """

    def __init__(self, format: Mapping[str, Any]) -> None:
        rate, width, channels = (format.get(name) for name in ("rate", "width", "channels"))
        if width != 2:
            raise _wrong(f"samples have 2 bytes here, not {width}")
        if not isinstance(rate, int) or not _RATES[0] <= rate <= _RATES[1]:
            raise _wrong(f"the rate is {_RATES[0]} to {_RATES[1]} Hz")
        if not isinstance(channels, int) or not 1 <= channels <= _MOST_CHANNELS:
            raise _wrong(f"there are 1 to {_MOST_CHANNELS} channels")
        self._rate, self._channels = rate, channels
        self._open = AsyncExitStack()
        self._live: LiveTranscription | None = None
        self._decoder: SampleDecoder | None = None
        self.text = ""

    async def open(self, transcriber: TranscriptionService) -> None:
        """Waits for its turn. Raises RequestError, MoshiError."""
        await self._open.enter_async_context(transcriber.places.one())
        live = await self._open.enter_async_context(transcriber.live())
        self._decoder = SampleDecoder(SampleFormat(rate=self._rate), live.sample_rate)
        self._live = live

    async def close(self) -> None:
        """Lets go of it. May be called again."""
        await self._open.aclose()

    async def hear(self, payload: bytes, gone: Callable[[], bool]) -> str:
        """Takes samples; gives the text that came.

        Args:
            payload: the samples.
            gone: whether the client has closed, so that there is no use in hearing the rest.

        Raises:
            ConnectionError: it has.
            MoshiError: as `LiveTranscription.hear`.
        """
        assert self._live is not None and self._decoder is not None
        if self._channels > 1:
            whole = len(payload) - len(payload) % (2 * self._channels)
            sound = np.frombuffer(payload[:whole], "<i2").reshape(-1, self._channels)
            payload = np.rint(sound.mean(axis=1)).astype("<i2").tobytes()
        new = ""
        async for frame in self._live.hear(self._decoder.decode(payload)):
            new += "".join(self._added(word.text) for word in frame.words)
            if gone():
                raise ConnectionResetError("the client has gone")
        return new

    async def finish(self) -> str:
        """The text that is still on its way."""
        assert self._live is not None
        return "".join([self._added(word.text) for word in await self._live.finish()])

    def _added(self, word: str) -> str:
        text = gap_between(self.text, word) + word if self.text else word
        self.text += text
        return text


def _info(services: Services) -> dict[str, Any]:
    """What there is, as Wyoming has it."""
    found: dict[str, Any] = {"asr": [], "tts": []}
    if (heard := services.transcriber) is not None:
        name = heard.model.name
        model = {**_about(name, "speech to text"), "languages": [*heard.languages]}
        program = {**_about("moshi-local", f"{name}, on this machine"), "models": [model]}
        found["asr"].append({**program, "supports_transcript_streaming": True})
    if (speaker := services.speaker) is not None:
        name, languages = speaker.model.name, [*speaker.languages]
        voices = [
            {**_about(voice, f"synthetic, by {name}"), "languages": languages}
            for voice in speaker.voices
        ]
        program = {**_about("moshi-local", f"{name}, on this machine"), "voices": voices}
        found["tts"].append({**program, "supports_synthesize_streaming": True})
    return found


def _about(name: str, description: str) -> dict[str, Any]:
    return {
        "name": name,
        "attribution": {"name": "moshi-local", "url": ""},
        "installed": True,
        "description": description,
        "version": __version__,
    }


class WyomingServer:
    """Listens until it is closed.

    Args:
        services: what there is.
    """

    def __init__(self, services: Services) -> None:
        self._services = services
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self, host: str, port: int) -> int:
        """Begins; gives the port. Raises OSError."""
        self._server = await asyncio.start_server(self._connected, host, port, limit=_LONGEST_LINE)
        found: int = self._server.sockets[0].getsockname()[1]
        return found

    async def close(self) -> None:
        """Ends all connections."""
        if self._server is not None:
            self._server.close()
        for task in tuple(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            if len(self._connections) >= MOST_CONNECTIONS:
                return
            self._connections.add(task)
            await _Connection(self._services, reader, writer).serve()
        except (ConnectionError, TimeoutError, asyncio.CancelledError):
            pass  # the server stops: asyncio would print what a cancelled connection was doing
        except Exception:
            _log.exception("a Wyoming connection failed")
        finally:
            self._connections.discard(task)
            writer.close()
            with suppress(Exception):
                async with asyncio.timeout(STALLED_SECONDS):
                    await writer.wait_closed()
