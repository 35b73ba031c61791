"""The trainer: steps, evaluation, progress, checkpoints, and going on where it stopped.

A run is a folder: `log.jsonl`, `loss.png`, `checkpoints/step_…`. Everything random comes from
(seed, step), so a run resumed from a checkpoint makes exactly the steps it would have made.
Knows nothing of sound, nor of what the sequences are about.
"""

import json
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Literal, Protocol

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map

from ..errors import MoshiError
from ..layouts import to_mlx
from ..lm import Lm
from ..safetensors import write_safetensors
from ..trees import Tree, flat, named_parameters, unflat
from .checkpointing import checkpoint_layers
from .distributed import Peers
from .losses import (
    Batch,
    Counts,
    LossConfig,
    loss_scales,
    loss_sums,
    metrics,
    objective,
    prepare,
)
from .optimizers import OptimConfig, Optimizers, schedule_factor
from .sharing import copied, shared_groups, summed

Evaluate = Callable[[Lm, int], dict[str, float]]
# (lm, scales [3], the arrays of `Prepared`, those of `Batch.extra`) → loss, sums [6].
Objective = Callable[..., tuple[mx.array, mx.array]]


class TrainingError(MoshiError):
    """A run cannot begin or go on."""


class Dataset(Protocol):
    """Where batches come from."""

    def batch(self, index: int) -> Batch:
        """Batch number `index`: the same for the same index, whenever and wherever it is asked.

        Indices count all micro-batches of all processes: step s takes the next
        accumulation · processes of them. All batches have the same shape.
        """


@dataclass(frozen=True)
class TrainConfig:
    """A run.

    run_dir: folder of its log, its checkpoints and its result.
    max_steps: its length in updates.
    max_minutes: its length in minutes of training, without evaluation and checkpoints, over all
        sittings; the first of the two lengths that is reached ends it.
    accumulation: micro-batches per step.
    seed: of adapters' beginnings and of the choice of positions that are scored.
    compute: the type that forward and backward passes run in, float32 or bfloat16; the weights
        that are trained and the optimizer's state stay float32.
    gradient_checkpointing: layers are computed again in the backward pass, which saves memory.
    compile: one fused graph a step; meant for GPUs. On the CPU it takes minutes to build and gains
        nothing.
    log_every: steps between lines of the log.
    evaluate_every: steps between evaluations; 0: only at the end.
    checkpoint_every: steps between checkpoints; 0: only at the end.
    keep: newest checkpoints that are kept.
    loss: weights of the loss's terms.
    optim: how the weights are updated.
    """

    run_dir: Path
    max_steps: int | None = None
    max_minutes: float | None = None
    accumulation: int = 1
    seed: int = 0
    compute: Literal["float32", "bfloat16"] = "float32"
    gradient_checkpointing: bool = False
    compile: bool = False
    log_every: int = 10
    evaluate_every: int = 0
    checkpoint_every: int = 500
    keep: int = 2
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)


