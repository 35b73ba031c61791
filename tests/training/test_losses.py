"""The loss and its gradients: against PyTorch's, and against what was worked out by hand."""

import json
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from moshi_mlx.config import LmConfig
from moshi_mlx.layouts import from_pytorch
from moshi_mlx.lm import Lm
from moshi_mlx.published import read_config
from moshi_mlx.safetensors import read_safetensors
from moshi_mlx.training.checkpointing import checkpoint_layers
from moshi_mlx.training.losses import (
    Batch,
    LossConfig,
    Prepared,
    cross_entropy,
    loss_scales,
    loss_sums,
    metrics,
    prepare,
)
from moshi_mlx.training.sharing import shared_groups, summed
from moshi_mlx.trees import flat, unflat
from moshi_mlx.weights import load_lm

DATA = Path(__file__).parents[1] / "fixtures"
CASE = DATA / "lm" / "moshi"


def case_config() -> LmConfig:
    return read_config(json.loads((CASE / "config.json").read_text()), "config.json").lm


def case_lm() -> Lm:
    return load_lm(CASE / "model.safetensors", case_config(), dtype=mx.float32)


def case_codes() -> np.ndarray:
    return np.array(read_safetensors(CASE / "expected.safetensors")["forward.codes"])


def loss_and_gradients(
    lm: Lm, prepared: Prepared, scales: np.ndarray
) -> tuple[float, dict[str, mx.array]]:
    def loss(parameters: dict[str, object]) -> mx.array:
        lm.update(parameters)
        return (loss_sums(lm, prepared)[:3] * mx.array(scales.astype(np.float32))).sum()

    value, gradients = mx.value_and_grad(loss)(lm.trainable_parameters())
    mx.eval(value, gradients)
    return float(value), flat(gradients)


def relative(found: mx.array, expected: mx.array) -> float:
    return float(mx.linalg.norm(found - expected) / mx.linalg.norm(expected))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_pytorchs(checkpointing: bool) -> None:
    config, lm = case_config(), case_lm()
    if checkpointing:
        checkpoint_layers(lm)
    stored = read_safetensors(DATA / "training" / "gradients.safetensors")
    loss = LossConfig()
    prepared, counts = prepare(Batch(case_codes()), config, loss, np.random.default_rng(0))
    groups = shared_groups(lm.trainable_parameters())
    assert len(groups) == 4  # two norms in each of two layers
    value, gradients = loss_and_gradients(lm, prepared, loss_scales(counts, loss))
    gradients = flat(summed(unflat(gradients), groups))
    copies = {name for group in groups for name in group[1:]}
    assert value == pytest.approx(stored["loss"].item(), rel=1e-5)
    for kind in ("product", "norm"):
        named = {k.removeprefix(f"{kind}."): v for k, v in stored.items() if k.startswith(kind)}
        expected = from_pytorch(named, config)
        assert expected.keys() == gradients.keys()
        for name, found in gradients.items():
            if name in copies:
                continue
            rows = found if found.ndim == 2 else found[:, None]
            vector = mx.cos(mx.arange(rows.shape[1]))
            ours = rows @ vector if kind == "product" else mx.linalg.norm(rows, axis=-1)
            assert relative(ours, expected[name]) <= 1e-3, (kind, name)


def test_loss_is_that_of_the_models_own_forward() -> None:
    config, lm, codes = case_config(), case_lm(), case_codes()
    loss = LossConfig()
    prepared, counts = prepare(Batch(codes), config, loss, np.random.default_rng(0))
    found = metrics(np.array(loss_sums(lm, prepared)), counts, loss)
    out = lm.forward(mx.array(codes))
    logits = np.array(out.audio_logits)
    masks = np.array(out.masks)
    for part, rows in {"semantic": slice(0, 1), "acoustic": slice(1, 8)}.items():
        targets = codes[:, 1:9][:, rows]
        mask = masks[:, 1:9][:, rows]
        errors, right = cross_entropy(mx.array(logits[:, rows]), mx.array(np.maximum(targets, 0)))
        assert found[part] == pytest.approx(np.array(errors)[mask].mean(), rel=1e-4)
        assert found[f"{part}_accuracy"] == pytest.approx(np.array(right)[mask].mean(), rel=1e-5)


def test_masks_and_weights_by_hand() -> None:
    config = replace(case_config(), n_q=2, dep_q=1, delays=(0, 1, 0))
    #                    word PAD EPAD none
    codes = np.array([[[7, 3, 0, -1], [5, -1, 6, 9], [1, 2, 3, 4]]], np.int32)
    loss = LossConfig(text_padding_weight=0.5, text_end_padding_weight=0.25)
    prepared, counts = prepare(Batch(codes), config, loss, np.random.default_rng(0))
    text_initial, initial = config.text_card, config.card
    assert np.array(prepared.inputs).tolist() == [
        [[text_initial, 7, 3, 0], [initial, initial, 5, -1], [initial, 1, 2, 3]]
    ]
    assert np.array(prepared.text_weights).tolist() == [[1.0, 0.5, 0.25, 0.0]]
    # The own codebook comes a position later; its last code falls off the end.
    assert np.array(prepared.there)[:, 0].tolist() == [0.0, 1.0, 0.0, 1.0]
    assert np.array(prepared.audio)[[1, 3], 0].tolist() == [5, 6]
    assert np.array(prepared.before)[:, 0].tolist() == [7, 3, 0, -1]
    assert counts.tolist() == [1.75, 2.0, 0.0, 1.0, 2.0, 0.0]
    given = replace(loss, text_word_weight=0.0)
    prepared, counts = prepare(Batch(codes), config, given, np.random.default_rng(0))
    assert np.array(prepared.text_weights).tolist() == [[0.0, 0.5, 0.25, 0.0]]
    assert counts.tolist() == [0.75, 2.0, 0.0, 1.0, 2.0, 0.0]


