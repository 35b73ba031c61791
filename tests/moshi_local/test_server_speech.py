"""Speech to text and text to speech over a server, with real sockets and the bundled models."""

import asyncio
import base64
import io
import json
import re
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import msgpack
import numpy as np
import pytest
import soundfile
import soxr
import sphn
from typer.testing import CliRunner
from wyoming.asr import Transcribe, Transcript
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.client import AsyncTcpClient
from wyoming.error import Error
from wyoming.event import Event
from wyoming.info import Describe, Info
from wyoming.tts import (
    Synthesize,
    SynthesizeChunk,
    SynthesizeStart,
    SynthesizeStop,
    SynthesizeVoice,
)

from moshi_local.cli import app
from moshi_local.observers.record import made_here
from moshi_local.server.access import Access
from moshi_local.server.app import make_app
from moshi_mlx.sounds import open_sound
from tests.moshi_local.test_server import (
    FRAME,
    QUESTION,
    RATE,
    Server,
    answer_live,
    as_text,
    events,
    question,
    talk,
    until,
)

TEXT = "what is your name"
HEARD = "hello what is your name count to five"  # of QUESTION
FRAMES = 16  # of TEXT, with seed 0
LONG = " ".join([TEXT] * 1000)
SPEECH, TRANSCRIPTIONS = "/v1/audio/speech", "/v1/audio/transcriptions"
ENDPOINTS = {
    "--stt": (("POST", TRANSCRIPTIONS), ("GET", "/api/asr-streaming")),
    "--tts": (("POST", SPEECH), ("GET", "/api/tts_streaming")),
    "--model none": (
        ("GET", "/api/chat"),
        ("GET", "/v1/live/sessions"),
        ("GET", "/v1/realtime"),
    ),
}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    served = Server(
        "--stt", "nano-stt", "--tts", "nano-tts", "--captions", "nano-stt", "--wyoming", "0"
    )
    yield served
    code, _ = served.stop()
    assert code == 0
    assert not any("Traceback" in line for line in served.lines), "\n".join(served.lines)


async def speech(client: aiohttp.ClientSession, **asked: Any) -> bytes:
    async with client.post(SPEECH, json={"input": TEXT, **asked}) as answer:
        assert answer.status == 200, await answer.text()
        return await answer.read()


async def transcription(client: aiohttp.ClientSession, sound: bytes, **fields: Any) -> str:
    form = aiohttp.FormData({"model": "whisper-1"})
    form.add_field("file", sound, filename="sound")
    for name, value in fields.items():
        for each in value if isinstance(value, list) else [value]:
            form.add_field(name, each)
    async with client.post(TRANSCRIPTIONS, data=form) as answer:
        text = await answer.text()
        assert answer.status == 200, text
        return text


# ------------------------------------------------------------------------ OpenAI's endpoints


@pytest.mark.parametrize("format", ["mp3", "wav", "opus", "flac", "aac", "pcm"])
def test_what_is_spoken_is_transcribed(server: Server, format: str, tmp_path: Path) -> None:
    async def work(client: aiohttp.ClientSession) -> None:
        asked = {"input": TEXT, "model": "tts-1", "voice": "default", "response_format": format}
        async with client.post(SPEECH, json=asked) as answer:
            assert answer.status == 200
            assert answer.headers["X-Synthetic-Speech"] == "moshi-local; model=nano-tts"
            assert answer.headers["Content-Type"].startswith("audio/")
            sound = await answer.read()
        path = tmp_path / f"speech.{format}"
        path.write_bytes(sound)
        if format == "pcm":
            assert len(sound) == 2 * FRAMES * FRAME
            return
        assert open_sound(path).seconds == pytest.approx(FRAMES * 0.08, abs=0.13)
        if format != "aac":
            assert made_here(path)
        found = json.loads(await transcription(client, sound))
        heard = found["text"].split()
        assert heard[:3] == TEXT.split()[:3]
        assert format == "aac" or found["text"] == TEXT
        assert found["usage"] == {
            "type": "duration",
            "seconds": pytest.approx(FRAMES * 0.08, abs=0.13),
        }

    talk(server, work)


