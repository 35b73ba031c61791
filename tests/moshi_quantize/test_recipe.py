"""Recipes layer by layer: which part a layer is of, what fits it, what is raised at which cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from moshi_mlx.files import read_json
from moshi_mlx.lm import Lm
from moshi_mlx.published import read_config
from moshi_quantize.recipe import (
    RECIPES,
    Layer,
    Precision,
    Recipe,
    RecipeError,
    layers_of,
    parse_precision,
    recipe,
)

FOUR, FIVE, EIGHT = Precision(4, 32), Precision(5, 64), Precision(8, 64)
LM = Path(__file__).parents[1] / "fixtures" / "lm"


def layer(name: str, shape: tuple[int, int] = (8, 128), part: Any = "temporal") -> Layer:
    return Layer(name, (name,), part, shape, 1)


@pytest.mark.parametrize(
    ("text", "group"), [("2", 32), ("3", 32), ("4", 32), ("5", 64), ("q6", 64), ("8", 64)]
)
def test_groups_where_none_is_asked_for(text: str, group: int) -> None:
    bits = int(text[-1])
    assert parse_precision(text) == Precision(bits, group)
    answer = {"bits": bits}
    rule = Recipe("mine", FOUR, predicate=lambda *_: answer)
    assert rule.assign([layer("a")]) == {"a": Precision(bits, group)}


def test_precisions_that_there_are_not() -> None:
    for wrong in [(7, 32, "affine"), (4, 16, "affine"), (1, 32, "affine"), (4, 64, "mxfp4"),
                  (8, 32, "mxfp4")]:  # fmt: skip
        with pytest.raises(RecipeError):
            Precision(*wrong)  # type: ignore[arg-type]
    assert [str(p) for p in (FOUR, Precision(4, 32, "mxfp4"))] == ["4:32", "mxfp4"]


def test_a_smaller_group_where_it_does_not_divide() -> None:
    wide = Precision(4, 128)
    assert [wide.fitting(inputs) for inputs in (256, 192, 160, 48)] == [
        wide, Precision(4, 64), Precision(4, 32), None,
    ]  # fmt: skip
    assert FOUR.fitting(48) is None
    assert Precision(4, 32, "mxfp4").fitting(48) is None


@pytest.mark.parametrize("precision", [FOUR, Precision(3, 64), Precision(8, 32, "mxfp8")], ids=str)
def test_the_header_is_written_before_the_weights_are_there(precision: Precision) -> None:
    """Types and shapes are known in advance; the values come back as near as the bits allow."""
    weight = mx.random.normal((3, 128), key=mx.random.key(0)).astype(mx.bfloat16)
    parts = precision.quantize(weight)
    specs = precision.specs(weight.shape, weight.dtype)
    assert {name: (part.dtype, part.shape) for name, part in parts.items()} == specs
    assert layer("a", (3, 128)).nbytes(precision) == sum(part.nbytes for part in parts.values())
    error = np.abs(np.array((precision.dequantize(parts) - weight).astype(mx.float32))).max()
    assert error < (1.0 if precision.bits < 8 else 0.2)


PARTS = {
    "condition_provider.conditioners.mood.output_proj": "conditions",
    "text_emb": "embeddings",
    "audio_embs.3": "embeddings",
    "depformer.slices.2.emb": "embeddings",
    "text_linear": "heads",
    "extra_heads.0": "heads",
    "depformer.slices.2.linear_out": "heads",
    "depformer.slices.2.linear_in": "depth",
    "depformer.slices.2.transformer.layers.0.gating.linear_out": "depth",
    "transformer.layers.0.gating.linear_out": "temporal",
}


def test_the_parts_of_models() -> None:
    """Of all layers of small models of several kinds; a head is one of the depth transformer."""
    found: dict[str, str] = {}
    for case in ("small-shared", "small-sum", "stt", "gqa-rope-concat"):
        config = read_config(read_json(LM / case / "config.json")).lm
        found |= {name: x.part for x in layers_of(Lm(config)) for name in x.names}
    assert found.items() >= PARTS.items()
    assert set(found.values()) == set(PARTS.values())


def test_the_last_rule_holds_and_the_predicate_has_the_last_word() -> None:
    layers = [layer("transformer.layers.0.a"), layer("depformer.b", part="depth")]
    rules = (("depth", EIGHT), ("*.a", EIGHT), ("*.a", FIVE), ("heads", EIGHT))
    assert Recipe("mine", FOUR, rules).assign(layers) == {
        "transformer.layers.0.a": FIVE,
        "depformer.b": EIGHT,
    }
    seen = []

    def predicate(name: str, x: Layer) -> bool:
        seen.append((name, x))
        return x.part == "depth"

    found = Recipe("mine", FOUR, rules, predicate=predicate).assign(layers)
    assert found == {"transformer.layers.0.a": None, "depformer.b": EIGHT}
    assert seen == [(x.name, x) for x in layers]
    assert Recipe("mine", FOUR, rules, predicate=predicate) == Recipe("mine", FOUR, rules)
    assert Recipe("mine", FOUR, rules).fixed(iter(layers)) == {
        layers[0].path: FIVE,
        layers[1].path: EIGHT,
    }
    other = [Layer("x", ("first", "second"), "depth", (8, 128), 2)]
    assert Recipe("mine", FOUR, (("sec*", EIGHT),)).assign(other) == {"x": EIGHT}


@pytest.mark.parametrize("answer", [{"group_size": 64}, {"bits": 4, "groups": 64}, "4", 1])
def test_answers_that_are_not_understood(answer: Any) -> None:
    with pytest.raises(RecipeError, match="'a' is "):
        Recipe("mine", FOUR, predicate=lambda *_: answer).assign([layer("a")])


def test_answers_that_say_all() -> None:
    answer = {"bits": 4, "group_size": 16, "mode": "nvfp4"}
    rule = Recipe("mine", FOUR, predicate=lambda *_: answer)
    assert rule.assign([layer("a")]) == {"a": Precision(4, 16, "nvfp4")}
    none: Recipe = Recipe("mine", None, predicate=lambda *_: True)
    assert none.assign([layer("a")]) == {"a": None}


def test_what_pays_most_is_raised_until_the_bytes_are_spent() -> None:
    """128 weights of 4 bits in groups of 32 are 80 bytes, of 5 in groups of 64 are 88."""
    names = ["depformer.slices.0.linear_in", "depformer.slices.1.linear_in", "text_emb", "other"]
    layers = [layer(name, (1, 128)) for name in names]
    first, second, later, other = names

    def raised(share: float) -> set[str]:
        found = Recipe("mine", FOUR, upgrade=share).assign(layers)
        assert set(found.values()) <= {FOUR, FIVE}
        return {name for name, precision in found.items() if precision == FIVE}

    assert raised(7.9 / 320) == set()
    assert raised(8 / 320) == {first}
    assert raised(16 / 320) == {first, second}
    assert raised(24 / 320) == {first, second, later}
    most = Recipe("mine", FOUR, upgrade=1.0).assign(layers)
    assert most == {first: EIGHT, second: EIGHT, later: EIGHT, other: FOUR}


def test_nothing_is_lowered_and_what_does_not_fit_stays() -> None:
    """The gating's two matrices are raised together; 48 inputs fit no group."""
    gating = "transformer.layers.0.gating"
    names = [f"{gating}.linear_in", f"{gating}.linear_out", "text_emb"]
    layers = [layer(names[0]), layer(names[1]), layer(names[2], (8, 48))]
    found = Recipe("mine", Precision(6, 64), upgrade=1.0).assign(layers)
    assert found == {names[0]: EIGHT, names[1]: EIGHT, names[2]: None}
    assert Recipe("mine", None, upgrade=1.0).assign(layers) == dict.fromkeys(names)
    ruled = Recipe("mine", FOUR, rules=(("text_emb", None),), upgrade=1.0)
    assert ruled.assign([layer("text_emb")]) == {"text_emb": None}


