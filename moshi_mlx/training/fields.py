"""What the fields of a run may be: range and unit stand beside each, `Annotated[int, Range(…)]`.

The check of values, `moshi-train --fields` and the guide's table come from these declarations.
Knows no field by name.
"""

import inspect
import re
import types
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from ..errors import ConfigError


@dataclass(frozen=True)
class Range:
    """The numbers that a field takes; of a pair, each of the two.

    low, high: its ends, finite.
    unit: of the number.
    above, below: whether `low` and `high` themselves are left out.
    ascending: whether a pair goes from low to high.
    """

    low: float
    high: float
    unit: str = ""
    above: bool = False
    below: bool = False
    ascending: bool = False

    def __str__(self) -> str:
        low = f"above {_plain(self.low)}" if self.above else _plain(self.low)
        high = f"below {_plain(self.high)}" if self.below else _plain(self.high)
        return f"{low} … {high} {self.unit}".rstrip()

    def __contains__(self, value: float) -> bool:
        return (self.low < value if self.above else self.low <= value) and (
            value < self.high if self.below else value <= self.high
        )


STEPS = 99_999_999  # the names of checkpoints have eight digits
Share = Annotated[float, Range(0, 1)]


@dataclass(frozen=True)
class Declared:
    """A field as its dataclass declares it.

    name: as the file has it.
    hint: its type, without range and None.
    optional: whether it may be null.
    default: its default; MISSING if it must be given.
    range: of its numbers.
    text: what the docstring says of it.
    """

    name: str
    hint: Any
    optional: bool
    default: Any
    range: Range | None
    text: str

    @property
    def section(self) -> bool:
        """Whether it has fields itself."""
        return is_dataclass(self.hint)

    @property
    def allowed(self) -> str:
        """What it may be, in words."""
        args = get_args(self.hint)
        if get_origin(self.hint) is Literal:
            what = f"one of {', '.join(args)}"
        elif get_origin(self.hint) is tuple:
            ascending = self.range is not None and self.range.ascending
            what = f"a list of {len(args)} numbers{', low to high' if ascending else ''}"
        else:
            what = _KINDS.get(self.hint, "fields with values")
        what = f"{what}, {self.range}" if self.range is not None else what
        return f"{what}; or null" if self.optional else what


_KINDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    Path: "a path",
}


def declared(kind: type[Any]) -> list[Declared]:
    """The fields of a dataclass in order, those of its sections left to the caller."""
    hints, texts = get_type_hints(kind, include_extras=True), documentation(kind)
    found = []
    for each in fields(kind):
        hint, limits = hints[each.name], None
        if get_origin(hint) is Annotated:
            hint, limits = hint.__origin__, hint.__metadata__[0]
        optional = get_origin(hint) in (Union, types.UnionType)
        if optional:
            hint = next(a for a in get_args(hint) if a is not type(None))
        default = each.default
        if default is MISSING and each.default_factory is not MISSING:
            default = each.default_factory()
        text = texts.get(each.name, "")
        found.append(Declared(each.name, hint, optional, default, limits, text))
    return found


def check_fields(config: Any, where: str = "") -> None:
    """Looks whether all numbers of a dataclass are in their ranges, those of its sections too.

    Args:
        config: the dataclass.
        where: the beginning of the message.

    Raises:
        ConfigError: one is not; names it, and what it may be.
    """
    for each in declared(type(config)):
        value, name = getattr(config, each.name), f"{where}{each.name}"
        if is_dataclass(value):
            check_fields(value, f"{name}: ")
        elif each.range is not None and value is not None:
            numbers = value if isinstance(value, tuple) else (value,)
            descends = each.range.ascending and list(numbers) != sorted(numbers)
            if descends or not all(number in each.range for number in numbers):
                raise ConfigError(f"{name}: must be {each.allowed}; is {brief(value)}")


def documentation(kind: type[Any]) -> dict[str, str]:
    """What the docstrings of a dataclass and its bases say of each field."""
    texts: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        if not is_dataclass(each):
            continue
        # Python 3.13 takes the indentation out of docstrings, earlier ones leave it in.
        text = inspect.cleandoc(each.__doc__ or "")
        entries = re.finditer(r"^([a-z][\w, ]*): (.+?)(?=^[a-z][\w, ]*: |\Z)", text, re.M | re.S)
        for entry in entries:
            for name in entry[1].split(", "):
                texts[name] = " ".join(entry[2].split())
    return texts


def brief(value: Any) -> str:
    """A value for a message: one short printable line, however large or nested it is."""
    if isinstance(value, tuple):
        value = list(value)
    if isinstance(value, dict):
        return "fields with values"
    if isinstance(value, list):
        parts = ["…" if isinstance(v, list | dict) else brief(v) for v in value[:4]]
        return f"[{', '.join([*parts, '…'] if len(value) > 4 else parts)}]"
    if isinstance(value, int) and abs(value) >= 10**20:
        return "a number of more than 20 digits"
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"


def _plain(number: float) -> str:
    """As one writes it: 1000000, not 1e+06."""
    return str(int(number)) if number == int(number) else f"{number:g}"
