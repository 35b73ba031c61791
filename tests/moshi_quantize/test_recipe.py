"""What a recipe decides, by hand: precisions, layers, rules, upgrades; and what a plan makes of it.

No model is run.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from benchmarks.quantize_proofs import SMALL
from moshi_mlx.checkpoint import open_checkpoint
from moshi_mlx.errors import CheckpointError
from moshi_mlx.files import read_json
from moshi_mlx.lm import Lm
from moshi_mlx.published import read_config
from moshi_quantize import RECIPES, Layer, Precision, Recipe, RecipeError, recipe
from moshi_quantize.convert import make_plan
from moshi_quantize.recipes import UPGRADES, Assignment, layers_of, parse_precision
from moshi_quantize.sensitivity import check_target
from moshi_quantize.writer import TensorWriter

FIXTURES = Path(__file__).parents[1] / "fixtures" / "lm"
FOUR, FIVE, SIX, EIGHT = (Precision(4, 32), Precision(5, 64), Precision(6, 64), Precision(8, 64))
MXFP4, MXFP8, NVFP4 = (
    Precision(4, 32, "mxfp4"), Precision(8, 32, "mxfp8"), Precision(4, 16, "nvfp4"),
)  # fmt: skip


def layer(name: str, part: Any = "temporal", shape: tuple[int, int] = (64, 64)) -> Layer:
    return Layer(name, (name,), part, shape, 1)


# ----------------------------------------------------------------------------------- precisions


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("group", [32, 64, 128])
def test_affine_precisions(bits: int, group: int) -> None:
    """Names, sizes and values, as MLX has them."""
    made = Precision(bits, group)
    assert str(made) == f"{bits}:{group}"
    assert made.bits_per_weight == bits + {32: 1.0, 64: 0.5, 128: 0.25}[group]
    assert made.block == {"group_size": group, "bits": bits, "mode": "affine"}
    weight = mx.random.normal((3, 256), key=mx.random.key(0)).astype(mx.float16)
    parts = made.quantize(weight)
    specs = made.specs(weight.shape, mx.float16)
    assert specs == {
        "weight": (mx.uint32, (3, 8 * bits)),
        "scales": (mx.float16, (3, 256 // group)),
        "biases": (mx.float16, (3, 256 // group)),
    }
    assert {k: (v.dtype, v.shape) for k, v in parts.items()} == specs
    packed, scales, biases = mx.quantize(weight, group_size=group, bits=bits)
    assert mx.array_equal(parts["weight"], packed).item()
    there = mx.dequantize(packed, scales, biases, group_size=group, bits=bits)
    assert mx.array_equal(made.dequantize(parts), there).item()
    assert layer("a", shape=(3, 256)).nbytes(made) == 3 * 32 * bits + 2 * 2 * 3 * 256 // group


@pytest.mark.parametrize(
    ("made", "per_weight"), [(MXFP4, 4.25), (MXFP8, 8.25), (NVFP4, 4.5)], ids=str
)
def test_floating_point_precisions(made: Precision, per_weight: float) -> None:
    assert str(made) == made.mode
    assert made.bits_per_weight == per_weight
    assert made.block == {"group_size": made.group_size, "bits": made.bits, "mode": made.mode}
    weight = mx.random.normal((3, 64), key=mx.random.key(0))
    parts = made.quantize(weight)
    specs = made.specs(weight.shape, mx.float32)
    assert specs == {
        "weight": (mx.uint32, (3, 2 * made.bits)), "scales": (mx.uint8, (3, 64 // made.group_size))
    }  # fmt: skip
    assert {k: (v.dtype, v.shape) for k, v in parts.items()} == specs
    error = np.array(made.dequantize(parts) - weight)
    assert 0 < np.abs(error).max() < 0.8
    assert layer("a", shape=(3, 64)).nbytes(made) == 3 * 64 * per_weight / 8


def test_precisions_that_there_are_not() -> None:
    for bits in (0, 1, 7, 9, 16):
        with pytest.raises(RecipeError, match=f"of {bits} bits in groups of 64: bits are 2, 3, 4"):
            Precision(bits, 64)
    for group in (0, 16, 31, 33, 96, 256):
        with pytest.raises(RecipeError, match=f"groups of {group}: .*, groups 32, 64, 128"):
            Precision(4, group)
    for mode, bits, group in (("mxfp4", 4, 64), ("mxfp8", 4, 32), ("nvfp4", 4, 32)):
        with pytest.raises(RecipeError, match=f"^{mode} has . bits in groups of ..?, not {bits}"):
            Precision(bits, group, mode)  # type: ignore[arg-type]


def test_sizes_of_specs_are_whole_numbers() -> None:
    for made in (FOUR, NVFP4):
        for _, shape in made.specs((2, 64), mx.float16).values():
            assert {type(size) for size in shape} == {int}


def test_a_precision_has_types() -> None:
    for bits, group, mode, message in [
        (4.0, 32, "affine", "^bits must be a whole number, is 4.0"),
        (True, 32, "affine", "^bits must be a whole number, is True"),
        (4, 32.0, "affine", "^group_size must be a whole number, is 32.0"),
        (4, 32, "fp4", "^There is no mode 'fp4': it is one of affine, mxfp4, mxfp8, nvfp4"),
        (4, 32, ["affine"], "^There is no mode .'affine'.: it is one of affine"),
    ]:
        with pytest.raises(RecipeError, match=message):
            Precision(bits, group, mode)  # type: ignore[arg-type]


def test_a_group_fits_or_a_smaller_one() -> None:
    assert Precision(4, 64).fitting(128) is not None
    for made, inputs, group in [
        (FOUR, 32, 32), (FOUR, 96, 32), (FOUR, 48, None), (EIGHT, 64, 64), (EIGHT, 32, 32),
        (EIGHT, 96, 32), (EIGHT, 528, None), (Precision(3, 128), 192, 64),
        (Precision(3, 128), 96, 32), (Precision(3, 128), 256, 128), (NVFP4, 528, 16),
        (NVFP4, 264, None), (MXFP4, 48, None), (MXFP8, 96, 32),
    ]:  # fmt: skip
        fitting = made.fitting(inputs)
        if group is None:
            assert fitting is None
        else:
            assert fitting == Precision(made.bits, group, made.mode)


def test_precisions_by_their_texts() -> None:
    for text, made in {
        "2": Precision(2, 32), "3": Precision(3, 32), "4": FOUR, "5": FIVE, "6": SIX, "8": EIGHT,
        "q8": EIGHT, "q4:64": Precision(4, 64), "8:32": Precision(8, 32),
        "2:128": Precision(2, 128), "mxfp4": MXFP4, "mxfp8": MXFP8, "nvfp4": NVFP4, "none": None,
    }.items():  # fmt: skip
        assert parse_precision(text) == made
    for text in ("44", "q", "Q4", " 4", "4 ", "4:", "4:64:1", "4:12345", ":64", "fp4", "４", "qq4"):
        with pytest.raises(RecipeError, match=r"is not a precision: give bits .2, 3, 4, 5, 6, 8.,"):
            parse_precision(text)
    for text in ("1", "7", "9", "4:9999", "q4:16"):
        with pytest.raises(RecipeError, match="There is no precision of"):
            parse_precision(text)


# --------------------------------------------------------------------------------------- layers


def test_a_layer_counts_its_weights() -> None:
    one = layer("transformer.layers.10.gating.linear_in", shape=(3, 64))
    assert (one.name, one.size) == ("transformer.layers.10.gating.linear_in", 192)
    assert one.kind == "transformer.layers.gating.linear_in"
    assert layer("depformer.slices.0.transformer.layers.1.norm1").kind.endswith("layers.norm1")
    assert one.nbytes(None) == 384
    assert one.nbytes(None, mx.float32) == 768
    assert one.nbytes(EIGHT, mx.float32) == 192 + 3 * 2 * 4


@pytest.fixture(scope="module")
def lm() -> Lm:
    return Lm(read_config(SMALL).lm)


def test_layers_of_a_model(lm: Lm) -> None:
    """All Linear and Embedding layers, no norm, each in its part."""
    layers = layers_of(lm)
    parts = {one.name: one.part for one in layers}
    counts = {part: list(parts.values()).count(part) for part in parts.values()}
    # Attention and feed-forward have two matrices each; 16 + 1 and 1 + 7 tables; 8 + 1 heads.
    depth = 8 * 2 * 4 + 8
    assert counts == {"temporal": 2 * 4, "depth": depth, "embeddings": 17 + 8, "heads": 9}
    for name, part in {
        "text_emb": "embeddings", "audio_embs.15": "embeddings", "text_linear": "heads",
        "depformer.slices.3.emb": "embeddings", "depformer.slices.7.linear_out": "heads",
        "depformer.slices.0.linear_in": "depth",
        "depformer.slices.0.transformer.layers.1.gating.linear_out": "depth",
        "transformer.layers.1.gating.linear_out": "temporal",
    }.items():  # fmt: skip
        assert parts[name] == part
    table = next(one for one in layers if one.name == "text_emb")
    assert (table.path, table.shape, table.uses) == ("text_emb", (513, 256), 1)
    assert table.module is lm.text_emb
    assert {type(one.module) for one in layers} >= {nn.Linear}


def test_the_library_of_parts_is_complete() -> None:
    """Names that only some families have."""
    fields = {**SMALL, "extra_heads_num_heads": 2, "extra_heads_dim": 6}
    names = {one.name: one.part for one in layers_of(Lm(read_config(fields).lm))}
    assert names["extra_heads.1"] == "heads"


def test_conditioners_are_a_part_of_their_own() -> None:
    config = read_config(read_json(FIXTURES / "small-sum" / "config.json")).lm
    parts = {one.name: one.part for one in layers_of(Lm(config))}
    found = {part for name, part in parts.items() if name.startswith("condition_provider.")}
    assert found == {"conditions"}


def test_what_is_compared_and_shown() -> None:
    """Two readings of a model give the same layers, and a predicate is no part of a recipe."""
    a, b = (Layer("p", ("n",), "heads", (8, 64), 1, nn.Linear(64, 8)) for _ in range(2))
    assert a == b
    assert "module" not in repr(a)
    assert Recipe("mine", FOUR, predicate=lambda *_: True) == Recipe("mine", FOUR)


# ---------------------------------------------------------------------------------------- rules


def test_the_last_rule_that_fits_holds() -> None:
    layers = [
        layer("text_emb", "embeddings"), layer("transformer.layers.0.a"),
        Layer("x", ("depformer.slices.0.b", "depformer.slices.1.b"), "depth", (8, 96), 2),
    ]  # fmt: skip
    made = Recipe("mine", FOUR, (
        ("embeddings", EIGHT), ("*emb", None), ("transformer.*", SIX), ("heads", EIGHT),
        ("depformer.slices.1.b", EIGHT),
    ))  # fmt: skip
    assert made.fixed(layers) == {
        "text_emb": None, "transformer.layers.0.a": SIX, "x": Precision(8, 32)
    }  # fmt: skip
    assert made.assign(layers) == made.fixed(layers)
    assert made.fixed(iter(layers)) == made.fixed(layers)
    assert Recipe("mine", FOUR).fixed(layers) == {}
    assert Recipe("mine", FOUR).assign(layers) == dict.fromkeys([x.path for x in layers], FOUR)
    assert Recipe("mine", None).assign(layers) == dict.fromkeys([x.path for x in layers])
    assert Recipe("mine", FOUR).assign([layer("odd", shape=(8, 264))]) == {"odd": None}
    with pytest.raises(RecipeError, match=r"^No layer is called 'TEXT_EMB': give temporal, depth"):
        Recipe("mine", FOUR, (("TEXT_EMB", None),)).assign(layers)


def test_a_predicate_is_asked_after_the_rules() -> None:
    layers = [layer("a", "heads"), layer("b"), layer("c", shape=(8, 96)), layer("d")]
    answers = {"a": True, "b": False, "c": {"bits": 8}, "d": NVFP4}
    seen: list[tuple[str, Any, Any]] = []

    def predicate(name: str, module: Any, config: Any) -> Any:
        seen.append((name, module.part, config))
        return answers[name]

    made = Recipe("mine", FOUR, (("heads", SIX),), predicate=predicate)
    config = {"dim": 8}
    found = made.assign(layers, config)
    assert found == {"a": SIX, "b": None, "c": Precision(8, 32), "d": NVFP4}
    assert seen == [(one.name, one.part, config) for one in layers]
    assert made.fixed(layers) == found
    assert seen[4][2] == {}
    upgraded = Recipe("mine", FOUR, upgrade=1.0, predicate=lambda *_: True)
    assert upgraded.assign([layer("text_emb", "embeddings")]) == {"text_emb": EIGHT}


def test_a_predicate_is_shown_the_module() -> None:
    linear = nn.Linear(64, 8, bias=False)
    one = Layer("p", ("n", "m"), "heads", (8, 64), 3, linear)
    shown: list[Any] = []

    def predicate(name: str, module: Any) -> bool:
        shown.append(module)
        return True

    Recipe("mine", FOUR, predicate=predicate).assign([one])
    (module,) = shown
    assert isinstance(module, nn.Linear)
    assert module.weight is linear.weight
    assert (module.name, module.names, module.path, module.part) == ("n", ("n", "m"), "p", "heads")
    assert (module.kind, module.shape, module.size, module.uses) == ("n", (8, 64), 512, 3)
    assert module.parameters().keys() == {"weight"}
    assert not hasattr(linear, "part")


@pytest.mark.parametrize(
    ("answer", "meant"),
    [
        ({"bits": 2}, Precision(2, 32)), ({"bits": 3}, Precision(3, 32)), ({"bits": 4}, FOUR),
        ({"bits": 5}, FIVE), ({"bits": 6}, SIX), ({"bits": 8}, EIGHT),
        ({"bits": 8, "group_size": 32}, Precision(8, 32)),
        ({"bits": 4, "mode": "affine"}, FOUR), ({"mode": "mxfp4"}, MXFP4),
        ({"mode": "mxfp8"}, MXFP8), ({"mode": "nvfp4"}, NVFP4),
        ({"bits": 4, "mode": "nvfp4", "group_size": 16}, NVFP4), (np.False_, None), (None, None),
        (np.True_, SIX), (True, SIX),
    ],
)  # fmt: skip
def test_what_answers_mean(answer: Any, meant: Precision | None) -> None:
    made = Recipe("mine", SIX, predicate=lambda *_: answer)
    assert made.assign([layer("a")]) == {"a": meant}


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (4, "answers 4 for 'a': it must be True, False, or"),
        ([True], "answers [True] for 'a': it must be"),
        ({}, "'bits' is missing; it must be"),
        ({"bits": None, "mode": "affine"}, "'bits' is missing"),
        ({"bits": 4, "group": 64}, "'group' is not known; it must be"),
        ({"bits": 7}, "There is no precision of 7 bits in groups of 32:"),
        ({"bits": 4.5}, "bits must be a whole number, is 4.5"),
        ({"bits": [4]}, "bits must be a whole number, is [4]"),
        ({"bits": 4, "mode": ["affine"]}, "There is no mode ['affine']"),
    ],
)
def test_answers_that_mean_nothing(answer: Any, message: str) -> None:
    with pytest.raises(RecipeError) as error:
        Recipe("mine", FOUR, predicate=lambda *_: answer).assign([layer("a")])
    assert str(error.value).startswith(f"The predicate in {__file__} answers ")
    assert message in str(error.value)


@pytest.mark.filterwarnings("error")
def test_a_predicate_that_should_be_awaited() -> None:
    async def predicate(name: str, module: Any) -> bool:
        return True

    with pytest.raises(RecipeError, match="answers <coroutine"):
        Recipe("mine", FOUR, predicate=predicate).assign([layer("a")])  # type: ignore[arg-type]


def test_numpys_numbers_become_pythons() -> None:
    answer = {"bits": np.int64(8), "group_size": np.int8(32)}
    found = Recipe("mine", FOUR, predicate=lambda *_: answer).assign([layer("a")])["a"]
    assert found is not None
    assert {type(number) for number in (found.bits, found.group_size)} == {int}


def test_who_has_no_signature_is_given_two() -> None:
    """Some functions written in C."""
    with pytest.raises(RecipeError, match=r"^The predicate failed for 'a': TypeError: '>' not"):
        Recipe("mine", FOUR, predicate=max).assign([layer("a")])


# ------------------------------------------------------------------------------------- upgrades

# Bytes of 64 × 64 weights: 2560 in 4:32, then 256 more, 512 and 1024 to 5:64, 6:64 and 8:64.
IN, EMB, OTHER = (
    layer("depformer.slices.0.linear_in", "depth"), layer("text_emb", "embeddings"),
    layer("something.else"),
)  # fmt: skip
HEAD = layer("text_linear", "heads")


def upgraded(layers: list[Layer], budget: float, base: Precision = FOUR) -> list[str]:
    """The precisions that so many bytes more buy."""
    before = Recipe("mine", base).assign(layers)
    size = sum(one.nbytes(before[one.path]) for one in layers)
    after = Recipe("mine", base, upgrade=budget / size).assign(layers)
    return [str(after[one.path]) for one in layers]


def test_upgrades_go_in_order_as_far_as_the_bytes_reach() -> None:
    layers = [HEAD, OTHER, EMB, IN]
    four = "4:32"
    for budget, found in {
        255.9: [four, four, four, four],
        256: [four, four, four, "5:64"],
        511.9: [four, four, four, "5:64"],
        512: [four, four, "5:64", "5:64"],
        768: ["5:64", four, "5:64", "5:64"],  # the next in order costs more than is left
        1024: [four, four, "5:64", "6:64"],
        1280: ["5:64", four, "5:64", "6:64"],
        2304: ["5:64", four, "5:64", "8:64"],
        1e6: ["8:64", four, "8:64", "8:64"],
    }.items():
        assert upgraded(layers, budget) == found, budget


def test_upgrades_raise_only() -> None:
    assert upgraded([IN, EMB], 1e6, EIGHT) == ["8:64", "8:64"]
    assert upgraded([IN, EMB], 1023, SIX) == ["6:64", "6:64"]
    assert upgraded([IN, EMB], 1025, SIX) == ["8:64", "6:64"]
    assert upgraded([IN], 500, FIVE) == ["5:64"]
    assert upgraded([IN], 513, FIVE) == ["6:64"]
    assert upgraded([IN], 100, Precision(5, 32)) == ["5:32"]


def test_upgrades_fit() -> None:
    """A smaller group, or not at all where no group divides."""
    narrow = layer(IN.name, "depth", (64, 96))
    assert upgraded([narrow], 1e6) == ["8:32"]
    odd = layer("depformer.slices.1.linear_in", "depth", (64, 264))
    assert upgraded([odd, IN, EMB], 513) == ["None", "5:64", "5:64"]
    half = layer(IN.name, "depth", (64, 48))
    assert upgraded([half, EMB], 1e6, NVFP4) == ["nvfp4", "8:64"]


def test_no_upgrades_without_a_base() -> None:
    assert Recipe("mine", None, upgrade=1.0).assign([EMB]) == {"text_emb": None}


def test_both_matrices_of_a_gate_are_raised() -> None:
    for stack in ("transformer.layers", "depformer.slices.0.transformer.layers"):
        both = [layer(f"{stack}.0.gating.{name}") for name in ("linear_in", "linear_out")]
        assert upgraded(both, 511) == ["5:64", "4:32"]
        assert upgraded(both, 513) == ["5:64", "5:64"]


def test_the_order_in_which_upgrades_pay() -> None:
    short = {
        "depformer.slices.linear_in": "depth in", "depformer.slices.linear_out": "depth out",
        "transformer.layers.self_attn.in_proj": "in", "text_emb": "text", "text_linear": "head",
        "transformer.layers.self_attn.out_proj": "out", "audio_embs": "audio",
        "transformer.layers.gating.linear_in": "gate",
        "depformer.slices.transformer.layers.self_attn.in_proj": "slice in",
        "depformer.slices.transformer.layers.self_attn.out_proj": "slice out",
        "depformer.slices.transformer.layers.gating.linear_in": "slice gate",
    }  # fmt: skip
    assert [f"{short[kind]} {better}" for kind, better in UPGRADES] == [
        "depth in 5:64", "out 5:64", "in 5:64", "depth out 5:64", "gate 5:64", "text 5:64",
        "depth in 6:64", "head 5:64", "out 6:64", "slice out 5:64", "audio 5:64", "in 6:64",
        "depth out 6:64", "slice in 5:64", "slice gate 5:64", "gate 6:64", "depth in 8:64",
        "out 8:64", "in 8:64", "depth out 8:64", "gate 8:64", "text 8:64", "slice out 8:64",
        "head 8:64",
    ]  # fmt: skip


# -------------------------------------------------------------------------------------- recipes


def test_recipes_by_name() -> None:
    told = {
        name: (str(made.default), made.rules, made.upgrade, made.target_bits, made.method)
        for name, made in RECIPES.items()
    }
    near, gptq = "nearest", "gptq"
    assert told == {
        "q4": ("4:32", (), None, None, near), "q8": ("8:64", (), None, None, near),
        "q4-mixed": ("4:32", (), 0.1, None, near),
        "q3-mixed": ("4:64", (("temporal", Precision(3, 64)),), None, None, near),
        "q6-mixed": ("6:64", (), 0.1, None, near), "mxfp4": ("mxfp4", (), None, None, near),
        "mxfp8": ("mxfp8", (), None, None, near), "nvfp4": ("nvfp4", (), None, None, near),
        "auto": ("4:32", (), None, 4.5, near), "q4-gptq": ("4:32", (), None, None, gptq),
        "q4-mixed-gptq": ("4:32", (), 0.1, None, gptq),
        "auto-gptq": ("4:32", (), None, 4.5, gptq), "none": ("None", (), None, None, near),
    }  # fmt: skip
    calibrated = {name for name, made in RECIPES.items() if made.calibrated}
    assert calibrated == {"auto", "q4-gptq", "q4-mixed-gptq", "auto-gptq"}
    assert {name for name, made in RECIPES.items() if not made.quantizes} == {"none"}


def test_what_may_change_a_layer() -> None:
    assert not Recipe("mine", None, (("heads", None),)).quantizes
    assert Recipe("mine", None, (("heads", None), ("depth", EIGHT))).quantizes
    assert Recipe("mine", None, predicate=lambda *_: False).quantizes
    assert Recipe("mine", None, target_bits=4).quantizes


def test_finding_a_recipe() -> None:
    mine = Recipe("mine", None)
    assert recipe(mine) is mine
    assert recipe(None) is recipe("none") is RECIPES["none"]
    assert recipe("q4-mixed") is RECIPES["q4-mixed"]
    for text, name in {"4": "q4:32", "q6": "q6:64", "3:64": "q3:64"}.items():
        assert (recipe(text).name, str(recipe(text).default)) == (name, name[1:])
    with pytest.raises(
        RecipeError, match=r"^There is no recipe 'best': it is one of q4, q8, .*none"
    ):
        recipe("best")
    with pytest.raises(RecipeError, match=r"^There is no precision of 7"):
        recipe("q7")
    for odd in (4, ["q4"]):
        with pytest.raises(RecipeError, match=r"^.* is not a Recipe, or the name of one"):
            recipe(odd)  # type: ignore[arg-type]


def test_fields_of_a_recipe() -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"default": "q4"}, "'q4' is not a Precision or None"),
        ({"rules": (("heads", 8),)}, "8 is not a Precision or None"),
        ({"method": "awq"}, "method must be nearest or gptq, is 'awq'"),
        ({"predicate": "x"}, "predicate must be a function, is 'x'"),
    ]
    for fields, message in cases:
        with pytest.raises(RecipeError, match=f"^Recipe 'mine': {message}"):
            Recipe(**{"name": "mine", "default": FOUR, **fields})


def test_how_many_arguments_a_predicate_takes() -> None:
    predicates: list[tuple[Any, str]] = [
        (lambda a: True, "a"), (lambda a, b, c, d: True, "a, b, c, d")
    ]  # fmt: skip
    for predicate, takes in predicates:
        made = Recipe("mine", FOUR, predicate=predicate)
        with pytest.raises(RecipeError, match=rf"takes \({takes}\): it must take \(name, layer\)"):
            made.assign([layer("a")])


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), True, "4"])
@pytest.mark.parametrize("what", ["upgrade", "target_bits"])
def test_numbers_of_a_recipe(what: str, value: Any) -> None:
    with pytest.raises(RecipeError, match=f"^Recipe 'mine': {what} must be a number above 0, is"):
        Recipe("mine", FOUR, **{what: value})


def test_targets_that_can_be_had() -> None:
    """From the smallest precision of every layer to none; odd layers do not count."""
    layers = [layer("a"), layer("odd", shape=(64, 264))]
    for bits in (2.5 + 0.5, 16):
        check_target(layers, bits)
    fixed: Assignment = {"a": EIGHT}
    check_target(layers, 8.5, fixed)
    for bits, settled in ((2.99, None), (16.01, None), (8.49, fixed), (8.51, fixed)):
        with pytest.raises(RecipeError, match="bits per weight cannot be had"):
            check_target(layers, bits, settled)
    with pytest.raises(RecipeError, match=r"with what is set apart: give a target from 8\.50 to 8"):
        check_target(layers, 4, fixed)
    two = [layer("a"), layer("b", shape=(64, 128))]
    with pytest.raises(RecipeError, match=r"from 4\.84 to 13\.50\."):  # rounded inwards
        check_target(two, 1, {"a": EIGHT})


# ----------------------------------------------------------------------------- plans and writers


def test_a_plan_says_what_is_different() -> None:
    """Nano's feed-forward widths are no multiple of 32: these stay as they are, and are told."""
    nano = open_checkpoint("nano")
    plan = make_plan(nano, recipe("q4"), mx.float16)
    odd = [one.name for one in plan.layers if one.shape[1] % 32]
    assert odd
    assert [one.name for one in plan.skipped] == odd
    block = plan.quantization()
    assert block == FOUR.block | {name: False for one in plan.skipped for name in one.names}
    floats = {dtype for dtype, _ in plan.specs.values() if mx.issubdtype(dtype, mx.floating)}
    assert floats == {mx.float16}
    heads = Recipe("mine", None, (("heads", EIGHT), ("text_emb", FOUR)))
    plan = make_plan(nano, heads, None)
    assert plan.base == Precision(8, 32)  # what most have
    found = plan.quantization()
    assert found is not None
    assert found["text_emb"] == FOUR.block
    assert "depformer.slices.0.linear_out" not in found
    assert plan.skipped == ()
    none = make_plan(nano, recipe(None), mx.bfloat16)
    assert none.base is None
    assert none.quantization() is None
    assert none.nbytes == 2 * sum(v.size for v in nano.weights().values())
    assert make_plan(nano, recipe("nvfp4"), None).skipped == tuple(
        one for one in plan.layers if one.shape[1] % 16
    )


def writer(path: Path) -> TensorWriter:
    return TensorWriter(path, {"a": (mx.float32, (2, 3)), "b": (mx.uint8, (5,))})


@pytest.mark.parametrize(
    "write",
    [
        lambda w: w.write("a", mx.zeros((2, 3))),  # and not b
        lambda w: w.write("a", mx.zeros((3, 2))),
        lambda w: w.write("b", mx.zeros(5)),
    ],
)
def test_a_writer_gets_what_was_announced(write: Callable[[Any], None], tmp_path: Path) -> None:
    with (
        pytest.raises(AssertionError, match=r"not written|was announced"),
        writer(tmp_path / "f") as w,
    ):
        write(w)


def test_a_writer_replaces_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("precious")
    with pytest.raises(CheckpointError, match="file: cannot be written: File exists"):
        writer(path)
    assert path.read_text() == "precious"