def test_the_recipes() -> None:
    """Published ones are read by others; `auto` and gptq need dialogue."""
    assert (RECIPES["q4"].default, RECIPES["q8"].default) == (FOUR, EIGHT)
    assert {name for name, r in RECIPES.items() if r.calibrated} == {
        "auto", "q4-gptq", "q4-mixed-gptq", "auto-gptq",
    }  # fmt: skip
    assert {name: r.target_bits for name, r in RECIPES.items() if r.target_bits} == {
        "auto": 4.5, "auto-gptq": 4.5,
    }  # fmt: skip
    assert {name for name, r in RECIPES.items() if r.method == "gptq"} == {
        "q4-gptq", "q4-mixed-gptq", "auto-gptq",
    }  # fmt: skip
    assert {name: r.upgrade for name, r in RECIPES.items() if r.upgrade} == dict.fromkeys(
        ("q4-mixed", "q6-mixed", "q4-mixed-gptq"), 0.1
    )
    three = RECIPES["q3-mixed"].assign([layer("a"), layer("b", part="depth")])
    assert three == {"a": Precision(3, 64), "b": Precision(4, 64)}
    assert recipe(RECIPES["q8"]) is recipe("q8")
    assert recipe(None) is RECIPES["none"]
    assert recipe("5:32") == Recipe("q5:32", Precision(5, 32))


def test_layers_of_one_kind() -> None:
    found = layer("depformer.slices.12.transformer.layers.3.linear_in").kind
    assert found == "depformer.slices.transformer.layers.linear_in"
    assert layer("audio_embs.7").kind == "audio_embs"
    assert layer("a", (3, 128)).size == 384
