"""What becomes of each layer: precisions, recipes, and the layers that they are about.

A layer is a Linear or an Embedding of the language model; it goes by its published MLX name, as in
the file and in config.json. Knows nothing of files or of how well a recipe does.
"""

import copy
import fnmatch
import inspect
import math
import re
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from moshi_mlx.config import FLOAT_MODES, PUBLISHED_GROUPS, QUANTIZED_BITS
from moshi_mlx.errors import MoshiError
from moshi_mlx.footprint import uses_per_frame
from moshi_mlx.layouts import to_mlx
from moshi_mlx.lm import Lm
from moshi_mlx.trees import named_leaves

Part = Literal["temporal", "depth", "embeddings", "heads", "conditions"]
LAYER_PARTS: tuple[Part, ...] = ("temporal", "depth", "embeddings", "heads", "conditions")

Mode = Literal["affine", "mxfp4", "mxfp8", "nvfp4"]
GROUPS = (32, 64, 128)
# Groups where none is asked for: 4 and 8 as published, few bits with small groups.
_DEFAULT_GROUP = {2: 32, 3: 32, 5: 64, 6: 64} | PUBLISHED_GROUPS


class RecipeError(MoshiError):
    """A recipe or a precision that there is not."""


@dataclass(frozen=True)
class Precision:
    """The precision of a quantized layer: `bits` per weight, a scale per `group_size` inputs."""

    bits: int
    group_size: int
    mode: Mode = "affine"

    def __post_init__(self) -> None:
        if not isinstance(self.mode, str) or self.mode not in get_args(Mode):
            raise RecipeError(
                f"There is no mode {reprlib.repr(self.mode)}: it is one of "
                f"{', '.join(get_args(Mode))}."
            )
        for what, value in (("bits", self.bits), ("group_size", self.group_size)):
            if type(value) is not int:
                raise RecipeError(f"{what} must be a whole number, is {reprlib.repr(value)}.")
        known = FLOAT_MODES.get(self.mode)
        if known is not None and (self.bits, self.group_size) != known:
            raise RecipeError(
                f"{self.mode} has {known[0]} bits in groups of {known[1]}, not {self.bits} in "
                f"groups of {self.group_size}."
            )
        if known is None and (self.bits not in QUANTIZED_BITS or self.group_size not in GROUPS):
            raise RecipeError(
                f"There is no precision of {self.bits} bits in groups of {self.group_size}: bits "
                f"are {', '.join(map(str, QUANTIZED_BITS))}, groups {', '.join(map(str, GROUPS))}."
            )

    def __str__(self) -> str:
        return f"{self.bits}:{self.group_size}" if self.mode == "affine" else self.mode

    @property
    def bits_per_weight(self) -> float:
        """With scales and biases, these in 16 bits (8 for the floating-point modes' scales)."""
        return self.bits + (32 if self.mode == "affine" else 8) / self.group_size

    @property
    def block(self) -> dict[str, Any]:
        """As in config.json."""
        return {"group_size": self.group_size, "bits": self.bits, "mode": self.mode}

    def specs(
        self, shape: tuple[int, ...], dtype: mx.Dtype
    ) -> dict[str, tuple[mx.Dtype, tuple[int, ...]]]:
        """Types and shapes of what `quantize` gives for weights of this shape."""
        rows, inputs = shape[:-1], shape[-1]
        groups = (*rows, inputs // self.group_size)
        specs = {"weight": (mx.uint32, (*rows, inputs * self.bits // 32))}
        if self.mode == "affine":
            return specs | {"scales": (dtype, groups), "biases": (dtype, groups)}
        return specs | {"scales": (mx.uint8, groups)}

    def quantize(self, weight: mx.array) -> dict[str, mx.array]:
        """Nearest values: packed weights [..., inputs · bits / 32], scales and biases by group."""
        parts = mx.quantize(weight, self.group_size, self.bits, self.mode)
        return dict(zip(("weight", "scales", "biases"), parts, strict=False))

    def dequantize(self, parts: Mapping[str, mx.array]) -> mx.array:
        """What the packed weights stand for."""
        return mx.dequantize(
            parts["weight"], parts["scales"], parts.get("biases"), group_size=self.group_size,
            bits=self.bits, mode=self.mode,
        )  # fmt: skip

    def fitting(self, inputs: int) -> "Precision | None":
        """This, or with the largest smaller group that divides the inputs; None if none does."""
        if inputs % self.group_size == 0:
            return self
        groups = [g for g in GROUPS if g < self.group_size and inputs % g == 0]
        return replace(self, group_size=max(groups)) if groups and self.mode == "affine" else None


def parse_precision(text: str) -> Precision | None:
    """ "4", "4:64" (bits, group), "mxfp4"; "none" is None: left in full precision.

    Raises:
        RecipeError: there is no such precision.
    """
    if text == "none":
        return None
    if text in FLOAT_MODES:
        return Precision(*FLOAT_MODES[text], mode=text)  # type: ignore[arg-type]
    match = re.fullmatch(r"q?([0-9])(?::([0-9]{1,4}))?", text)
    if match is None:
        raise RecipeError(
            f"{reprlib.repr(text)} is not a precision: give bits "
            f"({', '.join(map(str, QUANTIZED_BITS))}), bits:group (4:64), "
            f"{', '.join(FLOAT_MODES)} or none."
        )
    bits = int(match[1])
    return Precision(bits, int(match[2]) if match[2] else _DEFAULT_GROUP.get(bits, 32))


@dataclass(frozen=True)
class Layer:
    """A layer that can be quantized.

    `path` is its place in our modules, `names` are its published ones (several where slices of
    the depth transformer share weights), `uses` says how often a frame reads it. `module` is what
    a predicate is shown, as mlx-lm does.
    """

    path: str
    names: tuple[str, ...]
    part: Part
    shape: tuple[int, int]
    uses: int
    module: nn.Module = field(default_factory=nn.Identity, compare=False, repr=False)

    @property
    def name(self) -> str:
        return self.names[0]

    @property
    def kind(self) -> str:
        """The name without numbers: layers of one kind do the same in different places."""
        return re.sub(r"\.\d+\b", "", self.name)

    @property
    def size(self) -> int:
        """Weights."""
        return self.shape[0] * self.shape[1]

    def nbytes(self, precision: Precision | None, dtype: mx.Dtype = mx.bfloat16) -> int:
        """In the file, by one of its names."""
        if precision is None:
            return self.size * dtype.size
        specs = precision.specs(self.shape, dtype).values()
        return sum(kind.size * shape[0] * shape[1] for kind, shape in specs)


def layers_of(lm: Lm) -> list[Layer]:
    """All Linear and Embedding layers of a model that is not quantized."""
    layers = []
    for path, module in named_leaves(lm).items():
        if not hasattr(module, "to_quantized"):
            continue
        published = to_mlx({f"{path}.weight": module.weight}, lm.config)
        names = tuple(name.removesuffix(".weight") for name in published)
        layers.append(
            Layer(
                path,
                names,
                _part(names[0]),
                module.weight.shape,
                uses_per_frame(path, lm.config, lm.config.dep_q),
                module,
            )
        )
    return layers


def _part(name: str) -> Part:
    if name.startswith("condition_provider."):
        return "conditions"
    if "emb." in f"{name}." or name.startswith(("text_emb", "audio_embs.")):
        return "embeddings"
    if re.fullmatch(r"text_linear|extra_heads\.\d+|depformer\.slices\.\d+\.linear_out", name):
        return "heads"
    return "depth" if name.startswith("depformer.") else "temporal"


Answer = bool | Mapping[str, Any] | Precision | None
Predicate = Callable[[str, Any], Answer] | Callable[[str, Any, Mapping[str, Any]], Answer]
"""One's own rule, as mlx-lm's `quant_predicate`: a layer's published name, the layer, and if it
takes a third, the model's config.json → True (as the recipe says), False or None (not quantized),
or what to do: {"bits": 8, "group_size": 64}. The layer is its module, an `nn.Linear` or
`nn.Embedding`, which also has what `Layer` says of it: `part`, `kind`, `shape`, `uses`."""

Assignment = dict[str, Precision | None]
"""A layer's path → its precision."""


@dataclass(frozen=True)
class Recipe:
    """What becomes of each layer; made by `recipe`.

    `rules` are (what, precision): what is a part, or a pattern for published names in the manner
    of file names ("depformer.*.linear_out"); the last that fits holds. `upgrade` first spends at
    most that share of the layers' bytes on raising some, in the order in which they pay
    (`UPGRADES`). With `target_bits`, bits are given out by measured sensitivity instead.
    `method` is how a layer's values are found: "nearest", or "gptq", which is learned.
    """

    name: str
    default: Precision | None
    rules: tuple[tuple[str, Precision | None], ...] = ()
    upgrade: float | None = None
    target_bits: float | None = None
    method: Literal["nearest", "gptq"] = "nearest"
    predicate: Predicate | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        for what, value in (("upgrade", self.upgrade), ("target_bits", self.target_bits)):
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if value is not None and not (number and 0 < value < math.inf):
                raise RecipeError(
                    f"Recipe '{self.name}': {what} must be a number above 0, is "
                    f"{reprlib.repr(value)}."
                )
        if self.method not in ("nearest", "gptq"):
            raise RecipeError(
                f"Recipe '{self.name}': method must be nearest or gptq, is "
                f"{reprlib.repr(self.method)}."
            )
        for precision in (self.default, *(rule[1] for rule in self.rules)):
            if precision is not None and not isinstance(precision, Precision):
                raise RecipeError(
                    f"Recipe '{self.name}': {reprlib.repr(precision)} is not a Precision or None; "
                    "parse_precision makes one of a text."
                )
        if self.predicate is not None and not callable(self.predicate):
            raise RecipeError(
                f"Recipe '{self.name}': predicate must be a function, is "
                f"{reprlib.repr(self.predicate)}."
            )

    @property
    def quantizes(self) -> bool:
        """May change a layer."""
        some = [self.default, *(precision for _, precision in self.rules)]
        settled = self.target_bits is not None or self.predicate is not None
        return settled or any(precision is not None for precision in some)

    @property
    def calibrated(self) -> bool:
        """Needs dialogue tokens."""
        return self.target_bits is not None or self.method != "nearest"

    def assign(
        self, layers: Sequence[Layer], config: Mapping[str, Any] | None = None
    ) -> Assignment:
        """The precision of every layer. Where the group doesn't divide, a smaller one, or none.

        Args:
            layers: the layers.
            config: the model's config.json, for a predicate that asks for it.

        Raises:
            RecipeError: a rule fits no layer; the predicate fails, or its answer is not understood.
        """
        assignment = {layer.path: self.default for layer in layers}
        if self.upgrade is not None and self.default is not None:
            assignment |= _upgraded(layers, self.default, self.upgrade)
        assignment |= self.fixed(layers, config)
        return {
            layer.path: None if given is None else given.fitting(layer.shape[1])
            for layer in layers
            for given in [assignment[layer.path]]
        }

    def fixed(self, layers: Iterable[Layer], config: Mapping[str, Any] | None = None) -> Assignment:
        """What rules and predicate say of the layers that they decide; as `assign`."""
        layers = list(layers)
        assignment: Assignment = {}
        for what, precision in self.rules:
            hit = [
                layer
                for layer in layers
                if layer.part == what or any(fnmatch.fnmatchcase(n, what) for n in layer.names)
            ]
            if not hit and what not in LAYER_PARTS:
                there = [part for part in LAYER_PARTS if any(x.part == part for x in layers)]
                example = f" as {layers[0].names[0]}," if layers else ""
                raise RecipeError(
                    f"No layer is called {reprlib.repr(what)}: give {', '.join(there)} or a "
                    f"layer's name,{example} with * for any part of it."
                )
            assignment |= {layer.path: precision for layer in hit}
        if self.predicate is not None:
            ask = _asking(self.predicate, config or {})
            for layer in layers:
                answer = ask(layer)
                if not _is(answer, True):
                    assignment[layer.path] = _answered(answer, layer, _called(self.predicate))
        return {
            layer.path: None if given is None else given.fitting(layer.shape[1])
            for layer in layers
            if layer.path in assignment
            for given in [assignment[layer.path]]
        }


def _asking(predicate: Predicate, config: Mapping[str, Any]) -> Callable[[Layer], Any]:
    """Calls a predicate with as many arguments as it takes: mlx-lm gave three, and gives two."""
    more: tuple[Any, ...] = ()
    try:
        signature = inspect.signature(predicate)
    except (TypeError, ValueError):  # some of those written in C have none
        signature = None
    if signature is not None and not _takes(signature, 2):
        if not _takes(signature, 3):
            raise RecipeError(
                f"{_called(predicate)} takes {signature}: it must take (name, layer), or (name, "
                "layer, config)."
            )
        more = (config,)

    def ask(layer: Layer) -> Any:
        try:
            return predicate(layer.name, _shown(layer), *more)
        except (Exception, SystemExit) as error:  # whatever the user's function raises
            raise RecipeError(
                f"{_called(predicate)} failed for '{layer.name}': {type(error).__name__}: {error}"
            ) from error

    return ask


def _called(predicate: Predicate) -> str:
    """A predicate in messages, with its file."""
    code = getattr(predicate, "__code__", None)
    return "The predicate" if code is None else f"The predicate in {code.co_filename}"


def _takes(signature: inspect.Signature, count: int) -> bool:
    try:
        signature.bind(*range(count))
    except TypeError:
        return False
    return True


def _shown(layer: Layer) -> nn.Module:
    """The layer's module, with what we know of it."""
    module = copy.copy(layer.module)
    for name in ("name", "names", "part", "kind", "shape", "size", "uses", "path"):
        object.__setattr__(module, name, getattr(layer, name))  # not as a parameter
    return module


def _is(answer: Any, value: bool) -> bool:
    return isinstance(answer, bool | np.bool_) and bool(answer) is value


def _answered(answer: Any, layer: Layer, who: str) -> Precision | None:
    """What a predicate's answer means, which is not True."""
    if answer is None or _is(answer, False):
        return None
    if isinstance(answer, Precision):
        return answer
    if inspect.iscoroutine(answer):
        answer.close()  # so that Python doesn't warn that nobody awaited it
    told = f"{who} answers {reprlib.repr(answer)} for '{layer.name}'"
    must = 'it must be True, False, or {"bits": …, "group_size": …, "mode": …}.'
    if not isinstance(answer, Mapping):
        raise RecipeError(f"{told}: {must}")
    if unknown := [key for key in answer if key not in ("bits", "group_size", "mode")]:
        raise RecipeError(f"{told}: {reprlib.repr(unknown[0])} is not known; {must}")
    mode = answer.get("mode", "affine")
    bits, group = FLOAT_MODES.get(mode, (None, None)) if isinstance(mode, str) else (None, None)
    bits = _plain(answer.get("bits", bits))
    if bits is None:
        raise RecipeError(f"{told}: 'bits' is missing; {must}")
    if group is None:
        group = _DEFAULT_GROUP.get(bits, GROUPS[0]) if isinstance(bits, int) else GROUPS[0]
    try:
        return Precision(bits, _plain(answer.get("group_size", group)), mode)
    except RecipeError as error:
        raise RecipeError(f"{told}: {error}") from None


def _plain(number: Any) -> Any:
    """NumPy's whole numbers as Python's, which go into JSON."""
    return int(number) if isinstance(number, np.integer) else number


_DEPTH = "depformer.slices"
_DEPTH_LAYERS = f"{_DEPTH}.transformer.layers"
_TEMPORAL_LAYERS = "transformer.layers"
_FIVE, _SIX, _EIGHT = Precision(5, 64), Precision(6, 64), Precision(8, 64)

UPGRADES: tuple[tuple[str, Precision], ...] = (
    (f"{_DEPTH}.linear_in", _FIVE),
    (f"{_TEMPORAL_LAYERS}.self_attn.out_proj", _FIVE),
    (f"{_TEMPORAL_LAYERS}.self_attn.in_proj", _FIVE),
    (f"{_DEPTH}.linear_out", _FIVE),
    (f"{_TEMPORAL_LAYERS}.gating.linear_in", _FIVE),
    ("text_emb", _FIVE),
    (f"{_DEPTH}.linear_in", _SIX),
    ("text_linear", _FIVE),
    (f"{_TEMPORAL_LAYERS}.self_attn.out_proj", _SIX),
    (f"{_DEPTH_LAYERS}.self_attn.out_proj", _FIVE),
    ("audio_embs", _FIVE),
    (f"{_TEMPORAL_LAYERS}.self_attn.in_proj", _SIX),
    (f"{_DEPTH}.linear_out", _SIX),
    (f"{_DEPTH_LAYERS}.self_attn.in_proj", _FIVE),
    (f"{_DEPTH_LAYERS}.gating.linear_in", _FIVE),
    (f"{_TEMPORAL_LAYERS}.gating.linear_in", _SIX),
    (f"{_DEPTH}.linear_in", _EIGHT),
    (f"{_TEMPORAL_LAYERS}.self_attn.out_proj", _EIGHT),
    (f"{_TEMPORAL_LAYERS}.self_attn.in_proj", _EIGHT),
    (f"{_DEPTH}.linear_out", _EIGHT),
    (f"{_TEMPORAL_LAYERS}.gating.linear_in", _EIGHT),
    ("text_emb", _EIGHT),
    (f"{_DEPTH_LAYERS}.self_attn.out_proj", _EIGHT),
    ("text_linear", _EIGHT),
)
"""Kinds of layers and what to raise them to, in the order of nats saved a byte, as measured on nano
(`sensitivity.measure`; its gating's linear_out, which no group divides, takes no part: it comes
where linear_in does). Measuring has it that eight bits pay only after all that is listed before."""


def _upgraded(layers: Sequence[Layer], base: Precision, share: float) -> Assignment:
    """Steps in order of what they pay, as long as the layers' bytes grow by less than `share`."""
    now = {layer.path: base.fitting(layer.shape[1]) for layer in layers}
    budget = share * sum(layer.nbytes(now[layer.path]) for layer in layers)
    for kind, better in UPGRADES:
        alike = (kind, kind.replace("gating.linear_in", "gating.linear_out"))
        for layer in (layer for layer in layers if layer.kind in alike):
            given, wanted = now[layer.path], better.fitting(layer.shape[1])
            if given is None or wanted is None or wanted.bits <= given.bits:
                continue
            extra = layer.nbytes(wanted) - layer.nbytes(given)
            if extra <= budget:
                now[layer.path] = wanted
                budget -= extra
    return now


RECIPES: dict[str, Recipe] = {
    # As published: upstream's moshi_mlx reads these.
    "q4": Recipe("q4", Precision(4, 32)),
    "q8": Recipe("q8", Precision(8, 64)),
    "q4-mixed": Recipe("q4-mixed", Precision(4, 32), upgrade=0.1),
    # For 8 GB: what a frame reads most of in 3 bits.
    "q3-mixed": Recipe("q3-mixed", Precision(4, 64), rules=(("temporal", Precision(3, 64)),)),
    "q6-mixed": Recipe("q6-mixed", Precision(6, 64), upgrade=0.1),
    "mxfp4": Recipe("mxfp4", Precision(4, 32, "mxfp4")),
    "mxfp8": Recipe("mxfp8", Precision(8, 32, "mxfp8")),
    "nvfp4": Recipe("nvfp4", Precision(4, 16, "nvfp4")),
    "auto": Recipe("auto", Precision(4, 32), target_bits=4.5),
    "q4-gptq": Recipe("q4-gptq", Precision(4, 32), method="gptq"),
    "q4-mixed-gptq": Recipe("q4-mixed-gptq", Precision(4, 32), upgrade=0.1, method="gptq"),
    "auto-gptq": Recipe("auto-gptq", Precision(4, 32), target_bits=4.5, method="gptq"),
    "none": Recipe("none", None),
}


def recipe(what: "str | Recipe | None") -> Recipe:
    """A recipe by its name, or uniform by its precision ("4:64", "mxfp4"); None only converts.

    Raises:
        RecipeError: there is no such recipe.
    """
    if isinstance(what, Recipe):
        return what
    name = "none" if what is None else what
    if not isinstance(name, str):
        raise RecipeError(f"{reprlib.repr(name)} is not a Recipe, or the name of one.")
    if name in RECIPES:
        return RECIPES[name]
    try:
        precision = parse_precision(name)
    except RecipeError:
        if re.match("q?[0-9]", name):
            raise
        raise RecipeError(
            f"There is no recipe {reprlib.repr(name)}: it is one of {', '.join(RECIPES)}, or a "
            "precision (bits, bits:group) for all layers."
        ) from None
    return Recipe(f"q{precision}", precision)
