"""`tokenizer.json` of the `tokenizers` library ↔ a SentencePiece model, as bytes.

Both hold the same Unigram vocabulary; with SentencePiece's own rules for spaces the ids are those
of the model that the vocabulary comes from. Knows both formats' fields; nothing of what the tokens
are for. SentencePiece's format: a protocol buffer, of which a few fields are enough here.
"""

import base64
import binascii
import math
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .errors import TokenizerError, shown

NAME = "tokenizer.json"

_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6  # types of a piece
_UNIGRAM = 1  # type of a model
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3  # fields of a model
_BYTES = {f"<0x{byte:02X}>" for byte in range(256)}
_SPACE = "\u2581"


def sentencepiece_model(data: Mapping[str, Any], where: str) -> bytes:
    """A parsed tokenizer.json → the SentencePiece model.

    Repeated spaces count as one, as SentencePiece has it, which the file doesn't say.

    Raises:
        TokenizerError: its vocabulary is not Unigram's, or is broken; names the field.
    """
    model = data.get("model")
    if not isinstance(model, Mapping):
        raise TokenizerError(f"{where}: field 'model' must be an object, is {shown(model)}")
    # Old files of Unigram don't name it.
    kind = model.get("type", "Unigram" if isinstance(model.get("vocab"), list) else None)
    if kind != "Unigram":
        raise TokenizerError(
            f"{where}: field 'model.type' must be 'Unigram', is {shown(kind)}: put the "
            "checkpoint's SentencePiece model there (tokenizer_spm_32k_3.model of Moshi)"
        )
    pieces = _vocabulary(model.get("vocab"), where)
    unknown = model.get("unk_id")
    if type(unknown) is not int or not 0 <= unknown < len(pieces):
        raise TokenizerError(
            f"{where}: field 'model.unk_id' must be a token below {len(pieces)}, is "
            f"{shown(unknown)}"
        )
    special = _special(data, where)
    falls_back = model.get("byte_fallback") is True and {piece for piece, _ in pieces} >= _BYTES
    out = bytearray()
    for token, (piece, score) in enumerate(pieces):
        of_bytes = falls_back and piece in _BYTES
        kind = _UNKNOWN if token == unknown else _CONTROL if piece in special else _NORMAL
        entry = _text(1, piece) + b"\x15" + struct.pack("<f", score)
        entry += _number(3, _BYTE if of_bytes else kind)
        out += _bytes(_PIECES, entry)
    trainer = _number(3, _UNIGRAM) + _number(4, len(pieces)) + _number(35, falls_back)
    out += _bytes(_TRAINER, trainer + _number(40, unknown))
    normalizer = _text(1, "identity")
    if charsmap := _charsmap(data.get("normalizer"), where):
        normalizer = _text(1, "precompiled") + _bytes(2, charsmap)
    out += _bytes(_NORMALIZER, normalizer + _number(3, _starts_with_space(data)))
    return bytes(out)


def tokenizer_json(model: bytes, where: str) -> dict[str, Any]:
    """A SentencePiece model → what tokenizer.json says, the inverse of `sentencepiece_model`.

    Raises:
        TokenizerError: the model is not Unigram's.
    """
    pieces, kind, falls_back, charsmap, prefix = [], _UNIGRAM, False, b"", True
    for field, value in _fields(model):
        if field == _PIECES and isinstance(value, bytes):
            pieces.append(_piece(value))
        elif field == _TRAINER and isinstance(value, bytes):
            trainer = dict(_fields(value))
            kind, falls_back = trainer.get(3, _UNIGRAM), bool(trainer.get(35, 0))
        elif field == _NORMALIZER and isinstance(value, bytes):
            normalizer = dict(_fields(value))
            charsmap, prefix = normalizer.get(2, b""), bool(normalizer.get(3, 1))
    if kind != _UNIGRAM:
        raise TokenizerError(f"{where}: is not a Unigram model, which tokenizer.json is made from")
    unknown = next((i for i, piece in enumerate(pieces) if piece.kind == _UNKNOWN), None)
    special = [i for i, piece in enumerate(pieces) if piece.kind in (_UNKNOWN, _CONTROL)]
    normalizers: list[dict[str, Any]] = []
    if charsmap:
        encoded = base64.b64encode(charsmap).decode()
        normalizers.append({"type": "Precompiled", "precompiled_charsmap": encoded})
    normalizers.append({"type": "Replace", "pattern": {"String": " "}, "content": _SPACE})
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": i, "content": pieces[i].text, "single_word": False, "lstrip": False,
                "rstrip": False, "normalized": False, "special": True,
            }
            for i in special
        ],
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": {
            "type": "Metaspace", "replacement": _SPACE,
            "prepend_scheme": "first" if prefix else "never", "split": False,
        },
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "Unigram",
            "unk_id": unknown,
            "vocab": [[piece.text, piece.score] for piece in pieces],
            "byte_fallback": falls_back,
        },
    }  # fmt: skip


