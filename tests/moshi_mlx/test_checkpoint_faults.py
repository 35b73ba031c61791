"""What can be wrong in a model's folder: one line that says it, the same from every program."""

import io
import json
import math
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import soundfile

import moshi_mlx
from moshi_local.cli import main as moshi_local
from moshi_mlx import MoshiError
from moshi_mlx.arrays import Weights
from moshi_mlx.checkpoint import ADAPTER, find_files, open_checkpoint
from moshi_mlx.errors import CheckpointError, ConfigError, HubError, TokenizerError
from moshi_mlx.files import read_json
from moshi_mlx.hub import bundled_folder, canonical
from moshi_mlx.layouts import to_mlx
from moshi_mlx.safetensors import read_safetensors
from moshi_mlx.trees import named_parameters
from moshi_mlx.weights import check_finite, load_lm, read_adapter
from moshi_mlx.weights_mimi import check_mimi
from moshi_quantize.cli import main as moshi_quantize

NANO = bundled_folder("nano")
RAW = read_json(NANO / "config.json")
FILES = (
    "config.json", "mimi.safetensors", "mimi_config.json", "model.safetensors", "tokenizer.model"
)  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with nano's files, to be spoilt."""
    made = tmp_path / "model"
    made.mkdir()
    for name in FILES:
        (made / name).symlink_to(NANO / name)
    return made


