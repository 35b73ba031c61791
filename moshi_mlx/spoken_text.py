"""Numbers, times, units and abbreviations written out as they are read aloud; English and French.

For text-to-speech, whose models were not taught to read them. Needs num2words, of the extra
`normalize`. Knows nothing of models; pauses and other tags stay as they are.
"""

import datetime
import re
from collections.abc import Callable
from typing import Any

from .distributions import needs_extra
from .errors import ArgumentError, shown

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
_HOURS = re.compile(r"(?<![\w:.,/])([01]?\d|2[0-3])\s?h(?:\s?([0-5]\d))?(?:\s?min)?(?![\w/])")
_DATE = re.compile(r"(?<![\w.,/-])(\d{1,2})([./])(\d{1,2})\2(\d{4})(?![\w/]|[.,]\d)")
_DOTTED = re.compile(r"(?<![\w.,])\d{1,9}(?:\.\d{1,9}){2,}(?!\w|[.,]\d)")
_FRACTION = re.compile(r"(?<![\w.,/])(\d{1,9})/(\d{1,9})(?![\w/]|[.,]\d)")
_PARTS = {"en": {2: ("half", "halves"), 3: ("third", "thirds"), 4: ("quarter", "quarters")},
          "fr": {2: ("demi", "demis"), 3: ("tiers", "tiers"), 4: ("quart", "quarts")}}  # fmt: skip
_AS_SAID = {"24/7"}  # number after number
_MONTHS = {
    "en": ("January", "February", "March", "April", "May", "June", "July", "August", "September",
           "October", "November", "December"),
    "fr": ("janvier", "février", "mars", "avril", "mai", "juin", "juillet", "août", "septembre",
           "octobre", "novembre", "décembre"),
}  # fmt: skip
_WORDS = {"en": {"point": "point", "over": "over"}, "fr": {"point": "point", "over": "sur"}}
_ORDINAL = {"en": re.compile(r"\b(\d{1,6})(?:st|nd|rd|th)\b"),
            "fr": re.compile(r"\b(\d{1,6})(?:er|ère|e|ème)\b")}  # fmt: skip
_MONEY = re.compile(r"([$€£])\s?(\d[\d,]*(?:\.\d+)?)(\s(?:thousand|million|billion|trillion)\b)?")
_CENTS = {"$": ("cent", "cents"), "€": ("cent", "cents"), "£": ("penny", "pence")}
_PRICE = {"en": re.compile(r"(?<![\w.,])(\d{1,3}(?:,\d{3})+|\d{1,12})\.(\d\d)\s?([$€£])(?!\w)"),
          "fr": re.compile(r"(?<![\w.,])(\d{1,3}(?:[ \u00a0\u202f]\d{3})+|\d{1,12})[.,](\d\d)"
                           r"\s?([$€£])(?!\w)")}  # fmt: skip
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
    with needs_extra("normalize", "writing numbers out (--normalize) needs num2words"):
        from num2words import num2words

    def say(number: Any, to: str = "cardinal") -> str:
        said: str = num2words(number, lang=language, to=to)
        return said.replace(",", "")

    return say


