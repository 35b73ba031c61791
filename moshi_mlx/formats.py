"""What a file is by its first bytes, for messages about one that is not what it should be.

The one list of that kind; knows nothing of what a file is wanted for.
"""

import codecs
import re
from collections.abc import Iterable
from pathlib import Path

_LOOKED_AT = 512  # bytes
_ZIP = b"PK\x03\x04"
_PICKLES = tuple(bytes([0x80, protocol]) for protocol in range(2, 6))
_PICKLE = "a pickle (PyTorch's .pt, .pth or .bin; reading one can run code)"
SOUNDS = ("a RIFF file (sound or video)", "a FLAC file", "an Ogg file")
TEXT_FILE = "a text file"
TOKENIZER_JSON = "a tokenizer.json"
_OTHER_WEIGHTS = re.compile(r".+\.(bin|pt|pth|ckpt|gguf|ggml|npz|h5|onnx)")
_MARKS: dict[bytes, str] = {
    b"version https://git-lfs": "a Git LFS pointer (`git lfs pull` fetches the file itself)",
    b"/annex/objects/": "a git-annex pointer (`git annex get` fetches the file itself)",
    b"GGUF": "a GGUF file",
    b"ggml": "a GGML file",
    b"\x93NUMPY": "a NumPy file",
    b"\x89HDF": "an HDF5 file",
    b"<": "a web page",
    b"\x1f\x8b": "compressed by gzip",
    b"BZh": "compressed by bzip2",
    b"\xfd7zXZ": "compressed by xz",
    b"\x28\xb5\x2f\xfd": "compressed by zstd",
    b"7z\xbc\xaf": "a 7-Zip archive",
    **dict(zip((b"RIFF", b"fLaC", b"OggS"), SOUNDS, strict=True)),
    b"\x89PNG": "a picture",
    b"%PDF": "a PDF",
    b"\x7fELF": "a program",
    b"SQLite": "a database",
}


def what_is(path: Path) -> str | None:
    """What a file seems to be, as "a GGUF file"; None if that cannot be told or it cannot be read.

    SentencePiece models and damaged safetensors files are recognized too.
    """
    try:
        with path.open("rb") as file:
            first = file.read(_LOOKED_AT)
    except OSError:
        return None
    if not first:
        return "empty"
    if not any(first):
        return "filled with zeros, as a broken copy or download is"
    if first[8:9] == b"{" and int.from_bytes(first[:8], "little") < 2**40:
        return "a safetensors file"
    if first.startswith(_ZIP):
        return _zip(first)
    if first.startswith(_PICKLES):
        return _PICKLE
    if first[257:262] == b"ustar":
        return "a tar archive"
    text = first.removeprefix(b"\xef\xbb\xbf").lstrip()
    found = next((what for mark, what in _MARKS.items() if text.startswith(mark)), None)
    if found is not None:
        return found
    if text[:1] in (b"{", b"["):
        return TOKENIZER_JSON if _is_tokenizer_json(path) else "JSON"
    if b"<unk>" in first and first[:1] == b"\n":
        return "a SentencePiece model"
    return TEXT_FILE if _is_text(text) else None


def other_weights(names: Iterable[str]) -> str | None:
    """Files that other programs keep weights in, as "x.gguf is not safetensors"; None: there are
    none."""
    found = sorted(name for name in names if _OTHER_WEIGHTS.fullmatch(name))
    verb = "is" if len(found) == 1 else "are"
    return f"{', '.join(found)} {verb} not safetensors" if found else None


def _is_text(first: bytes) -> bool:
    """Whether a file that begins like this is readable UTF-8; its last letter may be cut."""
    try:
        letters = codecs.getincrementaldecoder("utf-8")().decode(first)
    except UnicodeDecodeError:
        return False
    return "".join(letters.split()).isprintable()


def is_zip(path: Path) -> bool:
    """Whether a file begins as a ZIP archive, which PyTorch's files are."""
    try:
        with path.open("rb") as file:
            return file.read(len(_ZIP)) == _ZIP
    except OSError:
        return False


def _zip(first: bytes) -> str:
    """By the name of the archive's first file."""
    name = first[30 : 30 + int.from_bytes(first[26:28], "little")]
    if name.endswith(b".npy"):
        return "a NumPy archive (.npz)"
    return "a ZIP archive" if name and not name.endswith(b".pkl") else _PICKLE


def _is_tokenizer_json(path: Path) -> bool:
    """Whether it is the `tokenizers` library's, which Transformers writes."""
    with path.open("rb") as file:
        return b'"added_tokens"' in file.read(100_000)
