"""Clients of other projects, unchanged, against `moshi-local serve`: what each of them understood.

    python3 -m venv build/clients
    build/clients/bin/pip install openai openai-agents moshi==0.2.13 soundfile soxr
    build/clients/bin/pip install wyoming msgpack websockets
    python -m benchmarks.clients --python build/clients/bin/python

Each asks nano a spoken question, or lets nano-tts speak and nano-stt write that down, in its own
process with that Python; those that it lacks are told as missing. LiveKit's
(livekit-plugins-nvidia[personaplex], livekit-plugins-openai) and pipecat's (pipecat-ai[openai])
want other environments. The client of Kyutai's package wants a sound card; its two streams are
replaced by the question and by a counter.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import subprocess
import sys
import types
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
QUESTION = ROOT / "moshi_mlx" / "bundled" / "nano" / "question.wav"
SECONDS = 5.5
PACE = 0.06
_RATE, _FRAME = 24_000, 1920


def frames() -> Iterator[Any]:
    """A spoken question and silence, float32 [1920] each."""
    import numpy as np
    import soundfile
    import soxr

    pcm, rate = soundfile.read(QUESTION, dtype="float32", always_2d=True)
    pcm = soxr.resample(pcm.mean(axis=1), rate, _RATE)[: 3 * _RATE // 2]
    pcm = np.pad(pcm, (0, round(SECONDS * _RATE) // _FRAME * _FRAME - len(pcm)))
    yield from pcm.astype(np.float32).reshape(-1, _FRAME)


def pieces() -> Iterator[bytes]:
    """The same as 16-bit samples."""
    for frame in frames():
        yield (frame * 32767).astype("<i2").tobytes()


async def openai_live(url: str) -> dict[str, Any]:
    """The openai package, GPT-Live."""
    from openai import AsyncOpenAI

    client, text, sound = AsyncOpenAI(base_url=f"{url}/v1", api_key="any"), "", 0
    async with client.live.connect() as connection:
        await connection.session.start(session={"model": "gpt-live-1"})

        async def send() -> None:
            for piece in pieces():
                audio = base64.b64encode(piece).decode()
                await connection.session.input_audio.append(audio=audio)
                await asyncio.sleep(PACE)
            await connection.session.close()

        sending = asyncio.create_task(send())
        async for event in connection:
            sound += event.type == "session.output_audio.delta"
            text += event.delta if event.type == "session.output_transcript.delta" else ""
        await sending
    return {"text": text.strip(), "frames": sound}


async def openai_realtime(url: str) -> dict[str, Any]:
    """The openai package, Realtime."""
    from openai import AsyncOpenAI

    client, text, sound = AsyncOpenAI(base_url=f"{url}/v1", api_key="any"), "", 0
    async with client.realtime.connect(model="gpt-realtime") as connection:
        await connection.session.update(session={"type": "realtime"})

        async def send() -> None:
            for piece in pieces():
                audio = base64.b64encode(piece).decode()
                await connection.input_audio_buffer.append(audio=audio)
                await asyncio.sleep(PACE)

        sending = asyncio.create_task(send())
        async for event in connection:
            sound += event.type == "response.output_audio.delta"
            if event.type == "response.done":
                text = event.response.output[0].content[0].transcript
                break
        await sending
    return {"text": text, "frames": sound}


async def openai_agents(url: str) -> dict[str, Any]:
    """The openai-agents package, which checks every event by its types."""
    from agents.realtime import RealtimeAgent, RealtimeRunner

    runner = RealtimeRunner(starting_agent=RealtimeAgent(name="moshi", instructions=""))
    where = f"{url.replace('http', 'ws', 1)}/v1/realtime?model=any"
    session = await runner.run(model_config={"api_key": "any", "url": where})
    kinds: dict[str, int] = {}
    async with session:

        async def send() -> None:
            for piece in pieces():
                await session.send_audio(piece)
                await asyncio.sleep(PACE)
            await asyncio.sleep(1)
            await session.close()

        sending = asyncio.create_task(send())
        async for event in session:
            kinds[event.type] = kinds.get(event.type, 0) + 1
            if event.type == "history_updated":
                history = event.history
        await sending
    said = [item.content[0].transcript for item in history if item.role == "assistant"]
    return {"text": said[0], "frames": kinds.get("audio", 0)}


async def kyutai(url: str) -> dict[str, Any]:
    """`moshi.client` of Kyutai's package, without a sound card."""
    streams: dict[str, Any] = {}

    class Stream:
        """A sound card's, which is given or asked for blocks by hand."""

        def __init__(self, callback: Callable[..., None], **_: Any) -> None:
            self.callback = callback
            streams[type(self).__name__] = self

        def __enter__(self) -> Stream:
            return self

        def __exit__(self, *_: object) -> None:
            pass

    module: Any = types.ModuleType("sounddevice")
    module.InputStream, module.OutputStream = type("In", (Stream,), {}), type("Out", (Stream,), {})
    sys.modules["sounddevice"] = module
    import aiohttp
    import numpy as np
    from moshi.client import Connection
    from moshi.client_utils import RawPrinter

    said, log, sounding = io.StringIO(), io.StringIO(), 0
    where = f"{url.replace('http', 'ws', 1)}/api/chat"
    async with aiohttp.ClientSession() as client, client.ws_connect(where) as socket:
        loop = asyncio.get_running_loop()
        running = asyncio.create_task(Connection(RawPrinter(said, log), socket, loop).run())
        while len(streams) < 2:
            await asyncio.sleep(0.01)
        for frame in frames():
            streams["In"].callback(frame[:, None], _FRAME, None, None)
            block = np.zeros((_FRAME, 1), np.float32)
            streams["Out"].callback(block, _FRAME, None, None)
            sounding += bool(np.abs(block).max() > 0.01)
            await asyncio.sleep(PACE)
        await socket.close()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    return {"text": said.getvalue().strip(), "frames": sounding}


