"""The server, run as users run it, with real sockets and the bundled model."""

import asyncio
import base64
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import numpy as np
import pytest
import sphn

import moshi_mlx
from benchmarks.processes import resident_bytes
from moshi_local.server.talk import CROWDED_PACE, Talk
from moshi_mlx.sounds import open_sound
from tests.fixtures import make_hibiki

ROOT = Path(__file__).parents[2]
QUESTION = ROOT / "moshi_mlx" / "bundled" / "nano" / "question.wav"
ANSWER = "Hello! How can I help you?"
RATE, FRAME = 24_000, 1920


class Server:
    """`moshi-local serve` on a free port."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "moshi_local", "serve", "--port", "0", "--seed", "0"]
        self.process = subprocess.Popen(
            [*command, *arguments], cwd=ROOT, stderr=subprocess.PIPE, text=True
        )
        self.lines: list[str] = []
        self._ready = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()
        assert self._ready.wait(60), self.lines
        self.url = next(m[0] for line in self.lines if (m := re.search(r"https?://\S+", line)))

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip())
            if "is ready" in line:
                self._ready.set()
        self._ready.set()

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, float]:
        """Its exit code, and the seconds that it took."""
        began = time.monotonic()
        self.process.send_signal(number)
        return self.process.wait(20), time.monotonic() - began


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    served = Server()
    yield served
    served.stop()


def question(after: float = 3.5) -> list[np.ndarray]:
    """Frames of a spoken question, and silence for the answer."""
    pcm = open_sound(QUESTION).read(RATE).mean(axis=0)[: 3 * RATE // 2]
    pcm = np.pad(pcm, (0, round(after * RATE)))
    pcm = np.pad(pcm, (0, -len(pcm) % FRAME))
    return list(pcm.reshape(-1, FRAME).astype(np.float32))


def as_text(pcm: np.ndarray) -> str:
    """Base64 of 16-bit samples."""
    return base64.b64encode((pcm * 32767).astype("<i2").tobytes()).decode()


async def ask_live(socket: aiohttp.ClientWebSocketResponse, frames: list[np.ndarray]) -> None:
    """Starts a session of GPT-Live and sends it all of a question at once."""
    await socket.send_json({"type": "session.start", "session": {}})
    for frame in frames:
        audio = as_text(frame)
        await socket.send_json({"type": "session.input_audio.append", "audio": audio})


async def answer_live(socket: aiohttp.ClientWebSocketResponse) -> str:
    """What the model says to a question, to its end, while nothing more is sent."""
    await ask_live(socket, question(after=0.3))
    said = ""
    async for event in events(socket):
        if event["type"] == "session.output_transcript.delta":
            said += event["delta"]
            if said.endswith("?"):
                return said
    raise AssertionError(said)


def talk(server: Server, work: Callable[[aiohttp.ClientSession], Awaitable[Any]]) -> Any:
    """Runs `work` with a client of the server."""

    async def main() -> Any:
        async with aiohttp.ClientSession(server.url) as client:
            return await asyncio.wait_for(work(client), 60)

    return asyncio.run(main())


async def events(socket: aiohttp.ClientWebSocketResponse) -> AsyncIterator[dict[str, Any]]:
    async for message in socket:
        yield json.loads(message.data)


async def until(socket: aiohttp.ClientWebSocketResponse, kind: str) -> dict[str, Any]:
    async for event in events(socket):
        if event["type"] == kind:
            return event
    raise AssertionError(f"no {kind}, closed with {socket.close_code}")


# ------------------------------------------------------------------------- beside others


class _Quick:
    """Steps that take no time."""

    controls: Any = None

    async def step_async(self, pcm: np.ndarray) -> tuple[None, tuple[()]]:
        return None, ()

    def close(self, timeout: float | None = None) -> tuple[()]:
        return ()


def test_beside_others_a_conversation_goes_little_faster_than_real_time() -> None:
    async def seconds(crowded: list[bool]) -> list[float]:
        now = [False]
        talk = Talk(RATE, FRAME, fills=False, most_seconds=60, crowded=lambda: now[0])
        talk.hear(np.zeros(len(crowded) * FRAME, np.float32))
        talk.end()
        began, times = time.monotonic(), []
        async for _ in talk.frames(_Quick()):
            times.append(time.monotonic() - began)
            now[0] = crowded[len(times) - 1]
        return times

    alone, crowd = 100, 20
    times = asyncio.run(seconds([False] * alone + [True] * crowd))
    assert times[alone - 1] < 0.3
    paced = times[-1] - times[alone + 1]
    assert paced == pytest.approx((crowd - 2) * 0.08 / CROWDED_PACE, rel=0.2)


# ------------------------------------------------------------------------------ /api/chat


async def kyutai(client: aiohttp.ClientSession, query: str = "") -> tuple[str, float, float]:
    """What Kyutai's protocol brings back: text, seconds of sound, its loudest sample."""
    text, pieces = b"", [np.zeros(0, np.float32)]
    reader, writer = sphn.OpusStreamReader(RATE), sphn.OpusStreamWriter(RATE)
    frames = question()
    async with client.ws_connect(f"/api/chat{query}") as socket:
        metadata = await socket.receive_bytes()
        assert metadata[0] == 4
        assert json.loads(metadata[1:])["lm_model_file"] == "nano"
        assert await socket.receive_bytes() == bytes(9)

        async def send() -> None:
            for frame in frames:
                page = writer.append_pcm(frame)
                for part in (page[:7], page[7:]):  # in pieces, as proxies cut them
                    await socket.send_bytes(b"\x01" + part)
                await asyncio.sleep(0.04)

        sending = asyncio.create_task(send())
        while (message := await socket.receive_bytes(timeout=20))[0] != 6:  # a ping: it is quiet
            if message[0] == 1:
                pieces.append(reader.append_bytes(message[1:]))
            elif message[0] == 2:
                text += message[1:]
        await sending
    pcm = np.concatenate(pieces)
    return text.decode(), len(pcm) / RATE, float(np.abs(pcm).max())


