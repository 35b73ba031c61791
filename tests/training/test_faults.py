"""Runs that go wrong: numbers that are not finite, damage, a full disk, signals, two at once."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import soundfile

from moshi_mlx.errors import ConfigError, MoshiError
from moshi_mlx.files import new_folder
from moshi_mlx.safetensors import write_safetensors
from moshi_mlx.text import Word
from moshi_mlx.training.cli import main
from moshi_mlx.training.data import write_manifest, write_words
from moshi_mlx.training.folder import Log, TrainingError, locked, whole_folder
from moshi_mlx.training.lora import add_lora, save_adapter
from moshi_mlx.training.losses import objective
from moshi_mlx.training.plots import plot_losses
from moshi_mlx.training.trainer import TrainConfig, Trainer
from tests.limits import largest_file
from tests.training.test_cli import written
from tests.training.train_worker import Sequences, logged, make_trainer


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def four_steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with checkpoints of steps 2 and 4."""
    folder = tmp_path_factory.mktemp("four") / "run"
    make_trainer(folder, 1, steps=4).run()
    return folder


@pytest.fixture
def copied(four_steps: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(four_steps, tmp_path / "run"))


# ---------------------------------------------------------------- numbers that are not finite


def test_a_loss_that_is_not_finite_stops_the_run(copied: Path) -> None:
    trainer = make_trainer(copied, 1, steps=6)
    trainer._begin(resume=True)
    trainer.lm.text_linear.weight[0, 0] = np.nan
    trainer._take(trainer.lm.trainable_parameters())
    with pytest.raises(TrainingError, match=r"step 5: the loss is not finite.*step_00000004 stays"):
        trainer.train_step()
    assert trainer.step == 4
    assert names(copied / "checkpoints") == ["step_00000002", "step_00000004"]


def test_a_gradient_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    def steep(lm: object, scales: mx.array, *arrays: mx.array) -> tuple[mx.array, mx.array]:
        loss, sums = objective(lm, scales, *arrays)  # type: ignore[arg-type]
        return loss + mx.sqrt(0.0 * loss), sums  # 0, with a derivative of 0 / 0

    plain = make_trainer(tmp_path, 1)
    trainer = Trainer(plain.lm, plain.config, Sequences(1), objective=steep)
    before = np.array(plain.lm.text_linear.weight)
    with pytest.raises(TrainingError, match=r"step 1: the gradient's norm .* nothing was written"):
        trainer.run()
    np.testing.assert_array_equal(trainer.lm.text_linear.weight, before)
    assert not (tmp_path / "checkpoints").exists()


def test_weights_that_are_not_finite_are_not_saved(copied: Path) -> None:
    trainer = make_trainer(copied, 1, steps=6)
    trainer._begin(resume=True)
    trainer.step = 5
    trainer.lm.text_linear.weight[0, 0] = np.inf
    trainer._take(trainer.lm.trainable_parameters())
    with pytest.raises(TrainingError, match="step 5: a weight is not finite"):
        trainer.save()
    assert names(copied / "checkpoints") == ["step_00000002", "step_00000004"]


def test_an_evaluation_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    plain = make_trainer(tmp_path, 1, steps=1)
    trainer = Trainer(plain.lm, plain.config, Sequences(1), lambda lm, step: {"loss": np.nan})
    with pytest.raises(TrainingError, match="step 1: a figure of the evaluation is not finite"):
        trainer.run()


@pytest.mark.parametrize("steps", [0, -5])
def test_a_run_has_steps(steps: int, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"max_steps: must be .* is {steps}"):
        make_trainer(tmp_path, 1, steps=steps)
    with pytest.raises(TrainingError, match="max_steps or max_minutes"):
        Trainer(make_trainer(tmp_path, 1).lm, TrainConfig(tmp_path), Sequences(1))


def test_no_memory_is_one_line(tmp_path: Path) -> None:
    class Huge(Sequences):
        def batch(self, index: int) -> object:  # type: ignore[override]
            return np.zeros(2**60, np.int8)

    plain = make_trainer(tmp_path, 1)
    with pytest.raises(TrainingError, match=r"does not fit into memory: lower 'data\.batch_size'"):
        Trainer(plain.lm, plain.config, Huge(1)).run()  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------- damage


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) * 2 // 3] ^= 1
    path.write_bytes(data)