class Trainer:
    """Trains a model's trainable parameters on a dataset.

    Args:
        lm: the model; what is frozen stays as it is.
        config: the run.
        dataset: where batches come from.
        evaluate: called with the model and the step; its figures go into the log.
        peers: the processes that train together.
        objective: what is minimized; `losses.objective`, or one that adds terms to it. A term
            adds up over micro-batches and processes.
        say: takes a line of progress.

    Raises:
        TrainingError: the run has no end, or nothing is trainable.
    """

    def __init__(
        self,
        lm: Lm,
        config: TrainConfig,
        dataset: Dataset,
        evaluate: Evaluate | None = None,
        peers: Peers | None = None,
        objective: Objective = objective,
        say: Callable[[str], None] = print,
    ) -> None:
        if config.max_steps is None and config.max_minutes is None:
            raise TrainingError("a run needs max_steps or max_minutes")
        self.lm = lm
        self.config = config
        self.dataset = dataset
        self.step = 0
        self.seconds = 0.0
        self.stopped = False
        self._evaluate = evaluate
        self._peers = peers or Peers()
        self._say = say
        self._parameters: Tree = lm.trainable_parameters()
        if not flat(self._parameters):
            raise TrainingError("the model has no trainable parameters")
        self._optimizers = Optimizers(config.optim, self._parameters)
        if config.gradient_checkpointing:
            checkpoint_layers(lm)
        self._shared = shared_groups(self._parameters)
        self._gradients = _gradient_function(lm, objective, getattr(mx, config.compute))
        self._apply = self._optimizers.apply
        if config.compile:
            self._gradients = mx.compile(self._gradients)
            state = self._optimizers.state
            self._apply = mx.compile(self._apply, inputs=state, outputs=state)

    @property
    def progress(self) -> float:
        """The share of the run that is done, 0 … 1."""
        config = self.config
        steps = self.step / config.max_steps if config.max_steps else 0.0
        minutes = self.seconds / 60 / config.max_minutes if config.max_minutes else 0.0
        return min(1.0, max(steps, minutes))

    @property
    def checkpoints(self) -> list[Path]:
        """The folders of the checkpoints, oldest first."""
        found = (self.config.run_dir / "checkpoints").glob("step_" + "[0-9]" * 8)
        return sorted(path for path in found if path.is_dir())

    def run(self, resume: bool = True) -> dict[str, float]:
        """Trains to the end, or until SIGTERM or Ctrl-C, and writes a checkpoint.

        Args:
            resume: go on from the newest checkpoint of the folder, if there is one.

        Returns the last figures logged.
        """
        if resume and self._peers.is_first and self.checkpoints:
            self.load(self.checkpoints[-1])
            self._forget_after(self.step)
            self._say(f"going on from step {self.step}")
        self._begin_alike()
        last: dict[str, float] = {}
        window: list[dict[str, float]] = []
        saved = -1
        with _stop_signals(self.stop):
            while self.progress < 1.0 and not self.stopped:
                began = time.perf_counter()
                window.append(self.train_step())
                self._agree(self.seconds + time.perf_counter() - began)
                done = self.progress >= 1.0
                if _due(self.step, self.config.log_every) or done:
                    last = {k: float(np.mean([w[k] for w in window])) for k in window[0]}
                    window.clear()
                    self._log(last)
                if _due(self.step, self.config.evaluate_every) or done:
                    self._evaluate_now()
                if _due(self.step, self.config.checkpoint_every):
                    self.save()
                    saved = self.step
        if saved != self.step and self.step:
            self.save()
        if self.stopped:
            self._say(f"stopped at step {self.step}; run the same command to resume")
        return last

    def stop(self) -> None:
        """Ends the run after the current step."""
        self.stopped = True

    def train_step(self) -> dict[str, float]:
        """One update of the weights; returns the loss, its parts and the learning rate."""
        config, peers = self.config, self._peers
        first = (self.step * peers.size + peers.rank) * config.accumulation
        batches = [self._prepared(first + i) for i in range(config.accumulation)]
        counts = peers.sum_numbers(np.sum([counts for _, counts in batches], axis=0))
        scales = mx.array(loss_scales(counts, config.loss).astype(np.float32))
        sums, gradients = None, None
        for batch, _ in batches:
            part, parts = self._gradients(self._parameters, scales, *batch)
            sums = part if sums is None else sums + part
            gradients = parts if gradients is None else tree_map(mx.add, gradients, parts)
            mx.eval(sums, gradients)
        assert sums is not None and gradients is not None
        factor = schedule_factor(config.optim, self.step, self.progress)
        self._optimizers.set_factor(factor)
        gradients = summed(peers.sum_tree(gradients), self._shared)
        parameters = copied(self._apply(self._parameters, gradients), self._shared)
        mx.eval(parameters, self._optimizers.state)
        self._take(parameters)
        self.step += 1
        totals = peers.sum_numbers(np.array(sums, dtype=np.float64))
        return {**metrics(totals, counts, config.loss), "lr": config.optim.lr * factor}

    def _prepared(self, index: int) -> tuple[tuple[mx.array, ...], Counts]:
        rng = np.random.default_rng((self.config.seed, index))
        batch = self.dataset.batch(index)
        prepared, counts = prepare(batch, self.lm.config, self.config.loss, rng)
        return (*prepared, *(mx.array(array) for array in batch.extra)), counts

    def _take(self, parameters: Tree) -> None:
        """The model takes the parameters, and its own order of them stays: sums depend on it."""
        self.lm.update(parameters)
        self._parameters = self.lm.trainable_parameters()

    def _begin_alike(self) -> None:
        """All peers begin where the first does, which has the checkpoints."""
        peers = self._peers
        if peers.size == 1:
            return
        numbers = peers.from_first({"step": mx.array(self.step), "seconds": mx.array(self.seconds)})
        self.step, self.seconds = int(numbers["step"].item()), float(numbers["seconds"].item())
        self._take(peers.from_first(self._parameters))
        state = peers.from_first({"parts": self._optimizers.state})
        self._optimizers.load(state["parts"])
        mx.eval(self._parameters, self._optimizers.state)

    def _agree(self, seconds: float) -> None:
        """All peers have the first one's clock and stop if one does: they leave together."""
        peers = self._peers
        mine = np.array([float(self.stopped), seconds if peers.is_first else 0.0])
        stopped, self.seconds = peers.sum_numbers(mine).tolist()
        self.stopped = stopped > 0

    # What is written.

    def save(self) -> Path:
        """Writes a checkpoint under a temporary name, renames it, and drops the oldest."""
        path = self.config.run_dir / "checkpoints" / f"step_{self.step:08d}"
        if not self._peers.is_first:
            return path
        fresh = path.with_suffix(".new")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        write_safetensors(fresh / "weights.safetensors", flat(self._parameters))
        write_safetensors(fresh / "optimizer.safetensors", flat(self._optimizers.state))
        state = {"step": self.step, "seconds": self.seconds}
        (fresh / "state.json").write_text(json.dumps(state), encoding="utf-8")
        shutil.rmtree(path, ignore_errors=True)
        fresh.rename(path)
        for old in self.checkpoints[: -self.config.keep]:
            shutil.rmtree(old)
        return path

    def load(self, path: Path) -> None:
        """Takes back a checkpoint: weights, optimizers, step and time.

        Raises:
            TrainingError: it is of another model or another kind of run.
        """
        weights = _read(path / "weights.safetensors")
        mine = flat(self._parameters)
        for name in sorted(weights.keys() | mine.keys()):
            saved, now = (w[name].shape if name in w else None for w in (weights, mine))
            if saved != now:
                raise TrainingError(
                    f"{path}: is of another model or trains other parameters: '{name}' is {saved} "
                    f"there and {now} here"
                )
        state = _read(path / "optimizer.safetensors")
        if state.keys() != flat(self._optimizers.state).keys():
            raise TrainingError(f"{path}: was made with another optimizer")
        numbers = json.loads((path / "state.json").read_text(encoding="utf-8"))
        self._take(unflat(weights))
        names = flat(self._optimizers.state)
        self._optimizers.load(unflat({name: state[name] for name in names}))
        mx.eval(self._parameters, self._optimizers.state)
        self.step, self.seconds = numbers["step"], numbers["seconds"]

    def _log(self, figures: dict[str, float]) -> None:
        if not self._peers.is_first:
            return
        self._write({"step": self.step, "seconds": round(self.seconds, 1), **figures})
        left = self.seconds * (1 / self.progress - 1) if self.progress else 0.0
        shown = "  ".join(f"{k} {figures[k]:.3f}" for k in ("loss", "text", "semantic", "acoustic"))
        self._say(
            f"step {self.step}  {shown}  word accuracy {figures['text_accuracy']:.3f}  "
            f"{self.seconds / self.step:.2f} s/step  {_clock(left)} left"
        )

    def _evaluate_now(self) -> None:
        if self._evaluate is None or not self._peers.is_first:
            return
        figures = self._evaluate(self.lm, self.step)
        self._write({"step": self.step, **{f"eval_{k}": v for k, v in figures.items()}})
        self._say("  ".join([f"step {self.step}", *(f"{k} {v:.3f}" for k, v in figures.items())]))

    def _forget_after(self, step: int) -> None:
        """Takes lines of steps that will be made again out of the log."""
        log = self.config.run_dir / "log.jsonl"
        if log.is_file():
            lines = log.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if json.loads(line)["step"] <= step]
            log.write_text("".join(kept), encoding="utf-8")

    def _write(self, line: dict[str, float]) -> None:
        self.config.run_dir.mkdir(parents=True, exist_ok=True)
        with (self.config.run_dir / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({k: round(v, 6) for k, v in line.items()}) + "\n")


