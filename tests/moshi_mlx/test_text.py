"""SentencePiece pieces → text, and the inner monologue → words with times."""

import random
import re
from itertools import pairwise
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from moshi_mlx.errors import TokenizerError
from moshi_mlx.text import TextTokenizer, Word, WordStream, join_words

EPAD, BOS, EOS, PAD = 0, 1, 2, 3
SENTENCES = [
    "The kettle sings when the water is hot, and the cat leaves the room.",
    "A late train is better than no train at all, said the man in grey.",
    "Nobody asked the river why it turns left behind the mill.",
    "We painted the boat green; the sea did not mind.",
    "Is it raining again? Then we will read, cook, and wait.",
    "My neighbour counts birds: seven today, nine the day before.",
]


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    """A small model with the special ids of Moshi, and bytes for what it does not know."""
    prefix = tmp_path_factory.mktemp("spm") / "small"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 20),
        model_prefix=str(prefix),
        vocab_size=400,
        model_type="bpe",
        byte_fallback=True,
        unk_id=EPAD,
        bos_id=BOS,
        eos_id=EOS,
        pad_id=PAD,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return TextTokenizer(prefix.with_suffix(".model"))


def run(tokenizer: TextTokenizer, tokens: list[int]) -> list[Word]:
    stream = WordStream(tokenizer)
    words = [word for token in tokens for word in stream.step(token)]
    return words + stream.flush()


def test_decode_gives_back_what_was_encoded(tokenizer: TextTokenizer) -> None:
    for text in [*SENTENCES, "déjà vu 🙂 naïve — 日本"]:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert max(ids) < tokenizer.vocab_size


def test_pieces(tokenizer: TextTokenizer) -> None:
    the = tokenizer.encode("the")
    assert "".join(tokenizer.piece(i) for i in the) == " the"
    for special in (EPAD, BOS, EOS, PAD, -1, -2, tokenizer.vocab_size, 10**6):
        assert tokenizer.piece(special) == ""
    smile = tokenizer.encode("🙂")[-4:]
    assert b"".join(tokenizer.piece_bytes(i) for i in smile) == "🙂".encode()
    assert [tokenizer.piece(i) for i in smile] == [""] * 4


def test_words_are_finished_by_what_follows(tokenizer: TextTokenizer) -> None:
    (cat,) = tokenizer.encode("the")  # one piece
    boat = tokenizer.encode("boat,")
    n = len(boat)
    tokens = [PAD, PAD, cat, PAD, *boat, PAD, EPAD, cat, EOS]
    stream = WordStream(tokenizer)
    seen = [(i, word) for i, token in enumerate(tokens) for word in stream.step(token)]
    frame = 0.08
    assert [i for i, _ in seen] == [4, 5 + n, 7 + n]
    assert [word.text for _, word in seen] == ["the", "boat,", "the"]
    times = [(2, 4), (4, 6 + n), (6 + n, 7 + n)]
    for (_, word), (start, end) in zip(seen, times, strict=True):
        assert word.start == pytest.approx(start * frame)
        assert word.end == pytest.approx(end * frame)
    assert stream.flush() == []


def test_a_pause_finishes_a_word(tokenizer: TextTokenizer) -> None:
    (the,) = tokenizer.encode("the")
    stream = WordStream(tokenizer, patience=4)
    assert stream.step(the) == []
    assert stream.partial == "the"
    assert [stream.step(PAD) for _ in range(3)] == [[], [], []]
    assert stream.step(PAD) == [Word("the", 0.0, 5 / 12.5)]
    assert stream.partial == ""
    assert stream.step(PAD) == []


def test_flush_ends_with_the_stream(tokenizer: TextTokenizer) -> None:
    (the,) = tokenizer.encode("the")
    assert run(tokenizer, [PAD, the, PAD]) == [Word("the", 1 / 12.5, 3 / 12.5)]
    assert run(tokenizer, [PAD, PAD]) == []


def test_bytes_become_characters_also_across_padding(tokenizer: TextTokenizer) -> None:
    tokens = tokenizer.encode("é🙂")
    spread = [t for token in tokens for t in (token, PAD)]
    for stream in (tokens, spread):
        assert [word.text for word in run(tokenizer, stream)] == ["é🙂"]


