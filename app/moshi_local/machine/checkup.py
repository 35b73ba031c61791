"""The first hour on a Mac in one file: what `moshi-local doctor --full` writes.

What runs by itself is measured; what needs a person is listed with its commands and with room for
the answers. The file is meant to be sent to others, so it names no person, no folder and no
device. Never uses the network.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from rich.console import Console

import moshi_mlx
from moshi_mlx import Moshi, MoshiError, catalog
from moshi_mlx.outputs import WholeFile

from ..platform import MACOS, headphones, under_memory_pressure
from ..report import percentiles, warm_up
from .bench import bench_model
from .doctor import Diagnosis, diagnose, print_diagnosis
from .mimi_codes import bundled_question, tf32_agreement
from .verdict import Verdict, local_files, needs_of

__all__ = ["DEFAULT_REPORT", "StepByHand", "full_checkup", "steps_by_hand"]

DEFAULT_REPORT = Path("moshi-local-doctor.json")
CONTENT = (
    "the chip, memory and versions; what kinds of sound devices there are, without their names; "
    "times, and nano's answer to the bundled question. No names, no folders, no serial numbers. "
    "Nothing is sent"
)
PACKAGES = ("mlx", "numpy", "sounddevice", "rustymimi", "samplerate", "pywebrtc-audio")
ANSWER_SECONDS = 4.0
# Names of devices may be names of people: of a name, the first of these that it has is kept.
DEVICE_KINDS = (
    *("AirPods", "Beats", "iPhone", "iPad", "MacBook Air", "MacBook Pro", "MacBook", "iMac"),
    *("Mac mini", "Mac Studio", "Mac Pro", "Studio Display", "Pro Display", "External"),
    *("BlackHole", "Aggregate", "Zoom", "Teams", "USB", "HDMI", "DisplayPort"),
)
OTHER_MODEL = "another model"


@dataclass(frozen=True, slots=True)
class StepByHand:
    """What a person is asked to do: the commands as they are typed, and what to note."""

    do: str
    commands: Sequence[str]
    notes: Sequence[str]

    def as_dict(self) -> dict[str, Any]:
        """For JSON, with room for the answers."""
        return {
            "do": self.do,
            "commands": list(self.commands),
            "answers": dict.fromkeys(self.notes),
        }


def steps_by_hand(model: str) -> list[StepByHand]:
    """The steps of the first hour on a Mac that need a person; `model` is the one to time."""
    bench = f"moshi-local bench --model {model}"
    return [
        StepByHand(
            "In a checkout: is the answer good, and do the tests pass?",
            ["make demo", "make test"],
            ["build/demo.wav is a good answer", "tests that failed"],
        ),
        StepByHand(
            "Talk for a minute with the Mac's own microphone and speakers.",
            ["moshi-local --model nano --seconds 60 --json"],
            [
                "macOS asked for the microphone",
                "after Allow it heard me without a restart",
                "it answered its own voice",
                *("callbacks", "xruns", "gaps", "delay_ms", "frame_ms"),
            ],
        ),
        StepByHand(
            "Start with AirPods in; take them out in the middle of a sentence; put them in again.",
            ["moshi-local --model nano"],
            [
                "seconds until it heard me after the start",
                "seconds without sound after they were taken out",
                "seconds without sound after they were put in again",
                "what was wrong",
            ],
        ),
        StepByHand(
            "While it talks, close the lid for ten seconds and open it.",
            ["moshi-local --model nano"],
            ["seconds without sound after the lid was opened", "what was wrong"],
        ),
        StepByHand(
            "Press q as soon as it listens, 20 times.",
            ["for i in {1..20}; do moshi-local --model nano; done"],
            ["times it did not end", "times the terminal was not as before"],
        ),
        StepByHand(
            "As many frames as in four minutes; in a second terminal, the memory that they take.",
            [
                f"{bench} --frames 3200 --json",
                "footprint -p $(pgrep -n -f 'moshi-local bench')",
            ],
            ["frame_ms", "footprint in the first minute", "footprint at the end"],
        ),
        StepByHand(
            "Fewer, larger batches of GPU work against MLX's own size: each twice, by turns.",
            [f"MLX_MAX_OPS_PER_BUFFER={n} {bench} --json" for n in (1000, 40)],
            ["frame_ms with 1000", "frame_ms without"],
        ),
    ]


def full_checkup(
    path: Path,
    name: str,
    *,
    frames: int = 100,
    list_devices: Callable[[], Sequence[Any]] | None = None,
    kv_bits: int | None = None,
    screen: Console | None = None,
    notes: Console | None = None,
) -> int:
    """Measures for some minutes, and writes the file at the end, or nothing if it is stopped.

    Args:
        path: of the file; must not be there yet.
        name: the model for the verdict, as `diagnose` takes it.
        frames: to time for the verdict; three times as many for each model that is here.
        list_devices: as for `diagnose`.
        kv_bits: as for `diagnose`.
        screen: where the doctor's report goes.
        notes: where the progress goes.

    Returns:
        As `doctor`.

    Raises:
        MoshiError: the file is there already or cannot be written, or as by `diagnose`.
    """
    screen, notes = screen or Console(highlight=False), notes or Console(stderr=True)

    def say(text: str) -> None:
        notes.print(text, markup=False, highlight=False, soft_wrap=True)

    if path.exists():  # perhaps with answers in it
        raise MoshiError(f"{path} is there already: move it away, or name another file")
    file = WholeFile(path, "the report")
    say(f"This takes some minutes and then writes {path}: {CONTENT}.")
    say("measuring: this machine …")
    found = diagnose(name, frames=frames, list_devices=list_devices, kv_bits=kv_bits)
    print_diagnosis(found, screen)
    left_out: dict[str, str] = {}
    models = _models_here(found, left_out)
    report = _facts(found, left_out)
    report["question"] = _measure("question", left_out, say, _ask_nano)
    for part, measure in (
        ("bench", lambda model: _bench(model, 3 * frames, kv_bits)),
        ("tf32", tf32_agreement),
    ):
        report[part] = {
            _public(model): _measure(f"{part} of {_public(model)}", left_out, say, measure, model)
            for model in models
        }
    if MACOS:
        steps = steps_by_hand([model for model in models if catalog.find(model)][-1])
        report["by_hand"] = [step.as_dict() for step in steps]
    else:
        left_out["by_hand"] = "the steps for a person are for a Mac"
    report["left_out"] = left_out
    file.write(json.dumps(report, ensure_ascii=False, indent=1) + "\n")
    for part, reason in left_out.items():
        say(f"left out: {part}: {reason}")
    say(f"written: {path}")
    if MACOS:
        say('Its part "by_hand" has the steps for you, with a place for each answer.')
    return found.exit_code


def _models_here(found: Diagnosis, left_out: dict[str, str]) -> list[str]:
    """The bundled one, then those of the cache and the one asked for, the largest last."""
    smallest, asked = catalog.default_model(), found.verdict.model
    sizes: dict[str, int] = {}
    for name in {*found.cached, *([asked] if local_files(asked) else [])} - {smallest}:
        try:
            needs = needs_of(name)
        except MoshiError:  # loading will say what is wrong
            needs = None
        size = needs.total if needs else 0
        if size > found.machine.usable_memory:
            left_out[f"bench of {_public(name)}"] = "it does not fit in memory"
        else:
            sizes[name] = size
    return [smallest, *sorted(sizes, key=lambda name: (sizes[name], name))]


def _facts(found: Diagnosis, left_out: dict[str, str]) -> dict[str, Any]:
    """What the doctor found, without names."""
    if found.sound_problem:
        left_out["devices"] = _without_paths(found.sound_problem)
    elif not found.sound:
        left_out["devices"] = "there are none"
    return {
        "moshi_local": moshi_mlx.__version__,
        "packages": {name: _version(name) for name in PACKAGES},
        "machine": found.machine.as_dict() | {"usable_memory": found.machine.usable_memory},
        "memory_pressure": under_memory_pressure(),
        "installation_problem": found.installation_problem,
        "sound": {
            **{key: _without_paths(text) for key, text in found.sound_system.items()},
            "devices": [_device(device) for device in found.sound],
        },
        "cached": [_public(name) for name in found.cached],
        "verdict": _verdict(found.verdict),
        "others": [_verdict(verdict) for verdict in found.others],
    }


def _device(device: Any) -> dict[str, Any]:
    """Of a device all but its name."""
    name = device.name.casefold()
    return {
        "kind": next((kind for kind in DEVICE_KINDS if kind.casefold() in name), "other"),
        "headphones": headphones(device.name),
        "inputs": device.inputs,
        "outputs": device.outputs,
        "rate": device.rate,
        "host_api": device.host_api,
        "default_input": device.default_input,
        "default_output": device.default_output,
    }


def _verdict(verdict: Verdict) -> dict[str, Any]:
    return replace(verdict, model=_public(verdict.model)).as_dict()


def _public(name: str) -> str:
    """A name that everybody knows, or none: folders and repositories may be named after people."""
    entry = catalog.find(name)
    return OTHER_MODEL if entry is None else entry.name


def _without_paths(text: str) -> str:
    """A message without what may be a path; of sounddevice's own library, that it is that."""
    if "_sounddevice_data" in text:
        return "sounddevice's own"
    if text.startswith(("/opt/homebrew/", "/usr/")):
        return text
    return re.sub(r"[/~][^\n:]*", "…", text).strip()


