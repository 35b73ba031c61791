"""moshi-quantize takes PersonaPlex in every layout; what no conversation uses is left out."""

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

import moshi_mlx
from moshi_mlx.checkpoint import open_checkpoint
from moshi_mlx.files import read_json
from moshi_mlx.published import PRESETS
from moshi_quantize import cli
from tests.fixtures import make_persona_folders as made


@pytest.fixture(autouse=True)
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the preset says, in small."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setitem(PRESETS, "personaplex", made.FIELDS)


def audio_logits(folder: Path) -> mx.array:
    moshi = moshi_mlx.load(folder, verb="talk", codec="mlx", dtype=mx.float32)
    codes = np.random.default_rng(0).integers(0, 500, (1, 17, 12), dtype=np.int32)
    return moshi.lm.forward(mx.array(codes)).audio_logits


def test_sets_for_the_other_side_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = made.published(tmp_path / "source"), tmp_path / "q8"
    (source / "voices").mkdir()
    (source / "voices" / "NATF0.pt").write_bytes(b"voice")
    (source / "voices.tgz").write_bytes(b"voices")
    assert cli.main([str(source), str(target), "--bits", "8", "--no-report"]) == 0
    said = capsys.readouterr().out
    sizes = {name: info.nbytes for name, info in open_checkpoint(source).tensors.items()}
    depth = sum(size for name, size in sizes.items() if name.startswith(("depformer.", "linears.")))
    assert "left out, since no conversation uses it: " in said
    config = read_json(target / "config.json")
    assert (config["dep_q"], config["n_q"], config["model_type"]) == (8, 16, "personaplex")
    left_out = float(said.split("uses it: ")[1].split(" MB")[0]) * 1e6
    assert 0.4 * depth < left_out < 0.7 * depth
    assert (target / "voices" / "NATF0.pt").read_bytes() == b"voice"
    assert (target / "voices.tgz").read_bytes() == b"voices"

    whole = tmp_path / "all"
    arguments = [str(source), str(whole), "--bits", "8", "--no-report", "--all-streams"]
    assert cli.main(arguments) == 0
    assert "left out" not in capsys.readouterr().out
    assert read_json(whole / "config.json")["dep_q"] == 16
    assert mx.array_equal(audio_logits(target), audio_logits(whole)).item()


def test_what_is_only_converted_keeps_everything(tmp_path: Path) -> None:
    for name, source in {
        "published": made.published(tmp_path / "published"),
        "parts": made.in_parts(tmp_path / "parts", 4),
        "bundle": made.bundle(tmp_path / "bundle", "model.x.safetensors", made.NAMES, 4, 32),
    }.items():
        target = tmp_path / f"{name} converted"
        arguments = [str(source), str(target), "--bits", "none", "--dtype", "keep"]
        assert cli.main(arguments) == 0
        assert read_json(target / "config.json")["dep_q"] == 16
        assert mx.array_equal(audio_logits(target), audio_logits(source)).item()
    assert (tmp_path / "parts converted" / "voices" / "NATF0.safetensors").is_file()


def test_a_report_compares_what_both_have(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = made.published(tmp_path / "source"), tmp_path / "q8"
    assert cli.main([str(source), str(target), "--bits", "8", "--no-report"]) == 0
    tokens = tmp_path / "tokens.npz"
    np.savez(tokens, codes=np.random.default_rng(0).integers(0, 500, (1, 17, 12)))
    assert cli.main(["report", str(source), str(target), "--dialogue", str(tokens)]) == 0
    assert "q8" in capsys.readouterr().out