def test_corrupted_inputs_leave_the_targets() -> None:
    config, codes = case_config(), case_codes()
    inputs = codes.copy()
    inputs[:, 12:] = -1
    loss, rng = LossConfig(), np.random.default_rng(0)
    clean, _ = prepare(Batch(codes), config, loss, rng)
    dropped, _ = prepare(Batch(codes, inputs), config, loss, rng)
    assert (np.array(dropped.inputs)[:, 12:, 2:] == -1).all()
    for part in ("text", "before", "audio", "there"):
        assert mx.array_equal(getattr(clean, part), getattr(dropped, part))


def test_the_depth_transformer_gets_the_speaking_positions() -> None:
    config = case_config()
    codes = np.ones((2, 17, 20), np.int32)
    speaking = np.zeros((2, 20), np.bool_)
    speaking[0, 4:9] = True  # positions 4 … 9: acoustic codes come one later
    loss = LossConfig(depth_keep=0.25, depth_silent=0.4)
    prepared, counts = prepare(Batch(codes, None, speaking), config, loss, np.random.default_rng(0))
    rows = np.array(prepared.rows)
    assert len(rows) == len(set(rows)) == 10
    assert {4, 5, 6, 7, 8, 9} <= set(rows.tolist())
    assert counts[1] == 10
    with pytest.raises(ValueError, match="who speaks"):
        prepare(Batch(codes), config, loss, np.random.default_rng(0))


def test_a_subset_of_all_positions_is_the_whole() -> None:
    """The gathered way gives what the plain way gives."""
    config, lm, codes = case_config(), case_lm(), case_codes()
    loss = LossConfig()
    prepared, _ = prepare(Batch(codes), config, loss, np.random.default_rng(0))
    whole = np.array(loss_sums(lm, prepared))
    n = prepared.rows.shape[0]
    halves = [np.arange(0, n, 2), np.arange(1, n, 2)]
    sums = [
        np.array(
            loss_sums(
                lm,
                prepared._replace(
                    rows=mx.array(half),
                    before=prepared.before[mx.array(half)],
                    audio=prepared.audio[mx.array(half)],
                    there=prepared.there[mx.array(half)],
                ),
            )
        )
        for half in halves
    ]
    np.testing.assert_allclose((sums[0] + sums[1])[[1, 2, 4, 5]], whole[[1, 2, 4, 5]], rtol=1e-4)


def test_a_model_of_text_alone() -> None:
    """Speech to text: no depth transformer, the loss is the text's."""
    folder = DATA / "lm" / "stt"
    config = read_config(json.loads((folder / "config.json").read_text()), "config.json").lm
    lm = load_lm(folder / "model.safetensors", config, dtype=mx.float32)
    rng = np.random.default_rng(0)
    codes = rng.integers(0, config.card, (2, 1 + config.n_q, 9)).astype(np.int32)
    codes[:, 0] = rng.integers(4, config.text_card, (2, 9))
    loss = LossConfig()
    prepared, counts = prepare(Batch(codes), config, loss, rng)
    found = metrics(np.array(loss_sums(lm, prepared)), counts, loss)
    delay = config.delays[0]
    logits = np.array(lm.forward(mx.array(codes)).text_logits)[:, 0, : 9 - delay]
    errors, _ = cross_entropy(mx.array(logits), mx.array(codes[:, 0, : 9 - delay]))
    assert found["loss"] == pytest.approx(np.array(errors).mean(), rel=1e-4)
    assert found["semantic"] == 0.0


def test_given_text_is_read_and_not_scored() -> None:
    config, codes = case_config(), case_codes()
    given = np.zeros((codes.shape[0], codes.shape[2]), np.bool_)
    given[0, 3:5] = True
    rng = np.random.default_rng
    free, counts = prepare(Batch(codes), config, LossConfig(), rng(0))
    held, fewer = prepare(Batch(codes, given=given), config, LossConfig(), rng(0))
    changed = np.argwhere(np.array(free.text_weights) != np.array(held.text_weights))
    assert changed.tolist() == [[0, 3], [0, 4]], "the case has no delay of text"
    assert fewer[0] < counts[0]
    assert mx.array_equal(free.inputs, held.inputs)
    assert mx.array_equal(free.before, held.before), "the voice follows it"