async def livekit_personaplex(url: str) -> dict[str, Any]:
    """LiveKit's plugin for PersonaPlex."""
    import aiohttp
    from livekit import rtc
    from livekit.plugins.nvidia.experimental import realtime

    words: list[str] = []
    sound = 0
    reading: set[asyncio.Task[None]] = set()

    async def read_text(message: Any) -> None:
        words.extend([piece async for piece in message.text_stream])

    async def read_sound(message: Any) -> None:
        nonlocal sound
        async for _ in message.audio_stream:
            sound += 1

    async def read(generation: Any) -> None:
        async for message in generation.message_stream:
            await asyncio.gather(read_text(message), read_sound(message))

    async with aiohttp.ClientSession() as http:
        session = realtime.RealtimeModel(base_url=url, http_session=http).session()
        session.on("generation_created", lambda g: reading.add(asyncio.create_task(read(g))))
        for piece in pieces():
            session.push_audio(rtc.AudioFrame(piece, _RATE, 1, _FRAME))
            await asyncio.sleep(PACE)
        await asyncio.sleep(1)
        await session.aclose()
    return {"text": "".join(words).strip(), "frames": sound}


async def livekit_live(url: str) -> dict[str, Any]:
    """LiveKit's GPT-Live; an agent's session begins it as here."""
    import aiohttp
    from livekit import rtc
    from livekit.plugins.openai.realtime import GPTLiveModel

    words: list[str] = []
    sound = 0
    async with aiohttp.ClientSession() as http:
        session = GPTLiveModel(api_key="any", base_url=f"{url}/v1", http_session=http).session()
        session.on("transcript_delta", lambda delta: words.append(delta.text))

        async def read() -> None:
            nonlocal sound
            async for _ in session.audio_stream:
                sound += 1

        await session._update_session(instructions="", tools=[])
        reading = asyncio.create_task(read())
        for piece in pieces():
            session.push_audio(rtc.AudioFrame(piece, _RATE, 1, _FRAME))
            await asyncio.sleep(PACE)
        await session.aclose()
        reading.cancel()
    return {"text": "".join(words).strip(), "frames": sound}