def test_a_character_that_never_becomes_whole_is_shown_as_such(tokenizer: TextTokenizer) -> None:
    *_, last = tokens = tokenizer.encode("a🙂")
    assert run(tokenizer, tokens[:-1])[0].text == "a\N{REPLACEMENT CHARACTER}"
    the = tokenizer.encode("the")
    texts = [word.text for word in run(tokenizer, [*tokens[:-1], *the, last])]
    assert texts[0] == "a\N{REPLACEMENT CHARACTER}"
    assert texts[1].startswith("the")


def test_pieces_of_a_script_without_spaces_are_words(tmp_path: Path) -> None:
    sentences = ["今日は元気ですか。", "はい、とても元気です。", "天気がいいですね。"]
    prefix = tmp_path / "japanese"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences * 20), model_prefix=str(prefix), vocab_size=60,
        model_type="bpe", add_dummy_prefix=False, unk_id=EPAD, bos_id=BOS, eos_id=EOS, pad_id=PAD,
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    japanese = TextTokenizer(prefix.with_suffix(".model"))
    tokens = japanese.encode(sentences[0])
    words = run(japanese, [PAD, *tokens])
    assert [word.text for word in words] == [japanese.decode([t]) for t in tokens]
    assert [word.start for word in words] == [(1 + i) / 12.5 for i in range(len(tokens))]
    assert join_words(word.text for word in words) == sentences[0]
    assert join_words(["Moshi", "は", "元気", "안녕", "하세요", "Một", "ộ"]) == (
        "Moshi は元気 안녕 하세요 Một ộ"
    )


def test_frame_numbers_may_be_given(tokenizer: TextTokenizer) -> None:
    (the,) = tokenizer.encode("the")
    stream = WordStream(tokenizer)
    stream.step(the, 100)
    (word,) = stream.step(the, 200)
    assert word == Word("the", 8.0, 105 / 12.5)
    with pytest.raises(ValueError, match="back"):
        stream.step(PAD, 150)


def test_a_conversation_comes_back_word_for_word(tokenizer: TextTokenizer) -> None:
    rng = random.Random(0)
    tokens, starts = [PAD] * 3, []
    text = " ".join([*SENTENCES, "Très bien, merci 🙂!"])
    for word in text.split():
        starts.append(len(tokens))
        tokens += tokenizer.encode(word)
        tokens += [PAD] * rng.randrange(9) + [EPAD] * rng.randrange(2)
    words = run(tokenizer, tokens)
    assert [word.text for word in words] == text.split()
    assert [word.start for word in words] == [start / 12.5 for start in starts]


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_tokens(tokenizer: TextTokenizer, data: st.DataObject) -> None:
    token = st.one_of(
        st.sampled_from([EPAD, BOS, EOS, PAD, PAD, -1, -2]),
        st.integers(-2, tokenizer.vocab_size + 3),
    )
    tokens = data.draw(st.lists(token, max_size=60))
    words = run(tokenizer, tokens)
    for word in words:
        assert word.text and word.start < word.end <= len(tokens) / 12.5 + 1e-9
        assert not re.search(r"\s", word.text)
    for word, following in pairwise(words):
        assert word.end <= following.start


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_no_text_is_lost_or_made_up(tokenizer: TextTokenizer, data: st.DataObject) -> None:
    tokens = data.draw(st.lists(st.integers(PAD, tokenizer.vocab_size - 1), max_size=40))
    joined = "".join(word.text for word in run(tokenizer, tokens))
    # A pause in the middle of a character cuts it: there both sides have replacement characters.
    whole = "".join(tokenizer.decode(tokens).split())
    assert _known(joined) == _known(whole) or "\N{REPLACEMENT CHARACTER}" in joined


def _known(text: str) -> str:
    return text.replace("\N{REPLACEMENT CHARACTER}", "")


@pytest.mark.parametrize("content", [b"", b"hello", b"\x0a\x05abc", bytes(range(256)) * 20])
def test_a_broken_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.model"
    path.write_bytes(content)
    with pytest.raises(TokenizerError, match=r"broken\.model"):
        TextTokenizer(path)


def test_a_cut_file_is_named(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    whole = tokenizer.path.read_bytes()
    path = tmp_path / "cut.model"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(TokenizerError, match=r"cut\.model"):
        TextTokenizer(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"none\.model.*cannot be read"):
        TextTokenizer(tmp_path / "none.model")
