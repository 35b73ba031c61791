"""OpenAI's `/v1/audio/transcriptions`: a file in, its words out, at once or as they are written."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from aiohttp import BodyPartReader, web
from aiohttp.http_exceptions import HttpProcessingError

from moshi_mlx import MoshiError, Word
from moshi_mlx.text import gap_between, join_words

from .bodies import EventStream, check_there
from .services import RequestError, Services, TranscriptionService

if TYPE_CHECKING:  # the family is imported with its first model
    from moshi_mlx import HeardWord
    from moshi_mlx.families.transcribe import Passage

__all__ = ["serve_transcriptions"]

LARGEST_UPLOAD = 200 * 2**20
_LONGEST_FIELD = 64 * 2**10
_MOST_PARTS = 32
_BLOCK = 2**18
_STALLED_SECONDS = 30.0
"""So long a client may send nothing of its file."""
_FORMATS = ("json", "text", "srt", "verbose_json", "vtt")
_GRANULARITIES = ("segment", "word")
_TYPES = {"text": "text/plain", "srt": "application/x-subrip", "vtt": "text/vtt"}
_CALLED = "the file"


@dataclass
class _Form:
    """What a client asks for."""

    path: Path | None = None
    fields: dict[str, str] = field(default_factory=dict)
    granularities: list[str] = field(default_factory=list)

    @property
    def format(self) -> str:
        return self.fields.get("response_format") or "json"

    @property
    def streams(self) -> bool:
        return self.fields.get("stream", "").lower() in ("true", "1")

    def check(self) -> Path:
        """Its file. Raises RequestError where something makes no sense."""
        if self.path is None:
            raise _wrong("a form with the sound as its part `file` is needed", "file")
        if self.format not in _FORMATS:
            known = ", ".join(_FORMATS)
            raise _wrong(f"response_format is one of {known}", "response_format")
        if self.streams and self.format not in ("json", "text"):
            raise _wrong(f"with stream there is no {self.format}", "response_format")
        if unknown := set(self.granularities) - set(_GRANULARITIES):
            raise _wrong(
                f"a granularity is word or segment, not {min(unknown)[:40]}",
                "timestamp_granularities",
            )
        return self.path


async def serve_transcriptions(request: web.Request, services: Services) -> web.StreamResponse:
    """Answers a request. Raises RequestError."""
    transcriber = services.need_transcriber()
    if request.content_type != "multipart/form-data":
        raise _wrong("the body must be multipart/form-data, with the sound as `file`", "file")
    async with transcriber.uploads.one(waits=False), _received(request) as form:
        path = form.check()
        async with transcriber.places.one():
            check_there(request)
            try:
                return await _answered(request, transcriber, form, path)
            except MoshiError as error:
                raise RequestError.of(error, "file") from error


@asynccontextmanager
async def _received(request: web.Request) -> AsyncIterator[_Form]:
    """The form, whose file is there while the block runs. Raises RequestError."""
    form = _Form()
    with tempfile.NamedTemporaryFile(prefix="moshi-local-") as copy:
        try:
            await _read(request, form, copy)
        except TimeoutError:
            raise RequestError(408, "timeout", "nothing more of the body came") from None
        except (ValueError, AssertionError, RuntimeError, HttpProcessingError) as error:
            what = " ".join(str(error).split())
            raise _wrong(f"the form cannot be read: {what}", "file") from error
        yield form


async def _read(request: web.Request, form: _Form, copy: IO[bytes]) -> None:
    reader = await request.multipart()
    for _ in range(_MOST_PARTS):
        async with asyncio.timeout(_STALLED_SECONDS):
            part = await reader.next()
        if part is None:
            return
        if not isinstance(part, BodyPartReader):
            raise _wrong("a part must be a field or a file", "file")
        name = part.name or ""
        if name == "file":
            size = 0
            async for block in _blocks(part):
                size += len(block)
                if size > LARGEST_UPLOAD:
                    raise RequestError(
                        413, "too_large", f"a file has at most {LARGEST_UPLOAD >> 20} MiB", "file"
                    )
                copy.write(block)
            copy.flush()
            form.path = Path(copy.name)
            continue
        text = b""
        async for block in _blocks(part):
            text += block
            if len(text) > _LONGEST_FIELD:
                raise RequestError(413, "too_large", f"{name[:40]} is too long", name[:40])
        value = text.decode(errors="replace").strip()
        if name.removesuffix("[]") == "timestamp_granularities":
            form.granularities.append(value)
        else:
            form.fields[name] = value
    raise _wrong(f"a form has at most {_MOST_PARTS} parts", "file")


async def _blocks(part: BodyPartReader) -> AsyncIterator[bytes]:
    while True:
        async with asyncio.timeout(_STALLED_SECONDS):
            block = await part.read_chunk(_BLOCK)
        if not block:
            return
        yield block


async def _answered(
    request: web.Request, transcriber: TranscriptionService, form: _Form, path: Path
) -> web.StreamResponse:
    passages = transcriber.passages(path, _CALLED)
    first = await anext(passages)  # what is wrong with the file shows before the header goes out
    if form.streams:
        return await _streamed(request, first, passages)
    words, seconds = [*first.words], first.seconds
    async for passage in passages:
        check_there(request)
        words += passage.words
        seconds = passage.seconds
    return _whole(transcriber, form, words, seconds)


def _whole(
    transcriber: TranscriptionService, form: _Form, words: Sequence[HeardWord], seconds: float
) -> web.Response:
    """The transcript in one of the formats."""
    text = join_words(word.text for word in words)
    usage = {"type": "duration", "seconds": round(seconds, 3)}
    match form.format:
        case "text":
            body = f"{text}\n"
        case "srt":
            body = transcriber.subtitles("srt", words)
        case "vtt":
            body = transcriber.subtitles("vtt", words)
        case "verbose_json":
            return web.json_response(
                {
                    "task": "transcribe",
                    "language": form.fields.get("language") or transcriber.languages[0],
                    "duration": round(seconds, 3),
                    "text": text,
                    **_timed(transcriber, form.granularities or ["segment"], words),
                    "usage": usage,
                }
            )
        case _:
            return web.json_response({"text": text, "usage": usage})
    return web.Response(text=body, content_type=_TYPES[form.format], charset="utf-8")


def _timed(
    transcriber: TranscriptionService, granularities: Sequence[str], words: Sequence[Word]
) -> dict[str, Any]:
    """Words and segments with their times, in seconds."""
    found: dict[str, Any] = {}
    if "segment" in granularities:
        found["segments"] = [
            {
                "id": number,
                "seek": 0,
                "start": round(phrase[0].start, 3),
                "end": round(phrase[-1].end, 3),
                "text": join_words(word.text for word in phrase),
                # Of another kind of model:
                "tokens": [],
                "temperature": 0.0,
                "avg_logprob": 0.0,
                "compression_ratio": 1.0,
                "no_speech_prob": 0.0,
            }
            for number, phrase in enumerate(transcriber.phrases(words))
        ]
    if "word" in granularities:
        found["words"] = [
            {"word": word.text, "start": round(word.start, 3), "end": round(word.end, 3)}
            for word in words
        ]
    return found


async def _streamed(
    request: web.Request, first: Passage, passages: AsyncIterator[Passage]
) -> web.StreamResponse:
    """Server-sent events, as words are written."""
    text, seconds = "", 0.0

    def delta(passage: Passage) -> str:
        nonlocal text, seconds
        seconds, before = passage.seconds, text
        for word in passage.words:
            text += gap_between(text, word.text) + word.text if text else word.text
        return text[len(before) :]

    async with EventStream(request) as events:
        passage: Passage | None = first
        while passage is not None:
            check_there(request)  # where nothing is said, nothing is sent
            if new := delta(passage):
                await events.send({"type": "transcript.text.delta", "delta": new})
            passage = await anext(passages, None)
        usage = {"type": "duration", "seconds": round(seconds, 3)}
        await events.send({"type": "transcript.text.done", "text": text, "usage": usage})
    return events.response


def _wrong(message: str, param: str) -> RequestError:
    return RequestError(400, "invalid_value", message, param)
