"""Who speaks the user's side of scenes: speech synthesizers that are installed, or recordings.

Knows texts and sound; nothing of scenes and models. Sound is mono float32 [samples] at the rate
that is asked for, without silence around it.
"""

import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

import numpy as np

from ..activity import audible_spans, loudness
from ..arrays import Pcm
from ..errors import MoshiError
from ..hub import bundled_folder
from ..sounds import open_sound
from .acoustics import at_level, decibels_to_factor

LEVEL = -25.0
"""Of a user's voice, in dBFS."""
_SUFFIXES = frozenset([".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aiff"])
_PATIENCE = 60  # seconds for a sentence
_QUIET_DB = -40.0  # below the loudest window: what is cut off at both ends
_WINDOW_SECONDS = 0.01


class ScenePart(StrEnum):
    """What is said in a scene; the value is the name of the folder of its recordings."""

    QUESTION = "questions"
    STORY = "stories"
    BACKCHANNEL = "backchannels"
    ASIDE = "asides"
    BACKGROUND = "background"


TEXTS: Mapping[ScenePart, Sequence[str]] = {
    ScenePart.QUESTION: (
        "what is the biggest animal", "tell me a joke", "what is the capital of france",
        "how far is the moon", "what is your name", "what is the weather like today",
        "which mountain is the highest", "can you tell me a story", "how are you today",
        "what do bees make", "what color is the sky", "can you count to five",
        "who wrote romeo and juliet", "how many days has a week", "what should i cook for dinner",
        "where do you live",
    ),
    ScenePart.STORY: (
        "let me tell you about my day. the dentist was very friendly. "
        "he gave me a purple toothbrush. and that is my story",
        "listen to this story. we adopted a very old horse. "
        "it only likes carrots and apples. and that was all",
        "let me tell you what happened. my cousin opened a coffee shop. "
        "the first guest was the mayor. and that is all i wanted to say",
        "i have to tell you something. the wind took my umbrella. "
        "it landed on the church roof. and that is my story",
    ),
    ScenePart.BACKCHANNEL: (
        "uh huh", "yeah", "right", "mm hm", "okay", "i see", "sure", "oh really",
    ),
    ScenePart.ASIDE: (
        "anna can you close the door please", "not now i am on the phone",
        "john the keys are on the table", "come here buddy good dog",
        "dinner is ready in ten minutes", "could you turn the music down",
    ),
    ScenePart.BACKGROUND: (
        "the train to the airport leaves from the other platform",
        "we should paint the kitchen before the summer begins",
        "they sold the old house to a family from the city",
        "he forgot to pay the electric bill again last month",
    ),
}  # fmt: skip
"""What synthesizers are given. A story's sentences end with full stops, where its pauses are."""


@dataclass(frozen=True)
class Utterance:
    """Something that is said: its text, empty if unknown, its sound, and who says it."""

    text: str
    pcm: Pcm
    voice: str = ""


class Speakers(Protocol):
    """Where the user's side comes from."""

    @property
    def parts(self) -> frozenset[ScenePart]:
        """What they can say."""

    @property
    def label(self) -> str:
        """Who they are: other speakers make other scenes."""

    def voices(self, rng: np.random.Generator) -> str:
        """Someone, to say all of a scene."""

    def say(self, part: ScenePart, voice: str, rng: np.random.Generator) -> Sequence[Utterance]:
        """One thing to say, drawn: the sentences of a story, else one utterance."""


