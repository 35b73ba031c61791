"""Which model can be talked with on this machine: what fits, and what should run in real time.

Compares what a model needs with what there is, and chooses a precision for the name of a series.
Never uses the network; measures through `prediction` alone. Knows nothing of the terminal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

from moshi_mlx import HubError, MoshiError, catalog
from moshi_mlx.backend import kv_bits_problem
from moshi_mlx.catalog import Entry
from moshi_mlx.checkpoint import find_files, read_headers
from moshi_mlx.config import MimiConfig
from moshi_mlx.footprint import Needs, gb
from moshi_mlx.hub import ModelFiles

from ..platform import Machine, machine, under_memory_pressure
from ..report import percentiles
from .prediction import (
    SMALL_RECIPE,
    Shape,
    Speed,
    Speeds,
    needs_of_checkpoint,
    predict,
    published_shape,
    small_shape,
)

__all__ = [
    "BUDGET_MS",
    "Together",
    "Verdict",
    "check_before",
    "both",
    "check_together",
    "made_small",
    "late_warning",
    "local_files",
    "needs_of",
    "predicted",
    "shortage",
]

BUDGET_MS = 1000 / MimiConfig().frame_rate
"""A frame of sound lasts 80 ms: what a step may take."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a model can be talked with on this machine.

    model: the name to load; for the name of a series, what was chosen.
    needs: memory, or None where nothing is known of the model.
    memory: what a model may take on this machine at most (bytes); 0 if that is unknown.
    frame_ms: p50, p95 and, if measured, max of a whole frame; None if neither was done.
    predicted: frame_ms is a prediction, at full context.
    frames: how many were measured.
    codec: with which of the two they were measured.
    kv_bits: of the conversation's keys and values, as `Moshi.session` takes it.
    growth_ms: what a full context adds to a measured frame (milliseconds), at most.
    advice: what to do, if there is something.
    """

    model: str
    needs: Needs | None
    memory: int
    frame_ms: Mapping[str, float] | None = None
    predicted: bool = False
    frames: int = 0
    codec: str = ""
    growth_ms: float = 0.0
    budget_ms: float = BUDGET_MS
    kv_bits: int | None = None
    advice: str | None = None

    @property
    def fits(self) -> bool | None:
        """In memory; None if that cannot be said."""
        if self.needs is None or not self.memory:
            return None
        return self.needs.total <= self.memory

    @property
    def holds(self) -> bool | None:
        """It fits, and 95 of 100 frames are in time, also when the conversation is long."""
        if self.fits is False:
            return False
        if self.frame_ms is None:
            return None
        return self.frame_ms["p95"] + self.growth_ms <= self.budget_ms

    @property
    def line(self) -> str:
        """One line for a person."""
        start = f"{self.model} in real time ({self.budget_ms:.0f} ms per frame)"
        if self.fits is False:
            needed, usable = gb(size_of(self)), gb(self.memory)
            return f"{start}: no, it needs {needed} of memory and {usable} can be used"
        if self.frame_ms is None:
            return f"{start}: not measured"
        answer = f"{start}: {'yes' if self.holds else 'no'}, p95 {self.frame_ms['p95']:.0f} ms"
        if self.predicted:
            return f"{answer} (predicted, not measured)"
        if self.growth_ms >= 0.5:
            return f"{answer}, up to {self.growth_ms:.0f} ms more in a long conversation"
        return answer

    def as_dict(self) -> dict[str, Any]:
        """For JSON: bytes and milliseconds."""
        fields = asdict(self)
        if self.needs is not None:
            fields["needs"]["total"] = self.needs.total
        return {**fields, "fits": self.fits, "holds": self.holds, "line": self.line}


@dataclass(frozen=True, slots=True)
class Together:
    """Whether a model can be talked with while another one writes captions."""

    talks: Verdict
    captions: Verdict

    @property
    def memory(self) -> int | None:
        """What both need (bytes); None where that cannot be said."""
        if self.talks.needs is None or self.captions.needs is None:
            return None
        return self.talks.needs.total + self.captions.needs.total

    @property
    def fits(self) -> bool | None:
        """Both in memory; None if that cannot be said."""
        if self.memory is None or not self.talks.memory:
            return None
        return self.memory <= self.talks.memory

    @property
    def holds(self) -> bool | None:
        """They fit, and 95 of 100 frames of both, one after the other, are in time."""
        each = (self.fits, self.talks.holds, self.captions.holds)
        if False in each:
            return False
        if None in each:
            return None
        return sum(map(_longest_ms, (self.talks, self.captions))) <= self.talks.budget_ms

    @property
    def line(self) -> str:
        """One line for a person."""
        start = f"{self.talks.model} with captions by {self.captions.model}"
        if self.fits is False:
            needed, usable = gb(self.memory or 0), gb(self.talks.memory)
            return f"{start}: no, they need {needed} of memory and {usable} can be used"
        if self.talks.frame_ms is None or self.captions.frame_ms is None:
            what = self.captions if self.captions.frame_ms is None else self.talks
            return f"{start}: {what.model} was not measured, since it is not on this machine"
        times = " + ".join(f"{_longest_ms(v):.0f}" for v in (self.talks, self.captions))
        answer = "yes" if self.holds else "no"
        how = " (predicted, not measured)" if self.talks.predicted else ""
        return f"{start}: {answer}, p95 {times} ms of {self.talks.budget_ms:.0f} ms{how}"

    def as_dict(self) -> dict[str, Any]:
        """For JSON: bytes and milliseconds."""
        about = {"memory": self.memory, "fits": self.fits, "holds": self.holds, "line": self.line}
        return {"verdict": self.captions.as_dict(), **about}


def _longest_ms(verdict: Verdict) -> float:
    """What a frame of a long conversation takes."""
    assert verdict.frame_ms is not None
    return verdict.frame_ms["p95"] + verdict.growth_ms


def check_before(
    name: str,
    *,
    force: bool = False,
    here: Machine | None = None,
    speed_of: Callable[[Shape], Speed] | None = None,
    kv_bits: int | None = None,
) -> Verdict:
    """What a conversation should know before a model is fetched and loaded. No network.

    Only memory is compared, and `advice` says if too little of it is free; that is quick.
    For the name of a series the precision is chosen among the quantized ones: of those that fit in
    memory, the most exact that is predicted to be in time, what is already on this machine before
    what is not; if none is in time, the smallest. That takes seconds of measuring. Where none fits
    and is in time, keys and values in 8 bits are tried, unless `kv_bits` says what they are to be.
    Load `Verdict.model`, and talk with `Verdict.kv_bits`.

    Args:
        name: as the user gave it.
        force: let a model pass that does not fit.
        here: the machine; this one if None.
        speed_of: measures it; `Speeds()` if None.
        kv_bits: the conversation's, as `Moshi.session` takes it.

    Raises:
        MoshiError: the model does not fit in memory; with the numbers and how to fix it.
        CheckpointError: its files are broken.
    """
    here = here or machine()
    if catalog.series(name):
        verdict = choose(name, here, speed_of or Speeds(), kv_bits)
    else:
        verdict = Verdict(name, needs_of(name, kv_bits), here.usable_memory, kv_bits=kv_bits)
    if verdict.fits is False and not force:
        raise _too_large(verdict, here, kv_bits)
    return replace(verdict, advice=shortage(verdict, here))


def check_together(
    talks: Verdict, other: str, *, force: bool = False, option: str = "--captions"
) -> None:
    """Whether another model fits in memory beside the one that talks, as far as that is known.

    Args:
        talks: what `check_before` gave for that.
        other: name of the other one.
        force: let it pass.
        option: that asks for the other one.

    Raises:
        MoshiError: it does not; with the numbers and how to fix it.
    """
    needs = needs_of(other)
    if force or needs is None or not talks.memory or not (first := size_of(talks)):
        return
    if first + needs.total > talks.memory:
        raise MoshiError(
            f"{talks.model} needs {gb(first)} and {other} {gb(needs.total)} of memory, and "
            f"{gb(talks.memory)} can be used: leave out {option}, or use --force to try it anyway"
        )


def both(first: Verdict, second: Verdict) -> Verdict:
    """Two models that are loaded together, as one, for what they need."""
    needs = None
    if first.needs is not None and second.needs is not None:
        needs = Needs(first.needs.total + second.needs.total, conversation=0, codec=0, working=0)
    return replace(first, model=f"{first.model} and {second.model}", needs=needs)


def choose(
    series: str, here: Machine, speed_of: Callable[[Shape], Speed], kv_bits: int | None
) -> Verdict:
    """The precision of a series that suits a machine best; see `check_before`."""
    verdict = _choose(series, here, speed_of, kv_bits)
    if kv_bits or kv_bits_problem() or (verdict.fits is not False and verdict.holds is not False):
        return verdict
    packed = _choose(series, here, speed_of, 8)
    return packed if packed.holds or verdict.fits is False else verdict


def _choose(
    series: str, here: Machine, speed_of: Callable[[Shape], Speed], kv_bits: int | None
) -> Verdict:
    entries = [entry for entry in catalog.series(series) if entry.bits < 16]
    memory = here.usable_memory
    verdicts = [
        Verdict(e.name, needs_of(e.name, kv_bits), memory, kv_bits=kv_bits) for e in entries
    ]
    fitting = [verdict for verdict in verdicts if verdict.fits is not False]
    if not fitting:
        return verdicts[-1]
    fitting.sort(key=lambda verdict: local_files(verdict.model) is None)  # stable
    tried: list[Verdict] = []
    for verdict in fitting:
        shape = published_shape(verdict.model, kv_bits)
        tried.append(verdict if shape is None else predicted(shape, verdict, speed_of))
        if tried[-1].holds:
            return tried[-1]
    return min(tried, key=size_of)


def predicted(shape: Shape, verdict: Verdict, speed_of: Callable[[Shape], Speed]) -> Verdict:
    return replace(verdict, frame_ms=predict(shape, speed_of(shape)).frame_ms, predicted=True)


def size_of(verdict: Verdict) -> int:
    return verdict.needs.total if verdict.needs else 0


def shortage(verdict: Verdict, here: Machine) -> str | None:
    """What to say if a model fits, but not beside what runs now.

    Nothing where macOS has memory enough: little of it is ever free there.
    """
    if under_memory_pressure() is False:
        return None
    short = size_of(verdict) - here.memory_available
    if short <= 0 or not here.memory_available:
        return None
    return f"close other programs first: {verdict.model} needs {gb(short)} more than is free now"


def _too_large(verdict: Verdict, here: Machine, kv_bits: int | None) -> MoshiError:
    ways = _ways_out(verdict, kv_bits)
    other = catalog.stand_in(verdict.model)
    if other not in (None, verdict.model):
        ways.append(f"--model {other}")
    use = f"Use {' or '.join(ways)}, or" if ways else "Use"
    can = f"a model can use {gb(verdict.memory)} of" if here.gpu_memory else "there is"
    return MoshiError(
        f"{verdict.model} needs {verdict.needs}; on this machine {can} {gb(here.memory_total)}. "
        f"{use} --force to try it anyway"
    )


def _ways_out(verdict: Verdict, kv_bits: int | None) -> list[str]:
    """What fits in place of a model that does not, as options: the best there is."""
    names = [entry.name for entry in relatives(verdict.model)] or [verdict.model]
    for bits in (kv_bits,) if kv_bits else (None, 8, 4):
        for name in names:
            needs = needs_of(name, bits)
            if needs is not None and needs.total <= verdict.memory:
                kv = f" --kv-bits {bits}" if bits and not kv_bits else ""
                return [f"--model {name}{kv} (needs {gb(needs.total)})"]
    return made_small(verdict)


def made_small(verdict: Verdict) -> list[str]:
    """How to make a published model small enough for a Mac with 8 GB, where that is enough."""
    whole = next((e for e in relatives(verdict.model) if e.bits == 16), None)
    shape = None if whole is None else small_shape(whole.name)
    if whole is None or shape is None or shape.needs.total > verdict.memory:
        return []
    folder = f"{whole.series}-small"
    return [
        f"--model {folder} --kv-bits {shape.kv_bits} (needs {gb(shape.needs.total)}), once made by "
        f"`moshi-quantize {whole.name} {folder} --recipe {SMALL_RECIPE} --no-report`"
    ]


def relatives(name: str) -> list[Entry]:
    """The precisions of a published model's series, the most exact first; else none."""
    entry = catalog.find(name)
    return catalog.series(entry.series) if entry is not None and entry.series else []


