"""Adapters: learning with them, on full-precision and quantized bases, and their files."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from moshi_mlx.config import LmConfig
from moshi_mlx.errors import CheckpointError
from moshi_mlx.layouts import from_pytorch, to_pytorch
from moshi_mlx.lm import Lm
from moshi_mlx.lora import LoraLinear
from moshi_mlx.published import read_config
from moshi_mlx.safetensors import read_safetensors
from moshi_mlx.training.lora import (
    adapter_of,
    add_lora,
    continue_lora,
    rehearsing_objective,
    save_adapter,
)
from moshi_mlx.training.losses import Batch, LossConfig, loss_scales, objective, prepare
from moshi_mlx.training.optimizers import OptimConfig
from moshi_mlx.training.trainer import TrainConfig, Trainer, save_weights
from moshi_mlx.trees import flat, named_parameters
from moshi_mlx.weights import load_lm, merge_lora

CASE = Path(__file__).parents[1] / "fixtures" / "lm" / "moshi"
RAW = json.loads((CASE / "config.json").read_text())
SCALING = 1.5


def config() -> LmConfig:
    return read_config(RAW, "config.json").lm


def base(bits: int | None) -> Lm:
    lm = load_lm(CASE / "model.safetensors", config(), dtype=mx.float32)
    if bits is not None:
        # 176 inputs don't divide into groups of 32: those layers stay as they are.
        nn.quantize(lm, 32, bits, class_predicate=lambda _, m: divides(m))
    return lm


def divides(module: nn.Module) -> bool:
    return hasattr(module, "to_quantized") and module.weight.shape[-1] % 32 == 0


class OneSequence:
    """The same thing every time: what an adapter can learn by heart."""

    def batch(self, index: int) -> Batch:
        rng = np.random.default_rng(5)
        return Batch(rng.integers(4, 60, (1, 17, 12)).astype(np.int32))


def train(lm: Lm, folder: Path, steps: int) -> list[float]:
    run = TrainConfig(
        folder,
        max_steps=steps,
        loss=LossConfig(semantic_weight=1.0),
        optim=OptimConfig(lr=2e-2, weight_decay=0.0, warmup_steps=1, schedule="constant"),
    )
    trainer = Trainer(lm, run, OneSequence(), say=lambda line: None)
    return [trainer.train_step()["loss"] for _ in range(steps)]


@pytest.mark.parametrize("bits", [None, 4])
def test_an_adapter_learns_and_returns_from_its_file(bits: int | None, tmp_path: Path) -> None:
    lm = base(bits)
    before = named_parameters(lm)
    codes = mx.array(OneSequence().batch(0).codes)
    untouched = lm.forward(codes).text_logits
    add_lora(lm, rank=4, scaling=SCALING)
    np.testing.assert_allclose(lm.forward(codes).text_logits, untouched, atol=1e-5)
    losses = train(lm, tmp_path, 10)
    assert losses[-1] < 0.5 * losses[0]
    modules = dict(lm.named_modules())
    for name, value in before.items():
        path, _, leaf = name.rpartition(".")
        module = modules[path]
        kept = module.base[leaf] if isinstance(module, LoraLinear) else module[leaf]
        assert mx.array_equal(kept, value), name

    save_adapter(lm, tmp_path / "adapter", RAW, 4, SCALING)
    learned = lm.forward(codes)
    again = base(bits)
    continue_lora(again, tmp_path / "adapter" / "lora.safetensors", SCALING)
    np.testing.assert_allclose(again.forward(codes).text_logits, learned.text_logits, atol=1e-4)

    save_weights(base(bits), tmp_path / "model.safetensors", mx.float32)
    loaded = load_lm(
        tmp_path / "model.safetensors",
        config(),
        dtype=mx.float32,
        lora=tmp_path / "adapter" / "lora.safetensors",
        lora_scaling=SCALING,
    )
    adapted = [m for m in loaded.modules() if isinstance(m, LoraLinear)]
    assert bool(adapted) == (bits is not None)  # merged where it can be
    found = loaded.forward(codes)
    np.testing.assert_allclose(found.text_logits, learned.text_logits, atol=1e-3)
    np.testing.assert_allclose(found.audio_logits, learned.audio_logits, atol=1e-2)
    if bits is None:
        plain = Lm(config())
        base_weights = named_parameters(base(None))
        plain.load_weights(list(merge_lora(base_weights, adapter_of(lm), SCALING, "lm").items()))
        np.testing.assert_allclose(plain.forward(codes).text_logits, learned.text_logits, atol=1e-3)


def test_names_are_the_published_ones(tmp_path: Path) -> None:
    """As listed by PyTorch's Moshi 0.2.13 with `lora` in its config."""
    lm = base(None)
    add_lora(lm, rank=4, scaling=SCALING)
    save_adapter(lm, tmp_path, RAW, 4, SCALING)
    shapes = {k: v.shape for k, v in read_safetensors(tmp_path / "lora.safetensors").items()}
    assert sum(name.endswith("lora_A.weight") for name in shapes) == 93
    for name, shape in {
        "transformer.layers.2.self_attn.in_projs.0.lora_A.weight": (4, 64),
        "transformer.layers.0.self_attn.out_projs.0.lora_B.weight": (64, 4),
        "transformer.layers.0.gating.linear_in.lora_A.weight": (4, 64),
        "depformer.layers.1.self_attn.in_projs.7.lora_B.weight": (96, 4),
        "depformer.layers.0.gating.3.linear_out.lora_B.weight": (32, 4),
        "depformer_in.5.lora_A.weight": (4, 64),
        "linears.7.lora_B.weight": (64, 4),
        "text_linear.lora_A.weight": (4, 64),
    }.items():
        assert shapes[name] == shape
    written = json.loads((tmp_path / "config.json").read_text())
    assert (written["lora"], written["lora_rank"], written["lora_scaling"]) == (True, 4, SCALING)


