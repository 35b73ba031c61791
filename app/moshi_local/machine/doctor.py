"""Does this machine hold a conversation, and with which model? Measured, or predicted and said so.

A model that is here is run; of one that is not, `prediction` says what its frames would take. Never
uses the network. No figure is given for a machine other than this one.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

import moshi_mlx
from moshi_mlx import AudioDeviceError, HubError, MoshiError
from moshi_mlx.config import MimiConfig
from moshi_mlx.hub import ALIASES, BUNDLED, ModelFiles, resolve

from ..platform import Machine, machine
from .bench import percentiles
from .prediction import (
    PRECISIONS,
    Needs,
    Shape,
    Speed,
    Speeds,
    gb,
    long_conversation_ms,
    needs_of_files,
    predict,
    published_shape,
)

__all__ = [
    "AUTO",
    "BUDGET_MS",
    "Diagnosis",
    "Verdict",
    "cached_models",
    "check_before",
    "diagnose",
    "doctor",
    "late_warning",
    "print_diagnosis",
    "time_session",
]

BUDGET_MS = 1000 / MimiConfig().frame_rate
"""A frame of sound lasts 80 ms: what a step may take."""

AUTO = {voice: (f"{voice}-q8", f"{voice}-q4") for voice in ("moshiko", "moshika")}
"""Names without a precision → what they may mean, the most exact first."""

# ------------------------------------------------------------------------------- measurement


class Steps(Protocol):
    """The part of a session that is timed."""

    def step(self, pcm: Any) -> object:
        """A frame, heard and said."""

    def reset(self) -> None:
        """Back to the state of a fresh session."""


def time_session(
    session: Steps, frame_size: int, frames: int, *, warm_up: int = 3, limit: float = 30.0
) -> list[float]:
    """Seconds of each whole step of a session on quiet noise; resets it then.

    With few frames it serves as the warm-up of a conversation. The memory of a conversation that
    has just begun is short: a long one takes more (`Verdict.growth_ms`).

    Args:
        session: is stepped `warm_up + frames` times; fewer times are returned after `limit`
            seconds, at least one.
        frame_size: samples.
        frames: how many times to return.
        warm_up: frames before them; the first ones compile.
        limit: seconds for all of it.
    """
    rng = np.random.default_rng(0)
    times: list[float] = []
    while len(times) < warm_up + frames and (len(times) <= warm_up or sum(times) < limit):
        pcm = rng.uniform(-0.01, 0.01, frame_size).astype(np.float32)
        began = time.perf_counter()
        session.step(pcm)
        times.append(time.perf_counter() - began)
    session.reset()
    return times[warm_up:]


def late_warning(name: str, seconds: Sequence[float], budget_ms: float = BUDGET_MS) -> str | None:
    """A line to show before a conversation if frames take too long (p95), with the way out.

    Args:
        name: the model's.
        seconds: what frames took, as `time_session` gives them.
        budget_ms: what a frame may take.
    """
    p95 = percentiles(seconds)["p95"]
    if p95 <= budget_ms:
        return None
    return (
        f"{name} takes {p95:.0f} ms a frame here (p95), {budget_ms:.0f} ms is what there is: the "
        f"sound will have gaps. Close other programs, or use {_lighter(name)}"
    )


def _lighter(name: str) -> str:
    """What to run instead of a model that is too slow, from its name alone."""
    shape = published_shape(name)
    if shape is not None and shape.bits != 4:
        return f"--model {_voice(name)}-q4, which reads least for a frame"
    return "a faster machine" if name in BUNDLED else "--model nano"


def _voice(name: str) -> str:
    """Of a published model, or of the one to propose instead of another."""
    return "moshika" if "moshika" in name else "moshiko"


# ------------------------------------------------------------------------------- the verdict


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a model can be talked with on this machine.

    model: the name to load; for a name of `AUTO`, what was chosen.
    needs: memory, or None where nothing is known of the model.
    memory: what a model may take on this machine at most (bytes); 0 if that is unknown.
    frame_ms: p50, p95 and, if measured, max of a whole frame; None if neither was done.
    predicted: frame_ms is a prediction, at full context.
    frames: how many were measured.
    codec: with which of the two they were measured.
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
        start = f"holds {self.budget_ms:.0f} ms with {self.model}"
        if self.fits is False:
            return f"{start}: no, it needs {gb(_size(self))} of memory of {gb(self.memory)}"
        if self.frame_ms is None:
            return f"{start}: unknown, it is not on this machine"
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
    For a name of `AUTO` the precision is chosen: among those that fit in memory, the first that is
    predicted to be in time, what is already on this machine before what is not; if none is in time,
    the smallest. That takes seconds of measuring, unless only one fits. Load `Verdict.model`.

    Args:
        name: as the user gave it.
        force: let a model pass that does not fit.
        here: the machine; this one if None.
        speed_of: measures it; `Speeds()` if None.
        kv_bits: the conversation's, as `Moshi.session` takes it.

    Raises:
        MoshiError: the model does not fit in memory; with the numbers and the way out.
        CheckpointError: its files are broken.
    """
    here = here or machine()
    if name in AUTO:
        verdict = _choose(AUTO[name], here, speed_of or Speeds(), kv_bits)
    else:
        verdict = Verdict(name, _needs(name, kv_bits), here.usable_memory)
    if verdict.fits is False and not force:
        raise _too_large(verdict, here, kv_bits)
    return replace(verdict, advice=_shortage(verdict, here))


