"""Moshi and Mimi in the layout of Transformers: the same model as in Kyutai's, to the bit."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import moshi_mlx
from moshi_mlx import catalog
from moshi_mlx.checkpoint import open_checkpoint
from moshi_mlx.errors import CheckpointError, ConfigError, MoshiError
from moshi_mlx.layouts import to_pytorch
from moshi_mlx.published import read_config, read_mimi_config
from moshi_mlx.safetensors import read_safetensors, write_safetensors
from moshi_mlx.transformers_config import (
    feedforward_of,
    generation_config,
    sampling_of,
    transformers_config,
)
from moshi_mlx.transformers_layout import CODEC, mimi_to_transformers, to_transformers
from moshi_mlx.weights_mimi import read_mimi
from tests.conformance import passes, run_case

CASES = Path(__file__).parents[1] / "fixtures/transformers"
MOSHI, OLD = CASES / "moshi", CASES / "moshi-4x"
INDEX = "model.safetensors.index.json"
Fields = dict[str, Any]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A Moshi of several files that a test may change."""
    return Path(shutil.copytree(MOSHI / "transformers", tmp_path / "model"))


def fields(folder: Path, name: str = "config.json") -> Fields:
    return dict(json.loads((folder / name).read_text()))


def put(folder: Path, data: Fields, name: str = "config.json") -> None:
    (folder / name).write_text(json.dumps(data))


@pytest.mark.parametrize("case", ["moshi", "moshi-4x", "mimi"])
def test_both_sides_are_as_the_reference_computes(case: str) -> None:
    result = run_case(CASES / case)
    assert any(name.startswith("transformers.") for name in result)
    assert passes(result), result


@pytest.mark.parametrize("case", [MOSHI, OLD])
def test_weights_and_config_are_those_of_kyutai(case: Path) -> None:
    theirs, kyutai = open_checkpoint(case / "transformers"), open_checkpoint(case / "kyutai")
    assert theirs.config.lm == kyutai.config.lm
    assert theirs.mimi_config == kyutai.mimi_config
    for name, value in kyutai.config.raw.items():
        assert name.endswith("_name") or theirs.config.raw[name] == value, name
    ours, wanted = theirs.weights(), kyutai.weights()
    assert ours.keys() == wanted.keys()
    for name, value in wanted.items():
        assert ours[name].dtype == value.dtype == mx.bfloat16
        assert mx.array_equal(ours[name], value), name
    assert theirs.nbytes == kyutai.nbytes  # the codec's are not among them


@pytest.mark.parametrize("case", [MOSHI, OLD])
def test_names_and_config_there_and_back(case: Path) -> None:
    theirs, kyutai = open_checkpoint(case / "transformers"), open_checkpoint(case / "kyutai")
    lm, mimi = kyutai.config.lm, kyutai.mimi_config
    made = to_transformers(to_pytorch(kyutai.weights(), lm), lm)
    codec = mimi_to_transformers(read_mimi(kyutai.files.mimi, mimi), mimi)
    made |= {CODEC + name: value.astype(mx.bfloat16) for name, value in codec.items()}
    wanted = read_safetensors(theirs.files.weights)
    assert made.keys() == wanted.keys()
    assert all(mx.array_equal(made[name], wanted[name]) for name in wanted)
    config = transformers_config(lm, mimi, "bfloat16", "here")
    assert read_config(config).lm == lm
    assert read_mimi_config(config) == mimi
    generation = generation_config(lm, theirs.config.sampling)
    assert sampling_of(generation, "here") == theirs.config.raw["lm_gen_config"]


def test_names_of_the_first_drafts(folder: Path) -> None:
    """Without `.linear`; and the configuration as it was then."""
    wanted = open_checkpoint(folder).weights()
    weights = read_safetensors(sorted(folder.glob("*.safetensors")))
    drafts = {name.replace("_proj.linear.", "_proj."): value for name, value in weights.items()}
    mx.eval(drafts)
    for path in folder.glob("model*"):
        path.unlink()
    write_safetensors(folder / "model.safetensors", drafts)
    data = fields(folder)
    depth = data.pop("depth_decoder_config")
    names = (
        "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
        "head_dim", "ffn_dim",
    )  # fmt: skip
    data |= {f"depth_{name}": depth[name] for name in names}
    data["audio_encoder"] = data.pop("audio_encoder_config")
    data |= {"rope_theta": data.pop("rope_parameters")["rope_theta"]}
    put(folder, data)
    checkpoint = open_checkpoint(folder)
    assert checkpoint.config.lm == open_checkpoint(MOSHI / "kyutai").config.lm
    ours = checkpoint.weights()
    assert all(mx.array_equal(ours[name], wanted[name]) for name in wanted)
    checkpoint.load_mimi(4)


