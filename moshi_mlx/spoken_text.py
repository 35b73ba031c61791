"""Numbers, times, units and abbreviations written out as they are read aloud; English and French.

For text-to-speech, whose models were not taught to read them. Needs num2words, of the extra
`normalize`. Knows nothing of models; pauses and other tags stay as they are.
"""

import re
from collections.abc import Callable
from typing import Any

from .errors import ArgumentError, MoshiError, shown

LANGUAGES = ("en", "fr")

_ABBREVIATIONS = {
    "en": {"Dr.": "Doctor", "Mr.": "Mister", "Mrs.": "Missus", "Ms.": "Miz", "Prof.": "Professor",
           "St.": "Saint", "vs.": "versus", "etc.": "et cetera", "e.g.": "for example",
           "i.e.": "that is", "approx.": "approximately", "No.": "number", "&": "and"},
    "fr": {"Dr": "docteur", "M.": "monsieur", "Mme": "madame", "Mlle": "mademoiselle",
           "etc.": "et cetera", "p. ex.": "par exemple", "c.-à-d.": "c'est-à-dire",
           "env.": "environ", "n°": "numéro", "&": "et"},
}  # fmt: skip
_UNITS = {
    "en": {"km/h": "kilometers per hour", "km": "kilometers", "cm": "centimeters",
           "mm": "millimeters", "m": "meters", "kg": "kilograms", "g": "grams", "ml": "milliliters",
           "l": "liters", "ms": "milliseconds", "s": "seconds", "min": "minutes", "h": "hours",
           "°C": "degrees Celsius", "°F": "degrees Fahrenheit", "°": "degrees", "%": "percent",
           "kHz": "kilohertz", "Hz": "hertz", "GB": "gigabytes", "MB": "megabytes",
           "kB": "kilobytes", "€": "euros", "$": "dollars", "£": "pounds"},
    "fr": {"km/h": "kilomètres à l'heure", "km": "kilomètres", "cm": "centimètres",
           "mm": "millimètres", "m": "mètres", "kg": "kilogrammes", "g": "grammes",
           "ml": "millilitres", "l": "litres", "ms": "millisecondes", "s": "secondes",
           "min": "minutes", "h": "heures", "°C": "degrés Celsius", "°F": "degrés Fahrenheit",
           "°": "degrés", "%": "pour cent", "kHz": "kilohertz", "Hz": "hertz", "Go": "gigaoctets",
           "Mo": "mégaoctets", "ko": "kilooctets", "€": "euros", "$": "dollars", "£": "livres"},
}  # fmt: skip
_ALWAYS_SO = ("pour cent",)
_MOST_DIGITS = 15
_TAG = re.compile(r"(<[^<>]*>)")
_TIME = re.compile(r"(?<![\d:.,])([01]?\d|2[0-3]):([0-5]\d)(?::([0-5]\d))?(?![\d:])")
_ORDINAL = {"en": re.compile(r"\b(\d{1,6})(?:st|nd|rd|th)\b"),
            "fr": re.compile(r"\b(\d{1,6})(?:er|ère|e|ème)\b")}  # fmt: skip
_MONEY = re.compile(r"([$€£])\s?(\d[\d,]*(?:\.\d+)?)")
_YEAR = re.compile(r"\b(?:in|since|of|from|until|by) ((?:1[1-9]|20)\d\d)\b(?![.,]?\d)", re.I)
_NUMBERS = {"en": r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?",
            "fr": r"\d{1,3}(?:[ \u00a0\u202f]\d{3})+(?:,\d+)?|\d+(?:[.,]\d+)?"}  # fmt: skip


def spoken_text(text: str, language: str = "en") -> str:
    """A text with numbers, times, units and abbreviations written out.

    Args:
        text: of any length; what stands between < and > is kept.
        language: "en" or "fr".

    Raises:
        ArgumentError: it is no text, or the language is another one.
        MoshiError: num2words is not installed.
    """
    if not isinstance(text, str):
        raise ArgumentError(f"text must be a str, is {shown(text)}")
    if language not in LANGUAGES:
        raise ArgumentError(f"language must be {' or '.join(LANGUAGES)}, is {shown(language)}")
    say = _sayer(language)
    return "".join(
        part if part.startswith("<") else _spoken(part, language, say) for part in _TAG.split(text)
    )


def _sayer(language: str) -> Callable[..., str]:
    try:
        from num2words import num2words
    except ImportError as error:
        raise MoshiError(
            "writing numbers out needs num2words: pip install 'moshi-local[normalize]'"
        ) from error

    def say(number: Any, to: str = "cardinal") -> str:
        said: str = num2words(number, lang=language, to=to)
        return said.replace(",", "")

    return say


def _spoken(text: str, language: str, say: Callable[..., str]) -> str:
    for short, whole in _ABBREVIATIONS[language].items():
        text = re.sub(rf"(?<![\w.]){re.escape(short)}(?!\w)", whole, text)
    text = _TIME.sub(lambda m: _time(m, language, say), text)
    text = _MONEY.sub(lambda m: f"{m[2]} {m[1]}", text)
    text = _ORDINAL[language].sub(lambda m: say(int(m[1]), to="ordinal"), text)
    if language == "en":
        text = _YEAR.sub(lambda m: m[0].replace(m[1], say(int(m[1]), to="year")), text)
    units = "|".join(sorted(map(re.escape, _UNITS[language]), key=len, reverse=True))
    number = re.compile(
        rf"(?<![\w.,])([-\u2212](?=\d))?({_NUMBERS[language]})(?:(\s?)({units})(?![\w/]))?(?!\w)"
    )
    return number.sub(lambda m: _number(m, language, say), text)


def _number(match: re.Match[str], language: str, say: Callable[..., str]) -> str:
    digits = match[2]
    if language == "en":
        digits = digits.replace(",", "")
    else:
        digits = re.sub(r"\s", "", digits).replace(",", ".")
    if len(digits) > _MOST_DIGITS or (digits.startswith("0") and digits.isdigit()):
        said = " ".join(say(int(digit)) for digit in digits if digit.isdigit())
    else:
        said = say(float(digits) if "." in digits else int(digits))
    if match[1]:
        said = f"{'minus' if language == 'en' else 'moins'} {said}"
    if match[4] is None:
        return said
    unit = _UNITS[language][match[4]]
    if digits == "1":
        first, *rest = unit.split(" ")
        unit = " ".join([first if unit in _ALWAYS_SO else first.removesuffix("s"), *rest])
    return f"{said} {unit}"


def _time(match: re.Match[str], language: str, say: Callable[..., str]) -> str:
    hours, minutes = int(match[1]), int(match[2])
    if language == "fr":
        said = f"{'une' if hours == 1 else say(hours)} heure{'s' * (hours > 1)}"
        return said if not minutes else f"{said} {say(minutes)}"
    if not minutes:
        return f"{say(hours)} o'clock" if 1 <= hours <= 12 else f"{say(hours)} hundred"
    return f"{say(hours)} {'oh ' * (minutes < 10)}{say(minutes)}"
