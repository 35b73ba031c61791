"""moshi-train: its file's fields, and a whole run on the bundled model."""

import json
import re
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import soundfile

import moshi_mlx
from moshi_mlx.errors import ConfigError
from moshi_mlx.text import Word
from moshi_mlx.training.cli import main
from moshi_mlx.training.data import write_manifest, write_words
from moshi_mlx.training.fields import documentation
from moshi_mlx.training.settings import (
    LoraSection,
    RunConfig,
    describe_fields,
    read_settings,
)
from recipes.nano.teach import RUN as RUN_FILE

RUN = """
model: nano
run_dir: run
data: {train: train.jsonl, eval: train.jsonl, duration_sec: 2, batch_size: 2, variants: 2}
lora: {rank: 2, scaling: 2.0}
max_steps: 3
log_every: 1
evaluate_every: 2
optim: {name: adamw, lr: 1e-3, betas: [0.9, 0.99]}
loss: {semantic_weight: 3, text_padding_weight: 0.15, depth_keep: 0.5}
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text)
    return path


def test_settings(tmp_path: Path) -> None:
    config = read_settings(written(tmp_path, RUN))
    assert config.run_dir == tmp_path / "run"
    assert config.data.train == tmp_path / "train.jsonl"
    assert (config.optim.lr, config.optim.betas) == (1e-3, (0.9, 0.99))
    assert config.lora is not None
    assert (config.lora.rank, config.loss.semantic_weight) == (2, 3.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("lern: 3", "no field 'lern'"),
        ("optim: {lr: fast}", "optim: lr: must be a number"),
        ("optim: {name: sgd}", "must be one of adamw, muon"),
        ("optim: {betas: [0.9]}", "list of 2"),
        ("data: {train: a, steps: 3}", "data: there is no field 'steps'"),
        ("data: {}", "data: field 'train' is missing"),
        ("compile: 1", "compile: must be true or false"),
        ("max_steps: 2.5", "max_steps: must be a whole number"),
        ("lora: 8", "lora: must be fields"),
        ("max_steps: null", "'max_steps' or 'max_minutes'"),
    ],
)
def test_wrong_settings_are_named(change: str, message: str, tmp_path: Path) -> None:
    name = change.partition(":")[0]
    kept = [line for line in RUN.splitlines() if line.partition(":")[0] != name]
    with pytest.raises(ConfigError, match=message):
        read_settings(written(tmp_path, "\n".join([*kept, change])))


def test_no_settings_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_settings(tmp_path / "no.yaml")
    with pytest.raises(ConfigError, match="is not YAML"):
        read_settings(written(tmp_path, "a: ]"))
    with pytest.raises(ConfigError, match="must be fields"):
        read_settings(written(tmp_path, "- a"))


def test_every_field_is_documented(capsys: pytest.CaptureFixture[str]) -> None:
    assert documentation(RunConfig)["accumulation"] == "micro-batches per step."
    lines = describe_fields()
    assert "# micro-batches per step." in lines
    assert "  level_db: -23.0" in lines
    assert "model: …  # must be given" in lines
    assert main(["--fields"]) == 0
    assert capsys.readouterr().out.splitlines() == lines


def make_data(folder: Path) -> None:
    rng = np.random.default_rng(0)
    sounds = []
    for name in ("a", "b"):
        path = folder / f"{name}.wav"
        soundfile.write(path, 0.1 * rng.standard_normal((48_000, 2)), 24_000)
        write_words(path.with_suffix(".json"), [Word("hello", 0.5, 0.8)])
        sounds.append(path)
    write_manifest(folder / "train.jsonl", sounds)


@pytest.mark.gpu
def test_a_whole_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_data(tmp_path)
    path = written(tmp_path, RUN)
    assert main([str(path)]) == 0
    said = capsys.readouterr().out
    assert "step 3" in said
    assert "left" in said
    run = tmp_path / "run"
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log if "loss" in line] == [1, 2, 3]
    assert [line["step"] for line in log if "eval_loss" in line] == [2, 3]
    assert (run / "loss.png").is_file()
    base = moshi_mlx.load("nano")
    taught = moshi_mlx.load("nano", lora=run / "adapter")
    codes = mx.array(np.random.default_rng(1).integers(0, 400, (1, 17, 8)).astype(np.int32))
    before, after = (m.lm.forward(codes).text_logits for m in (base, taught))
    assert not mx.allclose(before, after, rtol=0, atol=1e-4).item()
    assert json.loads((run / "adapter" / "config.json").read_text())["lora_rank"] == 2
    assert main([str(path)]) == 0  # nothing is left to do
    assert "going on from step 3" in capsys.readouterr().out


def test_full_training_gives_a_folder_that_loads(tmp_path: Path) -> None:
    make_data(tmp_path)
    kept = [line for line in RUN.splitlines() if not line.startswith(("lora", "data"))]
    data = "data: {train: train.jsonl, duration_sec: 1, batch_size: 1}"
    path = written(tmp_path, "\n".join([*kept, data, "save: float32"]))
    assert main([str(path)]) == 0
    model = moshi_mlx.load(tmp_path / "run" / "model")
    assert model.config.lm == moshi_mlx.load("nano").config.lm


def test_what_is_wrong_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, RUN)
    assert main([str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("moshi-train: ")
    assert "train.jsonl" in error
    assert error.count("\n") == 1


def test_the_guides_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    guide = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```$", guide, re.M | re.S)
    exec(compile(code, "training.md", "exec"), {"__name__": "guide"})
    assert (tmp_path / "build" / "run" / "adapter" / "lora.safetensors").is_file()
    (example,) = re.findall(r"^```yaml\n(.*?)^```$", guide, re.M | re.S)
    assert read_settings(written(tmp_path, example)).accumulation == 16
    lesson = RUN_FILE.format(model="nano", seconds=9.6, steps=10)
    assert read_settings(written(tmp_path, lesson)).lora == LoraSection(rank=8)
