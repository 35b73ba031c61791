"""How well nano is understood: word errors, and intelligibility by STOI.

Knows sound and texts; nothing of nano's networks. STOI needs `pystoi`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher

import numpy as np

from moshi_mlx.distributions import needs_extra
from moshi_mlx.text import plain_words

_NUMBERS = {
    "0": "zero", "1": "one", "2": "two", "3": "three", "4": "four", "5": "five", "6": "six",
    "7": "seven", "8": "eight", "9": "nine", "10": "ten", "12": "twelve", "40": "forty",
}  # fmt: skip
_CONTRACTIONS = {
    "i'm": "i am", "you're": "you are", "that's": "that is", "it's": "it is", "what's": "what is",
    "let's": "let us", "i'll": "i will", "i've": "i have", "don't": "do not", "didn't": "did not",
    "i'd": "i would", "who's": "who is", "where's": "where is", "how's": "how is", "ok": "okay",
    "can't": "can not", "cannot": "can not",
}  # fmt: skip
_SHORTEST_STOI_SECONDS = 0.8  # pystoi needs 30 loud frames; less gives a constant 1e-5


def word_errors(reference: str, hypothesis: str) -> int:
    """Fewest substituted, inserted and deleted words between two texts."""
    wanted, heard = plain_words(reference), plain_words(hypothesis)
    row = list(range(len(heard) + 1))
    for i, word in enumerate(wanted):
        diagonal, row[0] = row[0], i + 1
        for j, other in enumerate(heard):
            best = min(row[j + 1] + 1, row[j] + 1, diagonal + (word != other))
            diagonal, row[j + 1] = row[j + 1], best
    return row[-1]


def word_error_rate(pairs: Iterable[tuple[str, str]]) -> float:
    """Word errors over reference words for pairs (reference, hypothesis)."""
    pairs = list(pairs)
    return sum(word_errors(r, h) for r, h in pairs) / sum(len(plain_words(r)) for r, _ in pairs)


def matching_words(reference: Sequence[str], heard: Sequence[str]) -> list[tuple[int, int]]:
    """Which words of a reference were heard: pairs of their indices in both, in order."""
    blocks = SequenceMatcher(None, reference, heard, autojunk=False).get_matching_blocks()
    return [(b.a + i, b.b + i) for b in blocks for i in range(b.size)]


def spelt(text: str) -> str:
    """A text as the script writes it: contractions and numbers as words."""
    text = re.sub(r"[\u2019]", "'", text.lower())
    text = re.sub(r"\b\d+\b", lambda m: _NUMBERS.get(m[0], m[0]), text)
    for short, full in _CONTRACTIONS.items():
        text = re.sub(rf"\b{short}\b", full, text)
    return " ".join(plain_words(re.sub(r"[-/]", " ", text)))


def intelligibility(
    reference: np.ndarray, decoded: np.ndarray, sample_rate: int
) -> tuple[float, float]:
    """(STOI, ESTOI) of a decoded recording; NaN for clips too short to tell."""
    with needs_extra("nano", "intelligibility needs pystoi"):
        from pystoi import stoi

    if len(reference) < _SHORTEST_STOI_SECONDS * sample_rate:
        return float("nan"), float("nan")
    scores = [stoi(reference, decoded, sample_rate, extended=e) for e in (False, True)]
    return (scores[0], scores[1]) if min(scores) > 0.01 else (float("nan"), float("nan"))
