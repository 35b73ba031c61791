"""What is to be spoken: text, turns and breaks → entries of tokens with the pauses after them.

The rules are those of Kyutai's TTS. Beyond them, breaks may be spelt in every usual way, and
scripts may be written as lines "A: …" or as JSON. Knows nothing of models and sound.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ..errors import ArgumentError, shown
from ..files import no_doubles

MAIN, OTHER = 1, 2
"""Tokens in front of a turn: the first speaker's, the second speaker's."""
LONGEST_BREAK = 60.0
"""Seconds."""

_PLAIN = str.maketrans({"’": "'", ":": " ", "(": None, ")": None})
_EXACT = re.compile(r'<break\s+time="(\d+(?:.\d*)?)s"\s*/?>')
_TAG = re.compile(r"<\s*break\b[^<>]*>", re.IGNORECASE)
_BEGUN_TAG = re.compile(r"<\s*(?:b(?:r(?:e(?:a(?:k(?:[\s/][^<>]{0,60})?)?)?)?)?)?$", re.IGNORECASE)
_TIME = re.compile(r"time\s*=\s*[\"']?\s*(\d*\.?\d+|\d+\.)\s*(ms|s)\s*[\"']?", re.IGNORECASE)
_STRENGTH = re.compile(r"strength\s*=\s*[\"']?\s*([a-z-]+)\s*[\"']?", re.IGNORECASE)
_STRENGTHS = {
    "none": 0.0, "x-weak": 0.1, "weak": 0.25, "medium": 0.5, "strong": 1.0, "x-strong": 1.5,
}  # fmt: skip
_SPEAKER = re.compile(r"\s*([AB])\s*:")
_MAYBE_SPEAKER = re.compile(r"\s*(?:[AB]\s*)?")
_JSON = re.compile(r'\s*(?:\[\s*["{]|\{\s*")')
_MAYBE_JSON = re.compile(r"\s*(?:\[[\s\]]*|\{[\s}]*)")
_LINE = re.compile(r"\s*([AB])\s*:\s?(.*)", re.DOTALL)
_LISTS = ("turns", "script")  # names of the list of turns, where it stands in an object
_FOREIGN_TAG = re.compile(r"<\s*/?\s*[a-z][^<>]{0,200}>", re.IGNORECASE)
_UNCLOSED_BREAK = re.compile(r"<\s*break\b[^<>\n]{0,30}(?=<|\n|$)", re.IGNORECASE)
_MOST_REMARKS = 5


@dataclass(frozen=True, slots=True)
class ScriptEntry:
    """A word, or a break: that has no tokens.

    padding: steps of padding that must follow.
    speaker: 0 the main one, 1 the other.
    """

    text: str
    tokens: tuple[int, ...]
    padding: int
    speaker: int = field(default=0, compare=False)


class ScriptReader:
    """Text of any length → entries, as soon as its words are whole.

    Args:
        encode: a word alone → its tokens.
        frame_rate: steps per second.
        padding_between: steps that a word's last token has at least, if it is not 0.
        speakers: the model has speaker tokens: one stands in front of a turn's first word where
            another speaks than before.
        exact: breaks in the one spelling of the reference alone; others are refused, or are words.
    """

    def __init__(
        self,
        encode: Callable[[str], Sequence[int]],
        *,
        frame_rate: float,
        padding_between: int = 1,
        speakers: bool = False,
        exact: bool = False,
    ) -> None:
        self._encode, self._rate = encode, frame_rate
        self._between, self._speakers = padding_between, speakers
        self._tag = _EXACT if exact else _TAG
        self._exact = exact
        self._spoke = -1  # who spoke last
        self._speaker = 0
        self._first = True  # no word of this turn yet
        self._waiting = ""

    def turn(self, speaker: int) -> None:
        """A turn begins: 0 the main speaker's, 1 the other's."""
        self._speaker, self._first = speaker, True

    def read(self, text: str) -> list[ScriptEntry]:
        """Takes a piece of a turn; gives the words and breaks that are whole.

        Raises:
            ArgumentError: a break makes no sense.
        """
        text = self._waiting + text
        tags = [*self._tag.finditer(text)]
        whole = max((m.end() for m in re.finditer(r"\s", text)), default=0)
        whole = max(whole, tags[-1].end() if tags else 0)
        begun = _BEGUN_TAG.search(text)
        if begun is not None:
            whole = min(whole, begun.start())
        self._waiting = text[whole:]
        return self._entries(text[:whole])

    def end(self) -> list[ScriptEntry]:
        """The turn ends: its last word is whole."""
        text, self._waiting = self._waiting, ""
        return self._entries(text)

    def _entries(self, text: str) -> list[ScriptEntry]:
        found: list[ScriptEntry] = []
        at = 0
        for tag in self._tag.finditer(text):
            found += self._words(text[at : tag.start()])
            found.append(self._pause(tag))
            at = tag.end()
        return found + self._words(text[at:])

    def _words(self, text: str) -> list[ScriptEntry]:
        return [self._word(word) for word in text.translate(_PLAIN).split()]

    def _word(self, word: str) -> ScriptEntry:
        tokens = [*self._encode(word)]
        if self._first and self._speakers and self._speaker != self._spoke:
            tokens.insert(0, OTHER if self._speaker else MAIN)
            self._spoke = self._speaker
        self._first = False
        padding = max(0, self._between + len(tokens) - 1) if self._between > 0 else 0
        return ScriptEntry(word, tuple(tokens), padding, self._speaker)

    def _pause(self, tag: re.Match[str]) -> ScriptEntry:
        return ScriptEntry("", (), round(self._seconds(tag) * self._rate), self._speaker)

    def _seconds(self, tag: re.Match[str]) -> float:
        """Of a break."""
        if self._exact:
            try:
                return float(tag[1])
            except ValueError:
                raise ArgumentError(f"{tag[0]}: its time must be a number of seconds") from None
        if (time := _TIME.search(tag[0])) is not None:
            seconds = float(time[1]) / (1000 if time[2].lower() == "ms" else 1)
        elif (strength := _STRENGTH.search(tag[0])) is not None:
            known = _STRENGTHS.get(strength[1].lower())
            if known is None:
                raise ArgumentError(f"{tag[0]}: the strength is one of {', '.join(_STRENGTHS)}")
            seconds = known
        elif re.fullmatch(r"<\s*break\s*/?\s*>", tag[0], re.IGNORECASE):
            seconds = _STRENGTHS["medium"]
        else:
            raise ArgumentError(
                f'{shown(tag[0])} is no break: write <break time="0.5s"/> or time="500ms"'
            )
        if seconds > LONGEST_BREAK:
            raise ArgumentError(f"{tag[0]}: a break has at most {LONGEST_BREAK:g} s")
        return seconds


def entries_of(reader: ScriptReader, turns: Iterable[str]) -> list[ScriptEntry]:
    """All entries of a script: turns of the main speaker and the other one, one after the other.

    Raises:
        ArgumentError: a break makes no sense.
    """
    found: list[ScriptEntry] = []
    for i, turn in enumerate(turns):
        reader.turn(i % 2)
        found += reader.read(turn) + reader.end()
    return found


def turns_of(text: str) -> list[str]:
    """A text as it is written down → turns; the empty first one lets the other speaker begin.

    A text whose first line begins with "A:" or "B:" is a script, a line of which that begins
    without belongs to the line before. So is JSON: a list of turns, each a text or an object with
    "speaker" ("A" or "B", else one after the other) and "text".

    Raises:
        ArgumentError: it begins like JSON and cannot be read as such, or a turn in it.
    """
    if _JSON.match(text) or (text.lstrip().startswith(("[", "{")) and _is_json(text)):
        return turns_of_json(text)
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines or _LINE.fullmatch(lines[0]) is None:
        return [text]
    said: list[tuple[str, str]] = []
    for line in lines:
        match = _LINE.fullmatch(line)
        if match is not None:
            said.append((match[1], match[2]))
        else:
            said[-1] = (said[-1][0], f"{said[-1][1]}\n{line}")
    return alternating(said)


class ArrivingScript:
    """A text as it is written down, in pieces → who says what, as soon as that is known.

    What `turns_of` reads at once. JSON is only known at its end.
    """

    def __init__(self) -> None:
        self._kind: Literal["text", "lines", "json"] | None = None
        self._waiting = ""
        self._line_begins = True

    def read(self, piece: str) -> list[tuple[int | None, str]]:
        """Takes a piece; gives texts, each with the speaker of a turn that begins, or None."""
        self._waiting += piece
        if self._kind is None:
            self._kind = _kind_of_script(self._waiting)
        if self._kind == "lines":
            return [*self._lines()]
        if self._kind == "text":
            return [(None, self._taken(len(self._waiting)))]
        return []

    def end(self) -> list[tuple[int | None, str]]:
        """The rest. Raises ArgumentError as `turns_of`."""
        text = self._taken(len(self._waiting))
        if self._kind in ("json", None):
            return [(i % 2, turn) for i, turn in enumerate(turns_of(text))]
        return [(None, text)]

    def _lines(self) -> Iterator[tuple[int | None, str]]:
        while self._waiting:
            if self._line_begins:
                begins = _SPEAKER.match(self._waiting)
                if begins is None and _MAYBE_SPEAKER.fullmatch(self._waiting):
                    return
                self._line_begins = False
                if begins is not None:
                    self._taken(begins.end())
                    yield "AB".index(begins[1]), ""
                    continue
            end = self._waiting.find("\n") + 1
            self._line_begins = end > 0
            yield None, self._taken(end or len(self._waiting))

    def _taken(self, n: int) -> str:
        text, self._waiting = self._waiting[:n], self._waiting[n:]
        return text


def _kind_of_script(begin: str) -> Literal["text", "lines", "json"] | None:
    """What a text is that begins like this; None: that cannot be told yet."""
    if _MAYBE_SPEAKER.fullmatch(begin) or _MAYBE_JSON.fullmatch(begin):
        return None
    if _SPEAKER.match(begin):
        return "lines"
    return "json" if _JSON.match(begin) else "text"


def alternating(said: Iterable[tuple[str, str]]) -> list[str]:
    """(speaker, text) → turns of A and B one after the other, empty where one goes on."""
    turns: list[str] = []
    for speaker, text in said:
        if len(turns) % 2 != (speaker == "B"):
            turns.append("")
        turns.append(text)
    return turns


def turns_of_json(text: str) -> list[str]:
    """As `turns_of`, of a text that must be JSON.

    Raises:
        ArgumentError: it is not, or has a field or a value that is not understood; names it.
    """

    def doubled(name: str) -> ArgumentError:
        return ArgumentError(f"the script has the field {shown(name)} twice in one place")

    try:
        found: Any = json.loads(text, object_pairs_hook=no_doubles(doubled))
    except RecursionError:
        raise ArgumentError("the script is nested too deeply for JSON") from None
    except json.JSONDecodeError as error:
        raise ArgumentError(f"the script cannot be read as JSON: {error}") from None
    if isinstance(found, dict):
        names = [name for name in _LISTS if name in found]
        if len(names) == 1:
            _refuse_others(found, names, "the script")
            found = found[names[0]]
    if not isinstance(found, list):
        raise ArgumentError(
            'a script in JSON is a list of turns, or an object that has one as "turns", is '
            f"{shown(found)}"
        )
    said: list[tuple[str, str]] = []
    for number, turn in enumerate(found, 1):
        speaker = "AB"[len(said) % 2] if isinstance(turn, str) else None
        if isinstance(turn, dict):
            _refuse_others(turn, ("speaker", "text"), f"turn {number} of the script")
            speaker, turn = turn.get("speaker", "AB"[len(said) % 2]), turn.get("text")
        if speaker not in ("A", "B") or not isinstance(turn, str):
            raise ArgumentError(
                f'turn {number} of the script must be a text, or {{"speaker": "A" or "B", '
                f'"text": …}}, is {shown(found[number - 1])}'
            )
        said.append((speaker, turn))
    return alternating(said)


def _refuse_others(table: dict[str, Any], known: Sequence[str], where: str) -> None:
    """Raises ArgumentError for the first field that is not among the known ones."""
    for name in table:
        if name not in known:
            fields = " and ".join(f'"{each}"' for each in known)
            voices = name in ("voice", "voices")
            way = "voices are given by --voice" if voices else f"it can have {fields}"
            raise ArgumentError(f"{where} has the field {shown(name)}, which it cannot have: {way}")


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def remarks_on(turns: Sequence[str]) -> list[str]:
    """What may not be meant in a script, though it can be spoken: a line for each.

    Tags other than breaks, which are spoken as text, and a text without a letter or a digit.
    """
    found: list[str] = []
    for turn in turns:
        found += [
            f"{shown(tag[0].strip())} has no > at its end: it is spoken as text"
            for tag in _UNCLOSED_BREAK.finditer(turn)
        ]
        found += [
            f"{shown(tag[0])} is spoken as text: the only tag is <break/>"
            for tag in _FOREIGN_TAG.finditer(turn)
            if _TAG.fullmatch(tag[0]) is None
        ]
    found = [*dict.fromkeys(found)]
    if len(found) > _MOST_REMARKS:
        found[_MOST_REMARKS:] = [f"and {len(found) - _MOST_REMARKS} more such tags"]
    said = (character for turn in turns for character in _TAG.sub("", turn))
    if not any(map(str.isalnum, said)):
        found.append("the text has no letter and no digit: the model may say anything, or nothing")
    return found
