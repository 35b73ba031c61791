"""How well the small voice is understood: figures, through the public classes.

    python -m recipes.nano.tts_figures --whisper FOLDER

Knows texts, sound and an independent recognizer; nothing of training.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile

import moshi_mlx
from moshi_mlx.conversation_bench import Whisper
from moshi_mlx.families.speak import Tts

from .clips import codec
from .recognize import matching_words, spelt, word_error_rate
from .report import Figures, Goal, markdown, write_card
from .sentences import SOUND_ALIKE, held_out_sentences, vocabulary
from .speech import SAMPLE_RATE
from .tts import spoken_clips

_HEARD = "words heard right"
_HELD_OUT, _RANDOM = "held-out wordings", "words in random order"
_CODEC = "what it learns from: flite through nano's codec, held-out wordings"
GOALS = (
    Goal("words heard right, held-out wordings", _HELD_OUT, _HEARD, least=0.8),
    Goal("words heard right, words in random order", _RANDOM, _HEARD),
    Goal("the same of flite through nano's codec, which it learns from", _CODEC, _HEARD),
)
_CARD_BEGIN = "<!-- Figures: written by `python -m recipes.nano.tts_figures`, not by hand. -->"


def figures(model: str | Path, whisper: Whisper, seed: int, out: Path) -> Figures:
    """How sentences never trained on are understood; their sound is left in `out`."""
    tts = moshi_mlx.load(model)
    assert isinstance(tts, Tts)
    rng = np.random.default_rng([seed, 10**7])
    words = [w for w in vocabulary() if w not in SOUND_ALIKE]
    sentences = held_out_sentences()
    random = [" ".join(rng.choice(words, 5, replace=False)) for _ in range(24)]
    spoken = {
        _HELD_OUT: [tts.speak(text, seed=seed).all().pcm for text in sentences],
        _RANDOM: [tts.speak(text, seed=seed).all().pcm for text in random],
        _CODEC: [_through_the_codec(text) for text in sentences[::2]],
    }
    texts_of = {_HELD_OUT: sentences, _RANDOM: random, _CODEC: sentences[::2]}
    found = {}
    for group, clips in spoken.items():
        texts = texts_of[group]
        folder = out / group.replace(" ", "-").replace(",", "")
        folder.mkdir(parents=True, exist_ok=True)
        for number, pcm in enumerate(clips):
            soundfile.write(folder / f"{number:02}.wav", pcm, SAMPLE_RATE)
        found[group] = _figures_of(texts, clips, whisper)
    return found


def _through_the_codec(text: str) -> np.ndarray:
    """As the training has it: every word in whole frames."""
    (clip,) = spoken_clips([text + "."])
    pcm: np.ndarray = np.array(codec().decode(clip.codes[None].astype(np.int32)))[0, 0]
    return pcm


def _figures_of(
    texts: Sequence[str], clips: Sequence[np.ndarray], whisper: Whisper
) -> dict[str, float]:
    pairs = [
        (text, spelt(whisper.hear(pcm, SAMPLE_RATE)))
        for text, pcm in zip(texts, clips, strict=True)
    ]
    right = [len(matching_words(text.split(), heard.split())) for text, heard in pairs]
    words = [len(text.split()) for text in texts]
    return {
        _HEARD: sum(right) / sum(words),
        "word error": word_error_rate(pairs),
        "sentences right": float(np.mean([text == heard for text, heard in pairs])),
        "seconds a word": sum(len(pcm) for pcm in clips) / SAMPLE_RATE / sum(words),
        "words": sum(words),
    }


def check(model: str | Path, whisper: Path, seed: int, out: Path, card: Path | None) -> None:
    """Prints the figures, and writes them into a card."""
    text = markdown(figures(model, Whisper(whisper, threads=2), seed, out), GOALS)
    print(text)
    if card is not None:
        write_card(card, text, _CARD_BEGIN)


def main() -> None:
    parser = argparse.ArgumentParser(description="Figures of nano's small voice.")
    parser.add_argument("--model", default="nano-tts", help="a folder, in place of the bundled one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--card", type=Path, help="MODEL_CARD.md that the figures go into")
    parser.add_argument("--whisper", type=Path, required=True, help="folder of the recognizer")
    parser.add_argument("--out", type=Path, default=Path("build/nano-tts/spoken"))
    args = parser.parse_args()
    check(args.model, args.whisper, args.seed, args.out, args.card)


if __name__ == "__main__":
    main()
