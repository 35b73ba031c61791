"""Kyutai's protocol, `/api/chat`: binary messages, the first byte of which is their kind.

What moshi.client, Kyutai's and PersonaPlex's web pages and LiveKit's plugin speak. They send sound
without a pause, which is the model's clock: a frame in, a frame out.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Mapping, Sequence
from enum import IntEnum

import numpy as np
from aiohttp import WSCloseCode, WSMessage, WSMsgType, web

from moshi_mlx import Event, Frame, MoshiError, __version__

from .messages import LONGEST_PERSONA
from .opus import OpusReader, OpusWriter
from .room import Room, Wishes, converse
from .talk import Outbox, SocketSteps, TalkError

__all__ = ["serve_chat", "wishes_of"]

_MOST_UNHEARD_SECONDS = 2.0
_LARGEST_MESSAGE = 2**20
_HANDSHAKE = bytes(8)  # u32 version of the protocol and u32 of the model, both 0
_LARGEST_SEED = 2**32 - 1


class MessageKind(IntEnum):
    """The first byte of a message."""

    HANDSHAKE = 0
    AUDIO = 1
    TEXT = 2
    CONTROL = 3
    METADATA = 4
    ERROR = 5
    PING = 6


class Control(IntEnum):
    """The one byte of a control message."""

    START = 0
    END_TURN = 1
    PAUSE = 2
    RESTART = 3


_NUMBERS: dict[str, tuple[str, float, float]] = {
    "text_temperature": ("temperature_text", 0.0, 2.0),
    "text_topk": ("top_k_text", 0, 2**20),
    "audio_temperature": ("temperature", 0.0, 2.0),
    "audio_topk": ("top_k", 0, 2**20),
}
"""Query parameter → our option, and the range that it is brought into."""


def wishes_of(query: Mapping[str, str], room: Room) -> Wishes:
    """What the query asks for. Numbers are brought into their range; what we lack is passed over.

    Raises:
        TalkError: a number is none, or the model takes no voice of that name.
    """
    sampling: dict[str, float | int] = {}
    for name, (option, low, high) in _NUMBERS.items():
        if name in query:
            value = min(max(_number(name, query[name]), low), high)
            sampling[option] = int(value) if option.startswith("top_k") else value
    seeds = [query[name] for name in ("seed", "text_seed", "audio_seed") if name in query]
    seed = None
    if seeds and (given := _number("seed", seeds[0])) >= 0:  # −1 stands for none
        seed = int(min(given, _LARGEST_SEED))
    persona = voice = None
    if room.takes_persona:
        persona = _bare(query.get("text_prompt", ""))[:LONGEST_PERSONA] or None
        voice = query.get("voice_prompt", "").removesuffix(".pt") or None
        if voice is not None and voice not in room.voices:
            raise TalkError(f"there is no voice {voice[:60]}; there are {', '.join(room.voices)}")
    return Wishes(seed, persona, voice, sampling)


def _number(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise TalkError(f"{name} must be a number, is {text[:40]!r}")
    return value


def _bare(prompt: str) -> str:
    """A text prompt without the tags that PersonaPlex's page puts around it."""
    return prompt.strip().removeprefix("<system>").removesuffix("<system>").strip()


class Chat:
    """One socket."""

    def __init__(self, room: Room, query: Mapping[str, str], outbox: Outbox) -> None:
        self.wanted: asyncio.Future[Wishes] = asyncio.get_running_loop().create_future()
        self.talk = room.talk(fills=False, most_seconds=_MOST_UNHEARD_SECONDS)
        self._room, self._outbox = room, outbox
        self._reader = OpusReader(room.sample_rate)
        self._writer = OpusWriter(room.sample_rate)
        self._silence = np.zeros(room.frame_size, np.float32)
        self._steps: SocketSteps | None = None
        self.wanted.set_result(wishes_of(query, room))

    def begin(self, steps: SocketSteps) -> None:
        """Metadata, then the handshake, which says that the model listens."""
        self._steps = steps
        self._send(MessageKind.METADATA, json.dumps(_metadata(self._room)).encode())
        self._send(MessageKind.HANDSHAKE, _HANDSHAKE)

    def receive(self, message: WSMessage) -> None:
        """Sound and control; kinds that are not for us are passed over."""
        if message.type is not WSMsgType.BINARY or not message.data:
            return
        kind, payload = message.data[0], message.data[1:]
        if kind == MessageKind.AUDIO:
            try:
                pcm = self._reader.read(payload)
            except MoshiError as error:
                raise TalkError(str(error), close=WSCloseCode.UNSUPPORTED_DATA) from error
            if self._steps is not None or len(pcm):
                self.talk.hear(pcm)
        elif kind == MessageKind.CONTROL and len(payload) == 1 and self._steps is not None:
            controls = self._steps.controls
            if payload[0] == Control.RESTART:
                controls.ask_reset()
            elif payload[0] in (Control.PAUSE, Control.START):
                controls.mute(payload[0] == Control.PAUSE)

    def say(self, frame: Frame | None, events: Sequence[Event]) -> None:
        """A frame of sound, and a piece of text if there is one."""
        pcm = self._silence if frame is None else frame.pcm
        self._send(MessageKind.AUDIO, self._writer.write(pcm), self.talk.frame_seconds)
        if frame is not None and frame.text:
            self._send(MessageKind.TEXT, frame.text.encode())

    def end(self, why: TalkError | None) -> None:
        """The reason, since the close code reaches few users."""
        if why is not None:
            self._send(MessageKind.ERROR, str(why).encode())

    def _send(self, kind: MessageKind, payload: bytes, seconds: float = 0.0) -> None:
        self._outbox.put(bytes([kind]) + payload, seconds)


async def serve_chat(request: web.Request, room: Room) -> web.WebSocketResponse:
    """Answers a request for this protocol."""
    socket = web.WebSocketResponse(max_msg_size=_LARGEST_MESSAGE, heartbeat=20.0, compress=False)
    await socket.prepare(request)
    outbox = Outbox(ping=bytes([MessageKind.PING]))
    try:
        protocol = Chat(room, request.query, outbox)
    except TalkError as error:
        await socket.send_bytes(bytes([MessageKind.ERROR]) + str(error).encode())
        await socket.close(code=error.close, message=str(error).encode()[:120])
        return socket
    await converse(socket, room, protocol, protocol.talk, outbox)
    return socket


def _metadata(room: Room) -> dict[str, object]:
    """What Kyutai's page reads: all of its fields, and as strings what does not apply."""
    build = dict.fromkeys(
        (
            "build_timestamp", "build_date", "git_branch", "git_timestamp", "git_date",
            "git_hash", "git_describe", "rustc_host_triple", "rustc_version",
            "cargo_target_triple",
        ),
        "",
    )  # fmt: skip
    return {
        "text_temperature": 0.7,
        "text_topk": 25,
        "audio_temperature": 0.8,
        "audio_topk": 250,
        "pad_mult": 0.0,
        "repetition_penalty": 1.0,
        "repetition_penalty_context": 64,
        "lm_model_file": room.name,
        "instance_name": "moshi-local",
        "build_info": {**build, "git_describe": __version__},
    }
