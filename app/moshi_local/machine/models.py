"""The catalogue beside this machine: `moshi-local models`. Never uses the network."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from moshi_mlx import catalog
from moshi_mlx.catalog import Entry
from moshi_mlx.footprint import gb

from ..platform import Machine
from .prediction import Shape, Speed, published_shape
from .verdict import BUDGET_MS, Verdict, local_files, needs_of, predicted

__all__ = ["Row", "print_models", "rows_as_json", "survey"]


@dataclass(frozen=True, slots=True)
class Row:
    """A published model and what it would be here.

    local: all its files are on this machine.
    verdict: whether it fits and, where that can be said, how fast it should be.
    """

    entry: Entry
    local: bool
    verdict: Verdict

    def as_dict(self) -> dict[str, Any]:
        """For JSON: bytes and milliseconds."""
        return {**asdict(self.entry), "local": self.local, "here": self.verdict.as_dict()}


def survey(here: Machine, speed_of: Callable[[Shape], Speed] | None) -> list[Row]:
    """Every model of the catalogue; without `speed_of`, nothing is measured or predicted."""
    rows = []
    for entry in catalog.ENTRIES:
        verdict = Verdict(entry.name, needs_of(entry.name), here.usable_memory)
        shape = published_shape(entry.name)
        if shape is not None and speed_of is not None and verdict.fits is not False:
            verdict = predicted(shape, verdict, speed_of)
        rows.append(Row(entry, local_files(entry.name) is not None, verdict))
    return rows


def rows_as_json(rows: list[Row]) -> str:
    """All of it."""
    return json.dumps([row.as_dict() for row in rows], ensure_ascii=False, indent=1)


def print_models(console: Console, rows: list[Row]) -> None:
    """A table for a person."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1))
    for column in (
        "model",
        "about",
        "download",
        "licence",
        "here",
        "fits in memory",
        "ms per frame",
    ):
        table.add_column(column, overflow="fold")
    for row in rows:
        entry, verdict = row.entry, row.verdict
        table.add_row(
            entry.name,
            entry.about,
            "bundled" if entry.bundled else gb(entry.nbytes),
            entry.licence,
            "yes" if row.local else "no",
            {True: "yes", False: "no", None: "?"}[verdict.fits],
            _frame(verdict),
        )
    console.print(table)
    if any(row.verdict.predicted for row in rows):
        console.print(
            f"ms per frame: predicted for this machine, 95 % of frames; {BUDGET_MS:.0f} ms is real "
            "time.",
            soft_wrap=True,
        )
    for name in catalog.all_series():
        choices = ", ".join(e.name for e in catalog.series(name) if e.bits < 16)
        console.print(f"{name}: the best of {choices} for this machine.", soft_wrap=True)


def _frame(verdict: Verdict) -> str:
    if verdict.frame_ms is None:
        return ""
    late = "" if verdict.holds else ", too slow"
    return f"{verdict.frame_ms['p95']:.0f}{late}"
