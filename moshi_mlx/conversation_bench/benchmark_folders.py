"""The folders of Full-Duplex-Bench as scenes: a folder per sample, with `input.wav` and its marks.

Knows the layout of the published sets, versions 1 and 1.5; nothing of models. The data are the
user's to fetch. Times in the files are seconds.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..activity import audible_spans, loudness
from ..arrays import Pcm
from ..errors import ConfigError, MoshiError, shown
from ..files import read_json
from ..sounds import open_sound
from .acoustics import decibels_to_factor
from .scenes import Axis, Marks, Scene, scene_seed
from .scores import USER_PAUSE, Span

SETS: Mapping[str, Axis] = {
    "candor_pause_handling": Axis.PAUSE,
    "synthetic_pause_handling": Axis.PAUSE,
    "candor_turn_taking": Axis.TURN,
    "icc_backchannel": Axis.BACKCHANNEL,
    "synthetic_user_interruption": Axis.INTERRUPTION,
    "user_interruption": Axis.INTERRUPTION,
    "user_backchannel": Axis.USER_BACKCHANNEL,
    "talking_to_other": Axis.OTHERS,
    "background_speech": Axis.BACKGROUND,
}
"""The published sets, by the names of their folders."""

PEOPLE = "icc_gt_distribution.json"
"""When people murmur in the samples of icc_backchannel: its number to a list."""
INPUT, OUTPUT, WORDS = "input.wav", "output.wav", "output.json"

_VOICE_DB = -30.0  # below the loudest window of a recording, which may be noisy
_WINDOW_SECONDS = 0.02


def found_sets(folder: Path) -> dict[str, Path]:
    """The sets in a folder, at most two levels deep, or the one that it is.

    Raises:
        MoshiError: there is none, or no such folder.
    """
    if not folder.is_dir():
        raise MoshiError(f"{folder}: there is no such folder of Full-Duplex-Bench")
    places = [folder, *sorted(folder.glob("*")), *sorted(folder.glob("*/*"))]
    found = {p.name: p for p in reversed(places) if p.name in SETS and p.is_dir()}
    sets = {name: found[name] for name in SETS if name in found}
    if not sets:
        raise MoshiError(
            f"{folder}: has no set of Full-Duplex-Bench; give the folder that holds "
            f"{', '.join(SETS)}, or one of these"
        )
    return sets


def published_scenes(
    sets: Mapping[str, Path], count: int | None, rate: int, seed: int
) -> Iterator[Scene]:
    """The samples of sets in the order of their numbers, at most `count` of each.

    Raises:
        MoshiError: a file is missing or isn't as published; names it.
    """
    for name, folder in sets.items():
        people = _people(folder) if SETS[name] is Axis.BACKCHANNEL else {}
        for sample in samples_of(folder)[:count]:
            yield _scene(name, sample, rate, people, seed)


def samples_of(folder: Path) -> list[Path]:
    """The folders of a set's samples: those whose name is a number. Raises MoshiError: none."""
    samples = sorted((p for p in folder.iterdir() if p.name.isdigit()), key=lambda p: int(p.name))
    if not samples:
        raise MoshiError(f"{folder}: has no samples; each is a folder with a number as its name")
    return samples


def _scene(name: str, folder: Path, rate: int, people: Mapping[str, Any], seed: int) -> Scene:
    axis = SETS[name]
    pcm = open_sound(folder / INPUT).read(rate).mean(axis=0)
    seconds = len(pcm) / rate
    facts: dict[str, Any] = {"turn_end": seconds, "spoken": voice_spans(pcm, rate)}
    if axis is Axis.PAUSE:
        facts["pause"] = _span(_first(folder / "pause.json"), "timestamp", folder / "pause.json")
    elif axis is Axis.TURN:
        path = folder / "turn_taking.json"
        facts["turn_end"] = _span(_first(path), "timestamp", path)[0]
    elif axis is Axis.BACKCHANNEL:
        likely = people.get(folder.name)
        facts["people"] = None if likely is None else _numbers(likely, folder.name, PEOPLE)
    elif name == "synthetic_user_interruption":
        path = folder / "interrupt.json"
        entry = _first(path)
        facts |= _overlap(_span(entry, "timestamp", path), entry, "interrupt", "context")
    else:
        path = folder / "metadata.json"
        entry = read_json(path)
        span = _span(entry, "timestamps", path)
        facts |= _overlap(span, entry, "current_turn_text", "context_text")
    marks = Marks(axis, f"{name}/{folder.name}", **facts)
    return Scene(marks, pcm, after=0.0, seed=scene_seed(seed, axis, marks.name))


def _overlap(span: Span, entry: Mapping[str, Any], text: str, context: str) -> dict[str, Any]:
    texts = {"overlap_text": str(entry.get(text, "")), "context": str(entry.get(context, ""))}
    return {"overlap": span, "turn_end": span[0], **texts}


def voice_spans(pcm: Pcm, rate: int) -> list[Span]:
    """Where a recording has voice, by its loudness: 30 dB below the loudest, pauses closed."""
    size = round(_WINDOW_SECONDS * rate)
    rms = loudness(pcm[: len(pcm) // size * size].reshape(-1, size))
    if not len(rms) or not rms.max():
        return []
    threshold = float(np.quantile(rms, 0.99)) * decibels_to_factor(_VOICE_DB)
    spans = audible_spans(pcm, rate, window=_WINDOW_SECONDS, pause=USER_PAUSE, threshold=threshold)
    return [(start / rate, end / rate) for start, end in spans]


def _first(path: Path) -> Mapping[str, Any]:
    """The first object of a list in a JSON file."""
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ConfigError(f"{path}: cannot be read as JSON: {error}") from error
    if isinstance(data, list) and data and isinstance(data[0], dict):
        return dict(data[0])
    if isinstance(data, dict):
        return data
    raise ConfigError(f"{path}: must be a list of objects, as published; fetch the set again")


def _span(entry: Mapping[str, Any], field: str, path: Path) -> Span:
    value = entry.get(field)
    numbers = isinstance(value, list) and [
        float(x) for x in value if isinstance(x, int | float) and not isinstance(x, bool)
    ]
    if not numbers or len(numbers) != len(value or ()) or len(numbers) < 2:
        raise ConfigError(
            f"{path}: field {shown(field)} must be two times in seconds, is {shown(value)}"
        )
    if not 0 <= numbers[0] <= numbers[1]:
        raise ConfigError(f"{path}: field {shown(field)} must go forward, is {shown(value)}")
    return numbers[0], numbers[1]


def _people(folder: Path) -> Mapping[str, Any]:
    """People's timing, beside the set or in it; empty if the file is not there."""
    places = (folder / PEOPLE, folder.parent / PEOPLE)
    path = next((p for p in places if p.is_file()), None)
    return {} if path is None else read_json(path)


def _numbers(value: Any, name: str, where: str) -> Sequence[float]:
    good = isinstance(value, list) and len(value) > 1
    if not good or not all(isinstance(x, int | float) and x >= 0 for x in value) or not sum(value):
        raise ConfigError(f"{where}: field {shown(name)} must be a list of numbers from 0")
    return [float(x) for x in value]
