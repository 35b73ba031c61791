"""The files of words beside a sound: subtitles and a summary. Knows nothing of how words came."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from moshi_mlx import Word
from moshi_mlx.outputs import Output, WholeFile

from .observers.transcript import subtitles_as_srt, subtitles_as_vtt

__all__ = ["TextsBeside"]


@dataclass(frozen=True, slots=True)
class TextsBeside:
    """Which are asked for; None: not that one."""

    srt: Path | None = None
    vtt: Path | None = None
    json: Path | None = None

    def outputs(self) -> Iterator[Output]:
        """What is written."""
        for path, what, suffix in (
            (self.srt, "the subtitles", ".srt"),
            (self.vtt, "the subtitles", ".vtt"),
            (self.json, "the summary", ".json"),
        ):
            if path is not None:
                yield Output(path, what, (suffix,))

    def write(self, words: Sequence[Word], summary: Mapping[str, object]) -> None:
        """Writes each whole. Raises MoshiError."""
        contents = {
            ".srt": subtitles_as_srt(words),
            ".vtt": subtitles_as_vtt(words),
            ".json": json.dumps(summary, ensure_ascii=False, indent=1) + "\n",
        }
        for output in self.outputs():
            WholeFile(output.path, output.what).write(contents[output.suffixes[0]], mode=0o666)
