"""Voices of models that take one: what they are, their files, and how one is made from sound.

A voice is either what the codec makes of a recording, or what a model read of one: PersonaPlex'
own voices are published only like that. Knows nothing of prompts or of where a model's voices are.
"""

import hashlib
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from . import catalog
from .arguments import finite, integers, on_host, path_of, samples
from .arrays import Codes, Pcm, Tokens
from .codec import Codec
from .errors import ArgumentError, CheckpointError, shown
from .formats import is_zip, what_is
from .loudness import integrated_loudness
from .safetensors import read_metadata, read_safetensors, write_safetensors
from .threads import mlx_work
from .torch_files import LARGEST_FILE, read_torch

_QUIETEST = -70.0
"""Loudness, LUFS, that a recording must have."""
VOICES = "voices"
"""The folder of a model's voices, beside its weights."""
VOICE_SUFFIXES = (".safetensors", ".pt")
LOUDNESS = -24.0
"""LUFS of a voice's sound."""
RING = 4
"""Positions of the ring that a file of embeddings has: position p at p mod 4."""

_FORMAT = "moshi-local voice 1"
_ATTENDED = "speaker_wavs"  # in files for models that attend to a voice
_CODEBOOKS, _MOST_CODEBOOKS = 8, 64
_MOST = 3000  # frames
_LARGEST_CODE = 2**20
_SECONDS = (1.0, 60.0)
_CLIPPED, _MOST_CLIPPED = 0.999, 0.001  # a sample from here on; their share
_WINDOW_SECONDS, _MARGIN_SECONDS = 0.02, 0.1
_SILENCE_DB, _LEAST_RANGE_DB = -40.0, 15.0  # below the loudest window; from pauses to speech


@dataclass(frozen=True, eq=False)
class Voice:
    """A voice: either `codes`, or `embeddings` and `cache`.

    name: for messages and files.
    codes: int32 [codebooks, V], the codec's, frame by frame.
    embeddings: float32 [V − 1, dim]: the model's input at positions 0 … V − 2.
    cache: int32 [streams, 4]: the tokens of the last positions, position p at p mod 4.
    about: what its file says: consent, date, source.
    """

    name: str
    codes: Codes | None = None
    embeddings: npt.NDArray[np.float32] | None = None
    cache: Tokens | None = None
    about: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.codes is not None and self.embeddings is None and self.cache is None:
            codes = integers(f"codes of voice {self.name}", self.codes, 0, _LARGEST_CODE)
            good = codes.ndim == 2 and 1 <= len(codes) <= _MOST_CODEBOOKS
            if not good or not 1 <= codes.shape[1] <= _MOST:
                raise ArgumentError(
                    f"voice {self.name}: codes must be [1 to {_MOST_CODEBOOKS}, 1 to {_MOST}], "
                    f"are {list(codes.shape)}"
                )
            object.__setattr__(self, "codes", codes)
            return
        if self.codes is not None or self.embeddings is None or self.cache is None:
            raise ArgumentError(
                f"voice {self.name}: needs either codes, or embeddings and cache together"
            )
        x = on_host(f"embeddings of voice {self.name}", self.embeddings)
        if x.dtype.kind != "f":
            raise ArgumentError(f"voice {self.name}: embeddings must be floats, are {x.dtype}")
        cache = integers(f"cache of voice {self.name}", self.cache, -_LARGEST_CODE, _LARGEST_CODE)
        if x.ndim != 2 or not 1 <= len(x) < _MOST or cache.ndim != 2 or cache.shape[1] != RING:
            raise ArgumentError(
                f"voice {self.name}: embeddings must be [1 to {_MOST - 1}, dim] and cache "
                f"[streams, {RING}], are {list(x.shape)} and {list(cache.shape)}"
            )
        finite(f"embeddings of voice {self.name}", x)
        object.__setattr__(self, "embeddings", x.astype(np.float32))
        object.__setattr__(self, "cache", cache)

    @property
    def frames(self) -> int:
        """Its length, V."""
        if self.codes is not None:
            return int(self.codes.shape[1])
        assert self.embeddings is not None
        return len(self.embeddings) + 1

    @property
    def fingerprint(self) -> str:
        """Of its content; the name and what is said about it don't count."""
        digest = hashlib.sha256()
        for array in (self.codes, self.embeddings, self.cache):
            if array is not None:
                digest.update(f"{array.dtype} {array.shape}".encode() + array.tobytes())
        return digest.hexdigest()

    @mlx_work
    def save(self, path: str | Path, *, consent: str, source: str | None = None) -> None:
        """Writes it as a safetensors file, whole or not at all.

        Args:
            path: of the file, `NAME.safetensors`.
            consent: who speaks, and that they agree to this use, in their or your words; it is
                kept in the file.
            source: where it comes from; what its own file says if None.

        Raises:
            ArgumentError: there is no consent, or the path is none for a voice.
            CheckpointError: the file cannot be written.
        """
        target = path_of("path", path)
        if not isinstance(consent, str) or not consent.strip():
            raise ArgumentError(
                "consent must say who speaks and that they agree to this use of their voice, "
                f"is {consent!r}"
            )
        if target.suffix != VOICE_SUFFIXES[0]:
            raise ArgumentError(f"path must end in .safetensors, is {target}")
        about = {
            "name": self.name,
            "consent": consent.strip(),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "source": source or self.about.get("source", ""),
        }
        arrays = {"codes": self.codes, "embeddings": self.embeddings, "cache": self.cache}
        tensors = {name: mx.array(array) for name, array in arrays.items() if array is not None}
        write_safetensors(target, tensors, {"format": _FORMAT, **about})


