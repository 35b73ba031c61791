"""Texts that a command is given: itself, a file, or standard input as it arrives.

Knows nothing of what is done with them.
"""

from __future__ import annotations

import codecs
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from moshi_mlx import ArgumentError
from moshi_mlx.formats import TEXT_FILE, what_is

__all__ = ["Arriving", "file_of", "sentences", "text_in"]

TEXT_SUFFIXES = (".txt", ".md", ".json", ".text", ".script")
_ADDRESS = re.compile(r"[a-zA-Z][\w+.-]+://\S+")
_LONGEST_NAME = 4096  # characters of a path
_PIECE_BYTES = 1 << 16
_SENTENCE_END = re.compile(r"[.!?…][\"'”’)\]]*\s|\n")


def file_of(argument: str) -> Path | None:
    """The file that an argument of TEXT or FILE means, or None: it is the text itself.

    It is a file if there is one of that name, or if it is one word that ends like the name of a
    text file.

    Raises:
        ArgumentError: it is such a file's address on the web.
    """
    if len(argument) > _LONGEST_NAME or "\n" in argument or "\0" in argument:
        return None
    path = Path(argument).expanduser()
    if _ADDRESS.fullmatch(argument) and path.suffix.lower() in TEXT_SUFFIXES:
        raise ArgumentError(f"{argument} is an address: fetch the file first, and give its path")
    named = path.suffix.lower() in TEXT_SUFFIXES and len(argument.split()) == 1
    try:
        return path if named or path.exists() else None
    except OSError:  # too long for a name
        return None


def text_in(path: Path, most: int, option: str = "") -> str:
    """A file's text, without the blanks at its ends.

    Args:
        path: of the file: UTF-8, with or without a byte order mark.
        most: bytes that it may have.
        option: that names it, for messages: "--persona @FILE".

    Raises:
        ArgumentError: it is missing, too large, or has no text; names it.
    """
    where = f"{option}: " if option else ""
    the_file = "the file" if option else str(path)
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise ArgumentError(f"{where}{path} cannot be read: {error.strerror or error}") from error
    if len(data) > most:
        raise ArgumentError(f"{where}{the_file} has more than {most // 1000} kB, which is too much")
    try:
        text = data.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        what = what_is(path)
        told = what if what not in (None, TEXT_FILE, "JSON") else "not text in UTF-8"
        raise ArgumentError(f"{where}{the_file} is {told}: give a text file")
    if not text:
        raise ArgumentError(f"{where}{the_file} has no text")
    return text


class Arriving:
    """Text from a descriptor in the pieces in which it arrives, to its end.

    Args:
        descriptor: is read until it ends; not closed.
        name: for messages.
        waits: is called before each wait for more.
    """

    def __init__(
        self,
        descriptor: int,
        name: str,
        *,
        waits: Callable[[], None] = lambda: None,
    ) -> None:
        self.ended = False
        """Whether all of it has come."""
        self.first_at: float | None = None
        """When the first of it came (seconds, monotonic)."""
        self.waited = 0.0
        """Seconds in which more of it was waited for."""
        self._descriptor, self._name = descriptor, name
        self._waits = waits

    def __iter__(self) -> Iterator[str]:
        """The pieces, none of them empty.

        Raises:
            ArgumentError: it is not UTF-8, or has nothing but blanks at its end.
            OSError: it cannot be read.
        """
        decoder = codecs.getincrementaldecoder("utf-8-sig")()
        data, blank = b"\0", True
        while data:
            self._waits()
            began = time.monotonic()
            data = os.read(self._descriptor, _PIECE_BYTES)
            now = time.monotonic()
            self.ended, self.waited = not data, self.waited + now - began
            self.first_at = self.first_at or now
            try:
                text = decoder.decode(data, final=not data)
            except UnicodeDecodeError:
                raise ArgumentError(f"{self._name} is not text in UTF-8") from None
            if "\0" in text:
                raise ArgumentError(f"{self._name} is not text: it has zero bytes")
            blank = blank and not text.strip()
            if text:
                yield text
        if blank:
            raise ArgumentError(f"{self._name} has no text")


def sentences(pieces: Iterable[str]) -> Iterator[str]:
    """A text in pieces → in sentences and lines, as soon as they are whole."""
    waiting = ""
    for piece in pieces:
        waiting += piece
        end = max((match.end() for match in _SENTENCE_END.finditer(waiting)), default=0)
        if end:
            yield waiting[:end]
            waiting = waiting[end:]
    if waiting:
        yield waiting
