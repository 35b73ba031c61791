"""What nano's codec is trained on: a corpus of renditions, and random crops of streams of them.

Knows the script and the synthesizers; nothing of the network.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from . import script
from .speech import (
    NANO_VOICE,
    NOISE_KINDS,
    PHONES,
    SAMPLE_RATE,
    TRAIN_USER_VOICES,
    UNHEARD_USER_VOICES,
    Rendition,
    Speech,
    augment,
    decibels,
    noise,
    speak_all,
    vary,
)

FRAME_SIZE = 1920
PHONE_HOP = 480
"""Samples per phone label: four labels a frame."""

IGNORED_PHONE = -1
_PHONE_INDEX = {phone: i for i, phone in enumerate(PHONES)}

# Renditions of each text.
_OWN_REPLY, _OWN_OTHER, _USER_WORDING, _USER_OTHER = 17, 5, 8, 5


@dataclass(frozen=True)
class Item:
    """One rendition of the corpus.

    `role` is "canonical" (a reply exactly as nano says it), "own" (nano's voice, other tempo or
    other text) or "user"; `split` is "train", "held out" (another rendition of a reply), "new text"
    (a text never trained on) or "unheard" (a voice never trained on).
    """

    role: str
    split: str
    rendition: Rendition


def _rng_for(text: str, salt: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(f"{salt}|{text}".encode()))


def canonical_rendition(reply: str) -> Rendition:
    """The one way in which nano says `reply`."""
    return Rendition(reply, NANO_VOICE, lexicon=tuple(script.SPOKEN_FORMS.items()))


def _own(text: str, count: int) -> list[Rendition]:
    """Nano's voice at other tempos; of its pitch and timbre only slight variations are its own."""
    rng = _rng_for(text, "own")
    ranges = (0.12, 0.03, 0.02)
    return [vary(text, NANO_VOICE, rng, script.SPOKEN_FORMS, ranges=ranges) for _ in range(count)]


def _user(text: str, voices: tuple[str, ...], count: int) -> list[Rendition]:
    rng = _rng_for(text, "user")
    chosen = rng.permutation(len(voices))
    return [vary(text, voices[chosen[i % len(voices)]], rng) for i in range(count)]


def corpus() -> Iterator[Item]:
    """All renditions, the same at every call."""
    for reply in script.replies():
        yield Item("canonical", "train", canonical_rendition(reply))
        *train, held_out = _own(reply, _OWN_REPLY)
        yield from (Item("own", "train", r) for r in train)
        yield Item("own", "held out", held_out)
    wordings = [w for intent in script.INTENTS for w in intent.train_wordings]
    spoken_once = [s for m in script.MONOLOGUES if not m.held_out for s in m.sentences]
    others = [*script.OUT_OF_SCRIPT_TRAIN, *dict.fromkeys(spoken_once)]
    for texts, count in ((wordings, _USER_WORDING), (others, _USER_OTHER)):
        for text in texts:
            yield from (Item("user", "train", r) for r in _user(text, TRAIN_USER_VOICES, count))
            yield from (Item("own", "train", r) for r in _own(text, _OWN_OTHER))
    for text in script.OUT_OF_SCRIPT_HELD_OUT:
        yield Item("own", "new text", _own(text, 1)[0])
        yield Item("user", "new text", _user(text, TRAIN_USER_VOICES, 1)[0])
        yield Item("user", "unheard", _user(text, UNHEARD_USER_VOICES, 1)[0])


@dataclass(frozen=True)
class Clip:
    """Audio [n * 480] int16 of one item and its phone labels [n]; -1 where the phone is unknown."""

    item: Item
    samples: np.ndarray
    phones: np.ndarray

    @property
    def pcm(self) -> np.ndarray:
        """Samples as float32."""
        return self.samples.astype(np.float32) / 32767


def phone_track(speech: Speech, length: int) -> np.ndarray:
    """Phone labels [length] int64, one every 480 samples; silence after the end."""
    track = np.zeros(length, np.int64)
    for phone in speech.phones:
        a, b = (round(t * SAMPLE_RATE / PHONE_HOP) for t in (phone.start, phone.end))
        track[a:b] = _PHONE_INDEX.get(phone.label, IGNORED_PHONE)
    return track