@mlx_work
def load_voice(path: str | Path) -> Voice:
    """Reads a voice: `Voice.save`'s file, PersonaPlex' `.pt`, or embeddings as safetensors.

    Raises:
        ArgumentError: the path is none.
        CheckpointError: the file is missing, damaged, or no voice; names it.
    """
    path = path_of("path", path)
    if is_zip(path):
        return voice_of(path.stem, read_torch(path, str(path)), str(path))
    if path.is_file() and (what := what_is(path)) not in (None, "a safetensors file"):
        raise CheckpointError(
            f"{path}: is {what}, not a voice: that is a .safetensors file, as `moshi-local voices "
            "add` makes of a sound, or the .pt file of a published one"
        )
    tensors = read_safetensors(path)
    size = sum(array.nbytes for array in tensors.values())
    if size > LARGEST_FILE:
        raise CheckpointError(f"{path}: has {size} bytes of tensors, which is too much for a voice")
    about = read_metadata(path)
    if about.pop("format", _FORMAT) not in (_FORMAT, "mlx", "pt", "np"):
        raise CheckpointError(f"{path}: is a file of another kind, not a voice")
    name = about.pop("name", "") or path.stem
    arrays = {name: on_host(name, tensor) for name, tensor in tensors.items()}
    return voice_of(name if name.isprintable() else path.stem, arrays, str(path), about)


def read_voice(data: bytes, file: str, where: str) -> Voice:
    """A voice from the bytes of a `.pt` file, called `file`. Raises CheckpointError."""
    return voice_of(Path(file).stem, read_torch(io.BytesIO(data), where), where)


def voice_of(
    name: str,
    tensors: Mapping[str, npt.NDArray[Any]],
    where: str,
    about: Mapping[str, str] | None = None,
) -> Voice:
    """A voice from the arrays of its file, whose axes of length 1 don't matter.

    Raises:
        CheckpointError: they are not a voice's.
    """
    about = {} if about is None else about
    if _ATTENDED in tensors:
        owner = catalog.signed(f"{about.get('sig')}@{about.get('epoch')}")
        raise CheckpointError(
            f"{where}: is a voice that was made for {owner}, and no other model takes it; for "
            f"{catalog.made_of_recordings()}, `moshi-local voices add` makes one of a recording"
        )
    known = {"codes", "embeddings", "cache"} & tensors.keys()
    if known not in ({"codes"}, {"embeddings", "cache"}):
        raise CheckpointError(
            f"{where}: is no voice: it needs codes, or embeddings and cache; it has "
            f"{', '.join(map(shown, sorted(tensors)[:5])) or 'nothing'}"
        )
    try:
        arrays = {name: _flat(tensors[name], name) for name in known}
        return Voice(name, **arrays, about=about)
    except ArgumentError as error:
        raise CheckpointError(f"{where}: {error}") from None


def _flat(array: npt.NDArray[Any], name: str) -> npt.NDArray[Any]:
    """As [n, m]: without the axes of length 1 between and before these."""
    if array.ndim < 2 or not array.size or array.size not in (
        array.shape[i] * array.shape[-1] for i in range(array.ndim - 1)
    ):  # fmt: skip
        raise ArgumentError(f"{name} must have two axes, has the shape {list(array.shape)}")
    return array.reshape(-1, array.shape[-1])


# ------------------------------------------------------------------------------- from sound


