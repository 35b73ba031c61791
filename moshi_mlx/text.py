"""SentencePiece, and the inner monologue: one text token per frame → words with their times.

Knows nothing of audio or of the model, only of token ids and frame numbers.
"""

import codecs
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor

from .arguments import path_of, whole
from .errors import ArgumentError, ConfigError, TokenizerError, shown
from .files import read_json
from .formats import TOKENIZER_JSON, what_is
from .tokenizer_json import sentencepiece_model

__all__ = [
    "SENTENCES",
    "TextTokenizer",
    "Word",
    "WordStream",
    "gap_between",
    "join_words",
    "known_sentences",
    "plain_words",
]

_TOKENS = -2, 2**31 - 1  # as models have them, in int32
_LONG = 24  # characters of a word that an EPAD finishes in any case
_UNSPACED = re.compile(
    # Thai, Lao, Tibetan, Burmese, Khmer; Chinese and Japanese with their punctuation
    "[\u0e00-\u109f\u1780-\u17ff\u3000-\u30ff\u3400-\u9fff\uf900-\ufaff\uff00-\uffef"
    "\U00020000-\U0003ffff]"
)
"""Scripts that are written without spaces."""
SENTENCES = "sentences.txt"
"""Lists what a model can say, beside its tokenizer, where that is all that it can."""
_BOUNDARY = "\u2581"  # SentencePiece writes the space in front of a word as this character


class TextTokenizer:
    """A SentencePiece model read from a file, or from the `tokenizer.json` that was made of it.

    Tokens are whole numbers from −2, as models have them, whatever is in the vocabulary.

    Raises `TokenizerError` if the file is missing or is not a SentencePiece model, and
    `ArgumentError` for what is no path, no text, or no token.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = path_of("path", path)
        try:
            model = self.path.read_bytes()
        except OSError as error:
            raise TokenizerError(
                f"{self.path}: the tokenizer cannot be read: {error.strerror}. "
                "Put the SentencePiece model of this checkpoint there."
            ) from error
        if what_is(self.path) == TOKENIZER_JSON:
            try:
                model = sentencepiece_model(read_json(self.path), str(self.path))
            except ConfigError as error:
                raise TokenizerError(str(error)) from error
        try:
            self._model = SentencePieceProcessor(model_proto=model)
            self.vocab_size = int(self._model.vocab_size())
        except (RuntimeError, OSError) as error:
            raise self._broken() from error
        if not model or not self.vocab_size:
            raise self._broken()

    def _broken(self) -> TokenizerError:
        what = what_is(self.path)
        if what == TOKENIZER_JSON:
            problem = "is no sound vocabulary. Fetch the file again."
        elif what in (None, "a SentencePiece model"):
            problem = "not a SentencePiece model, or cut short. Fetch the file again."
        else:
            problem = f"is {what}, not a SentencePiece model. Put the checkpoint's own there."
        return TokenizerError(f"{self.path}: {problem}")

    @property
    def model(self) -> bytes:
        """The SentencePiece model, as its file has it."""
        return bytes(self._model.serialized_model_proto())

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without BOS and EOS."""
        if not isinstance(text, str) or not _whole(text):
            raise ArgumentError(f"text must be a str of whole characters, is {shown(text)}")
        return [int(i) for i in self._model.encode(text)]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; ids that carry no text (see `piece_bytes`) add nothing."""
        if not isinstance(ids, Iterable):
            raise ArgumentError(f"ids must be tokens, are {shown(ids)}")
        text = b"".join(self.piece_bytes(i) for i in ids).decode("utf-8", errors="replace")
        return text.removeprefix(" ")

    def piece(self, token: int) -> str:
        """The text of one token, a word boundary as a space.

        A byte piece that is only a part of a character gives ""; `WordStream` and `decode`
        put such characters together.
        """
        return self.piece_bytes(token).decode("utf-8", errors="ignore")

    def piece_bytes(self, token: int) -> bytes:
        """The UTF-8 bytes of one token; none if control, unknown or outside the vocabulary."""
        model, token = self._model, whole("token", token, *_TOKENS)
        if not 0 <= token < self.vocab_size or model.is_control(token) or model.is_unknown(token):
            return b""
        piece: str = model.id_to_piece(token)
        if model.is_byte(token):  # "<0xE2>"
            return bytes([int(piece[1:-1], 16)])
        return piece.replace(_BOUNDARY, " ").encode()


def _whole(text: str) -> bool:
    """Without half a character, which a lone surrogate is."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def gap_between(before: str, after: str) -> str:
    """What stands between two words: a space, but nothing between those of a script without."""
    unspaced = _UNSPACED.match(before[-1:]) and _UNSPACED.match(after)
    return "" if unspaced or not before else " "


def join_words(texts: Iterable[str]) -> str:
    """Words as one text."""
    text = ""
    for word in texts:
        text += gap_between(text, word) + word
    return text


def _goes_on(text: str) -> bool:
    """Whether a word may continue after an EPAD."""
    return len(text) < _LONG and not _UNSPACED.match(text[-1:])


def _decoder() -> codecs.IncrementalDecoder:
    return codecs.getincrementaldecoder("utf-8")(errors="replace")


