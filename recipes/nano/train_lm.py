"""Training of nano's language model, with `moshi_mlx.training`, on dialogues made on the fly.

    python -m recipes.nano.train_lm --out build/nano --minutes 60

Goes on where it stopped. Beside what the published models learn, nano learns to name the user's
word that just ended: a linear head on the temporal states, thrown away after training, that makes
words rather than whole phrases what generalizes. At the end everything goes to the folder `model`,
which `moshi_mlx.load` runs.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from moshi_mlx.config import UNGENERATED_TOKEN, LmConfig
from moshi_mlx.generate import Generator
from moshi_mlx.lm import Lm
from moshi_mlx.published import read_config
from moshi_mlx.sampling import Sampling
from moshi_mlx.text import TextTokenizer
from moshi_mlx.training.losses import Batch, LossConfig, cross_entropy, objective
from moshi_mlx.training.optimizers import OptimConfig
from moshi_mlx.training.trainer import TrainConfig, Trainer
from moshi_mlx.trees import named_parameters
from moshi_mlx.weights import load_lm

from . import script
from .dialogues import DialogueMaker
from .model_folder import export_model
from .tokens import (
    CARD,
    CODEBOOKS,
    EPAD,
    PAD,
    TEXT_CARD,
    Bank,
    Utterance,
    load_bank,
    load_utterances,
    token_folder,
)

CONFIG: dict[str, Any] = {
    "model_type": "moshi",
    "moshi_name": "model.safetensors",
    "mimi_name": "mimi.safetensors",
    "mimi_config_name": "mimi_config.json",
    "tokenizer_name": "tokenizer.model",
    "lm_gen_config": {"temp": 0.0, "temp_text": 0.0, "top_k": 1, "top_k_text": 1},
    "dim": 192,
    "text_card": TEXT_CARD,
    "existing_text_padding_id": PAD,
    "n_q": 2 * CODEBOOKS,
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
    "delays": [0, 0, *[1] * (CODEBOOKS - 1), 0, *[1] * (CODEBOOKS - 1)],
}
"""Nano's config.json: Moshi's architecture in full, small."""

_BATCH, FRAMES = 8, 160  # beyond the context: the model learns to do without the first frame
_WORD_LOSS = 0.6
LOSS = LossConfig(
    semantic_weight=3.0,
    acoustic_weight=1.0,
    text_padding_weight=0.15,
    text_end_padding_weight=1.0,
    depth_keep=0.2,
    depth_silent=0.2,
)
_NO_WORD_WEIGHT = 0.1


class ListeningLm(Lm):
    """Nano with a head for the user's words; remembers the states of its last pass for it."""

    def __init__(self, config: LmConfig, words: int) -> None:
        super().__init__(config)
        self.word_head = nn.Linear(config.transformer.dim, 1 + words, bias=False)

    def temporal(self, *args: Any, **kwargs: Any) -> tuple[mx.array, mx.array]:
        z, logits = super().temporal(*args, **kwargs)
        self._states = z
        return z, logits


class Dialogues:
    """The trainer's dataset. The one extra array is the number of the user's word that just ended,
    int32 [B, T]; 0: none, −1: not scored."""

    def __init__(self, maker: DialogueMaker) -> None:
        self._maker = maker

    def batch(self, index: int) -> Batch:
        """Batch `index`, always the same."""
        dialogues = self._maker.dialogues(index)
        codes, speaking, heard, given = (
            np.stack([getattr(d, part) for d in dialogues])
            for part in ("codes", "speaking", "heard", "given")
        )
        inputs = self._maker.corrupted(codes, index)
        return Batch(codes=codes, inputs=inputs, speaking=speaking, given=given, extra=(heard,))


def listening_objective(
    lm: ListeningLm, scales: mx.array, *arrays: mx.array
) -> tuple[mx.array, mx.array]:
    """The trainer's objective, and the cross-entropy of the user's words."""
    *prepared, heard = arrays
    loss, sums = objective(lm, scales, *prepared)
    errors, _ = cross_entropy(lm.word_head(lm._states), mx.maximum(heard, 0))
    weights = mx.where(heard > 0, 1.0, mx.where(heard == 0, _NO_WORD_WEIGHT, 0.0))
    words = (errors * weights).sum() / mx.maximum(weights.sum(), 1.0)
    return loss + _WORD_LOSS * words, sums


# --------------------------------------------------------------------------------- looking at it


