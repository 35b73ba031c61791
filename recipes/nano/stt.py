"""Nano's small transcriber: its data, and its training with `moshi_mlx.training`.

    python -m recipes.nano.stt {prepare,train,export} --out build/nano-stt

It hears one stream and writes each word `DELAY` frames after its start, a piece a word. Four heads
say whether the speaker pauses for half a second, one, two, three. Training goes on where it
stopped.
"""

from __future__ import annotations

import argparse
import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from moshi_mlx.config import LmConfig
from moshi_mlx.files import read_json
from moshi_mlx.hub import bundled_folder
from moshi_mlx.lm import Lm
from moshi_mlx.published import read_config
from moshi_mlx.text import TextTokenizer
from moshi_mlx.training.losses import Batch, LossConfig, cross_entropy, objective
from moshi_mlx.training.optimizers import OptimConfig
from moshi_mlx.training.trainer import TrainConfig, Trainer
from moshi_mlx.trees import named_parameters
from moshi_mlx.weights import load_lm

from .clips import CARD, CODEBOOKS, FRAME_RATE, Clip, Take, coded, load_shards, make_shards
from .codec_data import FRAME_SIZE
from .model_folder import export_on_nano
from .renditions import training_voices
from .sentences import (
    EPAD,
    PAD,
    TEXT_CARD,
    SentenceMaker,
    held_out_sentences,
    train_tokenizer,
)
from .speech import (
    SAMPLE_RATE,
    UNHEARD_USER_VOICES,
    Span,
    augment,
    sometimes_strange,
    synthesize,
    vary,
)
from .splicing import SpokenWords, jittered
from .tokens import text_stream

DELAY = 8
"""Frames from a word's start to its text."""

PAUSES = (0.5, 1.0, 2.0, 3.0)
"""Seconds of pause that the heads tell."""

CONFIG: dict[str, Any] = {
    "model_type": "stt",
    "moshi_name": "model.safetensors",
    "base": "nano",
    "tokenizer_name": "tokenizer.model",
    "lm_gen_config": {"temp": 0.0, "temp_text": 0.0, "top_k": 250, "top_k_text": 50},
    "stt_config": {
        "audio_delay_seconds": DELAY / FRAME_RATE,
        "audio_silence_prefix_seconds": 0.0,
    },
    "dim": 192,
    "text_card": TEXT_CARD,
    "existing_text_padding_id": PAD,
    "n_q": CODEBOOKS,
    "dep_q": 0,
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
    "depformer_dim": 192,
    "depformer_num_heads": 6,
    "delays": [0] * (1 + CODEBOOKS),
    "extra_heads_num_heads": len(PAUSES),
    "extra_heads_dim": 6,
}
"""The transcriber's config.json: that of the published ones, small."""

_BATCH, _FRAMES = 8, 160  # beyond the context: the model learns to do without the first frame
_PAUSE_LOSS = 0.1
LOSS = LossConfig(text_padding_weight=0.25, text_end_padding_weight=0.5)
_CLIPS = 200  # of a shard
_SETTLE = 6  # frames heard before a clip begins
_RANGES = (0.22, 0.22, 0.11)  # of stretch, pitch and warp; exp(± these)
_SWAYED_SHARE, _COLOURED_SHARE = 0.3, 0.4
_LONG_TAIL_SHARE = 0.3


# ------------------------------------------------------------------------------------------- data


def record_clips(seed: int, number: int) -> list[Take]:
    """Shard `number` of training: sentences by the training voices, disturbed."""
    rng = np.random.default_rng([seed, number])
    maker = SentenceMaker()
    texts = [maker.sentence(rng) for _ in range(_CLIPS)]
    voices = rng.permutation(training_voices(rng, len(texts))).tolist()
    lines = list(zip(texts, voices, strict=True))
    return _takes(recorded(lines, rng, strange=True, settle=_SETTLE))


def make_clips(seed: int, number: int) -> list[Clip]:
    """The same with their codes."""
    return coded(record_clips(seed, number))


@dataclass(frozen=True)
class Recording:
    """A sentence that was spoken: audio [samples] float32 of whole frames, the words' times in
    seconds, and when the speech ends."""

    pcm: np.ndarray
    words: tuple[Span, ...]
    end: float
    voice: str


