"""Trains the conformance model for a few steps: `train_worker.py FOLDER BATCH ACCUMULATION`.

Prints the losses. test_training_trainer runs it under `mlx.launch` in two processes.
"""

import json
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from moshi_mlx.published import read_config
from moshi_mlx.training.distributed import Peers
from moshi_mlx.training.losses import Batch
from moshi_mlx.training.optimizers import OptimConfig
from moshi_mlx.training.trainer import TrainConfig, Trainer
from moshi_mlx.weights import load_lm
from tests.device import set_device

CASE = Path(__file__).parents[1] / "fixtures" / "lm" / "moshi"
STEPS = 4


class Sequences:
    """Random sequences; batch i of size B has sequences i·B … (i + 1)·B − 1."""

    def __init__(self, size: int) -> None:
        self.size = size

    def batch(self, index: int) -> Batch:
        rows = range(index * self.size, (index + 1) * self.size)
        return Batch(np.stack([self._sequence(row) for row in rows]))

    def _sequence(self, row: int) -> np.ndarray:
        rng = np.random.default_rng(row)
        codes = rng.integers(0, 64, (17, 10)).astype(np.int32)
        codes[:, rng.integers(5, 10) :] = -1  # lengths differ, so counts differ between processes
        return codes


def make_trainer(
    folder: Path,
    size: int,
    accumulation: int = 1,
    peers: Peers | None = None,
    steps: int = STEPS,
    **options: Any,
) -> Trainer:
    config = read_config(json.loads((CASE / "config.json").read_text()), "config.json").lm
    lm = load_lm(CASE / "model.safetensors", config, dtype=mx.float32)
    run = TrainConfig(
        folder,
        max_steps=steps,
        accumulation=accumulation,
        log_every=1,
        checkpoint_every=2,
        optim=OptimConfig(name="muon", lr=1e-3, muon_lr=1e-3, warmup_steps=2),
        **options,
    )
    return Trainer(lm, run, Sequences(size), peers=peers, say=lambda line: None)


def logged(folder: Path) -> list[dict[str, float]]:
    """The lines of a run's log."""
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def main() -> None:
    set_device()
    size, accumulation = int(sys.argv[2]), int(sys.argv[3])
    peers = Peers.found()
    trainer = make_trainer(Path(sys.argv[1]), size, accumulation, peers)
    trainer.run()
    if peers.is_first:
        losses = [line["loss"] for line in logged(trainer.config.run_dir)]
        print(json.dumps({"processes": peers.size, "losses": losses}), flush=True)


if __name__ == "__main__":
    main()
