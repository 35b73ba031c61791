"""Hear which of some known sentences was spoken: pocketsphinx with a closed grammar.

An independent ear for the tests of nano's voice. A closed grammar always hears one of its
sentences, so give it many: then a right answer is evidence.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pocketsphinx
import soxr
from numpy.typing import NDArray

RATE = 16_000
PAUSE_SECONDS = (0.2, 0.3)
"""Near-silence put before and after the speech: the recogniser expects some."""
NOISE = 1e-4

EXTRA_WORDS = {
    "bonjour": "B AA N ZH UH R",
    "hm": "HH AH M",
    "hmm": "HH AH M",
    "la": "L AA",
    "mm": "AH M",
    "moshi": "M OW SH IY",
}


def plain(text: str) -> str:
    """`text` as the recogniser writes it: lower case, no punctuation."""
    return " ".join(re.sub(r"[^a-z']", " ", text.lower()).split())


class Recognizer:
    """Tells which of `sentences` is heard. Raises ValueError for words without pronunciation."""

    def __init__(self, sentences: Iterable[str]) -> None:
        self.sentences = sorted({plain(s) for s in sentences} - {""})
        needed = {word for sentence in self.sentences for word in sentence.split()}
        entries = [f"{w} {p}" for w, p in EXTRA_WORDS.items() if w in needed]
        entries += [
            line
            for line in _dictionary()
            if (word := _base(line)) in needed and word not in EXTRA_WORDS
        ]
        if missing := needed - {_base(line) for line in entries}:
            raise ValueError(f"no pronunciation for {', '.join(sorted(missing))}")
        with tempfile.TemporaryDirectory() as folder:
            words, grammar = Path(folder) / "words.dict", Path(folder) / "replies.gram"
            words.write_text("\n".join(entries) + "\n")
            grammar.write_text(
                f"#JSGF V1.0;\ngrammar replies;\npublic <reply> = {' | '.join(self.sentences)} ;\n"
            )
            self._decoder = pocketsphinx.Decoder(
                hmm=pocketsphinx.get_model_path("en-us/en-us"),
                jsgf=str(grammar),
                dict=str(words),
                samprate=RATE,
                loglevel="FATAL",
            )

    def __call__(self, speech: NDArray[np.float32], rate: int) -> str:
        """The sentence heard in `speech` (float32 [samples] at `rate` Hz), or ""."""
        sound = soxr.resample(speech, rate, RATE)
        before, after = (round(seconds * RATE) for seconds in PAUSE_SECONDS)
        sound = np.pad(sound, (before, after))
        sound = sound + NOISE * np.random.default_rng(0).standard_normal(len(sound))
        pcm = (32_000 * np.clip(sound, -1, 1)).astype(np.int16)
        self._decoder.start_utt()
        self._decoder.process_raw(pcm.tobytes(), full_utt=True)
        self._decoder.end_utt()
        heard = self._decoder.hyp()
        return heard.hypstr if heard else ""


def phrases(
    words: Sequence[dict[str, float | str]], pause: float = 1.0
) -> list[tuple[str, float, float]]:
    """The `words` of a `--json` summary as (plain text, start, end), split at pauses (seconds)."""
    found: list[tuple[str, float, float]] = []
    for word in words:
        text, start, end = str(word["text"]), float(word["start"]), float(word["end"])
        if found and start - found[-1][2] < pause:
            before = found.pop()
            found.append((f"{before[0]} {text}", before[1], end))
        else:
            found.append((text, start, end))
    return [(plain(text), start, end) for text, start, end in found]


@cache
def _dictionary() -> list[str]:
    path = pocketsphinx.get_model_path("en-us/cmudict-en-us.dict")
    return Path(path).read_text().splitlines()


def _base(line: str) -> str:
    """The word of a dictionary line, without the number of a second pronunciation."""
    return re.sub(r"\(\d+\)$", "", line.split()[0])
