"""What the JSON protocols have in common: objects of a client, ids, sound as text, errors.

Knows no event of any protocol.
"""

from __future__ import annotations

import base64
import binascii
import json
import uuid
from collections.abc import Mapping
from typing import Any

from aiohttp import WSMessage, WSMsgType

from .formats import FormatName, SampleFormat

__all__ = [
    "EventError",
    "as_object",
    "audio_format",
    "event_of",
    "id_of_event",
    "new_id",
    "sound_of",
]

LONGEST_PERSONA = 8000
"""Characters of an instruction that are heeded."""
DISCLOSURE = "This is an AI voice, running on the machine of this server. It may be wrong."


class EventError(Exception):
    """An event of a client that cannot be served; the session goes on.

    code, param: as OpenAI's errors have them.
    """

    def __init__(self, message: str, code: str = "invalid_value", param: str | None = None) -> None:
        super().__init__(message)
        self.code, self.param = code, param


def event_of(message: WSMessage) -> Mapping[str, Any]:
    """The JSON object of a message; it has a type. Raises EventError."""
    if message.type is not WSMsgType.TEXT:
        raise EventError("messages are JSON text", "invalid_json")
    try:
        event = json.loads(message.data)
    except (ValueError, RecursionError):
        raise EventError("this is not JSON", "invalid_json") from None
    if not isinstance(event, dict) or not isinstance(event.get("type"), str):
        raise EventError("an event is an object with a type", "invalid_json", "type")
    return event


def id_of_event(event: Mapping[str, Any]) -> str | None:
    """What the client calls its event, to be told in an answer."""
    found = event.get("event_id")
    return found if isinstance(found, str) else None


def as_object(value: Any) -> Mapping[str, Any]:
    """A JSON object, empty where there is none."""
    return value if isinstance(value, Mapping) else {}


def new_id(what: str) -> str:
    """A fresh id: "event_" and 32 digits."""
    return f"{what}_{uuid.uuid4().hex}"


def sound_of(text: Any) -> bytes:
    """The bytes of a client's sound. Raises EventError."""
    try:
        return base64.b64decode(text, validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise EventError("audio must be base64", param="audio") from None


def audio_format(
    asked: Any, rates: Mapping[FormatName, tuple[int, ...]], param: str
) -> SampleFormat:
    """The format that a client asks for; without a word the usual one. Raises EventError.

    Args:
        asked: {"type", "rate"}, or None.
        rates: Hz of each type, the usual one last.
        param: where it stands, for the error.
    """
    if asked is None:
        return SampleFormat()
    kind = next((name for name in rates if name == as_object(asked).get("type")), None)
    if kind is None:
        raise EventError(f"the type is one of {', '.join(rates)}", param=f"{param}.type")
    rate = asked.get("rate") or rates[kind][-1]
    if rate not in rates[kind] or isinstance(rate, bool):
        known = " or ".join(map(str, rates[kind]))
        raise EventError(f"the rate of {kind} is {known}", param=f"{param}.rate")
    return SampleFormat(kind, rate)