def evaluation(dataset: Dataset, num_batches: int, loss: LossConfig) -> Evaluate:
    """An evaluation: the figures of the first batches of a dataset, each sequence scored whole."""
    whole = replace(loss, depth_keep=1.0)

    def evaluate(lm: Lm, step: int) -> dict[str, float]:
        sums, counts = np.zeros(6), np.zeros(6)
        for index in range(num_batches):
            batch = dataset.batch(index)
            prepared, own = prepare(batch, lm.config, whole, np.random.default_rng(index))
            sums += np.array(loss_sums(lm, prepared), dtype=np.float64)
            counts += own
        return metrics(sums, counts, whole)

    return evaluate


def save_weights(lm: Lm, path: Path, dtype: mx.Dtype = mx.bfloat16) -> None:
    """Writes a model's weights in the published MLX naming, for `config.json`'s `moshi_name`."""
    floats = (mx.float32, mx.float16, mx.bfloat16)
    cast = {k: v.astype(dtype) if v.dtype in floats else v for k, v in named_parameters(lm).items()}
    write_safetensors(path, to_mlx(cast, lm.config))


def _gradient_function(
    lm: Lm, objective: Objective, compute: mx.Dtype
) -> Callable[..., tuple[mx.array, Tree]]:
    """(parameters, scales, *arrays) → the sums of the objective, and its gradients."""

    def cast(value: mx.array) -> mx.array:
        return value.astype(compute) if mx.issubdtype(value.dtype, mx.floating) else value

    def gradients(parameters: Tree, scales: mx.array, *arrays: mx.array) -> tuple[mx.array, Tree]:
        def loss(parameters: Tree) -> tuple[mx.array, mx.array]:
            lm.update(tree_map(cast, parameters))
            return objective(lm, scales, *arrays)

        (_, sums), grads = mx.value_and_grad(loss)(parameters)
        lm.update(parameters)
        return sums, grads

    return gradients


def _read(path: Path) -> dict[str, mx.array]:
    if not path.is_file():
        raise TrainingError(f"{path}: there is no such file")
    arrays = mx.load(str(path))
    assert isinstance(arrays, dict)
    return arrays


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _clock(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"


@contextmanager
def _stop_signals(stop: Callable[[], None]) -> Iterator[None]:
    """SIGTERM and Ctrl-C call `stop`; a second one does what it always did."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {kind: signal.getsignal(kind) for kind in (signal.SIGTERM, signal.SIGINT)}

    def restore() -> None:
        for kind, handler in before.items():
            signal.signal(kind, handler)

    def handle(kind: int, frame: FrameType | None) -> None:
        restore()
        stop()

    for kind in before:
        signal.signal(kind, handle)
    try:
        yield
    finally:
        restore()
