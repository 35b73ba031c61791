"""The trainer: steps, evaluation, progress, checkpoints, and going on where it stopped.

A run is a folder: `log.jsonl`, `loss.png`, `checkpoints/step_…`. Everything random comes from
(seed, step), so a run resumed from a checkpoint makes exactly the steps it would have made.
Knows nothing of sound, nor of what the sequences are about.
"""

import math
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Literal, Protocol

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map

from ..errors import MoshiError
from ..files import read_json, write_json
from ..layouts import to_mlx
from ..lm import Lm
from ..safetensors import read_safetensors, write_safetensors
from ..trees import Tree, flat, named_parameters, unflat
from .checkpointing import checkpoint_layers
from .distributed import Peers
from .fields import STEPS, Range, check_fields
from .folder import Log, TrainingError, digest, named_errors, remove, whole_folder
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


_WEIGHTS, _OPTIMIZER, _STATE = "weights.safetensors", "optimizer.safetensors", "state.json"


class DamagedError(TrainingError):
    """A checkpoint is not whole."""


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
    log_every: steps between lines of the log; 0: only at the end.
    evaluate_every: steps between evaluations; 0: only at the end.
    checkpoint_every: steps between checkpoints; 0: only at the end.
    keep: newest checkpoints that are kept.
    loss: weights of the loss's terms.
    optim: how the weights are updated.
    """

    run_dir: Path
    max_steps: Annotated[int | None, Range(1, STEPS, "steps")] = None
    max_minutes: Annotated[float | None, Range(0, 1_000_000, "min", above=True)] = None
    accumulation: Annotated[int, Range(1, 100_000)] = 1
    seed: Annotated[int, Range(0, 2**32 - 1)] = 0
    compute: Literal["float32", "bfloat16"] = "float32"
    gradient_checkpointing: bool = False
    compile: bool = False
    log_every: Annotated[int, Range(0, STEPS, "steps")] = 10
    evaluate_every: Annotated[int, Range(0, STEPS, "steps")] = 0
    checkpoint_every: Annotated[int, Range(0, STEPS, "steps")] = 500
    keep: Annotated[int, Range(1, 1000)] = 2
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
        ConfigError: a number of the run is out of its range.
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
        check_fields(config)
        if config.max_steps is None and config.max_minutes is None:
            raise TrainingError("a run needs max_steps or max_minutes")
        self.lm = lm
        self.config = config
        self.dataset = dataset
        self.step = 0
        self.seconds = 0.0
        self.stopped = False
        self.stop_signal = signal.SIGINT
        self._log_file = Log(config.run_dir / "log.jsonl")
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
        found = self._folder.glob("step_" + "[0-9]" * 8)
        return sorted(path for path in found if path.is_dir())

    @property
    def _folder(self) -> Path:
        return self.config.run_dir / "checkpoints"

    def run(self, resume: bool = True) -> dict[str, float]:
        """Trains to the end, or until SIGTERM or Ctrl-C, and writes a checkpoint.

        `progress` is then 1, or `stop_signal` says what stopped it.

        Args:
            resume: go on from the newest whole checkpoint of the folder, if there is one; else
                its checkpoints and its log are removed.

        Returns the last figures logged.

        Raises:
            TrainingError: no checkpoint is whole or of this run, the loss or the gradient is not
                finite, or the disk refuses.
        """
        if self._peers.is_first:
            self._begin(resume)
        self._begin_alike()
        last: dict[str, float] = {}
        window: list[dict[str, float]] = []
        saved = self.step
        with _stop_signals(self.stop):
            while self.progress < 1.0 and not self.stopped:
                began = time.perf_counter()
                with _within_memory():
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
            if saved != self.step:
                self.save()
        if self.progress < 1.0:
            self._say(f"stopped at step {self.step}; run the same command to resume")
        return last

    def stop(self, kind: signal.Signals = signal.SIGINT) -> None:
        """Ends the run after the current step."""
        self.stopped, self.stop_signal = True, kind

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
        totals = peers.sum_numbers(np.array(sums, dtype=np.float64))
        if not np.isfinite(totals).all():
            raise self._diverged("the loss", self.step + 1)
        factor = schedule_factor(config.optim, self.step, self.progress)
        self._optimizers.set_factor(factor)
        gradients = summed(peers.sum_tree(gradients), self._shared)
        if not _is_finite(gradients):
            raise self._diverged("the gradient's norm", self.step + 1)
        parameters = copied(self._apply(self._parameters, gradients), self._shared)
        mx.eval(parameters, self._optimizers.state)
        self._take(parameters)
        self.step += 1
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
        """Writes a checkpoint beside its place, puts it there, and drops the oldest.

        Raises:
            TrainingError: the weights are not finite, or the disk refuses; the others stay.
        """
        path = self._folder / f"step_{self.step:08d}"
        if not self._peers.is_first:
            return path
        parts = {_WEIGHTS: flat(self._parameters), _OPTIMIZER: flat(self._optimizers.state)}
        if not all(_is_finite(part) for part in parts.values()):
            raise self._diverged("a weight", self.step)
        with whole_folder(path) as folder:
            for name, arrays in parts.items():
                write_safetensors(folder / name, arrays)
            digests = {name: digest(folder / name) for name in parts}
            state = {"step": self.step, "seconds": self.seconds, "sha256": digests}
            write_json(folder / _STATE, state)
        with named_errors(self._folder):
            for old in self.checkpoints[: -self.config.keep]:
                remove(old)
        return path

    def load(self, path: Path) -> None:
        """Takes back a checkpoint: weights, optimizers, step and time.

        Raises:
            DamagedError: it is not whole; nothing is taken.
            TrainingError: it is of another model or another kind of run.
        """
        step, seconds = _read_state(path)
        parts = [_read_arrays(path / name) for name in (_WEIGHTS, _OPTIMIZER)]
        weights, state = parts
        mine = flat(self._parameters)
        for name in sorted(weights.keys() | mine.keys()):
            saved, now = (w[name].shape if name in w else None for w in (weights, mine))
            if saved != now:
                raise TrainingError(
                    f"{path}: is of another model or trains other parameters: '{name}' is {saved} "
                    f"there and {now} here; give another 'run_dir', or --fresh to start over"
                )
        if state.keys() != flat(self._optimizers.state).keys():
            raise TrainingError(
                f"{path}: was made with another optimizer; give another 'run_dir', or --fresh to "
                "start over"
            )
        self._take(unflat(weights))
        names = flat(self._optimizers.state)
        self._optimizers.load(unflat({name: state[name] for name in names}))
        mx.eval(self._parameters, self._optimizers.state)
        self.step, self.seconds = step, seconds

    def _begin(self, resume: bool) -> None:
        """Goes back to the newest whole checkpoint and sets newer ones aside; or starts over."""
        if not resume:
            with named_errors(self._folder):
                remove(self._folder)
        for left in self._folder.glob(".step_*.partial"):  # by a run that was killed
            shutil.rmtree(left, ignore_errors=True)
        damaged: dict[Path, DamagedError] = {}
        for path in reversed(self.checkpoints):
            try:
                self.load(path)
                break
            except DamagedError as error:
                damaged[path] = error
        if damaged and not self.step:
            raise TrainingError(
                f"{next(iter(damaged.values()))}; so is every checkpoint in {self._folder}: give "
                "--fresh to start over"
            )
        for path, reason in damaged.items():
            aside = path.with_suffix(".damaged")
            with named_errors(aside):
                remove(aside)
                path.rename(aside)
            self._say(f"{reason}; kept as {aside.name}, going on from step {self.step}")
        lines = self._log_file.keep_until(self.step)
        if lines:
            self._say(f"{self._log_file.path}: damaged lines removed: {lines}")
        if self.step and not damaged:
            self._say(f"going on from step {self.step}")

    def _diverged(self, what: str, step: int) -> TrainingError:
        kept = self.checkpoints
        rest = f"{kept[-1]} stays" if kept else "nothing was written"
        return TrainingError(
            f"step {step}: {what} is not finite; {rest}. Lower 'optim.lr' or set 'optim.max_norm', "
            "then run the same command again, or --fresh to start over"
        )

    def _log(self, figures: dict[str, float]) -> None:
        if not self._peers.is_first:
            return
        self._log_file.append({"step": self.step, "seconds": round(self.seconds, 1), **figures})
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
        if not all(math.isfinite(figure) for figure in figures.values()):
            raise self._diverged("a figure of the evaluation", self.step)
        self._log_file.append({"step": self.step, **{f"eval_{k}": v for k, v in figures.items()}})
        self._say("  ".join([f"step {self.step}", *(f"{k} {v:.3f}" for k, v in figures.items())]))


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


def _read_state(path: Path) -> tuple[int, float]:
    """A checkpoint's step and seconds, after a look at its files.

    Raises:
        DamagedError: one is missing or is not what was written.
    """
    try:
        state = read_json(path / _STATE)
    except MoshiError as error:
        raise DamagedError(str(error)) from error
    step, seconds, digests = (state.get(name) for name in ("step", "seconds", "sha256"))
    if (
        type(step) is not int
        or path.name != f"step_{step:08d}"
        or not isinstance(seconds, int | float)
        or not 0 <= seconds < math.inf
        or not isinstance(digests, dict)
    ):
        raise DamagedError(f"{path / _STATE}: is damaged")
    for name in (_WEIGHTS, _OPTIMIZER):
        try:
            found = digest(path / name)
        except OSError as error:
            raise DamagedError(f"{path / name}: cannot be read: {error.strerror}") from error
        if found != digests.get(name):
            raise DamagedError(f"{path / name}: is damaged: it is not what was written")
    return step, float(seconds)


def _read_arrays(path: Path) -> dict[str, mx.array]:
    try:
        arrays = read_safetensors(path)
    except MoshiError as error:
        raise DamagedError(str(error)) from error
    if not _is_finite(arrays):
        raise DamagedError(f"{path}: has numbers that are not finite")
    return arrays


def _is_finite(tree: Any) -> bool:
    arrays = [array for array in flat(tree).values() if mx.issubdtype(array.dtype, mx.floating)]
    # The norm's square: it overflows with the norm itself, and a sum is one pass.
    squares = mx.stack([mx.square(array.astype(mx.float32)).sum() for array in arrays])
    return bool(mx.isfinite(squares.sum()).item())


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _clock(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"


@contextmanager
def _within_memory() -> Iterator[None]:
    """What MLX and NumPy raise where memory is too small becomes a line that says what helps."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        text = str(error).lower()
        if not isinstance(error, MemoryError) and "alloc" not in text and "memory" not in text:
            raise
        raise TrainingError(
            "a step does not fit into memory: lower 'data.batch_size' or 'data.duration_sec' (and "
            "raise 'accumulation'), or set 'gradient_checkpointing: true'"
        ) from error


@contextmanager
def _stop_signals(stop: Callable[[signal.Signals], None]) -> Iterator[None]:
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
        stop(signal.Signals(kind))

    for kind in before:
        signal.signal(kind, handle)
    try:
        yield
    finally:
        restore()