def test_a_recording_in_every_format_of_text(server: Server) -> None:
    async def work(client: aiohttp.ClientSession) -> None:
        sound = QUESTION.read_bytes()
        assert json.loads(await transcription(client, sound))["text"] == HEARD
        assert await transcription(client, sound, response_format="text") == f"{HEARD}\n"
        srt = await transcription(client, sound, response_format="srt")
        assert srt.startswith("1\n00:00:00,640 --> 00:00:01,040\nhello\n\n2\n")
        vtt = await transcription(client, sound, response_format="vtt")
        assert vtt.startswith("WEBVTT\n\n00:00:00.640 --> 00:00:01.040\nhello\n")
        verbose = json.loads(
            await transcription(
                client,
                sound,
                response_format="verbose_json",
                **{"timestamp_granularities[]": ["word", "segment"]},
            )
        )
        assert verbose["text"] == HEARD
        assert verbose["language"] == "en"
        assert [word["word"] for word in verbose["words"]] == HEARD.split()
        assert [segment["text"] for segment in verbose["segments"]] == [
            "hello", "what is your name", "count to five",
        ]  # fmt: skip
        assert verbose["segments"][1]["start"] == verbose["words"][1]["start"]
        plain = json.loads(await transcription(client, sound, response_format="verbose_json"))
        assert "words" not in plain and "segments" in plain

    talk(server, work)


def test_a_transcript_streams(server: Server) -> None:
    async def work(client: aiohttp.ClientSession) -> None:
        body = await transcription(client, QUESTION.read_bytes(), stream="true")
        told = [json.loads(line.removeprefix("data: ")) for line in body.split("\n\n") if line]
        deltas = [each["delta"] for each in told[:-1]]
        assert {each["type"] for each in told[:-1]} == {"transcript.text.delta"}
        assert len(deltas) > 3
        assert "".join(deltas) == HEARD
        assert told[-1]["type"] == "transcript.text.done"
        assert told[-1]["text"] == HEARD

    talk(server, work)


def test_speech_streams(server: Server) -> None:
    """The first sound is there long before the last."""

    async def work(client: aiohttp.ClientSession) -> None:
        asked = {"input": " ".join([TEXT] * 5), "response_format": "pcm"}
        began = time.monotonic()
        async with client.post(SPEECH, json=asked) as answer:
            await answer.content.readany()
            first = time.monotonic() - began
            await answer.read()
        assert first < 0.4 * (time.monotonic() - began)
        sse = {"input": TEXT, "response_format": "pcm", "stream_format": "sse"}
        async with client.post(SPEECH, json=sse) as answer:
            assert answer.content_type == "text/event-stream"
            text = await answer.text()
        told = [json.loads(line.removeprefix("data: ")) for line in text.split("\n\n") if line]
        assert {each["type"] for each in told[:-1]} == {"speech.audio.delta"}
        sound = b"".join(base64.b64decode(each["audio"]) for each in told[:-1])
        assert sound == await speech(client, response_format="pcm")
        assert told[-1] == {
            "type": "speech.audio.done",
            "usage": {"input_tokens": 4, "output_tokens": FRAMES, "total_tokens": 4 + FRAMES},
        }

    talk(server, work)


def test_speed(server: Server) -> None:
    async def work(client: aiohttp.ClientSession) -> None:
        asked = {"response_format": "pcm", "voice": {"id": "default"}, "input": "hello, my name is"}
        slow, usual, fast = [len(await speech(client, speed=s, **asked)) for s in (0.25, 1, 4)]
        assert slow > usual >= fast, (slow, usual, fast)

    talk(server, work)


