"""A run's YAML file → dataclasses: every field typed, documented and checked by name.

The fields are those of `RunConfig` and of the dataclasses in it; their docstrings say what they
do (`describe_fields` prints them).
"""

import re
import types
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from ..codec import CodecName
from ..distributions import needs_extra
from ..errors import ConfigError
from .data import DataConfig
from .trainer import TrainConfig

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class DataSection(DataConfig):
    """What to learn from; a batch is `batch_size` sequences of `duration_sec`.

    train: manifest of the recordings, JSON lines; relative to the YAML file.
    eval: manifest of recordings to evaluate on.
    cache: folder for Mimi's codes; `tokens` in the run's folder if left out.
    """

    train: Path
    eval: Path | None = None
    cache: Path | None = None


@dataclass(frozen=True)
class LoraSection:
    """Low-rank adapters instead of full training.

    rank: inner width of the adapters.
    scaling: what their part is multiplied by.
    train_embeddings: train the embedding tables too, in full.
    start: an adapter to begin with: its `lora.safetensors`.
    """

    rank: int = 128
    scaling: float = 2.0
    train_embeddings: bool = False
    start: Path | None = None


@dataclass(frozen=True, kw_only=True)
class RunConfig(TrainConfig):
    """A run of moshi-train.

    model: what to train: a bundled name, a folder, a hub repository, an alias; may be quantized.
    data: what to learn from.
    lora: adapters; all weights are trained if left out.
    weights: the weights file, where a folder or repository has several.
    codec: what turns sound into codes: auto, mlx, or rust.
    save: the type that weights are written in after full training.
    """

    model: str
    data: DataSection
    lora: LoraSection | None = None
    weights: str | None = None
    codec: CodecName = "auto"
    save: Literal["float32", "bfloat16"] = "bfloat16"


def read_settings(path: Path) -> RunConfig:
    """Reads a run's YAML file; paths in it are relative to it.

    Raises:
        ConfigError: it is not there, not YAML, or a field is missing, unknown or of a wrong type.
    """
    with needs_extra("train", "YAML needs PyYAML"):
        import yaml
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is not YAML: {' '.join(str(error).split())}") from error
    config = parse(RunConfig, data, str(path), path.parent)
    if config.max_steps is None and config.max_minutes is None:
        raise ConfigError(f"{path}: give 'max_steps' or 'max_minutes'")
    return config


def parse(kind: type[T], data: Any, where: str, folder: Path = Path()) -> T:
    """A dataclass from plain data.

    Raises:
        ConfigError: a field is missing, unknown or of a wrong type; the message names it.
    """
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where}: must be fields with values, is {data!r}")
    hints = get_type_hints(kind)
    known: dict[str, Field[Any]] = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
    for name in data:
        if name not in known:
            raise ConfigError(f"{where}: there is no field '{name}'; known: {', '.join(known)}")
    values = {name: _value(hints[name], data[name], f"{where}: {name}", folder) for name in data}
    for name, each in known.items():
        if name not in values and each.default is MISSING and each.default_factory is MISSING:
            raise ConfigError(f"{where}: field '{name}' is missing")
    return kind(**values)


def _value(hint: Any, value: Any, where: str, folder: Path) -> Any:
    """A value of the type that a field asks for."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _value(next(a for a in args if a is not type(None)), value, where, folder)
    if origin is Literal:
        if value not in args:
            raise ConfigError(f"{where}: must be one of {', '.join(args)}; is {value!r}")
        return value
    if origin is tuple:
        if not isinstance(value, list) or len(value) != len(args):
            raise ConfigError(f"{where}: must be a list of {len(args)}, is {value!r}")
        return tuple(_value(a, v, where, folder) for a, v in zip(args, value, strict=True))
    if is_dataclass(hint):
        return parse(hint, value, where, folder)  # type: ignore[arg-type]
    if hint is Path and isinstance(value, str):
        return folder / Path(value).expanduser()
    if hint is float:
        # YAML 1.1 reads 2e-6 as text.
        number = _number(value)
        if number is None:
            raise ConfigError(f"{where}: must be a number, is {value!r}")
        return number
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        name = {int: "a whole number", bool: "true or false", str: "text", Path: "a path"}[hint]
        raise ConfigError(f"{where}: must be {name}, is {value!r}")
    return value


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except ValueError:
        return None


def describe_fields(kind: type[Any] = RunConfig, indent: str = "") -> list[str]:
    """All fields with their defaults and what they do, as commented YAML."""
    lines: list[str] = []
    hints, texts = get_type_hints(kind), documentation(kind)
    for each in sorted(
        fields(kind), key=lambda f: f.default is not MISSING or f.default_factory is not MISSING
    ):
        hint = hints[each.name]
        inner = next((a for a in (hint, *get_args(hint)) if is_dataclass(a)), None)
        lines.append(f"{indent}# {texts[each.name]}")
        if inner is not None:
            lines.append(f"{indent}{each.name}:")
            lines += describe_fields(inner, indent + "  ")  # type: ignore[arg-type]
        elif each.default is MISSING:
            lines.append(f"{indent}{each.name}: …  # must be given")
        else:
            lines.append(f"{indent}{each.name}: {_written(each.default)}")
    return lines


def _written(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return str(list(value) if isinstance(value, tuple) else value)


def documentation(kind: type[Any]) -> dict[str, str]:
    """What the docstrings of a dataclass and its bases say of each field."""
    texts: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        if not is_dataclass(each):
            continue
        for entry in re.finditer(
            r"^ {4}([a-z][\w, ]*): (.+?)(?=^ {4}[a-z][\w, ]*: |\Z)", each.__doc__ or "", re.M | re.S
        ):
            for name in entry[1].split(", "):
                texts[name] = " ".join(entry[2].split())
    return texts
