"""Loading: every layout gives the same model, every broken file a message that names it."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from moshi_mlx.arrays import Weights
from moshi_mlx.config import LmConfig
from moshi_mlx.embedding import QuantizedEmbedding
from moshi_mlx.errors import CheckpointError, ConfigError
from moshi_mlx.files import read_json
from moshi_mlx.hub import bundled_folder
from moshi_mlx.layouts import from_mlx, to_mlx
from moshi_mlx.lm import Lm
from moshi_mlx.published import read_config
from moshi_mlx.trees import named_leaves, named_parameters
from moshi_mlx.weights import load_lm, skeleton
from tests import conformance

CASES = Path(__file__).parents[1] / "fixtures" / "lm"
NANO = bundled_folder("nano")


def config_of(case: str) -> LmConfig:
    return read_config(read_json(CASES / case / "config.json")).lm


def tensors_of(case: str) -> Weights:
    (path,) = (CASES / case).glob("model*.safetensors")
    weights = mx.load(str(path))
    assert isinstance(weights, dict)
    return weights


def save(path: Path, weights: Weights) -> Path:
    mx.save_safetensors(str(path), weights)
    return path


def same(a: Lm, b: Lm) -> bool:
    ours, theirs = named_parameters(a), named_parameters(b)
    return ours.keys() == theirs.keys() and all(
        mx.array_equal(ours[name], theirs[name]).item() for name in ours
    )


def packed(weights: Weights) -> Weights:
    """`in_projs.{i}` names as the packed ones of older files."""
    groups: dict[str, dict[int, mx.array]] = {}
    out = {}
    for name, value in weights.items():
        if match := re.fullmatch(r"(.+)\.(in|out)_projs\.(\d+)\.weight", name):
            packed = "in_proj_weight" if match[2] == "in" else "out_proj.weight"
            groups.setdefault(f"{match[1]}.{packed}", {})[int(match[3])] = value
        else:
            out[name] = value
    for name, parts in groups.items():
        out[name] = mx.concatenate([parts[i] for i in sorted(parts)], axis=0)
    return out


def test_layouts_agree(tmp_path: Path) -> None:
    """MLX names, packed PyTorch names and numbered ones give the same model."""
    assert same(*(conformance.load_case(CASES / c)[0] for c in ("moshi", "moshi-mlx")))
    numbered = tensors_of("small-shared")
    assert any(".in_projs.2." in name for name in numbered)
    config = config_of("small-shared")
    a = load_lm(CASES / "small-shared" / "model.safetensors", config, dtype=mx.float32)
    b = load_lm(save(tmp_path / "packed.safetensors", packed(numbered)), config, dtype=mx.float32)
    assert same(a, b)


@pytest.mark.parametrize("case", ["moshi", "small-shared", "small-cross", "stt"])
def test_mlx_names_round_trip(case: str, tmp_path: Path) -> None:
    lm, config = conformance.load_case(CASES / case)[0], config_of(case)
    names = to_mlx(named_parameters(lm), config)
    again = load_lm(save(tmp_path / "model.safetensors", names), config, dtype=mx.float32)
    assert same(lm, again)
    if case == "moshi":
        assert names.keys() == tensors_of("moshi-mlx").keys()


def test_shards(tmp_path: Path) -> None:
    items = sorted(tensors_of("moshi").items())
    paths = [
        save(tmp_path / f"{i}.safetensors", dict(part))
        for i, part in enumerate([items[:20], items[20:]])
    ]
    assert same(
        load_lm(paths, config_of("moshi"), dtype=mx.float32),
        conformance.load_case(CASES / "moshi")[0],
    )
    with pytest.raises(CheckpointError, match=r"1\.safetensors: tensor '.*' is in another file"):
        load_lm([paths[1], paths[1]], config_of("moshi"))


def test_quantized_files_describe_themselves() -> None:
    for case, bits, group in [("mlx-q4", 4, 32), ("mlx-q8", 8, 64)]:
        lm = conformance.load_case(CASES / case)[0]
        quantized = [m for m in named_leaves(lm).values() if hasattr(m, "bits")]
        assert len(quantized) > 20
        assert {(m.bits, m.group_size) for m in quantized} == {(bits, group)}
        assert isinstance(lm.text_emb, QuantizedEmbedding)
        rows = lm.text_emb(mx.array([[-1, 5]]))
        assert mx.all(rows[0, 0] == 0).item()
        assert mx.any(rows[0, 1] != 0).item()


def test_config_says_other_bits(tmp_path: Path) -> None:
    path, config = CASES / "mlx-q4" / "model.q4.safetensors", config_of("mlx-q4")
    block: dict[str, Any] = {"bits": 4, "group_size": 32, "text_emb": {"bits": 8}}
    with pytest.raises(CheckpointError, match=r"text_emb\.weight' has bits 4, config.json says 8"):
        load_lm(path, config, quantization=block)


def cut(weights: Weights) -> None:
    del weights["transformer.layers.0.norm1.alpha"]


def add(weights: Weights) -> None:
    weights["transformer.layers.9.norm1.alpha"] = mx.zeros((1, 1, 64))


def misshape(weights: Weights) -> None:
    weights["text_linear.weight"] = mx.zeros((96, 63))


def retype(weights: Weights) -> None:
    weights["text_linear.weight"] = mx.zeros((96, 64), dtype=mx.int32)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (cut, "missing: 'transformer.layers.0.norm1.weight'"),
        (add, "config doesn't know: 'transformer.layers.9.norm1.weight'"),
        (misshape, r"'text_linear.weight' is \(96, 63\), the config says \(96, 64\)"),
        (retype, "'text_linear.weight' is .*int32, not floating-point"),
    ],
)
def test_broken_tensors(spoil: Callable[[Weights], None], message: str, tmp_path: Path) -> None:
    weights = tensors_of("moshi")
    spoil(weights)
    path = save(tmp_path / "bad.safetensors", weights)
    with pytest.raises(CheckpointError, match=rf"bad\.safetensors: (1 )?tensor.*{message}"):
        load_lm(path, config_of("moshi"))


def test_broken_files(tmp_path: Path) -> None:
    whole = (CASES / "moshi" / "model.safetensors").read_bytes()
    config = config_of("moshi")
    path = tmp_path / "file.safetensors"
    huge = (2**62).to_bytes(8, "little")
    for content, problem in (
        (b"", "empty"),
        (whole[:100], "truncated: its header"),
        (whole[:-1000], "truncated: .* bytes of tensors"),
        (b"not weights" * 50, "a text file, not safetensors"),
        (huge + whole[8:], "not a safetensors file"),
    ):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=rf"file\.safetensors: is {problem}"):
            load_lm(path, config)
    with pytest.raises(CheckpointError, match=r"none\.safetensors: .*No such file"):
        load_lm(tmp_path / "none.safetensors", config)


def test_another_model_is_told_apart(tmp_path: Path) -> None:
    config = config_of("moshi")
    with pytest.raises(CheckpointError, match="is a Mimi codec"):
        load_lm(NANO / "mimi.safetensors", config)
    adapter = {"transformer.layers.0.gating.linear_in.lora_A.weight": mx.zeros((2, 2))}
    with pytest.raises(CheckpointError, match="is a LoRA adapter"):
        load_lm(save(tmp_path / "lora.safetensors", adapter), config)
    with pytest.raises(CheckpointError, match="is not a Moshi language model"):
        load_lm(save(tmp_path / "other.safetensors", {"a": mx.zeros(1)}), config)
    with pytest.raises(CheckpointError, match=r"has 8 slices .* field 'dep_q' is 4"):
        load_lm(CASES / "moshi" / "model.safetensors", config_of("moshi-2b"))


def test_slices_that_should_share_but_differ(tmp_path: Path) -> None:
    config = config_of("small-shared")
    lm = load_lm(CASES / "small-shared" / "model.safetensors", config)
    weights = to_mlx(named_parameters(lm), config)
    name = "depformer.slices.2.linear_in.weight"
    assert from_mlx(weights, config)
    weights[name] = weights[name] + 1
    with pytest.raises(CheckpointError, match="share their weights"):
        load_lm(save(tmp_path / "model.safetensors", weights), config)


def test_config_messages() -> None:
    raw = read_json(CASES / "moshi" / "config.json")
    changes: list[tuple[dict[str, Any], str]] = [
        ({"surprise": 1}, "field 'surprise' .* is not understood"),
        ({"dim": "big"}, "field 'dim' must be a whole number"),
        ({"norm": "batch"}, "field 'norm' must be one of"),
        ({"delays": [0, 1]}, "field 'delays' must have 17 entries"),
        ({"num_heads": 5}, "field 'num_heads' 5 does not divide 64"),
        ({"causal": False}, "field 'causal' must be True"),
        ({"dep_q": 99}, "field 'dep_q' 99 is more than"),
        ({"fuser": {"prepend": ["a"]}}, "field 'prepend' is not implemented"),
    ]
    for change, message in changes:
        with pytest.raises(ConfigError, match=message):
            read_config(raw | change, "config.json")
    del raw["dim"]
    with pytest.raises(ConfigError, match="field 'dim' is missing"):
        read_config(raw)


def test_no_config_means_v0_1() -> None:
    lm = read_config(None).lm
    assert (lm.transformer.dim, lm.transformer.num_layers, lm.transformer.context) == (
        4096, 32, 3000,
    )  # fmt: skip
    assert lm.transformer.gated_hidden == 11264
    assert lm.depth is not None
    assert lm.depth.transformers[0].gated_hidden == 2816
    assert read_config({"model_type": "moshi", "moshi_name": "model.safetensors"}).lm == lm


def test_loading_needs_little_more_than_the_weights(tmp_path: Path) -> None:
    """Peak memory of loading a 200 MB bf16 file as bf16 is near its size."""
    raw = read_json(CASES / "moshi" / "config.json") | {"dim": 1024, "num_layers": 8}
    lm = Lm(read_config(raw).lm)
    lm.set_dtype(mx.bfloat16)
    weights = to_mlx(named_parameters(lm), lm.config)
    path = save(tmp_path / "model.safetensors", weights)
    (tmp_path / "config.json").write_text(json.dumps(raw))
    code = (
        "import sys, resource, mlx.core as mx\n"
        "from moshi_mlx.files import read_json\n"
        "from moshi_mlx.published import read_config\n"
        "from moshi_mlx.weights import load_lm, skeleton\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "config = read_config(read_json(sys.argv[1] + '/config.json')).lm\n"
        "mx.eval(mx.ones(1) + 1)\n"  # a GPU takes its own memory at the first use
        "before = peak()\n"
        "lm = load_lm(sys.argv[1] + '/model.safetensors', config, dtype=mx.bfloat16)\n"
        "print(peak() - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    size = path.stat().st_size
    assert size > 150e6
    assert int(done.stdout) * unit < 1.2 * size


def test_numbers_of_nano_are_finite() -> None:
    weights = mx.load(str(NANO / "model.safetensors"))
    assert isinstance(weights, dict)
    for name, value in weights.items():
        assert np.isfinite(np.array(value.astype(mx.float32))).all(), name


def test_a_width_that_the_bits_cannot_divide() -> None:
    config = config_of("moshi")
    with pytest.raises(ConfigError, match=r"inputs, and 8 bits need a multiple of 64"):
        skeleton(replace(config, transformer=replace(config.transformer, feedforward=150)), bits=8)
