"""Writes a safetensors file of any size, tensor by tensor.

All names, types and shapes are known beforehand, so the header goes first and every tensor to its
place, in whatever order they come. Never holds more than one tensor.
"""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import mlx.core as mx
import numpy as np

from moshi_mlx.errors import CheckpointError

Spec = tuple[mx.Dtype, tuple[int, ...]]
"""A tensor's type and shape."""

_NAMES = {
    mx.bool_: "BOOL", mx.uint8: "U8", mx.int8: "I8", mx.uint16: "U16", mx.int16: "I16",
    mx.float16: "F16", mx.bfloat16: "BF16", mx.uint32: "U32", mx.int32: "I32", mx.float32: "F32",
    mx.uint64: "U64", mx.int64: "I64",
}  # fmt: skip
_ALIGNMENT = 8  # of the data, in bytes


def raw(array: mx.array) -> np.ndarray:
    """An array's elements as NumPy's, bfloat16 as the uint16 of its bits; not copied."""
    array = array.view(mx.uint16) if array.dtype == mx.bfloat16 else array
    mx.eval(array)
    return np.array(array, copy=False)


class TensorWriter:
    """A new file with these tensors; a context manager. Each is to be written once.

    Raises:
        CheckpointError: the file cannot be written: no room, no permission.
    """

    def __init__(self, path: Path, specs: Mapping[str, Spec]) -> None:
        self._path = path
        self._specs = dict(specs)
        header: dict[str, object] = {"__metadata__": {"format": "mlx"}}
        # Widest elements first, so that each tensor lies at a multiple of its element's size.
        order = sorted(specs, key=lambda name: (-specs[name][0].size, name))
        place = 0
        self._offsets: dict[str, int] = {}
        for name in order:
            dtype, shape = specs[name]
            end = place + dtype.size * math.prod(shape)
            header[name] = {
                "dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [place, end],
            }  # fmt: skip
            self._offsets[name] = place
            place = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % _ALIGNMENT)
        self._start = 8 + len(text)
        self.size = self._start + place
        """Bytes that the file will have."""
        with self._errors():
            self._file = path.open("xb", buffering=0)
            self._put(0, memoryview(len(text).to_bytes(8, "little") + text))

    def write(self, name: str, array: mx.array) -> None:
        """Puts a tensor to its place."""
        spec = self._specs.pop(name)
        if spec != (array.dtype, array.shape):
            raise AssertionError(f"{name}: {array.dtype} {array.shape} was announced as {spec}")
        data = np.ascontiguousarray(raw(array)).reshape(-1).view(np.uint8)
        with self._errors():
            self._put(self._start + self._offsets[name], data.data)

    def _put(self, place: int, data: memoryview) -> None:
        self._file.seek(place)
        while len(data):
            data = data[self._file.write(data) :]

    def _errors(self) -> "_Errors":
        return _Errors(self._path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: object, __: TracebackType | None
    ) -> None:
        with self._file:
            if kind is None:
                if self._specs:
                    raise AssertionError(f"not written: {sorted(self._specs)[:3]}")
                with self._errors():
                    os.fsync(self._file.fileno())


class _Errors:
    """Turns what the disk says into one line."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, OSError):
            raise CheckpointError(f"{self._path}: cannot be written: {error.strerror}") from error