async def pipecat(url: str, live: bool) -> dict[str, Any]:
    """A pipeline of pipecat with one of its services for OpenAI."""
    from pipecat.frames.frames import (
        EndFrame,
        InputAudioRawFrame,
        LLMContextFrame,
        OutputAudioRawFrame,
        TTSTextFrame,
    )
    from pipecat.pipeline.pipeline import Pipeline
    from pipecat.pipeline.worker import PipelineParams, PipelineWorker
    from pipecat.processors.aggregators.llm_context import LLMContext
    from pipecat.processors.frame_processor import FrameProcessor
    from pipecat.services.openai.live.llm import OpenAILiveLLMService
    from pipecat.services.openai.realtime.llm import OpenAIRealtimeLLMService
    from pipecat.workers.runner import WorkerRunner

    words: list[str] = []
    sound = 0

    class Sink(FrameProcessor):
        async def process_frame(self, frame: Any, direction: Any) -> None:
            nonlocal sound
            await super().process_frame(frame, direction)
            sound += isinstance(frame, OutputAudioRawFrame)
            words.extend([frame.text] if isinstance(frame, TTSTextFrame) else [])
            await self.push_frame(frame, direction)

    where = url.replace("http", "ws", 1)
    if live:
        service = OpenAILiveLLMService(api_key="any", base_url=f"{where}/v1/live/sessions")
    else:
        service = OpenAIRealtimeLLMService(api_key="any", base_url=f"{where}/v1/realtime")
    params = PipelineParams(audio_in_sample_rate=_RATE, audio_out_sample_rate=_RATE)
    worker = PipelineWorker(Pipeline([service, Sink()]), params=params)

    async def send() -> None:
        await asyncio.sleep(0.5)
        if live:
            await worker.queue_frame(LLMContextFrame(context=LLMContext()))
        for piece in pieces():
            await worker.queue_frame(
                InputAudioRawFrame(audio=piece, sample_rate=_RATE, num_channels=1)
            )
            await asyncio.sleep(PACE)
        await asyncio.sleep(1)
        await worker.queue_frame(EndFrame())

    sending = asyncio.create_task(send())
    runner = WorkerRunner()
    await runner.add_workers(worker)
    await runner.run()
    await sending
    return {"text": " ".join(word.strip() for word in words), "frames": sound}


_SAID = "what is your name"
_OPTIONS = ("--stt", "nano-stt", "--tts", "nano-tts", "--captions", "nano-stt")