@pytest.mark.parametrize(
    ("asked", "status", "message"),
    [
        ({"input": ""}, 400, "input must be the text"),
        ({"input": 1}, 400, "input must be the text"),
        ({"input": "x" * 20_001}, 400, "at most 20000 characters"),
        ({"input": '<break time="999s"/>'}, 400, "break"),
        ({"input": TEXT, "voice": "alloy"}, 400, "there is no voice alloy; there are default"),
        ({"input": TEXT, "voice": "../nano-tts"}, 400, "there is no voice"),
        ({"input": TEXT, "voice": 3}, 400, "voice must be a name"),
        ({"input": TEXT, "response_format": "midi"}, 400, "one of mp3, wav, opus, flac, pcm, aac"),
        ({"input": TEXT, "stream_format": "x"}, 400, "audio or sse"),
        ({"input": TEXT, "speed": 9}, 400, "from 0.25 to 4"),
        ({"input": TEXT, "seed": "x"}, 400, "seed"),
        ([], 400, "must be an object"),
        ("no JSON", 400, "not JSON"),
        (" " * 300_000, 413, "too long"),
    ],
)
def test_wrong_requests_for_speech(server: Server, asked: Any, status: int, message: str) -> None:
    async def work(client: aiohttp.ClientSession) -> None:
        body = asked if isinstance(asked, str) else json.dumps(asked)
        headers = {"Content-Type": "application/json"}
        async with client.post(SPEECH, data=body, headers=headers) as answer:
            error = (await answer.json())["error"]
            assert message in error["message"]
            assert answer.status == status
        async with client.post(SPEECH, data=body) as answer:
            assert answer.status == 400

    talk(server, work)


@pytest.mark.parametrize(
    ("fields", "sound", "status", "message"),
    [
        ({}, None, 400, "its part `file` is needed"),
        ({}, b"", 400, "the file is empty"),
        ({}, b"some text\n" * 50, 400, "cannot read the file as sound"),
        ({"response_format": "docx"}, b"RIFF", 400, "one of json, text, srt, verbose_json, vtt"),
        ({"response_format": "srt", "stream": "true"}, b"RIFF", 400, "with stream there is no srt"),
        ({"timestamp_granularities[]": "day"}, b"RIFF", 400, "word or segment, not day"),
        ({"prompt": "x" * 70_000}, b"RIFF", 413, "prompt is too long"),
        ({f"x{i}": "" for i in range(40)}, b"RIFF", 400, "at most 32 parts"),
    ],
)
def test_wrong_requests_for_a_transcript(
    server: Server, fields: dict[str, str], sound: bytes | None, status: int, message: str
) -> None:
    async def work(client: aiohttp.ClientSession) -> None:
        form = aiohttp.FormData({"model": "x", **fields})
        if sound is not None:
            form.add_field("file", sound, filename="sound.wav")
        else:
            form.add_field("other", b"x", filename="other")
        async with client.post(TRANSCRIPTIONS, data=form) as answer:
            error = (await answer.json())["error"]
            assert message in error["message"]
            assert "/tmp" not in error["message"]
            assert answer.status == status

    talk(server, work)


def test_bodies_that_are_no_form(server: Server) -> None:
    async def work(client: aiohttp.ClientSession) -> None:
        for body, kind in (
            (b"{}", "application/json"),
            (b"x", "multipart/form-data"),
            (b"--b\r\nx", "multipart/form-data; boundary=b"),
            (b"--b\r\n\r\nx", "multipart/form-data; boundary=b"),
        ):
            headers = {"Content-Type": kind}
            async with client.post(TRANSCRIPTIONS, data=body, headers=headers) as answer:
                assert answer.status == 400, kind
        headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
        async with client.post(SPEECH, data=b"no gzip", headers=headers) as answer:
            assert answer.status == 400
            assert "cannot be read" in (await answer.json())["error"]["message"]

    talk(server, work)


def test_models(server: Server) -> None:
    async def work(client: aiohttp.ClientSession) -> None:
        async with client.get("/v1/models") as answer:
            names = [model["id"] for model in (await answer.json())["data"]]
        assert names == ["nano", "nano-stt", "nano-tts"]
        async with client.get("/v1/models/nano-tts") as answer:
            assert (await answer.json())["id"] == "nano-tts"
        async with client.get("/v1/models/other") as answer:
            assert answer.status == 404
            assert (await answer.json())["error"]["code"] == "model_not_found"

    talk(server, work)


