"""A training by the clock, of small data and small batches."""

import time
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

import moshi_mlx
from moshi_mlx.families.speak import Tts
from moshi_mlx.lm import Lm
from moshi_mlx.training.losses import Batch
from moshi_mlx.trees import flat
from recipes.nano import sitting
from recipes.nano.clips import CODEBOOKS, Clip, Shards, save_clips
from recipes.nano.sentences import train_tokenizer


def clips(count: int, voice: str = "flite:slt") -> list[Clip]:
    rng = np.random.default_rng(count)
    return [
        Clip(
            rng.integers(0, 512, (CODEBOOKS, 40)).astype(np.int16),
            ("good", "night."),
            (1.0, 5.0),
            9.0,
            voice,
        )
        for _ in range(count)
    ]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    train_tokenizer(tmp_path)
    for part, count in (("clips", 3), ("checks", 4)):
        (tmp_path / part).mkdir()
        save_clips(tmp_path / part / "0000.npz", clips(count))
    return tmp_path


@pytest.mark.parametrize("kind", ["stt", "tts"])
def test_a_sitting_ends_in_time_with_a_model_that_loads(
    kind: str, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    began = time.monotonic()
    short = sitting.Sitting(seconds=6, batch=1, workers=1, every=1)
    sitting.train(kind, data, data / "out", None, short)
    assert time.monotonic() - began < 60
    assert isinstance(
        moshi_mlx.load(data / "out" / "model-3"),
        {"stt": moshi_mlx.Stt, "tts": Tts}[kind],
    )
    assert "end: step" in capsys.readouterr().out


def test_shards_that_come_later_are_read(data: Path) -> None:
    shards = Shards(data / "clips", seconds=0.0)
    assert len(shards) == 3
    save_clips(data / "clips" / "5001.npz", clips(2))
    assert len(shards) == 5 and shards[4].words == ("good", "night.")
    later = Shards(data / "clips", seconds=1000.0)
    save_clips(data / "clips" / "5002.npz", clips(2))
    assert len(later) == 5


class Same:
    """One batch again and again."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch

    def batch(self, index: int) -> Batch:
        return self._batch


def test_weights_that_are_not_finite_are_not_kept(data: Path) -> None:
    mx.random.seed(0)
    short = sitting.Sitting(seconds=4, batch=1, workers=1, every=1000)
    subject = sitting.speaking(data, None, short)
    before = {k: np.array(v) for k, v in flat(subject.lm.parameters()).items()}
    bad = replace(subject.optim, lr=1.0, muon_lr=1.0, max_norm=0, warmup_steps=0)
    same = Same(subject.dataset.batch(0))

    def nan(lm: Lm, scales: mx.array, *arrays: mx.array) -> tuple[mx.array, mx.array]:
        loss, sums = plain(lm, scales, *arrays)
        return loss * float("nan"), sums * float("nan")

    plain = subject.objective
    said: list[str] = []
    saved: list[int] = []
    subject = replace(subject, optim=bad, dataset=same, objective=nan)
    sitting.sit(subject, short, lambda lm, third: saved.append(third), said.append)
    assert any("not finite" in line for line in said) and saved[-1] == 3
    for name, array in flat(subject.lm.parameters()).items():
        assert np.array_equal(array, before[name]), name
