"""The words that nano's small transcriber and small voice know, and sentences made of them.

Knows the script and a tokenizer; nothing of sound or of models. Texts are plain words in lower
case, as a user's wordings are written; `punctuated` gives what a reader would write.
"""

from __future__ import annotations

import functools
import re
import string
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from . import script

TEXT_CARD = 512
EPAD, PAD = 0, 3
"""Text tokens: a word begins with the next frame; nothing is written now."""

_NOT_WORDS = frozenset({"mm-hm", "la", "ai", "bonjour"})
"""Written in one way and spoken in another."""

SOUND_ALIKE = frozenset({"two", "too", "four", "by", "right", "here", "b", "c", "oh"})
"""Words that only a sentence tells from others; in random order they aren't used."""

_RANDOM_SHARE, _WALK_SHARE = 0.4, 0.35  # the rest are sentences of the script
_PAUSE_SHARE = 0.08  # of a comma after a word


def plain(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation."""
    return re.findall(r"[a-z'-]+", text.lower())


@functools.cache
def trained_sentences() -> tuple[str, ...]:
    """The wordings and replies of the script that are trained on, as plain words."""
    replies = (part for reply in script.replies() for part in re.split(r"[.!?:,]", reply))
    wordings = (w for intent in script.INTENTS for w in intent.train_wordings)
    held_out = set(held_out_sentences())
    texts = dict.fromkeys(" ".join(plain(text)) for text in (*wordings, *replies))
    return tuple(t for t in texts if t and t not in held_out and known(t.split()))


@functools.cache
def held_out_sentences() -> tuple[str, ...]:
    """Wordings of the script that are never trained on, of words that are."""
    wordings = (w for intent in script.INTENTS for w in intent.held_out_wordings)
    return tuple(dict.fromkeys(w for w in wordings if known(w.split())))


@functools.cache
def vocabulary() -> tuple[str, ...]:
    """Every known word."""
    texts = (*script.replies(), *(w for intent in script.INTENTS for w in intent.wordings))
    words = {word for text in texts for word in plain(text)} - _NOT_WORDS
    return tuple(sorted(w for w in words if len(w) > 1 or w in "ai"))


def known(words: Sequence[str]) -> bool:
    """Whether all words are of the vocabulary."""
    return set(words) <= set(vocabulary())


class SentenceMaker:
    """Sentences that cover the vocabulary: of the script, walks through its pairs of words, and
    words in random order, the rare ones first. None is one of `held_out_sentences`."""

    def __init__(self) -> None:
        self._sentences = trained_sentences()
        self._held_out = frozenset(held_out_sentences())
        self._following: dict[str, list[str]] = {}
        for sentence in self._sentences:
            words = sentence.split()
            for word, following in zip(["", *words], [*words, ""], strict=True):
                self._following.setdefault(word, []).append(following)
        self._words = [w for w in vocabulary() if w not in SOUND_ALIKE]
        self._waiting: list[str] = []

    def sentence(self, rng: np.random.Generator) -> str:
        """A sentence of one to ten words."""
        while True:
            kind = rng.uniform()
            if kind < _RANDOM_SHARE:
                text = " ".join(self._random(int(rng.integers(2, 8)), rng))
            elif kind < _RANDOM_SHARE + _WALK_SHARE:
                text = " ".join(self._walk(rng))
            else:
                text = self._sentences[int(rng.integers(len(self._sentences)))]
            if text and text not in self._held_out:
                return text

    def _random(self, count: int, rng: np.random.Generator) -> list[str]:
        if len(self._waiting) < count:
            self._waiting += rng.permutation(self._words).tolist()
        chosen, self._waiting = self._waiting[:count], self._waiting[count:]
        return chosen

    def _walk(self, rng: np.random.Generator) -> list[str]:
        words: list[str] = []
        word = ""
        while len(words) < 10:
            following = self._following[word]
            word = following[int(rng.integers(len(following)))]
            if not word:
                break
            words.append(word)
        return words


def punctuated(text: str, rng: np.random.Generator) -> str:
    """A sentence as one would write it: some commas, and a mark at the end."""
    *words, last = text.split()
    commas = [w + "," if rng.uniform() < _PAUSE_SHARE else w for w in words]
    return " ".join([*commas, last + str(rng.choice([".", "!", "?"], p=[0.7, 0.1, 0.2]))])


def train_tokenizer(folder: Path) -> Path:
    """A SentencePiece model, `tokenizer.model`: every known word is one piece, others are spelt.

    Capital letters are read as small ones. Ids as in the published tokenizer: 0 unknown (EPAD),
    1 BOS, 2 EOS, 3 padding.
    """
    import sentencepiece

    prefix = folder / "tokenizer"
    letters = " ".join(string.ascii_lowercase + string.digits + ".,!?'-")
    texts = [*script.OUT_OF_SCRIPT_TRAIN, *trained_sentences()]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*texts, letters]),
        user_defined_symbols=[f"\u2581{word}" for word in vocabulary()],
        model_prefix=str(prefix),
        vocab_size=TEXT_CARD,
        model_type="bpe",
        normalization_rule_name="nmt_nfkc_cf",
        unk_id=EPAD,
        bos_id=1,
        eos_id=2,
        pad_id=PAD,
        hard_vocab_limit=False,
        character_coverage=1.0,
        minloglevel=2,
    )
    return prefix.with_suffix(".model")