def test_pytorch_names_there_and_back() -> None:
    weights = from_pytorch(read_safetensors(CASE / "model.safetensors"), config())
    back = from_pytorch(to_pytorch(weights, config()), config())
    assert back.keys() == weights.keys()
    assert all(mx.array_equal(back[name], weights[name]) for name in weights)


def test_an_adapter_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    lm = base(None)
    add_lora(lm, rank=4, scaling=SCALING)
    save_adapter(lm, tmp_path, RAW, 4, SCALING)
    adapter = read_safetensors(tmp_path / "lora.safetensors")
    lone, wrong, bad = (tmp_path / f"{n}.safetensors" for n in ("lone", "wrong", "bad"))
    name = "text_linear.lora_A.weight"
    mx.save_safetensors(str(lone), {name: adapter[name]})
    mx.save_safetensors(
        str(wrong), {k.replace("text_linear", "text"): v for k, v in adapter.items()}
    )
    mx.save_safetensors(str(bad), {**adapter, name: mx.zeros((4, 65))})
    for path, message in {lone: "no partner", wrong: "'text'", bad: "text_linear"}.items():
        with pytest.raises(CheckpointError, match=message):
            load_lm(CASE / "model.safetensors", config(), lora=path)
    with pytest.raises(CheckpointError, match="not a LoRA adapter"):
        load_lm(CASE / "model.safetensors", config(), lora=CASE / "model.safetensors")


def test_embeddings_trained_beside_an_adapter_come_back(tmp_path: Path) -> None:
    lm = base(None)
    add_lora(lm, rank=2, scaling=SCALING, train_embeddings=True)
    lm.text_emb.weight = lm.text_emb.weight + 1.0
    save_adapter(lm, tmp_path, RAW, 2, SCALING)
    loaded = load_lm(
        CASE / "model.safetensors", config(), dtype=mx.float32, lora=tmp_path / "lora.safetensors"
    )
    assert mx.array_equal(loaded.text_emb.weight, lm.text_emb.weight)
    for name in ("text_linear.weight", "audio_embs.0.weight", "depformer.linear_out.7.weight"):
        assert mx.array_equal(named_parameters(loaded)[name], named_parameters(base(None))[name])


def test_rehearsing_keeps_what_the_base_says(tmp_path: Path) -> None:
    """With an adapter that does nothing yet, what is rehearsed has no gradient, the rest has."""
    lm = base(None)
    add_lora(lm, rank=2, scaling=SCALING)
    loss, rng = LossConfig(), np.random.default_rng(0)
    codes = rng.integers(4, 60, (2, 17, 12)).astype(np.int32)
    prepared, counts = prepare(Batch(codes), lm.config, loss, rng)
    scales = mx.array(loss_scales(counts, loss).astype(np.float32))

    def gradient(sequences: list[bool]) -> float:
        def value(parameters: dict[str, Any]) -> mx.array:
            lm.update(parameters)
            return rehearsing_objective(lm, scales, *prepared, mx.array(sequences))[0]

        gradients = flat(mx.grad(value)(lm.trainable_parameters()))
        return max(float(mx.abs(g).max()) for g in gradients.values())

    assert gradient([True, True]) < 1e-5 * gradient([False, False])
    assert gradient([True, False]) > 1e-2 * gradient([False, False])
    plain = objective(lm, scales, *prepared)
    rehearsed = rehearsing_objective(lm, scales, *prepared, mx.array([False, False]))
    assert rehearsed[0].item() == pytest.approx(plain[0].item(), rel=1e-5)