def recorded(
    lines: list[tuple[str, str]],
    rng: np.random.Generator,
    *,
    strange: bool,
    settle: int,
    disturbed: float = 1.0,
) -> list[Recording]:
    """(text, voice) spoken: at any offset on the frame grid, in noise, with pauses around.

    Args:
        lines: texts with their voices.
        rng: what chance there is.
        strange: some voices become such as no engine has.
        settle: frames of noise before everything else.
        disturbed: how much, by noise, rooms and microphones, 0 … 1.
    """
    recordings = []
    for text, voice in lines:
        speech = synthesize(vary(text, voice, rng, ranges=_RANGES))
        if strange:
            speech = sometimes_strange(speech, rng, _SWAYED_SHARE, _COLOURED_SHARE)
        before = int(rng.integers(1, 6))
        long = rng.uniform() < _LONG_TAIL_SHARE
        after = int(rng.integers(20, 45) if long else rng.integers(2, 10))
        lead = (settle + before) * FRAME_SIZE + int(rng.integers(FRAME_SIZE))
        length = (lead + int(speech.speech_end * SAMPLE_RATE)) // FRAME_SIZE + 1 + after
        room = max(0, length * FRAME_SIZE - lead - len(speech.pcm))
        pcm = np.pad(speech.pcm, (lead, room))[: length * FRAME_SIZE]
        moved = lead / SAMPLE_RATE
        words = tuple(Span(w.label, w.start + moved, w.end + moved) for w in speech.words)
        end = speech.speech_end + moved
        recordings.append(Recording(augment(pcm, rng, disturbed), words, end, voice))
    return recordings


def _takes(recordings: list[Recording]) -> list[Take]:
    def frame(seconds: float) -> float:
        return round(seconds * FRAME_RATE - _SETTLE, 2)

    return [
        Take(
            Clip(
                np.empty(0),
                tuple(word.label for word in recording.words),
                tuple(frame(word.start) for word in recording.words),
                frame(recording.end),
                recording.voice,
            ),
            recording.pcm,
            _SETTLE,
        )
        for recording in recordings
    ]


@dataclass(frozen=True)
class Heard:
    """A sequence to learn from: codes int32 [9, T], text first, and pauses int32 [T, 4]: 1 in a
    pause of that length, else 0; −1: not scored."""

    codes: np.ndarray
    pauses: np.ndarray


def sequence(clips: list[Clip], frames: int, tokenizer: TextTokenizer) -> Heard:
    """Clips one after the other; the last ones may be cut off."""
    codes = np.full((1 + CODEBOOKS, frames), PAD, np.int32)
    pauses = np.full((frames, len(PAUSES)), -1, np.int32)
    words: list[tuple[str, int]] = []
    at = 0
    speech: list[tuple[float, float]] = []
    for clip in clips:
        room = max(0, frames - at)
        codes[1:, at : at + clip.frames] = clip.codes[:, :room]
        starts = (at + start for start in clip.starts)
        words += [(w, round(s) + DELAY) for w, s in zip(clip.words, starts, strict=True)]
        speech.append((at + clip.starts[0], at + clip.end))
        at += clip.frames
    codes[0] = text_stream([w for w in words if w[1] < frames], frames, tokenizer.encode)
    for (start, end), (following, _) in itertools.pairwise([*speech, (float(at), 0.0)]):
        # The text of frame p is written when the frames before p have been heard.
        pauses[int(np.ceil(start)) : int(np.ceil(end)) + 1] = 0
        long = [following - end >= seconds * FRAME_RATE for seconds in PAUSES]
        pauses[int(np.ceil(end)) + 1 : int(np.ceil(following))] = long
    return Heard(codes, pauses)


