"""What callers give, checked where it comes in: by name, type and value.

A wrong number would read foreign memory, or make noise. Knows nothing of what the numbers are for.
"""

import operator
from os import PathLike
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from .arrays import Pcm
from .errors import ArgumentError, shown

_SEEDS = 2**32
_SIXTEEN_BITS = 2**15
LOUD = 16.0
"""Floats beyond are of another scale than −1 … 1: nothing that clips is 24 dB too loud."""


def whole(name: str, value: Any, least: int, most: int | None = None) -> int:
    """A whole number.

    Args:
        name: for the message.
        value: of any integer type; True and 2.0 are none.
        least: the smallest that is possible.
        most: the largest.

    Raises:
        ArgumentError: it is not one, or out of range.
    """
    try:
        number = None if isinstance(value, bool | np.bool_) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < least or (most is not None and number > most):
        upto = f"from {least} on" if most is None else f"from {least} to {most}"
        raise ArgumentError(f"{name} must be a whole number {upto}, is {shown(value)}")
    return number


def real(name: str, value: Any, least: float, most: float) -> float:
    """A finite number.

    Args:
        name: for the message.
        value: of any real type; True and "1" are none.
        least: the smallest that is possible.
        most: the largest.

    Raises:
        ArgumentError: it is not one, or out of range.
    """
    good = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    if not good or not least <= value <= most:  # what compares with NaN is false
        raise ArgumentError(f"{name} must be from {least:g} to {most:g}, is {shown(value)}")
    return float(value)


def path_of(name: str, value: Any) -> Path:
    """A path, of text or as `pathlib` has it. Raises ArgumentError if it can be none."""
    path = value.__fspath__() if isinstance(value, PathLike) else value
    if not isinstance(path, str) or not path or "\0" in path:
        raise ArgumentError(f"{name} must be text or a path, is {shown(value)}")
    return Path(path)


def seed_of(value: Any) -> int:
    """A seed of random numbers, 0 to 2³² − 1. Raises ArgumentError if it is none."""
    return whole("seed", value, 0, _SEEDS - 1)


def integers(
    name: str, values: npt.ArrayLike | mx.array, least: int, most: int
) -> npt.NDArray[np.int32]:
    """Tokens or codes, as int32 of the same shape.

    Args:
        name: for the message.
        values: of any integer type, or floats without a fraction.
        least: the smallest that is possible.
        most: the largest.

    Raises:
        ArgumentError: they are no integers, or one is out of range.
    """
    found = on_host(name, values)
    if found.size and found.dtype.kind not in "iuf":
        raise ArgumentError(f"{name} must be integers, are {found.dtype}")
    wrong = found[~((found >= least) & (found <= most) & (found == np.round(found)))]
    if wrong.size:
        raise ArgumentError(f"{name} must be from {least} to {most}, is {wrong[0]}")
    return found.astype(np.int32)


def samples(values: npt.ArrayLike | mx.array) -> Pcm:
    """Sound as float32 of the same shape, in −1 … 1 but for what clips.

    Whole numbers, as sound cards give them, are scaled. NaN and infinity stay.

    Args:
        values: floats, or int16 or int32 samples.

    Raises:
        ArgumentError: they are of another type, or floats of another scale, beyond ±16.
    """
    found = on_host("sound", values)
    if found.dtype in (np.int16, np.int32):
        return (found / -float(np.iinfo(found.dtype).min)).astype(np.float32)
    if found.dtype.kind != "f":
        raise ArgumentError(
            f"sound has floats in −1 … 1, or int16 or int32 samples, this one {found.dtype}"
        )
    peak = np.abs(found).max(initial=0.0, where=np.isfinite(found))
    if peak > LOUD:
        raise ArgumentError(
            f"sound has floats in −1 … 1, this one up to {peak:g}: divide 16-bit samples by "
            f"{_SIXTEEN_BITS}, or give them as int16"
        )
    return found.astype(np.float32, copy=False)


def finite(name: str, values: npt.NDArray[np.floating]) -> None:
    """Raises ArgumentError if not all numbers are finite, with the first that is not."""
    if not np.isfinite(values).all():
        where = int(np.flatnonzero(~np.isfinite(values))[0])
        raise ArgumentError(f"{name} must be finite, number {where} is {values.flat[where]}")


def on_host(name: str, values: npt.ArrayLike | mx.array) -> npt.NDArray[Any]:
    """An array in NumPy; nothing is copied that need not be.

    Raises:
        ArgumentError: it is none, such as rows of different lengths.
    """
    if isinstance(values, mx.array) and values.dtype == mx.bfloat16:  # NumPy has none
        values = values.astype(mx.float32)
    try:
        return np.asarray(values)
    except (ValueError, TypeError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise ArgumentError(f"{name} must be an array of numbers: {reason}") from error
