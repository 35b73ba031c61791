"""Safetensors files, distrusted: what the header says is checked before anything believes it.

Knows the format (https://github.com/huggingface/safetensors#format): eight bytes with the header's
length, a JSON header, then the tensors' bytes without gaps. Reads headers only; MLX reads the
tensors themselves, lazily. Knows nothing of models.
"""

import io
import itertools
import json
import math
import stat
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from .arrays import Weights
from .errors import CheckpointError, ConfigError, counted, shown
from .files import inside, no_doubles, partial_file, read_json
from .formats import what_is

MAX_HEADER = 100_000_000
"""Bytes; the format's own limit."""

ITEM_SIZE = {
    "BOOL": 1, "U8": 1, "I8": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2, "U32": 4, "I32": 4,
    "F32": 4, "U64": 8, "I64": 8,
}  # fmt: skip
"""Bytes of an element, by the format's names of types."""
_UNREAD = {"F64": "64-bit floats", "F8_E4M3": "8-bit floats", "F8_E5M2": "8-bit floats"}
"""Types of the format that MLX does not compute with."""

_MAX_AXES = 8
_MAX_NAME = 1000


@dataclass(frozen=True)
class TensorInfo:
    """An entry of a header: type by the format's name, shape, and its bytes [begin, end)."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.begin


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors of a safetensors file, everything checked.

    Raises:
        CheckpointError: the file is not a whole and sound safetensors file; names what is wrong.
    """
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {_reason(error)}") from error
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(f"{path}: is not a file")
    size = status.st_size
    try:
        with path.open("rb") as file:
            start = file.read(8)
            length = int.from_bytes(start, "little")
            if len(start) == 8 and 2 <= length <= min(MAX_HEADER, size - 8):
                header = file.read(length)
            else:
                header = b""
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {_reason(error)}") from error
    if header[:1] != b"{":
        raise CheckpointError(f"{path}: {_not_safetensors(path, start, length, size)}")
    return parse_header(header, size - 8 - length, str(path))


def parse_header(header: bytes, data_size: int, where: str) -> dict[str, TensorInfo]:
    """A header's tensors: every type known, every offset in its place, none overlapping.

    Args:
        header: the JSON text.
        data_size: bytes that follow it in the file.
        where: the file, for messages.

    Raises:
        CheckpointError: as `read_header`.
    """

    def fail(problem: str) -> CheckpointError:
        return CheckpointError(f"{where}: is corrupt: {problem}; copy or download it again")

    def doubled(name: str) -> CheckpointError:
        return fail(f"its header has {shown(name)} twice")

    def no_constants(_: str) -> Any:
        raise ValueError("not a number")

    try:
        text = header.decode("utf-8")
        entries = json.loads(
            text, object_pairs_hook=no_doubles(doubled), parse_constant=no_constants
        )
    except (ValueError, RecursionError) as error:
        raise fail("its header is not JSON") from error
    if not isinstance(entries, dict):
        raise fail("its header is not a JSON object")
    metadata = entries.pop("__metadata__", None)
    strings = isinstance(metadata, dict) and all(isinstance(v, str) for v in metadata.values())
    if metadata is not None and not strings:
        raise fail("its metadata are not strings")
    if (end := _contiguous_end(entries.values())) > data_size:
        raise CheckpointError(
            f"{where}: is truncated: {counted(end, 'byte')} of tensors should be there, "
            f"{data_size} are; fetch it again"
        )
    tensors: dict[str, TensorInfo] = {}
    for name, entry in entries.items():
        dtype = entry.get("dtype") if isinstance(entry, dict) else None
        if isinstance(dtype, str) and dtype in _UNREAD:
            raise CheckpointError(
                f"{where}: tensor {shown(name)} has {_UNREAD[dtype]} ({dtype}), which are not "
                "read: convert the file to BF16 or F32"
            )
        try:
            tensors[name] = _entry(name, entry, data_size)
        except CheckpointError as error:
            raise fail(str(error)) from None
    place, before = 0, "the header"
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if info.begin != place:
            what = "overlap" if info.begin < place else "have a gap between them"
            raise fail(f"the bytes of {shown(before)} and {shown(name)} {what}")
        place, before = info.end, name
    if place != data_size:
        raise fail(f"it has {counted(data_size, 'byte')} of tensors, its header says {place}")
    return tensors


def _entry(name: str, entry: Any, data_size: int) -> TensorInfo:
    where = f"tensor {shown(name)}"
    if not name or len(name) > _MAX_NAME or not name.isprintable():
        raise CheckpointError(f"{where} has no proper name")
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{where} must have dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_SIZE:
        raise CheckpointError(f"{where} has the type {shown(dtype)}, which is not supported")
    if not _sizes(shape) or len(shape) > _MAX_AXES:
        raise CheckpointError(f"{where} has no proper shape")
    if not _sizes(offsets) or len(offsets) != 2 or not offsets[0] <= offsets[1] <= data_size:
        raise CheckpointError(
            f"{where} lies outside the file's {counted(data_size, 'byte')} of tensors"
        )
    size = math.prod(shape) * ITEM_SIZE[dtype]
    if offsets[1] - offsets[0] != size:
        raise CheckpointError(
            f"{where} {dtype} {shape} needs {counted(size, 'byte')}, the header gives it "
            f"{offsets[1] - offsets[0]}"
        )
    return TensorInfo(dtype, tuple(shape), offsets[0], offsets[1])


