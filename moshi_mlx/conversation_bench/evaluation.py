"""The bench: scenes made or published, run, kept and scored.

Joins the parts. Knows nothing of terminals.
"""

import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..activity import audible_spans
from ..arrays import Pcm
from ..errors import MoshiError
from ..families.dialogue import Moshi
from ..text import Word, known_sentences
from .benchmark_folders import SETS, found_sets, published_scenes, samples_of
from .ears import Whisper
from .figures import AxisFigures, Score, figures_of, scored
from .keeping import Keep
from .running import SceneTalk, run_scenes
from .scenes import NEEDS, Axis, Scene, made_scenes
from .scores import MODEL_PAUSE, Span
from .speakers import Speakers, speakers_here

DEFAULT_SCENES = 10
_WINDOW_SECONDS = 0.01
_SEGMENT_PAUSE = 0.1  # between segments of voice, as silero's detector has it


@dataclass(frozen=True)
class BenchOptions:
    """What is evaluated, and how.

    scenes: of each axis, and of each published set; None: all of a set, else `DEFAULT_SCENES`.
    axes: those to look at.
    seed: the same one gives the same scenes and conversations.
    at_once: conversations side by side; None: by the model's size.
    kv_bits: of its keys and values.
    recordings: a folder of the user's sides; None: synthesizers.
    published: a folder of Full-Duplex-Bench in place of scenes that are made.
    out: where finished scenes are kept; None: published ones beside their inputs, others nowhere.
    ears: a folder of a Whisper model, which hears the answers; None: the model's own text is taken.
    """

    scenes: int | None = None
    axes: Sequence[Axis] = tuple(Axis)
    seed: int = 0
    at_once: int | None = None
    kv_bits: int | None = None
    recordings: Path | None = None
    published: Path | None = None
    out: Path | None = None
    ears: Path | None = None


@dataclass(frozen=True)
class Evaluation:
    """What came out.

    model: its name.
    figures: by axis.
    scores: of every scene.
    facts: of the run, for JSON.
    """

    model: str
    figures: AxisFigures
    scores: Sequence[Score]
    facts: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "model": self.model,
            **self.facts,
            "figures": {axis.value: values for axis, values in self.figures.items()},
            "scenes": list(self.scores),
        }