def put(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def configure(folder: Path, **changes: Any) -> None:
    put(folder / "config.json", json.dumps(RAW | changes).encode())


def save(path: Path, weights: Weights) -> None:
    path.unlink(missing_ok=True)
    mx.save_safetensors(str(path), weights)


def spoil(path: Path, name: str, value: float) -> None:
    """Put a value into a tensor of a file."""
    weights = read_safetensors(path)
    spoilt = np.array(weights[name].astype(mx.float32))
    spoilt.reshape(-1)[-1] = value
    save(path, {**weights, name: mx.array(spoilt).astype(weights[name].dtype)})


# -- what a file is ---------------------------------------------------------------------------


def npz() -> bytes:
    file = io.BytesIO()
    np.savez(file, a=np.zeros(2))
    return file.getvalue()


def archive(name: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        made.writestr(name, b"x" * 20)
    return file.getvalue()


WHAT: dict[str, tuple[bytes, str]] = {
    "LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid x\n", "a Git LFS pointer"),
    "GGUF": (b"GGUF\3\0\0\0" + bytes(90), "a GGUF file"),
    "pickle": (b"\x80\x02}q\x00X\x01\x00\x00\x00aq\x01K\x01s.", "a pickle"),
    "PyTorch's zip": (archive("archive/data.pkl"), "a pickle"),
    "npz": (npz(), "a NumPy archive"),
    "another zip": (archive("readme.txt"), "a ZIP archive"),
    "HTML": (b"\n<!DOCTYPE html><html><body>404</body></html>", "a web page"),
    "gzip": (b"\x1f\x8b\x08\0\0\0\0\0\0\x03" + bytes(90), "compressed by gzip"),
    "empty": (b"", "empty"),
    "zeros": (bytes(5000), "filled with zeros"),
    "sound": (b"RIFF\x24\0\0\0WAVEfmt ", "a RIFF file"),
}
SAFETENSORS = (NANO / "model.safetensors").read_bytes()[:2000]
TOKENIZER_JSON = json.dumps({"version": "1.0", "added_tokens": [], "model": {}}).encode()


@pytest.mark.parametrize("what", WHAT)
@pytest.mark.parametrize("file", FILES)
def test_a_file_is_called_what_it_is(folder: Path, file: str, what: str) -> None:
    content, name = WHAT[what]
    put(folder / file, content)
    with pytest.raises(MoshiError) as error:
        open_checkpoint(folder)
    assert str(folder / file) in str(error.value) and f"is {name}" in str(error.value)


@pytest.mark.parametrize("what", WHAT)
def test_an_adapter_is_called_what_it_is(folder: Path, what: str, tmp_path: Path) -> None:
    content, name = WHAT[what]
    put(tmp_path / ADAPTER, content)
    with pytest.raises(CheckpointError, match=f"lora.safetensors: is {name}"):
        open_checkpoint(folder, lora=tmp_path / ADAPTER)


def test_safetensors_and_json_in_the_place_of_others(folder: Path) -> None:
    put(folder / "tokenizer.model", SAFETENSORS)
    with pytest.raises(TokenizerError, match="is a safetensors file, not a SentencePiece model"):
        open_checkpoint(folder)
    put(folder / "tokenizer.model", TOKENIZER_JSON)
    with pytest.raises(TokenizerError, match=r"field 'model.type' must be"):
        open_checkpoint(folder)
    put(folder / "mimi.safetensors", b'{"a": 1}')
    put(folder / "tokenizer.model", (NANO / "tokenizer.model").read_bytes())
    with pytest.raises(CheckpointError, match=r"mimi\.safetensors: is JSON, not safetensors"):
        open_checkpoint(folder)
    put(folder / "mimi.safetensors", (NANO / "tokenizer.model").read_bytes())
    with pytest.raises(CheckpointError, match="is a SentencePiece model, not safetensors"):
        open_checkpoint(folder)
    put(folder / "mimi.safetensors", SAFETENSORS)
    with pytest.raises(CheckpointError, match=r"mimi\.safetensors: is truncated"):
        open_checkpoint(folder)


TENSORS = {
    "bitsandbytes": (["text_emb.weight", "out_norm.weight", "a.weight.absmax"], "bitsandbytes"),
    "GPTQ": (["model.layers.0.mlp.qweight"], "quantized by GPTQ"),
    "Transformers": (["decoder.model.layers.0.self_attn.q_proj.linear.weight"], "Transformers"),
    "anything": (["a", "b", "c", "d"], r"\(it has 'a', 'b', 'c' and 1 more\)"),
}


@pytest.mark.parametrize("what", TENSORS)
def test_tensors_of_other_programs(folder: Path, what: str) -> None:
    names, says = TENSORS[what]
    others = dict.fromkeys(names, mx.zeros(1))
    for file, wanted in [("mimi.safetensors", "Mimi codec"), ("model.safetensors", "language")]:
        save(folder / file, others)
        with pytest.raises(CheckpointError, match=rf"{file}: is .*{says}") as error:
            open_checkpoint(folder)
        assert wanted in str(error.value)
    save(folder.parent / ADAPTER, others)
    with pytest.raises(CheckpointError, match=rf"{ADAPTER}: is .*{says}"):
        read_adapter(folder.parent / ADAPTER, open_checkpoint("nano").config.lm)


def test_files_that_changed_places(folder: Path) -> None:
    put(folder / "mimi.safetensors", (NANO / "model.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match=r"mimi\.safetensors: is a Moshi language model, not"):
        open_checkpoint(folder)
    put(folder / "model.safetensors", (NANO / "mimi.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match=r"model\.safetensors: is a Mimi codec, not"):
        open_checkpoint(folder)


# -- what stands in the place of a file -------------------------------------------------------


@pytest.mark.parametrize("file", FILES)
def test_no_regular_file(folder: Path, file: str) -> None:
    path = folder / file
    path.unlink()
    for make, says in [
        (lambda: path.symlink_to(path), "a link that leads to no file"),
        (lambda: path.symlink_to("gone"), "a link that leads to no file"),
        (lambda: os.mkfifo(path), "no regular file"),
        (path.mkdir, "no regular file"),
    ]:
        make()
        with pytest.raises(HubError, match=f"{file} is {says}"):
            open_checkpoint(folder)
        path.rmdir() if path.is_dir() else path.unlink()


def test_files_that_may_not_be_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, is_file = Path.open, Path.is_file

    def forbidden(path: Path, *args: Any, **kwargs: Any) -> Any:
        if path == folder / "model.safetensors":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", forbidden)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: cannot be read: Permission"):
        open_checkpoint(folder)

    def unsearchable(path: Path) -> bool:
        if path.parent == folder:
            raise PermissionError(13, "Permission denied", str(path))
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", unsearchable)
    with pytest.raises(HubError, match="cannot be read: Permission denied"):
        open_checkpoint(folder)


# -- config.json ------------------------------------------------------------------------------

NAN = math.nan
FIELDS: dict[str, list[Any]] = {
    "dim": [-1, 0, NAN, "192", True, 2**40, 1e300, None, [192]],
    "num_heads": [0, 7, -6],
    "num_layers": [0, 10**12],
    "hidden_scale": [0, -1, NAN, math.inf, 1e300, 1e-9, 1e8],
    "context": [None, 0, -5, 10**6, 1e18, "x"],
    "max_period": [NAN, math.inf, 0],
    "text_card": [-1, 10**13],
    "n_q": [-1, 8, 15, 10**12],
    "dep_q": [-1, 17, 2.5],
    "delays": [[0] * 16, [-1] * 17, [10**12] * 17, "x", None, [0.5] * 17, [True] * 17],
    "existing_text_padding_id": [-1, 100_000],
    "norm": [["x"], "x" * 10_000],
    "layer_scale": ["x", NAN],
    "depformer_dim_feedforward": [[1, 2], -1, True, 10**15],
    "depformer_weights_per_step_schedule": [[9] * 8, "x"],
    "conditioners": [
        5, [], 0, "", {"a": {"type": "lut", "lut": {"dim": 4, "n_bins": 2, "possible_values": 5}}}
    ],
    "fuser": [{"sum": 5}, {"cross": ["x"]}, [], False],
    "gating": ["swish", "silu ", "", None, ["silu"], 5],
    "depformer_gating": ["swish", "none", 5],
    "lm_gen_config": [{"temp": NAN}, {"top_k": 2.5}, {"top_k": -1}, 7, [], 0, "", False],
    "lora": ["yes", 1],
    "lora_scaling": [NAN, math.inf, "x"],
    "quantization": [5],
    "model_type": [5, ["a"]],
    "surprise": ["x" * 10_000],
}  # fmt: skip


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, vs in FIELDS.items() for v in vs])
def test_fields_that_make_no_sense(folder: Path, name: str, value: Any) -> None:
    configure(folder, **{name: value})
    with pytest.raises(ConfigError) as error:
        open_checkpoint(folder)
    message = str(error.value)
    inner = {"n_q": "delays"}.get(name, name)
    assert (name in message or inner in message) and str(folder) in message and len(message) < 400


MIMI_FIELDS: list[tuple[str, str, Any]] = [
    ("", "channels", 2),
    ("", "sample_rate", 0),
    ("", "frame_rate", NAN),
    ("", "frame_rate", 12.4),
    ("seanet", "ratios", [0, 1]),
    ("seanet", "kernel_size", 10**9),
    ("seanet", "n_residual_layers", 10**9),
    ("transformer", "context", 10**12),
    ("transformer", "num_heads", 5),
    ("quantizer", "bins", 0),
]


@pytest.mark.parametrize(("block", "name", "value"), MIMI_FIELDS)
def test_fields_of_mimi_that_make_no_sense(folder: Path, block: str, name: str, value: Any) -> None:
    raw = read_json(NANO / "mimi_config.json")
    (raw[block] if block else raw)[name] = value
    put(folder / "mimi_config.json", json.dumps(raw).encode())
    with pytest.raises(ConfigError, match=rf"mimi_config\.json: .*{name}"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"a":' * 100_000, "nested too deeply"),
        ('{"dim": 192, "dim": 64}', "field 'dim' is there twice"),
        ('{"dim": ' + "9" * 5000 + "}", "cannot be read as JSON"),
        ('{"hidden_size": 4096, "architectures": ["M"]}', "Hugging Face Transformers"),
        ('{"peft_type": "LORA"}', "configuration of PEFT"),
    ],
)
def test_texts_that_are_no_configuration(folder: Path, text: str, says: str) -> None:
    put(folder / "config.json", text.encode())
    with pytest.raises(ConfigError, match=rf"config\.json: .*{says}"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"dep_q": 16}, "has 8 slices of the depth .* 'dep_q' is 16"),
        ({"dep_q": 7}, "has 8 slices of the depth .* 'dep_q' is 7"),
        ({"quantization": {"bits": 4, "group_size": 32}}, "not quantized, .* 'quantization'"),
        ({"quantization": {"mode": "affine"}}, "is not quantized, .* 'quantization'"),
        ({"quantization": {"text_linear": {"bits": 8}}}, "'text_linear.weight' is not quantized"),
    ],
)
def test_fields_that_the_weights_belie(folder: Path, changes: dict[str, Any], says: str) -> None:
    configure(folder, **changes)
    with pytest.raises(CheckpointError, match=rf"^.*model\.safetensors: .*{says}"):
        moshi_mlx.load(folder, codec="mlx")


