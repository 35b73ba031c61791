"""moshi-quantize, given what it cannot use: one line with the reason, before the work begins."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import soundfile

import moshi_quantize
from benchmarks.quantize_proofs import SMALL, make_small
from moshi_local import cli as local_cli
from moshi_mlx.checkpoint import open_checkpoint
from moshi_mlx.errors import HubError
from moshi_mlx.files import read_json
from moshi_mlx.lm import Lm
from moshi_mlx.published import read_config
from moshi_quantize import Precision, Recipe, RecipeError, cli, quantize
from moshi_quantize.dialogues import find_dialogues
from moshi_quantize.recipes import layers_of
from moshi_quantize.sensitivity import check_target

RATE = 24_000
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_small(tmp_path_factory.mktemp("faults") / "source")


def refused(arguments: list[Any], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that the program says on its way out with code 2."""
    assert cli.main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1, captured.err
    assert captured.out == ""
    return captured.err


# --------------------------------------------------------------------------------------- predicates


def asked(source: Path, tmp_path: Path, body: str, *more: str) -> tuple[int, dict[str, Any]]:
    """Quantizes as the predicate in a file says; the exit code and config.json's block."""
    rule = tmp_path / "rule.py"
    rule.write_text(body)
    made = tmp_path / "made"
    code = cli.main([str(source), str(made), "--no-report", "--predicate", str(rule), *more])
    found: dict[str, Any] = read_json(made / "config.json")["quantization"] if code == 0 else {}
    return code, found


THREE = """
import mlx.nn as nn
def predicate(path, module, config):
    if not hasattr(module, "to_quantized") or module.weight.shape[-1] % 64 or config["dim"] != 256:
        return False
    return {"bits": 8, "group_size": 64} if isinstance(module, nn.Embedding) else True
"""
TWO = THREE.replace(", config)", ")").replace('config["dim"] != 256', "module.part == 'heads'")
DEFAULT = "def predicate(name, layer, bits=8): return {'bits': bits} if 'emb' in name else True"


@pytest.mark.parametrize("body", [THREE, TWO, DEFAULT])
def test_predicates_are_called_as_mlx_lm_does(body: str, source: Path, tmp_path: Path) -> None:
    """With config.json as a third argument if they need one, and with the layer's own module."""
    code, block = asked(source, tmp_path, body)
    assert code == 0
    assert block["bits"] == 4
    assert block["text_emb"] == block["audio_embs.0"] == Precision(8, 64).block
    assert block.get("text_linear") == (False if body == TWO else None)
    assert "transformer.layers.0.self_attn.in_proj" not in block


def test_a_predicate_may_look_at_the_values(source: Path, tmp_path: Path) -> None:
    weight = open_checkpoint(source).weights()["text_linear.weight"]
    most = float(np.array(mx.max(weight.astype(mx.float32))))
    body = "def predicate(name, layer):\n"
    body += f"    return name == 'text_linear' and abs(float(layer.weight.max()) - {most}) < 1e-6"
    _, block = asked(source, tmp_path, body)
    assert block["text_emb"] is False
    assert "text_linear" not in block


def test_a_predicate_for_a_model_in_memory() -> None:
    lm = Lm(read_config(SMALL).lm)
    seen = []

    def predicate(path: str, module: Any, config: Any) -> bool:
        seen.append((path, config["transformer"]["dim"]))
        return isinstance(module, nn.Linear) and path == "text_linear"

    quantize(lm, Recipe("mine", Precision(8, 64), predicate=predicate))
    assert ("text_emb", 256) in seen
    assert isinstance(lm.text_linear, nn.QuantizedLinear)
    assert not isinstance(lm.text_emb, nn.QuantizedEmbedding)


