"""The scripted model, by itself, in an engine and behind a server."""

import asyncio
import base64
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp.test_utils import TestClient, TestServer

from moshi_local.engine import Engine
from moshi_local.server.access import Access
from moshi_local.server.app import make_app
from moshi_local.server.room import Room
from moshi_mlx import ArgumentError, SessionError
from moshi_mlx.testing import FRAME_SIZE, scripted

SILENCE = np.zeros(FRAME_SIZE, np.float32)


def test_a_session_says_what_the_script_says() -> None:
    moshi = scripted({3: "Hello", 6: "there."})
    with moshi.session(seed=1) as session:
        frames = [session.step(SILENCE) for _ in range(12)]
        said = {frame.index: word.text for frame in frames for word in frame.words}
        assert said == {3: "Hello", 6: "there."}
        assert [frame.speaking for frame in frames] == [False] * 3 + [True] * 6 + [False] * 3
        assert frames[3].words[0].start == pytest.approx(0.24)
        assert not frames[0].user_speaking
        session.reset()
        assert session.step(SILENCE + 0.5).user_speaking
        held = [session.step(SILENCE, hold_text=True) for _ in range(5)]
        assert not any(frame.words for frame in held)
        assert [word.text for _ in range(3) for word in session.step(SILENCE).words] == ["there."]
        with pytest.raises(SessionError, match="1920 samples"):
            session.step(SILENCE[:-1])
    with pytest.raises(SessionError, match="closed"):
        session.step(SILENCE)


def test_its_own_sounds() -> None:
    sound = np.linspace(-0.5, 0.5, 3000)
    session = scripted({}, {1: sound, 2: sound[:100]}).session()
    heard = np.concatenate([session.step(SILENCE).pcm for _ in range(4)])
    expected = np.zeros(4 * FRAME_SIZE)
    expected[FRAME_SIZE : FRAME_SIZE + 3000] += sound
    expected[2 * FRAME_SIZE : 2 * FRAME_SIZE + 100] += sound[:100]
    np.testing.assert_allclose(heard, expected, atol=1e-6)
    with pytest.raises(ArgumentError, match="one dimension"):
        scripted({}, {0: np.zeros((2, 2))})
    with pytest.raises(ArgumentError, match="a frame of the script"):
        scripted({-1: "no"})


def test_the_example_of_the_documentation(capsys: pytest.CaptureFixture[str]) -> None:
    text = (Path(__file__).parents[2] / "docs" / "server.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(example, {})
    said = ["", "", "", " Hello", "", "", " there.", ""]
    assert capsys.readouterr().out.splitlines() == [f"{i}{word}" for i, word in enumerate(said)]


def test_two_conversations_of_an_engine() -> None:
    with (
        Engine(lambda: scripted({1: "One", 2: "two."})) as engine,
        engine.open() as first,
        engine.open() as second,
    ):
        for expected in ([], ["One"], ["two."], []):
            for conversation in (first, second):
                frame, _ = conversation.step(SILENCE)
                assert frame is not None
                assert [word.text for word in frame.words] == expected


def test_a_server_that_says_it() -> None:
    async def main(engine: Engine) -> list[dict[str, Any]]:
        moshi = engine.moshi
        room = Room(moshi.name, moshi.sample_rate, moshi.frame_size, lambda _: engine.open())
        async with TestClient(TestServer(make_app(room, Access()))) as client:
            async with client.ws_connect("/v1/live/sessions") as socket:
                await socket.send_json({"type": "session.start", "session": {}})
                audio = base64.b64encode(bytes(2 * 8 * FRAME_SIZE)).decode()
                await socket.send_json({"type": "session.input_audio.append", "audio": audio})
                await socket.send_json({"type": "session.close"})
                told = [message.json() async for message in socket]
            await room.close()
        return told

    with Engine(lambda: scripted({2: "Hello", 5: "there."})) as engine:
        told = asyncio.run(main(engine))
    words = [each for each in told if each["type"] == "session.output_transcript.delta"]
    assert [(word["delta"], word["start_ms"]) for word in words] == [
        (" Hello", 160),
        (" there.", 400),
    ]
    sound = [each for each in told if each["type"] == "session.output_audio.delta"]
    silent = [not any(base64.b64decode(each["delta"])) for each in sound]
    assert silent == [True, True, False, False, False, False, False, False]
