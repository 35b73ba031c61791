"""The errors that moshi_mlx raises on purpose. Knows nothing of the rest of the package.

Each message says what is wrong, where, and how to fix it; a program can show it unchanged.
"""

from collections.abc import Sequence
from typing import Any

__all__ = [
    "ArgumentError",
    "AudioDeviceError",
    "AudioFileError",
    "CheckpointError",
    "ConfigError",
    "HubError",
    "MoshiError",
    "SessionError",
    "TokenizerError",
    "VerbError",
    "counted",
    "listed",
    "shown",
]


class MoshiError(Exception):
    """The root: everything that can go wrong for a reason the user can act on."""


class ArgumentError(MoshiError, ValueError):
    """A function of the library was given an impossible value; names the argument and the value."""


class CheckpointError(MoshiError):
    """A weights file is broken, is of another model, or does not match its config."""


class ConfigError(CheckpointError):
    """A config.json has a field or a value that is not understood."""


class HubError(MoshiError):
    """A model name could not be turned into local files."""


class VerbError(MoshiError):
    """A model was asked for something that its family cannot do; the message says what it can."""


class TokenizerError(MoshiError):
    """A tokenizer file is missing or broken."""


class SessionError(MoshiError):
    """A session was used after it was closed, or given a frame of the wrong shape."""


class AudioFileError(MoshiError):
    """A sound file could not be read or written."""


class AudioDeviceError(MoshiError):
    """A sound device is missing, busy, or stopped."""


def shown(value: Any) -> str:
    """A value of a distrusted file for a message: one short printable line."""
    try:
        text = ascii(value).replace("\n", " ")
    except ValueError:  # an integer of more digits than Python writes
        return f"a {type(value).__name__} of thousands of digits"
    return text if len(text) <= 80 else f"{text[:77]}..."


def counted(number: int, noun: str) -> str:
    """A number of things for a message: "1 frame", "3 frames"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def listed(names: Sequence[str], most: int = 3) -> str:
    """Names of a distrusted file for a message: the first few."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(shown, names[:most])) + more
