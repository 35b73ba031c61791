"""Sound is let through in whole words, and none of it is lost."""

from __future__ import annotations

import numpy as np

from moshi_local.whole_words import WholeWords

RATE = 1000


def sound(seconds: float, level: float = 1.0) -> np.ndarray:
    return np.full(round(seconds * RATE), level, np.float32)


def test_a_word_is_held_until_its_end_is_there() -> None:
    words = WholeWords(RATE)
    assert not len(words.add(sound(0.3), []))
    first = words.add(sound(0.3), [0.4, 0.9])
    assert 0.32 <= len(first) / RATE <= 0.4, "up to the end of the first word"
    assert not len(words.add(sound(0.2), []))
    second = words.add(sound(0.2), [])
    assert 0.82 <= (len(first) + len(second)) / RATE <= 0.9, "the second word's end has come"
    assert len(first) + len(second) + len(words.rest()) == RATE
    assert not len(words.rest())


def test_it_is_cut_where_it_is_quiet() -> None:
    words = WholeWords(RATE)
    pcm = sound(0.5)
    pcm[350:360] = 0.0
    assert len(words.add(pcm, [0.4])) == 355
    assert len(words.rest()) == 145


def test_what_comes_in_order_is_the_same() -> None:
    words, rng = WholeWords(RATE), np.random.default_rng(0)
    pcm = rng.standard_normal(5000).astype(np.float32)
    ends = [0.3, 0.31, 1.7, 2.0, 4.9]
    out = [
        words.add(pcm[at : at + 80], [end for end in ends if at <= end * RATE < at + 80])
        for at in range(0, 5000, 80)
    ]
    np.testing.assert_array_equal(np.concatenate([*out, words.rest()]), pcm)