def _contiguous_end(entries: Iterable[Any]) -> int:
    """Where the last tensor ends, if they lie without gaps; else 0."""
    offsets = [e.get("data_offsets") if isinstance(e, dict) else None for e in entries]
    pairs = sorted(o for o in offsets if isinstance(o, list) and _sizes(o) and len(o) == 2)
    joined = all(a[1] == b[0] for a, b in itertools.pairwise(pairs))
    return pairs[-1][1] if pairs and joined and len(pairs) == len(offsets) else 0


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(v) is int and 0 <= v < 2**48 for v in value)


def _not_safetensors(path: Path, start: bytes, length: int, size: int) -> str:
    what = what_is(path)
    if what is not None and what != "a safetensors file":
        return f"is {what}, not safetensors; put the .safetensors file there"
    if len(start) < 8:
        return f"is not a safetensors file: it has only {counted(size, 'byte')}"
    if length > MAX_HEADER:
        return f"is not a safetensors file: its header would have {counted(length, 'byte')}"
    if length > size - 8:
        header = counted(length, "byte")
        return f"is truncated: its header has {header}, the file {size}; fetch it again"
    return "is not a safetensors file"


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


Rename = Callable[[str, str], str]
"""A file's name and a tensor's name in it → the tensor's name among those of all files."""


def check_files(
    paths: Iterable[Path], rename: Rename = lambda _, name: name
) -> dict[str, TensorInfo]:
    """All tensors of several files, from their headers.

    Raises:
        CheckpointError: a file is not sound, or two have the same tensor.
    """
    tensors: dict[str, TensorInfo] = {}
    for path in paths:
        header: dict[str, TensorInfo] = {}
        for name, info in read_header(path).items():
            if (renamed := rename(path.name, name)) in header:
                raise CheckpointError(f"{path}: has tensor {shown(name)} under two names")
            header[renamed] = info
        if shared := tensors.keys() & header.keys():
            raise CheckpointError(f"{path}: tensor {shown(min(shared))} is in another file too")
        tensors |= header
    return tensors


def read_safetensors(
    paths: str | Path | Sequence[str | Path], rename: Rename = lambda _, name: name
) -> Weights:
    """All tensors of one or several safetensors files, lazily.

    Raises:
        CheckpointError: as `check_files`.
    """
    files = [Path(p) for p in ([paths] if isinstance(paths, str | Path) else paths)]
    check_files(files, rename)
    weights: Weights = {}
    for path in files:
        try:
            tensors = mx.load(str(path), format="safetensors")
        except (RuntimeError, ValueError, OSError) as error:
            raise CheckpointError(f"{path}: MLX cannot read it: {error}") from error
        assert isinstance(tensors, dict)
        weights |= {rename(path.name, name): tensor for name, tensor in tensors.items()}
    return weights


def read_index(path: Path) -> dict[str, str]:
    """The index of a model in several files: each tensor's name → its file's.

    Raises:
        ConfigError: it is not an index, or names a file that is not beside it.
    """
    table = read_json(path).get("weight_map")
    if not isinstance(table, dict) or not table:
        raise ConfigError(f"{path}: has no weight_map. Fetch it again.")
    return {name: inside(file, "weight_map", str(path)) for name, file in table.items()}


def write_safetensors(path: Path, tensors: Weights, metadata: dict[str, str] | None = None) -> None:
    """Puts tensors in the place of `path`: a reader finds the old file or the new one.

    Raises:
        CheckpointError: the disk refuses; names the file.
    """
    if path.exists() and not path.is_file():
        raise CheckpointError(f"{path}: cannot be written: it is not a regular file")
    try:
        with partial_file(path) as partial:
            with _WholeWrites(partial, "w") as file:
                mx.save_safetensors(file, tensors, metadata)
            partial.replace(path)
    except (OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be written: {_reason(error)}") from error


class _WholeWrites(io.FileIO):
    """A file that MLX writes to, whose errors are the system's; those of MLX have no reason."""

    def write(self, data: Any) -> int:
        rest = memoryview(data).cast("B")
        size = rest.nbytes
        while rest.nbytes:
            rest = rest[super().write(rest) :]
        return size


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file, which is checked. Raises CheckpointError."""
    read_header(path)
    with path.open("rb") as file:
        header = file.read(int.from_bytes(file.read(8), "little"))
    return json.loads(header).get("__metadata__") or {}