def test_what_does_no_harm_in_a_configuration(folder: Path) -> None:
    extra = {"torch_dtype": "bfloat16", "transformers_version": "4.57", "_name_or_path": "x"}
    text = json.dumps(RAW | extra | {"architectures": ["Moshi"], "dtype": "bfloat16"})
    put(folder / "config.json", text.encode("utf-8-sig"))
    assert open_checkpoint(folder).config.lm == open_checkpoint("nano").config.lm


# -- parts that are of different models -------------------------------------------------------


def test_a_tokenizer_with_fewer_or_more_tokens(folder: Path) -> None:
    for card in (511, 640, 32_000):
        configure(folder, text_card=card)
        with pytest.raises(CheckpointError, match=f"has 512 tokens, the model knows {card}"):
            open_checkpoint(folder)
    configure(folder, text_card=600)  # a padded table
    assert open_checkpoint(folder).config.lm.text_card == 600


def test_a_mimi_with_too_few_codebooks(folder: Path) -> None:
    raw = read_json(NANO / "mimi_config.json")
    raw["quantizer"]["n_q"] = 4
    put(folder / "mimi_config.json", json.dumps(raw).encode())
    with pytest.raises(CheckpointError, match="has 4 codebooks, and the model needs 8"):
        moshi_mlx.load(folder)


