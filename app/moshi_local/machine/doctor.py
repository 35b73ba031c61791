"""What this machine can do: the report of `moshi-local doctor`. Measured, or predicted and said so.

A model that is here is run; of one that is not, `prediction` says what its frames would take. Never
uses the network. No figure is given for a machine other than this one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

import mlx.core as mx
from rich.console import Console
from rich.table import Table
from rich.text import Text

import moshi_mlx
from moshi_mlx import AudioDeviceError, HubError, MoshiError, catalog
from moshi_mlx.backend import default_dtype, slow_reason
from moshi_mlx.checkpoint import find_files, read_headers
from moshi_mlx.distributions import installation_problem
from moshi_mlx.errors import counted
from moshi_mlx.families import Verb
from moshi_mlx.families.kinds import check_verb
from moshi_mlx.footprint import gb
from moshi_mlx.hub import is_folder_name, resolve
from moshi_mlx.program import NO, OK

from ..platform import Machine, machine, microphone_permission
from ..report import percentiles, warm_up
from .prediction import (
    Shape,
    Speed,
    Speeds,
    long_conversation_ms,
    needs_of_checkpoint,
    published_shape,
)
from .verdict import (
    Together,
    Verdict,
    choose,
    local_files,
    made_small,
    needs_of,
    predicted,
    relatives,
    shortage,
    size_of,
)

__all__ = [
    "Diagnosis",
    "cached_models",
    "diagnose",
    "doctor",
    "print_diagnosis",
]


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All that `moshi-local doctor` says.

    sound: the devices; `sound_problem` says why there are none.
    sound_system: what they are reached through; see `sound_system`.
    cached: Moshi models that were fetched before and are complete.
    installation_problem: what is wrong with the program's own files, if anything.
    slow_reason: why MLX is slower here than it need be, if it is.
    verdict: of the model that was asked for.
    together: with the model that was asked for captions, if one was.
    others: predictions for the published ones, `moshiko` for both voices.
    """

    machine: Machine
    sound: Sequence[Any]
    sound_problem: str | None
    cached: Sequence[str]
    verdict: Verdict
    others: Sequence[Verdict]
    installation_problem: str | None = None
    slow_reason: str | None = None
    sound_system: Mapping[str, str] = field(default_factory=dict)
    together: Together | None = None

    @property
    def missing(self) -> list[str]:
        """What a live conversation lacks of "microphone" and "speaker"."""
        kinds = {"microphone": "inputs", "speaker": "outputs"}
        return [what for what, kind in kinds.items() if not any(map(attrgetter(kind), self.sound))]

    @property
    def exit_code(self) -> int:
        """Of the command: OK if one can talk here with the model, and captions if asked for."""
        holds = self.verdict.holds and (self.together is None or self.together.holds)
        return OK if holds and not self.missing else NO

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "machine": self.machine.as_dict() | {"usable_memory": self.machine.usable_memory},
            "installation_problem": self.installation_problem,
            "slow_reason": self.slow_reason,
            "sound": [asdict(device) for device in self.sound],
            "sound_problem": self.sound_problem,
            "sound_missing": self.missing,
            "sound_system": dict(self.sound_system),
            "models": {"bundled": catalog.bundled(), "cached": list(self.cached)},
            "verdict": self.verdict.as_dict(),
            "others": [verdict.as_dict() for verdict in self.others],
            **({} if self.together is None else {"captions": self.together.as_dict()}),
        }


