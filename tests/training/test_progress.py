"""How far a run is, what it says and writes on the way, and when."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from moshi_mlx.training.trainer import TrainConfig, _clock, _due
from tests.training.train_worker import logged, make_trainer


def test_what_a_run_does_unless_told() -> None:
    run = TrainConfig(Path("run"), max_steps=1)
    assert (run.max_minutes, run.accumulation, run.seed, run.compute) == (None, 1, 0, "float32")
    assert (run.log_every, run.evaluate_every, run.checkpoint_every, run.keep) == (10, 0, 500, 2)
    assert not run.gradient_checkpointing
    assert not run.compile


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(29, "0 min"), (90, "2 min"), (3569, "59 min"), (3571, "1 h 00 min"), (7860, "2 h 11 min")],
)
def test_the_time_that_is_left(seconds: float, shown: str) -> None:
    assert _clock(seconds) == shown


def test_when_something_is_due() -> None:
    assert [step for step in range(1, 7) if _due(step, 3)] == [3, 6]
    assert [step for step in range(1, 4) if _due(step, 1)] == [1, 2, 3]
    assert not _due(0, 0)


def test_the_length_that_is_reached_first_ends_a_run(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, 1, steps=10, max_minutes=2.0)
    assert trainer.progress == 0.0
    trainer.step, trainer.seconds = 2, 30.0
    assert trainer.progress == 0.25  # of the time
    trainer.step = 5
    assert trainer.progress == 0.5  # of the steps
    trainer.seconds = 500.0
    assert trainer.progress == 1.0


def test_lines_and_figures_of_a_run(tmp_path: Path) -> None:
    """Means between lines of the log, an evaluation at the end, a checkpoint at the end."""
    said: list[str] = []
    trainer = make_trainer(tmp_path, 1, steps=3)
    trainer._say = said.append
    trainer._evaluate = lambda lm, step: {"loss": float(step)}
    made: list[dict[str, float]] = []
    step = trainer.train_step

    def step_and_keep() -> dict[str, float]:
        made.append(step())
        return made[-1]

    trainer.train_step = step_and_keep  # type: ignore[method-assign]
    trainer.config = replace(trainer.config, log_every=2)
    last = trainer.run()
    lines = logged(tmp_path)
    training = [line for line in lines if "lr" in line]
    assert [line["step"] for line in training] == [2, 3]
    assert training[0]["loss"] == pytest.approx((made[0]["loss"] + made[1]["loss"]) / 2, abs=1e-5)
    assert last == made[2]
    assert [line for line in lines if "lr" not in line] == [{"step": 3, "eval_loss": 3.0}]
    assert said[-2].endswith("0 min left")
    assert said[-1] == "step 3  loss 3.000"
    assert [path.name for path in trainer.checkpoints] == ["step_00000002", "step_00000003"]


def test_a_run_that_ends_by_time_alone(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, 1, max_minutes=1.0)
    trainer.config = replace(trainer.config, max_steps=None)
    trainer.step, trainer.seconds = 1000, 15.0
    assert trainer.progress == 0.25


def test_a_step_in_two_parts_is_the_step(tmp_path: Path) -> None:
    """Its figures are of both parts; the learning rate has warmed up by half."""
    whole = make_trainer(tmp_path / "whole", 2).train_step()
    parts = make_trainer(tmp_path / "parts", 1, accumulation=2).train_step()
    assert parts == pytest.approx(whole, rel=1e-4)
    assert whole["lr"] == pytest.approx(0.5e-3)