def load_corpus(cache: Path, splits: tuple[str, ...], processes: int = 1) -> list[Clip]:
    """The clips of some splits, whole numbers of frames long; synthesized when not cached."""
    items = [item for item in corpus() if item.split in splits]
    clips = []
    spoken = speak_all([item.rendition for item in items], cache, processes)
    for item, speech in zip(items, spoken, strict=True):
        frames = -(-len(speech.pcm) // FRAME_SIZE)
        pcm = np.pad(speech.pcm, (0, frames * FRAME_SIZE - len(speech.pcm)))
        samples = np.round(pcm * 32767).astype(np.int16)
        clips.append(Clip(item, samples, phone_track(speech, len(pcm) // PHONE_HOP)))
    return clips


@dataclass(frozen=True)
class Crop:
    """`source` and `target` [frames * 1920] float32, `phones` [frames * 4] int64."""

    source: np.ndarray
    target: np.ndarray
    phones: np.ndarray


class CropSampler:
    """Endless random crops of streams of clips with gaps.

    The user's side is heard through rooms, microphones and noise while its target stays clean, so
    the codes describe the speech and noise alone sounds like silence.
    """

    ROLES: ClassVar = {"canonical": 0.18, "own": 0.40, "user": 0.36, "silence": 0.06}

    def __init__(self, clips: list[Clip], seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.clips = {
            role: [c for c in clips if c.item.role == role and c.item.split == "train"]
            for role in ("canonical", "own", "user")
        }

    def _pick(self, role: str) -> Clip:
        clips = self.clips[role]
        return clips[self.rng.integers(len(clips))]

    def _stream(self, role: str, frames: int) -> tuple[np.ndarray, np.ndarray]:
        """Clean audio and phones from a random place on; canonical clips start on a frame."""
        rng, length = self.rng, frames * FRAME_SIZE
        grid = FRAME_SIZE if role == "canonical" else PHONE_HOP
        clip = self._pick(role)
        if rng.uniform() < 0.25:
            skip = -int(rng.integers(length // 2))
        else:
            skip = int(rng.integers(max(1, len(clip.samples) - length // 3)))
        skip = skip // grid * grid
        lead = max(0, -skip)
        pcm = [np.zeros(lead, np.float32), clip.pcm[max(0, skip) :]]
        phones = [np.zeros(lead // PHONE_HOP, np.int64), clip.phones[max(0, skip) // PHONE_HOP :]]
        while sum(map(len, pcm)) < length:
            gap = int(rng.integers(6)) * FRAME_SIZE
            clip = self._pick(role)
            pcm += [np.zeros(gap, np.float32), clip.pcm]
            phones += [np.zeros(gap // PHONE_HOP, np.int64), clip.phones]
        return np.concatenate(pcm)[:length], np.concatenate(phones)[: length // PHONE_HOP]

    def crop(self, frames: int) -> Crop:
        """One crop of `frames` frames."""
        rng = self.rng
        role = rng.choice(list(self.ROLES), p=list(self.ROLES.values()))
        if role == "silence":
            length = frames * FRAME_SIZE
            silence = np.zeros(length, np.float32)
            level = 0.0 if rng.uniform() < 0.3 else decibels(rng.uniform(-85, -40))
            hiss = level * noise(str(rng.choice(NOISE_KINDS)), length, rng)
            return Crop(hiss.astype(np.float32), silence, np.zeros(length // PHONE_HOP, np.int64))
        pcm, phones = self._stream(role, frames)
        if role != "user":
            gain = decibels(rng.uniform(-2, 2)) if role == "own" and rng.uniform() < 0.3 else 1.0
            pcm = (pcm * gain).astype(np.float32)
            return Crop(pcm, pcm, phones)
        gain = decibels(rng.uniform(-10, 4))
        target = (pcm * gain).astype(np.float32)
        return Crop(augment(target, rng, gain_db=0.0), target, phones)

    def batch(self, size: int, frames: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Sources and targets [size, samples], phones [size, frames, 4]."""
        crops = [self.crop(frames) for _ in range(size)]
        source, target, phones = (
            np.stack([getattr(c, field) for c in crops]) for field in ("source", "target", "phones")
        )
        return source, target, phones.reshape(size, frames, -1)