def voice_from_sound(
    codec: Codec[Any],
    pcm: npt.ArrayLike,
    *,
    name: str,
    accept_faults: bool = False,
    codebooks: int = _CODEBOOKS,
) -> Voice:
    """The voice of a recording of one speaker.

    Its silent ends are cut off, its loudness becomes that of the published voices, and the codec
    encodes it from its beginning.

    Args:
        codec: of the model.
        pcm: sound [samples] of one channel at the codec's rate: floats in −1 … 1, int16 or int32.
        name: of the voice.
        accept_faults: also take a recording that clips or is noisy.
        codebooks: that the model needs.

    Raises:
        ArgumentError: there is less than 1 s or more than 60 s of voice, or the recording clips or
            is noisy.
    """
    if not isinstance(name, str) or not name.strip() or not name.isprintable():
        raise ArgumentError(f"name must be a voice's name, is {name!r}")
    sound = samples(pcm)
    if sound.ndim != 1:
        raise ArgumentError(f"a voice is made of one channel [samples], this has {sound.shape}")
    finite("sound", sound)
    rate = codec.sample_rate
    trimmed = _trimmed(sound, rate)
    seconds, (least, most) = len(trimmed) / rate, _SECONDS
    if not least <= seconds <= most:
        raise ArgumentError(
            f"voice {name} needs {least:g} to {most:g} s of speech, the sound has {seconds:.1f} s "
            f"of it, in {len(sound) / rate:.1f} s"
        )
    if not accept_faults and (faults := recording_faults(trimmed, rate)):
        raise ArgumentError(f"voice {name}: {faults[0]}")
    level = integrated_loudness(trimmed, rate)
    if not level > _QUIETEST:  # what is below the gate of BS.1770 has none
        raise ArgumentError(f"voice {name}: the recording is too quiet; record it louder")
    gain = 10 ** ((LOUDNESS - level) / 20)
    leveled = (trimmed * gain).astype(np.float32)
    return Voice(name, codes=_encoded(codec, leveled)[:codebooks])


def voice_of_recording(codec: Codec[Any], pcm: Pcm, *, name: str) -> Voice:
    """The voice of a recording as it is, in all of the codec's codebooks.

    Args:
        codec: of the model.
        pcm: float32 [samples] of one channel at the codec's rate.
        name: of the voice.

    Raises:
        ArgumentError: there is no sound, or more than a voice can have.
    """
    seconds, most = len(pcm) / codec.sample_rate, _MOST * codec.frame_size / codec.sample_rate
    if not 0 < seconds <= most:
        raise ArgumentError(
            f"voice {name}: a recording has up to {most:.0f} s of sound, this one {seconds:.1f} s"
        )
    return Voice(name, codes=_encoded(codec, pcm))


def _encoded(codec: Codec[Any], pcm: Pcm) -> Codes:
    """Codes [codebooks, frames] of a sound, from its beginning."""
    padded = np.pad(pcm, (0, -len(pcm) % codec.frame_size))
    state = codec.init_state()
    frames = padded.reshape(-1, codec.frame_size)
    return np.concatenate([codec.encode_step(frame, state) for frame in frames], axis=1)


def recording_faults(pcm: Pcm, rate: float) -> list[str]:
    """What is wrong with a recording of a voice [samples], a line each; none if it is good."""
    faults = []
    clipped = float((np.abs(pcm) >= _CLIPPED).mean())
    if clipped > _MOST_CLIPPED:
        faults.append(
            f"{clipped:.1%} of the samples are clipped, which distorts the voice; record it again "
            "with less gain"
        )
    levels = _levels(pcm, rate)
    quiet, loud = np.percentile(levels, [5, 95])
    if loud - quiet < _LEAST_RANGE_DB:
        faults.append(
            f"pauses are only {loud - quiet:.0f} dB below the speech, so there is noise or music; "
            "record it in a quieter place"
        )
    return faults


def _levels(pcm: Pcm, rate: float) -> npt.NDArray[np.float64]:
    """dB of each window."""
    size = max(1, round(_WINDOW_SECONDS * rate))
    windows = np.pad(pcm.astype(np.float64), (0, -len(pcm) % size)).reshape(-1, size)
    power = (windows**2).mean(axis=1) if len(windows) else np.zeros(1)
    return 10 * np.log10(np.maximum(power, 1e-12))


def _trimmed(pcm: Pcm, rate: float) -> Pcm:
    """Without what is silent at both ends, but for a margin."""
    levels = _levels(pcm, rate)
    heard = np.flatnonzero(levels > max(levels.max(initial=-math.inf) + _SILENCE_DB, -119.0))
    if not heard.size:
        return pcm[:0]
    size, margin = max(1, round(_WINDOW_SECONDS * rate)), round(_MARGIN_SECONDS * rate)
    return pcm[max(0, heard[0] * size - margin) : (heard[-1] + 1) * size + margin]
