"""Known words: one piece each, all used, and no sentence of the examination among the others."""

import numpy as np
import pytest

from moshi_mlx.text import TextTokenizer
from recipes.nano.sentences import (
    EPAD,
    PAD,
    SOUND_ALIKE,
    TEXT_CARD,
    SentenceMaker,
    held_out_sentences,
    known,
    punctuated,
    train_tokenizer,
    trained_sentences,
    vocabulary,
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    return TextTokenizer(train_tokenizer(tmp_path_factory.mktemp("tokenizer")))


def test_every_known_word_is_one_piece_and_others_are_spelt(tokenizer: TextTokenizer) -> None:
    assert TEXT_CARD - 8 < tokenizer.vocab_size <= TEXT_CARD
    for word in vocabulary():
        (token,) = tokenizer.encode(word)
        assert token > PAD and tokenizer.decode([token]) == word
    pieces = tokenizer.encode("Quixotic")
    assert len(pieces) > 1 and EPAD not in pieces and tokenizer.decode(pieces) == "quixotic"
    assert [tokenizer.piece(t) for t in tokenizer.encode("Hello, you!")] == [
        " hello", ",", " you", "!"
    ]  # fmt: skip


def test_sentences_cover_the_words_and_leave_the_examination_out() -> None:
    maker, rng = SentenceMaker(), np.random.default_rng(0)
    sentences = [maker.sentence(rng) for _ in range(1500)]
    words = {word for sentence in sentences for word in sentence.split()}
    assert known(list(words)) and words >= set(vocabulary()) - SOUND_ALIKE
    held_out = held_out_sentences()
    assert len(held_out) > 60
    assert not {*sentences, *trained_sentences()} & set(held_out)
    assert max(len(sentence.split()) for sentence in sentences) <= 20


def test_written_sentences_have_marks_and_the_same_words() -> None:
    rng = np.random.default_rng(0)
    written = [punctuated("well hello again moshi", rng) for _ in range(60)]
    assert all(w[-1] in ".!?" for w in written) and any("," in w for w in written)
    assert {w.replace(",", "")[:-1] for w in written} == {"well hello again moshi"}