def _choose(
    names: Sequence[str],
    here: Machine,
    speed_of: Callable[[Shape], Speed],
    kv_bits: int | None,
) -> Verdict:
    """See `check_before`; `names` are published ones, the most exact first."""
    shapes = [s for s in (published_shape(name, kv_bits) for name in names) if s is not None]
    verdicts = [Verdict(shape.name, shape.needs, here.usable_memory) for shape in shapes]
    fitting = [pair for pair in zip(shapes, verdicts, strict=True) if pair[1].fits is not False]
    if len(fitting) < 2:
        return fitting[0][1] if fitting else verdicts[-1]
    fitting.sort(key=lambda pair: _local(pair[0].name) is None)  # stable
    predicted: list[Verdict] = []
    for shape, verdict in fitting:
        predicted.append(_predicted(shape, verdict, speed_of))
        if predicted[-1].holds:
            return predicted[-1]
    return min(predicted, key=_size)


def _predicted(shape: Shape, verdict: Verdict, speed_of: Callable[[Shape], Speed]) -> Verdict:
    return replace(verdict, frame_ms=predict(shape, speed_of(shape)).frame_ms, predicted=True)


def _size(verdict: Verdict) -> int:
    return verdict.needs.total if verdict.needs else 0


def _shortage(verdict: Verdict, here: Machine) -> str | None:
    """What to say if a model fits, but not beside what runs now."""
    short = _size(verdict) - here.memory_available
    if short <= 0 or not here.memory_available:
        return None
    return f"close other programs first: {verdict.model} needs {gb(short)} more than is free now"


def _too_large(verdict: Verdict, here: Machine, kv_bits: int | None) -> MoshiError:
    ways = ["--model nano"]
    if published_shape(verdict.model) is not None:
        voice = _voice(verdict.model)
        shapes = [published_shape(f"{voice}-{kind}", kv_bits) for kind in PRECISIONS]
        fitting = [s for s in shapes if s is not None and s.needs.total <= verdict.memory]
        ways = [f"--model {s.name} (needs {gb(s.needs.total)})" for s in fitting[:1]] + ways
    can = f"the GPU can use {gb(verdict.memory)} of" if here.gpu_memory else "there is"
    return MoshiError(
        f"{verdict.model} needs {verdict.needs}; on this machine {can} {gb(here.memory_total)}. "
        f"Use {' or '.join(ways)}, or --force to try it all the same"
    )


def _local(name: str) -> ModelFiles | None:
    """The model's files, if all of them are on this machine."""
    with suppress(HubError):
        return resolve(name, offline=True)
    return None


def _needs(name: str, kv_bits: int | None) -> Needs | None:
    """The memory that a model takes, if its files are here or it is a published one."""
    files = _local(name)
    if files is not None:
        return needs_of_files(files, kv_bits)
    shape = published_shape(name, kv_bits)
    return shape.needs if shape is not None else None


