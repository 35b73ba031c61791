"""How well nano is understood: word errors, and intelligibility by STOI.

Knows sound and texts; nothing of nano's networks. Needs `pystoi`.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from moshi_mlx.distributions import needs_extra
from moshi_quantize.listening import plain_words

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
