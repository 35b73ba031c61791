"""moshi-quantize: any layout in, a folder that loads out; nothing broken gets through."""

import contextlib
import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import moshi_mlx
from benchmarks.quantize_proofs import SMALL, make_small
from moshi_mlx.errors import CheckpointError, ConfigError
from moshi_mlx.files import read_json
from moshi_mlx.hub import bundled_folder
from moshi_mlx.layouts import from_pytorch, to_mlx, to_pytorch
from moshi_mlx.lm import Lm
from moshi_mlx.published import read_config
from moshi_mlx.safetensors import parse_header, read_header
from moshi_mlx.trees import named_parameters
from moshi_mlx.weights import load_lm
from moshi_quantize import RECIPES, Layer, Precision, Recipe, RecipeError, cli, quantize, recipe
from moshi_quantize.recipes import layers_of, parse_precision
from moshi_quantize.writer import TensorWriter

NANO = bundled_folder("nano")
LM = Path(__file__).parents[1] / "fixtures" / "lm"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_small(tmp_path_factory.mktemp("small") / "source", dtype=mx.float32)


@pytest.fixture
def copy(small: Path, tmp_path: Path) -> Path:
    """The small model, to be spoilt."""
    return Path(shutil.copytree(small, tmp_path / "source"))


def tensors(path: Path) -> dict[str, mx.array]:
    weights = mx.load(str(path))
    assert isinstance(weights, dict)
    return weights


def same(a: dict[str, mx.array], b: dict[str, mx.array]) -> bool:
    return a.keys() == b.keys() and all(mx.array_equal(a[k], b[k]).item() for k in a)


@pytest.mark.parametrize(("case", "bits"), [("mlx-q4", 4), ("mlx-q8", 8)])
def test_published_format(case: str, bits: int) -> None:
    """q4 and q8 have the tensors of the published files, by name, type and shape."""
    config = read_config(read_json(LM / case / "config.json")).lm
    lm = quantize(Lm(config), f"q{bits}")
    made = to_mlx(named_parameters(lm), config)
    published = tensors(next((LM / case).glob("model*")))
    assert {k: v.shape for k, v in made.items()} == {k: v.shape for k, v in published.items()}


@pytest.mark.parametrize("how", ["q4", "q8", "3:64", "mxfp8", "none"])
def test_streaming_equals_quantizing_in_memory(small: Path, tmp_path: Path, how: str) -> None:
    result = quantize(small, how, tmp_path / "made")
    moshi = moshi_mlx.load(tmp_path / "made", dtype=mx.bfloat16)
    config = read_config(SMALL).lm
    lm = load_lm(small / "model.safetensors", config, dtype=mx.bfloat16)
    assert same(named_parameters(moshi.lm), named_parameters(quantize(lm, how)))
    assert result.nbytes == (tmp_path / "made" / "model.safetensors").stat().st_size
    assert (how == "none") == (moshi.config.quantization is None)


def test_layouts_give_the_same_file(small: Path, tmp_path: Path) -> None:
    """Packed, numbered, MLX, sharded, a single file, a merged fine-tune."""
    reference = tmp_path / "reference"
    quantize(small, "q4", reference)
    config = read_config(SMALL).lm
    ours = from_pytorch(tensors(small / "model.safetensors"), config)
    sources: dict[str, Any] = {"file": small / "model.safetensors"}
    for name in ("numbered", "mlx", "shards", "merged"):
        folder = Path(shutil.copytree(small, tmp_path / name))
        weights = to_mlx(ours, config) if name == "mlx" else to_pytorch(ours, config)
        (folder / "model.safetensors").unlink()
        if name == "shards":
            table: dict[str, str] = {}
            for i, names in enumerate([sorted(weights)[:20], sorted(weights)[20:]]):
                file = f"part-{i}.safetensors"
                mx.save_safetensors(str(folder / file), {n: weights[n] for n in names})
                table |= dict.fromkeys(names, file)
            index = folder / "model.safetensors.index.json"
            index.write_text(json.dumps({"weight_map": table}))
        else:
            file = "consolidated" if name == "merged" else "model"
            mx.save_safetensors(str(folder / f"{file}.safetensors"), weights)
        sources[name] = folder
    for name, source in sources.items():
        made = tmp_path / f"made-{name}"
        quantize(source, "q4", made)
        a, b = (tensors(f / "model.safetensors") for f in (made, reference))
        assert same(a, b), name


