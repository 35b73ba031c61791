"""An independent judge of nano's speech: recognition by pocketsphinx, intelligibility by STOI.

Knows audio and texts; nothing of nano's networks. Needs the packages `pocketsphinx` and `pystoi`
(development only). Audio is mono float32 [samples]; every function takes its sample rate.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable

import numpy as np
import soxr

from . import script

_SHORTEST_STOI_SECONDS = 0.8  # pystoi needs 30 loud frames; less gives a constant 1e-5
_RECOGNIZER_RATE = 16_000
_GRAMMAR = "replies"
_PRONUNCIATIONS = {
    "moshi": "M OW SH IY", "mmhm": "AH M HH AH M", "bonjour": "B AA N ZH UH R", "la": "L AA",
    "ai": "EY AY",
}  # fmt: skip
"""Words of nano's that the recognizer's dictionary lacks or says otherwise."""


def plain_words(text: str) -> list[str]:
    """Lower-case words without punctuation: "Mm-hm. I see." gives ["mmhm", "i", "see"]."""
    return re.sub(r"[^a-z' ]", "", text.lower()).split()


def _samples(pcm: np.ndarray, sample_rate: int) -> bytes:
    """16-bit samples at 16 kHz with silence around and a little noise, as a microphone gives."""
    padded = np.pad(pcm, (sample_rate // 5, 3 * sample_rate // 10))
    audio = soxr.resample(padded, sample_rate, _RECOGNIZER_RATE)
    audio = audio + 1e-4 * np.random.default_rng(0).standard_normal(len(audio))
    return (np.clip(audio, -1, 1) * 32_000).astype(np.int16).tobytes()


def _run(decoder, pcm: np.ndarray, sample_rate: int) -> str:
    decoder.start_utt()
    decoder.process_raw(_samples(pcm, sample_rate), full_utt=True)
    decoder.end_utt()
    hypothesis = decoder.hyp()
    return hypothesis.hypstr if hypothesis else ""


def _make_decoder(**options):
    import pocketsphinx

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
def _reply_decoder(sentences: tuple[str, ...]):
    decoder = _make_decoder(lm=None)
    alternatives = " | ".join(" ".join(plain_words(s)) for s in sentences)
    grammar = f"#JSGF V1.0;\ngrammar {_GRAMMAR};\npublic <s> = {alternatives} ;\n"
    decoder.add_jsgf_string(_GRAMMAR, grammar)
    decoder.activate_search(_GRAMMAR)
    return decoder


@functools.cache
def _open_decoder():
    import pocketsphinx

    return _make_decoder(lm=pocketsphinx.get_model_path("en-us/en-us.lm.bin"))


def recognize(
    pcm: np.ndarray, sample_rate: int, sentences: Iterable[str] | None = None
) -> str | None:
    """Which of `sentences` (default: all of nano's replies) was said, None if none is recognized.

    The grammar is closed: the recognizer hears one of the sentences or nothing.
    """
    sentences = tuple(sentences) if sentences is not None else script.replies()
    heard = _run(_reply_decoder(sentences), pcm, sample_rate)
    by_words = {" ".join(plain_words(s)): s for s in sentences}
    return by_words.get(heard)


def transcribe(pcm: np.ndarray, sample_rate: int) -> str:
    """What was said, by pocketsphinx's general English language model."""
    return re.sub(r"\(\d+\)", "", _run(_open_decoder(), pcm, sample_rate))


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
    from pystoi import stoi

    if len(reference) < _SHORTEST_STOI_SECONDS * sample_rate:
        return float("nan"), float("nan")
    scores = [stoi(reference, decoded, sample_rate, extended=e) for e in (False, True)]
    return (scores[0], scores[1]) if min(scores) > 0.01 else (float("nan"), float("nan"))