def test_the_index_says_which_files_count(folder: Path) -> None:
    shutil.copy(
        folder / "model-00001-of-00004.safetensors", folder / "model-00001-of-00007.safetensors"
    )
    files = open_checkpoint(folder).files
    assert [path.name for path in files.weights] == [
        f"model-0000{i}-of-00004.safetensors" for i in range(1, 5)
    ]
    assert files.mimi.name == INDEX


def test_kyutais_codec_and_tokenizer_are_taken_where_they_are_beside(folder: Path) -> None:
    shutil.copy(MOSHI / "kyutai/mimi.safetensors", folder)
    shutil.copy(MOSHI / "kyutai/tokenizer.model", folder)
    checkpoint = open_checkpoint(folder)
    assert checkpoint.files.mimi.name == "mimi.safetensors"
    assert checkpoint.files.tokenizer.name == "tokenizer.model"
    checkpoint.load_mimi(3)


def test_a_conversation_runs() -> None:
    heard = np.array(mx.load(str(MOSHI / "expected.safetensors"))["mimi.pcm_in"])
    sounds = []
    for side in ("transformers", "kyutai"):
        model = moshi_mlx.load(MOSHI / side, verb="talk", codec="mlx")
        with model.session(seed=1) as session:
            sounds.append([session.step(heard[i : i + 1920]).pcm for i in range(0, 9600, 1920)])
    assert np.allclose(*sounds, atol=1e-5)


def test_mimi_alone(tmp_path: Path) -> None:
    folder = CASES / "mimi/transformers"
    whole, by_file = (
        moshi_mlx.load_mimi(folder, 12),
        moshi_mlx.load_mimi(folder / "model.safetensors", 12),
    )
    assert whole.config == by_file.config != moshi_mlx.load_mimi.__defaults__
    with pytest.raises(CheckpointError, match=r"has no model\.safetensors"):
        moshi_mlx.load_mimi(tmp_path, 8)
    with pytest.raises(ConfigError, match="is the configuration of a Mimi codec alone"):
        open_checkpoint(folder)


def test_the_catalogue_knows_the_repositories() -> None:
    for voice in ("moshiko", "moshika"):
        entry = catalog.find(f"kmhf/hf-{voice}")
        assert entry is not None and entry.name == f"{voice}-bf16"


def test_the_widths_that_kyutais_rule_gives() -> None:
    assert feedforward_of(11264, 4096) == 16896
    assert feedforward_of(45, 16) == 68
    assert feedforward_of(32, 12) == 49  # 48 is 4 · 12, which the rule takes for another
    assert feedforward_of(7, 3) != 12


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"head_dim": 5}, "'head_dim' does not fit"),
        ({"num_attention_heads": 5}, "'num_attention_heads' does not fit"),
        ({"num_key_value_heads": 3}, "'num_key_value_heads' 3 does not divide"),
        ({"ffn_dim": 175}, "'ffn_dim' must be even"),
        ({"ffn_dim": 0}, "'ffn_dim' must be a whole number"),
        ({"hidden_act": "gelu"}, "'hidden_act' must be 'silu'"),
        ({"rms_norm_eps": 1e-5}, "'rms_norm_eps' must be 1e-08"),
        ({"num_codebooks": 10**9}, "'num_codebooks' must be at most"),
        ({"num_codebooks": "3"}, "'num_codebooks' must be a whole number"),
        ({"vocab_size": -1}, "'vocab_size' must be a whole number"),
        ({"sliding_window": 0}, "'sliding_window' must be a whole number"),
        ({"sliding_window": 10**9}, "'context' must be at most"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "'rope_type' must be 'default'"),
        ({"rope_parameters": {"rope_theta": -1}}, "'rope_theta' must be a number above 0"),
        ({"rope_parameters": 3}, "'rope_parameters' must be an object"),
        ({"rope_scaling": {"factor": 2}}, "'rope_scaling' must be null"),
        ({"architectures": ["MoshiForCausalLM"]}, "'architectures' must be"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "by 'bitsandbytes'"),
        ({"depth_decoder_config": 3}, "'depth_decoder_config' must be an object"),
        ({"audio_encoder_config": []}, "'audio_encoder_config' must be an object"),
    ],
)
def test_impossible_values_are_named(change: Fields, problem: str, folder: Path) -> None:
    put(folder, fields(folder) | change)
    with pytest.raises(ConfigError, match=problem) as error:
        open_checkpoint(folder)
    assert "config.json" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("block", "change", "problem"),
    [
        ("depth_decoder_config", {"ffn_dim": 1}, "'ffn_dim' must be"),
        ("depth_decoder_config", {"num_codebooks": 4}, "'num_codebooks' must be the whole"),
        ("depth_decoder_config", {"hidden_size": None}, "'hidden_size' must be a whole number"),
        ("audio_encoder_config", {"num_semantic_quantizers": 2}, "'num_semantic_quantizers'"),
        ("audio_encoder_config", {"upsample_groups": 1}, "'upsample_groups' must be 16"),
        ("audio_encoder_config", {"codebook_dim": 9}, "'codebook_dim' must be 8"),
        ("audio_encoder_config", {"use_causal_conv": False}, "'use_causal_conv' must be True"),
        ("audio_encoder_config", {"upsampling_ratios": []}, "upsampling_ratios"),
        ("audio_encoder_config", {"upsampling_ratios": [0]}, "'upsampling_ratios' must be"),
        ("audio_encoder_config", {"norm_eps": 1e-3}, "'norm_eps' must be"),
    ],
)
def test_impossible_values_in_blocks(
    block: str, change: Fields, problem: str, folder: Path
) -> None:
    data = fields(folder)
    data[block] |= change
    put(folder, data)
    with pytest.raises(ConfigError, match=problem) as error:
        open_checkpoint(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "temperature"),
    [
        ({"temperature": 0.5}, 0.5),
        ({"do_sample": False}, 0.0),
        ({"temp": None}, 0.7),
        ({}, 0.7),
    ],
)
def test_sampling_is_the_makers(change: Fields, temperature: float, folder: Path) -> None:
    name = "generation_config.json"
    put(folder, fields(folder, name) | change | {"top_k": 7}, name)
    sampling = open_checkpoint(folder).config.sampling
    assert (sampling.temp_text, sampling.top_k_text) == (temperature, 7)
    assert (sampling.temp, sampling.top_k) == (0.8, 250)


