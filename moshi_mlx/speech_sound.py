"""What one script of a speech run sounds like: frames of codes → sound, and words with times.

Knows codecs and clocks. Knows nothing of how codes and tokens come about.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .arrays import Codes, Pcm
from .speech_machine import SpeechMachine
from .text import Word

Decode = Callable[[Codes, Any], Pcm]
"""Codes [codebooks, N] and the state of a stream → float32 [N · frame_size]."""


@dataclass(frozen=True)
class SpokenWord(Word):
    """A word of a script, or a pause, whose text is empty.

    speaker: 0 is the main one, 1 the other.
    """

    speaker: int = 0


@dataclass(frozen=True, eq=False)
class SpokenChunk:
    """The next piece of speech.

    pcm: float32 [samples] in −1 … 1.
    words: those that end with it, with their times in seconds from the first sample of all.
    sides: float32 [samples] of each speaker, where a model makes them apart; else none.
    """

    pcm: Pcm
    words: tuple[SpokenWord, ...] = ()
    sides: tuple[Pcm, ...] = ()


class SpeechSound:
    """One script's sound and words.

    Args:
        machine: of the script.
        decode: of the codec.
        states: a fresh stream of the codec for each speaker that has codebooks of its own.
        codebooks: of each of them, among those that are generated.
        frame_rate: frames per second.
        prefix: codes [n_q, T] that are heard before the script begins.
        final_padding: frames after its end.
    """

    def __init__(
        self,
        machine: SpeechMachine,
        decode: Decode,
        states: Sequence[Any],
        codebooks: Sequence[slice],
        *,
        frame_rate: float,
        prefix: Codes | None,
        final_padding: int,
    ) -> None:
        self._machine, self._decode = machine, decode
        self._states, self._codebooks = states, codebooks
        self._frame_rate, self._final_padding = frame_rate, final_padding
        self._first = 0 if prefix is None else prefix.shape[1]
        if prefix is not None and self._first:
            self._sides(prefix)

    def add(self, codes: Codes, index: int) -> SpokenChunk | None:
        """The sound of a frame; None for what is not of the script, before and after it.

        Args:
            codes: int32 [generated].
            index: the step of the text that sounds in it.
        """
        if index < self._first or self._over(index):
            return None
        sides = self._sides(codes[:, None])
        mixed = np.sum(sides, axis=0) if len(sides) > 1 else sides[0]
        words = self._words(index + 1)
        clipped: Pcm = np.clip(mixed, -1.0, 1.0)
        return SpokenChunk(clipped, words, sides if len(sides) > 1 else ())

    def last_words(self, frames: int) -> tuple[SpokenWord, ...]:
        """Those that the sound ends before they do.

        Args:
            frames: of the script's sound, all in all.
        """
        return self._words(None, self._first + frames)

    def _over(self, index: int) -> bool:
        end = self._machine.end_step
        return end is not None and index >= end + self._final_padding

    def _sides(self, codes: Codes) -> tuple[Pcm, ...]:
        pairs = zip(self._codebooks, self._states, strict=True)
        return tuple(self._decode(codes[which], state) for which, state in pairs)

    def _words(self, until: int | None, most: int | None = None) -> tuple[SpokenWord, ...]:
        """Words that end by a step, which are then forgotten; all, ending by `most`, if None."""
        taken, end = self._machine.taken, self._machine.end_step
        found: list[SpokenWord] = []
        while taken:
            ends = taken[1].step if len(taken) > 1 else end
            if ends is None or (until is not None and ends > until):
                break
            entry, start = taken[0].entry, taken[0].step
            if most is not None:
                ends = max(start, min(ends, most))
            begins, over = ((step - self._first) / self._frame_rate for step in (start, ends))
            found.append(SpokenWord(entry.text, begins, over, entry.speaker))
            del taken[0]
        return tuple(found)
