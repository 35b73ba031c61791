"""`moshi-local serve` with clients that last, and with clients that misbehave, measured.

    python -m benchmarks.serving delay [--seconds 60]
    python -m benchmarks.serving hour [--minutes 60] [--pace 10]
    python -m benchmarks.serving neighbours [--seconds 30]

`delay`: from a frame sent to a frame back, by protocol, in real time. `hour`: one conversation,
faster than real time as far as the machine can; what its delay and the server's memory do.
`neighbours`: the delay of a conversation beside one that sends without end, one that never reads
and one that vanishes again and again. Exit code 1 if a frame came late or memory grew.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import itertools
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Protocol

import aiohttp
import numpy as np

from moshi_mlx.arrays import Pcm
from moshi_mlx.hub import bundled_folder
from moshi_mlx.sounds import open_sound

from .processes import Served, resident_bytes, served

RATE, FRAME = 24_000, 1920
FRAME_SECONDS = FRAME / RATE
_ROUND_SECONDS = 6.0  # a question and time for its answer
_IN_FLIGHT = 6  # frames that a client ahead of real time lets wait
_MEMORY_GROWTH = 0.02


def frames() -> Iterator[Pcm]:
    """nano's question and silence, again and again: float32 [1920] each."""
    pcm = open_sound(bundled_folder("nano") / "question.wav").read(RATE).mean(axis=0)
    pcm = pcm[: 3 * RATE // 2].astype(np.float32)
    whole = round(_ROUND_SECONDS / FRAME_SECONDS) * FRAME
    yield from itertools.cycle(np.pad(pcm, (0, whole - len(pcm))).reshape(-1, FRAME))


class Client(Protocol):
    """One conversation, a frame in for a frame out."""

    async def send(self, pcm: Pcm) -> None:
        """A frame."""

    async def receive(self) -> str | None:
        """Returns with the next frame, and the words that came before it; None: it is over."""


class LiveClient:
    """`/v1/live/sessions`."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self.lost = 0
        """Times that the server said that sound came too fast."""

    @classmethod
    @asynccontextmanager
    async def connect(cls, url: str) -> AsyncIterator[LiveClient]:
        """A session that has started."""
        async with (
            aiohttp.ClientSession(url) as http,
            http.ws_connect("/v1/live/sessions") as socket,
        ):
            client = cls(socket)
            await client.start()
            yield client

    async def start(self) -> None:
        """Asks for a session and waits for it."""
        await self._socket.send_json({"type": "session.start", "session": {"model": "any"}})
        async for message in self._socket:
            event = json.loads(message.data)
            if event["type"] == "session.started":
                return
            if event["type"] == "error":
                raise RuntimeError(event["error"]["message"])

    async def send(self, pcm: Pcm) -> None:
        audio = base64.b64encode((pcm * 32767).astype("<i2").tobytes()).decode()
        await self._socket.send_json({"type": "session.input_audio.append", "audio": audio})

    async def receive(self) -> str | None:
        words = ""
        async for message in self._socket:
            event = json.loads(message.data)
            if event["type"] == "session.output_transcript.delta":
                words += event["delta"]
            elif event["type"] == "session.output_audio.delta":
                return words
            elif event.get("code") == "input_dropped":
                self.lost += 1
        return None


class KyutaiClient:
    """`/api/chat`."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        import sphn

        self._socket = socket
        self._writer = sphn.OpusStreamWriter(RATE)

    @classmethod
    @asynccontextmanager
    async def connect(cls, url: str) -> AsyncIterator[KyutaiClient]:
        """A conversation whose handshake is done."""
        async with aiohttp.ClientSession(url) as http, http.ws_connect("/api/chat") as socket:
            while (await socket.receive_bytes())[0] != 0:
                pass
            yield cls(socket)

    async def send(self, pcm: Pcm) -> None:
        await self._socket.send_bytes(b"\x01" + self._writer.append_pcm(pcm))

    async def receive(self) -> str | None:
        words = b""
        async for message in self._socket:
            kind, payload = message.data[0], message.data[1:]
            words += payload if kind == 2 else b""
            if kind == 1:
                return words.decode()
        return None


async def delays(client: Client, seconds: float) -> list[float]:
    """Sends in real time; seconds from each frame's sending to a frame that came after it.

    The k-th frame back is taken as the answer to the k-th frame. Those of the first second are
    left out.
    """
    count = round(seconds / FRAME_SECONDS)
    sent: list[float] = []

    async def send() -> None:
        due = time.perf_counter()
        for pcm in itertools.islice(frames(), count):
            sent.append(time.perf_counter())
            await client.send(pcm)
            due += FRAME_SECONDS
            await asyncio.sleep(due - time.perf_counter())

    sending = asyncio.create_task(send())
    found: list[float] = []
    while len(found) < count and await client.receive() is not None:
        found.append(time.perf_counter() - sent[min(len(found), len(sent) - 1)])
    await sending
    return found[round(1 / FRAME_SECONDS) :]


def told(name: str, found: list[float]) -> None:
    """Prints percentiles in milliseconds."""
    p50, p95, p99, most = 1000 * np.percentile(found, (50, 95, 99, 100))
    late = sum(delay > 2 * FRAME_SECONDS for delay in found)
    print(
        f"{name:28} {len(found):6} {p50:8.1f} {p95:8.1f} {p99:8.1f} {most:8.1f} {late:6}",
        flush=True,
    )


def heading() -> None:
    """Of what `told` prints."""
    columns = f"{'frames':>6} {'p50':>8} {'p95':>8} {'p99':>8} {'max':>8} {'late':>6}"
    print(f"{'ms, sent to answered':28} {columns}   (late: more than two frames)")


async def measure_delay(seconds: float) -> bool:
    """By protocol."""
    heading()
    with served() as server:
        async with LiveClient.connect(server.url) as live:
            told("/v1/live/sessions", await delays(live, seconds))
        async with KyutaiClient.connect(server.url) as kyutai:
            told("/api/chat, with Opus", await delays(kyutai, seconds))
    return True


async def measure_hour(minutes: float, pace: float) -> bool:
    """One conversation of many minutes, `pace` times as fast as real time at most."""
    total = round(60 * minutes / FRAME_SECONDS)
    with served() as server:
        async with LiveClient.connect(server.url) as client:
            began = time.perf_counter()
            back = 0
            answers = 0
            text = ""
            sent: dict[int, float] = {}
            delay: list[float] = []
            memory: list[float] = []
            room = asyncio.Semaphore(_IN_FLIGHT)

            async def send() -> None:
                for index, pcm in enumerate(itertools.islice(frames(), total)):
                    ahead = index * FRAME_SECONDS / pace - (time.perf_counter() - began)
                    if ahead > 0:
                        await asyncio.sleep(ahead)
                    await room.acquire()
                    sent[index] = time.perf_counter()
                    await client.send(pcm)

            sending = asyncio.create_task(send())
            print("  minute   ms at p50      p99   memory (MB)   answers   sound lost")
            while back < total and (words := await client.receive()) is not None:
                delay.append(time.perf_counter() - sent.pop(back, time.perf_counter()))
                room.release()
                back += 1
                text += words
                if back % (total // 12) == 0:
                    answers += text.count("How can I help you?")
                    text = ""
                    memory.append(resident_bytes(server.pid) / 1e6)
                    p50, p99 = 1000 * np.percentile(delay, (50, 99))
                    print(
                        f"{back * FRAME_SECONDS / 60:8.1f} {p50:11.1f} {p99:8.1f} "
                        f"{memory[-1]:13.1f} {answers:9} {client.lost:12}",
                        flush=True,
                    )
                    delay.clear()
            await sending
            seconds = time.perf_counter() - began
    growth = memory[-1] / memory[1] - 1
    print(f"{back} frames for {total}; {60 * minutes / seconds:.1f} times real time")
    print(f"memory grew by {100 * growth:.1f} % after the first two twelfths")
    return back == total and growth < _MEMORY_GROWTH


async def flood(server: Served) -> None:
    """Sends without waiting, and reads."""
    async with LiveClient.connect(server.url) as client:

        async def read() -> None:
            while await client.receive() is not None:
                pass

        reading = asyncio.create_task(read())
        try:
            for pcm in frames():
                await client.send(np.tile(pcm, 20))
        finally:
            reading.cancel()


async def never_read(server: Served) -> None:
    """Sends in real time, and never reads; is connects again when it is thrown out."""
    while True:
        with suppress(aiohttp.ClientError, ConnectionError, RuntimeError):
            async with LiveClient.connect(server.url) as client:
                for pcm in frames():
                    await client.send(pcm)
                    await asyncio.sleep(FRAME_SECONDS)


async def vanish(server: Served) -> None:
    """Begins a session, sends half a second, breaks off without a word; again and again."""
    while True:
        with suppress(aiohttp.ClientError, ConnectionError, RuntimeError):
            async with aiohttp.ClientSession(server.url) as http:
                socket = await http.ws_connect("/v1/live/sessions")
                client = LiveClient(socket)
                await client.start()
                for pcm in itertools.islice(frames(), 6):
                    await client.send(pcm)
                transport: Any = socket._response.connection
                transport.transport.abort()
        await asyncio.sleep(0.05)


async def measure_neighbours(seconds: float) -> bool:
    """Beside each kind, and beside all."""
    heading()
    late = 0
    with served("--sessions", "4") as server:
        kinds = {
            "alone": (),
            "beside a flood": (flood,),
            "beside one who never reads": (never_read,),
            "beside one who vanishes": (vanish,),
            "beside all three": (flood, never_read, vanish),
        }
        for name, neighbours in kinds.items():
            work = [asyncio.create_task(neighbour(server)) for neighbour in neighbours]
            await asyncio.sleep(0.5)
            async with LiveClient.connect(server.url) as client:
                found = await delays(client, seconds)
            for task in work:
                task.cancel()
            await asyncio.gather(*work, return_exceptions=True)
            told(name, found)
            late += sum(delay > 2 * FRAME_SECONDS for delay in found)
        memory = resident_bytes(server.pid) / 1e6
        async with aiohttp.ClientSession(server.url) as http:
            await asyncio.sleep(1)
            health = await (await http.get("/health")).json()
    print(f"{memory:.0f} MB resident; afterwards {health['sessions']} conversations")
    return late == 0 and health["sessions"] == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    verbs = parser.add_subparsers(dest="what", required=True)
    delay = verbs.add_parser("delay")
    delay.add_argument("--seconds", type=float, default=60)
    hour = verbs.add_parser("hour")
    hour.add_argument("--minutes", type=float, default=60)
    hour.add_argument("--pace", type=float, default=10)
    neighbours = verbs.add_parser("neighbours")
    neighbours.add_argument("--seconds", type=float, default=30)
    args = parser.parse_args()
    if args.what == "delay":
        good = asyncio.run(measure_delay(args.seconds))
    elif args.what == "hour":
        good = asyncio.run(measure_hour(args.minutes, args.pace))
    else:
        good = asyncio.run(measure_neighbours(args.seconds))
    raise SystemExit(0 if good else 1)


if __name__ == "__main__":
    main()
