"""moshi-quantize's measuring and learning: small and exact."""

import itertools
import json
import signal
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import soundfile

from benchmarks.quantize_proofs import make_small
from moshi_local.machine.prediction import SMALL_RECIPE, small_shape
from moshi_mlx.checkpoint import Checkpoint, open_checkpoint
from moshi_mlx.conversation_bench import Axis
from moshi_mlx.errors import AudioFileError, CheckpointError
from moshi_mlx.lm import Lm
from moshi_mlx.text import known_sentences
from moshi_mlx.weights import load_lm
from moshi_quantize import Precision, cli, quantize, recipe
from moshi_quantize.behaving import Behaviours, behaviour_table
from moshi_quantize.dialogues import SHIPPED, find_dialogues, read_dialogues
from moshi_quantize.gptq import pack, quantize_for
from moshi_quantize.recipes import UPGRADES, Layer, layers_of
from moshi_quantize.report import sizes
from moshi_quantize.sensitivity import NARROW, Sensitivity, _probe, give_out, measure_sensitivity
from moshi_quantize.teacher import Logits, Teacher, distance

FRAMES = 10


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(make_small(tmp_path_factory.mktemp("quality") / "source"))


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    codes = np.random.default_rng(0).integers(0, 512, (2, 17, FRAMES)).astype(np.int16)
    path = tmp_path_factory.mktemp("tokens") / "tokens.npz"
    np.savez_compressed(path, codes=codes)
    return path


def test_layer_by_layer_is_the_whole_model(source: Checkpoint, tokens: Path) -> None:
    codes = mx.array(read_dialogues(tokens).calibration)
    lm = load_lm(source.files.weights, source.config.lm, dtype=mx.float32)
    out = lm.forward(codes)
    kept, streamed = Teacher(source), Teacher(source, in_memory=0)
    assert (kept.streams, streamed.streams) == (False, True)
    a, b = kept(codes), streamed(codes)
    assert [len(s) for s in a.streams] == [FRAMES] * 2 + [FRAMES - 1] * 7
    text = out.text_logits[0, 0] - mx.logsumexp(out.text_logits[0, 0], axis=-1, keepdims=True)
    assert mx.allclose(a.streams[0], text, atol=1e-5).item()
    for x, y in zip(a.streams, b.streams, strict=True):
        assert mx.array_equal(x, y).item()


def test_distance_by_hand() -> None:
    p, q = np.array([[0.5, 0.5], [0.9, 0.1]]), np.array([[0.25, 0.75], [0.9, 0.1]])
    a, b = (Logits([mx.array(np.log(v).astype(np.float32))] * 2) for v in (p, q))
    found = distance(a, b)
    kl = (0.5 * np.log(2) + 0.5 * np.log(2 / 3)) / 2
    assert np.allclose(found.kl, kl, atol=1e-6)
    assert np.isclose(found.frame_kl, 2 * kl, atol=1e-6)
    assert found.top1 == [0.5, 0.5]
    assert distance(a, a).frame_kl == 0


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_packing_is_mlxs(bits: int) -> None:
    values = np.random.default_rng(bits).integers(0, 2**bits, (4, 64)).astype(np.uint8)
    scales, biases = mx.full((4, 2), 0.5), mx.full((4, 2), -1.0)
    found = Precision(bits, 32).dequantize(
        {"weight": pack(values, bits), "scales": scales, "biases": biases}
    )
    assert np.array_equal(np.array(found), 0.5 * values - 1)


def test_gptq_is_nearer_on_its_inputs() -> None:
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((128, 128)) * np.linspace(0.05, 1, 128)
    x = mx.array((rng.standard_normal((400, 128)) @ mixing).astype(np.float32))
    w = mx.array(rng.standard_normal((32, 128)).astype(np.float32))
    precision = Precision(3, 32)

    def error(parts: dict[str, mx.array]) -> float:
        difference = x @ (precision.dequantize(parts) - w).T
        return float(np.square(np.array(difference)).mean())

    learned = quantize_for(w, x, precision, mx.float32)
    assert {k: v.shape for k, v in learned.items()} == {
        k: shape for k, (_, shape) in precision.specs((32, 128), mx.float32).items()
    }
    assert error(learned) < 0.8 * error(precision.quantize(w))


