"""Full-precision models from layout to layout."""

import json
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

import moshi_mlx
from moshi_mlx import ConfigError
from moshi_mlx.errors import CheckpointError
from moshi_mlx.safetensors import read_safetensors
from moshi_quantize import cli, relayout
from moshi_quantize.relayout import relayout as written

CASES = Path(__file__).parents[1] / "fixtures" / "transformers"


def tensors(folder: Path, pattern: str) -> dict[str, mx.array]:
    return read_safetensors(sorted(folder.glob(pattern)))


def assert_equal(ours: dict[str, mx.array], theirs: dict[str, mx.array]) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert ours[name].dtype == value.dtype, name
        assert mx.array_equal(ours[name], value).item(), name


@pytest.mark.parametrize("case", ["moshi", "moshi-4x"])
def test_what_is_written_is_what_transformers_has(case: str, tmp_path: Path) -> None:
    """Tensor for tensor, and every field of config.json that both have."""
    theirs = CASES / case / "transformers"
    made = written(CASES / case / "kyutai", tmp_path / "made", "transformers", dtype=None)
    ours = tensors(made, "model*.safetensors")
    for name, value in ours.items():
        if name.startswith("audio_encoder."):  # ours stays in float32
            ours[name] = value.astype(mx.bfloat16)
    assert_equal(ours, tensors(theirs, "model*.safetensors"))
    mine, other = (json.loads((f / "config.json").read_text()) for f in (made, theirs))
    for name in ("hidden_size", "ffn_dim", "num_codebooks", "sliding_window", "architectures"):
        assert mine[name] == other[name]
    assert mine["depth_decoder_config"]["ffn_dim"] == other["depth_decoder_config"]["ffn_dim"]


def test_there_and_back_is_equal_to_the_bit(tmp_path: Path) -> None:
    """Through all three layouts, codec and tokenizer included; and it still says the same."""
    start = CASES / "moshi" / "transformers"
    kyutai = written(start, tmp_path / "kyutai", "kyutai", dtype=None)
    assert cli.main([str(kyutai), str(tmp_path / "mlx"), "--bits", "none", "--dtype", "keep"]) == 0
    back = written(tmp_path / "mlx", tmp_path / "back", "transformers", dtype=None)
    assert_equal(tensors(back, "model*.safetensors"), tensors(start, "model*.safetensors"))
    logits, sounds = [], []
    codes = mx.array(np.random.default_rng(0).integers(0, 20, (1, 7, 12)))
    for folder in (start, kyutai, tmp_path / "mlx", back):
        model = moshi_mlx.load(folder, verb="talk", codec="mlx", dtype=mx.float32)
        logits.append(np.array(model.lm.forward(codes).text_logits))
        with model.session(seed=1) as session:
            sounds.append(session.step(np.full(1920, 0.1, np.float32)).pcm)
        assert model.text.encode("hello  there") == moshi_mlx.load(start).text.encode(
            "hello  there"
        )
    for other in logits[1:]:
        assert np.array_equal(logits[0], other)
    for sound in sounds[1:]:
        assert np.allclose(sounds[0], sound, atol=1e-5)


def test_large_models_are_split_and_indexed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relayout, "LARGEST_SHARD", 100_000)
    made = written(CASES / "moshi" / "kyutai", tmp_path / "made", "transformers")
    files = sorted(path.name for path in made.glob("*.safetensors"))
    assert len(files) > 2
    assert files[0].startswith("model-00001-of-0000")
    index = json.loads((made / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(files)
    moshi_mlx.load(made, verb="talk", codec="mlx")


def test_what_the_layout_cannot_say_is_named(tmp_path: Path) -> None:
    target = tmp_path / "target"
    quantized = tmp_path / "q8"
    assert cli.main(["nano", str(quantized), "--bits", "8", "--no-report"]) == 0
    with pytest.raises(CheckpointError, match="is quantized, and the layout kyutai has full"):
        written(quantized, target, "kyutai")
    case = tmp_path / "case"
    shutil.copytree(CASES / "moshi" / "kyutai", case)
    config = json.loads((case / "config.json").read_text())
    config["delays"] = [0] * len(config["delays"])
    (case / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="delays"):
        written(case, target, "transformers")
    assert not target.exists()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--layout", "gguf"], "'gguf' is not mlx, kyutai or transformers"),
        (["--layout", "kyutai", "--bits", "4"], "--bits goes with --layout mlx"),
        (["--layout", "transformers", "--learned"], "--learned goes with --layout mlx"),
    ],
)
def test_options_that_do_not_go_together(
    arguments: list[str], problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["nano", str(tmp_path / "x"), *arguments]) == 2
    assert problem in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