def test_a_question_over_kyutais_protocol(server: Server) -> None:
    """Twice: the second conversation is that of a fresh process."""
    first, seconds, loudest = talk(server, kyutai)
    assert first.strip() == ANSWER
    assert seconds == pytest.approx(len(question()) * FRAME / RATE, abs=0.2)
    assert loudest > 0.1
    again = talk(server, lambda client: kyutai(client, "?text_topk=99999999&unknown=1"))
    assert again[0] == first


def test_pages_of_an_earlier_stream_are_passed_over(server: Server) -> None:
    async def work(client: aiohttp.ClientSession) -> int:
        old, new = sphn.OpusStreamWriter(RATE), sphn.OpusStreamWriter(RATE)
        silence = np.zeros(FRAME, np.float32)
        old.append_pcm(silence)  # has the headers
        async with client.ws_connect("/api/chat") as socket:
            await socket.receive()
            await socket.receive()
            await socket.send_bytes(b"\x01" + old.append_pcm(silence))
            await socket.send_bytes(b"\x01" + new.append_pcm(silence) + new.append_pcm(silence))
            return (await socket.receive_bytes())[0]

    assert talk(server, work) == 1


@pytest.mark.parametrize(
    ("query", "sent", "message", "code"),
    [
        ("?text_topk=x", None, "text_topk must be a number", 1008),
        ("?audio_temperature=nan", None, "audio_temperature must be a number", 1008),
        ("", b"\x01garbage", "not Ogg-Opus", 1003),
        ("", b"\x01OggX" + bytes(100), "not Ogg-Opus", 1003),
    ],
)
def test_what_is_wrong_is_told_and_the_socket_closed(
    server: Server, query: str, sent: bytes | None, message: str, code: int
) -> None:
    async def work(client: aiohttp.ClientSession) -> None:
        async with client.ws_connect(f"/api/chat{query}") as socket:
            if sent is not None:
                await socket.receive()
                await socket.receive()
                await socket.send_bytes(sent)
            told = await socket.receive_bytes()
            assert told[0] == 5
            assert message in told[1:].decode()
            await socket.receive()
            assert socket.close_code == code

    talk(server, work)


