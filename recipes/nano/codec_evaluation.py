"""Figures of nano's codec, as Mimi in MLX runs it: on renditions, texts and voices not trained on.

    python -m recipes.nano.codec_evaluation --out build/nano

Knows how to score a codec; nothing of its training or of the language model.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from moshi_mlx.files import read_json
from moshi_mlx.mimi import Mimi
from moshi_mlx.published import read_mimi_config
from moshi_mlx.weights_mimi import load_mimi
from moshi_quantize.listening import recognize, transcribe

from . import script
from .codec_data import FRAME_SIZE, corpus
from .recognize import intelligibility, word_error_rate
from .speech import NOISE_KINDS, SAMPLE_RATE, decibels, noise, speak
from .tokens import CARD, CODEBOOKS

OWN_VOICE = "codec, own voice, new renditions of its replies"
AS_TRAINED = "codec, own voice, replies just as trained"
GROUPS = {
    OWN_VOICE: ("own", "held out"),
    AS_TRAINED: ("canonical", "train"),
    "codec, own voice, new texts": ("own", "new text"),
    "codec, users' voices, new texts": ("user", "new text"),
    "codec, unheard users' voices, new texts": ("user", "unheard"),
}
"""Role and split of the codec's corpus, by what is new about them."""

ADDED_ERRORS = "word error added"
_SIDE_BY_SIDE = 16
_NOISE_LEVEL = -50
_NOISE_FRAMES = 50


def through(mimi: Mimi, recordings: Sequence[np.ndarray]) -> tuple[list[np.ndarray], np.ndarray]:
    """Recordings [samples] after the codec, as long as before, and all their codes [8, frames]."""
    decoded, all_codes = [], []
    for start in range(0, len(recordings), _SIDE_BY_SIDE):
        chosen = recordings[start : start + _SIDE_BY_SIDE]
        frames = [-(-len(pcm) // FRAME_SIZE) for pcm in chosen]
        batch = np.zeros((len(chosen), 1, max(frames) * FRAME_SIZE), np.float32)
        for row, pcm in enumerate(chosen):
            batch[row, 0, : len(pcm)] = pcm
        codes = mimi.encode(mx.array(batch))
        audio = np.array(mimi.decode(codes))[:, 0]
        decoded += [row[: len(pcm)] for row, pcm in zip(audio, chosen, strict=True)]
        all_codes += [row[:, :n] for row, n in zip(np.array(codes), frames, strict=True)]
    return decoded, np.concatenate(all_codes, 1)


def recognized(texts: Sequence[str], audio: Sequence[np.ndarray]) -> float:
    """Share of replies that the closed grammar recognizes."""
    pairs = zip(texts, audio, strict=True)
    return float(
        np.mean([recognize(pcm, SAMPLE_RATE, script.replies()) == text for text, pcm in pairs])
    )


def open_word_errors(texts: Sequence[str], audio: Sequence[np.ndarray]) -> float:
    """Word error rate with a general language model."""
    heard = [transcribe(pcm, SAMPLE_RATE) for pcm in audio]
    return word_error_rate(zip(texts, heard, strict=True))


def noise_levels(mimi: Mimi, seed: int = 0) -> dict[str, float]:
    """By kind of noise at -50 dBFS: its level in dBFS after the codec."""
    rng = np.random.default_rng(seed)
    length = _NOISE_FRAMES * FRAME_SIZE
    noises = [decibels(_NOISE_LEVEL) * noise(kind, length, rng) for kind in NOISE_KINDS]
    decoded, _ = through(mimi, noises)
    levels = (20 * np.log10(np.sqrt(np.mean(pcm**2)) + 1e-9) for pcm in decoded)
    return {f"{k}, dBFS": float(v) for k, v in zip(NOISE_KINDS, levels, strict=True)}


def codebook_use(codes: np.ndarray) -> dict[str, dict[str, float]]:
    """How many of each codebook's entries some codes [8, frames] use, and their perplexity."""
    used: dict[str, float] = {}
    perplexity: dict[str, float] = {}
    for number, row in enumerate(codes):
        share = np.bincount(row, minlength=CARD) / len(row)
        name = f"codebook {number}"
        used[name] = int((share > 0).sum())
        perplexity[name] = float(np.exp(-np.sum(share * np.log(share + 1e-9))))
    return {"codec, entries used": used, "codec, perplexity": perplexity}


def codec_figures(mimi: Mimi, cache: Path, each: int | None = None) -> dict[str, dict[str, Any]]:
    """All figures, by group; `each` clips at most of a group."""
    items = list(corpus())
    figures: dict[str, dict[str, Any]] = {}
    use: dict[str, dict[str, float]] = {}
    for name, group in GROUPS.items():
        chosen = [i.rendition for i in items if (i.role, i.split) == group][:each]
        texts = [rendition.text for rendition in chosen]
        originals = [speak(rendition, cache).pcm for rendition in chosen]
        decoded, codes = through(mimi, originals)
        pairs = zip(originals, decoded, strict=True)
        stoi, estoi = np.nanmean([intelligibility(*pair, SAMPLE_RATE) for pair in pairs], 0)
        figures[name] = {"STOI": float(stoi), "ESTOI": float(estoi), "clips": len(chosen)}
        role, split = group
        if role != "user":  # a recognizer of whole sentences hardly understands espeak-ng
            before, after = (open_word_errors(texts, audio) for audio in (originals, decoded))
            figures[name] |= {
                "word error, original": before,
                "word error, codec": after,
                ADDED_ERRORS: after - before,
            }
        if role != "user" and split != "new text":
            figures[name] |= {
                "recognized, original": recognized(texts, originals),
                "recognized, codec": recognized(texts, decoded),
            }
        if name == OWN_VOICE:
            use = codebook_use(codes)
    return figures | use | {f"codec, noise at {_NOISE_LEVEL} dBFS": noise_levels(mimi)}


def evaluate(out: Path) -> dict[str, dict[str, Any]]:
    """Scores the codec exported under `out`; prints and writes codec/evaluation.json."""
    folder = out / "codec"
    config = read_json(folder / "mimi_config.json")
    mimi = load_mimi(folder / "mimi.safetensors", CODEBOOKS, read_mimi_config(config))
    text = json.dumps(codec_figures(mimi, out / "speech"), indent=1)
    (folder / "evaluation.json").write_text(text + "\n", encoding="utf-8")
    print(text)
    return json.loads(text)


def main() -> None:
    parser = argparse.ArgumentParser(description="Score nano's codec, after `codec export`.")
    parser.add_argument("--out", type=Path, default=Path("build/nano"))
    evaluate(parser.parse_args().out)


if __name__ == "__main__":
    main()
