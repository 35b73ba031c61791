"""Scripts as users write them: plain text, lines with speakers, JSON. Gives turns or a text.

Knows nothing of words, tokens or pauses; errors name the line.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from .errors import ArgumentError, shown
from .speech_script import SPEAKERS

_JSON_START = re.compile(r"\s*(\[\s*(\"|\{|\])|\{\s*\")")
_TURNS = ("turns", "script")


def turns_of(text: str) -> list[str] | None:
    """The turns of a script in JSON; None for a text that is none.

    JSON is a list of turns, or an object that has one as "turns": each a string, of the two
    speakers in turn, or an object with "text" and "speaker" ("A" or "B").

    Raises:
        ArgumentError: it begins as JSON does, and is none, or is no script; names the line.
    """
    if not _JSON_START.match(text):
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        line = (
            f"line {error.lineno}: {error.msg}" if isinstance(error, json.JSONDecodeError) else ""
        )
        raise ArgumentError(
            f"the script begins as JSON but is none: {line or 'it is nested too deeply'}"
        ) from None
    if isinstance(found, Mapping):
        found = next((found[name] for name in _TURNS if name in found), found)
    if not isinstance(found, list):
        raise ArgumentError('the script\'s JSON must be a list of turns, or have one as "turns"')
    return alternating([_turn(turn, i) for i, turn in enumerate(found)])


def alternating(turns: Sequence[tuple[int | None, str]]) -> list[str]:
    """Speakers and texts → texts of which every other one is the main speaker's.

    Args:
        turns: 0 is the main speaker, 1 the other, None the one whose turn it is.
    """
    texts: list[str] = []
    for speaker, text in turns:
        if speaker is not None and speaker != len(texts) % 2:
            texts.append("")
        texts.append(text)
    return texts


def _turn(turn: Any, i: int) -> tuple[int | None, str]:
    """Speaker and text of a turn in JSON."""
    where = f"turn {i + 1} of the script"
    if isinstance(turn, str):
        return None, turn
    if not isinstance(turn, Mapping) or not isinstance(turn.get("text"), str):
        raise ArgumentError(f'{where} must be a string or have a "text", is {shown(turn)}')
    speaker = turn.get("speaker")
    if speaker is None:
        return None, turn["text"]
    if isinstance(speaker, str) and speaker.strip().upper() in SPEAKERS:
        return SPEAKERS.index(speaker.strip().upper()), turn["text"]
    if speaker in (0, 1) and not isinstance(speaker, bool):
        return int(speaker), turn["text"]
    raise ArgumentError(f"{where}: speaker must be {' or '.join(SPEAKERS)}, is {shown(speaker)}")