class Transcripts:
    """The trainer's dataset: clips in an order that depends on the seed and the index alone.

    Args:
        clips: what to learn from.
        tokenizer: of the text.
        seed: of what is chosen.
        batch: sequences at once.
        spliced: share of the clips that are made of words of others, by the same voice.
        jitter: share of the frames that are left out or there twice, in half of the sequences.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        tokenizer: TextTokenizer,
        seed: int,
        batch: int = _BATCH,
        spliced: float = 0.0,
        jitter: float = 0.0,
    ) -> None:
        self._clips, self._tokenizer, self._seed = clips, tokenizer, seed
        self._batch, self._spliced, self._jitter = batch, spliced, jitter
        self._words, self._maker = SpokenWords(clips), SentenceMaker()

    def batch(self, index: int) -> Batch:
        """Batch `index`, always the same. The extra array is the pauses, int32 [B, T, 4]."""
        rng = np.random.default_rng([self._seed, index])
        rows = [self._row(rng) for _ in range(self._batch)]
        codes = np.stack([row.codes for row in rows])
        return Batch(
            codes=codes,
            inputs=_corrupted(codes, rng),
            extra=(np.stack([row.pauses for row in rows]),),
        )

    def _row(self, rng: np.random.Generator) -> Heard:
        chosen: list[Clip] = []
        moved = self._jitter > 0 and rng.uniform() < 0.5
        while sum(clip.frames for clip in chosen) < _FRAMES:
            clip = self._clips[int(rng.integers(len(self._clips)))]
            if self._spliced and rng.uniform() < self._spliced:
                text = self._maker.sentence(rng).split()
                clip = self._words.spliced(text, clip.voice, rng) or clip
            chosen.append(jittered(clip, self._jitter, rng) if moved else clip)
        return sequence(chosen, _FRAMES, self._tokenizer)


def _corrupted(codes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What the model reads of codes [B, 9, T]: some tokens other, some missing."""
    inputs = codes.copy()
    text, audio = inputs[:, 0], inputs[:, 1:]
    wrong = (rng.uniform(size=text.shape) < 0.35) & (text != PAD) & (text != EPAD)
    text[wrong] = rng.integers(4, TEXT_CARD, int(wrong.sum()))
    random = rng.uniform(size=audio.shape) < 0.06
    audio[random] = rng.integers(0, CARD, int(random.sum()))
    missing = rng.uniform(size=text.shape) < 0.04
    audio[np.broadcast_to(missing[:, None], audio.shape)] = -1
    audio[rng.uniform(size=audio.shape) < 0.1] = -1
    for row in np.flatnonzero(rng.uniform(size=len(codes)) < 0.25):
        audio[row, int(rng.integers(2, CODEBOOKS)) :] = -1
    return inputs


# --------------------------------------------------------------------------------------- training


class PausingLm(Lm):
    """Remembers the states of its last pass for the objective's heads."""

    def temporal(self, *args: Any, **kwargs: Any) -> tuple[mx.array, mx.array]:
        z, logits = super().temporal(*args, **kwargs)
        self._states = z
        return z, logits


def pausing_objective(
    lm: PausingLm, scales: mx.array, *arrays: mx.array
) -> tuple[mx.array, mx.array]:
    """The trainer's objective and the cross-entropy of the pauses: element 0 of a head is "yes"."""
    *prepared, pauses = arrays
    loss, sums = objective(lm, scales, *prepared)
    logits = mx.stack([head(lm._states) for head in lm.extra_heads], axis=2)
    errors, _ = cross_entropy(logits, (pauses == 0).astype(mx.int32))
    scored = (pauses >= 0).astype(mx.float32)
    return loss + _PAUSE_LOSS * (errors * scored).sum() / mx.maximum(scored.sum(), 1.0), sums


def lm_config() -> LmConfig:
    """The transcriber's configuration, read as that of any checkpoint."""
    return read_config(CONFIG, "nano-stt").lm


def begin(lm: Lm) -> None:
    """Takes over what nano knows of hearing: its tables of the user's codes, and its layers."""
    folder = bundled_folder("nano")
    config = read_config(read_json(folder / "config.json"), "nano").lm
    known = named_parameters(load_lm(folder / "model.safetensors", config, dtype=mx.float32))
    mine = named_parameters(lm)
    taken = {n: w for n, w in known.items() if n.startswith(("transformer.", "out_norm."))}
    for k in range(CODEBOOKS):
        taken[f"audio_embs.{k}.weight"] = known[f"audio_embs.{config.dep_q + k}.weight"]
    assert all(mine[name].shape == weight.shape for name, weight in taken.items())
    lm.load_weights(list(taken.items()), strict=False)