def test_adapter_is_merged(small: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    name = "transformer.layers.1.gating.linear_in"
    inputs, outputs = 256, 1408
    a = mx.random.normal((2, inputs), key=mx.random.key(0))
    b = mx.random.normal((outputs, 2), key=mx.random.key(1))
    mx.save_safetensors(
        str(adapter / "lora.safetensors"), {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}
    )
    (adapter / "config.json").write_text(json.dumps({"lora": True, "lora_scaling": 3.0}))
    with pytest.raises(CheckpointError, match="is a LoRA adapter alone; give its base"):
        quantize(adapter, None, tmp_path / "made")
    base = tensors(small / "model.safetensors")[f"{name}.weight"]
    for source in (adapter, adapter / "lora.safetensors"):
        made = tmp_path / f"made-{source.name}"
        quantize(source, None, made, base=small, dtype=None)
        merged = tensors(made / "model.safetensors")[f"{name}.weight"]
        assert mx.allclose(merged, base + 3 * (b @ a), atol=1e-5).item()
        assert not [field for field in read_json(made / "config.json") if "lora" in field]


def test_config_says_what_is_different(small: Path, tmp_path: Path) -> None:
    """Overrides by published names; the library reads them, and holds the file to them."""
    rules = (("heads", Precision(8, 64)), ("depformer.*.linear_in", None),
             ("text_emb", Precision(4, 16, "nvfp4")))  # fmt: skip
    made = tmp_path / "made"
    quantize(small, Recipe("mine", Precision(4, 32), rules), made)
    block = read_json(made / "config.json")["quantization"]
    assert {k: block[k] for k in ("bits", "group_size", "mode")} == Precision(4, 32).block
    assert block["depformer.slices.3.linear_out"] == Precision(8, 64).block
    assert block["depformer.slices.3.linear_in"] is False
    assert block["text_emb"] == {"bits": 4, "group_size": 16, "mode": "nvfp4"}
    lm = moshi_mlx.load(made).lm
    assert (lm.text_linear.bits, lm.text_emb.mode) == (8, "nvfp4")
    config = read_json(made / "config.json")
    for change, message in [
        ({"depformer.slices.3.linear_out": {"bits": 4}}, "has bits 8, config.json says 4"),
        ({"text_emb": {"mode": "affine"}}, "has mode nvfp4, config.json says affine"),
        ({"text_linear": False}, "is quantized, config.json says it isn't"),
    ]:
        changed = {**config, "quantization": block | change}
        (made / "config.json").write_text(json.dumps(changed))
        with pytest.raises(CheckpointError, match=message):
            moshi_mlx.load(made)


def test_shared_slices(tmp_path: Path) -> None:
    """Slices that share weights get one precision, and the file has all their names."""
    lm = Lm(read_config(read_json(LM / "small-shared" / "config.json")).lm)
    layers = {layer.path: layer for layer in layers_of(lm)}
    shared = layers["depformer.linear_in.1"]
    assert shared.names == ("depformer.slices.1.linear_in", "depformer.slices.2.linear_in")
    assert shared.uses == 2
    assert {layer.part for layer in layers.values()} == {"temporal", "depth", "embeddings", "heads"}


def test_precisions_and_rules() -> None:
    assert parse_precision("4") == Precision(4, 32)
    assert parse_precision("8") == Precision(8, 64)
    assert parse_precision("6:128") == Precision(6, 128)
    assert parse_precision("nvfp4") == Precision(4, 16, "nvfp4")
    assert parse_precision("none") is None
    for wrong in ("7", "4:16", "q", "mxfp5", "", "4:"):
        with pytest.raises(RecipeError):
            parse_precision(wrong)
    assert Precision(8, 128).fitting(96) == Precision(8, 32)
    assert Precision(4, 32).fitting(264) is None
    layer = Layer("a.0.b", ("a.0.b",), "temporal", (8, 128), 1)
    for answer, meant in [
        (True, Precision(4, 32)), (False, None), (None, None),
        ({"bits": 8}, Precision(8, 64)), (Precision(3, 32), Precision(3, 32)),
    ]:  # fmt: skip
        rule = Recipe("mine", Precision(4, 32), predicate=lambda *_, answer=answer: answer)
        assert rule.assign([layer]) == {"a.0.b": meant}
    with pytest.raises(RecipeError, match=r"predicate .* answers 4 for 'a\.0\.b'"):
        Recipe("mine", None, predicate=lambda *_: 4).assign([layer])  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="No layer is called 'nothing'"):
        Recipe("mine", None, (("nothing", None),)).assign([layer])
    with pytest.raises(RecipeError, match="There is no recipe 'best'"):
        recipe("best")
    sizes = {how: layer.nbytes(parse_precision(how)) for how in ("4", "8", "none", "mxfp4")}
    assert sizes == {"4": 512 + 128, "8": 1024 + 64, "none": 2048, "mxfp4": 512 + 32}


