"""Stand-ins for a session and a model, for tests that need no weights.

A program that drives a session can test its own loop, sound and command line with them: one says
back what it hears, the other what a script says.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from .arguments import samples, whole
from .arrays import Pcm
from .closing import Closing
from .errors import ArgumentError, SessionError
from .events import WordSpoken
from .sampling import Sampling
from .session import Frame, Timing
from .text import Word
from .worker import Worker

if TYPE_CHECKING:  # the family is imported with its first model
    from .families.dialogue import Moshi

SAMPLE_RATE = 24_000  # Mimi's
FRAME_SIZE = 1920
FRAME_RATE = SAMPLE_RATE / FRAME_SIZE
FRAMES_PER_WORD = 12


class FakeSession:
    """`step` returns its input after `delays[frame]` seconds (0 where not given)."""

    def __init__(self, delays: dict[int, float] | None = None) -> None:
        self.delays = delays or {}
        self.heard: list[Pcm] = []
        self.resets = 0
        self.held: list[bool] = []

    def step(self, pcm: Pcm, *, hold_text: bool = False) -> Frame:
        """One frame, echoed; `held` keeps what `hold_text` was."""
        index = len(self.heard)
        began = time.perf_counter()
        time.sleep(self.delays.get(index, 0.0))
        self.heard.append(pcm.copy())
        self.held.append(hold_text)
        word = index % FRAMES_PER_WORD == FRAMES_PER_WORD - 1
        end = (index + 1) / FRAME_RATE
        words = (Word(f"word{index}", end - 0.4, end),) if word else ()
        return Frame(
            index=index,
            pcm=pcm.copy(),
            text=" word" if word else "",
            words=words,
            partial="",
            speaking=word,
            user_speaking=False,
            tokens=None,
            events=tuple(WordSpoken(w.end, w) for w in words),
            timing=Timing(encode=0.0, model=time.perf_counter() - began, decode=0.0),
        )

    def flush(self) -> tuple[Word, ...]:
        """The word that was still open."""
        end = len(self.heard) / FRAME_RATE
        return (Word("last", end - 0.1, end),)

    def reset(self) -> None:
        """Forget everything."""
        self.heard.clear()
        self.held.clear()
        self.resets += 1


TONE_SECONDS = 0.24
"""Of a word that has no sound of its own."""
_TONE_HZ, _TONE_LEVEL = 220.0, 0.2
_LOUD = 0.01  # of what is heard: from here on it is speech


def scripted(words: Mapping[int, str], sounds: Mapping[int, npt.ArrayLike] | None = None) -> Moshi:
    """A model whose every conversation says the same, whatever it hears; in place of a `Moshi`.

        moshi = scripted({3: "Hello", 6: "there."})
        with moshi.session() as session:
            frames = [session.step(np.zeros(moshi.frame_size)) for _ in range(8)]
        assert frames[6].words[0].text == "there."

    It has what sessions and programs use: `session`, `sample_rate`, `frame_size`, `frame_rate`,
    `name`, `worker`. A `session` takes any arguments of a model's and heeds none.

    Args:
        words: by the frame in which each is said, from 0.
        sounds: by the frame in which each begins, float [samples] of any length, in −1 … 1; None:
            a short tone for each word.

    Raises:
        ArgumentError: a frame is no whole number, or a sound none.
    """
    for frame in (*words, *(sounds or {})):
        whole("a frame of the script", frame, 0, 2**31)
    return cast("Moshi", ScriptedModel(words, _voice(words, sounds)))


def _voice(words: Mapping[int, str], sounds: Mapping[int, npt.ArrayLike] | None) -> Pcm:
    """All sounds, each at its place, float32 [samples]."""
    if sounds is None:
        t = np.arange(round(TONE_SECONDS * SAMPLE_RATE)) / SAMPLE_RATE
        tone = _TONE_LEVEL * np.sin(2 * np.pi * _TONE_HZ * t)
        sounds = dict.fromkeys(words, tone)
    placed = {frame * FRAME_SIZE: samples(sound) for frame, sound in sounds.items()}
    if any(pcm.ndim != 1 for pcm in placed.values()):
        raise ArgumentError("a sound of the script must have one dimension, its samples")
    voice = np.zeros(max((at + len(pcm) for at, pcm in placed.items()), default=0), np.float32)
    for at, pcm in placed.items():
        voice[at : at + len(pcm)] += pcm
    return np.pad(voice, (0, -len(voice) % FRAME_SIZE))


class ScriptedModel:
    """What `scripted` gives.

    Args:
        words: by the frame in which each is said.
        voice: float32 [samples], whole frames.
    """

    name = "scripted"
    sample_rate, frame_size, frame_rate = SAMPLE_RATE, FRAME_SIZE, FRAME_RATE
    text_sampling = audio_sampling = Sampling()

    def __init__(self, words: Mapping[int, str], voice: Pcm) -> None:
        self.worker = Worker()
        self._words, self._voice = dict(words), voice

    def session(self, **_: Any) -> ScriptedSession:
        """A conversation, at the beginning of the script."""
        return ScriptedSession(self._words, self._voice)

    def voices(self) -> list[str]:
        """None."""
        return []


class ScriptedSession(Closing):
    """A conversation that says what its script says; in place of a `Session`.

    Args:
        words: by the frame in which each is said.
        voice: float32 [samples], whole frames.
    """

    opening = None
    _joins = False  # it is stepped alone

    def __init__(self, words: Mapping[int, str], voice: Pcm) -> None:
        self._words, self._voice = words, voice
        self._closed = False
        self.frames = 0
        """Stepped since the beginning or the last reset."""

    def step(self, pcm: npt.ArrayLike, *, hold_text: bool = False) -> Frame:
        """The next frame of the script.

        Args:
            pcm: [frame_size], as a model's session takes it; only whether it sounds is told.
            hold_text: a word that the frame would have is left out.

        Raises:
            SessionError: the session is closed, or the shape is wrong.
        """
        if self._closed:
            raise SessionError("this session is closed: open a new one")
        heard = samples(pcm)
        if heard.shape != (FRAME_SIZE,):
            raise SessionError(f"a frame is {FRAME_SIZE} samples, this has shape {heard.shape}")
        index, self.frames = self.frames, self.frames + 1
        said = None if hold_text else self._words.get(index)
        words = () if said is None else (Word(said, index / FRAME_RATE, self.frames / FRAME_RATE),)
        sound = self._voice[index * FRAME_SIZE : self.frames * FRAME_SIZE].copy()
        if not len(sound):
            sound = np.zeros(FRAME_SIZE, np.float32)
        return Frame(
            index=index,
            pcm=sound,
            text="" if said is None else f" {said}",
            words=words,
            partial="",
            speaking=bool(sound.any()),
            user_speaking=float(np.sqrt(np.mean(heard**2))) > _LOUD,
            tokens=None,
            events=tuple(WordSpoken(word.end, word) for word in words),
            timing=Timing(encode=0.0, model=0.0, decode=0.0),
        )

    def flush(self) -> tuple[Word, ...]:
        """No word is ever open."""
        return ()

    def reset(self) -> None:
        """Back to the beginning of the script."""
        self.frames = 0

    def close(self) -> None:
        """Ends it."""
        self._closed = True