def test_clients_that_vanish_free_their_places(server: Server) -> None:
    """More than there are places, each with work of minutes."""
    sound = io.BytesIO()
    soundfile.write(sound, np.zeros(600 * RATE, np.float32), RATE, format="FLAC")

    async def work(client: aiohttp.ClientSession) -> None:
        for kind in ("speech", "transcript", "streamed"):

            async def ask(kind: str = kind) -> None:
                if kind == "speech":
                    await speech(client, input=LONG)
                else:
                    stream = {"stream": "true"} if kind == "streamed" else {}
                    await transcription(client, sound.getvalue(), **stream)

            asking = [asyncio.create_task(ask()) for _ in range(6)]
            await asyncio.sleep(0.5)
            for each in asking:
                each.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
            began = time.monotonic()
            if kind == "speech":
                await speech(client)
            else:
                await transcription(client, QUESTION.read_bytes())
            assert time.monotonic() - began < 20, kind

    talk(server, work)


def test_more_requests_than_may_wait_are_told_busy(server: Server) -> None:
    async def work(client: aiohttp.ClientSession) -> None:
        async def status() -> int:
            async with client.post(SPEECH, json={"input": LONG}) as answer:
                await answer.read()
                return answer.status

        asking = [asyncio.create_task(status()) for _ in range(24)]
        done, running = await asyncio.wait(asking, timeout=2)
        for each in running:
            each.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        codes = [each.result() for each in done]
        assert codes == [503] * (24 - 4 - 16)
        await asyncio.sleep(1)  # those that waited have left too
        await speech(client)

    async def alone() -> None:
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(server.url, connector=connector) as client:
            await work(client)

    asyncio.run(asyncio.wait_for(alone(), 30))


def test_a_conversation_goes_on_beside_all_of_it(server: Server) -> None:
    async def work(client: aiohttp.ClientSession) -> str:
        beside = [asyncio.create_task(speech(client, input=LONG)) for _ in range(2)]
        async with client.ws_connect("/v1/live/sessions") as socket:
            said = await answer_live(socket)
        assert not all(each.done() for each in beside)
        for each in beside:
            each.cancel()
        await asyncio.gather(*beside, return_exceptions=True)
        return said

    assert talk(server, work).strip() == "Hello! How can I help you?"


# ------------------------------------------------------------------------ captions


def test_live_clients_are_told_what_their_user_says(server: Server) -> None:
    async def said(client: aiohttp.ClientSession, muted: bool) -> list[dict[str, Any]]:
        async with client.ws_connect("/v1/live/sessions") as socket:
            await socket.send_json({"type": "session.start", "session": {}})
            if muted:
                await socket.send_json({"type": "session.input_audio.mute"})
            for frame in question(after=0.2):
                audio = as_text(frame)
                await socket.send_json({"type": "session.input_audio.append", "audio": audio})
                await asyncio.sleep(0.06)
            words, frames = [], 0  # silence follows by itself
            async for event in events(socket):
                frames += event["type"] == "session.output_audio.delta"
                if event["type"] == "session.input_transcript.delta":
                    words.append(event)
                if words or (frames == 70 and muted):
                    return words
        raise AssertionError("no word was told")

    async def work(client: aiohttp.ClientSession) -> None:
        (word,) = await said(client, muted=False)
        assert (word["delta"], word["start_ms"], word["end_ms"]) == (" hello", 640, 1040)
        assert await said(client, muted=True) == []

    talk(server, work)


def test_realtime_clients_are_told_it_for_each_turn(server: Server) -> None:
    async def work(client: aiohttp.ClientSession) -> None:
        async with client.ws_connect("/v1/realtime") as socket:
            asked = {"type": "realtime", "audio": {"input": {"transcription": {"model": "any"}}}}
            await socket.send_json({"type": "session.update", "session": asked})
            for frame in question():
                audio = as_text(frame)
                await socket.send_json({"type": "input_audio_buffer.append", "audio": audio})
                await asyncio.sleep(0.03)
            begun = await until(socket, "input_audio_buffer.speech_started")
            kind = "conversation.item.input_audio_transcription"
            assert (await until(socket, f"{kind}.delta"))["delta"] == "hello"
            done = await until(socket, f"{kind}.completed")
            assert done["transcript"] == "hello"
            assert done["item_id"] == begun["item_id"]
            assert done["usage"]["type"] == "duration"
            item_id = begun["item_id"]
            await socket.send_json({"type": "conversation.item.retrieve", "item_id": item_id})
            item = (await until(socket, "conversation.item.retrieved"))["item"]
            assert item["content"][0]["transcript"] == "hello"

    talk(server, work)