# ------------------------------------------------------------------------------------ broken input


def program(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What the program says on its way out with code 2: one line."""
    assert cli.main(arguments) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1, said
    return said


def header_of(path: Path) -> tuple[dict[str, Any], bytes]:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def rewrite(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    header, data = header_of(path)
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def weights_of(folder: Path) -> Path:
    return folder / "model.safetensors"


def change_header(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], Any]:
    return lambda folder: rewrite(weights_of(folder), change)


def change_tensor(name: str, value: Any) -> Callable[[Path], Any]:
    def spoil(folder: Path) -> None:
        weights = tensors(weights_of(folder))
        made = value(weights[name]) if callable(value) else value
        weights[name] = made
        mx.eval(weights)
        weights_of(folder).unlink()
        mx.save_safetensors(str(weights_of(folder)), weights)

    return spoil


def change_config(**fields: Any) -> Callable[[Path], Any]:
    def spoil(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(read_json(path) | fields))

    return spoil


def write(content: bytes, name: str = "model.safetensors") -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_bytes(content)


def cut(folder: Path) -> None:
    os.truncate(weights_of(folder), weights_of(folder).stat().st_size - 1000)


def overlap(header: dict[str, Any]) -> None:
    a, b = sorted((h["data_offsets"], n) for n, h in header.items() if n != "__metadata__")[:2]
    size = b[0][1] - b[0][0]
    header[b[1]]["data_offsets"] = [a[0][0], a[0][0] + size]


def index(weight_map: Any) -> Callable[[Path], Any]:
    def spoil(folder: Path) -> None:
        weights_of(folder).unlink()
        path = folder / "model.safetensors.index.json"
        path.write_text(json.dumps({"weight_map": weight_map}))

    return spoil


def fifo(folder: Path) -> None:
    weights_of(folder).unlink()
    os.mkfifo(weights_of(folder))


def nan(value: mx.array) -> mx.array:
    value[1, 2] = float("nan")
    return value


NORM, HEAD = "out_norm.alpha", "text_linear.weight"
PICKLE = b"\x80\x02}q\x00X\x01\x00\x00\x00aq\x01K\x01s."
DOUBLE = b'{"x":{"dtype":"F64","shape":[1],"data_offsets":[0,8]}}'
BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated": (cut, "is truncated: "),
    "empty": (write(b""), "is empty, not safetensors"),
    "cut in the header": (write(b"\x00\x02" + bytes(6) + b"{"), "is truncated: its header has 512"),
    "absurd header length": (write(b"\xff" * 8 + b"{}" * 50), "its header would have 1844674"),
    "header is no JSON": (write(b"\x10" + bytes(7) + b"{" + b"x" * 20), "its header is not JSON"),
    "header is a list": (write(b"\x08" + bytes(7) + b"[[[[]]]]"), "is not a safetensors file"),
    "a text": (write(b"These are not the weights." * 9), "is a text file, not safetensors"),
    "a web page": (write(b"<!doctype html><html><body>"), "is a web page, not safetensors"),
    "GGUF": (write(b"GGUF\3\0\0\0" + bytes(90)), "is a GGUF file"),
    "64-bit floats": (
        write(b"6" + bytes(7) + DOUBLE + bytes(8)),
        "has 64-bit floats (F64), which are not read: convert",
    ),
    "LFS pointer": (write(b"version https://git-lfs.github.com/spec/v1\n"), "is a Git LFS pointer"),
    "pickle": (write(PICKLE), "is a pickle"),
    "zip pickle": (write(b"PK\x03\x04" + bytes(90)), "is a pickle"),
    "overlap": (change_header(overlap), "overlap"),
    "offset outside": (
        change_header(lambda h: h[HEAD].update(data_offsets=[0, 2**40])), "lies outside the file's"
    ),
    "negative offset": (
        change_header(lambda h: h[HEAD].update(data_offsets=[-8, 8])), "lies outside the file's"
    ),
    "shape that needs more": (
        change_header(lambda h: h[HEAD].update(shape=[512, 257])), "the header gives it"
    ),
    "huge shape": (change_header(lambda h: h[HEAD].update(shape=[2**47] * 8)), "needs"),
    "unknown type": (change_header(lambda h: h[HEAD].update(dtype="F4")), "has the type 'F4'"),
    "a name with an escape": (
        change_header(lambda h: h.update({"a\x1b[2J": h.pop(HEAD)})), "has no proper name"
    ),
    "NaN": (change_tensor(HEAD, nan), "'text_linear.weight' has values that are not finite"),
    "infinity": (
        change_tensor(NORM, lambda v: v / 0), "'out_norm.weight' has values that are not finite"
    ),
    "wrong shape": (change_tensor(HEAD, mx.zeros((512, 255))), "the config says (512, 256)"),
    "whole numbers": (change_tensor(HEAD, mx.zeros((512, 256), mx.int32)), "not floating-point"),
    "a tensor more": (change_header(lambda h: h.update({"extra.weight": {
                          "dtype": "F32", "shape": [0], "data_offsets": [0, 0]}})),
                      "the config doesn't know: 'extra.weight'"),
    "unknown field": (change_config(surprise=1), "field 'surprise' (1) is not understood"),
    "absurd layers": (change_config(num_layers=10**9), "the config says 1000000000 layers"),
    "absurd width": (change_config(dim=2**40, num_heads=2), "field 'dim' must be at most"),
    "config is no JSON": (write(b"{", "config.json"), "config.json"),
    "config leads out": (change_config(moshi_name="../../etc/passwd"), "inside the model's folder"),
    "index leads out": (index({"a": "/etc/passwd"}), "inside the model's folder"),
    "index without shards": (index({"a": "b.safetensors"}), "There is no b.safetensors"),
    "no tokenizer": (lambda f: (f / "tokenizer.model").unlink(), "There is no tokenizer.model"),
    "no config": (
        lambda f: (f / "config.json").unlink(),
        "There is no config.json",
    ),
    "broken tokenizer": (write(b"nonsense", "tokenizer.model"), "tokenizer.model"),
    "broken codec": (write(b"nonsense", "mimi.safetensors"), "mimi.safetensors"),
    "another model": (
        lambda f: shutil.copyfile(f / "mimi.safetensors", weights_of(f)),
        "is a Mimi codec",
    ),
    "no file but a pipe": (fifo, "is no regular file"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_source(
    kind: str, copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, message = BROKEN[kind]
    message = message.format(copy)
    spoil(copy)
    before = {p: p.stat().st_mtime_ns for p in copy.iterdir()}
    said = program([str(copy), str(tmp_path / "made"), "--no-report"], capsys)
    assert message in said
    assert {p: p.stat().st_mtime_ns for p in copy.iterdir()} == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source"]


def test_broken_target(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    full, file, link = tmp_path / "full", tmp_path / "file", tmp_path / "link"
    full.mkdir()
    (full / "mine").write_text("precious")
    file.write_text("precious")
    link.symlink_to(full)
    for target, message in [
        (small, "is the source, or in it"), (small / "q4", "is the source, or in it"),
        (full, "is there already, and not empty"), (file, "is there already, and is not a folder"),
        (link, "is there already, and is not a folder"), (file / "below", "cannot be"),
        (Path("/proc/nowhere/made"), "cannot be made"),
    ]:  # fmt: skip
        assert message in program([str(small), str(target)], capsys)
    assert "is quantized already" in _quantized_again(small, tmp_path, capsys)
    assert (full / "mine").read_text() == file.read_text() == "precious"


def _quantized_again(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    empty = tmp_path / "empty"
    empty.mkdir()
    quantize(small, "q8", empty)  # an empty folder may be there
    again = quantize(empty, None, tmp_path / "again")  # a quantized one is copied as it is
    a, b = (tensors(f / "model.safetensors") for f in (empty, again.folder))
    assert same(a, b)
    return program([str(empty), str(tmp_path / "made")], capsys)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a full disk at /dev/full")
def test_full_disk(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk refuses while the weights are written, or is seen to be too small before."""
    put = TensorWriter._put

    def full(self: TensorWriter, place: int, data: memoryview) -> None:
        if place > 1_000_000:
            with open("/dev/full", "wb", buffering=0) as device:  # noqa: PTH123
                device.write(data[:1])
        put(self, place, data)

    monkeypatch.setattr(TensorWriter, "_put", full)
    with pytest.raises(CheckpointError, match="cannot be written: No space left"):
        quantize(small, "q4", tmp_path / "made")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 1_000))
    with pytest.raises(CheckpointError, match=r"needs 0\.01 GB, the disk has 0\.00 GB left"):
        quantize(small, "q4", tmp_path / "made")
    assert not list(tmp_path.iterdir())