class Checker:
    """Word error of sequences never trained on, teacher-forced: a wrong word, or none, counts."""

    def __init__(self, clips: list[Clip], tokenizer: TextTokenizer) -> None:
        groups = [clips[i : i + 4] for i in range(0, len(clips) - 3, 4)]
        self._codes = np.stack([sequence(g, _FRAMES, tokenizer).codes for g in groups])

    def __call__(self, lm: Lm, step: int) -> dict[str, float]:
        _, logits = lm.temporal(mx.array(_shifted(self._codes)))
        guesses, text = np.array(logits.argmax(-1)), self._codes[:, 0]
        words = (text != PAD) & (text != EPAD)
        return {
            "words": float((guesses == text)[words].mean()),
            "invented": float(((guesses != PAD) & (guesses != EPAD))[~words].sum() / words.sum()),
        }


def _shifted(codes: np.ndarray) -> np.ndarray:
    first = np.array([TEXT_CARD, *[CARD] * CODEBOOKS])[None, :, None]
    return np.concatenate([np.broadcast_to(first, (len(codes), 1 + CODEBOOKS, 1)), codes], 2)[
        :, :, :-1
    ]


def held_out_lines(
    rng: np.random.Generator, voices: Sequence[str]
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """The held-out wordings, and as many other sentences, each by another voice."""
    maker = SentenceMaker()
    sentences = held_out_sentences()
    texts = [*sentences, *(maker.sentence(rng) for _ in sentences)]
    lines = [(text, voices[i % len(voices)]) for i, text in enumerate(texts)]
    return lines[: len(sentences)], lines[len(sentences) :]


def heard_voices() -> list[str]:
    """The voices of training."""
    return sorted(set(training_voices(np.random.default_rng(0), 100)))


def train(out: Path, minutes: float, seed: int) -> None:
    """Trains into `out`/lm, from its newest checkpoint on if there is one."""
    tokenizer = TextTokenizer(out / "tokenizer.model")
    clips = load_shards(out / "clips")
    checks = load_shards(out / "checks")
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
            lr=1.5e-3,
            muon_lr=2e-3,
            weight_decay=0.05,
            warmup_steps=40,
            schedule="linear",
            decay_start=0.25,
            final=0.03,
        ),
    )
    dataset, check = Transcripts(clips, tokenizer, seed), Checker(checks, tokenizer)
    lm = PausingLm(lm_config())
    begin(lm)
    say = functools.partial(print, flush=True)
    Trainer(lm, config, dataset, check, say=say, objective=pausing_objective).run()


def prepare(out: Path, shards: int, processes: int, seed: int) -> None:
    """The tokenizer, the training clips, and the clips that are looked at while training."""
    out.mkdir(parents=True, exist_ok=True)
    train_tokenizer(out)
    make_shards(functools.partial(_checks, seed), out / "checks", [0], 1)
    make_shards(functools.partial(make_clips, seed), out / "clips", range(shards), processes)


def _checks(seed: int, number: int) -> list[Clip]:
    lines = []
    for salt, voices in enumerate((heard_voices(), list(UNHEARD_USER_VOICES))):
        rng = np.random.default_rng([seed, number + salt, 10**6])
        held_out, like_training = held_out_lines(rng, voices)
        lines += [*held_out, *like_training][:: 1 + 2 * salt]
    rng = np.random.default_rng([seed, number, 10**6, 2])
    return coded(_takes(recorded(lines, rng, strange=False, settle=_SETTLE)))


def export(out: Path) -> None:
    """The newest checkpoint as a folder for `moshi_mlx.load`: `out`/model."""
    export_on_nano(out / "lm", CONFIG, out / "model", out / "tokenizer.model")


def main() -> None:
    parser = argparse.ArgumentParser(description="Nano's small transcriber.")
    parser.add_argument("step", choices=["prepare", "train", "export"])
    parser.add_argument("--out", type=Path, default=Path("build/nano-stt"))
    parser.add_argument("--shards", type=int, default=60, help="of 200 clips each")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=90, help="of training, over all sittings")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.step == "prepare":
        prepare(args.out, args.shards, args.processes, args.seed)
    elif args.step == "train":
        train(args.out, args.minutes, args.seed)
    else:
        export(args.out)


if __name__ == "__main__":
    main()
