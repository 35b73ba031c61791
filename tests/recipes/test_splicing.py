"""Sentences of words that were said in others."""

import numpy as np

from recipes.nano.clips import CODEBOOKS, Clip
from recipes.nano.splicing import SpokenWords, jittered


def clip(first: int, words: str, starts: tuple[float, ...], end: float, voice: str = "a") -> Clip:
    codes = np.tile(np.arange(first, first + 20, dtype=np.int16), (CODEBOOKS, 1))
    return Clip(codes, tuple(words.split()), starts, end, voice)


def test_words_come_with_their_frames_and_their_starts() -> None:
    clips = [clip(100, "good night", (2.25, 6.5), 9.75), clip(200, "hello you", (1.0, 4.0), 8.0)]
    words = SpokenWords(clips)
    spliced = words.spliced(["hello", "night"], "a", np.random.default_rng(0))
    assert spliced is not None
    # hello's clip before it, hello, night, and the rest of night's clip
    assert spliced.codes[0].tolist() == [200, 201, 202, 203, *range(106, 120)]
    assert (spliced.words, spliced.starts, spliced.end) == (("hello", "night"), (1.0, 4.5), 7.75)


def test_a_voice_says_its_own_words_only() -> None:
    clips = [clip(100, "good night", (2.0, 6.0), 9.0), clip(200, "hello", (1.0,), 8.0, "b")]
    words, rng = SpokenWords(clips), np.random.default_rng(0)
    assert words.spliced(["good", "hello"], "a", rng) is None
    assert words.spliced([], "a", rng) is None
    clips.append(clip(300, "hello", (3.0,), 8.0))
    spliced = words.spliced(["good", "hello"], "a", rng)
    assert spliced is not None
    assert spliced.codes[0].tolist() == [100, 101, 102, 103, 104, 105, *range(303, 320)]


def test_times_follow_the_frames_that_are_left_out_or_twice() -> None:
    whole = clip(0, "good night", (2.5, 6.0), 9.0)
    same = jittered(whole, 0.0, np.random.default_rng(0))
    assert np.array_equal(same.codes, whole.codes)
    assert (same.starts, same.end) == (whole.starts, whole.end)
    lengths = set()
    for seed in range(20):
        other = jittered(whole, 0.5, np.random.default_rng(seed))
        lengths.add(other.frames)
        codes = other.codes[0].tolist()
        assert codes == sorted(codes) and len(set(codes)) < 20
        assert other.starts[1] == sum(code < 6 for code in codes)
        assert other.end == sum(code < 9 for code in codes)
    assert len(lengths) > 3