def test_bits_are_given_out_as_well_as_can_be() -> None:
    """Against all possibilities; the budget is kept, settled layers too."""
    layers = [Layer(n, (n,), "temporal", (32, 128 * i), 1) for i, n in enumerate("abc", 1)]
    choices = [Precision(b, 32) for b in (2, 3, 4, 8)]
    weight = {"a": 3.0, "b": 1.0, "c": 0.01}
    cost: Any = {n: {p: w * 4.0**-p.bits for p in choices} for n, w in weight.items()}
    sensitivity = Sensitivity(cost)
    for target in (3.5, 4.5, 6.0):
        chosen = give_out(sensitivity, layers, target)
        size = sum(layer.nbytes(chosen[layer.path]) for layer in layers)
        assert size <= target / 8 * sum(layer.size for layer in layers)
        total = sum(cost[n][p] for n, p in chosen.items() if p is not None)
        possible = [
            sum(cost[layer.path][p] for layer, p in zip(layers, ps, strict=True))
            for ps in itertools.product(choices, repeat=3)
            if sum(layer.nbytes(p) for layer, p in zip(layers, ps, strict=True)) <= size
        ]
        assert total == pytest.approx(min(possible))
    settled = give_out(sensitivity, layers, 4.5, {"c": Precision(2, 32)})
    assert settled["c"] == Precision(2, 32)


def test_sensitivity_costs_more_where_bits_are_fewer(source: Checkpoint, tokens: Path) -> None:
    layers = [layer for layer in layers_of(source.skeleton()) if layer.name == "text_linear"]
    costs = measure_sensitivity(source, layers, read_dialogues(tokens).calibration).cost[
        "text_linear"
    ]
    assert costs[Precision(2, 32)] > costs[Precision(4, 32)] > costs[Precision(8, 64)] > 0
    assert costs[None] == 0
    assert [_probe(inputs) for inputs in (96, 528, 264)] == [Precision(4, 32), NARROW, None]


def test_mixed_stays_in_its_budget(source: Checkpoint) -> None:
    layers = layers_of(source.skeleton())
    assert {kind for kind, _ in UPGRADES} <= {layer.kind for layer in layers}
    for how, base in {"q4-mixed": Precision(4, 32), "q6-mixed": Precision(6, 64)}.items():
        assignment = recipe(how).assign(layers)
        before, after = (
            sum(layer.nbytes(given[layer.path]) for layer in layers)
            for given in (dict.fromkeys(assignment, base), assignment)
        )
        assert 1.05 * before < after <= 1.1 * before


