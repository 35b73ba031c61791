"""Tensors in a file of PyTorch (`torch.save`), read without PyTorch and without running code.

Such a file is a ZIP archive of stored parts: a pickle that says what there is, and the tensors'
bytes. Of the pickle only what describes plain tensors is carried out; all else is refused by name.
Knows nothing of what the tensors are for.
"""

import io
import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np
import numpy.typing as npt

from .errors import CheckpointError, shown

LARGEST_FILE = 256_000_000
"""Bytes of a file that is read: it is held in memory."""

_LARGEST_PICKLE = 1_000_000
_MOST_PARTS = 10_000
_MOST_AXES = 8
_STORAGES: dict[str, str] = {
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "BFloat16Storage": "<u2",  # NumPy has none
    "IntStorage": "<i4",
    "LongStorage": "<i8",
}
_OPCODES = (
    pickle.PROTO + pickle.FRAME + pickle.STOP + pickle.MARK + pickle.EMPTY_DICT + pickle.EMPTY_LIST
    + pickle.EMPTY_TUPLE + pickle.TUPLE + pickle.TUPLE1 + pickle.TUPLE2 + pickle.TUPLE3
    + pickle.BINPUT + pickle.LONG_BINPUT + pickle.MEMOIZE + pickle.BINGET + pickle.LONG_BINGET
    + pickle.BINUNICODE + pickle.SHORT_BINUNICODE + pickle.BININT + pickle.BININT1 + pickle.BININT2
    + pickle.LONG1 + pickle.NEWTRUE + pickle.NEWFALSE + pickle.NONE + pickle.GLOBAL
    + pickle.STACK_GLOBAL + pickle.REDUCE + pickle.BINPERSID + pickle.SETITEM + pickle.SETITEMS
    + pickle.APPEND + pickle.APPENDS
)  # fmt: skip
"""What a pickle of tensors is made of. None of them takes more memory than the pickle has bytes."""


@dataclass(frozen=True)
class _StorageType:
    name: str


@dataclass(frozen=True)
class _Storage:
    kind: _StorageType
    numbers: npt.NDArray[Any]


def read_torch(file: Path | BinaryIO, where: str) -> dict[str, npt.NDArray[Any]]:
    """The tensors of a dict that `torch.save` wrote.

    Args:
        file: its path, or the file opened for reading.
        where: its name, for messages.

    Returns:
        By name, in their own types; bfloat16, which NumPy has not, as float32.

    Raises:
        CheckpointError: it is damaged, too large, or has anything but plain tensors in it.
    """
    try:
        data = file.read_bytes() if isinstance(file, Path) else file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise CheckpointError(f"{where}: cannot be read: {error.strerror or error}") from error
    if len(data) > LARGEST_FILE:
        raise CheckpointError(
            f"{where}: is larger than {LARGEST_FILE // 10**6} MB, which is not read"
        )
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            found = _Tensors(archive, len(data), where).load()
    except CheckpointError:
        raise
    except _DAMAGE as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise CheckpointError(f"{where}: is no file of PyTorch's, or damaged ({reason})") from error
    if not isinstance(found, Mapping) or not all(isinstance(name, str) for name in found):
        raise CheckpointError(f"{where}: must hold tensors by name, holds {type(found).__name__}")
    for name, value in found.items():
        if not isinstance(value, np.ndarray):
            kind = type(value).__name__
            raise CheckpointError(f"{where}: {shown(name)} must be a tensor, is {kind}")
    return dict(found)


_DAMAGE = (
    zipfile.BadZipFile, pickle.UnpicklingError, EOFError, OSError, KeyError, IndexError, ValueError,
    TypeError, AttributeError, RuntimeError, NotImplementedError, RecursionError, OverflowError,
)  # fmt: skip
"""What `zipfile` and `pickle` raise for bytes that are not theirs."""


class _Opcodes(dict[int, Any]):
    def __missing__(self, code: int) -> Any:
        raise pickle.UnpicklingError(f"opcode {shown(chr(code))} is not one of plain tensors")


class _Tensors(pickle._Unpickler):
    """Carries out a pickle of tensors; in Python, since the one in C believes what sizes it says.

    Args:
        archive: the file.
        size: its bytes.
        where: for messages.
    """

    dispatch: ClassVar[dict[int, Any]] = _Opcodes(
        (code, pickle._Unpickler.dispatch[code]) for code in _OPCODES
    )

    def __init__(self, archive: zipfile.ZipFile, size: int, where: str) -> None:
        self._archive, self._size, self._where = archive, size, where
        self._storages: dict[str, _Storage] = {}
        parts = archive.namelist()
        pickles = [name for name in parts if name.endswith("/data.pkl")]
        if len(parts) > _MOST_PARTS or len(pickles) != 1:
            raise CheckpointError(f"{where}: is no file that torch.save wrote: it has no data.pkl")
        self._folder = pickles[0].removesuffix("data.pkl")
        order = f"{self._folder}byteorder"
        if order in parts and self._part(order, 16) != b"little":
            raise CheckpointError(f"{where}: is of a big-endian machine, which is not read")
        super().__init__(io.BytesIO(self._part(pickles[0], _LARGEST_PICKLE)))

    def find_class(self, module: str, name: str) -> Any:
        """What the pickle may call."""
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self._tensor
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and name in _STORAGES:
            return _StorageType(name)
        raise CheckpointError(
            f"{self._where}: asks for {shown(f'{module}.{name}')}, which a file of plain tensors "
            "does not need: it is refused"
        )

    def persistent_load(self, pid: Any) -> _Storage:
        """The numbers of a storage, which tensors are views of."""
        what, kind, key, _, count = pid
        if what != "storage" or not isinstance(kind, _StorageType) or not isinstance(key, str):
            raise ValueError("no storage")
        if key not in self._storages:
            numbers = np.frombuffer(
                self._part(f"{self._folder}data/{key}", self._size), _STORAGES[kind.name]
            )
            self._storages[key] = _Storage(kind, numbers)
        storage = self._storages[key]
        if storage.kind != kind or type(count) is not int or len(storage.numbers) != count:
            raise ValueError(f"storage {shown(key)} has {len(storage.numbers)} numbers")
        return storage

    def _tensor(
        self, storage: _Storage, offset: int, shape: Any, strides: Any, *_: object
    ) -> npt.NDArray[Any]:
        sizes = [offset, *shape, *strides]
        if not all(type(n) is int and 0 <= n <= self._size for n in sizes):
            raise ValueError("a tensor has no proper shape")
        if len(shape) > _MOST_AXES or len(shape) != len(strides):
            raise ValueError("a tensor has no proper shape")
        count = math.prod(shape)
        last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
        if count and (last >= len(storage.numbers) or count > len(storage.numbers)):
            raise ValueError("a tensor is larger than its storage")
        numbers = storage.numbers[offset if count else 0 :]
        steps = [step * numbers.itemsize for step in strides]
        array = np.lib.stride_tricks.as_strided(numbers, shape, steps).copy()
        if storage.kind.name == "BFloat16Storage":
            return (array.astype(np.uint32) << 16).view(np.float32)
        return array

    def _part(self, name: str, largest: int) -> bytes:
        """A part of the archive; torch stores them as they are, and a bomb is packed."""
        info = self._archive.getinfo(name)
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise CheckpointError(f"{self._where}: {shown(name)} is compressed, which is refused")
        if info.file_size > min(largest, self._size):
            raise CheckpointError(f"{self._where}: {shown(name)} is too large")
        return self._archive.read(info)
