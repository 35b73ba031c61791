"""Fine-tunes without a codec: their base is named, or found by their shape."""

import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import moshi_mlx
from moshi_mlx import CheckpointError, HubError, MoshiError
from moshi_mlx.bases import likely_base
from moshi_mlx.checkpoint import open_checkpoint
from moshi_mlx.hub import bundled_folder

NANO = bundled_folder("nano")
BESIDE = ("mimi_name", "mimi_config_name", "tokenizer_name")


def finetune(folder: Path, **changes: Any) -> Path:
    """As moshi-finetune writes one of nano: merged, in float16, no codec and no tokenizer."""
    inner = folder / "consolidated"
    inner.mkdir(parents=True)
    weights = mx.load(str(NANO / "model.safetensors"))
    assert isinstance(weights, dict)
    half = {name: array.astype(mx.float16) for name, array in weights.items()}
    mx.save_safetensors(str(inner / "consolidated.safetensors"), half)
    raw = json.loads((NANO / "config.json").read_text())
    fields = {name: value for name, value in raw.items() if name not in BESIDE}
    fields |= {"moshi_name": "of-the-base.safetensors", "lora": True, "lora_rank": 64, **changes}
    (inner / "config.json").write_text(json.dumps(fields))
    return folder


def test_a_merged_finetune_runs_with_the_codec_of_its_base(tmp_path: Path) -> None:
    """Found by its shape, and named; the folder itself or the one above."""
    folder = finetune(tmp_path / "run")
    for where, base in ((folder, None), (folder / "consolidated", None), (folder, "nano")):
        checkpoint = open_checkpoint(where, base=base)
        assert checkpoint.files.weights[0].name == "consolidated.safetensors"
        assert checkpoint.files.mimi == NANO / "mimi.safetensors"
        assert checkpoint.files.tokenizer == NANO / "tokenizer.model"
        assert checkpoint.files.lora is None
    model = moshi_mlx.load(folder, verb="talk", codec="mlx")
    with model.session(seed=0) as session:
        assert session.step(mx.zeros(1920)).pcm.shape == (1920,)


def test_a_tokenizer_beside_the_weights_goes_before_the_bases(tmp_path: Path) -> None:
    folder = finetune(tmp_path / "run")
    for name in ("tokenizer_spm_32k_3.model", "tokenizer.model"):
        own = folder / "consolidated" / name
        shutil.copy(NANO / "tokenizer.model", own)
        assert open_checkpoint(folder).files.tokenizer == own
        assert open_checkpoint(folder).files.mimi == NANO / "mimi.safetensors"
        own.unlink()


def test_the_base_is_known_by_its_shape(tmp_path: Path) -> None:
    folder = finetune(tmp_path / "run") / "consolidated"
    config = folder / "config.json"
    assert likely_base(config) == "nano"
    assert likely_base(tmp_path / "none.json") == "moshiko-bf16"
    config.write_text("{}")
    assert likely_base(config) == "moshiko-bf16"
    config.write_text('{"model_type": "personaplex"}')
    assert likely_base(config) == "personaplex"
    fields = json.loads((NANO / "config.json").read_text())
    config.write_text(json.dumps({**fields, "dim": 64}))
    assert likely_base(config) is None


def test_what_has_no_base_says_what_is_missing(tmp_path: Path) -> None:
    folder = finetune(tmp_path / "run", context=77)
    with pytest.raises(HubError, match=r"There is no "):
        open_checkpoint(folder)
    assert open_checkpoint(folder, base="nano").config.lm.transformer.context == 77
    with pytest.raises(MoshiError, match=r"There is no model 'nowhere'"):
        open_checkpoint(folder, base="nowhere")


def test_a_base_of_another_size_is_refused(tmp_path: Path) -> None:
    folder = finetune(tmp_path / "run", text_card=1000, context=77)
    with pytest.raises(CheckpointError, match="it is of another model"):
        open_checkpoint(folder, base="nano")


