"""The trainer and its optimizers: going on where it stopped, splitting a step, schedules."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from moshi_mlx.layouts import from_pytorch, to_pytorch
from moshi_mlx.training.folder import TrainingError
from moshi_mlx.training.losses import LossConfig
from moshi_mlx.training.optimizers import (
    Muon,
    OptimConfig,
    is_hidden_matrix,
    orthogonalized,
    schedule_factor,
)
from moshi_mlx.training.plots import plot_losses
from moshi_mlx.training.trainer import evaluation
from moshi_mlx.trees import flat
from tests.training.train_worker import STEPS, Sequences, logged, make_trainer

WORKER = Path(__file__).parent / "train_worker.py"


def test_a_run_that_goes_on_is_the_run(tmp_path: Path) -> None:
    whole = make_trainer(tmp_path / "whole", 1, steps=4)
    whole.run()
    # Killed in the fourth step: the newest checkpoint is of the second.
    cut = make_trainer(tmp_path / "cut", 1, steps=4)
    step = cut.train_step

    def step_or_die() -> dict[str, float]:
        if cut.step == 3:
            raise RuntimeError("killed")
        return step()

    cut.train_step = step_or_die  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="killed"):
        cut.run()
    again = make_trainer(tmp_path / "cut", 1, steps=4)
    again.run()
    assert again.step == 4
    ours, theirs = flat(again.lm.parameters()), flat(whole.lm.parameters())
    assert all(mx.array_equal(ours[name], theirs[name]) for name in theirs)
    logs = [logged(tmp_path / name) for name in ("whole", "cut")]
    for line in (*logs[0], *logs[1]):
        del line["seconds"]
    assert logs[0] == logs[1]


def test_checkpoints_are_few_and_of_this_model(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, 1, steps=6)
    trainer.run()
    names = [path.name for path in trainer.checkpoints]
    assert names == ["step_00000004", "step_00000006"]
    other = make_trainer(tmp_path, 1)
    other.lm.text_linear.freeze()
    other._take(other.lm.trainable_parameters())
    with pytest.raises(TrainingError, match="text_linear"):
        other.load(trainer.checkpoints[-1])
    log = tmp_path / "log.jsonl"
    plot_losses(log, tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_after_the_step(kind: signal.Signals, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, 1, steps=100)
    step = trainer.train_step

    def step_then_signal() -> dict[str, float]:
        figures = step()
        if trainer.step == 2:
            os.kill(os.getpid(), kind)
        return figures

    trainer.train_step = step_then_signal  # type: ignore[method-assign]
    trainer.run()
    assert trainer.stopped
    assert trainer.stop_signal == kind
    assert [path.name for path in trainer.checkpoints] == ["step_00000002"]


def losses(folder: Path, size: int, accumulation: int) -> list[float]:
    trainer = make_trainer(folder, size, accumulation)
    return [trainer.train_step()["loss"] for _ in range(STEPS)]


def test_two_processes_are_one_with_twice_the_batch(tmp_path: Path) -> None:
    one = losses(tmp_path / "one", 2, 1)
    np.testing.assert_allclose(losses(tmp_path / "accumulated", 1, 2), one, atol=1e-4)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = Path(sys.executable).with_name("mlx.launch")
    launch = [str(launcher), "-n", "2", "-p", str(port), "--python", sys.executable]
    done = subprocess.run(
        [*launch, str(WORKER), str(tmp_path / "two"), "1", "1"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if "processes" in line]
    assert len(lines) == 1, done.stdout + done.stderr
    two = json.loads(lines[0][lines[0].index("{") :])
    assert two["processes"] == 2
    np.testing.assert_allclose(two["losses"], one, atol=1e-4)


def test_the_depth_norms_stay_one(tmp_path: Path) -> None:
    """So the trained model has a PyTorch form, from which it comes back the same."""
    trainer = make_trainer(tmp_path, 1)
    before = flat(trainer.lm.parameters())
    trainer.train_step()
    after = flat(trainer.lm.parameters())
    name = "depformer.transformers.{}.layers.1.norm2.weight"
    assert not mx.array_equal(after[name.format(0)], before[name.format(0)])
    assert mx.array_equal(after[name.format(0)], after[name.format(7)])
    back = from_pytorch(to_pytorch(after, trainer.lm.config), trainer.lm.config)
    assert all(mx.array_equal(back[key], after[key]) for key in after)


def test_an_evaluation_scores_everything(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, 2)
    figures = evaluation(Sequences(2), 1, LossConfig(depth_keep=0.3))(trainer.lm, 0)
    assert figures["loss"] == pytest.approx(trainer.train_step()["loss"], rel=1e-5)


def test_orthogonalized() -> None:
    for shape in ((8, 8), (24, 6), (5, 30)):
        matrix = mx.random.normal(shape, key=mx.random.key(1))
        values = np.linalg.svd(np.array(orthogonalized(matrix)), compute_uv=False)
        assert 0.6 < values.min() <= values.max() < 1.3
        u, _, vt = np.linalg.svd(np.array(matrix), full_matrices=False)
        assert np.abs(np.array(orthogonalized(matrix)) - u @ vt).max() < 0.3


def test_muon_by_hand() -> None:
    """The first momentum is along the gradient; an update is lr · 0.2 · √(larger side) of it."""
    muon = Muon(0.5, momentum=0.95, weight_decay=0.1)
    w, g = mx.full((2, 8), 3.0), mx.random.normal((2, 8))
    muon.init({"w": w})
    found = muon.apply_gradients({"w": g}, {"w": w})["w"]
    expected = (1 - 0.5 * 0.1) * w - 0.5 * 0.2 * 8**0.5 * orthogonalized(g)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("path", "muon"),
    [
        ("transformer.layers.0.gating.linear_out.weight", True),
        ("depformer.transformers.3.layers.0.self_attn.in_proj.weight", True),
        ("depformer.linear_in.2.weight", True),
        ("depformer.linear_out.2.weight", False),
        ("depformer.embs.0.weight", False),
        ("audio_embs.4.weight", False),
        ("text_linear.weight", False),
        ("transformer.layers.0.self_attn.in_proj.lora_A.weight", False),
    ],
)
def test_muon_is_for_hidden_matrices(path: str, muon: bool) -> None:
    assert is_hidden_matrix(path, mx.zeros((4, 4))) == muon
    assert not is_hidden_matrix(path, mx.zeros(4))


def test_schedules_by_hand() -> None:
    def factor(step: int, progress: float, **settings: object) -> float:
        config = OptimConfig(warmup_steps=4, final=0.1, **settings)  # type: ignore[arg-type]
        return schedule_factor(config, step, progress)

    assert factor(0, 0.0) == pytest.approx(0.25)
    assert factor(1, 0.0) == pytest.approx(0.5)
    assert factor(9, 1.0, schedule="constant") == 1.0
    assert factor(9, 0.5, schedule="linear", decay_start=0.5) == 1.0
    assert factor(9, 0.75, schedule="linear", decay_start=0.5) == pytest.approx(0.55)
    assert factor(9, 1.0, schedule="linear", decay_start=0.5) == pytest.approx(0.1)
    assert factor(9, 0.5, schedule="cosine") == pytest.approx(0.55)
    assert factor(9, 1.0, schedule="cosine") == pytest.approx(0.1)


@pytest.mark.parametrize("change", [{"compute": "bfloat16"}, {"gradient_checkpointing": True}])
def test_options_change_the_loss_little(change: dict[str, Any], tmp_path: Path) -> None:
    plain, other = make_trainer(tmp_path, 2), make_trainer(tmp_path, 2, **change)
    losses = [[t.train_step()["loss"] for _ in range(3)] for t in (plain, other)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=0.02)
    assert flat(other.lm.parameters())["text_emb.weight"].dtype == mx.float32
