"""Fields of a distrusted configuration, read one by one.

Knows what values a field may have, and how to say which has another; nothing of what fields mean.
"""

from collections.abc import Callable, Mapping
from typing import Any, get_args

from .errors import ConfigError, shown

MOST = 2**31 - 1
"""The largest size of an axis in MLX."""


class Fields:
    """Reads fields out of a dict, one by one; one that was not asked for is an error."""

    def __init__(self, data: Mapping[str, Any], where: str) -> None:
        self.left = dict(data)
        self.where = where

    def fail(self, name: str, problem: str) -> ConfigError:
        return ConfigError(f"{self.where}: field {shown(name)} {problem}")

    def take(self, name: str, default: Any = ...) -> Any:
        if name in self.left:
            return self.left.pop(name)
        if default is ...:
            raise self.fail(name, "is missing")
        return default

    def whole(
        self, name: str, default: Any = ..., *, least: int = 1, most: int | None = MOST
    ) -> int:
        value = self.take(name, default)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            problem = f"must be a whole number of at least {least}, is {shown(value)}"
            raise self.fail(name, problem)
        if most is not None and value > most:
            raise self.fail(name, f"must be at most {most}, is {shown(value)}")
        return value

    def number(self, name: str, default: Any = ..., *, most: float = 1e9) -> float:
        value = self.take(name, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= most:
            raise self.fail(
                name, f"must be a number above 0 and at most {most:g}, is {shown(value)}"
            )
        return float(value)

    def none(self, name: str) -> bool:
        """Whether the file says null or nothing; that is taken then."""
        return self.left.get(name) is None and self.take(name, None) is None

    def optional(self, name: str, default: Any, read: Callable[..., Any]) -> Any:
        """None where the file says null or nothing and there is no default."""
        if self.left.get(name, default) is None:
            self.left.pop(name, None)
            return None
        return read(name, default)

    def flag(self, name: str, default: Any = ...) -> bool:
        value = self.take(name, default)
        if not isinstance(value, bool):
            raise self.fail(name, f"must be true or false, is {shown(value)}")
        return value

    def choice(self, name: str, choices: Any, default: Any = ...) -> Any:
        value = self.take(name, default)
        if value not in get_args(choices):
            raise self.fail(
                name, f"must be one of {', '.join(get_args(choices))}; is {shown(value)}"
            )
        return value

    def ints(
        self, name: str, length: int | None = None, *, least: int = 0, most: int = MOST
    ) -> tuple[int, ...]:
        value = self.take(name)
        good = isinstance(value, list) and all(
            isinstance(v, int) and not isinstance(v, bool) and least <= v <= most for v in value
        )
        if not good:
            problem = f"must be a list of whole numbers from {least} to {most}, is {shown(value)}"
            raise self.fail(name, problem)
        if length is not None and len(value) != length:
            raise self.fail(name, f"must have {length} entries, has {len(value)}")
        return tuple(value)

    def strings(self, name: str) -> tuple[str, ...]:
        value = self.take(name, [])
        if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
            raise self.fail(name, f"must be a list of strings, is {shown(value)}")
        return tuple(value)

    def table(self, name: str) -> "Fields":
        value = self.take(name)
        if not isinstance(value, dict):
            raise self.fail(name, f"must be an object, is {shown(value)}")
        return Fields(value, f"{self.where}: {name}")

    def finish(self) -> None:
        if self.left:
            name, value = next(iter(self.left.items()))
            raise self.fail(name, f"({shown(value)}) is not understood and may change the model")
