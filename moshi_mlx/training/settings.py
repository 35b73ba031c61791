"""A run's YAML file → dataclasses: every field checked by name, type and range.

The fields are those of `RunConfig` and of the dataclasses in it; what is declared there
(`fields.Range`, the default, the docstring) is what is checked and what `describe_fields` prints.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from ..codec import CodecName
from ..distributions import needs_extra
from ..errors import ConfigError
from .data import DataConfig
from .fields import Declared, Range, brief, check_fields, declared
from .texts import is_plain, read_text
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

    rank: inner width of new adapters.
    scaling: what their part is multiplied by.
    train_embeddings: train the embedding tables too, in full.
    start: an adapter to begin with: its `lora.safetensors`.
    """

    rank: Annotated[int, Range(1, 8192)] = 128
    scaling: Annotated[float, Range(0, 1000, above=True)] = 2.0
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
        ConfigError: it is not there, not YAML, or a field is missing, unknown, there twice, of a
            wrong type or out of its range.
    """
    data = _read_yaml(path)
    config = parse(RunConfig, data, f"{path}: ", path.parent)
    if config.max_steps is None and config.max_minutes is None:
        raise ConfigError(f"{path}: give 'max_steps' or 'max_minutes'")
    check_fields(config, f"{path}: ")
    return config


def _read_yaml(path: Path) -> Any:
    with needs_extra("train", "YAML needs PyYAML"):
        import yaml

    class Loader(yaml.SafeLoader):
        """Refuses a field that is there twice; PyYAML takes the last one."""

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            double = next((name for name in names if names.count(name) > 1), None)
            if double is not None:
                line = node.start_mark.line + 1
                raise ConfigError(
                    f"{path}: field {brief(double)} is there twice, in the section that begins in "
                    f"line {line}; delete one"
                )
            return super().construct_mapping(node, deep)

    text = read_text(path, ConfigError)
    try:
        return yaml.load(text, Loader)
    except RecursionError as error:
        raise ConfigError(f"{path}: is nested too deeply") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{path}: is not YAML: {' '.join(str(error).split())}") from error


def parse(kind: type[T], data: Any, where: str, folder: Path = Path()) -> T:
    """A dataclass from plain data; ranges are `check_fields`'s.

    Args:
        kind: the dataclass.
        data: what the file has for it.
        where: the beginning of messages: "run.yaml: optim: ".
        folder: what paths are relative to.

    Raises:
        ConfigError: a field is missing, unknown or of a wrong type; the message names it.
    """
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where}must be fields with values; is {brief(data)}")
    known = {each.name: each for each in declared(kind)}
    for name in data:
        if name not in known:
            near = get_close_matches(str(name), known, 1)
            hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}"
            raise ConfigError(f"{where}there is no field {brief(name)}; {hint}")
    for name, each in known.items():
        if name not in data and each.default is MISSING:
            raise ConfigError(f"{where}field '{name}' is missing; it is {each.allowed}")
    return kind(**{n: _value(known[n], v, f"{where}{n}: ", folder) for n, v in data.items()})


def _value(field: Declared, value: Any, where: str, folder: Path) -> Any:
    """A value of the type that a field asks for."""
    if value is None and field.optional:
        return None
    hint = field.hint
    if field.section:
        return parse(hint, value, where, folder)
    parsed: Any = None
    if get_origin(hint) is Literal:
        parsed = value if isinstance(value, str) and value in get_args(hint) else None
    elif get_origin(hint) is tuple:
        if isinstance(value, list) and len(value) == len(get_args(hint)):
            numbers = tuple(_number(v) for v in value)
            parsed = None if None in numbers else numbers
    elif hint is float:
        parsed = _number(value)
    elif hint in (str, Path):
        parsed = value if isinstance(value, str) and is_plain(value) else None
    elif type(value) is hint:
        parsed = value
    if parsed is None:
        raise ConfigError(f"{where}must be {field.allowed}; is {brief(value)}")
    return _path(parsed, where, folder) if hint is Path else parsed


def _path(text: str, where: str, folder: Path) -> Path:
    try:
        return folder / Path(text).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{where}{brief(text)}: there is no such user") from error


def _number(value: Any) -> float | None:
    """YAML 1.1 reads 2e-6 as text, so such text is a number too."""
    written = isinstance(value, str) and re.fullmatch(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?\d+", value)
    if not written and type(value) not in (int, float):
        return None
    try:
        return float(value)
    except OverflowError:  # a whole number that is larger than any float
        return math.inf if value > 0 else -math.inf


def describe_fields(kind: type[Any] = RunConfig, indent: str = "") -> list[str]:
    """All fields with what they do, what they may be and their defaults, as commented YAML."""
    lines: list[str] = []
    for each in sorted(declared(kind), key=lambda f: f.default is not MISSING):
        lines.append(f"{indent}# {each.text}")
        if each.section:
            lines.append(f"{indent}{each.name}:")
            lines += describe_fields(each.hint, indent + "  ")
            continue
        lines.append(f"{indent}# {each.allowed}")
        missing = each.default is MISSING
        value = "…  # must be given" if missing else written(each.default)
        lines.append(f"{indent}{each.name}: {value}")
    return lines


def written(value: Any) -> str:
    """A default as one writes it in YAML."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return str(list(value) if isinstance(value, tuple) else value)