def test_a_second_client_is_told_busy_at_once_and_has_the_place_when_it_is_free(
    server: Server,
) -> None:
    async def work(client: aiohttp.ClientSession) -> None:
        async with client.ws_connect("/api/chat") as first:
            await first.receive()
            began = time.monotonic()
            async with client.ws_connect("/api/chat") as second:
                assert (await second.receive_bytes()).startswith(b"\x05busy")
                await second.receive()
                assert second.close_code == 1013
            async with client.ws_connect("/v1/live/sessions") as second:
                await second.send_json({"type": "session.start", "session": {"model": "any"}})
                error = await until(second, "error")
                assert error["error"]["code"] == "session_limit_reached"
            assert time.monotonic() - began < 1
            async with client.get("/health") as health:
                assert (await health.json())["status"] == "busy"
        async with client.ws_connect("/api/chat") as third:
            assert (await third.receive_bytes())[0] == 4

    talk(server, work)


# --------------------------------------------------------------------- /v1/live/sessions


def test_the_example_of_a_client(server: Server, tmp_path: Path) -> None:
    example = ROOT / "examples" / "talk_over_a_socket.py"
    target = tmp_path / "answer.wav"
    done = subprocess.run(
        [sys.executable, example, QUESTION, target, server.url],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    words = " ".join(line.split(" s ")[1].strip() for line in done.stdout.splitlines())
    assert words.startswith(ANSWER)
    assert open_sound(target).seconds > open_sound(QUESTION).seconds


def test_a_question_over_gpt_live(server: Server) -> None:
    async def work(client: aiohttp.ClientSession) -> None:
        async with client.ws_connect("/v1/live/sessions") as socket:
            await socket.send_json({"type": "session.input_audio.append", "audio": ""})
            early = await until(socket, "error")
            assert early["error"]["code"] == "session_not_started"
            await socket.send_json({"type": "session.start", "session": {"model": "gpt-live-1"}})
            started = await until(socket, "session.started")
            assert started["session"]["model"] == "nano"
            for frame in question():
                await socket.send_json(
                    {"type": "session.input_audio.append", "audio": as_text(frame)}
                )
                await asyncio.sleep(0.04)
            await socket.send_json({"type": "session.close"})
            sound, words = [], []
            async for event in events(socket):
                if event["type"] == "session.output_audio.delta":
                    sound.append(base64.b64decode(event["delta"]))
                elif event["type"] == "session.output_transcript.delta":
                    words.append(event)
                elif event["type"] == "session.closed":
                    assert event["reason"] == "close_requested"
            assert socket.close_code == 1000
        assert "".join(word["delta"] for word in words) == f" {ANSWER}"
        assert all(word["start_ms"] < word["end_ms"] for word in words)
        assert len(sound) >= len(question())
        assert {len(frame) for frame in sound} == {2 * FRAME}
        silent = [not any(frame) for frame in sound]
        assert silent[:10] == [True] * 10
        assert 20 < silent.count(False) < 50

    talk(server, work)


def test_a_translation_is_served_as_a_conversation_is(tmp_path: Path) -> None:
    """With random weights: the words are those of a live translation in this process."""
    folder = make_hibiki.write(tmp_path / "hibiki")
    heard = [(frame * 32767).astype("<i2").astype(np.float32) / 32768 for frame in question(0)]
    model = moshi_mlx.load(folder, codec="mlx", verb="translate")
    with model.session(seed=0) as session:
        expected = " ".join(word.text for pcm in heard for word in session.step(pcm).words)
    assert expected

    async def work(client: aiohttp.ClientSession) -> str:
        async with client.get("/page/settings") as answer:
            about = await answer.json()
        assert about["translates"] and not about["persona"] and about["voices"] == []
        async with client.ws_connect("/v1/live/sessions") as socket:
            await ask_live(socket, question(0))
            await socket.send_json({"type": "session.close"})
            deltas = [
                event["delta"]
                async for event in events(socket)
                if event["type"] == "session.output_transcript.delta"
            ]
        return "".join(deltas).strip()

    served = Server("--model", str(folder), "--codec", "mlx")
    try:
        assert talk(served, work).startswith(expected)
    finally:
        served.stop()


def test_the_model_finishes_while_a_client_sends_nothing(server: Server) -> None:
    async def work(client: aiohttp.ClientSession) -> str:
        async with client.ws_connect("/v1/live/sessions") as socket:
            return await answer_live(socket)

    assert talk(server, work).strip() == ANSWER


@pytest.mark.parametrize(
    ("event", "code"),
    [
        ("no JSON", "invalid_json"),
        ("[1]", "invalid_json"),
        ('{"type": 1}', "invalid_json"),
        ('{"type": "session.start"}', "invalid_value"),
        ('{"type": "session.start", "session": {"audio": {"format": {"type": "x"}}}}', None),
        (
            '{"type": "session.start", "session": {"audio": {"format": {"type": "audio/pcm", '
            '"rate": 44100}}}}',
            "invalid_value",
        ),
    ],
)
def test_what_is_wrong_with_an_event_is_told_and_the_session_goes_on(
    server: Server, event: str, code: str | None
) -> None:
    async def work(client: aiohttp.ClientSession) -> None:
        async with client.ws_connect("/v1/live/sessions") as socket:
            await socket.send_str(event)
            error = await until(socket, "error")
            assert error["error"]["code"] == (code or "invalid_value")
            await socket.send_json({"type": "session.start", "session": {}})
            await until(socket, "session.started")

    talk(server, work)


# ------------------------------------------------------------------------ /v1/realtime


ONE_TURN = [
    "response.created",
    "response.output_item.added",
    "conversation.item.added",
    "response.content_part.added",
    "response.output_audio.done",
    "response.output_audio_transcript.done",
    "response.content_part.done",
    "response.output_item.done",
    "conversation.item.done",
    "response.done",
]


def test_a_question_over_realtime(server: Server) -> None:
    async def work(client: aiohttp.ClientSession) -> list[dict[str, Any]]:
        async with client.ws_connect("/v1/realtime?model=gpt-realtime") as socket:
            for frame in question():  # all at once, as a file
                audio = as_text(frame)
                await socket.send_json({"type": "input_audio_buffer.append", "audio": audio})
            found = []
            async for event in events(socket):
                found.append(event)
                if event["type"] == "response.done":
                    return found
            raise AssertionError(found)

    found = talk(server, work)
    assert found[0]["type"] == "session.created"
    kinds = [event["type"] for event in found]
    response = [k for k in kinds if k in ONE_TURN and kinds.index(k) >= kinds.index(ONE_TURN[0])]
    own = [k for k in response if not k.startswith("conversation.item")]
    assert own == [k for k in ONE_TURN if not k.startswith("conversation.item")]
    started, stopped = (
        next(e for e in found if e["type"] == f"input_audio_buffer.speech_{what}")
        for what in ("started", "stopped")
    )
    assert started["item_id"] == stopped["item_id"]
    assert 0 <= started["audio_start_ms"] < stopped["audio_end_ms"]
    done = found[-1]["response"]
    assert done["status"] == "completed"
    assert done["output"][0]["content"] == [{"type": "output_audio", "transcript": ANSWER}]
    deltas = [e["delta"] for e in found if e["type"] == "response.output_audio_transcript.delta"]
    assert "".join(deltas) == ANSWER
    usage = done["usage"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert len({event["event_id"] for event in found}) == len(found)


def test_an_interruption_cancels_the_models_turn(server: Server) -> None:
    async def work(client: aiohttp.ClientSession) -> list[dict[str, Any]]:
        async with client.ws_connect("/v1/realtime") as socket:
            for frame in [*question(1.2), *question(0.0), *question(0.5)]:
                audio = as_text(frame)
                await socket.send_json({"type": "input_audio_buffer.append", "audio": audio})
            found = []
            async for event in events(socket):
                found.append(event)
                if event["type"] == "response.done":
                    return found
            raise AssertionError(found)

    found = talk(server, work)
    done = found[-1]["response"]
    assert done["status"] == "cancelled"
    assert done["status_details"] == {"type": "cancelled", "reason": "turn_detected"}


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        ({"type": "input_audio_buffer.commit"}, "input_audio_buffer_commit_empty"),
        ({"type": "response.cancel"}, "response_cancel_not_active"),
        (
            {"type": "conversation.item.retrieve", "item_id": "none"},
            "item_retrieve_invalid_item_id",
        ),
        ({"type": "input_audio_buffer.append", "audio": "%%"}, "invalid_value"),
        ({"type": "session.update", "session": {"type": "transcription"}}, "invalid_value"),
        ({"type": "what.is.this"}, "unsupported"),
    ],
)
def test_realtime_errors_name_the_clients_event(
    server: Server, sent: dict[str, Any], code: str
) -> None:
    async def work(client: aiohttp.ClientSession) -> None:
        async with client.ws_connect("/v1/realtime") as socket:
            await socket.send_json({"event_id": "mine", **sent})
            error = (await until(socket, "error"))["error"]
            assert (error["code"], error["event_id"]) == (code, "mine")
            await socket.send_json({"type": "input_audio_buffer.clear"})
            await until(socket, "input_audio_buffer.cleared")

    talk(server, work)