def test_an_adapter_finds_its_base_by_the_config_beside_it(tmp_path: Path) -> None:
    adapter = tmp_path / "lora.safetensors"
    tensors = {f"text_linear.lora_{part}.weight": mx.zeros((2, 2)) for part in "AB"}
    mx.save_safetensors(str(adapter), tensors)
    with pytest.raises(CheckpointError, match="--model BASE --lora ADAPTER"):
        open_checkpoint(tmp_path)
    shutil.copy(NANO / "config.json", tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.files.lora == adapter
    assert checkpoint.files.weights == (NANO / "model.safetensors",)


LAYERS = ("transformer.layers.0.self_attn.in_proj", "transformer.layers.1.gating.linear_out")


def in_every_form(folder: Path) -> list[Path]:
    """One adapter of nano, rank 2 and scaling 3, as the programs write it."""
    moshi = moshi_mlx.load("nano", codec="mlx")
    shapes = dict(moshi.lm.named_modules())
    rng = np.random.default_rng(0)
    pairs = {}
    for layer in LAYERS:
        out, width = shapes[layer].weight.shape
        pairs[layer] = (
            mx.array(rng.normal(0, 0.1, (2, width)).astype(np.float32)),
            mx.array(rng.normal(0, 0.1, (out, 2)).astype(np.float32)),
        )
    forms: dict[str, tuple[str, str, dict[str, Any], bool]] = {
        "lora.safetensors": ("{}.lora_{}.weight", "config.json", {"lora_scaling": 3}, False),
        "adapter_model.safetensors": (
            "base_model.model.{}.lora_{}.weight",
            "adapter_config.json",
            {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "target_modules": ["in_proj"]},
            False,
        ),
        "adapters.safetensors": (
            "{}.lora_{}",
            "adapter_config.json",
            {"fine_tune_type": "lora", "lora_parameters": {"rank": 2, "scale": 3.0}},
            True,
        ),
    }
    made = []
    for file, (name, settings, fields, turned) in forms.items():
        own = folder / file.partition(".")[0]
        own.mkdir()
        tensors = {}
        for layer, (a, b) in pairs.items():
            for part, value in (("A", a), ("B", b)):
                form = name.format(layer, part.lower() if turned else part)
                tensors[form] = mx.contiguous(value.T) if turned else value
        mx.save_safetensors(str(own / file), tensors)
        (own / settings).write_text(json.dumps(fields))
        made.append(own)
    return made


def test_adapters_of_other_programs_do_the_same(tmp_path: Path) -> None:
    folders = in_every_form(tmp_path)
    plain, *others = (
        moshi_mlx.load("nano", lora=where, codec="mlx", dtype=mx.float32)
        for where in (folders[0], *folders[1:], folders[1] / "adapter_model.safetensors")
    )
    bare = moshi_mlx.load("nano", codec="mlx", dtype=mx.float32)
    for layer in LAYERS:
        wanted = dict(plain.lm.named_modules())[layer].weight
        assert not mx.allclose(wanted, dict(bare.lm.named_modules())[layer].weight, atol=1e-3)
        for other in others:
            assert mx.allclose(dict(other.lm.named_modules())[layer].weight, wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("form", "changes", "problem"),
    [
        ("adapter_model", {"use_dora": True}, "'use_dora' must be False"),
        ("adapter_model", {"bias": "all"}, "'bias' must be 'none'"),
        ("adapter_model", {"peft_type": "IA3"}, "'peft_type' must be 'LORA'"),
        ("adapter_model", {"rank_pattern": {"x": 3}}, "'rank_pattern' is not implemented"),
        ("adapter_model", {"r": 0}, "'r' must be a whole number"),
        ("adapters", {"fine_tune_type": "dora"}, "'fine_tune_type' must be 'lora'"),
        ("adapters", {"lora_parameters": {"scale": "big"}}, "'scale' must be a number"),
    ],
)
def test_what_an_adapter_says_wrong_is_named(
    form: str, changes: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    in_every_form(tmp_path)
    settings = tmp_path / form / "adapter_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | changes))
    with pytest.raises(MoshiError, match=problem) as error:
        moshi_mlx.load("nano", lora=tmp_path / form, codec="mlx")
    assert "adapter_config.json" in str(error.value)