# ------------------------------------------------------------------------ moshi-server's sockets


def packed(kind: str, **fields: Any) -> bytes:
    data: bytes = msgpack.packb({"type": kind, **fields}, use_single_float=True)
    return data


async def unpacked(socket: aiohttp.ClientWebSocketResponse) -> dict[str, Any]:
    found: dict[str, Any] = msgpack.unpackb(await socket.receive_bytes(timeout=20))
    return found


def sounds(opus: bool) -> Iterator[bytes]:
    pcm = np.concatenate(question(after=0.5))
    writer = sphn.OpusStreamWriter(RATE)
    for start in range(0, len(pcm), FRAME):
        block = pcm[start : start + FRAME]
        if opus:
            data = writer.append_pcm(np.pad(block, (0, FRAME - len(block))))
            yield packed("OggOpus", data=data if start else list(data))
        else:
            yield packed("Audio", pcm=block[:700].tolist())
            yield packed("Audio", pcm=block[700:].tolist())


@pytest.mark.parametrize("opus", [False, True])
def test_words_of_a_stream_of_sound(server: Server, opus: bool) -> None:
    async def work(client: aiohttp.ClientSession) -> None:
        async with client.ws_connect("/api/asr-streaming?auth_id=public_token") as socket:
            assert await unpacked(socket) == {"type": "Ready"}
            await socket.send_bytes(packed("Init"))
            for message in sounds(opus):
                await socket.send_bytes(message)
            await socket.send_bytes(packed("Marker", id=7))
            for _ in range(25):
                await socket.send_bytes(packed("Audio", pcm=[0.0] * FRAME))
            told: list[dict[str, Any]] = []
            while not told or told[-1]["type"] != "Marker":
                told.append(await unpacked(socket))
        steps = [each for each in told if each["type"] == "Step"]
        assert [each["step_idx"] for each in steps] == list(range(len(steps)))
        assert all(len(each["prs"]) == 4 for each in steps)
        words = [each for each in told if each["type"] == "Word"]
        ends = [each for each in told if each["type"] == "EndWord"]
        assert [word["text"] for word in words] == ["hello"]
        assert words[0]["start_time"] == pytest.approx(0.64, abs=0.1)
        assert ends[0]["stop_time"] > words[0]["start_time"]
        assert told[-1] == {"type": "Marker", "id": 7}

    talk(server, work)


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (b"\xc1", "must be a map in MessagePack"),
        (msgpack.packb([1]), "with a type"),
        (packed("Audio", pcm="x"), "a list of numbers"),
        (packed("Audio", pcm=[[1.0]]), "a list of numbers"),
        (packed("Audio", pcm=[1e9] * FRAME), "1e"),
        (packed("OggOpus", data=b"garbage"), "not Ogg-Opus"),
        (packed("OggOpus", data=5), "data must be bytes"),
        (packed("OggOpus", data=["x"]), "data must be bytes"),
        (packed("OggOpus", data=[256]), "data must be bytes"),
        (packed("Marker", id="x" * 1000), "with a short id"),
    ],
)
def test_wrong_messages_with_sound(server: Server, sent: bytes, message: str) -> None:
    async def work(client: aiohttp.ClientSession) -> None:
        async with client.ws_connect("/api/asr-streaming") as socket:
            await unpacked(socket)
            await socket.send_bytes(sent)
            error = await unpacked(socket)
            assert error["type"] == "Error"
            assert message in error["message"]
            await socket.receive()
            assert socket.close_code == 1008

    talk(server, work)