def test_a_client_cannot_fill_the_servers_memory(server: Server) -> None:
    """An item that the client made comes back each time that it is asked for."""

    async def work(client: aiohttp.ClientSession) -> None:
        async with client.ws_connect("/v1/realtime") as socket:
            await until(socket, "session.created")
            item: dict[str, Any] = {"id": "a", "role": "assistant", "content": "x" * 2**20}
            await socket.send_json({"type": "conversation.item.create", "item": item})
            assert "at most" in (await until(socket, "error"))["error"]["message"]
            item["content"] = "x" * 2**17
            await socket.send_json({"type": "conversation.item.create", "item": item})
            cut = {"type": "conversation.item.truncate", "item_id": "a", "audio_end_ms": 0}
            await socket.send_json(cut)
            await until(socket, "conversation.item.truncated")
            for _ in range(100):
                await socket.send_json({"type": "conversation.item.retrieve", "item_id": "a"})
            await asyncio.sleep(0.5)
            before = resident_bytes(server.process.pid)
            for _ in range(100):
                await socket.send_json({"type": "conversation.item.retrieve", "item_id": "a"})
            await asyncio.sleep(0.5)
            assert resident_bytes(server.process.pid) < before + 20e6

    talk(server, work)


def test_a_session_is_updated_object_by_object(server: Server) -> None:
    async def work(client: aiohttp.ClientSession) -> dict[str, Any]:
        async with client.ws_connect("/v1/realtime") as socket:
            asked = {
                "type": "realtime",
                "id": "mine",
                "tools": [{"name": "none"}],
                "audio": {
                    "input": {"format": {"type": "audio/pcmu"}, "turn_detection": None},
                    "output": None,
                },
            }
            await socket.send_json({"type": "session.update", "session": asked})
            session: dict[str, Any] = (await until(socket, "session.updated"))["session"]
            return session

    session = talk(server, work)
    assert session["audio"]["input"]["format"] == {"type": "audio/pcmu", "rate": 8000}
    assert session["audio"]["input"]["turn_detection"] is None
    assert session["audio"]["output"]["format"] == {"type": "audio/pcm", "rate": 24_000}
    assert session["tools"] == [{"name": "none"}]
    assert session["id"].startswith("sess_")


