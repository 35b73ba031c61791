"""Who says what in nano's training and evaluation: the renditions of every text.

Knows the script and the synthesizers' voices; nothing of tokens or models. The two sides never
share a rendition: evaluation draws from other seeds, and its own texts and voices are listed as
held out in `script` and `speech`.
"""

from __future__ import annotations

import argparse
import itertools
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from . import script
from .codec_data import canonical_rendition
from .speech import (
    KOKORO_VOICES,
    SAMPLE_RATE,
    TRAIN_USER_VOICES,
    UNHEARD_ENGINE_VOICES,
    UNHEARD_KOKORO_VOICES,
    UNHEARD_USER_VOICES,
    Rendition,
    speak_all,
    vary,
)

# Stretch, pitch and warp vary by exp(± these).
_TRAIN_RANGES = (0.242, 0.242, 0.121)
_EVALUATION_RANGES = (0.18, 0.18, 0.09)

WORDING_RENDITIONS = 12
OTHER_RENDITIONS = 12
SHORT_RENDITIONS = 40
"""Of a murmur: it is short, and there are few."""

KOKORO_RENDITIONS = 2
_ENGINE_SHARES = {"flite": 0.32, "festival": 0.22, "espeak": 0.46}
"""Engines with few voices would hardly be heard if all voices came up alike."""


@dataclass(frozen=True)
class Line:
    """Something a user says.

    `kind` is "wording" of the script, "unknown" to it, "monologue" for a sentence of one, "murmur"
    or "aside".
    """

    kind: str
    rendition: Rendition


def rng_for(text: str, salt: str) -> np.random.Generator:
    """Random numbers that depend on a text and a purpose only."""
    return np.random.default_rng(zlib.crc32(f"{salt}|{text}".encode()))


def training_voices(rng: np.random.Generator, count: int) -> list[str]:
    """Training voices, each about equally often within its engine."""
    ends = np.round(np.cumsum([0, *_ENGINE_SHARES.values()]) * count).astype(int)
    chosen: list[str] = []
    for engine, number in zip(_ENGINE_SHARES, np.diff(ends), strict=True):
        voices = [v for v in TRAIN_USER_VOICES if v.startswith(f"{engine}:")]
        order = rng.permutation(len(voices))
        chosen += [voices[order[i % len(voices)]] for i in range(number)]
    return [chosen[i] for i in rng.permutation(count)]


def _varied(kind: str, texts: Sequence[str], count: int, neural: int) -> Iterator[list[Line]]:
    """Renditions of texts: `count` by the rule-based engines, `neural` by Kokoro."""
    for text in texts:
        rng = rng_for(text, "language model")
        voices = training_voices(rng, count)
        chosen = rng.permutation(len(KOKORO_VOICES))[:neural]
        lines = [Line(kind, vary(text, voice, rng, ranges=_TRAIN_RANGES)) for voice in voices]
        for place, number in enumerate(chosen):
            line = Line(kind, vary(text, KOKORO_VOICES[number], rng, ranges=_TRAIN_RANGES))
            lines.insert(2 * place + 1, line)
        yield lines


def training_lines() -> list[Line]:
    """All renditions of the user's side that the language model is trained on.

    The first of every text, then the second of every text, and so on: any first part of them has
    all texts and all engines.
    """
    wordings = [w for intent in script.INTENTS for w in intent.train_wordings]
    told = [m.sentences for m in script.MONOLOGUES if not m.held_out]
    frames = list(dict.fromkeys(s for sentences in told for s in (sentences[0], sentences[-1])))
    middles = list(dict.fromkeys(s for sentences in told for s in sentences[1:-1]))
    neural = KOKORO_RENDITIONS
    of_texts = [
        *_varied("wording", wordings, WORDING_RENDITIONS, neural),
        *_varied("unknown", script.OUT_OF_SCRIPT_TRAIN, OTHER_RENDITIONS, 2 * neural),
        *_varied("monologue", frames, WORDING_RENDITIONS, 2 * neural),
        *_varied("monologue", middles, OTHER_RENDITIONS, neural),
        *_varied("murmur", script.MURMURS, SHORT_RENDITIONS, len(KOKORO_VOICES)),
        *_varied("aside", script.ASIDES_TRAIN, OTHER_RENDITIONS, 2 * neural),
    ]
    rounds = itertools.zip_longest(*of_texts)
    return [line for lines in rounds for line in lines if line is not None]


def evaluation_lines(
    texts: Sequence[str],
    heard_voices: bool,
    kind: str = "wording",
    salt: str = "",
    neural: bool = False,
) -> list[Line]:
    """Renditions never trained on, by voices heard in training or by those never heard.

    By the rule-based engines, or by Kokoro if `neural`.
    """
    if neural:
        voices = KOKORO_VOICES if heard_voices else UNHEARD_KOKORO_VOICES
    else:
        voices = TRAIN_USER_VOICES if heard_voices else UNHEARD_USER_VOICES
    lines = []
    for number, text in enumerate(texts):
        rng = rng_for(text, f"evaluation {heard_voices} {salt}{' neural' if neural else ''}")
        lines.append(
            Line(kind, vary(text, voices[number % len(voices)], rng, ranges=_EVALUATION_RANGES))
        )
    return lines


def unheard_engine_lines(texts: Sequence[str], kind: str = "wording") -> list[Line]:
    """Renditions by an engine never trained on; which of its voices speaks is drawn for a text."""
    lines = []
    for text in texts:
        rng = rng_for(text, "evaluation engine")
        voice = str(rng.choice(UNHEARD_ENGINE_VOICES))
        lines.append(Line(kind, vary(text, voice, rng, ranges=_EVALUATION_RANGES)))
    return lines


def one_speaker(texts: Sequence[str], number: int, salt: str) -> list[Rendition]:
    """Renditions of texts by one voice in one manner, never trained on; voices take turns."""
    voice = TRAIN_USER_VOICES[number % len(TRAIN_USER_VOICES)]
    rng = rng_for(f"{number}", f"speaker {salt}")
    manner = vary(texts[0], voice, rng, ranges=_EVALUATION_RANGES)
    return [replace(manner, text=text) for text in texts]


def main() -> None:
    parser = argparse.ArgumentParser(description="Synthesize what nano's language model hears.")
    parser.add_argument("--out", type=Path, default=Path("build/nano"))
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--lines", type=int, help="only the first N lines", metavar="N")
    args = parser.parse_args()
    lines = training_lines()[: args.lines]
    wanted = [
        *(canonical_rendition(r) for r in script.replies()),
        *(line.rendition for line in lines),
    ]
    seconds = 0.0
    for number, speech in enumerate(speak_all(wanted, args.out / "speech", args.processes)):
        seconds += len(speech.pcm) / SAMPLE_RATE
        if number % 500 == 0:
            print(f"{number} of {len(wanted)}, {seconds / 60:.1f} min", flush=True)
    print(f"{len(wanted)} renditions, {seconds / 60:.1f} min")


if __name__ == "__main__":
    main()
