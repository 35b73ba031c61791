"""Figures of an examination as tables, as a picture, and in a model's card.

Knows names and numbers; not how they come about. A figure belongs to a group of figures. The
picture needs matplotlib.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from moshi_mlx.distributions import needs_extra
from moshi_mlx.errors import MoshiError

Figures = Mapping[str, Mapping[str, Any]]

CARD_BEGIN = "<!-- Figures: written by `make nano-eval`, not by hand. -->"
CARD_END = "<!-- End of figures. -->"


@dataclass(frozen=True)
class Goal:
    """What a figure is to be: at least `least`, at most `most`; if neither is given, just shown."""

    name: str
    group: str
    figure: str
    least: float = -math.inf
    most: float = math.inf

    @property
    def bound(self) -> str:
        """Such as "≥ 0.5"; empty if there is none."""
        if self.least > -math.inf:
            return f"≥ {self.least:g}"
        return f"≤ {self.most:g}" if self.most < math.inf else ""


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _head(cells: Sequence[str]) -> list[str]:
    return [_row(cells), "|" + "---|" * len(cells)]


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_shown(v)}" for name, v in value.items()) or "–"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def goals_table(figures: Figures, goals: Sequence[Goal]) -> Iterator[str]:
    """Lines of a table of the goals, as far as there are figures for them."""
    yield from _head(("what", "goal", "reached"))
    for goal in goals:
        value = figures.get(goal.group, {}).get(goal.figure)
        if value is not None:
            told = isinstance(value, str)  # that it was not measured
            met = told or not goal.bound or goal.least <= value <= goal.most
            yield _row((goal.name, goal.bound, _shown(value) + ("" if met else " (missed)")))


def figures_tables(figures: Figures) -> Iterator[str]:
    """Lines of tables of all figures; neighbours with the same figures share a table."""
    for names, rows in groupby(figures.items(), lambda item: tuple(item[1])):
        yield from _head(("group", *names))
        yield from (_row((group, *map(_shown, values.values()))) for group, values in rows)
        yield ""


def markdown(figures: Figures, goals: Sequence[Goal], picture: str | None = None) -> str:
    """The goals, a link to the picture, and all figures."""
    image = [f"![The same as bars and histograms]({picture})", ""] if picture else []
    lines = [*goals_table(figures, goals), "", *image, *figures_tables(figures)]
    return "\n".join(lines)


def write_card(card: Path, text: str, begin: str = CARD_BEGIN) -> None:
    """Replaces what is between the two comments `begin` and `CARD_END` in a model's card.

    Raises:
        MoshiError: the card does not have them.
    """
    before, begun, rest = card.read_text(encoding="utf-8").partition(begin)
    _, end, after = rest.partition(CARD_END)
    if not begun or not end:
        raise MoshiError(f"{card}: has no lines {begin!r} and {CARD_END!r}")
    card.write_text(f"{before}{begin}\n{text}{end}{after}", encoding="utf-8")


def plot(
    figures: Figures,
    goals: Sequence[Goal],
    bars: str,
    histograms: Mapping[str, tuple[Sequence[float], float]],
    picture: Path,
) -> None:
    """Draws an SVG file: figure `bars` of the groups that have it, with their goals; histograms.

    Args:
        histograms: by what is counted: its values, and where to draw a line.

    Raises:
        MoshiError: matplotlib is not installed.
    """
    with needs_extra("nano", "plots need matplotlib"):
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    groups = [name for name, values in figures.items() if isinstance(values.get(bars), float)]
    heights = (0.8 + 0.25 * len(groups), 2.5)
    figure = Figure(figsize=(9, sum(heights)), layout="constrained")
    axes = figure.subplot_mosaic(
        [[bars] * len(histograms), list(histograms)], height_ratios=heights
    )
    axes[bars].barh(groups, [figures[name][bars] for name in groups])
    least = {goal.group: goal.least for goal in goals if goal.figure == bars and goal.bound}
    for row, name in enumerate(groups):
        if name in least:
            axes[bars].plot([least[name]] * 2, [row - 0.4, row + 0.4], "k")
    axes[bars].set(xlabel=f"{bars} (black: goal)", xlim=(0, 1))
    axes[bars].invert_yaxis()
    for name, (values, line) in histograms.items():
        axes[name].hist(values, bins=40)
        axes[name].axvline(line, color="k")
        axes[name].set(xlabel=name)
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "nano"}):  # small, always the same
        figure.savefig(picture, format="svg", metadata={"Date": None})