def known_sentences(tokenizer: Path) -> list[str]:
    """All that a model can say, where a file beside its tokenizer lists that; else nothing."""
    listed = tokenizer.parent / SENTENCES
    return listed.read_text(encoding="utf-8").splitlines() if listed.is_file() else []


def plain_words(text: str) -> list[str]:
    """Lower-case words without punctuation: "Mm-hm. I see." gives ["mmhm", "i", "see"]."""
    return re.sub(r"[^a-z' ]", "", text.lower()).split()


@dataclass(frozen=True)
class Word:
    """One word, punctuation included, with its time in seconds from the first frame."""

    text: str
    start: float
    end: float


class WordStream:
    """Turns the text stream of a conversation, one token per frame, into words.

    A word starts with the frame of its first piece (the one that carries the word boundary).
    It is finished when the next word starts, at EPAD, BOS or EOS, after `patience` frames
    without text, or at `flush`.

    The stream says when a word starts, not when its sound ends, so `end` is the best bound
    that it gives: where the next word starts (EPAD stands in the frame before it), or
    `patience` frames after the last piece, whichever comes first. A piece without a word
    boundary that comes after its word was finished makes a new word.

    In a script that is written without spaces every piece is a word: nothing else tells them.

    With `joins`, EPAD does not finish a word: pieces without a boundary, as of the digits of a
    number, continue it after an EPAD. It still does where the word is long, or of a script that
    is written without spaces; there a word has any number of pieces.
    """

    def __init__(
        self,
        tokenizer: TextTokenizer,
        *,
        epad: int = 0,
        bos: int = 1,
        eos: int = 2,
        pad: int = 3,
        frame_rate: float = 12.5,
        patience: int = 4,
        joins: bool = False,
    ) -> None:
        self._tokenizer = tokenizer
        self._epad, self._pad = epad, pad
        self._breaks = {bos, eos}
        self._frame_rate = frame_rate
        self._patience = patience
        self._joins = joins
        self._decoder = _decoder()
        self._frame = 0  # the frame that comes next
        self._start: int | None = None  # first frame of the unfinished word
        self._last = 0  # frame of its last piece
        self._text = ""

    @property
    def partial(self) -> str:
        """The text so far of the word that is not finished."""
        return self._text

    def step(self, token: int, frame: int | None = None) -> list[Word]:
        """Takes the token of one frame and returns the words it finishes (mostly none or one).

        `frame` is the number of the frame, by default the one after the last; numbers may be
        left out but never go back (`ValueError`).
        """
        if frame is None:
            frame = self._frame
        elif frame < self._frame:
            raise ValueError(f"frame {frame} after frame {self._frame - 1}: time cannot go back")
        self._frame = frame + 1
        if token == self._epad and not (self._joins and _goes_on(self._text)):
            return self._close(frame + 1)
        if token in self._breaks:
            return self._close(frame)
        data = b"" if token in (self._pad, self._epad) else self._tokenizer.piece_bytes(token)
        if not data:
            waited = self._start is not None and frame - self._last >= self._patience
            return self._close(frame + 1) if waited else []

        words: list[Word] = []
        if self._start is None:
            self._start = frame
        text = self._decoder.decode(data)
        if self._text and not self._joins and not gap_between(self._text, text):
            words += self._end(frame)
            self._start = frame
        for character in text:
            if character.isspace():
                # Two words in one piece share its frame; a word still lasts at least that frame.
                words += self._end(max(frame, self._start + 1))
                self._start = frame
            else:
                self._text += character
                self._last = frame
        self._last = frame
        return words

    def save(self) -> dict[str, Any]:
        """The word in progress, as JSON has it."""
        pending, _ = self._decoder.getstate()
        return {
            "frame": self._frame,
            "start": self._start,
            "last": self._last,
            "text": self._text,
            "bytes": pending.hex(),
        }

    def restore(self, saved: Mapping[str, Any], frames: int) -> None:
        """Continues where `save` was called, after that many frames. Raises ValueError."""
        frame = whole("words' frame", saved["frame"], 0, frames)
        start, text = saved["start"], saved["text"]
        if start is not None:
            start = whole("words' start", start, 0, frame)
        if not isinstance(text, str) or (text and start is None):
            raise ArgumentError(f"words' text must be that of a word, is {shown(text)}")
        if not _whole(text):
            raise ArgumentError(f"words' text must have whole characters, is {shown(text)}")
        last = whole("words' last", saved["last"], 0, frame)
        decoder = _decoder()
        if decoder.decode(bytes.fromhex(saved["bytes"])):
            raise ArgumentError(f"words' bytes must begin a character, are {shown(saved['bytes'])}")
        self._frame, self._start, self._last, self._text = frame, start, last, text
        self._decoder = decoder

    def flush(self) -> list[Word]:
        """Finishes the last word: the stream has ended after the last frame."""
        return self._close(self._frame)

    def _close(self, end: int) -> list[Word]:
        """Finishes the word, with what is left of a character that never became whole."""
        self._text += self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return self._end(end)

    def _end(self, end: int) -> list[Word]:
        text, start = self._text, self._start
        self._text, self._start = "", None
        if start is None or not text:
            return []
        end = min(end, self._last + 1 + self._patience)
        return [Word(text, start / self._frame_rate, end / self._frame_rate)]