def test_what_a_killed_run_left_is_swept(small: Path, tmp_path: Path) -> None:
    for process in (2**22 + 1, os.getppid()):  # one that cannot run, one that does
        (tmp_path / f".made.{process}.partial").mkdir()
    quantize(small, "q4", tmp_path / "made", link_mimi=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == [f".made.{os.getppid()}.partial", "made"]
    assert (tmp_path / "made" / "mimi.safetensors").is_symlink()
    assert moshi_mlx.load(tmp_path / "made").lm is not None


# --------------------------------------------------------------------------------------- fuzz

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
ENTRY = st.fixed_dictionaries({
    "dtype": st.sampled_from(["F32", "BF16", "U32", "F64"]) | JSON,
    "shape": st.lists(st.integers(-2, 2**50), max_size=4) | JSON,
    "data_offsets": st.lists(st.integers(-2, 64), max_size=3) | JSON,
})  # fmt: skip


def one_line(error: Exception) -> bool:
    return "\n" not in str(error) and len(str(error)) < 1000


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.text(max_size=6), ENTRY | JSON, max_size=4) | JSON)
def test_fuzzed_headers(header: Any) -> None:
    """Accepted means: whole numbers that tile the data. All else is our error."""
    text = json.dumps(header).encode()
    try:
        found = parse_header(text, 64, "file")
    except CheckpointError as error:
        refused = error
    else:
        assert sum(info.nbytes for info in found.values()) == 64
        return
    assert one_line(refused)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 2**64 - 1), st.booleans())
