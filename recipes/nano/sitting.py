"""One short and fast training of nano, its transcriber or its voice on a GPU, ended by the clock.

    python -m recipes.nano.sitting {nano,stt,tts} {make,train} --data build/nano-stt --seconds 240

`make` adds training clips to the data until the time is over: processes speak, this one encodes.
`train` learns from what is there, and takes in what is added meanwhile. Batches are big and made
ahead by other processes, the weights lie in few arrays, the learning rate falls as the time goes,
and no two sequences are alike: words are spliced into new sentences, frames left out, codes
replaced. So the batches depend on when they are made, and a sitting cannot be repeated exactly.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from moshi_mlx.files import write_json
from moshi_mlx.hub import bundled_folder
from moshi_mlx.lm import Lm
from moshi_mlx.safetensors import write_safetensors
from moshi_mlx.text import TextTokenizer
from moshi_mlx.training.ahead import Ahead
from moshi_mlx.training.losses import Counts, LossConfig, loss_scales, metrics, objective, prepare
from moshi_mlx.training.optimizers import OptimConfig, Optimizers, schedule_factor
from moshi_mlx.training.stacking import Stacking
from moshi_mlx.training.trainer import Dataset, Evaluate, Objective
from moshi_mlx.trees import Tree, flat, named_parameters
from moshi_mlx.weights import load_lm

from . import stt, train_lm, tts
from .clips import Shards, load_shards, record_shards, silence
from .dialogues import DialogueMaker
from .model_folder import export_model, export_on_nano
from .tokens import load_bank

_SNAPSHOT = 200  # steps between weights that are gone back to where the loss is not finite
_WARM_UP = 100  # steps


@dataclass(frozen=True)
class Sitting:
    """How one is done.

    seconds: its length, all told.
    batch: sequences of a step.
    workers: processes that make batches.
    every: steps between lines of figures.
    compile: fuse operations; the kernels are built in the first minute.
    rate: what the learning rates are multiplied by.
    seed: of the batches.
    """

    seconds: float
    batch: int = 64
    workers: int = 2
    every: int = 250
    compile: bool = False
    rate: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Subject:
    """What is trained, on what."""

    lm: Lm
    dataset: Dataset
    check: Evaluate
    loss: LossConfig
    optim: OptimConfig
    objective: Objective = objective


def hearing(data: Path, start: Path | None, sitting: Sitting) -> Subject:
    """The transcriber, from the model in the folder `start` on, or from what nano knows."""
    tokenizer = TextTokenizer(data / "tokenizer.model")
    lm = stt.PausingLm(stt.lm_config())
    if start is None:
        stt.begin(lm)
    else:
        _load(lm, start)
    clips = Shards(data / "clips")
    return Subject(
        lm,
        stt.Transcripts(clips, tokenizer, sitting.seed, sitting.batch, spliced=0.25, jitter=0.06),
        stt.Checker(load_shards(data / "checks"), tokenizer),
        stt.LOSS,
        _optim(sitting, 1.5e-3, 2e-3, weight_decay=0.05),
        stt.pausing_objective,
    )


def speaking(data: Path, start: Path | None, sitting: Sitting) -> Subject:
    """The voice, from the model in the folder `start` on, or from nothing."""
    tokenizer, quiet = TextTokenizer(data / "tokenizer.model"), silence()
    lm = Lm(tts.lm_config())
    if start is not None:
        _load(lm, start)
    clips = Shards(data / "clips")
    return Subject(
        lm,
        tts.Scripts(clips, quiet, tokenizer, sitting.seed, sitting.batch, spliced=0.5, wrong=0.15),
        tts.Checker(load_shards(data / "checks"), quiet, tokenizer),
        tts.LOSS,
        _optim(sitting, 2e-3, 3e-3, weight_decay=0.02),
    )


def talking(data: Path, start: Path | None, sitting: Sitting) -> Subject:
    """Nano, from the model in the folder `start` on, or from nothing; `data` has its tokens."""
    bank = load_bank(data)
    maker = DialogueMaker(bank, sitting.batch, train_lm.FRAMES, sitting.seed)
    lm = train_lm.ListeningLm(train_lm.lm_config(), len(maker.words))
    if start is not None:
        _load(lm, start, strict=False)
    return Subject(
        lm,
        train_lm.Dialogues(maker),
        train_lm.Checker(bank, data),
        train_lm.LOSS,
        _optim(sitting, 1.5e-3, 2e-3, weight_decay=0.01),
        train_lm.listening_objective,
    )


def _optim(sitting: Sitting, lr: float, muon_lr: float, weight_decay: float) -> OptimConfig:
    """Learning rates that fall from a tenth of the time on."""
    return OptimConfig(
        name="muon",
        lr=lr * sitting.rate,
        muon_lr=muon_lr * sitting.rate,
        weight_decay=weight_decay,
        warmup_steps=_WARM_UP,
        schedule="cosine",
        decay_start=0.1,
        final=0.01,
    )


def _load(lm: Lm, folder: Path, strict: bool = True) -> None:
    weights = load_lm(folder / "model.safetensors", lm.config, dtype=mx.float32)
    lm.load_weights(list(named_parameters(weights).items()), strict=strict)


def sit(
    subject: Subject,
    sitting: Sitting,
    save: Callable[[Lm, int], None],
    say: Callable[[str], None] = print,
    began: float | None = None,
) -> int:
    """Trains until the time is over and returns the number of steps.

    `save` is called with the model and the thirds that are over: 1, 2, 3. The time runs from
    `began` of `time.monotonic` on, or from now.
    """
    began = time.monotonic() if began is None else began
    lm, optim = subject.lm, subject.optim
    stacking = Stacking(lm.trainable_parameters())
    weights = stacking.stacked(lm.trainable_parameters())
    optimizers = Optimizers(optim, weights)
    gradients, apply = _gradients(lm, subject.objective, stacking), optimizers.apply
    if sitting.compile:
        gradients = mx.compile(gradients)
        apply = mx.compile(apply, inputs=optimizers.state, outputs=optimizers.state)
    mx.eval(weights, optimizers.state)
    kept, lowered, saved, step, steps = weights, 1.0, 0, 0, 0
    window: list[tuple[mx.array, Counts]] = []

    def model() -> Lm:
        lm.update(stacking.tree(weights))
        return lm

    with Ahead(subject.dataset, sitting.workers) as ahead:
        while (progress := (time.monotonic() - began) / sitting.seconds) < 1.0:
            batch, counts = _prepared(ahead, lm, subject.loss, steps)
            scales = mx.array(loss_scales(counts, subject.loss).astype(np.float32))
            sums, parts = gradients(weights, scales, *batch)
            optimizers.set_factor(lowered * schedule_factor(optim, step, progress))
            weights = apply(weights, parts)
            mx.async_eval(sums, weights, optimizers.state)
            step, steps = step + 1, steps + 1
            window.append((sums, counts))
            if len(window) > 1 and not np.isfinite(np.array(window[-2][0])).all():
                lowered *= 0.5
                say(f"step {steps}: the loss is not finite; going back, at {lowered} of the rate")
                weights, step = kept, 0
                optimizers = Optimizers(optim, weights)
                apply = optimizers.apply
                window.clear()
                continue
            if step % _SNAPSHOT == 0 and np.isfinite(np.array(sums)).all():
                kept = weights
            if steps % sitting.every == 0:
                shown = _mean(window, subject.loss) | {
                    f"eval {k}": v for k, v in subject.check(model(), steps).items()
                }
                window = window[-1:]
                line = "  ".join(f"{name} {value:.3f}" for name, value in shown.items())
                say(f"{time.monotonic() - began:.0f} s  step {steps}  {line}")
            if saved < int(3 * progress):
                saved = int(3 * progress)
                save(model(), saved)
    if not all(mx.isfinite(array).all().item() for array in weights.values()):
        weights = kept
    figures = subject.check(model(), steps)
    say(f"end: step {steps}  " + "  ".join(f"{k} {v:.4f}" for k, v in figures.items()))
    save(lm, 3)
    return steps


def _gradients(lm: Lm, objective: Objective, stacking: Stacking) -> Callable[..., Any]:
    """(stacks, scales, *arrays) → the sums of the objective, and its gradients."""

    def loss(stacks: dict[str, mx.array], *arrays: mx.array) -> tuple[mx.array, mx.array]:
        lm.update(stacking.tree(stacks))
        return objective(lm, *arrays)

    differentiated = mx.value_and_grad(loss)

    def gradients(stacks: dict[str, mx.array], *arrays: mx.array) -> tuple[mx.array, Tree]:
        (_, sums), grads = differentiated(stacks, *arrays)
        return sums, grads

    return gradients


def _prepared(
    dataset: Dataset, lm: Lm, loss: LossConfig, index: int
) -> tuple[tuple[mx.array, ...], Counts]:
    batch = dataset.batch(index)
    prepared, counts = prepare(batch, lm.config, loss, np.random.default_rng(index))
    return (*prepared, *(mx.array(array) for array in batch.extra)), counts


def _mean(window: list[tuple[mx.array, Counts]], loss: LossConfig) -> dict[str, float]:
    sums = np.sum([np.array(sums, np.float64) for sums, _ in window], axis=0)
    return metrics(sums, np.sum([counts for _, counts in window], axis=0), loss)


def train(kind: str, data: Path, out: Path, start: Path | None, sitting: Sitting) -> None:
    """One sitting; models for `moshi_mlx.load` go to `out`/model-1, -2 and -3."""
    began = time.monotonic()
    mx.random.seed(sitting.seed)
    say = functools.partial(print, flush=True)
    subjects = {"nano": talking, "stt": hearing, "tts": speaking}
    subject = subjects[kind](data, start, sitting)
    config: Mapping[str, Any] = {"nano": train_lm, "stt": stt, "tts": tts}[kind].CONFIG

    def save(lm: Lm, third: int) -> None:
        run = out / f"run-{third}"
        checkpoint = run / "checkpoints" / "step_00000000"
        checkpoint.mkdir(parents=True, exist_ok=True)
        write_safetensors(checkpoint / "weights.safetensors", flat(lm.parameters()))
        target, tokenizer = out / f"model-{third}", data / "tokenizer.model"
        if kind == "nano":
            export_model(run, config, target, bundled_folder("nano"), tokenizer)
        else:
            export_on_nano(run, config, target, tokenizer)

    steps = sit(subject, sitting, save, say, began)
    seconds = time.monotonic() - began
    write_json(out / "sitting.json", {"steps": steps, "seconds": round(seconds, 1)})


def make(kind: str, data: Path, processes: int, seconds: float, first: int, seed: int) -> None:
    """Adds clips to `data`: shards from number `first` on, until the time is over."""
    record = {"stt": stt.record_clips, "tts": tts.record_clips}[kind]
    record_shards(
        functools.partial(record, seed),
        data / "clips",
        list(itertools.islice(itertools.count(first), 5000)),
        processes,
        time.monotonic() + seconds,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="A short training of a small model on a GPU.")
    parser.add_argument("kind", choices=["nano", "stt", "tts"])
    parser.add_argument("step", choices=["make", "train"])
    parser.add_argument("--data", type=Path, help="build/nano-stt or -tts, as `prepare` made it")
    parser.add_argument("--out", type=Path, help="where models go; `sitting` in the data")
    parser.add_argument("--start", type=Path, help="folder of the model to go on from")
    parser.add_argument("--seconds", type=float, default=240)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--every", type=int, default=250, help="steps between lines")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--rate", type=float, default=1.0, help="factor of the learning rates")
    parser.add_argument("--first", type=int, default=1000, help="number of the first shard")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    data = args.data or Path("build") / f"nano-{args.kind}"
    if args.step == "make" and args.kind == "nano":
        parser.error("nano's tokens are made by python -m recipes.nano.tokens")
    if args.step == "make":
        make(args.kind, data, args.workers, args.seconds, args.first, args.seed)
        return
    sitting = Sitting(
        args.seconds, args.batch, args.workers, args.every, args.compile, args.rate, args.seed
    )
    train(args.kind, data, args.out or data / "sitting", args.start, sitting)


if __name__ == "__main__":
    main()
