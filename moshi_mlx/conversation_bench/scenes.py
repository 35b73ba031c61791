"""Scenes of the bench: what a user's side sounds like, and what is to be seen in the answer.

Knows sound, times and texts; nothing of models. A scene is made when it is asked for, so that a
thousand of them take no memory.
"""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

from ..arrays import Pcm
from .acoustics import at_level, band, decibels_to_factor, in_room, pink_noise, with_pause
from .scores import BIN_SECONDS, Behaviour, Span
from .speakers import LEVEL, ScenePart, Speakers, Utterance

AFTER_SECONDS = 6.0
"""For an answer, after the user's last word."""
_LEAD = (0.5, 1.0)  # seconds before the user begins
_HESITATION = (0.4, 1.5)
_SENTENCE_PAUSE = (0.7, 1.0)
_SPOKEN_FOR = (0.4, 1.0)  # seconds that the model has been speaking when something comes in between
_FLOOR = -75.0  # dBFS of noise, always: a microphone is never silent
_ASIDE_DB, _BACKGROUND_DB = -6.0, -18.0  # against the user's voice
_MURMUR_SECONDS = 1.0  # after a pause's start


class Axis(StrEnum):
    """What the bench looks at; from `INTERRUPTION` on, something comes while the model speaks."""

    PAUSE = "pause_handling"
    BACKCHANNEL = "backchannel"
    TURN = "turn_taking"
    INTERRUPTION = "user_interruption"
    USER_BACKCHANNEL = "user_backchannel"
    OTHERS = "talking_to_other"
    BACKGROUND = "background_speech"


RIGHT: Mapping[Axis, Behaviour] = {
    Axis.INTERRUPTION: Behaviour.RESPOND,
    Axis.USER_BACKCHANNEL: Behaviour.RESUME,
    Axis.OTHERS: Behaviour.RESUME,
    Axis.BACKGROUND: Behaviour.RESUME,
}
"""The behaviour that is right after an overlap."""

NEEDS: Mapping[Axis, frozenset[ScenePart]] = {
    Axis.PAUSE: frozenset({ScenePart.QUESTION}),
    Axis.BACKCHANNEL: frozenset({ScenePart.STORY}),
    Axis.TURN: frozenset({ScenePart.QUESTION}),
    Axis.INTERRUPTION: frozenset({ScenePart.QUESTION}),
    Axis.USER_BACKCHANNEL: frozenset({ScenePart.QUESTION, ScenePart.BACKCHANNEL}),
    Axis.OTHERS: frozenset({ScenePart.QUESTION, ScenePart.ASIDE}),
    Axis.BACKGROUND: frozenset({ScenePart.QUESTION, ScenePart.BACKGROUND}),
}
"""What must be said in a scene of each axis."""


@dataclass(frozen=True)
class Cue:
    """Sound that comes when the model has been speaking for `after` seconds since its turn began.

    If it does not speak it comes when it has been waited for long enough.
    """

    pcm: Pcm
    after: float


@dataclass(frozen=True)
class Marks:
    """Where to look in a scene; times in seconds.

    axis: what it is of.
    name: within the axis.
    turn_end: where the user's turn ends.
    spoken: the stretches of the user's voice.
    pause: within the user's turn, where there is one.
    overlap: what sounds while the model speaks, from its start to its end.
    overlap_text, context: what is said there, and in the user's turn before; empty: not known.
    people: how likely people murmur, at evenly spaced times.
    in_time: the model was speaking when the overlap came; None: it came at a fixed time.
    """

    axis: Axis
    name: str
    turn_end: float
    spoken: Sequence[Span] = ()
    pause: Span | None = None
    overlap: Span | None = None
    overlap_text: str = ""
    context: str = ""
    people: Sequence[float] | None = None
    in_time: bool | None = None


@dataclass(frozen=True)
class Scene:
    """A user's side.

    user: float32 [samples], until the cue's sound if there is one.
    marks: as far as they are known before the cue.
    cue: what comes while the model speaks.
    after: seconds of silence at the end.
    """

    marks: Marks
    user: Pcm
    cue: Cue | None = None
    after: float = AFTER_SECONDS
    seed: int = field(default=0, compare=False)


def scene_seed(seed: int, axis: Axis, name: str) -> int:
    """Of a scene's random numbers, which depend on nothing else."""
    return zlib.crc32(f"{seed}|{axis}|{name}".encode())


def made_scenes(
    axes: Sequence[Axis], count: int, speakers: Speakers, rate: int, seed: int
) -> Iterator[Scene]:
    """Scenes of each axis that the speakers can make, one after the other.

    Args:
        axes: of which.
        count: scenes of each.
        speakers: who the users are.
        rate: samples per second.
        seed: the same one gives the same scenes.
    """
    for axis in axes:
        if NEEDS[axis] <= speakers.parts:
            for number in range(count):
                name = f"{number}"
                own = scene_seed(seed, axis, name)
                yield made_scene(axis, name, speakers, rate, own)


