"""How texts are compared: what is spelt alike, and which words were heard."""

import pytest

from recipes.nano.recognize import matching_words, spelt, word_error_rate, word_errors


@pytest.mark.parametrize(
    ("heard", "written"),
    [
        ("I\u2019m 12, don't you think?", "i am twelve do not you think"),
        ("OK, let's roll a 6!", "okay let us roll a six"),
        ("It's twenty-one.", "it is twenty one"),
        ("let", "let"),
    ],
)
def test_recognizers_texts_are_spelt_like_the_scripts(heard: str, written: str) -> None:
    assert spelt(heard) == written


def test_words_are_matched_in_order() -> None:
    said, heard = (
        ["tell", "me", "a", "good", "joke"],
        ["well", "tell", "me", "good", "joke", "please"],
    )
    assert matching_words(said, heard) == [(0, 1), (1, 2), (3, 3), (4, 4)]
    assert matching_words(said, []) == []


def test_word_errors_are_fewest_changes() -> None:
    assert word_errors("tell me a good joke", "well tell me good joke please") == 3
    assert word_error_rate([("a b", "a b"), ("c d", "c x")]) == 0.25