def other_json(path: Path) -> None:
    path.write_text('{"step": "4", "seconds": null}')


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("weights.safetensors", cut),
        ("weights.safetensors", flip),
        ("weights.safetensors", folder),
        ("optimizer.safetensors", empty),
        ("optimizer.safetensors", Path.unlink),
        ("state.json", empty),
        ("state.json", Path.unlink),
        ("state.json", other_json),
    ],
)
def test_a_damaged_checkpoint_is_set_aside(
    name: str, damage: Callable[[Path], None], copied: Path
) -> None:
    checkpoints = copied / "checkpoints"
    damage(checkpoints / "step_00000004" / name)
    trainer = make_trainer(copied, 1, steps=6)
    said: list[str] = []
    trainer._say = said.append
    trainer._begin(resume=True)
    assert trainer.step == 2
    (line,) = said
    assert str(checkpoints / "step_00000004" / name) in line
    assert "kept as step_00000004.damaged, going on from step 2" in line
    assert [entry["step"] for entry in logged(copied)] == [1, 2]
    assert names(checkpoints) == ["step_00000002", "step_00000004.damaged"]


def test_a_checkpoint_under_another_name_is_damaged(copied: Path) -> None:
    (copied / "checkpoints" / "step_00000004").rename(copied / "checkpoints" / "step_00000009")
    trainer = make_trainer(copied, 1, steps=6)
    trainer._begin(resume=True)
    assert trainer.step == 2


def test_where_all_is_damaged_the_user_decides(copied: Path) -> None:
    for path in (copied / "checkpoints").iterdir():
        empty(path / "state.json")
    trainer = make_trainer(copied, 1, steps=1)
    with pytest.raises(TrainingError, match=r"step_00000004.*every checkpoint .* --fresh"):
        trainer.run()
    assert len(logged(copied)) == 4  # nothing was touched
    trainer.run(resume=False)
    assert names(copied / "checkpoints") == ["step_00000001"]
    assert [line["step"] for line in logged(copied)] == [1]


def test_leftovers_of_a_killed_run_go(copied: Path) -> None:
    (copied / "checkpoints" / ".step_00000005.1.partial").mkdir()
    make_trainer(copied, 1, steps=4).run()
    assert names(copied / "checkpoints") == ["step_00000002", "step_00000004"]


def test_the_log_goes_back_with_the_run(tmp_path: Path) -> None:
    log = Log(tmp_path / "log.jsonl")
    assert log.keep_until(3) == 0
    for step in (1, 2, 3):
        log.append({"step": step, "loss": 1.0})
    with log.path.open("ab") as file:
        file.write(b'null\n[1]\n{"step": "2"}\n\xff\n\n{"step": 2, "lo')
    assert log.keep_until(2) == 5
    assert [line["step"] for line in logged(tmp_path)] == [1, 2]
    with log.path.open("ab") as file:
        file.write(b'{"step": 2}')  # only the line's end is missing
    assert log.keep_until(2) == 0
    log.append({"step": 3})
    assert [line["step"] for line in logged(tmp_path)] == [1, 2, 2, 3]


# ---------------------------------------------------------------------------- a full disk


def test_a_full_disk_leaves_the_checkpoints(copied: Path) -> None:
    trainer = make_trainer(copied, 1, steps=6)
    trainer._begin(resume=True)
    trainer.step = 5
    with largest_file(100_000), pytest.raises(MoshiError, match="File too large") as caught:
        trainer.save()
    assert "weights.safetensors: cannot be written" in str(caught.value)
    assert names(copied / "checkpoints") == ["step_00000002", "step_00000004"]
    trainer.load(trainer.checkpoints[-1])


def test_a_full_disk_leaves_whole_lines(tmp_path: Path) -> None:
    log = Log(tmp_path / "log.jsonl")
    log.append({"step": 1})
    before = log.path.read_bytes()
    with (
        largest_file(len(before) + 5),
        pytest.raises(TrainingError, match=r"log\.jsonl: .*too large"),
    ):
        log.append({"step": 2, "loss": 1.0})
    assert log.path.read_bytes() == before


