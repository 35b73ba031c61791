"""Text files that people and spreadsheets write: UTF-8, with a byte order mark or without.

Knows nothing of what they say.
"""

import codecs
import unicodedata
from pathlib import Path

from ..errors import MoshiError

# UTF-32's mark begins with that of UTF-16.
_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


def read_text(path: Path, kind: type[MoshiError]) -> str:
    """The text of a file, line ends as they are.

    Raises:
        MoshiError: of `kind`; it cannot be read, or is not UTF-8.
    """
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise kind(f"{path}: is not a file")  # reading a pipe or a device may never end
        data = path.read_bytes()
    except OSError as error:
        raise kind(f"{path}: cannot be read: {error.strerror}") from error
    encoding = next((name for mark, name in _MARKS.items() if data.startswith(mark)), None)
    if encoding is None and b"\0" in data[:1000]:
        encoding = "UTF-16, or not text"
    if encoding is not None:
        raise kind(f"{path}: is {encoding}; save it as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise kind(
            f"{path}: is not UTF-8 but perhaps Latin-1 or Windows-1252 (byte "
            f"0x{data[error.start]:02x} in line {line}); save it as UTF-8"
        ) from error


def is_plain(text: str) -> bool:
    """Whether text can name a file: it is not empty and has no control characters."""
    return bool(text.strip()) and all(unicodedata.category(c) not in ("Cc", "Cs") for c in text)