def test_many_wrong_tensors_are_one_short_line(folder: Path) -> None:
    weights = read_safetensors(NANO / "model.safetensors")
    save(folder / "model.safetensors", weights | {f"x.{i}": mx.zeros(1) for i in range(800)})
    with pytest.raises(CheckpointError, match=r"800 tensors that the config .*: 'x\.0'"):
        moshi_mlx.load(folder)
    renamed = {
        k if k.startswith(("text_emb", "out_norm")) else f"x.{k}": v for k, v in weights.items()
    }
    save(folder / "model.safetensors", renamed)
    with pytest.raises(
        CheckpointError, match=r"161 tensors missing: .* and 158 more; 161 tens"
    ) as e:
        moshi_mlx.load(folder)
    assert len(str(e.value)) < 300 + len(str(folder))
    save(folder / "model.safetensors", {name: mx.zeros((3, 3)) for name in weights})
    with pytest.raises(CheckpointError, match=r"\(3, 3\), the config says .* and 162 more don't"):
        moshi_mlx.load(folder)


# -- values -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [mx.float32, mx.float16, mx.bfloat16])
def test_what_is_not_finite(kind: mx.Dtype) -> None:
    most = {mx.float32: 3e38, mx.float16: 65504, mx.bfloat16: 3e38}[kind]
    for good in ([], [0.0, -0.0], [most, -most], [1e-45, -1e-45]):
        check_finite(mx.array(good).astype(kind), "a", "here")
    for bad in (NAN, -NAN, math.inf, -math.inf):
        for others in ([], [1.0], [-1.0], [most, -most]):
            with pytest.raises(CheckpointError, match="here: tensor 'a' has values that are not"):
                check_finite(mx.array([*others, bad, *others]).astype(kind), "a", "here")
    check_finite(mx.array([0, 254], mx.uint8), "scales", "here")
    with pytest.raises(CheckpointError, match="not finite"):
        check_finite(mx.array([0, 255], mx.uint8), "scales", "here")