class Bench:
    """A bench, looked at before a model is loaded: what it needs is there.

    Args:
        options: what to do.
        rate: samples per second of the model.

    Raises:
        MoshiError: a folder or a package is missing.
    """

    def __init__(self, options: BenchOptions, rate: int) -> None:
        self._options, self._rate = options, rate
        self._sets: dict[str, Path] = {}
        self._speakers: Speakers | None = None
        self._axes = list(options.axes)
        self._ears = None if options.ears is None else Whisper(options.ears)
        if options.published is not None:
            sets = found_sets(options.published)
            self._sets = {name: path for name, path in sets.items() if SETS[name] in self._axes}
            if not self._sets:
                raise MoshiError(
                    f"{options.published}: has no set for {', '.join(self._axes)}; it has "
                    f"{', '.join(sets)}"
                )
            self._axes = [axis for axis in self._axes if axis in map(SETS.get, self._sets)]
        else:
            self._speakers = speakers_here(rate, options.recordings)
            able = [axis for axis in self._axes if NEEDS[axis] <= self._speakers.parts]
            self.left_out = [axis for axis in self._axes if axis not in able]
            self._axes = able
            if not able:
                parts = sorted({p.value for axis in options.axes for p in NEEDS[axis]})
                where = options.recordings or "this machine"
                raise MoshiError(
                    f"{where}: has no voice for {', '.join(parts)}; install espeak-ng or flite, "
                    "or add recordings"
                )

    left_out: Sequence[Axis] = ()
    """Axes that cannot be looked at here: there is no sound for them."""

    @property
    def count(self) -> int:
        """How many scenes there are."""
        if not self._sets:
            return len(self._axes) * (self._options.scenes or DEFAULT_SCENES)
        return sum(
            len(samples_of(folder)[: self._options.scenes]) for folder in self._sets.values()
        )

    def _scenes(self) -> Iterator[Scene]:
        options = self._options
        if self._sets:
            return published_scenes(self._sets, options.scenes, self._rate, options.seed)
        assert self._speakers is not None
        count = options.scenes or DEFAULT_SCENES
        return made_scenes(self._axes, count, self._speakers, self._rate, options.seed)

    def run(
        self,
        moshi: Moshi,
        *,
        on_scene: Callable[[int, bool], None] | None = None,
        on_frame: Callable[[float], None] | None = None,
    ) -> Evaluation:
        """Everything, with that model.

        Args:
            moshi: the model.
            on_scene: is told how many scenes are done, and whether the last one was kept from an
                earlier run.
            on_frame: as `run_scenes` takes it.

        Raises:
            MoshiError: a file is wrong, or cannot be written.
        """
        options = self._options
        keep = self._keep(moshi)
        scores: list[Score] = []
        sentences = known_sentences(moshi.files.tokenizer)

        def take(talk: SceneTalk, old: bool) -> None:
            scores.append(self._score(talk, sentences))
            if on_scene is not None:
                on_scene(len(scores), old)

        def left() -> Iterator[Scene]:
            for scene in self._scenes():
                if keep is not None and keep.finished(scene):
                    take(keep.read(scene, self._rate), True)
                else:
                    yield scene

        talks = run_scenes(
            moshi, left(), at_once=options.at_once, kv_bits=options.kv_bits, on_frame=on_frame
        )
        for talk in talks:
            if keep is not None:
                keep.write(talk, self._rate)
            take(talk, False)
        order = [axis.value for axis in Axis]
        scores.sort(key=lambda score: (order.index(score["axis"]), _natural(score["scene"])))
        facts = {
            "seed": options.seed,
            "words": "text stream" if self._ears is None else "whisper",
            "speakers": self._label,
            "fixed_sentences": bool(sentences),
        }
        return Evaluation(moshi.name, figures_of(scores), scores, facts)

    @property
    def _label(self) -> str:
        return "published" if self._speakers is None else self._speakers.label

    def _keep(self, moshi: Moshi) -> Keep | None:
        options = self._options
        if options.out is None and not self._sets:
            return None
        files = moshi.files
        run = {
            "model": Path(moshi.name).name,
            "weights": sum(path.stat().st_size for path in files.weights),
            "config": 0 if files.config is None else zlib.crc32(files.config.read_bytes()),
            "seed": options.seed,
            "kv_bits": options.kv_bits,
            "speakers": self._label,
        }
        return Keep(options.out, run, self._sets, inputs=not self._sets)

    def _score(self, talk: SceneTalk, sentences: Sequence[str]) -> Score:
        seconds = len(talk.model) / self._rate
        if self._ears is not None:
            voice = self._ears.voice(talk.model, self._rate)
            heard = bounded(self._ears.words(talk.model, self._rate), voice, starts=True)
            return scored(talk.marks, heard, voice, seconds, sentences, talk.words)
        voice = sounding_spans(talk.model, self._rate)
        return scored(talk.marks, bounded(talk.words, voice), voice, seconds, sentences)


def sounding_spans(pcm: Pcm, rate: int) -> list[Span]:
    """When a model sounds, by its loudness: windows of 10 ms above −40 dBFS."""
    spans = audible_spans(pcm, rate, window=_WINDOW_SECONDS, pause=_SEGMENT_PAUSE)
    return [(start / rate, end / rate) for start, end in spans]


def bounded(words: Sequence[Word], voice: Sequence[Span], starts: bool = False) -> list[Word]:
    """Words that end with their sound, where that ends before.

    The text stream tells when a word begins; its end is a bound. A recognizer may lay the start of
    the first word far back into the silence before it: with `starts`, it isn't before the sound.
    """
    out = []
    for word in words:
        spans = [s for s in voice if s[0] < word.end + MODEL_PAUSE and s[1] > word.start]
        start, end = word.start, word.end
        if spans:
            end = min(end, spans[-1][1])
            start = max(start, spans[0][0]) if starts else start
        out.append(Word(word.text, start, max(start, end)))
    return out


def _natural(name: str) -> tuple[str, int]:
    before, _, number = name.rpartition("/")
    return before, int(number)


def evaluations_json(evaluations: Sequence[Evaluation]) -> str:
    """One evaluation, or several as a list."""
    found = [evaluation.as_dict() for evaluation in evaluations]
    return json.dumps(found[0] if len(found) == 1 else found, indent=1, ensure_ascii=False) + "\n"
