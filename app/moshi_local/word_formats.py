"""Words with their times as text: plain, JSON, SubRip, WebVTT, tab-separated values.

Each format is made piece by piece, as the words come; all pieces together are the file. Knows
nothing of sound, models and files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import StrEnum
from typing import Literal

from moshi_mlx import Word
from moshi_mlx.text import gap_between

from .observers.transcript import CueWriter
from .terminal.lines import PHRASE_PAUSE

__all__ = ["WordFormat", "WordWriter", "word_writer"]


class WordFormat(StrEnum):
    """How words are written down."""

    txt = "txt"
    json = "json"
    srt = "srt"
    vtt = "vtt"
    tsv = "tsv"


class WordWriter:
    """Makes plain text: a line for each phrase. The other formats are derived from it."""

    def __init__(self) -> None:
        self._last: Word | None = None

    def begin(self) -> str:
        """What stands before the words."""
        return ""

    def add(self, word: Word) -> str:
        """What can be written once this word is known; its time does not go back."""
        before, self._last = self._last, word
        if before is None:
            return word.text
        if word.start - before.end >= PHRASE_PAUSE:
            return f"\n{word.text}"
        return gap_between(before.text, word.text) + word.text

    def end(self, facts: Mapping[str, object]) -> str:
        """What stands after the words; `facts` are of the whole, for formats that have them."""
        return "" if self._last is None else "\n"


class _Json(WordWriter):
    def add(self, word: Word) -> str:
        return ""

    def end(self, facts: Mapping[str, object]) -> str:
        rows = ",\n".join(f" {json.dumps(key)}: {_rows(value)}" for key, value in facts.items())
        return f"{{\n{rows}\n}}\n"


def _rows(value: object) -> str:
    """A list with a line for each of its items; anything else on one line."""
    if not isinstance(value, list) or not value:
        return json.dumps(value, ensure_ascii=False)
    items = ",\n".join(f"  {json.dumps(item, ensure_ascii=False)}" for item in value)
    return f"[\n{items}\n ]"


class _Tsv(WordWriter):
    def begin(self) -> str:
        return "start\tend\ttext\n"

    def add(self, word: Word) -> str:
        return f"{word.start:.3f}\t{word.end:.3f}\t{' '.join(word.text.split())}\n"

    def end(self, facts: Mapping[str, object]) -> str:
        return ""


class _Cues(WordWriter):
    def __init__(self, kind: Literal["srt", "vtt"]) -> None:
        super().__init__()
        self._cues = CueWriter(kind)

    def begin(self) -> str:
        return self._cues.head

    def add(self, word: Word) -> str:
        return self._cues.add(word)

    def end(self, facts: Mapping[str, object]) -> str:
        return self._cues.end()


def word_writer(kind: WordFormat) -> WordWriter:
    """For a format."""
    match kind:
        case WordFormat.txt:
            return WordWriter()
        case WordFormat.json:
            return _Json()
        case WordFormat.tsv:
            return _Tsv()
        case WordFormat.srt:
            return _Cues("srt")
        case WordFormat.vtt:
            return _Cues("vtt")