def test_a_full_disk_leaves_the_adapter(tmp_path: Path) -> None:
    lm = make_trainer(tmp_path, 1).lm
    add_lora(lm, rank=2, scaling=2.0)
    target = tmp_path / "adapter"
    save_adapter(lm, target, {"dim": 1}, 2, 2.0)
    (target / "mine.txt").write_text("stays")
    before = {path.name: path.read_bytes() for path in target.iterdir()}
    lm.update({"text_linear": {"lora_A": {"weight": mx.ones((2, 128))}}})
    with largest_file(20_000), pytest.raises(MoshiError, match=r"lora\.safetensors.*too large"):
        save_adapter(lm, target, {"dim": 2}, 2, 2.0)
    # The weights fit, their configuration does not: neither is taken.
    room = largest_file(len(before["lora.safetensors"]) + 10_000)
    large = {"dim": 2, "text": "x" * (len(before["lora.safetensors"]) + 20_000)}
    with room, pytest.raises(MoshiError, match="adapter: cannot be written: File too large"):
        save_adapter(lm, target, large, 2, 2.0)
    assert {path.name: path.read_bytes() for path in target.iterdir()} == before
    assert names(tmp_path) == ["adapter"]
    save_adapter(lm, target, {"dim": 2}, 2, 2.0)
    assert json.loads((target / "config.json").read_text())["dim"] == 2
    assert (target / "mine.txt").read_text() == "stays"


def test_a_full_disk_leaves_the_picture(four_steps: Path, tmp_path: Path) -> None:
    picture = tmp_path / "loss.png"
    picture.write_text("the last one")
    with largest_file(1000), pytest.raises(MoshiError, match=r"loss\.png: .*too large"):
        plot_losses(four_steps / "log.jsonl", picture)
    assert picture.read_text() == "the last one"
    assert names(tmp_path) == ["loss.png"]


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "old").touch()
    (tmp_path / f".model.{2**22 + 1}.partial").mkdir()  # no process has such a number

    def killed() -> None:
        with whole_folder(target) as fresh:
            (fresh / "half").touch()
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        killed()
    assert names(target) == ["old"]
    with whole_folder(target) as fresh:
        (fresh / "new").touch()
    assert names(target) == ["new"]
    assert names(tmp_path) == ["model"]


def test_a_full_disk_names_the_final_file(tmp_path: Path) -> None:
    weights = {"a": mx.zeros(4096)}
    target = tmp_path / "model"
    for folder in (whole_folder(target), new_folder(target, 0)):
        with (
            pytest.raises(MoshiError, match=rf"^{target}/w\.safetensors: cannot be written: File "),
            largest_file(1000),
            folder as fresh,
        ):
            write_safetensors(fresh / "w.safetensors", weights)
    assert names(tmp_path) == []


# ------------------------------------------------------------------- two at once, and signals

HOLDS = """
import sys, time
from pathlib import Path
from moshi_mlx.training.folder import locked
with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
"""


def test_two_runs_never_share_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(run)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"locked\n"
        config = written(tmp_path, "{model: nano, run_dir: run, max_steps: 1, data: {train: a}}")
        assert main([str(config)]) == 2
        error = capsys.readouterr().err
        assert f"{run}: another moshi-train is at work there" in error
        assert error.count("\n") == 1
    finally:
        holder.kill()
        holder.wait()
    with locked(run):
        assert names(run) == []


RUN = """
model: nano
run_dir: run
data: {train: train.jsonl, duration_sec: 0.5}
lora: {rank: 2}
max_steps: 3
log_every: 1
"""


@pytest.mark.parametrize(("kind", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_the_finished_result(
    kind: signal.Signals, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = tmp_path / "a.wav"
    soundfile.write(sound, np.zeros((12_000, 2)), 24_000)
    write_words(sound.with_suffix(".json"), [Word("hello", 0.1, 0.3)])
    write_manifest(tmp_path / "train.jsonl", [sound])
    finished = tmp_path / "run" / "adapter" / "lora.safetensors"
    finished.parent.mkdir(parents=True)
    finished.write_text("of another run")
    step = Trainer.train_step

    def step_then_signal(trainer: Trainer) -> dict[str, float]:
        figures = step(trainer)
        os.kill(os.getpid(), kind)
        return figures

    monkeypatch.setattr(Trainer, "train_step", step_then_signal)
    assert main([str(written(tmp_path, RUN))]) == code
    assert names(finished.parent) == ["lora.safetensors"]
    assert finished.read_text() == "of another run"
    assert names(tmp_path / "run" / "checkpoints") == ["step_00000001"]


def test_sigterm_before_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = written(tmp_path, RUN)
    monkeypatch.setattr(
        "moshi_mlx.training.cli.read_manifest", lambda _: os.kill(os.getpid(), signal.SIGTERM)
    )
    assert main([str(config)]) == 143
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_an_empty_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([""]) == 2
    assert capsys.readouterr().err.startswith("moshi-train: the argument is empty; ")


def test_a_refused_run_leaves_no_folder(tmp_path: Path) -> None:
    config = written(tmp_path, RUN.replace("run_dir: run", "run_dir: new/run"))
    assert main([str(config)]) == 2
    assert names(tmp_path) == [config.name]