async def openai_audio(url: str) -> dict[str, Any]:
    """The openai package: a text is spoken, and what is heard of it."""
    from openai import AsyncOpenAI

    client = AsyncOpenAI(base_url=f"{url}/v1", api_key="any")
    sound = b""
    async with client.audio.speech.with_streaming_response.create(
        model="tts-1", voice="default", input=_SAID, response_format="wav"
    ) as answer:
        async for piece in answer.iter_bytes():
            sound += piece
    file = ("speech.wav", sound)
    whole = await client.audio.transcriptions.create(
        model="whisper-1", file=file, response_format="verbose_json"
    )
    streamed, deltas = (
        await client.audio.transcriptions.create(model="whisper-1", file=file, stream=True),
        "",
    )
    async for event in streamed:
        deltas += event.delta if event.type == "transcript.text.delta" else ""
    if deltas != whole.text:
        raise RuntimeError(f"{deltas!r} was streamed, and the whole is {whole.text!r}")
    return {"text": whole.text, "frames": len(sound) // (2 * _FRAME)}


async def wyoming(url: str) -> dict[str, Any]:
    """The wyoming package, as Home Assistant uses it: both ways."""
    from wyoming.asr import Transcribe, Transcript
    from wyoming.audio import AudioChunk, AudioStart, AudioStop
    from wyoming.client import AsyncTcpClient
    from wyoming.tts import Synthesize

    sound: list[AudioChunk] = []
    async with AsyncTcpClient("127.0.0.1", int(url.rpartition(":")[2])) as client:
        await client.write_event(Synthesize(_SAID).event())
        while (event := await client.read_event()) and not AudioStop.is_type(event.type):
            if AudioChunk.is_type(event.type):
                sound.append(AudioChunk.from_event(event))
        await client.write_event(Transcribe(language="en").event())
        await client.write_event(AudioStart(_RATE, 2, 1).event())
        for chunk in sound:
            await client.write_event(chunk.event())
        await client.write_event(AudioStop().event())
        while (event := await client.read_event()) and not Transcript.is_type(event.type):
            pass
    assert event is not None, "the connection was closed"
    return {"text": Transcript.from_event(event).text, "frames": len(sound)}


async def moshi_server(url: str) -> dict[str, Any]:
    """A text over moshi-server's socket, and its sound over the other one.

    By the packages of Kyutai's own scripts, and in their order of messages.
    """
    import msgpack
    import websockets

    where, key = url.replace("http", "ws", 1), {"kyutai-api-key": "public_token"}
    sound: list[list[float]] = []
    words = ""
    address = f"{where}/api/tts_streaming?format=PcmMessagePack"
    async with websockets.connect(address, additional_headers=key) as socket:
        for word in _SAID.split():
            await socket.send(msgpack.packb({"type": "Text", "text": word}))
        await socket.send(msgpack.packb({"type": "Eos"}))
        async for message in socket:
            told = msgpack.unpackb(message)
            if told["type"] == "Audio":
                sound.append(told["pcm"])
    address = f"{where}/api/asr-streaming"
    async with websockets.connect(address, additional_headers=key) as socket:

        async def send() -> None:
            silence = [[0.0] * _FRAME]
            for pcm in [*silence * 12, *sound, *silence * 6]:
                packed = msgpack.packb({"type": "Audio", "pcm": pcm}, use_single_float=True)
                await socket.send(packed)
            await socket.send(msgpack.packb({"type": "Marker", "id": 0}))
            for pcm in silence * 40:
                await socket.send(msgpack.packb({"type": "Audio", "pcm": pcm}))

        sending = asyncio.create_task(send())
        async for message in socket:
            told = msgpack.unpackb(message)
            if told["type"] == "Word":
                words += f" {told['text']}"
            elif told["type"] == "Marker":
                break
        await sending
    return {"text": words.strip(), "frames": len(sound)}


CLIENTS: dict[str, Callable[[str], Awaitable[dict[str, Any]]]] = {
    "openai-live": openai_live,
    "openai-realtime": openai_realtime,
    "openai-agents": openai_agents,
    "openai-audio": openai_audio,
    "wyoming": wyoming,
    "moshi-server": moshi_server,
    "moshi-client": kyutai,
    "livekit-personaplex": livekit_personaplex,
    "livekit-live": livekit_live,
    "pipecat-realtime": partial(pipecat, live=False),
    "pipecat-live": partial(pipecat, live=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--python", help="of an environment that has clients")
    parser.add_argument("--client", choices=CLIENTS, help="run this one alone, here")
    parser.add_argument("--url", help="of a server, with --client")
    args = parser.parse_args()
    if args.client:
        print(json.dumps(asyncio.run(asyncio.wait_for(CLIENTS[args.client](args.url), 60))))
        return
    from benchmarks.processes import free_port, served  # not where a client runs alone

    with served(*_OPTIONS, "--wyoming", str(port := free_port())) as server:
        for name in CLIENTS:
            url = f"tcp://127.0.0.1:{port}" if name == "wyoming" else server.url
            done = subprocess.run(
                [args.python, __file__, "--client", name, "--url", url],
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                print(f"{name:20} {done.stderr.strip().splitlines()[-1]}")
                continue
            result = json.loads(done.stdout.strip().splitlines()[-1])
            print(f"{name:20} {result['frames']:3} frames  {result['text']}")


if __name__ == "__main__":
    main()
