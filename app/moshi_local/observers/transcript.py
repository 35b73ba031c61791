"""What was said as files: words and events as JSON, phrases as WebVTT subtitles.

Knows words and times, and nothing of sound. Both files are valid at every moment.
"""

from __future__ import annotations

import errno
import json
import math
import os
from bisect import insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Literal

from moshi_mlx import SpokenWord, Word
from moshi_mlx.files import replace_file
from moshi_mlx.text import gap_between

__all__ = [
    "CueWriter",
    "Subtitles",
    "TranscriptFile",
    "phrases",
    "subtitles_as_srt",
    "subtitles_as_vtt",
    "vtt_time",
]

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

    Cues are in the order in which they begin. `path` must not exist (FileExistsError). Methods may
    raise OSError.

    Args:
        path: of the file.
        note: about it.
        late: so long after it was said a word may still come (seconds).
    """

    def __init__(self, path: Path, note: str, late: float = 0.0) -> None:
        flags = os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_WRONLY | os.O_CLOEXEC
        self._descriptor = os.open(path, flags, 0o600)
        self._late = late
        self._open: dict[str, _Phrase] = {}  # by speaker
        self._ended: list[tuple[float, str]] = []  # starts and cues that wait for earlier ones
        # A note ends at an empty line and must not have an arrow.
        note = " ".join(note.split()).replace("-->", "→")
        self._write(f"WEBVTT\n\nNOTE {note}\n")

    def add_word(self, speaker: str, text: str, start: float, end: float) -> None:
        """The next word of a speaker, from `start` to `end` (seconds of the recording)."""
        phrase = self._open.get(speaker)
        if phrase is not None and not _begins_phrase(start, end, phrase.start, phrase.end):
            phrase.add(text, end)
            return
        self._end_phrase(speaker)
        self._open[speaker] = _Phrase(start, max(end, start + 0.001), text)
        self._write_ended(-math.inf if self._late else math.inf)

    def wait(self, now: float) -> None:
        """It is `now` (seconds of the recording): phrases may have ended in silence."""
        for speaker, phrase in [*self._open.items()]:
            if now - phrase.end >= PATIENCE + self._late:
                self._end_phrase(speaker)
        self._write_ended(now - self._late if self._late else math.inf)

    def end_phrases(self) -> None:
        """The next words begin new phrases."""
        for speaker in [*self._open]:
            self._end_phrase(speaker)
        self._write_ended(-math.inf if self._late else math.inf)

    def close(self) -> None:
        """Write what is open; may be called again."""
        if self._descriptor >= 0:
            try:
                self.end_phrases()
                self._write_ended(math.inf)
            finally:
                os.close(self._descriptor)
                self._descriptor = -1

    def _end_phrase(self, speaker: str) -> None:
        """A speaker's phrase that is open, if any, waits to be written."""
        phrase = self._open.pop(speaker, None)
        if phrase is not None:
            times = f"{vtt_time(phrase.start)} --> {vtt_time(phrase.end)}"
            cue = f"\n{times}\n<v {speaker}>{_vtt_text(phrase.text)}</v>\n"
            insort(self._ended, (phrase.start, cue))

    def _write_ended(self, before: float) -> None:
        """Write what began before that time, and before all that is open (seconds)."""
        before = min([before, *(phrase.start for phrase in self._open.values())])
        while self._ended and self._ended[0][0] <= before:
            self._write(self._ended[0][1])
            del self._ended[0]

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

    def add(self, text: str, end: float) -> None:
        """Its next word."""
        self.text += gap_between(self.text, text) + text
        self.end = max(end, self.start + 0.001)


class CueWriter:
    """Words to subtitles, phrase by phrase.

    Args:
        kind: "vtt" for WebVTT, "srt" for SubRip: numbers, and a comma before the milliseconds.
    """

    def __init__(self, kind: Literal["srt", "vtt"]) -> None:
        self._kind = kind
        self._open: _Phrase | None = None
        self._speaker = 0
        self._count = 0

    @property
    def head(self) -> str:
        """What stands before the cues."""
        return "WEBVTT\n" if self._kind == "vtt" else ""

    def add(self, word: Word) -> str:
        """The cue of the phrase that ends where this word begins one, else "".

        A phrase has one speaker.
        """
        phrase, speaker = self._open, word.speaker if isinstance(word, SpokenWord) else 0
        same = speaker == self._speaker
        if phrase and same and not _begins_phrase(word.start, word.end, phrase.start, phrase.end):
            phrase.add(word.text, word.end)
            return ""
        cue = self.end()
        self._speaker = speaker
        self._open = _Phrase(word.start, max(word.end, word.start + 0.001), word.text)
        return cue

    def end(self) -> str:
        """The cue of the phrase that is open, if any."""
        phrase, self._open = self._open, None
        if phrase is None:
            return ""
        self._count += 1
        times = f"{vtt_time(phrase.start)} --> {vtt_time(phrase.end)}"
        if self._kind == "vtt":
            return f"\n{times}\n{_vtt_text(phrase.text)}\n"
        gap = "\n" if self._count > 1 else ""
        return f"{gap}{self._count}\n{times.replace('.', ',')}\n{' '.join(phrase.text.split())}\n"


def phrases(words: Sequence[Word]) -> list[list[Word]]:
    """The words of each cue that subtitles would have."""
    found: list[list[Word]] = []
    for word in words:
        if found and not _begins_phrase(
            word.start, word.end, found[-1][0].start, found[-1][-1].end
        ):
            found[-1].append(word)
        else:
            found.append([word])
    return found


def subtitles_as_vtt(words: Sequence[Word]) -> str:
    """A whole WebVTT file of words with their times."""
    return _subtitles("vtt", words)


def subtitles_as_srt(words: Sequence[Word]) -> str:
    """The same as SubRip."""
    return _subtitles("srt", words)


def _subtitles(kind: Literal["srt", "vtt"], words: Sequence[Word]) -> str:
    cues = CueWriter(kind)
    return "".join([cues.head, *map(cues.add, words), cues.end()])


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
