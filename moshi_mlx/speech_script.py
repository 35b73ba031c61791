"""A script → the entries of its words and pauses, all at once or as its text arrives.

A script is what two speakers say in turn. Its text is cut at blanks and at pauses; nothing is read
out otherwise. Knows nothing of files or of models, but for how a word becomes tokens.
"""

import re
from collections.abc import Callable, Iterator, Sequence

from .errors import ArgumentError, shown
from .speech_machine import Entry

SPEAKERS = ("A", "B")
"""What lines of a text begin with, before a colon: the main speaker, and the other one."""
LONGEST_PAUSE = 600.0
"""Seconds."""

_EXACT = re.compile(r'<break\s+time="([0-9]+(?:.[0-9]*)?)s"\s*/?>')
_ANY = re.compile(r"<break(?![\w-])[^<>]*>|</break\s*>", re.IGNORECASE)
_OPEN = re.compile(r"<(?:break(?![\w-])[^<>]*|/?b?r?e?a?k?)\Z|</break\s*\Z", re.IGNORECASE)
_TIME = re.compile(r"(\d+(?:[.,]\d*)?|[.,]\d+)\s*(ms|s|sec|seconds?|milliseconds?)?", re.IGNORECASE)
_FIELD = re.compile(r"""([\w-]+)\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s"'/>]+))""")
_STRENGTHS = {
    "none": 0.0, "x-weak": 0.1, "weak": 0.25, "medium": 0.5, "strong": 0.8, "x-strong": 1.2
}  # fmt: skip
"""Seconds of a pause that is named, as SSML does, without a time."""
_PLAIN = str.maketrans({"\u2019": "'", ":": " ", "(": None, ")": None})
_MARK = re.compile(rf"[^\S\n]*({'|'.join(SPEAKERS)}):(?=\s|\Z)")
_LINE_START = re.compile(r"\n")
_PARAGRAPH = re.compile(r"\n[^\S\n]*\n\s*")


class ScriptReader:
    """Reads one script into entries, turn by turn or piece by piece.

    Args:
        encode: a word → its tokens.
        speaker_tokens: say by a token who speaks, where that changes.
        padding_between: steps after a word, beyond those of its pieces; 0: none at all.
        frame_rate: steps per second.
        exact: know pauses in the one spelling that the models' makers know, and nothing else.
        paragraph_pause: seconds of pause at an empty line; 0: none.
    """

    def __init__(
        self,
        encode: Callable[[str], Sequence[int]],
        *,
        speaker_tokens: bool,
        padding_between: int,
        frame_rate: float,
        exact: bool = False,
        paragraph_pause: float = 0.0,
    ) -> None:
        self._encode = encode
        self._speaker_tokens, self._between = speaker_tokens, padding_between
        self._frame_rate, self._exact = frame_rate, exact
        self._paragraph_pause = paragraph_pause
        self._speaker = 0
        self._spoke: int | None = None  # who spoke last
        self._left = ""
        self._begins = True

    def turns(self, turns: Sequence[str]) -> list[Entry]:
        """A whole script: the main speaker's turns, and the other's in between.

        Raises:
            ArgumentError: a turn is no text, or has a pause that is none.
        """
        entries: list[Entry] = []
        for i, turn in enumerate(turns):
            if not isinstance(turn, str):
                raise ArgumentError(f"turn {i + 1} of the script must be text, is {shown(turn)}")
            self._speaker = i % 2
            entries += self._read(turn)
        return entries

    def add(self, piece: str) -> list[Entry]:
        """The next piece of a text, cut anywhere; gives what is whole by now.

        A line that begins with "A:" or "B:" is that speaker's, and so are those after it.

        Raises:
            ArgumentError: the piece is no text, or has a pause that is none.
        """
        if not isinstance(piece, str):
            raise ArgumentError(f"a piece of the script must be text, is {shown(piece)}")
        text = self._left + piece
        whole = self._whole(text)
        self._left = text[whole:]
        return self._read_lines(text[:whole])

    def finish(self) -> list[Entry]:
        """What is left at the end of the text. Raises ArgumentError as `add`."""
        text, self._left = self._left.rstrip(), ""
        return self._read_lines(text)

    def _whole(self, text: str) -> int:
        """Characters from the start that no more text can change."""
        opened = _OPEN.search(text)
        end = len(text) if opened is None else opened.start()
        tags = [match.end() for match in _ANY.finditer(text, 0, end)]
        # The blanks in front of what is not whole stay with it: they say whether a line begins.
        blank = max((i for i in range(end) if text[i].isspace()), default=0)
        return max([len(text[:blank].rstrip()), *tags])

    def _read_lines(self, text: str) -> list[Entry]:
        """A text with lines that say who speaks."""
        entries: list[Entry] = []
        at = 0
        for start in [0] * self._begins + [m.end() for m in _LINE_START.finditer(text)]:
            if mark := _MARK.match(text, start):
                entries += self._read(text[at:start])
                self._speaker, at = SPEAKERS.index(mark[1]), mark.end()
        entries += self._read(text[at:])
        self._begins = self._begins and not text
        return entries

    def _read(self, text: str) -> list[Entry]:
        """What one speaker says."""
        entries: list[Entry] = []
        if self._paragraph_pause:
            pause = f' <break time="{self._paragraph_pause:g}s"/> '
            text = _PARAGRAPH.sub(pause, text.lstrip() if self._spoke is None else text)
        text = text.translate(_PLAIN)
        at = 0
        for tag in (_EXACT if self._exact else _ANY).finditer(text):
            entries += self._words(text[at : tag.start()])
            at = tag.end()
            seconds = self._seconds(tag[0])
            if seconds is not None:
                padding = round(seconds * self._frame_rate)
                entries.append(Entry("", (), padding, self._speaker))
        return entries + list(self._words(text[at:]))

    def _words(self, text: str) -> Iterator[Entry]:
        for word in text.split():
            tokens = list(self._encode(word))
            if self._speaker_tokens and self._speaker != self._spoke:
                tokens.insert(0, 1 + self._speaker)
            self._spoke = self._speaker
            padding = max(0, self._between + len(tokens) - 1) if self._between > 0 else 0
            yield Entry(word, tuple(tokens), padding, self._speaker)

    def _seconds(self, tag: str) -> float | None:
        """Of a pause; None for a tag that only ends one."""
        exact = _EXACT.fullmatch(tag)
        if self._exact:
            assert exact is not None
            try:
                return float(exact[1])
            except ValueError:
                raise ArgumentError(f"{shown(tag)}: its time must be seconds, as 0.5s") from None
        if tag.startswith("</"):
            return None
        fields = {m[1].lower(): next(v for v in m.groups()[1:] if v is not None)
                  for m in _FIELD.finditer(tag)}  # fmt: skip
        time, strength = fields.get("time"), fields.get("strength")
        if time is not None:
            seconds = _seconds_of(time)
        else:
            seconds = _STRENGTHS.get("medium" if strength is None else strength.strip().lower())
        if seconds is None or seconds > LONGEST_PAUSE:
            raise ArgumentError(
                f'{shown(tag)}: a pause has a time of up to {LONGEST_PAUSE:g} s, as time="500ms" '
                f'or time="0.5s", or a strength of {", ".join(_STRENGTHS)}'
            )
        return seconds


def _seconds_of(time: str) -> float | None:
    match = _TIME.fullmatch(time.strip())
    if match is None:
        return None
    number = float(match[1].replace(",", "."))
    milliseconds = (match[2] or "s").lower().startswith("m")
    return number / 1000 if milliseconds else number