def _spoken(text: str, language: str, say: Callable[..., str]) -> str:
    for short, whole in _ABBREVIATIONS[language].items():
        text = re.sub(rf"(?<![\w.]){re.escape(short)}(?!\w)", whole, text)
    text = _TIME.sub(lambda m: _time(m, language, say), text)
    if language == "fr":
        text = _HOURS.sub(lambda m: _french_time(int(m[1]), int(m[2] or 0), say), text)
    text = _DATE.sub(lambda m: _date(m, language, say), text)
    point = f" {_WORDS[language]['point']} "
    text = _DOTTED.sub(lambda m: point.join(say(int(n)) for n in m[0].split(".")), text)
    text = _FRACTION.sub(lambda m: _fraction(m, language, say), text)
    units = _UNITS[language]
    text = _MONEY.sub(lambda m: f"{m[2]}{m[3]} {units[m[1]]}" if m[3] else f"{m[2]} {m[1]}", text)
    text = _PRICE[language].sub(lambda m: _price(m, language, say), text)
    text = _ORDINAL[language].sub(lambda m: say(int(m[1]), to="ordinal"), text)
    if language == "en":
        text = _YEAR.sub(lambda m: m[0].replace(m[1], say(int(m[1]), to="year")), text)
    units_or = "|".join(sorted(map(re.escape, units), key=len, reverse=True))
    number = re.compile(
        rf"(?<![\w.,])([-\u2212](?=\d))?({_NUMBERS[language]})(?:(\s?)({units_or})(?![\w/]))?(?!\w)"
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
    hours, minutes, seconds = (int(part or 0) for part in match.groups())
    if language == "fr":
        said = _french_time(hours, minutes, say)
        rest = f" et {_feminine(say(seconds))} seconde{'s' * (seconds > 1)}"
        return said + rest * bool(seconds)
    if minutes:
        said = f"{say(hours)} {'oh ' * (minutes < 10)}{say(minutes)}"
    else:
        said = f"{say(hours)} o'clock" if 1 <= hours <= 12 else f"{say(hours)} hundred"
    return f"{said} and {say(seconds)} second{'s' * (seconds > 1)}" if seconds else said


def _french_time(hours: int, minutes: int, say: Callable[..., str]) -> str:
    said = f"{_feminine(say(hours))} heure{'s' * (hours > 1)}"
    return f"{said} {_feminine(say(minutes))}" if minutes else said


def _feminine(number: str) -> str:
    """Of a French number in words."""
    return re.sub(r"\bun$", "une", number)


def _date(match: re.Match[str], language: str, say: Callable[..., str]) -> str:
    """The day comes first; in English with / it may also be the month, so only numbers are read.

    What is on no calendar is read digit by digit.
    """
    day, month, year = int(match[1]), int(match[3]), int(match[4])
    ambiguous = language == "en" and match[2] == "/"
    if not (_is_date(year, month, day) or (ambiguous and _is_date(year, day, month))):
        groups = (match[1], match[3], match[4])
        return ", ".join(" ".join(say(int(digit)) for digit in group) for group in groups)
    of_year = say(year, to="year")
    if ambiguous:
        return f"{say(day)} {say(month)} {of_year}"
    if language == "en":
        return f"the {say(day, to='ordinal')} of {_MONTHS['en'][month - 1]} {of_year}"
    return f"{'premier' if day == 1 else say(day)} {_MONTHS['fr'][month - 1]} {of_year}"


def _is_date(year: int, month: int, day: int) -> bool:
    try:
        datetime.date(year, month, day)
    except ValueError:
        return False
    return True


def _fraction(match: re.Match[str], language: str, say: Callable[..., str]) -> str:
    above, below = int(match[1]), int(match[2])
    names = _PARTS[language].get(below)
    if names is not None and 0 < above < below:
        return f"{say(above)} {names[above > 1]}"
    between = " " if match[0] in _AS_SAID else f" {_WORDS[language]['over']} "
    return f"{say(above)}{between}{say(below)}"


def _price(match: re.Match[str], language: str, say: Callable[..., str]) -> str:
    """An amount with two decimals, as a price is said."""
    whole, cents, sign = int(re.sub(r"\D", "", match[1])), int(match[2]), match[3]
    unit = _UNITS[language][sign]
    if whole == 1 or (language == "fr" and whole == 0):
        unit = unit.removesuffix("s")
    small = _CENTS[sign] if language == "en" else ("centime", "centimes")
    if not whole and cents:
        return f"{say(cents)} {small[cents > 1]}"
    said = f"{say(whole)} {unit}"
    if cents and language == "en":
        return f"{said} and {say(cents)} {small[cents > 1]}"
    return f"{said} {say(cents)}" if cents else said