def test_numpys_answers_are_understood(source: Path, tmp_path: Path) -> None:
    body = "import numpy as np\ndef predicate(name, layer):\n"
    body += (
        "    if name == 'text_linear': return {'bits': np.int64(8), 'group_size': np.int8(32)}\n"
    )
    body += "    return np.bool_(layer.part != 'heads')"
    _, block = asked(source, tmp_path, body)
    assert block["text_linear"] == Precision(8, 32).block
    assert block["depformer.slices.0.linear_out"] is False
    assert "text_emb" not in block


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("0", "answers 0 for 'text_emb': it must be True, False, or"),
        ("1", "answers 1 for"),
        ("'yes'", "answers 'yes' for"),
        ("[4]", "answers [4] for"),
        ("object()", "answers <object"),
        ("float('nan')", "answers nan for"),
        ("{}", "answers {} for 'text_emb': 'bits' is missing"),
        ("{'group_size': 64}", "'bits' is missing"),
        ("{'bits': None}", "'bits' is missing"),
        ("{'bits': 4, 'group': 64}", "'group' is not known"),
        ("{4: 64}", "4 is not known"),
        ("{'bits': 7}", "no precision of 7 bits in groups of 32: bits are 2, 3, 4, 5, 6, 8"),
        ("{'bits': 4, 'group_size': 10}", "no precision of 4 bits in groups of 10"),
        ("{'bits': 8, 'group_size': 64.0}", "group_size must be a whole number, is 64.0"),
        ("{'bits': 4.0}", "bits must be a whole number, is 4.0"),
        ("{'bits': '4'}", "bits must be a whole number, is '4'"),
        ("{'bits': True}", "bits must be a whole number, is True"),
        ("{'bits': [4]}", "bits must be a whole number, is [4]"),
        ("{'bits': 4, 'mode': 'fp4'}", "There is no mode 'fp4': it is one of affine, mxfp4"),
        ("{'bits': 4, 'mode': ['affine']}", "There is no mode ['affine']"),
        ("{'bits': 8, 'mode': 'mxfp4'}", "mxfp4 has 4 bits in groups of 32, not 8"),
        ("1 / 0", "failed for 'text_emb': ZeroDivisionError: division by zero"),
        ("__import__('sys').exit(3)", "failed for 'text_emb': SystemExit: 3"),
        ("predicate(name, layer)", "failed for 'text_emb': RecursionError"),
    ],
)
def test_odd_answers(
    answer: str, message: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rule = tmp_path / "rule.py"
    rule.write_text(f"def predicate(name, layer): return {answer}")
    said = refused([source, tmp_path / "made", "--predicate", rule], capsys)
    assert message in said
    assert f"predicate in {rule}" in said
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("def predicate(name): return True", "takes (name): it must take (name, layer), or"),
        ("def predicate(): return True", "takes ()"),
        ("def predicate(a, b, c, d): return True", "takes (a, b, c, d)"),
        ("def predicate(a, b, *, c): return True", "takes (a, b, *, c)"),
        ("async def predicate(a, b): return True", "answers <coroutine"),
        ("def predicate(a, b): yield True", "answers <generator"),
        ("import sys; sys.exit('no')", "SystemExit: no"),
        ("predicate = 3", "has no function 'predicate'"),
        ("predicate = (", "SyntaxError"),
    ],
)
def test_odd_predicates(
    body: str, message: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rule = tmp_path / "rule.py"
    rule.write_text(body)
    said = refused([source, tmp_path / "made", "--predicate", rule], capsys)
    assert message in said
    assert str(rule) in said


def test_a_predicate_that_is_no_file(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (tmp_path, tmp_path / "none.py"):
        said = refused([source, tmp_path / "made", "--predicate", path], capsys)
        assert f"'{path}': No such file" in said


def test_who_quantizes_nothing_is_told(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A predicate that lacks its `return`."""
    rule = tmp_path / "rule.py"
    rule.write_text("def predicate(name, layer): True")
    arguments = [str(source), str(tmp_path / "made"), "--no-report", "--predicate", str(rule)]
    assert cli.main(arguments) == 0
    assert "nothing is quantized" in capsys.readouterr().out


def test_auto_keeps_to_the_predicate(source: Path) -> None:
    """Its answers are settled, with a group that fits; what it leaves to the recipe is measured."""
    layers = layers_of(open_checkpoint(source).skeleton())
    mine = Recipe(
        "mine", Precision(4, 32), (("depth", Precision(8, 128)),), target_bits=5,
        predicate=lambda name, layer: layer.part != "heads" or {"bits": 8},
    )  # fmt: skip
    fixed = mine.fixed(layers)
    parts = {layer.path: layer.part for layer in layers}
    assert {parts[path] for path in fixed} == {"depth", "heads"}
    assert {str(given) for path, given in fixed.items() if parts[path] == "heads"} == {"8:64"}
    # 384 inputs behind the gate, which 128 divides; 128 and 256 elsewhere.
    assert {str(given) for path, given in fixed.items() if parts[path] == "depth"} == {"8:128"}


# ------------------------------------------------------------------------------------------ numbers


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--target-bits", "many"], "'--target-bits'"),
        (["--target-bits", "nan"], "target_bits must be a number above 0, is nan"),
        (["--target-bits", "inf"], "target_bits must be a number above 0, is inf"),
        (["--target-bits", "-4"], "target_bits must be a number above 0, is -4.0"),
        (["--target-bits", "0"], "target_bits must be a number above 0, is 0.0"),
        (["--target-bits", "2"], "2 bits per weight cannot be had for this model: give a target "
                                 "from 3.00 to 16.00"),
        (["--target-bits", "16.01"], "16.01 bits per weight cannot be had for this model"),
        (["--target-bits", "3.5", "--set", "heads=none"], "with what is set apart: give a target "
                                                          "from 3.99 to 16.00"),
        (["--bits", ""], "the argument after '--bits' is empty; give it a value, or leave it out"),
        (["--bits="], "There is no recipe ''"),
        (["--bits", "7"], "no precision of 7 bits in groups of 32"),
        (["--bits", "-4"], "There is no recipe '-4'"),
        (["--bits", "nan"], "There is no recipe 'nan'"),
        (["--bits", "4:" + "9" * 5000], "'4:9999999999...9999999999999' is not a precision"),
        (["--bits", "4", "--recipe", "q4"], "give --bits or --recipe, not both"),
        (["--dtype="], "'' is not one of bfloat16"),
        (["--set", "heads"], "'heads' is not WHAT=PRECISION"),
        (["--set", "=4"], "No layer is called ''"),
        (["--set", "foo=4"], "No layer is called 'foo': give temporal, depth, embeddings, heads or "
                             "a layer's name, as "),
        (["--upload", "moshi"], "'moshi' is not ORG/REPO"),
        (["--upload", "me/moshi", "--offline"], "not with --offline"),
        (["--dialogue="], "there is no such file of tokens"),
        (["--dialogue", "/nowhere.wav"], "/nowhere.wav: there is no such file of tokens"),
    ],
)  # fmt: skip
def test_options_out_of_range(
    options: list[str], message: str, source: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert message in refused([source, tmp_path / "made", *options], capsys)
    assert not list(tmp_path.iterdir())


def test_the_range_that_is_told_can_be_had(source: Path) -> None:
    layers = layers_of(open_checkpoint(source).skeleton())
    with pytest.raises(RecipeError, match=r"from 3\.00 to 16\.00"):
        check_target(layers, 2.99)
    for bits in (3.0, 16.0):
        check_target(layers, bits)


def test_recipes_from_a_program() -> None:
    good = Precision(4, 32)
    for make, message in [
        (lambda: Recipe("mine", "q4"), "'q4' is not a Precision"),  # type: ignore[arg-type]
        (lambda: Recipe("mine", good, (("heads", 8),)), "8 is not a Precision"),  # type: ignore[arg-type]
        (lambda: Recipe("mine", good, upgrade=float("nan")), "upgrade must be a number above 0"),
        (lambda: Recipe("mine", good, target_bits=True), "target_bits must be a number above 0"),
        (lambda: Recipe("mine", good, method="awq"), "method must be nearest or gptq, is 'awq'"),  # type: ignore[arg-type]
        (lambda: Recipe("mine", good, predicate="x"), "predicate must be a function, is 'x'"),  # type: ignore[arg-type]
        (lambda: Precision(4, 32, "fp4"), "There is no mode 'fp4'"),  # type: ignore[arg-type]
        (lambda: moshi_quantize.recipe(4), "4 is not a Recipe, or the name of one"),  # type: ignore[arg-type]
    ]:
        with pytest.raises(RecipeError) as error:
            make()
        assert message in str(error.value)


def test_a_name_is_both_function_and_never_a_module() -> None:
    """Whatever was imported first."""
    code = "import moshi_quantize.api, moshi_quantize as m; print(m.recipe('q4').default)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout == "4:32\n"


# --------------------------------------------------------------------------------- sound and tokens


def sound(path: Path, samples: Any) -> Path:
    soundfile.write(path, np.asarray(samples, np.float32), RATE, subtype="FLOAT")
    return path


NOISE = 0.1 * np.random.default_rng(0).standard_normal(RATE)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (NOISE[:0], "empty"),
        (np.zeros(RATE), "is silent"),
        (np.where(np.arange(RATE) == 9_000, np.nan, NOISE), "finite"),
        (np.where(np.arange(RATE) == 9_000, -np.inf, NOISE), "finite"),
        (NOISE[:100], "is too short to be answered: 0.00 s; give at least 0.24 s"),
    ],
)
def test_nothing_to_answer(
    samples: Any, message: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Heard, or learned from."""
    recording = sound(tmp_path / "odd.wav", samples)
    said = refused(["hear", source, recording, tmp_path / "tokens.npz"], capsys)
    assert message in said
    assert "odd.wav" in said
    learned = [source, tmp_path / "made", "--learned", "--dialogue", recording]
    assert message in refused(learned, capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["odd.wav"]


def test_the_shortest_recording_can_be_learned_from(source: Path, tmp_path: Path) -> None:
    recording, path = sound(tmp_path / "short.wav", NOISE[: 3 * RATE // 12 + 1]), tmp_path / "t.npz"
    assert cli.main(["hear", str(source), str(recording), str(path)]) == 0
    assert find_dialogues(open_checkpoint(source), path).calibration.shape[2] >= 2


def test_where_tokens_go(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They must be found again as tokens; looked at before the model is loaded."""
    recording = sound(tmp_path / "noise.wav", NOISE)
    for path, message in [
        (tmp_path / "tokens", "must end in .npz"),
        (tmp_path / "none" / "tokens.npz", "there is no folder"),
        (tmp_path, "must end in .npz"),
    ]:
        assert message in refused(["hear", source, recording, path], capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["noise.wav"]


CODES = np.random.default_rng(0).integers(0, 500, (2, 17, 10))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"codes": CODES[:0]}, "has tokens [0, 17, 10]"),
        ({"codes": CODES[:, :, :0]}, "has tokens"),
        ({"codes": CODES[:, :, :1]}, "has 1 frame, too few to predict"),
        ({"codes": np.full((2, 17, 10), -1)}, "has no token that the model would say"),
        ({"calibration": CODES * 0 - 1, "evaluation": CODES}, "has no token that the model would"),
        ({"evaluation": CODES}, "is not a file of dialogue tokens"),
        ({"codes": CODES.astype(np.float32)}, "codes are float32"),
        ({"codes": CODES + 2**40}, "codes are no numbers of tokens"),
        ({"codes": CODES.astype(np.uint64) + 2**63}, "codes are no numbers of tokens"),
        ({"codes": np.array(3)}, "the model takes [dialogues, 17, frames]"),
    ],
)  # fmt: skip
def test_no_data(
    arrays: dict[str, Any], message: str, source: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    tokens = tmp_path / "tokens.npz"
    np.savez(tokens, **arrays)
    for how in (["--learned"], ["--recipe", "auto"], []):
        said = refused([source, tmp_path / "made", "--dialogue", tokens, *how], capsys)
        assert message in said
        assert str(tokens) in said
    assert [path.name for path in tmp_path.iterdir()] == ["tokens.npz"]


def test_a_failure_leaves_no_folders(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "tokens.npz"
    np.savez(bad, codes=np.zeros((1, 3, 4), np.int16))
    refused([source, tmp_path / "new" / "made", "--dialogue", bad, "--recipe", "auto"], capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["tokens.npz"]


def test_one_dialogue_may_lack_its_first_axis(source: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "tokens.npz", codes=CODES[0])
    found = find_dialogues(open_checkpoint(source), tmp_path / "tokens.npz")
    assert np.array_equal(found.evaluation, CODES[:1])


def test_models_that_are_not_alike(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = make_small(tmp_path / "other", delays=[0] * 17)  # type: ignore[arg-type]
    np.savez(tmp_path / "t.npz", codes=CODES)
    said = refused(["report", source, other, "--dialogue", tmp_path / "t.npz"], capsys)
    assert "is not made from" in said
    assert "it has delays (0, 0, 0" in said
    plotted = ["report", source, source, "--plot", "plot.gif"]
    assert "must end in .png" in refused(plotted, capsys)


# --------------------------------------------------------------------------------- the command line


@pytest.mark.parametrize("name", ["report", "hear", "quantize"])
def test_a_source_called_like_a_command(
    name: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).symlink_to(source)
    for number, given in enumerate([[name], [f"./{name}"], ["quantize", name]]):
        assert cli.main([*given, f"made{number}", "--bits", "8", "--no-report"]) == 0
        assert (tmp_path / f"made{number}" / "model.safetensors").is_file()
    assert cli.main([name, "--help"]) == 0
    assert f"moshi-quantize {name}" in capsys.readouterr().out


def test_a_command_with_too_few_words_is_a_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where no model has its name."""
    monkeypatch.chdir(tmp_path)
    assert "Missing argument" in refused(["report", "made"], capsys)
    (tmp_path / "report").mkdir()
    assert "Missing argument" in refused(["report"], capsys)
    assert "Missing argument" in refused(["report", "made"], capsys)
    assert "No such option" in refused(["report", "a", "--no-report"], capsys)


def test_without_arguments_it_prints_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    assert "\nCommands:\n" in capsys.readouterr().out


def test_empty_names(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert "the argument after 'quantize' is empty" in refused(["", "made"], capsys)
    with pytest.raises(HubError, match="The model's name is empty"):
        quantize("", "q4", "made")
    for here in (".", tmp_path):
        assert "is the current folder; name a new one" in refused([source, here], capsys)
    assert not list(tmp_path.iterdir())


def test_options_may_come_first(source: Path, tmp_path: Path) -> None:
    assert cli.main(["--bits", "8", "--no-report", str(source), str(tmp_path / "made")]) == 0
    assert read_json(tmp_path / "made" / "config.json")["quantization"]["bits"] == 8


def test_tracebacks_have_no_box() -> None:
    assert cli.app.pretty_exceptions_enable is False


def started(place: Path, *arguments: str) -> tuple[int, str]:
    """`python -m moshi_quantize` where `place` is found first."""
    path = os.pathsep.join([str(place), str(ROOT), str(ROOT / "quantize")])
    done = subprocess.run(
        [sys.executable, "-m", "moshi_quantize", *arguments],
        env={**os.environ, "PYTHONPATH": path}, cwd=place, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("moshi_mlx/__init__.py", "__version__ = '0.3.0'", "No module named 'moshi_mlx."),
        ("mlx/core.py", "raise ImportError('libcuda.so.1: cannot open')", "libcuda.so.1"),
        ("rich/__init__.py", "raise KeyboardInterrupt", ""),
    ],
)
def test_what_is_missing_or_stops_an_import(
    file: str, content: str, message: str, tmp_path: Path
) -> None:
    """Another's moshi_mlx, no driver for MLX on CUDA, Ctrl-C: no traceback."""
    path = tmp_path / file
    path.parent.mkdir()
    (path.parent / "__init__.py").touch()
    path.write_text(content)
    code, errors = started(tmp_path, "--help")
    assert message in errors
    if message:
        assert code == 2
        assert errors.count("\n") == 1, errors
        assert "`python -m moshi_local` says why" in errors
    else:
        assert (code, errors) == (130, "")


# -------------------------------------------------------------------------------- moshi-local bench


@pytest.mark.parametrize(
    ("fields", "bits", "message"),
    [
        ({"dim": 240, "num_heads": 3}, 4, "field 'dim' 240 gives layers of 240 inputs, and 4 bits "
                                          "need a multiple of 32, as 224 and 256"),
        ({"dim": 224}, 8, "field 'dim' 224 gives layers of 224 inputs, and 8 bits need a multiple "
                          "of 64, as 192 and 256"),
        ({"dim": 8, "num_heads": 1}, 4, "a multiple of 32, as 32: change it, or use --bits 16"),
        ({"hidden_scale": 2.3}, 4, "field 'hidden_scale' 2.3 gives layers of 392 inputs"),
        ({"hidden_scale": 0.001}, 16, "field 'hidden_scale' gives a hidden layer of 0"),
        ({"depformer_dim": 120}, 4, "field 'depformer_dim' 120 gives"),
        ({"depformer_dim_feedforward": 500}, 4, "field 'depformer_dim_feedforward' 500 gives "
                                                "layers of 333 inputs"),
        ({"depformer_dim_feedforward": [576] * 7 + [500]}, 4, "gives layers of 333 inputs"),
        ({"depformer_low_rank_embeddings": 40}, 4, "field 'depformer_low_rank_embeddings' 40"),
        ({"num_heads": 7}, 4, "field 'num_heads'"),
    ],
)  # fmt: skip
def test_widths_that_no_group_divides(
    fields: dict[str, Any], bits: int, message: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    path = tmp_path / "odd.json"
    path.write_text(json.dumps({**SMALL, **fields}))
    arguments = ["bench", "--config", str(path), "--bits", str(bits), "--frames", "1"]
    assert local_cli.main(arguments) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert message in said
    assert str(path) in said