def _vocabulary(vocab: Any, where: str) -> list[tuple[str, float]]:
    """Pieces with their scores, in the order of their ids."""
    if not isinstance(vocab, list) or not vocab:
        raise TokenizerError(f"{where}: field 'model.vocab' must be a list of pieces")
    pieces: list[tuple[str, float]] = []
    for token, entry in enumerate(vocab):
        good = isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str)
        good = good and type(entry[1]) in (int, float) and abs(entry[1]) < 1e30
        if not good or not entry[0] or not math.isfinite(entry[1]) or not _is_text(entry[0]):
            raise TokenizerError(
                f"{where}: field 'model.vocab' must have a piece and a score for token {token}, "
                f"has {shown(entry)}"
            )
        pieces.append((entry[0], float(entry[1])))
    if len({piece for piece, _ in pieces}) < len(pieces):
        raise TokenizerError(f"{where}: field 'model.vocab' has a piece twice")
    return pieces


def _is_text(piece: str) -> bool:
    """Without half a character, and without what ends a text in C."""
    return not re.search("[\ud800-\udfff\0]", piece)


def _special(data: Mapping[str, Any], where: str) -> set[str]:
    """Tokens that stand for no text."""
    added = data.get("added_tokens") or []
    if not isinstance(added, list) or not all(isinstance(token, Mapping) for token in added):
        raise TokenizerError(f"{where}: field 'added_tokens' must be a list of objects")
    return {str(token.get("content")) for token in added if token.get("special") is True}


def _parts(block: Any, inner: str) -> list[Mapping[str, Any]]:
    """A normalizer or pre-tokenizer, or those of a sequence."""
    if not isinstance(block, Mapping):
        return []
    parts = block.get(inner) if block.get("type") == "Sequence" else [block]
    return [part for part in parts or () if isinstance(part, Mapping)]


def _charsmap(block: Any, where: str) -> bytes:
    """SentencePiece's table of characters that count as others; empty if there is none."""
    for part in _parts(block, "normalizers"):
        if part.get("type") == "Precompiled":
            try:
                return base64.b64decode(str(part.get("precompiled_charsmap")), validate=True)
            except (ValueError, binascii.Error) as error:
                raise TokenizerError(
                    f"{where}: field 'normalizer.precompiled_charsmap' is broken"
                ) from error
    return b""


def _starts_with_space(data: Mapping[str, Any]) -> bool:
    """Whether a text's first word counts as one after a space."""
    for part in _parts(data.get("pre_tokenizer"), "pretokenizers"):
        if part.get("type") == "Metaspace":
            scheme = part.get("prepend_scheme", "always")
            return scheme != "never" and part.get("add_prefix_space") is not False
    prepends = [part.get("type") for part in _parts(data.get("normalizer"), "normalizers")]
    return "Prepend" in prepends


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(int(value))


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _text(field: int, value: str) -> bytes:
    return _bytes(field, value.encode())


@dataclass(frozen=True, slots=True)
class _Piece:
    text: str
    score: float
    kind: int


def _piece(message: bytes) -> _Piece:
    text, score, kind = "", 0.0, _NORMAL
    for field, value in _fields(message):
        if field == 1 and isinstance(value, bytes):
            text = value.decode("utf-8", errors="replace")
        elif field == 2 and isinstance(value, bytes):
            (score,) = struct.unpack("<f", value)
        elif field == 3 and isinstance(value, int):
            kind = value
    return _Piece(text, score, kind)


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Field numbers with their values: numbers as int, all else as bytes.

    The message was read by SentencePiece before: it is sound.
    """
    place = 0

    def varint() -> int:
        nonlocal place
        value = shift = 0
        while True:
            byte = message[place]
            place += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while place < len(message):
        key = varint()
        if key & 7 == 0:
            yield key >> 3, varint()
            continue
        size = {1: 8, 5: 4}.get(key & 7) or varint()
        yield key >> 3, message[place : place + size]
        place += size
