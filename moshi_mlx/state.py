"""A conversation at rest: arrays by name, and what else there is to know, as one value or file.

What it holds is decided by those that save and restore: generator, codec, session. A state belongs
to a model's configuration and is refused by others.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from .arguments import path_of
from .config import LmConfig
from .errors import ArgumentError, SessionError, listed, shown
from .safetensors import read_metadata, read_safetensors, write_safetensors
from .threads import mlx_work

MOST_FRAMES = 2**31 - 1
"""Positions are int32: 5 years."""
_FORMAT = "moshi-local state 2"


@dataclass(frozen=True)
class SavedState:
    """Made by `Generator.save` and `Session.save`; does not change when these go on.

    arrays: by name.
    facts: numbers, texts, lists and None, as JSON has them.
    """

    arrays: Mapping[str, mx.array] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # What is lazy belongs to its thread. Others than arrays are refused by `check_like`.
        mx.eval([array for array in self.arrays.values() if isinstance(array, mx.array)])

    def part(self, name: str) -> "SavedState":
        """What was put under a name by `joined`."""
        start = f"{name}."
        arrays = {k.removeprefix(start): v for k, v in self.arrays.items() if k.startswith(start)}
        return SavedState(arrays, self.facts[name])

    def numpy(self, name: str) -> npt.NDArray[Any]:
        """An array on the host, a copy."""
        return np.array(self.arrays[name])

    def check_like(self, others: Mapping[str, mx.array]) -> None:
        """That the arrays have the names, shapes and types of others, and are finite.

        Args:
            others: as a state has them; their values don't matter, and are not computed.

        Raises:
            ArgumentError: names the array that is not so.
        """
        if odd := sorted(self.arrays.keys() ^ others.keys()):
            raise ArgumentError(f"missing or not known: {listed(odd)}")
        for name, like in others.items():
            array = self.arrays[name]
            if (array.shape, array.dtype) != (like.shape, like.dtype):
                raise ArgumentError(
                    f"{name} must be {list(like.shape)} of {like.dtype}, is {list(array.shape)} "
                    f"of {array.dtype}"
                )
        finite = {name: mx.isfinite(self.arrays[name]).all() for name in others}
        mx.eval(finite)
        if bad := [name for name, good in finite.items() if not good.item()]:
            raise ArgumentError(f"not finite: {listed(bad)}")

    @mlx_work
    def save(self, path: str | Path) -> None:
        """Writes it as a safetensors file, whole or not at all.

        Raises:
            ArgumentError: the path is none.
            CheckpointError: the file cannot be written.
        """
        target = path_of("path", path)
        try:
            facts = json.dumps(self.facts)
        except (TypeError, ValueError) as error:
            raise ArgumentError(f"facts must be what JSON has: {error}") from error
        metadata = {"format": _FORMAT, "facts": facts}
        write_safetensors(target, dict(self.arrays), metadata)


@contextmanager
def damage_refused() -> Iterator[None]:
    """Whatever a saved conversation leads to that cannot be is a SessionError."""
    try:
        yield
    except KeyError as error:
        raise SessionError(f"the saved conversation is damaged ({error} is missing)") from error
    except (ValueError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise SessionError(f"the saved conversation is damaged ({error})") from error


def joined(parts: Mapping[str, SavedState], **facts: Any) -> SavedState:
    """Several states, each under its name, and further facts."""
    arrays = {f"{name}.{k}": v for name, state in parts.items() for k, v in state.arrays.items()}
    return SavedState(arrays, {**{name: state.facts for name, state in parts.items()}, **facts})


@mlx_work
def load_state(path: str | Path) -> SavedState:
    """Reads what `SavedState.save` wrote.

    Raises:
        ArgumentError: the path is none.
        CheckpointError: the file is missing or broken.
        SessionError: it is not a saved conversation, or a damaged one.
    """
    path = path_of("path", path)
    metadata = read_metadata(path)
    if metadata.get("format") != _FORMAT:
        raise SessionError(f"{path}: is not a saved conversation; `session.save().save(path)` is")
    arrays = read_safetensors(path)
    with damage_refused():
        return SavedState(arrays, json.loads(metadata["facts"]))


def state_from(given: SavedState | str | Path | None) -> SavedState | None:
    """A saved conversation, or what the file has that it was written to; None stays.

    Raises:
        ArgumentError: it is neither.
        CheckpointError, SessionError: as `load_state`.
    """
    if isinstance(given, str | Path):
        return load_state(given)
    if not isinstance(given, SavedState | None):
        raise ArgumentError(f"state must be a SavedState or its file, is {shown(given)}")
    return given


def model_fingerprint(config: LmConfig, *others: object) -> str:
    """What a state depends on: the configuration, and whatever else changes its meaning."""
    facts = json.dumps([asdict(config), *others], sort_keys=True, default=str)
    return hashlib.sha256(facts.encode()).hexdigest()[:16]
