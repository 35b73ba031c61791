"""A conversation at rest: arrays by name, and what else there is to know, as one value or file.

What it holds is decided by those that save and restore: generator, codec, session. A state belongs
to a model's configuration and is refused by others.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from .config import LmConfig
from .errors import SessionError
from .safetensors import read_metadata, read_safetensors, write_safetensors

_FORMAT = "moshi-local state 2"


@dataclass(frozen=True)
class SavedState:
    """Made by `Generator.save` and `Session.save`; does not change when these go on.

    arrays: by name.
    facts: numbers, texts, lists and None, as JSON has them.
    """

    arrays: Mapping[str, mx.array] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    def part(self, name: str) -> "SavedState":
        """What was put under a name by `joined`."""
        start = f"{name}."
        arrays = {k.removeprefix(start): v for k, v in self.arrays.items() if k.startswith(start)}
        return SavedState(arrays, self.facts[name])

    def numpy(self, name: str) -> npt.NDArray[Any]:
        """An array on the host, a copy."""
        return np.array(self.arrays[name])

    def save(self, path: str | Path) -> None:
        """Writes it as a safetensors file, whole or not at all.

        Raises:
            CheckpointError: the file cannot be written.
        """
        mx.eval(list(self.arrays.values()))
        metadata = {"format": _FORMAT, "facts": json.dumps(self.facts)}
        write_safetensors(Path(path), dict(self.arrays), metadata)


def joined(parts: Mapping[str, SavedState], **facts: Any) -> SavedState:
    """Several states, each under its name, and further facts."""
    arrays = {f"{name}.{k}": v for name, state in parts.items() for k, v in state.arrays.items()}
    return SavedState(arrays, {**{name: state.facts for name, state in parts.items()}, **facts})


def load_state(path: str | Path) -> SavedState:
    """Reads what `SavedState.save` wrote.

    Raises:
        CheckpointError: the file is missing or broken.
        SessionError: it is not a saved conversation.
    """
    metadata = read_metadata(Path(path))
    if metadata.get("format") != _FORMAT:
        raise SessionError(f"{path}: is not a saved conversation; `session.save().save(path)` is")
    arrays = read_safetensors(path)
    mx.eval(list(arrays.values()))  # the file may go
    return SavedState(arrays, json.loads(metadata["facts"]))


def model_fingerprint(config: LmConfig, *others: object) -> str:
    """What a state depends on: the configuration, and whatever else changes its meaning."""
    facts = json.dumps([asdict(config), *others], sort_keys=True, default=str)
    return hashlib.sha256(facts.encode()).hexdigest()[:16]
