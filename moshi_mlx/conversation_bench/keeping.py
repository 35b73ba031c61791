"""Scenes that were run, in a folder: what was said on both sides, and where to look in it.

A folder is laid out as Full-Duplex-Bench has it: `output.wav` and `output.json` with the words, so
that other tools can score it too. What is finished is not run again. Knows files; nothing of
models.
"""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import soundfile

from ..arrays import Pcm
from ..errors import MoshiError
from ..files import read_json, replace_file
from ..sounds import open_sound
from ..text import Word, join_words
from .benchmark_folders import INPUT, OUTPUT, WORDS
from .running import SceneTalk
from .scenes import Axis, Marks, Scene

_OURS = "moshi-local"


class Keep:
    """Where scenes are kept.

    Args:
        out: the folder below which they are; None: each beside its input.
        run: what must be the same for a scene to be taken as finished: model, seed, …
        sets: where the inputs of published sets are, by name.
        inputs: also write the user's side.
    """

    def __init__(
        self,
        out: Path | None,
        run: Mapping[str, Any],
        sets: Mapping[str, Path] | None = None,
        inputs: bool = False,
    ) -> None:
        self._out, self._run, self._sets, self._inputs = out, dict(run), sets or {}, inputs

    def folder(self, marks: Marks) -> Path:
        """Of a scene."""
        if self._sets:
            name, _, number = marks.name.partition("/")
            return self._sets[name] / number if self._out is None else self._out / name / number
        assert self._out is not None, "scenes that are made have no folder beside an input"
        return self._out / marks.axis.value / marks.name

    def finished(self, scene: Scene) -> bool:
        """Whether a scene was run before, by the same model in the same way.

        Raises:
            MoshiError: what is there was made otherwise.
        """
        folder = self.folder(scene.marks)
        if not (folder / WORDS).is_file():
            if (folder / OUTPUT).is_file() and self._out is None:
                raise self._other(folder)
            return False
        found = read_json(folder / WORDS).get(_OURS)
        if not isinstance(found, dict) or found.get("run") != self._run:
            raise self._other(folder)
        return (folder / OUTPUT).is_file()

    def _other(self, folder: Path) -> MoshiError:
        return MoshiError(
            f"{folder}: has the answer of another model, seed or user; give a new folder with "
            "--out, or delete this one's output.wav and output.json"
        )

    def write(self, talk: SceneTalk, rate: int) -> None:
        """A scene's both sides and words. Raises MoshiError."""
        folder = self.folder(talk.marks)
        facts = {
            "text": join_words(word.text for word in talk.words),
            "chunks": [{"text": w.text, "timestamp": [w.start, w.end]} for w in talk.words],
            _OURS: {"run": self._run, "scene": asdict(talk.marks)},
        }
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if self._inputs:
                replace_file(folder / INPUT, [_wav(talk.user, rate)], mode=0o644)
            replace_file(folder / OUTPUT, [_wav(talk.model, rate)], mode=0o644)
            data = json.dumps(facts, indent=1, ensure_ascii=False).encode() + b"\n"
            replace_file(folder / WORDS, [data], mode=0o644)  # last: now it is finished
        except OSError as error:
            raise MoshiError(f"{folder}: cannot be written: {error.strerror or error}") from error

    def read(self, scene: Scene, rate: int) -> SceneTalk:
        """A finished scene. Raises MoshiError."""
        folder = self.folder(scene.marks)
        path = folder / WORDS
        data = read_json(path)
        try:
            words = [Word(c["text"], *map(float, c["timestamp"])) for c in data["chunks"]]
            marks = _marks(data[_OURS]["scene"])
        except (KeyError, TypeError, ValueError) as error:
            raise MoshiError(f"{path}: is not as it was written; delete it") from error
        model = open_sound(folder / OUTPUT).read(rate).mean(axis=0)
        return SceneTalk(marks, scene.user, model, words)


def _marks(facts: Mapping[str, Any]) -> Marks:
    """From JSON, which has lists for pairs."""
    pairs = {name: _pair(facts[name]) for name in ("pause", "overlap")}
    spoken = [_pair(span) for span in facts["spoken"]]
    return Marks(**{**facts, **pairs, "spoken": spoken, "axis": Axis(facts["axis"])})


def _pair(value: Sequence[float] | None) -> Any:
    return None if value is None else (float(value[0]), float(value[1]))


def _wav(pcm: Pcm, rate: int) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, pcm, rate, format="WAV", subtype="PCM_16")
    return file.getvalue()