@pytest.mark.parametrize("value", [NAN, -math.inf])
def test_weights_that_are_not_finite(folder: Path, value: float) -> None:
    spoil(folder / "model.safetensors", "text_linear.weight", value)
    with pytest.raises(CheckpointError, match=r"model\.s.*: tensor 'text_linear\.weight' has val"):
        moshi_mlx.load(folder)


def test_quantized_weights_that_are_not_finite(tmp_path: Path) -> None:
    import mlx.nn as nn

    config = open_checkpoint("nano").config.lm
    lm = load_lm(NANO / "model.safetensors", config)
    nn.quantize(lm, 32, 4, class_predicate=lambda path, m: path == "text_linear")
    save(tmp_path / "q.safetensors", to_mlx(named_parameters(lm), config))
    load_lm(tmp_path / "q.safetensors", config)
    spoil(tmp_path / "q.safetensors", "text_linear.scales", NAN)
    with pytest.raises(CheckpointError, match=r"'text_linear\.scales' has values that are not fin"):
        load_lm(tmp_path / "q.safetensors", config)


@pytest.mark.parametrize(
    "name",
    [
        "decoder.model.0.conv.conv.bias",
        "quantizer.rvq_first.vq.layers.0._codebook.cluster_usage",  # divides: inf would make zeros
        "quantizer.rvq_rest.vq.layers.2._codebook.embedding_sum",
    ],
)
def test_a_mimi_that_is_not_finite(folder: Path, name: str) -> None:
    spoil(folder / "mimi.safetensors", name, math.inf)
    with pytest.raises(CheckpointError, match=r"mimi\.safetensors: tensor '.*' has values that"):
        moshi_mlx.load(folder)
    with pytest.raises(CheckpointError, match=f"mimi.safetensors: tensor '{name}' has values that"):
        check_mimi(folder / "mimi.safetensors")


def adapter(path: Path, value: float = 0.01) -> Path:
    name = "transformer.layers.0.gating.linear_in"
    outputs, inputs = (
        load_lm(NANO / "model.safetensors", open_checkpoint("nano").config.lm)
        .transformer.layers[0]
        .gating.linear_in.weight.shape
    )
    a, b = mx.full((2, inputs), value), mx.full((outputs, 2), 0.1)
    save(path, {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b})
    return path


def test_an_adapter_that_is_not_finite(tmp_path: Path) -> None:
    path = adapter(tmp_path / ADAPTER, NAN)
    with pytest.raises(CheckpointError, match=r"lora\.safetensors: tensor '.*lora_A\.weight' has"):
        moshi_mlx.load("nano", lora=path)


# -- adapters ---------------------------------------------------------------------------------


def test_the_field_lora_decides(folder: Path) -> None:
    configure(folder, lora=True)
    with pytest.raises(HubError, match=r"no lora\.safetensors in .* says that it has an adapter"):
        open_checkpoint(folder)
    path = adapter(folder / ADAPTER)
    assert open_checkpoint(folder).files.lora == path
    configure(folder, lora_rank=2)
    assert open_checkpoint(folder).files.lora == path
    configure(folder, lora=False, lora_rank=2, lora_name=ADAPTER)
    assert open_checkpoint(folder).files.lora is None
    other = path.rename(folder.parent / "other.safetensors")
    configure(folder, lora=True)  # an adapter that is given takes the place of the model's own
    assert open_checkpoint(folder, lora=other).files.lora == other


def test_an_adapter_alone_asks_for_its_base(tmp_path: Path) -> None:
    path = adapter(tmp_path / ADAPTER)
    for name in (path, tmp_path):
        with pytest.raises(CheckpointError, match="--model BASE --lora ADAPTER"):
            find_files(name)