def cached_models() -> list[str]:
    """The models of the hub's cache that are Moshis and complete, by alias if they have one."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        found = scan_cache_dir().repos
    except (CacheNotFound, OSError):
        return []
    repos = sorted(repo.repo_id for repo in found if repo.repo_type == "model")
    names: list[str] = []
    for repo in repos:
        with suppress(MoshiError):
            resolve(repo, offline=True)
            entry = catalog.find(repo)
            names.append(repo if entry is None else entry.name)
    return names


def diagnose(
    name: str,
    *,
    frames: int = 100,
    list_devices: Callable[[], Sequence[Any]] | None = None,
    kv_bits: int | None = None,
    captions: str | None = None,
) -> Diagnosis:
    """Looks at the machine, and times the model or predicts what it would take. No network.

    Args:
        name: a model, as `moshi_mlx.load` takes it, or the name of a series.
        frames: frames to time, if the model is here and fits in memory.
        list_devices: lists the sound devices as dataclasses; the program's own if None.
        kv_bits: the conversation's, as `Moshi.session` takes it.
        captions: a model that is to write captions beside it, if one is.

    Raises:
        HubError: there is no model of that name.
        VerbError: the model cannot talk, or that for captions cannot transcribe.
        CheckpointError: the model's files are broken.
    """
    check_verb(name, "talk")
    if captions is not None:
        check_verb(captions, "transcribe")
    here, speeds = machine(), Speeds()
    sound, problem = _devices(list_devices)
    if catalog.series(name):
        chosen = choose(name, here, speeds, kv_bits)
        name, kv_bits = chosen.model, chosen.kv_bits
    verdict = _verdict(name, here, frames, speeds, kv_bits)
    together = None if captions is None else _together(verdict, captions, here, frames)
    others = [_published(shape, here, speeds) for shape in published_shapes(kv_bits)]
    if verdict.holds is False:
        verdict = replace(verdict, advice=_advice(verdict, others))
    elif verdict.predicted:
        verdict = replace(verdict, advice=shortage(verdict, here))
    return Diagnosis(
        here,
        sound,
        problem,
        cached_models(),
        verdict,
        others,
        installation_problem(),
        slow_reason(),
        sound_system(),
        together,
    )


def _devices(
    list_devices: Callable[[], Sequence[Any]] | None,
) -> tuple[Sequence[Any], str | None]:
    from ..audio import devices

    try:
        return (list_devices or devices.list_devices)(), None
    except AudioDeviceError as error:
        return [], str(error)


def sound_system() -> dict[str, str]:
    """PortAudio's version and library, and on macOS whether the microphone may be heard.

    Empty where PortAudio is missing.

    sounddevice brings one on macOS, but a Python of Homebrew's may find Homebrew's first.
    """
    from ..audio import devices

    try:
        sd = devices.sounddevice()
    except AudioDeviceError:
        return {}
    version = sd.get_portaudio_version()[1].removeprefix("PortAudio ")
    permission = {"permission": text} if (text := microphone_permission()) else {}
    return {"portaudio": version, "library": str(sd._libname), **permission}


def published_shapes(kv_bits: int | None = None) -> list[Shape]:
    """Those of the catalogue, each once: models that differ only in their voice are alike."""
    distinct = {(e.preset, e.bits): e.name for e in reversed(catalog.ENTRIES) if e.preset}
    found = (published_shape(name, kv_bits) for name in reversed(distinct.values()))
    return [shape for shape in found if shape is not None]


def _published(shape: Shape, here: Machine, speed_of: Callable[[Shape], Speed]) -> Verdict:
    """Of a published model that need not be here."""
    verdict = Verdict(shape.name, shape.needs, here.usable_memory, predicted=True)
    return verdict if verdict.fits is False else predicted(shape, verdict, speed_of)


def _verdict(
    name: str,
    here: Machine,
    frames: int,
    speed_of: Callable[[Shape], Speed],
    kv_bits: int | None,
) -> Verdict:
    """Measured if the model is here, predicted if it is a published one."""
    try:
        files = find_files(name, offline=True)
    except HubError:
        if (shape := published_shape(name, kv_bits)) is not None:
            return _published(shape, here, speed_of)
        if "/" in name and not is_folder_name(name) and not Path(name).exists():
            return Verdict(name, None, here.usable_memory)  # a repository never fetched
        raise
    needs = needs_of_checkpoint(read_headers(name, files), kv_bits)
    verdict = Verdict(name, needs, here.usable_memory)
    return verdict if verdict.fits is False else _measured(verdict, frames, kv_bits)


def _together(talks: Verdict, captions: str, here: Machine, frames: int) -> Together:
    """With the model for captions, measured if it is here and both fit."""
    verdict = Verdict(captions, needs_of(captions), here.usable_memory)
    found = Together(talks, verdict)
    if found.fits is False or local_files(captions) is None:
        return found
    return replace(found, captions=_measured(verdict, frames, None, "transcribe"))


def _measured(verdict: Verdict, frames: int, kv_bits: int | None, verb: Verb = "talk") -> Verdict:
    moshi = moshi_mlx.load(verdict.model, verb=verb, offline=True)
    with moshi.session(kv_bits=kv_bits) as session:
        times = warm_up(session, moshi.frame_size, frames, before=10)
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
    """The largest published model below this one that holds, in its voice, else a bundled one."""
    smallest = catalog.default_model()
    if verdict.model in catalog.bundled():
        return f"close other programs and try again: {smallest} is the smallest model"
    holding = [v for v in others if v.holds and size_of(v) < size_of(verdict)]
    if not holding:
        small = made_small(verdict) if verdict.fits is False else []
        ways = [*small, f"--model {smallest}, which is small and comes with the program"]
        return f"use {', or '.join(ways)}"
    best = max(holding, key=size_of).model
    bits = {e.name: e.bits for e in catalog.ENTRIES}
    same_voice = [e.name for e in relatives(verdict.model) if e.bits == bits[best]]
    return f"use --model {(same_voice or [best])[0]}, which is predicted to run in real time"


def doctor(
    name: str,
    *,
    frames: int = 100,
    as_json: bool = False,
    list_devices: Callable[[], Sequence[Any]] | None = None,
    kv_bits: int | None = None,
    captions: str | None = None,
    screen: Console | None = None,
) -> int:
    """The command: prints a report (or JSON), returns the exit code.

    Returns:
        0 if the model holds a conversation and there is a microphone and a speaker, 1 if not or if
        that cannot be said. Errors are raised as by `diagnose`; the program's code for them is 2.
    """
    found = diagnose(
        name, frames=frames, list_devices=list_devices, kv_bits=kv_bits, captions=captions
    )
    if as_json:
        print(json.dumps(found.as_dict(), ensure_ascii=False, indent=1))
    else:
        print_diagnosis(found, screen or Console(highlight=False))
    return found.exit_code


def print_diagnosis(found: Diagnosis, screen: Console) -> None:
    """The report for a person."""
    here, verdict = found.machine, found.verdict
    rows = Table.grid(padding=(0, 2))
    rows.add_column(style="bold")
    rows.add_column(overflow="fold")

    def row(label: str, text: str) -> None:
        rows.add_row(label, Text(text))  # a name may hold what rich takes for markup

    fast = f", {here.performance_cores} of them fast" if here.performance_cores else ""
    row("machine", f"{here.chip}, {counted(here.cores, 'core')}{fast}")
    gpu = f", {gb(here.gpu_memory)} at most for the GPU" if here.gpu_memory else ""
    row("memory", f"{gb(here.memory_total)}, {gb(here.memory_available)} free now{gpu}")
    row("system", f"{here.os}; Python {here.python}; MLX {here.mlx} on the {here.backend}")
    if found.installation_problem:
        row("installation", found.installation_problem)
    if found.slow_reason:
        row("speed", found.slow_reason)
    if found.sound_problem:
        row("sound", found.sound_problem)
    else:
        row("microphones", _listing(found.sound, "input"))
        row("speakers", _listing(found.sound, "output"))
    for label, text in found.sound_system.items():
        row(label, text)
    row("models", ", ".join([*(f"{name} (bundled)" for name in catalog.bundled()), *found.cached]))
    if verdict.needs is not None:
        row("needs", f"{verdict.model}: {verdict.needs}")
    if verdict.frame_ms is not None:
        how = (
            "predicted"
            if verdict.predicted
            else f"measured, {counted(verdict.frames, 'frame')}, codec {verdict.codec}"
        )
        times = "  ".join(f"{key} {value:.1f}" for key, value in verdict.frame_ms.items())
        row("per frame", f"{times} ms ({how}), of {verdict.budget_ms:.0f} ms")
    screen.print(rows)
    if found.others:
        table = Table("published", "memory", "ms per frame, p50 / p95", "real time", box=None)
        table.title, table.title_justify = "predicted for this machine, not measured", "left"
        for other in found.others:
            ms = other.frame_ms
            needed = gb(other.needs.total) if other.needs else ""
            times = f"{ms['p50']:.0f} / {ms['p95']:.0f}" if ms else "does not fit in memory"
            table.add_row(other.model, needed, times, "yes" if other.holds else "no")
        screen.print(table)
        if default_dtype() == mx.float32:
            screen.print("memory: in float32, as the CPU computes; a GPU's bfloat16 takes less")
    for line in (verdict.line, found.together and found.together.line):
        if line:
            screen.print(line, style="bold", markup=False, soft_wrap=True)
    if verdict.advice:
        screen.print(verdict.advice, markup=False, soft_wrap=True)
    if found.missing:
        screen.print(
            f"no {' and no '.join(found.missing)}: it cannot talk live here; files work: "
            "moshi-local run IN.wav OUT.wav",
            soft_wrap=True,
        )


def _listing(devices: Sequence[Any], kind: str) -> str:
    """The devices of `kind`, "input" or "output", the default one marked."""
    texts = [
        f"{d.index} {d.name}{' (default)' if getattr(d, f'default_{kind}', False) else ''}"
        for d in devices
        if getattr(d, f"{kind}s")
    ]
    return ", ".join(texts) or "none"
