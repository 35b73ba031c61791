"""New sentences of the words of clips, cut apart between their codes, and other tempos.

Knows clips; nothing of sound, of text tokens or of models. A model that sees the same few clips
many times learns them by heart; words in other company cannot be.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from .clips import Clip


class SpokenWords:
    """Where each word of the clips is said, by voice; clips may be added at their end.

    A word is written as in the clips, with its punctuation.
    """

    def __init__(self, clips: Sequence[Clip]) -> None:
        self._clips, self._known = clips, 0
        self._places: dict[tuple[str, str], list[tuple[int, int]]] = defaultdict(list)

    def spliced(self, words: Sequence[str], voice: str, rng: np.random.Generator) -> Clip | None:
        """A clip of these words as one voice says them in others; None if it lacks one.

        What comes before and after the speech is that of the first and the last one's clip.
        """
        self._learn()
        places = [self._places.get((voice, word), []) for word in words]
        if not words or not all(places):
            return None
        chosen = [place[int(rng.integers(len(place)))] for place in places]
        first, last = self._clips[chosen[0][0]], self._clips[chosen[-1][0]]
        pieces = [first.codes[:, : _begins(first)[0]]]
        at, starts, end = pieces[0].shape[1], [], 0.0
        for number, word in chosen:
            clip = self._clips[number]
            begins = _begins(clip)
            begin, stop = begins[word], begins[word + 1]
            starts.append(at + clip.starts[word] - begin)
            end = at + min(stop, clip.end) - begin
            pieces.append(clip.codes[:, begin:stop])
            at += stop - begin
        pieces.append(last.codes[:, _begins(last)[-1] :])
        return Clip(np.concatenate(pieces, 1), tuple(words), tuple(starts), end, voice)

    def _learn(self) -> None:
        count = len(self._clips)
        for number in range(self._known, count):
            clip = self._clips[number]
            begins = _begins(clip)
            for i, word in enumerate(clip.words):
                if 0 <= begins[i] < begins[i + 1]:
                    self._places[clip.voice, word].append((number, i))
        self._known = count


def _begins(clip: Clip) -> list[int]:
    """The words' first frames, and the frame after the last one."""
    return [*(int(start) for start in clip.starts), min(int(np.ceil(clip.end)), clip.frames)]


def jittered(clip: Clip, share: float, rng: np.random.Generator) -> Clip:
    """The clip without some of its frames and with others twice, `share` of all; times follow."""
    draw = rng.uniform(size=clip.frames)
    copies = np.where(draw < share / 2, 0, np.where(draw < share, 2, 1))
    there = np.concatenate([[0], np.cumsum(copies)])
    starts = np.interp(clip.starts, np.arange(len(there)), there)
    end = float(np.interp(clip.end, np.arange(len(there)), there))
    codes = np.repeat(clip.codes, copies, axis=1)
    return Clip(codes, clip.words, tuple(starts.tolist()), end, clip.voice)
