"""A run's losses as a picture. matplotlib comes with the extra `train`."""

import io
import json
from pathlib import Path

from ..distributions import needs_extra
from ..outputs import WholeFile


def plot_losses(log: Path, picture: Path) -> None:
    """Draws the losses of a run's `log.jsonl`, evaluations dotted, into a PNG or SVG file.

    Raises:
        MoshiError: matplotlib is not installed, or the picture cannot be written.
    """
    with needs_extra("train", "plots need matplotlib"):
        from matplotlib.figure import Figure
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name in ("loss", "text", "semantic", "acoustic"):
        (drawn,) = left.plot(*_series(lines, name), label=name)
        left.plot(*_series(lines, f"eval_{name}"), "o:", color=drawn.get_color())
    for name in ("text", "semantic", "acoustic"):
        (drawn,) = right.plot(*_series(lines, f"{name}_accuracy"), label=name)
        right.plot(*_series(lines, f"eval_{name}_accuracy"), "o:", color=drawn.get_color())
    left.set(xlabel="step", ylabel="nats per token", yscale="log")
    right.set(xlabel="step", ylabel="accuracy", ylim=(0, 1))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend()
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=120, format=picture.suffix[1:].lower())
    WholeFile(picture, "the plot", (".png", ".svg")).write(drawn.getvalue(), mode=0o644)


def _series(lines: list[dict[str, float]], name: str) -> tuple[list[float], list[float]]:
    points = [(line["step"], line[name]) for line in lines if name in line]
    return [step for step, _ in points], [value for _, value in points]
