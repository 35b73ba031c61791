"""Figures of nano's trained codec, on renditions, texts and voices it was not trained on.

Knows how to score, not how to train. Prints a table and writes codec/evaluation.json.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from moshi.models.compression import MimiModel

from .codec import encode, load_trained, reconstruct
from .codec_data import FRAME_SIZE, Clip, load_corpus
from .recognize import intelligibility, recognize, transcribe, word_error_rate
from .speech import NOISE_KINDS, SAMPLE_RATE, decibels, noise

CANONICAL = "canonical replies"
OWN_NEW_RENDITIONS = "own voice, new renditions"
OWN_NEW_TEXTS = "own voice, new texts"
_LONG_SILENCE_FRAMES = 100


def groups(cache: Path) -> dict[str, list[Clip]]:
    """Clips by what is new about them."""
    clips = load_corpus(cache, ("train", "held out", "new text", "unheard"))

    def select(role: str, split: str) -> list[Clip]:
        return [c for c in clips if (c.item.role, c.item.split) == (role, split)]

    return {
        CANONICAL: select("canonical", "train"),
        OWN_NEW_RENDITIONS: select("own", "held out"),
        OWN_NEW_TEXTS: select("own", "new text"),
        "known users, new texts": select("user", "new text"),
        "unheard users, new texts": select("user", "unheard"),
    }


def recognized(clips: list[Clip], audio: list[np.ndarray]) -> float:
    """Share of replies that the closed grammar recognizes."""
    hits = (
        recognize(pcm, SAMPLE_RATE) == clip.item.rendition.text
        for clip, pcm in zip(clips, audio, strict=True)
    )
    return float(np.mean(list(hits)))


def open_word_error_rate(clips: list[Clip], audio: list[np.ndarray]) -> float:
    """Word error rate with a general language model."""
    heard = (transcribe(pcm, SAMPLE_RATE) for pcm in audio)
    return word_error_rate((c.item.rendition.text, h) for c, h in zip(clips, heard, strict=True))


def after_silence(model: MimiModel, pcm: np.ndarray) -> np.ndarray:
    """`pcm` through the codec in the midst of a stream: eight seconds of silence came before."""
    lead = _LONG_SILENCE_FRAMES * FRAME_SIZE
    return reconstruct(model, np.pad(pcm, (lead, 0)))[lead:]


def noise_levels(model: MimiModel, seed: int = 0) -> dict[str, float]:
    """By kind of noise at -50 dBFS: its level in dBFS after the codec."""
    rng = np.random.default_rng(seed)
    out = {}
    for kind in NOISE_KINDS:
        pcm = reconstruct(model, decibels(-50) * noise(kind, 50 * FRAME_SIZE, rng))
        out[kind] = 20 * math.log10(float(np.sqrt(np.mean(pcm**2))) + 1e-9)
    return out


def codebook_use(model: MimiModel, clips: list[Clip]) -> list[tuple[int, float]]:
    """For each codebook (entries used, perplexity) over some clips."""
    codes = torch.cat([encode(model, c.pcm) for c in clips], 1)
    out = []
    for level in codes:
        share = torch.bincount(level, minlength=model.cardinality) / level.numel()
        entropy = -(share * (share + 1e-9).log()).sum()
        out.append((int((share > 0).sum()), float(entropy.exp())))
    return out


def streaming_milliseconds(model: MimiModel, pcm: np.ndarray) -> float:
    """Time per frame of encoding and decoding frame by frame with the reference's own code."""
    frames = torch.from_numpy(pcm).split(FRAME_SIZE)
    with torch.no_grad(), model.streaming(1):
        start = time.perf_counter()
        for frame in frames:
            model.decode(model.encode(frame[None, None]))
        return 1000 * (time.perf_counter() - start) / len(frames)


def evaluate(out: Path) -> dict:
    """Scores the newest codec under `out`; prints and returns all figures."""
    model = load_trained(out)
    clips = groups(out / "speech")
    figures: dict = {}

    def report(name: str, **values: float) -> None:
        figures[name] = values
        print(f"{name:44}", *(f"{k} {v:.3f}" for k, v in values.items()), flush=True)

    decoded = {name: [reconstruct(model, c.pcm) for c in group] for name, group in clips.items()}
    decoded["midstream"] = [after_silence(model, c.pcm) for c in clips[OWN_NEW_RENDITIONS]]
    for name, audio in decoded.items():
        group = clips.get(name, clips[OWN_NEW_RENDITIONS])
        pairs = zip(group, audio, strict=True)
        stoi, estoi = np.nanmean([intelligibility(c.pcm, a, SAMPLE_RATE) for c, a in pairs], 0)
        report(name, stoi=float(stoi), estoi=float(estoi), clips=len(group))
    for name in (CANONICAL, OWN_NEW_RENDITIONS):
        original = recognized(clips[name], [c.pcm for c in clips[name]])
        report(
            f"recognized, {name}", original=original, codec=recognized(clips[name], decoded[name])
        )
    for name in (CANONICAL, OWN_NEW_TEXTS):
        original = open_word_error_rate(clips[name], [c.pcm for c in clips[name]])
        codec = open_word_error_rate(clips[name], decoded[name])
        report(f"open word error rate, {name}", original=original, codec=codec)
    for kind, level in noise_levels(model).items():
        report(f"{kind} noise at -50 dBFS", decoded_dbfs=level)
    for i, (used, perplexity) in enumerate(codebook_use(model, clips[OWN_NEW_RENDITIONS])):
        report(f"codebook {i}", used=used, perplexity=perplexity)
    speed = streaming_milliseconds(model, clips[CANONICAL][0].pcm)
    report("streaming, encode and decode", milliseconds_per_frame=speed)
    (out / "codec" / "evaluation.json").write_text(json.dumps(figures, indent=1) + "\n")
    return figures