def trimmed(pcm: Pcm, rate: float) -> Pcm:
    """Without the silence around it."""
    size = round(_WINDOW_SECONDS * rate)
    rms = loudness(pcm[: len(pcm) // size * size].reshape(-1, size))
    loud = np.flatnonzero(rms > rms.max(initial=0.0) * decibels_to_factor(_QUIET_DB))
    if not len(loud):
        return pcm[:0]
    return pcm[int(loud[0]) * size : (int(loud[-1]) + 1) * size]


# ----------------------------------------------------------------------------------- synthesizers

_ENGINES: Mapping[str, Sequence[str]] = {
    "flite": ("rms", "awb", "kal16"),
    "espeak-ng": ("en-us", "en-us+f3", "en-gb-x-rp", "en+m3", "en-us+m7", "en-us+f2"),
    "text2wave": ("",),  # festival's own voice
}
"""Voices of each program."""


def installed_voices() -> list[str]:
    """Voices of synthesizers that are installed, such as "flite:rms"."""
    return [
        f"{engine}:{name}" for engine, names in _ENGINES.items() if shutil.which(engine)
        for name in names
    ]  # fmt: skip


def _command(engine: str, name: str, text: str, out: str) -> list[str]:
    if engine == "flite":
        return [engine, "-voice", name, "-t", text, "-o", out]
    if engine == "espeak-ng":
        return [engine, "-v", name, "-s", "155", "-w", out, text]
    return [engine, "-o", out]  # festival reads the text from its standard input


def synthesized(text: str, voice: str, rate: int) -> Pcm:
    """A text by a voice of an installed program, at the level of a user.

    Raises:
        MoshiError: the program fails, or makes no sound.
    """
    engine, _, name = voice.partition(":")
    with tempfile.TemporaryDirectory(prefix="moshi-local-") as folder:
        out = Path(folder) / "said.wav"
        try:
            subprocess.run(
                _command(engine, name, text, str(out)),
                input=text,
                capture_output=True,
                text=True,
                check=True,
                timeout=_PATIENCE,
            )
            pcm = open_sound(out).read(rate).mean(axis=0)
        except (OSError, subprocess.SubprocessError, MoshiError) as error:
            raise MoshiError(
                f"{engine} cannot say {text!r} with voice {name!r}: {error}"
            ) from error
    return at_level(trimmed(pcm, rate), rate, LEVEL)


class Synthesizers:
    """Voices of the synthesizers that are installed.

    Args:
        rate: of their sound.
        voices: those that speak.
    """

    parts = frozenset(ScenePart)

    def __init__(self, rate: int, voices: Sequence[str]) -> None:
        self._rate, self._voices = rate, voices
        self.label = ", ".join(voices)
        self._said: dict[tuple[str, str], Pcm] = {}

    def voices(self, rng: np.random.Generator) -> str:
        return str(rng.choice(self._voices))

    def say(self, part: ScenePart, voice: str, rng: np.random.Generator) -> Sequence[Utterance]:
        text = str(rng.choice(TEXTS[part]))
        sentences = text.split(". ") if part is ScenePart.STORY else [text]
        return [self.text(sentence, voice) for sentence in sentences]

    def text(self, text: str, voice: str) -> Utterance:
        """Any text."""
        key = (text, voice)
        if key not in self._said:
            self._said[key] = synthesized(text, voice, self._rate)
        return Utterance(text, self._said[key], voice)


# ------------------------------------------------------------------------------------- recordings


class RecordedSpeakers:
    """A folder of recordings, with a subfolder for each `ScenePart`; loose files are questions.

    A file's text is in a file beside it that ends in .txt; without one it is unknown. A story is
    one file whose sentences are separated by pauses of a quarter of a second or more.

    Args:
        folder: where they are.
        rate: of the sound that is wanted.

    Raises:
        MoshiError: there is no such folder, or no sound in it.
    """

    def __init__(self, folder: Path, rate: int) -> None:
        if not folder.is_dir():
            raise MoshiError(f"{folder}: there is no such folder of recordings")
        self._rate = rate
        self.label = f"recordings in {folder.name}"
        self._files = {part: _sounds(folder / part.value) for part in ScenePart}
        self._files[ScenePart.QUESTION] += _sounds(folder)
        if not any(self._files.values()):
            names = ", ".join(part.value for part in ScenePart)
            raise MoshiError(
                f"{folder}: has no recordings; put sound files into it (questions), or into its "
                f"folders {names}"
            )

    @property
    def parts(self) -> frozenset[ScenePart]:
        return frozenset(part for part, files in self._files.items() if files)

    def voices(self, rng: np.random.Generator) -> str:
        return "recorded"

    def say(self, part: ScenePart, voice: str, rng: np.random.Generator) -> Sequence[Utterance]:
        files = self._files[part]
        path = files[int(rng.integers(len(files)))]
        beside = path.with_suffix(".txt")
        try:
            text = beside.read_text(encoding="utf-8").strip() if beside.is_file() else ""
        except (OSError, ValueError) as error:
            raise MoshiError(f"{beside}: cannot be read as text in UTF-8: {error}") from error
        pcm = trimmed(open_sound(path).read(self._rate).mean(axis=0), self._rate)
        if not len(pcm):
            raise MoshiError(f"{path}: is silent; leave it out")
        return [Utterance(text, at_level(pcm, self._rate, LEVEL), path.name)]


def _sounds(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in _SUFFIXES and p.is_file())


# --------------------------------------------------------------------------------- what comes along


class BundledQuestions:
    """The recording that comes with the bundled model, where no synthesizer is installed.

    Args:
        recording: its file, three questions with pauses between them.
        rate: of the sound that is wanted.
    """

    parts = frozenset({ScenePart.QUESTION, ScenePart.BACKGROUND})
    label = "the bundled recording"
    _texts = ("hello", "what is your name", "count to five")

    def __init__(self, recording: Path, rate: int) -> None:
        pcm = open_sound(recording).read(rate).mean(axis=0)
        spans = audible_spans(pcm, rate, window=_WINDOW_SECONDS, pause=1.0)
        sounds = [at_level(pcm[start:end], rate, LEVEL) for start, end in spans]
        self._said = [Utterance(t, s, "bundled") for t, s in zip(self._texts, sounds, strict=True)]

    def voices(self, rng: np.random.Generator) -> str:
        return "bundled"

    def say(self, part: ScenePart, voice: str, rng: np.random.Generator) -> Sequence[Utterance]:
        return [self._said[int(rng.integers(len(self._said)))]]


def speakers_here(rate: int, recordings: Path | None = None) -> Speakers:
    """A user's recordings, else the synthesizers that are installed, else what comes along.

    Raises:
        MoshiError: the folder of recordings has none.
    """
    if recordings is not None:
        return RecordedSpeakers(recordings, rate)
    voices = installed_voices()
    if voices:
        return Synthesizers(rate, voices)
    return BundledQuestions(bundled_folder("nano") / "question.wav", rate)
