"""OpenAI's Realtime protocol, `/v1/realtime`: JSON messages, turns.

The model has no turns; `turns` finds them. Only the events of OpenAI's own server are sent, since
some clients end at one that they do not know.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aiohttp import WSMessage, web

from moshi_mlx import Event, Frame, Word, WordSpoken
from moshi_mlx.text import gap_between

from ..events import WordHeard
from .formats import FormatName, SampleDecoder, SampleEncoder, SampleFormat
from .gate import Gate
from .messages import (
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
from .turns import TurnEdge, TurnFinder

__all__ = ["serve_realtime"]

_MOST_UNHEARD_SECONDS = 60.0
"""A client may send a whole file at once."""
_LARGEST_MESSAGE, _LARGEST_EVENT = 16 * 2**20, 256 * 2**10
_RATES: dict[FormatName, tuple[int, ...]] = {
    "audio/pcm": (24_000,), "audio/pcmu": (8000,), "audio/pcma": (8000,),
}  # fmt: skip
_PERSONA_SECONDS = 1.0
"""So long a client may take to tell a model that takes one who it is."""
_DETECTION: dict[str, Any] = {
    "type": "server_vad",
    "threshold": 0.5,
    "prefix_padding_ms": 300,
    "silence_duration_ms": 500,
    "create_response": True,
    "interrupt_response": True,
    "idle_timeout_ms": None,
}
_SILENCE_MS = 40, 10_000
_MOST_ITEMS = 1000
_LONGEST_UNPLACED = 1000
_EARLY_FRAMES = 4  # so long before a turn is found its first word may begin


@dataclass
class _Response:
    """The model's turn, and what of it has been sent."""

    id: str = field(default_factory=lambda: new_id("resp"))
    item: str = field(default_factory=lambda: new_id("item"))
    begun: bool = False  # its item has been sent
    transcript: str = ""
    frames: int = 0
    pieces: int = 0


@dataclass
class _UserWords:
    """What the user said in a turn, as it is written down; clients know it by its item."""

    item: str
    text: str = ""
    until: int | None = None  # no more is expected from this frame on; None: the turn goes on
    began: int = 0


