"""Sound before it becomes tokens: loudness, what a room adds, and conversations from monologues.

All sound is float32 in −1 … 1; levels are in dBFS. Knows nothing of files, tokens or models.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from ..arrays import Pcm
from ..text import Word
from .fields import Range, Share

# Stretches of 20 ms that are softer than this are silence when loudness is measured.
_GATE_DB = -50.0
_GATE_SECONDS = 0.02

_Pair = tuple[float, float]


def gain(db: float) -> float:
    """The factor of a difference in level."""
    return float(10.0 ** (db / 20.0))


def speech_level(pcm: Pcm, sample_rate: int) -> float:
    """Loudness of what sounds: RMS in dBFS over the 20 ms that aren't silent; −inf if all are."""
    size = round(_GATE_SECONDS * sample_rate)
    blocks = pcm[: len(pcm) // size * size].reshape(-1, size)
    powers = np.square(blocks, dtype=np.float64).mean(axis=1)
    loud = powers[powers > gain(_GATE_DB) ** 2]
    return 10.0 * math.log10(float(loud.mean())) if len(loud) else -math.inf


def levelled(pcm: Pcm, db: float, sample_rate: int) -> Pcm:
    """The sound at a loudness of `db`, or as near as it gets without clipping; silence stays."""
    now = speech_level(pcm, sample_rate)
    if now == -math.inf:
        return pcm
    peak = float(np.abs(pcm).max())
    factor = min(gain(db - now), 0.99 / peak)
    louder: Pcm = (pcm * factor).astype(np.float32)
    return louder


@dataclass(frozen=True)
class UserSide:
    """How the user's side is varied: ranges, in each of which a value is drawn per recording.

    gain_db: how much louder or softer, in dB.
    noise_db: white noise that is added, in dBFS.
    echo_db: level of Moshi's voice in the user's microphone, in dB relative to its own.
    echo_seconds: how late that echo comes.
    echo_share: share of the recordings in which it leaks.
    """

    gain_db: Annotated[_Pair, Range(-100, 60, "dB", ascending=True)] = (-10.0, 4.0)
    noise_db: Annotated[_Pair, Range(-200, 0, "dBFS", ascending=True)] = (-80.0, -50.0)
    echo_db: Annotated[_Pair, Range(-200, 0, "dB", ascending=True)] = (-45.0, -25.0)
    echo_seconds: Annotated[_Pair, Range(0, 10, "s", ascending=True)] = (0.02, 0.3)
    echo_share: Share = 0.3


def varied(
    user: Pcm, own: Pcm, config: UserSide, sample_rate: int, rng: np.random.Generator
) -> Pcm:
    """The user's side with other loudness, noise, and perhaps an echo of Moshi's."""
    out = user * gain(rng.uniform(*config.gain_db))
    noise = gain(rng.uniform(*config.noise_db))
    out = out + noise * rng.standard_normal(len(user), dtype=np.float32)
    leak, late = gain(rng.uniform(*config.echo_db)), rng.uniform(*config.echo_seconds)
    if rng.random() < config.echo_share:
        out = out + leak * late_by(own, round(late * sample_rate), len(user))
    clipped: Pcm = np.clip(out, -1.0, 1.0).astype(np.float32)
    return clipped


def late_by(pcm: Pcm, samples: int, length: int) -> Pcm:
    """The sound `samples` later, cut or filled to `length`."""
    out = np.zeros(length, dtype=np.float32)
    kept = pcm[: max(0, length - samples)]
    out[samples : samples + len(kept)] = kept
    return out


@dataclass(frozen=True)
class Clip:
    """One speaker's utterance: its sound [samples], and its words timed from its beginning."""

    pcm: Pcm
    words: tuple[Word, ...] = ()


@dataclass(frozen=True)
class MixConfig:
    """How utterances of single speakers become a conversation.

    pause: seconds between turns, drawn in this range.
    overlap_share: share of the turns that begin before the other's is over,
    overlap: by a number of seconds drawn from this range.
    lead, tail: seconds of silence at both ends.
    """

    pause: tuple[float, float] = (0.2, 0.8)
    overlap_share: float = 0.1
    overlap: tuple[float, float] = (0.1, 0.6)
    lead: float = 0.5
    tail: float = 1.0


@dataclass(frozen=True)
class TwoSides:
    """Two sides, float32 [2, samples], Moshi's first; and Moshi's words."""

    pcm: Pcm
    words: tuple[Word, ...]


def conversation(
    turns: Sequence[tuple[bool, Clip]],
    config: MixConfig,
    sample_rate: int,
    rng: np.random.Generator,
) -> TwoSides:
    """Puts utterances one after the other on two sides.

    Args:
        turns: in order: whether it is Moshi's, and the utterance.
        config: pauses and overlaps.
        sample_rate: of the clips.
        rng: draws them.
    """
    places: list[tuple[bool, Clip, int]] = []
    end = round(config.lead * sample_rate)
    for own, clip in turns:
        wait = rng.uniform(*config.pause)
        if places and rng.random() < config.overlap_share and own != places[-1][0]:
            wait = -rng.uniform(*config.overlap)
        start = max(0, end + round(wait * sample_rate)) if places else end
        places.append((own, clip, start))
        end = max(end, start + len(clip.pcm))
    pcm = np.zeros((2, end + round(config.tail * sample_rate)), dtype=np.float32)
    words: list[Word] = []
    for own, clip, start in places:
        pcm[0 if own else 1, start : start + len(clip.pcm)] += clip.pcm
        if own:
            offset = start / sample_rate
            words += [Word(w.text, w.start + offset, w.end + offset) for w in clip.words]
    return TwoSides(np.clip(pcm, -1.0, 1.0), tuple(sorted(words, key=lambda w: w.start)))