def test_fuzzed_files(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, length: int, own: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.safetensors"
    path.write_bytes(struct.pack("<Q", len(data) if own else length) + data)
    with pytest.raises(CheckpointError) as refused:
        read_header(path)
    assert one_line(refused.value)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(SMALL)), JSON | st.integers(2**30, 2**70))
def test_fuzzed_configs(field: str, value: Any) -> None:
    with contextlib.suppress(ConfigError):
        assert read_config({**SMALL, field: value}).raw[field] is value


@settings(max_examples=60, deadline=2000)
@given(st.integers(0, 10**6), st.integers(0, 255))
def test_fuzzed_bytes(tmp_path_factory: pytest.TempPathFactory, place: int, byte: int) -> None:
    """One byte of a real file changed: read as before, or refused."""
    base = tmp_path_factory.getbasetemp()
    path = base / "byte.safetensors"
    real = base / "real.safetensors"
    if not real.is_file():
        mx.save_safetensors(str(real), {"a": mx.zeros((4, 4)), "b": mx.ones(3)})
    data = bytearray(real.read_bytes())
    data[place % len(data)] = byte
    path.write_bytes(data)
    try:
        found = read_header(path)
    except CheckpointError:
        return
    assert sum(info.nbytes for info in found.values()) == 76


def test_writer_is_read_by_others(tmp_path: Path) -> None:
    from safetensors import safe_open

    values = {
        "c": mx.arange(3, dtype=mx.uint8), "a": mx.random.normal((2, 3)).astype(mx.bfloat16),
        "b": mx.random.normal((5,)), "d": mx.zeros((0, 4)), "e": mx.array(7, dtype=mx.int64),
    }  # fmt: skip
    path = tmp_path / "file.safetensors"
    with TensorWriter(path, {k: (v.dtype, v.shape) for k, v in values.items()}) as writer:
        for name, value in values.items():
            writer.write(name, value)
        assert writer.size == path.stat().st_size
    assert same(tensors(path), values)
    with safe_open(path, framework="np") as file:
        assert np.array_equal(file.get_tensor("b"), np.array(values["b"]))
    assert all(info.begin % 2 == 0 for n, info in read_header(path).items() if n != "c")


def test_recipes_are_named_as_they_are_called() -> None:
    assert all(name == made.name for name, made in RECIPES.items())
