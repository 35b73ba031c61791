"""Which layers matter: bits given out by measuring, not by taste.

Each layer alone (of a model too big for memory: each kind of layers) is quantized, and the KL that
this costs is measured. What other precisions would cost follows from their squared error, for KL
grows with it (both are quadratic in a small error); the costs of layers add up. Then bits go where
they save most: the least cost for a number of bytes, by a Lagrange multiplier.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from moshi_mlx.arrays import Codes
from moshi_mlx.checkpoint import Checkpoint

from .recipes import Assignment, Layer, Precision, RecipeError
from .teacher import Teacher, distance

NARROW = Precision(4, 16, "nvfp4")  # its groups divide widths that no others do
PROBES = (Precision(4, 32), NARROW)
CHOICES = (
    NARROW, Precision(2, 32), Precision(3, 64), Precision(3, 32), Precision(4, 64),
    Precision(4, 32), Precision(5, 64), Precision(6, 64), Precision(8, 64),
)  # fmt: skip


@dataclass(frozen=True)
class Sensitivity:
    """By a layer's path: the cost, in nats per frame, of each precision that fits it, or None."""

    cost: Mapping[str, Mapping[Precision | None, float]]


def measure_sensitivity(
    source: Checkpoint,
    layers: Sequence[Layer],
    codes: Codes,
    choices: Sequence[Precision] = CHOICES,
    progress: Callable[[int, int, str], None] | None = None,
) -> Sensitivity:
    """What quantizing each layer costs, on dialogues [N, 1 + n_q, T]."""
    teacher = Teacher(source)
    tokens = mx.array(codes)
    original = teacher(tokens)
    probes = {p: given for p, n in ((x.path, x.shape[1]) for x in layers) if (given := _probe(n))}
    by_path = {layer.path: layer for layer in layers if layer.path in probes}
    groups: dict[str, list[Layer]] = {}
    for layer in by_path.values():
        groups.setdefault(layer.kind if teacher.streams else layer.path, []).append(layer)
    errors = {p: _errors(teacher.read(p)["weight"], layer, choices) for p, layer in by_path.items()}
    cost: dict[str, Mapping[Precision | None, float]] = {}
    for done, (name, group) in enumerate(groups.items()):
        if progress is not None:
            progress(done, len(groups), f"measuring {name}")
        inside = {layer.path for layer in group}

        def probe(path: str, leaf: nn.Module, _: mx.array, inside: set[str] = inside) -> None:
            if path in inside:
                leaf.weight = probes[path].dequantize(probes[path].quantize(leaf.weight))

        kl = max(distance(original, teacher(tokens, probe)).frame_kl, 0.0)
        total = sum(errors[path][probes[path]] for path in inside)
        for path in inside:
            per_error = kl / total if total else 0.0
            costs: dict[Precision | None, float] = {None: 0.0}  # as it is, it costs only bytes
            costs |= {p: per_error * e for p, e in errors[path].items()}
            cost[path] = costs
    return Sensitivity(cost)


def _probe(inputs: int) -> Precision | None:
    """The precision in which a layer's cost is measured; None if none fits."""
    fitting = (probe.fitting(inputs) for probe in PROBES)
    return next((precision for precision in fitting if precision is not None), None)


def _errors(weight: mx.array, layer: Layer, choices: Sequence[Precision]) -> dict[Precision, float]:
    """Summed squared error of each precision that fits, scales being in bfloat16 as in files."""
    half = weight.astype(mx.bfloat16)
    return {
        p: float(np.array(mx.sum(mx.square(p.dequantize(p.quantize(half)) - weight))))
        for p in _fitting(layer.shape[1], choices)
    }


def _fitting(inputs: int, choices: Sequence[Precision]) -> set[Precision]:
    """The precisions that a layer may get."""
    fitting = (p.fitting(inputs) for p in (*choices, *PROBES))
    return {p for p in fitting if p is not None}


def check_target(
    layers: Sequence[Layer],
    target_bits: float,
    fixed: Assignment | None = None,
    choices: Sequence[Precision] = CHOICES,
) -> None:
    """That a target can be had, before anything is measured; arguments as `give_out`.

    Raises:
        RecipeError: they cannot; says what can.
    """
    fixed = fixed or {}
    counted = [layer for layer in layers if _probe(layer.shape[1]) is not None]
    weights = sum(layer.size for layer in counted)
    least = most = 0
    for layer in counted:
        settled = layer.path in fixed
        possible = {fixed[layer.path]} if settled else {None, *_fitting(layer.shape[1], choices)}
        sizes = [layer.nbytes(precision) for precision in possible]
        least, most = least + min(sizes), most + max(sizes)
    if not least <= target_bits / 8 * weights <= most:
        low = math.ceil(100 * 8 * least / max(weights, 1)) / 100
        high = math.floor(100 * 8 * most / max(weights, 1)) / 100
        settled_too = ", with what is set apart" if fixed else ""
        raise RecipeError(
            f"{target_bits:g} bits per weight cannot be had for this model{settled_too}: give a "
            f"target from {low:.2f} to {high:.2f}."
        )


def give_out(
    sensitivity: Sensitivity,
    layers: Sequence[Layer],
    target_bits: float,
    fixed: Assignment | None = None,
) -> Assignment:
    """The precisions of least cost with at most `bits` bits per weight on average.

    Args:
        sensitivity: what each costs.
        layers: all; those that no group divides stay as they are, and don't count.
        target_bits: with scales and biases.
        fixed: layers that are settled already; they count.
    """
    fixed = dict(fixed or {})
    free = [layer for layer in layers if layer.path in sensitivity.cost and layer.path not in fixed]
    counted = [layer for layer in layers if layer.path in sensitivity.cost]
    budget = target_bits / 8 * sum(layer.size for layer in counted)
    budget -= sum(layer.nbytes(fixed[layer.path]) for layer in counted if layer.path in fixed)

    def at(price: float) -> Assignment:
        """The best choices at this price of a byte, in nats."""
        return {
            layer.path: min(
                costs, key=lambda p: (costs[p] + price * layer.nbytes(p), layer.nbytes(p))
            )
            for layer in free
            for costs in [sensitivity.cost[layer.path]]
        }

    def size(chosen: Assignment) -> int:
        return sum(layer.nbytes(chosen[layer.path]) for layer in free)

    low, high = 1e-20, 1e6
    for _ in range(100):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if size(at(middle)) > budget else (low, middle)
    chosen = at(high)
    # What is left of the budget goes where it saves most a byte.
    while True:
        left = budget - size(chosen)
        steps = [
            ((costs[now] - costs[p]) / extra, layer.path, p)
            for layer in free
            for costs, now in [(sensitivity.cost[layer.path], chosen[layer.path])]
            for p in costs
            for extra in [layer.nbytes(p) - layer.nbytes(now)]
            if 0 < extra <= left and costs[p] < costs[now]
        ]
        if not steps:
            break
        _, path, precision = max(steps, key=lambda step: step[0])
        chosen[path] = precision
    result: Assignment = {layer.path: None for layer in layers}
    return result | chosen | fixed
