"""How well the small transcriber hears, and when it says so: figures, through the public classes.

    python -m recipes.nano.stt_figures

Knows recordings and transcripts; nothing of training.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

import moshi_mlx

from .codec_data import FRAME_SIZE
from .recognize import matching_words, word_error_rate
from .report import Figures, Goal, markdown, write_card
from .speech import SAMPLE_RATE, UNHEARD_USER_VOICES
from .stt import PAUSES, Recording, heard_voices, held_out_lines, recorded

_WORDINGS, _SENTENCES = "wordings never trained on", "sentences like those of training"
_UNHEARD, _DISTURBED = ", unheard voices", ", disturbed"
_ERROR, _OFF = "word error", "start, mean ms off"
_PAUSES = "pauses"
GOALS = (
    Goal("word error, wordings never trained on", _WORDINGS, _ERROR, most=0.1),
    Goal("error of words' starts in ms, the same", _WORDINGS, _OFF, most=120),
    Goal("word error, sentences like those of training", _SENTENCES, _ERROR, most=0.1),
    Goal("error of words' starts in ms, the same", _SENTENCES, _OFF, most=120),
    Goal("word error, wordings, by unheard voices", _WORDINGS + _UNHEARD, _ERROR),
    Goal("word error, wordings, disturbed as in training", _WORDINGS + _DISTURBED, _ERROR),
    Goal("pauses of two seconds told by the third head", _PAUSES, "told"),
    Goal("frames of speech that it takes for such a pause", _PAUSES, "told while speaking"),
)
_CARD_BEGIN = "<!-- Figures: written by `python -m recipes.nano.stt_figures`, not by hand. -->"

_LITTLE = 0.3  # of what `augment` does at most
_AT_ONCE = 32  # recordings
_HEAD, _LIKELY = 2, 0.5


def figures(model: str | Path, seed: int) -> Figures:
    """What the model makes of renditions never trained on, by kind.

    The wordings are sentences never trained on; the other sentences are of the same making as
    those of training. Voices: those of training in other manners, and some of the same
    engines that were never heard; with a little noise, or disturbed as in training.
    """
    stt = moshi_mlx.load(model)
    assert isinstance(stt, moshi_mlx.Stt)
    found: dict[str, dict[str, float]] = {}
    every: list[Recording] = []
    kinds = (
        ("", heard_voices(), _LITTLE),
        (_UNHEARD, list(UNHEARD_USER_VOICES), _LITTLE),
        (_DISTURBED, heard_voices(), 1.0),
    )
    for salt, (kind, voices, disturbed) in enumerate(kinds):
        rng = np.random.default_rng([seed, salt, 10**7])
        lines = held_out_lines(rng, voices)
        for group, texts in zip((_WORDINGS, _SENTENCES), lines, strict=True):
            recordings = recorded(texts, rng, strange=False, settle=0, disturbed=disturbed)
            found[group + kind] = _figures_of(stt, recordings)
            every += recordings
    found[_PAUSES] = _pauses(stt, every)
    return found


def _figures_of(stt: moshi_mlx.Stt, recordings: list[Recording]) -> dict[str, float]:
    transcripts = []
    for start in range(0, len(recordings), _AT_ONCE):
        block: list[Any] = [r.pcm for r in recordings[start : start + _AT_ONCE]]
        transcripts += stt.transcribe(block)
    pairs, late = [], []
    for recording, transcript in zip(recordings, transcripts, strict=True):
        said = [word.label for word in recording.words]
        heard = [word.text for word in transcript.words]
        pairs.append((" ".join(said), " ".join(heard)))
        late += [
            1000 * (transcript.words[there].start - recording.words[here].start)
            for here, there in matching_words(said, heard)
        ]
    return {
        _ERROR: word_error_rate(pairs),
        "sentences right": float(np.mean([said == heard for said, heard in pairs])),
        _OFF: float(np.mean(np.abs(late))),
        "start, bias in ms": float(np.mean(late)),
        "words": sum(len(recording.words) for recording in recordings),
    }


def _pauses(stt: moshi_mlx.Stt, recordings: list[Recording]) -> dict[str, float]:
    """Of the recordings that end with a pause long enough for the head."""
    told, soon, wrong, frames = 0, [], 0, 0
    long = [r for r in recordings if len(r.pcm) / SAMPLE_RATE - r.end >= PAUSES[_HEAD]]
    for recording in long:
        with stt.session() as session:
            steps = [session.step(pcm) for pcm in recording.pcm.reshape(-1, FRAME_SIZE)]
        fired = [step.pauses is not None and step.pauses[_HEAD] > _LIKELY for step in steps]
        begin, end = (
            int(seconds * SAMPLE_RATE / FRAME_SIZE)
            for seconds in (recording.words[0].start, recording.end)
        )
        wrong += sum(fired[begin:end])
        frames += end - begin
        if any(fired[end + 1 :]):
            told += 1
            soon.append((fired.index(True, end + 1) - end) * FRAME_SIZE / SAMPLE_RATE)
    return {
        "told": told / len(long),
        "after, median s": float(np.median(soon)) if soon else float("nan"),
        "told while speaking": wrong / frames,
        "of them": len(long),
    }


def check(model: str | Path, seed: int, card: Path | None) -> None:
    """Prints the figures, and writes them into a card."""
    text = markdown(figures(model, seed), GOALS)
    print(text)
    if card is not None:
        write_card(card, text, _CARD_BEGIN)


def main() -> None:
    parser = argparse.ArgumentParser(description="Figures of nano's small transcriber.")
    parser.add_argument("--model", default="nano-stt", help="a folder, in place of the bundled one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--card", type=Path, help="MODEL_CARD.md that the figures go into")
    args = parser.parse_args()
    check(args.model, args.seed, args.card)


if __name__ == "__main__":
    main()
