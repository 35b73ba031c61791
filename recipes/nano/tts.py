"""Nano's small voice: its data, and its training with `moshi_mlx.training`.

    python -m recipes.nano.tts {prepare,train,export} --out build/nano-tts

It speaks words in nano's voice, `DELAY` frames after their text. In training a word begins and ends
with a frame, so that its codes are nearly the same wherever it stands. Training goes on where it
stopped.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from moshi_mlx.config import LmConfig
from moshi_mlx.lm import Lm
from moshi_mlx.published import read_config
from moshi_mlx.text import TextTokenizer
from moshi_mlx.training.losses import Batch, LossConfig, loss_sums, metrics, prepare
from moshi_mlx.training.optimizers import OptimConfig
from moshi_mlx.training.trainer import TrainConfig, Trainer

from .clips import (
    CARD,
    CODEBOOKS,
    FRAME_RATE,
    Clip,
    Take,
    coded,
    load_shards,
    make_shards,
    silence,
)
from .codec_data import FRAME_SIZE
from .grid import on_grid
from .model_folder import export_on_nano
from .sentences import (
    EPAD,
    PAD,
    TEXT_CARD,
    SentenceMaker,
    held_out_sentences,
    punctuated,
    train_tokenizer,
)
from .speech import NANO_VOICE, Rendition, synthesize
from .splicing import SpokenWords
from .tokens import text_stream

DELAY = 8
"""Frames from a word's text to its sound."""

_SCHEDULE = [0, 1, 2, 2, 3, 3, 3, 3]  # the depth transformer's weights for each codebook
CONFIG: dict[str, Any] = {
    "model_type": "tts",
    "moshi_name": "model.safetensors",
    "base": "nano",
    "tokenizer_name": "tokenizer.model",
    "lm_gen_config": {"temp": 0.3, "temp_text": 0.3, "top_k": 250, "top_k_text": 25},
    "tts_config": {"audio_delay": DELAY / FRAME_RATE, "second_stream_ahead": 0},
    "dim": 192,
    "text_card": TEXT_CARD,
    "existing_text_padding_id": PAD,
    "n_q": CODEBOOKS,
    "dep_q": CODEBOOKS,
    "card": CARD,
    "num_heads": 6,
    "num_layers": 4,
    "hidden_scale": 4.125,
    "causal": True,
    "layer_scale": None,
    "context": 100,
    "max_period": 10000,
    "gating": "silu",
    "norm": "rms_norm_f32",
    "positional_embedding": "rope",
    "depformer_dim": 96,
    "depformer_dim_feedforward": 396,
    "depformer_num_heads": 4,
    "depformer_num_layers": 2,
    "depformer_layer_scale": None,
    "depformer_multi_linear": True,
    "depformer_context": CODEBOOKS,
    "depformer_max_period": 10000,
    "depformer_gating": "silu",
    "depformer_pos_emb": "none",
    "depformer_weights_per_step": True,
    "depformer_weights_per_step_schedule": _SCHEDULE,
    "delays": [0, 0, *[1] * (CODEBOOKS - 1)],
}
"""The voice's config.json: that of the published ones, small."""

_BATCH, _FRAMES = 8, 150  # beyond the context: the model learns to do without the first frame
LOSS = LossConfig(
    semantic_weight=2.0,
    acoustic_weight=1.0,
    text_padding_weight=0.5,
    text_end_padding_weight=1.0,
    text_word_weight=0.0,
    depth_keep=0.5,
    depth_silent=0.05,
)
_CLIPS = 200  # of a shard
_SETTLE = 30  # frames of silence that the codec hears before a clip
TEMPO = 1.15
"""Of durations: the codec keeps slow speech better."""

_LONGEST, _LONGEST_LAST = 9, 7  # frames of a word; no more paddings are allowed between two
_PAUSE = 3  # frames after a clip, less after a long word
_TAIL = 9  # frames that are kept after a clip's speech
_LEAD = 2  # frames before the first clip
_OWN_RANDOM = 0.04  # of the codes that the model reads


# ------------------------------------------------------------------------------------------- data


def record_clips(seed: int, number: int) -> list[Take]:
    """Shard `number` of training: sentences in nano's voice, on the frame grid."""
    rng = np.random.default_rng([seed, number])
    maker = SentenceMaker()
    return _takes([punctuated(maker.sentence(rng), rng) for _ in range(_CLIPS)])