# -------------------------------------------------------------------------------- the report


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All that `moshi-local doctor` says.

    sound: the devices; `sound_problem` says why there are none.
    cached: Moshi models that were fetched before and are complete.
    verdict: of the model that was asked for.
    others: predictions for the published ones, `moshiko` for both voices.
    """

    machine: Machine
    sound: Sequence[Any]
    sound_problem: str | None
    cached: Sequence[str]
    verdict: Verdict
    others: Sequence[Verdict]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "machine": self.machine.as_dict() | {"usable_memory": self.machine.usable_memory},
            "sound": [asdict(device) for device in self.sound],
            "sound_problem": self.sound_problem,
            "models": {"bundled": list(BUNDLED), "cached": list(self.cached)},
            "verdict": self.verdict.as_dict(),
            "others": [verdict.as_dict() for verdict in self.others],
        }


def cached_models() -> list[str]:
    """The models of the hub's cache that are Moshis and complete, by alias if they have one."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        found = scan_cache_dir().repos
    except (CacheNotFound, OSError):
        return []
    aliases = {repo: alias for alias, repo in ALIASES.items()}
    repos = sorted(repo.repo_id for repo in found if repo.repo_type == "model")
    names: list[str] = []
    for repo in repos:
        with suppress(MoshiError):
            resolve(repo, offline=True)
            names.append(aliases.get(repo, repo))
    return names


def diagnose(
    name: str,
    *,
    frames: int = 100,
    list_devices: Callable[[], Sequence[Any]] | None = None,
    kv_bits: int | None = None,
) -> Diagnosis:
    """Looks at the machine, and times the model or predicts what it would take. No network.

    Args:
        name: a model, as `moshi_mlx.load` takes it, or a name of `AUTO`.
        frames: frames to time, if the model is here and fits in memory.
        list_devices: lists the sound devices as dataclasses; the program's own if None.
        kv_bits: the conversation's, as `Moshi.session` takes it.

    Raises:
        HubError: there is no model of that name.
        CheckpointError: the model's files are broken.
    """
    here, speeds = machine(), Speeds()
    sound, problem = _devices(list_devices)
    if name in AUTO:
        name = _choose(AUTO[name], here, speeds, kv_bits).model
    verdict = _verdict(name, here, frames, speeds, kv_bits)
    others = [_published(f"moshiko-{kind}", here, speeds, kv_bits) for kind in PRECISIONS]
    if verdict.holds is False:
        verdict = replace(verdict, advice=_advice(verdict, others))
    elif verdict.predicted:
        verdict = replace(verdict, advice=_shortage(verdict, here))
    return Diagnosis(here, sound, problem, cached_models(), verdict, others)


def _devices(
    list_devices: Callable[[], Sequence[Any]] | None,
) -> tuple[Sequence[Any], str | None]:
    from ..audio import devices

    try:
        return (list_devices or devices.list_devices)(), None
    except AudioDeviceError as error:
        return [], str(error)


def _published(
    name: str, here: Machine, speed_of: Callable[[Shape], Speed], kv_bits: int | None
) -> Verdict:
    """Of a published model that need not be here."""
    shape = published_shape(name, kv_bits)
    assert shape is not None
    verdict = Verdict(name, shape.needs, here.usable_memory, predicted=True)
    return verdict if verdict.fits is False else _predicted(shape, verdict, speed_of)


def _verdict(
    name: str,
    here: Machine,
    frames: int,
    speed_of: Callable[[Shape], Speed],
    kv_bits: int | None,
) -> Verdict:
    """Measured if the model is here, predicted if it is a published one."""
    try:
        files = resolve(name, offline=True)
    except HubError:
        if published_shape(name) is not None:
            return _published(name, here, speed_of, kv_bits)
        if "/" in name and not name.startswith(("/", ".", "~")) and not Path(name).is_dir():
            return Verdict(name, None, here.usable_memory)  # a repository never fetched
        raise
    verdict = Verdict(name, needs_of_files(files, kv_bits), here.usable_memory)
    return verdict if verdict.fits is False else _measured(verdict, frames, kv_bits)


def _measured(verdict: Verdict, frames: int, kv_bits: int | None) -> Verdict:
    moshi = moshi_mlx.load(verdict.model, offline=True)
    with moshi.session(kv_bits=kv_bits) as session:
        times = time_session(session, moshi.frame_size, frames, warm_up=10)
    summary = percentiles(times)
    return replace(
        verdict,
        frame_ms={key: summary[key] for key in ("p50", "p95", "max")},
        codec=moshi.codec.name,
        growth_ms=round(long_conversation_ms(moshi.lm, kv_bits), 2),
        frames=len(times),
        budget_ms=1000 / moshi.frame_rate,
    )