def made_scene(axis: Axis, name: str, speakers: Speakers, rate: int, seed: int) -> Scene:
    """One scene."""
    rng = np.random.default_rng(seed)
    voice = speakers.voices(rng)
    lead = rng.uniform(*_LEAD)
    if axis is Axis.BACKCHANNEL:
        return _story(name, speakers.say(ScenePart.STORY, voice, rng), lead, rate, rng, seed)
    (question,) = speakers.say(ScenePart.QUESTION, voice, rng)
    pcm = question.pcm
    pause: Span | None = None
    if axis is Axis.PAUSE:
        pcm, (start, end) = with_pause(pcm, rate, rng.uniform(*_HESITATION))
        pause = (lead + start, lead + end)
    turn_end = lead + len(pcm) / rate
    user = _with_floor(np.pad(pcm, (round(lead * rate), 0)), rate, rng)
    spoken = [(lead, turn_end)] if pause is None else [(lead, pause[0]), (pause[1], turn_end)]
    if axis in (Axis.PAUSE, Axis.TURN):
        marks = Marks(axis, name, turn_end, spoken, pause, context=question.text)
        return Scene(marks, user, seed=seed)
    other, sound = _overlap(axis, speakers, voice, question, rate, rng)
    marks = Marks(axis, name, turn_end, spoken, overlap_text=other, context=question.text)
    return Scene(marks, user, Cue(sound, rng.uniform(*_SPOKEN_FOR)), seed=seed)


def _overlap(
    axis: Axis,
    speakers: Speakers,
    voice: str,
    question: Utterance,
    rate: int,
    rng: np.random.Generator,
) -> tuple[str, Pcm]:
    """What is said while the model speaks, and how it sounds at the user's microphone."""
    part = {
        Axis.INTERRUPTION: ScenePart.QUESTION,
        Axis.USER_BACKCHANNEL: ScenePart.BACKCHANNEL,
        Axis.OTHERS: ScenePart.ASIDE,
        Axis.BACKGROUND: ScenePart.BACKGROUND,
    }[axis]
    for _ in range(10):  # another question than the first, if there are several
        speaker = voice
        if axis is Axis.BACKGROUND:
            speaker = speakers.voices(rng)
        (said,) = speakers.say(part, speaker, rng)
        if said.text != question.text or not said.text:
            break
    pcm = said.pcm
    if axis is Axis.OTHERS:  # turned away from the microphone
        pcm = at_level(band(pcm, rate, 80, 4000, order=1), rate, LEVEL + _ASIDE_DB)
    if axis is Axis.BACKGROUND:  # from the other end of a room
        pcm = at_level(in_room(pcm, rate, 0.5, -3.0, rng), rate, LEVEL + _BACKGROUND_DB)
    return said.text, pcm


def _story(
    name: str,
    sentences: Sequence[Utterance],
    lead: float,
    rate: int,
    rng: np.random.Generator,
    seed: int,
) -> Scene:
    """A long turn with pauses between its sentences; ends with the last word."""
    pieces = [np.zeros(round(lead * rate), np.float32)]
    at, spoken = lead, []
    for number, sentence in enumerate(sentences):
        if number:
            silence = rng.uniform(*_SENTENCE_PAUSE)
            pieces.append(np.zeros(round(silence * rate), np.float32))
            at += silence
        pieces.append(sentence.pcm)
        spoken.append((at, at + len(sentence.pcm) / rate))
        at = spoken[-1][1]
    text = ". ".join(sentence.text for sentence in sentences)
    likely = _murmur_times([end for _, end in spoken[:-1]], at)
    marks = Marks(Axis.BACKCHANNEL, name, at, spoken, context=text, people=likely)
    return Scene(marks, _with_floor(np.concatenate(pieces), rate, rng), after=0.0, seed=seed)


def _murmur_times(ends: Sequence[float], seconds: float) -> list[float] | None:
    """In place of people's timing, for a scene that is made: the first second of each pause.

    None where there is no pause.
    """
    likely = np.zeros(int(seconds / BIN_SECONDS) + 1)
    for end in ends:
        first = int(end / BIN_SECONDS)
        likely[first : first + round(_MURMUR_SECONDS / BIN_SECONDS)] = 1
    return likely.tolist() if ends else None


def _with_floor(pcm: Pcm, rate: int, rng: np.random.Generator) -> Pcm:
    return (pcm + decibels_to_factor(_FLOOR) * pink_noise(len(pcm), rate, rng)).astype(np.float32)