def answers(lm: Lm, bank: Bank, utterances: list[Utterance], frames: int = 75) -> np.ndarray:
    """What nano says, greedily, to utterances that begin in frame 3: tokens [n, 9, frames]."""
    user = np.empty((len(utterances), CODEBOOKS, frames), np.int32)
    user[:] = bank.silence[:, None]
    for row, utterance in enumerate(utterances):
        piece = utterance.codes[:, : frames - 3]
        user[row, :, 3 : 3 + piece.shape[1]] = piece
    greedy = Sampling(temperature=0)
    generator = Generator(lm, batch=len(utterances), text=greedy, audio=greedy)
    steps = [generator.step(user[:, :, t]) for t in range(frames)]
    nothing = np.full_like(steps[0].written, UNGENERATED_TOKEN)
    return np.stack([nothing if s.frame is None else s.frame for s in steps], axis=2)


def said_text(tokens: np.ndarray, tokenizer: TextTokenizer) -> str:
    """The text of a row of text tokens."""
    return tokenizer.decode([int(t) for t in tokens if t >= 0 and t not in (EPAD, PAD)])


def expected_reply(text: str) -> str:
    """Nano's reply to a text, in any wording of the script."""
    for intent in script.INTENTS:
        if text in intent.wordings:
            return intent.reply
    return script.NOT_UNDERSTOOD


class Checker:
    """Shares of right answers to utterances never trained on, by kind."""

    def __init__(self, bank: Bank, folder: Path, each: int = 20) -> None:
        self.bank = bank
        self.tokenizer = TextTokenizer(folder / "tokenizer.model")
        groups: dict[str, list[Utterance]] = {}
        files = sorted(folder.glob("checks*.npz"))
        for utterance in itertools.chain.from_iterable(map(load_utterances, files)):
            groups.setdefault(utterance.kind, []).append(utterance)
        self.utterances = [u for group in groups.values() for u in group[:each]]

    def __call__(self, lm: Lm, step: int) -> dict[str, float]:
        right: dict[str, list[bool]] = {}
        tokens = answers(lm, self.bank, self.utterances)
        for utterance, said in zip(self.utterances, tokens, strict=True):
            text = said_text(said[0], self.tokenizer)
            right.setdefault(utterance.kind, []).append(text == expected_reply(utterance.text))
        return {kind: float(np.mean(values)) for kind, values in right.items()}


# ----------------------------------------------------------------------------------------- the run


def train(out: Path, minutes: float, seed: int, start: Path | None = None) -> None:
    """Trains into `out`/lm, from its newest checkpoint on if there is one.

    Without one from nothing, or from the `model.safetensors` `start`, at half the rate.
    """
    folder = token_folder(out)
    bank = load_bank(folder)
    maker = DialogueMaker(bank, _BATCH, FRAMES, seed)
    mx.random.seed(seed)
    lm = ListeningLm(lm_config(), len(maker.words))
    rate = 1.0
    if start is not None:
        lm.load_weights(list(named_parameters(load_lm(start, lm.config)).items()), strict=False)
        rate = 0.5
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
            lr=2e-3 * rate,
            muon_lr=3e-3 * rate,
            weight_decay=0.01,
            warmup_steps=40,
            schedule="linear",
            decay_start=0.5,
            final=0.03,
        ),
    )
    check = Checker(bank, folder)
    Trainer(lm, config, Dialogues(maker), check, say=_say, objective=listening_objective).run()


def _say(line: str) -> None:
    print(line, flush=True)


def lm_config() -> LmConfig:
    """Nano's configuration, read as that of any checkpoint."""
    return read_config(CONFIG, "nano").lm


def export(out: Path) -> Path:
    """The newest checkpoint, the codec and the tokenizer as a folder for `moshi_mlx.load`."""
    model = out / "model"
    export_model(out / "lm", CONFIG, model, out / "codec", token_folder(out) / "tokenizer.model")
    (model / "sentences.txt").write_text("\n".join(script.replies()) + "\n", encoding="utf-8")
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description="Train nano's language model.")
    parser.add_argument("--out", type=Path, default=Path("build/nano"))
    parser.add_argument("--minutes", type=float, default=120, help="of training, over all sittings")
    parser.add_argument("--start", type=Path, help="model.safetensors of nano to start from")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--export-only", action="store_true")
    args = parser.parse_args()
    if not args.export_only:
        train(args.out, args.minutes, args.seed, args.start)
    export(args.out)


if __name__ == "__main__":
    main()