# -- names ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("https://huggingface.co/kyutai/moshiko-mlx-q4", "kyutai/moshiko-mlx-q4"),
        ("huggingface.co/kyutai/moshiko-mlx-q4/", "kyutai/moshiko-mlx-q4"),
        ("https://hf.co/me/mine/tree/main", "me/mine"),
        ("https://huggingface.co/me/mine/tree/v2?x=y", "me/mine@v2"),
        ("hf://me/mine", "me/mine"),
        ("kyutai/moshiko-mlx-q4/", "kyutai/moshiko-mlx-q4"),
        ("nano/", "nano"),
        ("./nano/", "./nano/"),
    ],
)
def test_addresses_and_slashes(name: str, meant: str) -> None:
    assert canonical(name) == meant


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("", "name is empty"),
        (" ", "name is empty"),
        ("https://huggingface.co/me/mine/blob/main/model.q4.safetensors", "repository: me/mine$"),
        ("https://example.com/me/mine", "not an address of the hub"),
        ("~nobody-of-this-name/x", "no such user"),
        ("x" * 5000, "cannot be read: File name too long"),
        ("x\0y", "There is no model"),
        (str(NANO / "config.json"), rf"is a file; give the folder that it is in, {NANO}\."),
    ],
)
def test_names_that_lead_nowhere(name: str, says: str) -> None:
    with pytest.raises(HubError, match=says):
        open_checkpoint(name)


def test_a_whole_fine_tune(folder: Path) -> None:
    """moshi-finetune's `consolidated.safetensors`: its folder, and the one that this is in."""
    configure(folder, lora=False, lora_rank=128, moshi_name=None)
    weights = (folder / "model.safetensors").rename(folder / "consolidated.safetensors")
    assert open_checkpoint(folder).files.weights == (weights,)
    checkpoint = folder.parent / "checkpoint_000100"
    checkpoint.mkdir()
    inner = folder.rename(checkpoint / "consolidated")
    assert open_checkpoint(checkpoint).folder == inner


# -- every program ----------------------------------------------------------------------------


def break_header(folder: Path) -> None:
    put(folder / "model.safetensors", b"GGUF\3\0\0\0" + bytes(90))


def drop_tensor(folder: Path) -> None:
    weights = read_safetensors(folder / "model.safetensors")
    weights.pop("text_linear.weight")
    save(folder / "model.safetensors", weights)


def drop_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.model").unlink()


def break_config(folder: Path) -> None:
    configure(folder, dim=-1)


def break_codec(folder: Path) -> None:
    spoil(folder / "mimi.safetensors", "quantizer.rvq_first.input_proj.weight", NAN)


def break_values(folder: Path) -> None:
    spoil(folder / "model.safetensors", "out_norm.weight", NAN)


@pytest.mark.parametrize(
    "fault", [break_header, drop_tensor, drop_tokenizer, break_config, break_codec, break_values]
)
def test_every_program_says_the_same(
    folder: Path,
    fault: Callable[[Path], None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fault(folder)
    with pytest.raises(MoshiError) as error:
        moshi_mlx.load(folder)
    expected = " ".join(str(error.value).split())
    sound, answer = tmp_path / "in.wav", tmp_path / "out.wav"
    soundfile.write(sound, np.zeros(1920), 24_000)
    model = ["--model", str(folder)]
    programs = {
        "run": lambda: moshi_local(["run", str(sound), str(answer), *model]),
        "doctor": lambda: moshi_local(["doctor", "--frames", "1", *model]),
        "quantize": lambda: moshi_quantize([str(folder), str(tmp_path / "q"), "--no-report"]),
    }
    for name, program in programs.items():
        assert program() == 2, name
        message = capsys.readouterr().err.splitlines()[-1]
        assert message.split(": ", 1)[1] == expected, name
    assert not answer.exists() and not (tmp_path / "q").exists()