def test_learned_and_reported(
    source: Checkpoint, tokens: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = tmp_path / "gptq"
    result = quantize(source, "q4-gptq", made, dialogue=tokens)
    assert result.plan.quantization() == Precision(4, 32).block
    near = quantize(source, "q4", tmp_path / "q4")
    pictures, data = tmp_path / "plot.png", tmp_path / "report.json"
    with pytest.raises(SystemExit) as done:
        cli.app(
            [
                "report",
                *map(str, (source.folder, made, near.folder)),
                "--dialogue",
                str(tokens),
                "--plot",
                str(pictures),
                "--json",
                str(data),
            ]
        )
    assert done.value.code == 0
    assert "| gptq |" in capsys.readouterr().out
    assert pictures.stat().st_size > 10_000
    figures: Any = json.loads(data.read_text())["models"]
    assert [f["name"] for f in figures] == ["gptq", "q4"]
    learned, nearest = figures
    assert 0 < learned["frame_kl"] < nearest["frame_kl"]
    assert len(learned["kl"]) == len(learned["top1"]) == 9
    nbytes, bits, frame = sizes(open_checkpoint(made))
    assert nbytes == learned["nbytes"] == nearest["nbytes"]
    assert 5 <= bits < 5.1
    assert frame < nbytes


def test_quantized_keys_and_values_are_reported(
    source: Checkpoint, tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """The model beside itself: what differs is what the cache holds."""
    data = tmp_path / "report.json"
    base = ["report", source.folder, source.folder, "--dialogue", tokens]
    assert run([*base, "--kv-bits", 8, "--kv-bits", 4, "--json", data]) == 0
    assert "| source, KV 8 bits |" in capsys.readouterr().out
    eight, four = json.loads(data.read_text())["models"]
    assert (eight["kv_bits"], four["kv_bits"]) == (8, 4)
    assert 0 < eight["frame_kl"] < four["frame_kl"] / 10
    # 2 layers, context 100, 256 wide.
    assert eight["kv_bytes"] == 2 * 2 * 100 * 256 * 8.5 / 8
    assert run([*base, "--kv-bits", 5]) == 2
    assert "'5' is not 8 or 4" in capsys.readouterr().err


def test_tokens_that_are_none(source: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "tokens.npz"
    for content, message in [
        ({"codes": np.array([{}], dtype=object)}, "is not a file of dialogue tokens"),
        ({"other": np.zeros(3)}, "is not a file of dialogue tokens"),
        ({"codes": np.zeros((1, 9, 4), np.int16)}, "the model takes"),
        ({"codes": np.full((1, 17, 4), 600, np.int16)}, "has tokens that the model doesn't know"),
    ]:
        np.savez(path, **content)  # type: ignore[arg-type]
        with pytest.raises(CheckpointError, match=message):
            find_dialogues(source, path)
    path.write_bytes(b"PK nonsense")
    with pytest.raises(CheckpointError, match="is not a file of dialogue tokens"):
        find_dialogues(source, path)


def test_shipped_tokens_are_small_and_say_where_they_are_from() -> None:
    assert SHIPPED.stat().st_size < 300_000
    shipped = read_dialogues(SHIPPED)
    assert "flite" in shipped.origin
    assert shipped.calibration.shape[1:] == shipped.evaluation.shape[1:] == (17, 160)


def test_shipped_tokens_are_the_bundled_nanos() -> None:
    """After a change of codec or tokenizer, `recipes.nano.quantize_figures` makes new ones."""
    assert find_dialogues(open_checkpoint("nano")).origin == read_dialogues(SHIPPED).origin


def test_progress_reaches_the_end(source: Checkpoint, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    quantize(source, "q8", tmp_path / "made", progress=lambda d, t, _: seen.append((d, t)))
    done = [d for d, _ in seen]
    assert done == sorted(done)
    assert done[-1] == seen[-1][1] == seen[0][1]


def run(arguments: list[Any]) -> int:
    return cli.main([str(argument) for argument in arguments])


def test_rules_from_the_command_line(
    source: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = tmp_path / "rule.py"
    rule.write_text("def predicate(name, layer):\n    return 'audio_embs' not in name\n")
    base = [source.folder, tmp_path / "made", "--no-report"]
    more = ["--set", "heads=8", "--set", "depformer.*.linear_in=none", "--predicate", rule]
    assert run([*base, *more]) == 0
    block = json.loads((tmp_path / "made" / "config.json").read_text())["quantization"]
    assert block["text_linear"]["bits"] == 8
    assert block["depformer.slices.0.linear_in"] is block["audio_embs.15"] is False
    assert "transformer.layers.0.self_attn.in_proj" not in block


@pytest.mark.parametrize(
    ("rule", "message"),
    [("1 / 0", "ZeroDivisionError"), ("x = 1", "has no function"), (None, "No such file")],
)
def test_rules_that_are_broken(
    rule: str | None, message: str, source: Checkpoint, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    path = tmp_path / "rule.py"
    if rule is not None:
        path.write_text(rule)
    assert run([source.folder, tmp_path / "made", "--predicate", path]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_interrupted(
    source: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def stop(*_: Any, **__: Any) -> None:
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("moshi_quantize.api.write_rest", stop)
    assert run([source.folder, tmp_path / "made"]) == 143
    assert "interrupted; nothing was written" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_hears_a_recording(
    source: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model's answer to a recording of any rate becomes tokens to measure_sensitivity on."""
    recording, path = tmp_path / "noise.wav", tmp_path / "tokens.npz"
    noise = 0.1 * np.random.default_rng(0).standard_normal((16_000, 2))
    soundfile.write(recording, noise, 16_000)
    assert run(["hear", source.folder, recording, path]) == 0
    found = find_dialogues(source, path).evaluation
    assert found.shape == (1, 17, 12)  # a second is 12.5 frames; the first brings no answer
    assert np.array_equal(found, find_dialogues(source, recording).evaluation)
    with pytest.raises(AudioFileError, match=r"there is no file .*none\.wav"):
        find_dialogues(source, tmp_path / "none.wav")


def test_the_recipe_for_8_gb_has_the_size_that_is_promised() -> None:
    """The doctor knows it from the shapes alone, and may not import this program."""
    shape = small_shape("moshiko-bf16")
    assert shape is not None
    made = recipe(SMALL_RECIPE)
    lm = Lm(shape.config)
    layers = layers_of(lm)
    assignment = made.assign(layers)
    size = sum(layer.nbytes(assignment[layer.path]) for layer in layers)
    assert shape.needs.weights == pytest.approx(size, rel=0.001)
    assert {str(assignment[layer.path]) for layer in layers if layer.part == "temporal"} == {"3:64"}
    assert {str(assignment[layer.path]) for layer in layers if layer.part != "temporal"} == {"4:64"}
    assert shape.needs.total < 5_730_000_000 - (1 << 30)  # of a Mac with 8 GB


def test_conversations_tell_what_a_quantization_costs(tmp_path: Path) -> None:
    made = tmp_path / "q8"
    quantize(open_checkpoint("nano"), "q8", made)
    assert known_sentences(made / "tokenizer.model")  # what labels are read off comes along
    said: list[str] = []
    found = Behaviours(1, 0).of(["nano", str(made)], said.append)
    assert [line.split()[0] for line in said] == ["nano", str(made)]
    turns = [evaluation.figures[Axis.TURN] for evaluation in found]
    assert turns[0]["takeover"] == turns[1]["takeover"] == 1.0
    assert "| axis | figure |  | nano | q8 |" in behaviour_table(found)
