"""A checkpoint goes to the family of its model_type, and what that cannot do is refused by name."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moshi_mlx
from moshi_local.cli import main
from moshi_mlx import ConfigError, Moshi, MoshiError, VerbError, families
from moshi_mlx.checkpoint import open_checkpoint
from moshi_mlx.families.kinds import KINDS
from moshi_mlx.families.loaded import LoadedModel
from moshi_mlx.hub import bundled_folder
from moshi_mlx.published import PRESETS, read_config
from moshi_mlx.voices import Voice

NANO = bundled_folder("nano")
FIXTURES = Path(__file__).parents[1] / "fixtures"


def nano_as(folder: Path, **changes: Any) -> Path:
    """Nano's folder with another config.json; its files are links."""
    folder.mkdir()
    for path in NANO.iterdir():
        (folder / path.name).symlink_to(path)
    config = json.loads((NANO / "config.json").read_text(encoding="utf-8")) | changes
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def with_anna(folder: Path) -> Path:
    """Nano as a model that takes a persona, with one voice in its folder."""
    nano_as(folder, model_type="personaplex")
    (folder / "voices").mkdir()
    codes = np.random.default_rng(1).integers(0, 512, (8, 9), dtype=np.int32)
    Voice("ANNA", codes=codes).save(folder / "voices" / "ANNA.safetensors", consent="made up")
    return folder


def test_a_verb_that_a_model_cannot_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before its weights are read; in the program, one line and exit code 2."""
    folder = FIXTURES / "tts" / "plain"
    with pytest.raises(VerbError, match="it can speak, but not talk"):
        moshi_mlx.load(folder, verb="talk")
    for command in (
        ["run", str(NANO / "question.wav"), str(tmp_path / "out.wav"), "--model", str(folder)],
        ["bench", "--model", str(folder)],
    ):
        assert main(command) == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert "it can speak, but not talk" in line
    assert not (tmp_path / "out.wav").exists()
    model = moshi_mlx.load(folder, codec="mlx")
    assert model.verb == "speak"
    with pytest.raises(VerbError, match="can speak"):
        model.session()


def test_every_verb_of_a_dialogue_model_but_talking_is_refused() -> None:
    moshi = moshi_mlx.load("nano", codec="mlx")
    assert isinstance(moshi, Moshi)
    assert moshi.verb == "talk"
    for verb in ("transcribe", "speak", "translate", "complete"):
        with pytest.raises(
            VerbError, match=f"nano is a dialogue model: it can talk, but not {verb}"
        ):
            getattr(moshi, verb)("anything")


def test_an_unknown_model_type_is_named(tmp_path: Path) -> None:
    folder = nano_as(tmp_path / "model", model_type="llama")
    with pytest.raises(
        ConfigError, match=r"config\.json of .*: field 'model_type' is 'llama'; known are moshi, "
    ):
        moshi_mlx.load(folder)


def test_every_module_of_a_family_is_there() -> None:
    for kind in KINDS.values():
        assert issubclass(families._class_of(kind), LoadedModel)


@pytest.mark.parametrize(
    ("model_type", "n_q", "dep_q", "generated"),
    [("moshi", 16, 8, 8), ("moshi", 16, 16, 8), ("personaplex", 16, 16, 8), ("tts", 32, 32, 32),
     ("hibiki", 32, 16, 16), ("stt", 32, 0, 0)],
)  # fmt: skip
def test_generated_streams_are_the_familys(
    model_type: str, n_q: int, dep_q: int, generated: int
) -> None:
    raw = {**PRESETS["moshi"], "n_q": n_q, "dep_q": dep_q, "delays": [0] * (1 + n_q)}
    config = read_config({**raw, "model_type": model_type})
    assert families.generated_streams(config) == generated


def test_a_config_without_model_fields_is_the_preset_of_its_type() -> None:
    config = read_config({"model_type": "personaplex", "version": "7b-v1"})
    assert (config.model_type, config.lm.n_q, config.lm.dep_q) == ("personaplex", 16, 16)
    assert read_config({"version": "1"}).lm == read_config().lm


# ------------------------------------------------------------------------------ checkpoints


def test_a_weights_file_is_a_model(tmp_path: Path) -> None:
    """With what lies beside it; the library and the quantizer open it the same way."""
    checkpoint = open_checkpoint(NANO / "model.safetensors")
    assert checkpoint.config == open_checkpoint("nano").config
    assert checkpoint.nbytes == (NANO / "model.safetensors").stat().st_size - _header(NANO)
    with pytest.raises(MoshiError, match=r"none.safetensors"):
        open_checkpoint(tmp_path / "none.safetensors")


def _header(folder: Path) -> int:
    with (folder / "model.safetensors").open("rb") as file:
        return 8 + int.from_bytes(file.read(8), "little")


def test_files_of_different_models_do_not_go_together(tmp_path: Path) -> None:
    folder = nano_as(tmp_path / "model", card=1024)
    with pytest.raises(MoshiError, match="field 'card' is 1024"):
        open_checkpoint(folder)
    shutil.rmtree(folder)
    folder = nano_as(tmp_path / "model", text_card=100)
    with pytest.raises(MoshiError, match="has 512 tokens, the model knows 100"):
        open_checkpoint(folder)