def test_a_client_too_many_has_no_free_channel(server: Server) -> None:
    async def work(client: aiohttp.ClientSession) -> None:
        sockets = [await client.ws_connect("/api/asr-streaming") for _ in range(4)]
        for socket in sockets:
            assert (await unpacked(socket))["type"] == "Ready"
        async with client.ws_connect("/api/asr-streaming") as another:
            error = await unpacked(another)
            assert error == {"type": "Error", "message": "no free channels"}
            await another.receive()
            assert another.close_code == 1013
        for socket in sockets:
            await socket.close()
        for _ in range(50):
            async with client.ws_connect("/api/asr-streaming") as again:
                if (await unpacked(again))["type"] == "Ready":
                    return
        raise AssertionError("the places are not free again")

    talk(server, work)


@pytest.mark.parametrize("format", ["PcmMessagePack", "OggOpusMessagePack", "Pcm", "OggOpus", ""])
def test_sound_of_a_stream_of_words(server: Server, format: str) -> None:
    async def work(client: aiohttp.ClientSession) -> None:
        address = f"/api/tts_streaming?voice=default&cfg_alpha=1.5&seed=0&format={format}"
        data, words, pcm = b"", [], []
        async with client.ws_connect(address) as socket:
            if "Message" in format:
                assert await unpacked(socket) == {"type": "Ready"}
                for word in TEXT.split():
                    await socket.send_bytes(packed("Text", text=word))
                await socket.send_bytes(packed("Eos"))
            else:
                await socket.send_str(TEXT)
                await socket.send_bytes(b"\0")
            async for message in socket:
                if "Message" not in format:
                    data += message.data
                    continue
                told = msgpack.unpackb(message.data)
                if told["type"] == "Text":
                    words.append(told)
                else:
                    data += told.get("data", b"")
                    pcm += told.get("pcm", [])
            assert socket.close_code == 1000
        if "Message" in format:
            assert [word["text"] for word in words] == TEXT.split()
            assert 0 < words[0]["start_s"] < words[0]["stop_s"] <= words[1]["start_s"]
        sound = np.array(pcm, np.float32)
        if format == "Pcm":
            sound = np.frombuffer(data, "<f4")
        elif "Opus" in format or not format:
            sound = sphn.OpusStreamReader(RATE).append_bytes(data)
        assert len(sound) == pytest.approx(FRAMES * FRAME, abs=2 * FRAME)
        assert np.abs(sound).max() > 0.1

    talk(server, work)


@pytest.mark.parametrize(
    ("query", "sent", "message"),
    [
        ("format=midi", None, "format is one of"),
        ("format=PcmMessagePack&voice=nobody", None, "no voice nobody; there are default"),
        ("format=PcmMessagePack&temperature=x", None, "temperature must be a number"),
        ("format=PcmMessagePack", packed("Text", text=5), "text must be text"),
        ("format=PcmMessagePack", packed("Voice", embeddings=[], shape=[]), "by its name"),
        ("format=PcmMessagePack", b"\xc1", "a map in MessagePack"),
        ("format=PcmMessagePack", packed("Text", text="x" * 100_001), "more text came"),
    ],
)
def test_wrong_messages_with_text(
    server: Server, query: str, sent: bytes | None, message: str
) -> None:
    async def work(client: aiohttp.ClientSession) -> None:
        async with client.ws_connect(f"/api/tts_streaming?{query}") as socket:
            if sent is not None:
                await unpacked(socket)
                await socket.send_bytes(sent)
            error = await unpacked(socket)
            assert error["type"] == "Error"
            assert message in error["message"]
            await socket.receive()
            assert socket.close_code == 1008

    talk(server, work)


# ------------------------------------------------------------------------ Wyoming


def wyoming(server: Server, work: Callable[[AsyncTcpClient], Awaitable[Any]]) -> Any:
    port = next(int(m[1]) for line in server.lines if (m := re.search(r"tcp://.*:(\d+)$", line)))

    async def main() -> Any:
        async with AsyncTcpClient("127.0.0.1", port) as client:
            return await asyncio.wait_for(work(client), 60)

    return asyncio.run(main())


async def following(client: AsyncTcpClient) -> Event:
    event = await asyncio.wait_for(client.read_event(), 20)
    assert event is not None, "the connection is closed"
    return event