class Realtime:
    """One socket."""

    def __init__(self, room: Room, outbox: Outbox) -> None:
        loop = asyncio.get_running_loop()
        self.wanted: asyncio.Future[Wishes] = loop.create_future()
        self.talk = room.talk(fills=True, most_seconds=_MOST_UNHEARD_SECONDS)
        self._room, self._outbox = room, outbox
        self._gate = Gate(room.sample_rate, room.frame_size)
        self._turns = TurnFinder(1 / self.talk.frame_seconds)
        self._session = _session(room)
        self._decoder = SampleDecoder(SampleFormat(), room.sample_rate)
        self._encoder = SampleEncoder(SampleFormat(), room.sample_rate)
        self._steps: SocketSteps | None = None
        self._early: list[tuple[str, float]] = []  # answers that come after session.created
        self._frames = self._heard = 0  # of the session, and of it since the last response
        self._items: dict[str, dict[str, Any]] = {}
        self._last_item: str | None = None
        self._previous: dict[str, str | None] = {}  # of items that are not done
        self._conversation = new_id("conv")
        self._user_item = ""
        self._uncommitted = False
        self._response: _Response | None = None
        self._words: list[_UserWords] = []  # of turns that words are still expected of
        self._unplaced = ""  # heard before a turn was found
        if room.takes_persona:
            loop.call_later(_PERSONA_SECONDS, self._want)
        else:
            self._want()

    def _want(self) -> None:
        if not self.wanted.done():
            self.wanted.set_result(
                Wishes(
                    persona=self._session["instructions"] or None,
                    voice=self._voice(),
                    captions=True,
                )
            )

    def _voice(self) -> str | None:
        voice = self._session["audio"]["output"]["voice"]
        return voice if voice in self._room.voices else None

    # ------------------------------------------------------------------- from the client

    def receive(self, message: WSMessage) -> None:
        """One event of the client. What is wrong with it is answered; the session goes on."""
        event_id: str | None = None
        try:
            event = event_of(message)
            event_id = id_of_event(event)
            if event["type"] != "input_audio_buffer.append" and len(message.data) > _LARGEST_EVENT:
                raise EventError(f"an event without sound has at most {_LARGEST_EVENT} characters")
            self._take(event["type"], event)
        except EventError as error:
            self._error("invalid_request_error", error.code, str(error), error.param, event_id)

    def _take(self, kind: str, event: Mapping[str, Any]) -> None:
        match kind:
            case "input_audio_buffer.append":
                self.talk.hear(self._decoder.decode(sound_of(event.get("audio"))))
                self._uncommitted = True
                self._want()
            case "session.update":
                self._update(as_object(event.get("session")))
            case "input_audio_buffer.commit":
                self._commit()
            case "input_audio_buffer.clear":
                self._uncommitted = False
                self._send("input_audio_buffer.cleared")
            case "response.create":
                self._create()
            case "response.cancel":
                self._cancel()
            case "conversation.item.create":
                self._add(self._own_item(as_object(event.get("item"))))
            case "conversation.item.delete" | "conversation.item.retrieve":
                self._known(kind.rpartition(".")[2], event.get("item_id"))
            case "conversation.item.truncate":
                self._truncate(event)
            case _:
                raise EventError(f"{kind[:60]} is not served here", "unsupported", "type")

    def _update(self, asked: Mapping[str, Any]) -> None:
        kind = asked.get("type", "realtime")
        if kind != "realtime":
            raise EventError("this server has sessions of type realtime", param="session.type")
        before, audio = self._session, as_object(asked.get("audio"))
        changed = {k: v for k, v in asked.items() if k not in _FIXED}
        merged = _merged(before, changed)
        merged["audio"] = {
            side: _merged(old, as_object(audio.get(side))) for side, old in before["audio"].items()
        }
        for name, side in merged["audio"].items():  # a format is one thing: never half of each
            side["format"] = as_object(audio.get(name)).get("format", side["format"])
        formats = {
            name: audio_format(side["format"], _RATES, f"session.audio.{name}.format")
            for name, side in merged["audio"].items()
        }
        for name, format in formats.items():
            merged["audio"][name]["format"] = {"type": format.type, "rate": format.rate}
        detection = merged["audio"]["input"].get("turn_detection")
        if isinstance(detection, Mapping):
            silence = detection.get("silence_duration_ms", _DETECTION["silence_duration_ms"])
            low, high = _SILENCE_MS
            if isinstance(silence, int | float) and low <= silence <= high:
                self._turns.silence_seconds = silence / 1000
        if not isinstance(merged.get("instructions"), str):
            merged["instructions"] = ""
        merged["instructions"] = merged["instructions"][:LONGEST_PERSONA]
        if formats["input"] != _format_of(before, "input"):
            self._decoder = SampleDecoder(formats["input"], self._room.sample_rate)
        if formats["output"] != _format_of(before, "output"):
            self._encoder = SampleEncoder(formats["output"], self._room.sample_rate)
        self._session = merged
        self._want()
        self._send("session.updated", session=self._session)

    def _commit(self) -> None:
        if not self._uncommitted:
            raise EventError("no sound has come since the last", "input_audio_buffer_commit_empty")
        self._committed(new_id("item"))

    def _committed(self, item_id: str) -> None:
        """The user's turn becomes an item."""
        self._uncommitted = False
        self._send(
            "input_audio_buffer.committed", item_id=item_id, previous_item_id=self._last_item
        )
        content = [{"type": "input_audio", "transcript": None}]
        self._add(_item(item_id, "user", content, "completed"))
        if self._room.captions_after is not None:
            if not self._words or self._words[-1].item != item_id:
                self._begin_words(item_id, self._frames)
            after = self._room.captions_after / self.talk.frame_seconds
            self._words[-1].until = self._frames + round(after)

    def _create(self) -> None:
        if self._response is not None:
            raise EventError(
                "the model has its turn already", "conversation_already_has_active_response"
            )
        self._turns.create(self._frames)
        self._response = _Response()
        self._send("response.created", response=self._described("in_progress"))

    def _cancel(self) -> None:
        if self._response is None:
            raise EventError("the model does not have its turn", "response_cancel_not_active")
        self._stop("client_cancelled")

    def _own_item(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """An item that a client has made; the model cannot read it."""
        if len(self._items) >= _MOST_ITEMS:
            raise EventError(f"a conversation has at most {_MOST_ITEMS} items", "too_many_items")
        given = asked.get("id")
        item_id = given if isinstance(given, str) and given else new_id("item")
        if item_id in self._items:
            raise EventError("there is an item of that id", param="item.id")
        return {**asked, "id": item_id, "object": "realtime.item", "status": "completed"}

    def _known(self, what: str, item_id: Any) -> None:
        item = self._items.get(item_id) if isinstance(item_id, str) else None
        if item is None:
            raise EventError(
                f"there is no item {str(item_id)[:60]}",
                f"item_{what}_invalid_item_id",
                "item_id",
            )
        if what == "retrieve":
            self._send("conversation.item.retrieved", item=item)
            return
        del self._items[item["id"]]
        if self._last_item == item["id"]:
            self._last_item = next(reversed(self._items), None)
        self._send("conversation.item.deleted", item_id=item["id"])

    def _truncate(self, event: Mapping[str, Any]) -> None:
        """The client has not played all of an item: what was not heard was not said."""
        item_id, end = event.get("item_id"), event.get("audio_end_ms")
        if not isinstance(end, int) or isinstance(end, bool) or end < 0:
            raise EventError("audio_end_ms must be a whole number", param="audio_end_ms")
        item = self._items.get(item_id) if isinstance(item_id, str) else None
        parts = item.get("content") if item is not None else None
        spoken = parts[0] if isinstance(parts, list) and parts else None
        if item is not None and item.get("role") == "assistant" and isinstance(spoken, dict):
            spoken["transcript"] = None
        self._send(
            "conversation.item.truncated",
            item_id=item_id,
            content_index=event.get("content_index", 0),
            audio_end_ms=end,
        )

    # --------------------------------------------------------------------- to the client

    def begin(self, steps: SocketSteps) -> None:
        """The session has been created."""
        self._steps = steps
        self._send("session.created", session=self._session)
        for event, seconds in self._early:
            self._outbox.put(event, seconds)

    def say(self, frame: Frame | None, events: Sequence[Event]) -> None:
        """A step: turns that begin, sound and words, turns that end."""
        self._write_down([each.word for each in events if isinstance(each, WordHeard)])
        words = [event.word.text for event in events if isinstance(event, WordSpoken)]
        turns = self._turns.step(self._frames, frame, bool(words))
        self._frames += 1
        self._heard += 1
        for turn in turns:
            match turn:
                case TurnEdge.USER_BEGINS:
                    self._user_begins()
                case TurnEdge.USER_ENDS:
                    self._user_ends()
                case TurnEdge.MODEL_BEGINS if self._response is None:
                    self._response = _Response()
                    self._send("response.created", response=self._described("in_progress"))
        pcm = self._gate(frame)
        response = self._response
        if response is not None and (response.begun or words or (frame and frame.speaking)):
            self._begin_item(response)
            delta = base64.b64encode(self._encoder.encode(pcm)).decode()
            self._part("response.output_audio.delta", self.talk.frame_seconds, delta=delta)
            response.frames += 1
            response.pieces += bool(frame is not None and frame.text)
            for word in words:
                delta = gap_between(response.transcript, word) + word
                response.transcript += delta
                self._part("response.output_audio_transcript.delta", delta=delta)
        if TurnEdge.MODEL_ENDS in turns:
            self._finish("completed")

    def end(self, why: TalkError | None) -> None:
        """What went wrong, if anything."""
        if why is not None:
            kind = "server_error" if why.code == "server_error" else "invalid_request_error"
            self._error(kind, why.code, str(why), None, None)

    def _user_begins(self) -> None:
        detection = self._session["audio"]["input"].get("turn_detection")
        if not isinstance(detection, Mapping):
            return
        self._user_item = new_id("item")
        began = round(1000 * self._turns.user_began * self.talk.frame_seconds)
        self._send(
            "input_audio_buffer.speech_started", audio_start_ms=began, item_id=self._user_item
        )
        if self._room.captions_after is not None:
            self._begin_words(self._user_item, self._turns.user_began)
        if self._response is not None and detection.get("interrupt_response", True):
            self._stop("turn_detected")

    def _user_ends(self) -> None:
        if not self._user_item:
            return
        item_id, self._user_item = self._user_item, ""
        ended = round(1000 * self._frames * self.talk.frame_seconds)
        self._send("input_audio_buffer.speech_stopped", audio_end_ms=ended, item_id=item_id)
        self._committed(item_id)

    def _begin_words(self, item_id: str, began: int) -> None:
        """A turn of the user's has begun, whose words will be told."""
        text, self._unplaced = self._unplaced, ""
        self._words.append(_UserWords(item_id, began=began))
        self._add_words(self._words[-1], text)

    def _write_down(self, words: Sequence[Word]) -> None:
        """What the user said, some time ago; and turns of which no more is expected."""
        for word in words:
            if not self._words:
                self._unplaced += gap_between(self._unplaced, word.text) + word.text
                self._unplaced = self._unplaced[-_LONGEST_UNPLACED:].lstrip()
                continue
            began = word.start / self.talk.frame_seconds + _EARLY_FRAMES
            fitting = [turn for turn in self._words if turn.began <= began]
            turn = fitting[-1] if fitting else self._words[0]
            gap = gap_between(turn.text, word.text) if turn.text else ""
            self._add_words(turn, gap + word.text)
        while self._words and (until := self._words[0].until) is not None and self._frames >= until:
            self._end_words(self._words.pop(0))

    def _add_words(self, turn: _UserWords, text: str) -> None:
        turn.text += text
        if text and self._transcribes:
            kind = "conversation.item.input_audio_transcription.delta"
            self._send(kind, item_id=turn.item, content_index=0, delta=text)

    def _end_words(self, turn: _UserWords) -> None:
        item = self._items.get(turn.item)
        if item is not None:
            item["content"][0]["transcript"] = turn.text
        if self._transcribes:
            seconds = (self._frames - turn.began) * self.talk.frame_seconds
            self._send(
                "conversation.item.input_audio_transcription.completed",
                item_id=turn.item,
                content_index=0,
                transcript=turn.text,
                usage={"type": "duration", "seconds": round(seconds, 2)},
            )

    @property
    def _transcribes(self) -> bool:
        """Whether the client has asked for the user's words."""
        return bool(self._session["audio"]["input"].get("transcription"))

    def _stop(self, reason: str) -> None:
        """The model loses its turn; it is hushed, and what it still says is not sent."""
        if self._steps is not None:
            self._steps.controls.hush()
        self._turns.shut()
        self._finish("cancelled", {"type": "cancelled", "reason": reason})

    def _begin_item(self, response: _Response) -> None:
        """What comes in front of the first sound."""
        if response.begun:
            return
        response.begun = True
        item = _item(response.item, "assistant", [], "in_progress")
        self._send("response.output_item.added", response_id=response.id, output_index=0, item=item)
        self._previous[response.item] = self._place(item, "conversation.item.added")
        self._part("response.content_part.added", part={"type": "audio", "transcript": ""})

    def _finish(self, status: str, details: dict[str, str] | None = None) -> None:
        """The model's turn is over."""
        response = self._response
        assert response is not None
        if response.begun:
            transcript = response.transcript
            self._part("response.output_audio.done")
            self._part("response.output_audio_transcript.done", transcript=transcript)
            part = {"type": "audio", "transcript": transcript}
            self._part("response.content_part.done", part=part)
            done = "completed" if status == "completed" else "incomplete"
            content = [{"type": "output_audio", "transcript": transcript}]
            item = _item(response.item, "assistant", content, done)
            previous = self._previous.pop(response.item, None)
            self._items[response.item] = item
            self._send(
                "response.output_item.done", response_id=response.id, output_index=0, item=item
            )
            self._send("conversation.item.done", item=item, previous_item_id=previous)
        self._send("response.done", response=self._described(status, details))
        self._response, self._heard = None, 0

    def _described(self, status: str, details: dict[str, str] | None = None) -> dict[str, Any]:
        """The open response, as OpenAI has it; tokens are frames and pieces of text, counted."""
        response = self._response
        assert response is not None
        usage = None
        if status != "in_progress":
            said, text = response.frames, response.pieces
            usage = {
                "total_tokens": self._heard + said + text,
                "input_tokens": self._heard,
                "output_tokens": said + text,
                "input_token_details": {
                    "audio_tokens": self._heard, "text_tokens": 0, "cached_tokens": 0,
                },
                "output_token_details": {"audio_tokens": said, "text_tokens": text},
            }  # fmt: skip
        item = self._items.get(response.item) if status != "in_progress" else None
        return {
            "id": response.id,
            "object": "realtime.response",
            "status": status,
            "status_details": details,
            "output": [] if item is None else [item],
            "output_modalities": ["audio"],
            "conversation_id": self._conversation,
            "audio": {"output": self._session["audio"]["output"]},
            "max_output_tokens": "inf",
            "metadata": None,
            "usage": usage,
        }

    def _add(self, item: dict[str, Any]) -> None:
        """A whole item enters the conversation."""
        previous = self._place(item, "conversation.item.added")
        self._send("conversation.item.done", item=item, previous_item_id=previous)

    def _place(self, item: dict[str, Any], event: str) -> str | None:
        previous, self._last_item = self._last_item, item["id"]
        self._items[item["id"]] = item
        while len(self._items) > _MOST_ITEMS:
            del self._items[next(iter(self._items))]
        self._send(event, item=item, previous_item_id=previous)
        return previous

    def _part(self, kind: str, seconds: float = 0.0, **fields: Any) -> None:
        """An event about the one part of the open response."""
        response = self._response
        assert response is not None
        about = {"response_id": response.id, "item_id": response.item}
        self._send(kind, seconds, **about, output_index=0, content_index=0, **fields)

    def _error(
        self, kind: str, code: str, message: str, param: str | None, event_id: str | None
    ) -> None:
        error = {"type": kind, "code": code, "message": message, "param": param}
        self._send("error", error={**error, "event_id": event_id})

    def _send(self, kind: str, seconds: float = 0.0, **fields: Any) -> None:
        event = json.dumps({"type": kind, "event_id": new_id("event"), **fields})
        if self._steps is None and kind != "error":
            self._early.append((event, seconds))
        else:
            self._outbox.put(event, seconds)


async def serve_realtime(request: web.Request, room: Room) -> web.WebSocketResponse:
    """Answers a request for this protocol."""
    socket = web.WebSocketResponse(
        max_msg_size=_LARGEST_MESSAGE, heartbeat=20.0, compress=False, protocols=("realtime",)
    )
    await socket.prepare(request)
    outbox = Outbox()
    protocol = Realtime(room, outbox)
    await converse(socket, room, protocol, protocol.talk, outbox)
    return socket


_FIXED = {"id", "object", "type", "model", "expires_at", "audio"}
"""Fields of a session that a client does not decide, or part by part."""


def _session(room: Room) -> dict[str, Any]:
    """A session as it begins."""
    pcm = {"type": "audio/pcm", "rate": 24_000}
    return {
        "type": "realtime",
        "object": "realtime.session",
        "id": new_id("sess"),
        "model": room.name,
        "output_modalities": ["audio"],
        "instructions": "",
        "tools": [],
        "tool_choice": "auto",
        "max_output_tokens": "inf",
        "tracing": None,
        "truncation": "auto",
        "prompt": None,
        "expires_at": 0,
        "audio": {
            "input": {
                "format": pcm,
                "transcription": None,
                "noise_reduction": None,
                "turn_detection": dict(_DETECTION),
            },
            "output": {"format": dict(pcm), "voice": "default", "speed": 1.0},
        },
        "include": None,
    }


def _format_of(session: Mapping[str, Any], side: str) -> SampleFormat:
    return SampleFormat(**session["audio"][side]["format"])


def _merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """`old` with what `new` says, object by object."""
    merged = dict(old)
    for name, value in new.items():
        both = isinstance(value, Mapping) and isinstance(old.get(name), Mapping)
        merged[name] = _merged(old[name], value) if both else value
    return merged


def _item(
    item_id: str, role: str, content: Sequence[Mapping[str, Any]], status: str
) -> dict[str, Any]:
    return {
        "id": item_id,
        "object": "realtime.item",
        "type": "message",
        "status": status,
        "role": role,
        "content": list(content),
    }