def make_clips(seed: int, number: int) -> list[Clip]:
    """The same with their codes."""
    return coded(record_clips(seed, number))


def held_out_clips(seed: int, number: int) -> list[Clip]:
    """The held-out wordings."""
    rng = np.random.default_rng([seed, number, 10**6])
    return spoken_clips([punctuated(text, rng) for text in held_out_sentences()])


def spoken_clips(texts: list[str]) -> list[Clip]:
    """Clips whose words begin with frames, the first with frame 1."""
    return coded(_takes(texts))


def _takes(texts: list[str]) -> list[Take]:
    takes = []
    for text in texts:
        speech = on_grid(
            synthesize(Rendition(text, NANO_VOICE, TEMPO)),
            longest=_LONGEST,
            longest_last=_LONGEST_LAST,
        )
        starts = tuple(float(round(word.start * FRAME_RATE)) for word in speech.words)
        end = round(speech.words[-1].end * FRAME_RATE)
        room = (end + _TAIL) * FRAME_SIZE - len(speech.pcm)
        pcm = np.pad(speech.pcm, (_SETTLE * FRAME_SIZE, max(0, room)))
        words = tuple(word.label for word in speech.words)
        clip = Clip(np.empty(0), words, starts, end, NANO_VOICE)
        takes.append(Take(clip, pcm[: (_SETTLE + end + _TAIL) * FRAME_SIZE], _SETTLE))
    return takes


@dataclass(frozen=True)
class Said:
    """A sequence to learn from: codes int32 [9, T], text first; bool [T], where there is sound."""

    codes: np.ndarray
    speaking: np.ndarray


def clip_frames(clip: Clip) -> int:
    """Frames from a clip's beginning to where the next one may begin."""
    last = round(clip.end - clip.starts[-1])
    return round(clip.end) + min(_PAUSE, max(0, 8 - last))


def sequence(clips: list[Clip], quiet: np.ndarray, frames: int, tokenizer: TextTokenizer) -> Said:
    """Clips one after the other as one script, whole; after them, another word is asked for.

    The text is that which the machine of a voice writes: 0 in the frame before a word. There is
    nothing, −1, before the delay has passed and after the end.
    """
    codes = np.full((1 + CODEBOOKS, frames), -1, np.int32)
    sound = codes[1:, DELAY:]
    sound[:, :_LEAD] = quiet[:, None]
    words: list[tuple[str, int]] = []
    at = _LEAD
    for clip in clips:
        sound[:, at : at + clip.frames] = clip.codes[:, : max(0, sound.shape[1] - at)]
        words += [(w, at + round(s)) for w, s in zip(clip.words, clip.starts, strict=True)]
        at += clip_frames(clip)
    end = min(frames, at + DELAY)
    sound[:, at + _TAIL - _PAUSE :] = -1
    codes[0, :end] = text_stream(words, end, tokenizer.encode)
    codes[0, at] = EPAD
    return Said(codes, codes[1] >= 0)


class Scripts:
    """The trainer's dataset: clips in an order that depends on the seed and the index alone.

    Args:
        clips: what to learn from.
        quiet: codes [8] of silence.
        tokenizer: of the text.
        seed: of what is chosen.
        batch: sequences at once.
        spliced: share of the clips that are made of words of others.
        wrong: share of the codes that the model reads as others; above the default it is drawn for
            each sequence, up to this.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        quiet: np.ndarray,
        tokenizer: TextTokenizer,
        seed: int,
        batch: int = _BATCH,
        spliced: float = 0.0,
        wrong: float = _OWN_RANDOM,
    ) -> None:
        self._clips, self._quiet, self._tokenizer, self._seed = clips, quiet, tokenizer, seed
        self._batch, self._spliced, self._wrong = batch, spliced, wrong
        self._words, self._maker = SpokenWords(clips), SentenceMaker()

    def batch(self, index: int) -> Batch:
        """Batch `index`, always the same."""
        rng = np.random.default_rng([self._seed, index])
        rows = [self._row(rng) for _ in range(self._batch)]
        codes = np.stack([row.codes for row in rows])
        inputs = codes.copy()
        least = _OWN_RANDOM / 2 if self._wrong > _OWN_RANDOM else self._wrong
        share = rng.uniform(least, self._wrong, (len(codes), 1, 1))
        wrong = (rng.uniform(size=codes.shape) < share) & (codes >= 0)
        wrong[:, 0] = False
        inputs[wrong] = rng.integers(0, CARD, int(wrong.sum()))
        return Batch(codes=codes, inputs=inputs, speaking=np.stack([row.speaking for row in rows]))

    def _row(self, rng: np.random.Generator) -> Said:
        chosen: list[Clip] = []
        room = _FRAMES - DELAY - _LEAD - 2
        while True:
            clip = self._clip(rng)
            room -= clip_frames(clip)
            if room < 0:
                break
            chosen.append(clip)
        if rng.uniform() < 0.5:  # as many write it
            last = chosen[-1]
            words = (*last.words[:-1], last.words[-1].rstrip(".!?"))
            chosen[-1] = Clip(last.codes, words, last.starts, last.end, last.voice)
        return sequence(chosen, self._quiet, _FRAMES, self._tokenizer)

    def _clip(self, rng: np.random.Generator) -> Clip:
        clip = self._clips[int(rng.integers(len(self._clips)))]
        if self._spliced and rng.uniform() < self._spliced:
            text = punctuated(self._maker.sentence(rng), rng).split()
            return self._words.spliced(text, clip.voice, rng) or clip
        return clip


# --------------------------------------------------------------------------------------- training


def lm_config() -> LmConfig:
    """The voice's configuration, read as that of any checkpoint."""
    return read_config(CONFIG, "nano-tts").lm