# ------------------------------------------------------------------- who may, and what not


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/health", {}, 200),
        ("/v1/models", {}, 200),
        ("/nothing", {}, 404),
        ("/v1/realtime", {"Origin": "http://evil.example"}, 403),
        ("/v1/models", {"Origin": "null"}, 403),
        ("/v1/models", {"Host": "evil.example"}, 403),
        ("/health", {"Host": "evil.example", "Origin": "http://evil.example"}, 403),
        ("/health", {"Host": "127.0.0.1.evil.example"}, 403),
        ("/health", {"Host": "evil.example@127.0.0.1"}, 403),
        ("/health", {"Host": "localhost/../evil.example"}, 403),
        ("/api/chat", {}, 400),
    ],
)
def test_who_may_ask(server: Server, path: str, headers: dict[str, str], status: int) -> None:
    async def work(client: aiohttp.ClientSession) -> None:
        async with client.get(path, headers=headers) as answer:
            assert answer.status == status
            assert "Access-Control-Allow-Origin" not in answer.headers
            if status >= 400:
                error = (await answer.json())["error"]
                assert error["message"]
                assert "\n" not in error["message"]

    talk(server, work)


def test_a_thousand_broken_connections_cost_no_place_and_no_memory(server: Server) -> None:
    async def work(client: aiohttp.ClientSession) -> None:
        settled = 0.0
        for i in range(1000):
            if i == 200:
                settled = resident_bytes(server.process.pid)
            socket = await client.ws_connect("/api/chat" if i % 2 else "/v1/realtime")
            if i % 3:
                await socket.send_bytes(os.urandom(50))
            connection = socket.get_extra_info("transport")
            connection.abort() if connection is not None else await socket.close()
        for _ in range(100):
            async with client.get("/health") as health:
                if (await health.json())["status"] == "ready":
                    break
            await asyncio.sleep(0.05)
        else:
            raise AssertionError("a place is lost")
        assert resident_bytes(server.process.pid) < settled + 25e6  # a conversation takes more

    talk(server, work)