def local_files(name: str) -> ModelFiles | None:
    """The model's files, if all of them are on this machine."""
    with suppress(HubError):
        return find_files(name, offline=True)
    return None


def needs_of(name: str, kv_bits: int | None = None) -> Needs | None:
    """The memory that a model takes: by its files if they are here, else by the catalogue.

    None where neither knows it.
    """
    files = local_files(name)
    if files is not None:
        return needs_of_checkpoint(read_headers(name, files), kv_bits)
    shape = published_shape(name, kv_bits)
    if shape is not None:
        return shape.needs
    entry = catalog.find(name)
    return None if entry is None else Needs(entry.nbytes, conversation=0, codec=0)


def late_warning(name: str, seconds: Sequence[float], budget_ms: float = BUDGET_MS) -> str | None:
    """A line to show before a conversation if frames take too long (p95), and what to do.

    Args:
        name: the model's.
        seconds: what frames took, as `time_session` gives them.
        budget_ms: what a frame may take.
    """
    p95 = percentiles(seconds)["p95"]
    if p95 <= budget_ms:
        return None
    return (
        f"{name} takes {p95:.0f} ms per frame here (p95), and real time is {budget_ms:.0f} ms: the "
        f"sound will have gaps. Close other programs, or use {_lighter(name)}"
    )


def _lighter(name: str) -> str:
    """What to run instead of a model that is too slow."""
    entry, smallest = catalog.find(name), catalog.default_model()
    lighter = [e for e in relatives(name) if entry is not None and e.bits < entry.bits]
    if lighter:
        return f"--model {lighter[-1].name}, which reads least per frame"
    return "a faster machine" if entry is not None and entry.bundled else f"--model {smallest}"