class Checker:
    """Teacher-forced figures of sentences never trained on."""

    def __init__(self, clips: list[Clip], quiet: np.ndarray, tokenizer: TextTokenizer) -> None:
        groups = [clips[i : i + 3] for i in range(0, len(clips) - 2, 3)]
        rows = [sequence(g, quiet, _FRAMES, tokenizer) for g in groups]
        self._batch = Batch(codes=np.stack([row.codes for row in rows]))
        self._loss = LossConfig(1.0, 1.0, 1.0, 1.0, text_word_weight=0.0)

    def __call__(self, lm: Lm, step: int) -> dict[str, float]:
        prepared, counts = prepare(self._batch, lm.config, self._loss, np.random.default_rng(0))
        return metrics(np.array(loss_sums(lm, prepared)), counts, self._loss)


def train(out: Path, minutes: float, seed: int) -> None:
    """Trains into `out`/lm, from its newest checkpoint on if there is one."""
    tokenizer = TextTokenizer(out / "tokenizer.model")
    clips, checks, quiet = load_shards(out / "clips"), load_shards(out / "checks"), silence()
    print(f"{len(clips)} clips, {sum(c.frames for c in clips) / FRAME_RATE / 3600:.2f} h")
    mx.random.seed(seed)
    config = TrainConfig(
        run_dir=out / "lm",
        max_minutes=minutes,
        seed=seed,
        log_every=20,
        evaluate_every=200,
        checkpoint_every=100,
        loss=LOSS,
        optim=OptimConfig(
            name="muon",
            lr=2e-3,
            muon_lr=3e-3,
            weight_decay=0.02,
            warmup_steps=40,
            schedule="linear",
            decay_start=0.4,
            final=0.03,
        ),
    )
    dataset = Scripts(clips, quiet, tokenizer, seed)
    check = Checker(checks, quiet, tokenizer)
    say = functools.partial(print, flush=True)
    Trainer(Lm(lm_config()), config, dataset, check, say=say).run()


def prepare_data(out: Path, shards: int, processes: int, seed: int) -> None:
    """The tokenizer, the training clips, and the clips that are looked at while training."""
    out.mkdir(parents=True, exist_ok=True)
    train_tokenizer(out)
    make_shards(functools.partial(held_out_clips, seed), out / "checks", [0], 1)
    make_shards(functools.partial(make_clips, seed), out / "clips", range(shards), processes)


def export(out: Path) -> None:
    """The newest checkpoint as a folder for `moshi_mlx.load`: `out`/model."""
    export_on_nano(out / "lm", CONFIG, out / "model", out / "tokenizer.model")


def main() -> None:
    parser = argparse.ArgumentParser(description="Nano's small voice.")
    parser.add_argument("step", choices=["prepare", "train", "export"])
    parser.add_argument("--out", type=Path, default=Path("build/nano-tts"))
    parser.add_argument("--shards", type=int, default=40, help="of 200 clips each")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=90, help="of training, over all sittings")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.step == "prepare":
        prepare_data(args.out, args.shards, args.processes, args.seed)
    elif args.step == "train":
        train(args.out, args.minutes, args.seed)
    else:
        export(args.out)


if __name__ == "__main__":
    main()
