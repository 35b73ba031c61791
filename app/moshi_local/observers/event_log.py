"""Events as JSON lines, for other programs: one object a line, `event` and `time` first.

Knows the events and JSON. Sound is left out.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np

from moshi_mlx import MoshiError
from moshi_mlx.closing import Closing

from ..events import Event, FrameDone, SilentFrame

__all__ = ["EventLog", "event_as_dict", "to_json"]

STDOUT = "-"


def to_json(value: object) -> Any:
    """`value` as what `json.dumps` takes.

    Floats are rounded to 4 decimals, and None where they are not finite; dataclasses become
    objects, without the fields that are arrays; anything unknown becomes its `str`.
    """
    match value:
        case None | bool() | str():
            return value
        case Enum():
            return value.name
        case int() | np.integer():
            return int(value)
        case float() | np.floating():
            number = float(value)
            return round(number, 4) if math.isfinite(number) else None
        case Mapping():
            return {str(key): to_json(item) for key, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [to_json(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
        return {name: to_json(item) for name, item in fields if not isinstance(item, np.ndarray)}
    return str(value)


def event_as_dict(event: Event) -> dict[str, Any]:
    """An event as a JSON object: its name as "event", then its fields; times in seconds.

    FrameDone has the frame's numbers beside its own, times of work in milliseconds, and not the
    words and events of the frame, which were told before it.
    """
    name = type(event).__name__
    if not isinstance(event, FrameDone):
        return {"event": name, **to_json(event)}
    frame, timing = event.frame, event.frame.timing
    pauses = {"pauses": to_json(frame.pauses)} if isinstance(frame, SilentFrame) else {}
    return {
        "event": name,
        "time": to_json(event.time),
        "index": frame.index,
        "text": frame.text,
        "partial": frame.partial,
        "speaking": frame.speaking,
        "user_speaking": frame.user_speaking,
        "took_ms": _milliseconds(event.took),
        "encode_ms": _milliseconds(timing.encode),
        "model_ms": _milliseconds(timing.model),
        "decode_ms": _milliseconds(timing.decode),
        "lag": to_json(event.lag),
        "delay": to_json(event.delay),
        "tokens": None if frame.tokens is None else [int(t) for t in frame.tokens],
        **pauses,
    }


def _milliseconds(seconds: float) -> float:
    return round(1000.0 * seconds, 3)


class EventLog(Closing):
    """A listener that writes each event as a line, at once. A context manager.

    Args:
        target: a file, which is replaced if it exists; "-" for stdout; or a descriptor.

    Writing may wait for a disk or a pipe, so let a `Dispatcher` deliver to it. When the reader of a
    pipe has gone, the journal says nothing more; any other trouble is an OSError.

    Raises:
        MoshiError: the file cannot be written.
    """

    def __init__(self, target: Path | str | int) -> None:
        try:
            # Not `sys.stdout`: a thread that waits in there would break the program's end.
            if str(target) == STDOUT:
                self._descriptor = os.dup(1)
            elif isinstance(target, int):
                self._descriptor = os.dup(target)
            else:
                flags = os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_CLOEXEC
                self._descriptor = os.open(target, flags, 0o600)
        except OSError as error:
            raise MoshiError(
                f"cannot write events to {target}: {error.strerror}. "
                "Give a file in a folder that exists and is yours, or - for stdout."
            ) from error

    def __call__(self, event: Event) -> None:
        """Write the line of `event`."""
        if self._descriptor < 0:
            return
        line = json.dumps(event_as_dict(event), ensure_ascii=False).encode() + b"\n"
        try:
            while line:
                line = line[os.write(self._descriptor, line) :]
        except BrokenPipeError:
            self.close()

    def close(self) -> None:
        """Nothing more is written; may be called again."""
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)