def test_a_token_origins_and_a_stop_in_mid_conversation() -> None:
    served = Server("--token", "secret", "--allow-origin", "http://my.page")
    with socket.create_connection(("127.0.0.1", urlsplit(served.url).port or 0)) as raw:
        raw.sendall(
            b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer \xff\r\n\r\n"
        )
        assert raw.recv(1000).startswith(b"HTTP/1.1 401 ")

    async def work(client: aiohttp.ClientSession) -> None:
        async with client.get("/v1/models") as answer:
            assert answer.status == 401
        for headers in (
            {"Authorization": "Bearer secret", "Origin": "http://my.page"},
            {"kyutai-api-key": "secret"},
            {"Sec-WebSocket-Protocol": "realtime, openai-insecure-api-key.secret"},
        ):
            async with client.get("/v1/models", headers=headers) as answer:
                assert answer.status == 200
        async with client.get("/v1/models?token=wrong") as answer:
            assert answer.status == 401
        protocols = ("realtime", "openai-insecure-api-key.secret")
        async with client.ws_connect("/v1/realtime", protocols=protocols) as socket:
            assert socket.protocol == "realtime"
            await until(socket, "session.created")
            served.process.send_signal(signal.SIGTERM)
            await until(socket, "error")
            await socket.receive()
            assert socket.close_code == 1001

    talk(served, work)
    code, seconds = served.stop()
    assert code == 0
    assert seconds < 3
    assert not [line for line in served.lines if "Traceback" in line]


def test_no_network_but_loopback_is_needed(tmp_path: Path) -> None:
    alone = ["unshare", "--net", "--map-root-user"]
    if subprocess.run([*alone, "true"], capture_output=True).returncode:
        pytest.skip("this system makes no network namespaces")
    files = [QUESTION, tmp_path / "answer.wav", tmp_path / "log"]
    done = subprocess.run(
        [*alone, "sh", "-c", _IN_A_NAMESPACE, "sh", sys.executable, *files],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "Hello!" in done.stdout


_IN_A_NAMESPACE = """
$1 -c 'import fcntl, socket, struct
fcntl.ioctl(socket.socket(), 0x8914, struct.pack("16sH22x", b"lo", 1))'  # SIOCSIFFLAGS, IFF_UP
$1 -m moshi_local serve --seed 0 2>"$4" & server=$!
until grep -q "is ready" "$4" || ! kill -0 $server; do sleep 0.2; done
$1 examples/talk_over_a_socket.py "$2" "$3"
kill $server
"""


def test_a_unix_socket_that_only_its_owner_can_open(tmp_path: Path) -> None:
    path = tmp_path / "moshi.sock"
    process = subprocess.Popen(
        [sys.executable, "-m", "moshi_local", "serve", "--unix", str(path)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    while "is ready" not in (line := process.stderr.readline()):
        assert line, "it ended"
    assert path.stat().st_mode & 0o777 == 0o600
    again = [sys.executable, "-m", "moshi_local", "serve", "--unix", str(path)]
    second = subprocess.run(again, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert second.returncode == 2
    assert "another server listens there" in second.stderr

    async def main() -> str:
        connector = aiohttp.UnixConnector(str(path))
        async with (
            aiohttp.ClientSession("http://localhost", connector=connector) as client,
            client.get("/health") as health,
        ):
            status: str = (await health.json())["status"]
            return status

    assert asyncio.run(main()) == "ready"
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0
    assert not path.exists()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--ssl", "nowhere"], "cert.pem and key.pem cannot be used"),
        (["--host", "192.0.2.1"], "cannot listen on 192.0.2.1 port"),
        (["--model", "nano-stt"], "can transcribe"),
        (["--model", "hibiki", "--persona", "You are Ada."], "takes no persona"),
        (["--sessions", "0"], "--sessions"),
        (["--unix", "/nowhere/at/all"], "cannot listen on /nowhere/at/all"),
    ],
)
def test_what_cannot_be_served_is_one_line(arguments: list[str], problem: str) -> None:
    command = [sys.executable, "-m", "moshi_local", "serve", "--port", "0", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert problem in last
    assert "Traceback" not in done.stderr
