"""Talks with a running server over GPT-Live's protocol: a recording in, words and sound out.

moshi-local serve                                          # in another terminal
python examples/talk_over_a_socket.py question.wav answer.wav
"""

import asyncio
import base64
import json
import os
import sys
from pathlib import Path

import aiohttp
import numpy as np
import soundfile

from moshi_mlx import MoshiError
from moshi_mlx.sounds import open_sound

URL = "http://127.0.0.1:8998"
TOKEN = os.environ.get("MOSHI_LOCAL_TOKEN")  # where the server wants one
HEADERS = {"Authorization": f"Bearer {TOKEN}"} if TOKEN else {}
RATE, FRAME = 24_000, 1920


async def main(source: str, target: str, url: str = URL) -> None:
    pcm = open_sound(Path(source)).read(RATE).mean(axis=0)
    pcm = np.pad(pcm, (0, 4 * RATE))  # time for the answer
    said: list[bytes] = []
    async with (
        aiohttp.ClientSession(headers=HEADERS) as client,
        client.ws_connect(f"{url}/v1/live/sessions") as socket,
    ):
        await socket.send_json({"type": "session.start", "session": {"model": "moshi"}})

        async def send() -> None:
            for i in range(0, len(pcm), FRAME):
                block = (pcm[i : i + FRAME] * 32767).astype("<i2").tobytes()
                audio = base64.b64encode(block).decode()
                await socket.send_json({"type": "session.input_audio.append", "audio": audio})
                await asyncio.sleep(FRAME / RATE)
            await socket.send_json({"type": "session.close"})

        sending = None
        async for message in socket:
            event = json.loads(message.data)
            if event["type"] == "session.started":
                sending = asyncio.create_task(send())
            elif event["type"] == "session.output_audio.delta":
                said.append(base64.b64decode(event["delta"]))
            elif event["type"] == "session.output_transcript.delta":
                print(f"{event['start_ms'] / 1000:6.2f} s {event['delta']}", flush=True)
            elif event["type"] == "error":
                print(event["error"]["message"], file=sys.stderr)
        if sending is not None:
            sending.cancel()  # where the server has closed first
    if not said:
        sys.exit(f"nothing was said: {target} is not written")
    soundfile.write(target, np.frombuffer(b"".join(said), "<i2"), RATE)


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    try:
        asyncio.run(main(*sys.argv[1:]))
    except (aiohttp.ClientError, MoshiError, OSError) as error:
        sys.exit(f"{sys.argv[0]}: {error}")