@pytest.mark.parametrize("change", [{"temp": -1}, {"temperature": "hot"}, {"top_k": -3}])
def test_impossible_sampling_is_named(change: Fields, folder: Path) -> None:
    name = "generation_config.json"
    put(folder, fields(folder, name) | change, name)
    with pytest.raises(ConfigError, match=rf"generation_config.json: field '{next(iter(change))}'"):
        open_checkpoint(folder)


def _without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def _index(change: Callable[[Fields], Any]) -> Callable[[Path], None]:
    def work(folder: Path) -> None:
        data = fields(folder, INDEX)
        change(data)
        put(folder, data, INDEX)

    return work


def _tensors(change: Callable[[dict[str, mx.array]], Any]) -> Callable[[Path], None]:
    def work(folder: Path) -> None:
        for path in folder.glob("model-*.safetensors"):
            weights = read_safetensors(path)
            mx.eval(weights)
            change(weights)
            write_safetensors(path, weights)

    return work


def _drop(mark: str) -> Callable[[Path], None]:
    def change(weights: dict[str, mx.array]) -> None:
        for name in [name for name in weights if mark in name]:
            del weights[name]

    return _tensors(change)


def _turn(mark: str) -> Callable[[Path], None]:
    def change(weights: dict[str, mx.array]) -> None:
        for name in [name for name in weights if mark in name]:
            weights[name] = weights[name][:-1]

    return _tensors(change)


@pytest.mark.parametrize(
    ("breaks", "problem"),
    [
        (_without("model-00002-of-00004.safetensors"), "no model-00002-of-00004.safetensors"),
        (_without("tokenizer.json"), "There is no tokenizer"),
        (_index(lambda data: data.update(weight_map={})), "has no weight_map"),
        (_index(lambda data: data["weight_map"].update(x="../x")), "must name a file inside"),
        (_index(lambda data: data["weight_map"].update(x=3)), "must be a file name"),
        (_drop("layers.0.self_attn.q_proj.linear"), "layers.0.self_attn.q_proj.weight' is missing"),
        (_drop("decoder.model.norm"), "out_norm.weight"),
        (_drop("quantizer."), "not a Mimi codec"),
        (_drop("audio_encoder.encoder.layers.0"), "encoder.model.0|encoder"),
        (_turn("layers.0.self_attn.k_proj.linear"), "k_proj.linear.weight' is"),
        (_turn("lm_heads"), "depth_decoder.lm_heads.weight' is"),
        (_turn("fc1"), "the config says"),
        (_turn("o_proj"), "the config says"),
        (
            _tensors(lambda w: w.update({f"x.{len(w)}": mx.zeros(1)})),
            "that the config doesn't know",
        ),
    ],
)
def test_broken_folders_get_one_line(
    breaks: Callable[[Path], None], problem: str, folder: Path
) -> None:
    breaks(folder)

    def read() -> None:
        checkpoint = open_checkpoint(folder)
        checkpoint.skeleton()
        checkpoint.load_mimi(3)

    with pytest.raises(MoshiError, match=problem) as error:
        read()
    assert "\n" not in str(error.value)
