"""What a recording says, by an independent listener: pocketsphinx, an optional package.

Knows sound and texts; nothing of models. Sound is mono float32 [samples]; every function takes its
sample rate.
"""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Iterable
from typing import Any

import numpy as np
import soxr

from moshi_mlx.arrays import Pcm
from moshi_mlx.distributions import needs_extra
from moshi_mlx.text import plain_words

_RECOGNIZER_RATE = 16_000
_GRAMMAR = "replies"
_PRONUNCIATIONS = {
    "moshi": "M OW SH IY", "mmhm": "AH M HH AH M", "bonjour": "B AA N ZH UH R", "la": "L AA",
    "ai": "EY AY",
}  # fmt: skip
"""Words that the recognizer's dictionary lacks or pronounces otherwise."""


def can_listen() -> bool:
    """Whether the recognizer is installed."""
    return importlib.util.find_spec("pocketsphinx") is not None


def recognizer() -> Any:
    """The package that recognizes speech.

    Raises:
        MoshiError: it is not installed.
    """
    with needs_extra("listen", "listening needs pocketsphinx"):
        import pocketsphinx
    return pocketsphinx


def _samples(pcm: Pcm, sample_rate: int) -> bytes:
    """16-bit samples at 16 kHz with silence around and a little noise, as a microphone gives."""
    padded = np.pad(pcm, (sample_rate // 5, 3 * sample_rate // 10))
    audio = soxr.resample(padded, sample_rate, _RECOGNIZER_RATE)
    audio = audio + 1e-4 * np.random.default_rng(0).standard_normal(len(audio))
    return (np.clip(audio, -1, 1) * 32_000).astype(np.int16).tobytes()


def _run(decoder: Any, pcm: Pcm, sample_rate: int) -> str:
    decoder.start_utt()
    decoder.process_raw(_samples(pcm, sample_rate), full_utt=True)
    decoder.end_utt()
    hypothesis = decoder.hyp()
    return hypothesis.hypstr if hypothesis else ""


def _make_decoder(**options: Any) -> Any:
    pocketsphinx = recognizer()
    decoder = pocketsphinx.Decoder(
        hmm=pocketsphinx.get_model_path("en-us/en-us"),
        dict=pocketsphinx.get_model_path("en-us/cmudict-en-us.dict"),
        samprate=_RECOGNIZER_RATE,
        loglevel="FATAL",
        **options,
    )
    for word, phones in _PRONUNCIATIONS.items():
        variant = f"{word}(9)" if decoder.lookup_word(word) else word
        decoder.add_word(variant, phones, True)
    return decoder


@functools.cache
def _reply_decoder(sentences: tuple[str, ...]) -> Any:
    decoder = _make_decoder(lm=None)
    alternatives = " | ".join(" ".join(plain_words(s)) for s in sentences)
    grammar = f"#JSGF V1.0;\ngrammar {_GRAMMAR};\npublic <s> = {alternatives} ;\n"
    decoder.add_jsgf_string(_GRAMMAR, grammar)
    decoder.activate_search(_GRAMMAR)
    return decoder


@functools.cache
def _open_decoder() -> Any:
    return _make_decoder(lm=recognizer().get_model_path("en-us/en-us.lm.bin"))


def recognize(pcm: Pcm, sample_rate: int, sentences: Iterable[str]) -> str | None:
    """Which of `sentences` was said, None if none is recognized.

    The grammar is closed: the recognizer hears one of the sentences or nothing.
    """
    sentences = tuple(sentences)
    heard = _run(_reply_decoder(sentences), pcm, sample_rate)
    by_words = {" ".join(plain_words(s)): s for s in sentences}
    return by_words.get(heard)


def transcribe(pcm: Pcm, sample_rate: int) -> str:
    """What was said, by pocketsphinx's general English language model."""
    return re.sub(r"\(\d+\)", "", _run(_open_decoder(), pcm, sample_rate))