def test_wyoming_says_what_there_is(server: Server) -> None:
    async def work(client: AsyncTcpClient) -> None:
        await client.write_event(Describe().event())
        info = Info.from_event(await following(client))
        assert [model.name for model in info.asr[0].models] == ["nano-stt"]
        assert info.asr[0].models[0].languages == ["en"]
        assert info.asr[0].supports_transcript_streaming
        assert [voice.name for voice in info.tts[0].voices or []] == ["default"]
        assert info.tts[0].supports_synthesize_streaming

    wyoming(server, work)


@pytest.mark.parametrize("channels", [1, 2])
def test_wyoming_transcribes(server: Server, channels: int) -> None:
    """Twice on one connection, at the rate of Home Assistant."""
    pcm = soxr.resample(np.concatenate(question(after=0.0)), RATE, 16_000)
    sound = np.repeat((pcm * 32767).astype("<i2"), channels).tobytes()

    async def work(client: AsyncTcpClient) -> None:
        for _ in range(2):
            await client.write_event(Transcribe(language="en").event())
            await client.write_event(AudioStart(16_000, 2, channels).event())
            for start in range(0, len(sound), 2048):
                block = sound[start : start + 2048]
                await client.write_event(AudioChunk(16_000, 2, channels, block).event())
            await client.write_event(AudioStop().event())
            told = [await following(client)]
            while told[-1].type != "transcript-stop":
                told.append(await following(client))
            kinds = [event.type for event in told]
            assert kinds == [
                "transcript-start",
                "transcript-chunk",
                "transcript",
                "transcript-stop",
            ]
            assert Transcript.from_event(told[2]).text == told[1].data["text"] == "hello"

    wyoming(server, work)


async def spoken(client: AsyncTcpClient, last: str) -> tuple[list[str], int]:
    """Kinds of events but for sound, and samples of it."""
    kinds: list[str] = []
    samples = 0
    while not kinds or kinds[-1] != last:
        event = await following(client)
        if AudioChunk.is_type(event.type):
            chunk = AudioChunk.from_event(event)
            assert (chunk.rate, chunk.width, chunk.channels) == (RATE, 2, 1)
            samples += len(chunk.audio) // 2
        else:
            kinds.append(event.type)
    return kinds, samples


def test_wyoming_speaks(server: Server) -> None:
    async def work(client: AsyncTcpClient) -> None:
        await client.write_event(Synthesize(TEXT).event())
        assert await spoken(client, "audio-stop") == (["audio-start", "audio-stop"], FRAMES * FRAME)
        voice = SynthesizeVoice(name="default")
        await client.write_event(SynthesizeStart(voice=voice).event())
        for piece in ("what is ", "your na", "me"):
            await client.write_event(SynthesizeChunk(piece).event())
        await client.write_event(Synthesize(TEXT).event())  # for servers that cannot stream
        await client.write_event(SynthesizeStop().event())
        kinds, samples = await spoken(client, "synthesize-stopped")
        assert kinds == ["audio-start", "audio-stop", "synthesize-stopped"]
        assert samples == FRAMES * FRAME

    wyoming(server, work)


def test_wyoming_tells_what_is_wrong_and_goes_on(server: Server) -> None:
    async def work(client: AsyncTcpClient) -> None:
        for event, message in (
            (Synthesize(TEXT, voice=SynthesizeVoice(name="bob")).event(), "no voice bob"),
            (Event("synthesize", {"text": TEXT, "voice": {"name": ["x"]}}), "must be a name"),
            (Event("synthesize", {"text": TEXT, "voice": {"name": 1}}), "must be a name"),
            (Synthesize("").event(), "text must be what to speak"),
            (AudioStart(16_000, 4, 1).event(), "2 bytes here, not 4"),
            (AudioStart(1, 2, 1).event(), "4000 to 192000"),
            (AudioStart(16_000, 2, 99).event(), "1 to 8 channels"),
        ):
            await client.write_event(event)
            assert message in Error.from_event(await following(client)).text
        assert client._writer is not None
        client._writer.write(rb'{"type": "ping", "data": {"text": "\ud800"}}' + b"\n")
        assert (await following(client)).data == {"text": "\ud800"}
        await client.write_event(Event("unknown", {"x": 1}))
        await client.write_event(AudioStop().event())
        assert Transcript.from_event(await following(client)).text == ""
        await client.write_event(Synthesize(TEXT).event())
        await spoken(client, "audio-stop")

    wyoming(server, work)


