"""OpenAI's GPT-Live protocol, `/v1/live/sessions`: JSON messages, sound both ways all the time.

It fits a model that listens while it speaks: no turns, nothing to cancel. Every frame is sent,
exact zeros while the model is silent, since clients find turns in the sound.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from aiohttp import WSMessage, web

from moshi_mlx import Event, Frame, Word, WordSpoken
from moshi_mlx.text import gap_between

from ..events import WordHeard
from .formats import FormatName, SampleDecoder, SampleEncoder
from .gate import Gate
from .messages import (
    DISCLOSURE,
    LONGEST_PERSONA,
    EventError,
    as_object,
    audio_format,
    event_of,
    id_of_event,
    new_id,
    sound_of,
)
from .room import Room, Wishes, converse
from .talk import Outbox, SocketSteps, TalkError

__all__ = ["serve_live"]

_MOST_UNHEARD_SECONDS = 2.0
_LARGEST_MESSAGE = 2**20
_RATES: dict[FormatName, tuple[int, ...]] = {
    "audio/pcm": (16_000, 24_000), "audio/pcmu": (8000,), "audio/pcma": (8000,),
}  # fmt: skip
_USAGE_SECONDS = 10.0
_DAY = 86_400
_TEXT_IN = ("session.instructions.append", "session.thinking.append", "session.commentary.append")
_MUTES = {"session.input_audio.mute": True, "session.input_audio.unmute": False}


class Live:
    """One socket."""

    def __init__(self, room: Room, outbox: Outbox) -> None:
        self.wanted: asyncio.Future[Wishes] = asyncio.get_running_loop().create_future()
        self.talk = room.talk(fills=True, most_seconds=_MOST_UNHEARD_SECONDS)
        self._room, self._outbox = room, outbox
        self._gate = Gate(room.sample_rate, room.frame_size)
        self._session: dict[str, Any] = {}
        self._decoder: SampleDecoder | None = None
        self._encoder: SampleEncoder | None = None
        self._steps: SocketSteps | None = None
        self._muted = False
        self._asked_to_close = False
        self._frames = self._told = 0
        self._dropped = 0
        # The last words; clients want a space before the first too.
        self._said = self._user_said = " "

    # ------------------------------------------------------------------- from the client

    def receive(self, message: WSMessage) -> None:
        """One event of the client. What is wrong with it is answered; the session goes on."""
        event_id: str | None = None
        try:
            event = event_of(message)
            event_id = id_of_event(event)
            self._take(event)
        except EventError as error:
            self._error("invalid_request_error", error.code, str(error), error.param, event_id)

    def _take(self, event: Mapping[str, Any]) -> None:
        kind = event["type"]
        if kind == "session.start":
            self._start(event.get("session"))
            return
        if not self._session:
            raise EventError("session.start comes first", "session_not_started")
        if kind == "session.input_audio.append":
            self._hear(event.get("audio"))
        elif kind in _MUTES:
            self._mute(_MUTES[kind])
        elif kind == "session.update":
            self._send({"type": "session.updated", "session": self._session})
        elif kind == "session.close":
            self._asked_to_close = True
            self.talk.end()
        elif kind in _TEXT_IN:
            raise EventError("this model takes no text while it talks", "unsupported")
        else:
            raise EventError(f"{kind[:60]} is not served here", "unsupported")

    def _start(self, asked: Any) -> None:
        if self._session:
            raise EventError("the session has been started already", "session_already_started")
        if not isinstance(asked, Mapping):
            raise EventError("session must be an object", param="session")
        audio = as_object(asked.get("audio"))
        format = audio_format(audio.get("format"), _RATES, "session.audio.format")
        voice = as_object(audio.get("output")).get("voice") if self._room.takes_persona else None
        persona = asked.get("instructions") if self._room.takes_persona else None
        if not isinstance(persona, str | None):
            raise EventError("instructions must be text", param="session.instructions")
        voice = voice if voice in self._room.voices else None  # that of another service
        self._decoder = SampleDecoder(format, self._room.sample_rate)
        self._encoder = SampleEncoder(format, self._room.sample_rate)
        persona = (persona or "").strip()[:LONGEST_PERSONA] or None
        self._session = {
            "id": new_id("sess"),
            "object": "live.session",
            "model": self._room.name,
            "status": "active",
            "expires_at": int(time.time() + 60 * (self._room.minutes or _DAY / 60)),
            "audio": {
                "format": {"type": format.type, "rate": format.rate},
                "output": {"voice": voice or "default"},
            },
            "instructions": persona or "",
            "delegation": None,
        }
        self.wanted.set_result(Wishes(persona=persona, voice=voice, captions=True))

    def _hear(self, audio: Any) -> None:
        assert self._decoder is not None
        self.talk.hear(self._decoder.decode(sound_of(audio)))
        if self.talk.dropped > self._dropped:
            seconds = (self.talk.dropped - self._dropped) / self.talk.sample_rate
            self._dropped = self.talk.dropped
            self._inform("input_dropped", f"{seconds:.2f} s of sound came too fast and were lost")

    def _mute(self, muted: bool) -> None:
        self._muted = muted
        if self._steps is not None:
            self._steps.controls.mute(muted)
        self._send({"type": f"session.input_audio.{'muted' if muted else 'unmuted'}"})

    # --------------------------------------------------------------------- to the client

    def begin(self, steps: SocketSteps) -> None:
        """The session has started; clients send sound from here on."""
        self._steps = steps
        steps.controls.mute(self._muted)
        self._send({"type": "session.started", "session": self._session})
        self._inform("ai_voice", DISCLOSURE)

    def say(self, frame: Frame | None, events: Sequence[Event]) -> None:
        """The frame's sound, and the words that it finished."""
        assert self._encoder is not None
        data = self._encoder.encode(self._gate(frame))
        delta = base64.b64encode(data).decode()
        sound = {"type": "session.output_audio.delta", "delta": delta}
        self._outbox.put(json.dumps(sound), self.talk.frame_seconds)
        for event in events:
            if isinstance(event, WordSpoken):
                self._tell_word("output", self._said, event.word)
                self._said = event.word.text
            elif isinstance(event, WordHeard):
                self._tell_word("input", self._user_said, event.word)
                self._user_said = event.word.text
        self._frames += 1
        if self._seconds - self._told >= _USAGE_SECONDS:
            self._told = int(self._seconds)
            self._send({"type": "session.usage.updated", "usage": {"seconds": self._told}})

    def _tell_word(self, side: str, before: str, word: Word) -> None:
        self._send(
            {
                "type": f"session.{side}_transcript.delta",
                "delta": gap_between(before, word.text) + word.text,
                "start_ms": round(1000 * word.start),
                "end_ms": round(1000 * word.end),
            }
        )

    def end(self, why: TalkError | None) -> None:
        """What went wrong, if anything, and that it is over."""
        if why is not None and why.code != "expired":
            kind = "server_error" if why.code == "server_error" else "invalid_request_error"
            self._error(kind, why.code, str(why), None, None)
        if self._steps is None:
            return
        reason = "close_requested" if self._asked_to_close else "connection_lost"
        if why is not None and why.code == "expired":
            reason = "expired"
        self._send(
            {
                "type": "session.closed",
                "reason": reason,
                "session": {**self._session, "status": "closed"},
                "usage": {"seconds": round(self._seconds, 2)},
            }
        )

    @property
    def _seconds(self) -> float:
        return self._frames * self.talk.frame_seconds

    def _inform(self, code: str, message: str) -> None:
        self._send({"type": "info", "code": code, "message": message})

    def _error(
        self, kind: str, code: str, message: str, param: str | None, event_id: str | None
    ) -> None:
        error = {"type": kind, "code": code, "message": message, "param": param}
        self._send({"type": "error", "error": {**error, "client_event_id": event_id}})

    def _send(self, event: Mapping[str, Any]) -> None:
        self._outbox.put(json.dumps({"event_id": new_id("event"), **event}))


async def serve_live(request: web.Request, room: Room) -> web.WebSocketResponse:
    """Answers a request for this protocol."""
    socket = web.WebSocketResponse(
        max_msg_size=_LARGEST_MESSAGE, heartbeat=20.0, compress=False, protocols=("realtime",)
    )
    await socket.prepare(request)
    outbox = Outbox()
    protocol = Live(room, outbox)
    await converse(socket, room, protocol, protocol.talk, outbox)
    return socket