def _version(name: str) -> str | None:
    with suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(name)
    return None


def _measure(
    part: str,
    left_out: dict[str, str],
    say: Callable[[str], None],
    measure: Callable[..., dict[str, Any]],
    *arguments: str,
) -> dict[str, Any] | None:
    """What was measured; None if it failed, and then `left_out` says why."""
    say(f"measuring: {part} …")
    try:
        return measure(*arguments)
    except Exception as error:  # whatever it is, the rest is still worth having
        left_out[part] = f"{type(error).__name__}: {_without_paths(str(error))}"
        return None


def _ask_nano() -> dict[str, Any]:
    """The bundled question, frame after frame: what nano answers, and its frames' times."""
    moshi: Moshi = moshi_mlx.load(catalog.default_model(), verb="talk", offline=True)
    size, budget = moshi.frame_size, 1 / moshi.frame_rate
    pcm = np.pad(bundled_question(), (0, round(ANSWER_SECONDS * moshi.sample_rate)))
    words: list[str] = []
    times: list[float] = []
    with moshi.session(seed=0) as session:
        warm_up(session, size)
        for start in range(0, len(pcm) - size + 1, size):
            began = time.perf_counter()
            frame = session.step(pcm[start : start + size])
            times.append(time.perf_counter() - began)
            words += [word.text for word in frame.words]
        words += [word.text for word in session.flush()]
    return {
        "words": " ".join(words),
        "codec": moshi.codec.name,
        "frames": len(times),
        "frame_ms": percentiles(times),
        "late": sum(seconds > budget for seconds in times),
    }


def _bench(name: str, frames: int, kv_bits: int | None) -> dict[str, Any]:
    """As `moshi-local bench`, and MLX's memory (bytes)."""
    mx.clear_cache()
    mx.reset_peak_memory()
    moshi = moshi_mlx.load(name, verb="talk", offline=True)
    found = bench_model(moshi, frames, kv_bits=kv_bits).as_dict()
    memory = {
        "active": mx.get_active_memory(),
        "cache": mx.get_cache_memory(),
        "peak": mx.get_peak_memory(),
    }
    return found | {"name": _public(name), "mlx_memory": memory}