@pytest.mark.parametrize(
    "sent",
    [
        b"garbage\n",
        b"[]\n",
        b'{"type": 1}\n',
        b'{"type": "audio-chunk", "payload_length": 99999999999}\n',
        b'{"type": "audio-chunk", "data_length": -1}\n',
        b"x" * 200_000,
    ],
)
def test_wyoming_closes_what_it_cannot_read(server: Server, sent: bytes) -> None:
    async def work(client: AsyncTcpClient) -> None:
        assert client._writer is not None
        client._writer.write(sent)
        event = await client.read_event()
        assert event is None or Error.is_type(event.type)
        assert await client.read_event() is None

    with suppress(ConnectionError):  # it was closed before it had read all
        wyoming(server, work)


# ------------------------------------------------------------------------ other servers


@pytest.mark.parametrize("option", ENDPOINTS)
def test_what_is_not_loaded_is_not_found_and_how_it_would_be(option: str) -> None:
    from aiohttp.test_utils import TestClient, TestServer

    async def main() -> None:
        application = make_app(None, Access())
        async with TestClient(TestServer(application)) as client:
            for method, path in ENDPOINTS[option]:
                answer = await client.request(method, path)
                assert answer.status == 404
                error = (await answer.json())["error"]
                assert error["code"] == "model_not_found"
                assert option in error["message"]

    asyncio.run(main())


def test_a_server_without_a_model_that_talks() -> None:
    """It ends soon, whatever it is doing."""
    options = ("--model", "none", "--stt", "nano-stt", "--tts", "nano-tts", "--token", "secret")
    served = Server(*options)

    async def work(client: aiohttp.ClientSession) -> None:
        async with client.get("/health") as answer:
            assert (await answer.json())["models"] == ["nano-stt", "nano-tts"]
        async with client.post(TRANSCRIPTIONS) as answer:
            assert answer.status == 401
        key = {"kyutai-api-key": "secret"}
        async with (
            client.ws_connect("/api/asr-streaming", headers=key) as socket,
            client.post(SPEECH, json={"input": LONG}, headers=key) as answer,
        ):
            assert (await unpacked(socket))["type"] == "Ready"
            assert answer.status == 200
            code, seconds = await asyncio.to_thread(served.stop, signal.SIGTERM)
            assert code == 0
            assert seconds < 4

    talk(served, work)
    assert any(line.startswith("nano-stt with nano-tts is ready") for line in served.lines)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "none"], "give --stt or --tts"),
        (
            ["--model", "none", "--stt", "nano-stt", "--captions", "nano-stt"],
            "--captions goes with",
        ),
        (["--wyoming", "10300"], "--wyoming goes with --stt or --tts"),
        (["--stt", "nano-stt", "--wyoming", "here"], "give PORT or ADDRESS:PORT"),
        (["--tts-voice", "alba"], "--tts-voice goes with --tts"),
        (["--stt", "nano"], "not transcribe; nano-stt"),
        (["--captions", "nano-tts"], "not transcribe; nano-stt"),
        (["--model", "none", "--tts", "nano-tts", "--tts-voice", "alba"], "alba"),
    ],
)
def test_options_that_make_no_sense(arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(app, ["serve", *arguments], env={"COLUMNS": "300"})
    assert done.exit_code != 0
    told = done.output + str(done.exception)
    assert message in told


def test_the_openai_package(server: Server, tmp_path: Path) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="any")
    path = tmp_path / "speech.mp3"
    with client.audio.speech.with_streaming_response.create(
        model="tts-1", voice="default", input=TEXT
    ) as answer:
        answer.stream_to_file(path)
    with path.open("rb") as sound:
        assert client.audio.transcriptions.create(model="whisper-1", file=sound).text == TEXT
