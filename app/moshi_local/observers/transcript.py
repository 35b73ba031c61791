"""What was said as files: words and events as JSON, phrases as WebVTT subtitles.

Knows words and times, and nothing of sound. Both files are valid at every moment.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from moshi_mlx import Word
from moshi_mlx.files import replace_file

__all__ = ["Subtitles", "TranscriptFile", "subtitles_as_srt", "subtitles_as_vtt", "vtt_time"]

CUE_PAUSE = 1.0
"""Seconds without a word after which a new phrase begins."""
LONGEST_CUE = 6.0
"""Seconds after which a phrase is cut in two."""
PATIENCE = 2.0
"""Seconds after which a phrase is written even if no other word came."""


class TranscriptFile:
    """Words and events, kept in memory as the JSON that they become.

    So a save costs the loop's thread nothing but the copying of bytes: Python's encoder would
    hold the interpreter for a tenth of a second when hours have been said.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._words = bytearray()
        self._events = bytearray()

    @property
    def size(self) -> int:
        """Bytes, about."""
        return len(self._words) + len(self._events)

    def add_word(self, speaker: str, text: str, start: float, end: float) -> None:
        """A word from `start` to `end` (seconds of the recording)."""
        word = {"start": round(start, 3), "end": round(end, 3), "speaker": speaker, "text": text}
        _append(self._words, word)

    def add_event(self, event: Mapping[str, object]) -> None:
        """Anything else; its "time" is in seconds of the recording."""
        _append(self._events, event)

    def save(self, facts: Mapping[str, object]) -> None:
        """Replace the file: `facts`, then "words" and "events". Raises OSError."""
        head = json.dumps(facts, ensure_ascii=False, indent=1)[:-2].encode()
        pieces = [head, b',\n "words": [', self._words, b'\n ],\n "events": [', self._events]
        replace_file(self._path, [*map(bytes, pieces), b"\n ]\n}\n"])


def _append(lines: bytearray, value: Mapping[str, object]) -> None:
    lines += b",\n  " if lines else b"\n  "
    lines += json.dumps(value, ensure_ascii=False).encode()


class Subtitles:
    """A new WebVTT file to which each phrase is appended when it has ended.

    `path` must not exist (FileExistsError). Methods may raise OSError.
    """

    def __init__(self, path: Path, speaker: str, note: str) -> None:
        flags = os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_WRONLY | os.O_CLOEXEC
        self._descriptor = os.open(path, flags, 0o600)
        self._speaker = speaker
        self._words: list[str] = []
        self._start = self._end = 0.0
        # A note ends at an empty line and must not have an arrow.
        note = " ".join(note.split()).replace("-->", "→")
        self._write(f"WEBVTT\n\nNOTE {note}\n")

    def add_word(self, text: str, start: float, end: float) -> None:
        """The next word, from `start` to `end` (seconds of the recording)."""
        if self._words and _begins_phrase(start, end, self._start, self._end):
            self.end_phrase()
        if not self._words:
            self._start = start
        self._words.append(text)
        self._end = max(end, self._start + 0.001)

    def wait(self, now: float) -> None:
        """It is `now` (seconds of the recording): a phrase may have ended in silence."""
        if self._words and now - self._end >= PATIENCE:
            self.end_phrase()

    def end_phrase(self) -> None:
        """Write the phrase that is open, if any."""
        if self._words:
            text = _vtt_text(" ".join(self._words))
            times = f"{vtt_time(self._start)} --> {vtt_time(self._end)}"
            self._write(f"\n{times}\n<v {self._speaker}>{text}</v>\n")
            self._words.clear()

    def close(self) -> None:
        """Write what is open; may be called again."""
        if self._descriptor >= 0:
            try:
                self.end_phrase()
            finally:
                os.close(self._descriptor)
                self._descriptor = -1

    def _write(self, text: str) -> None:
        """At once or, where the disk is full, not at all."""
        data = text.encode()
        size = os.fstat(self._descriptor).st_size
        if os.write(self._descriptor, data) != len(data):
            os.ftruncate(self._descriptor, size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@dataclass
class _Phrase:
    start: float
    end: float
    text: str


def subtitles_as_vtt(words: Sequence[Word]) -> str:
    """A whole WebVTT file of words with their times."""
    cues = (
        f"\n{vtt_time(phrase.start)} --> {vtt_time(phrase.end)}\n{_vtt_text(phrase.text)}\n"
        for phrase in _phrases(words)
    )
    return "".join(["WEBVTT\n", *cues])


def subtitles_as_srt(words: Sequence[Word]) -> str:
    """The same as SubRip: numbers, and a comma before the milliseconds."""
    cues = []
    for number, phrase in enumerate(_phrases(words), 1):
        start, end = (vtt_time(time).replace(".", ",") for time in (phrase.start, phrase.end))
        cues.append(f"{number}\n{start} --> {end}\n{' '.join(phrase.text.split())}\n")
    return "\n".join(cues)


def _phrases(words: Sequence[Word]) -> list[_Phrase]:
    found: list[_Phrase] = []
    for word in words:
        if not found or _begins_phrase(word.start, word.end, found[-1].start, found[-1].end):
            found.append(_Phrase(word.start, word.end, word.text))
        else:
            found[-1].text += f" {word.text}"
        found[-1].end = max(word.end, found[-1].start + 0.001)
    return found


def _begins_phrase(start: float, end: float, phrase_start: float, phrase_end: float) -> bool:
    """Whether a word begins a new phrase after one (seconds)."""
    return start - phrase_end >= CUE_PAUSE or end - phrase_start > LONGEST_CUE


def _vtt_text(text: str) -> str:
    return escape(" ".join(text.split()), quote=False)


def vtt_time(seconds: float) -> str:
    """As 01:02:03.004."""
    whole, milliseconds = divmod(round(1000 * max(seconds, 0.0)), 1000)
    minutes, second = divmod(whole, 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours:02}:{minute:02}:{second:02}.{milliseconds:03}"