def _advice(verdict: Verdict, others: Sequence[Verdict]) -> str:
    """The largest published model below this one that holds, else nano."""
    if verdict.model in BUNDLED:
        return "close other programs and try again: nano is the smallest there is"
    holding = [v for v in others if v.holds and _size(v) < _size(verdict)]
    if not holding:
        return "use --model nano, which is small and comes with the program"
    voice = "moshika" if "moshika" in verdict.model else "moshiko"
    best = max(holding, key=_size).model.replace("moshiko", voice)
    return f"use --model {best}, which is predicted to hold"


def doctor(
    name: str,
    *,
    frames: int = 100,
    as_json: bool = False,
    list_devices: Callable[[], Sequence[Any]] | None = None,
    kv_bits: int | None = None,
    screen: Console | None = None,
) -> int:
    """The command: prints a report (or JSON), returns the exit code.

    Returns:
        0 if the model holds a conversation, 1 if not or if that cannot be said. Errors are raised
        as by `diagnose`; the program's code for them is 2.
    """
    found = diagnose(name, frames=frames, list_devices=list_devices, kv_bits=kv_bits)
    if as_json:
        print(json.dumps(found.as_dict(), ensure_ascii=False, indent=1))
    else:
        print_diagnosis(found, screen or Console(highlight=False))
    return 0 if found.verdict.holds else 1


def print_diagnosis(found: Diagnosis, screen: Console) -> None:
    """The report for a person."""
    here, verdict = found.machine, found.verdict
    rows = Table.grid(padding=(0, 2))
    rows.add_column(style="bold")
    rows.add_column(overflow="fold")

    def row(label: str, text: str) -> None:
        rows.add_row(label, Text(text))  # a name may hold what rich takes for markup

    fast = f", {here.performance_cores} of them fast" if here.performance_cores else ""
    row("machine", f"{here.chip}, {here.cores} cores{fast}")
    gpu = f", {gb(here.gpu_memory)} at most for the GPU" if here.gpu_memory else ""
    row("memory", f"{gb(here.memory_total)}, {gb(here.memory_available)} free now{gpu}")
    row("system", f"{here.os}; Python {here.python}; MLX {here.mlx} on the {here.backend}")
    if found.sound_problem:
        row("sound", found.sound_problem)
    else:
        row("microphones", _listing(found.sound, "input"))
        row("speakers", _listing(found.sound, "output"))
    row("models", ", ".join([*(f"{name} (bundled)" for name in BUNDLED), *found.cached]))
    if verdict.needs is not None:
        row("needs", f"{verdict.model}: {verdict.needs}")
    if verdict.frame_ms is not None:
        how = (
            "predicted"
            if verdict.predicted
            else f"measured, {verdict.frames} frames, codec {verdict.codec}"
        )
        times = "  ".join(f"{key} {value:.1f}" for key, value in verdict.frame_ms.items())
        row("a frame", f"{times} ms ({how}), of {verdict.budget_ms:.0f} ms")
    screen.print(rows)
    if found.others:
        table = Table("published", "memory", "a frame, p50 / p95 ms", "holds", box=None)
        table.title, table.title_justify = "predicted for this machine, not measured", "left"
        for other in found.others:
            ms = other.frame_ms
            needed = gb(other.needs.total) if other.needs else ""
            times = f"{ms['p50']:.0f} / {ms['p95']:.0f}" if ms else "does not fit in memory"
            table.add_row(other.model, needed, times, "yes" if other.holds else "no")
        screen.print(table)
    screen.print(verdict.line, style="bold", markup=False, soft_wrap=True)
    if verdict.advice:
        screen.print(verdict.advice, markup=False, soft_wrap=True)


def _listing(devices: Sequence[Any], kind: str) -> str:
    """The devices of `kind`, "input" or "output", the default one marked."""
    texts = [
        f"{d.index} {d.name}{' (default)' if getattr(d, f'default_{kind}', False) else ''}"
        for d in devices
        if getattr(d, f"{kind}s")
    ]
    return ", ".join(texts) or "none"
