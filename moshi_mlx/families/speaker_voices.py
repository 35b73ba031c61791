"""Voices that a speaking model attends to: files with what an encoder made of ten seconds.

A file belongs to one model, whose signature is in its name. Knows nothing of how it is spoken.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from .. import catalog
from ..arguments import finite, on_host
from ..conditions import Masked
from ..errors import ArgumentError, CheckpointError, HubError, shown
from ..formats import is_zip
from ..hub import file_of_repository, local_path
from ..safetensors import read_metadata, read_safetensors
from ..threads import mlx_work
from ..voices import VOICES
from .kinds import persona_models

TENSOR = "speaker_wavs"
"""In a voice's file, and the conditioner that takes it."""
_SUFFIX = ".safetensors"
_PUBLISHED_FRAMES = 125  # ten seconds


@dataclass(frozen=True, eq=False)
class SpeakerVoice:
    """A voice of one model.

    latent: float32 [frames, dim].
    """

    name: str
    latent: npt.NDArray[np.float32]


class SpeakerVoices:
    """The voices of one model.

    Args:
        folder: of its weights; voices are in VOICES there.
        signature: of the model, "1e68beda@240".
        dim: of a voice's latent.
    """

    def __init__(self, folder: Path, signature: str, dim: int) -> None:
        self._folder, self._dim = folder / VOICES, dim
        self._signature = signature
        self.suffix = f".{signature}{_SUFFIX}"
        self._takes = f"this model takes those that were made for it ({signature})"

    def names(self, folder: Path | None = None) -> list[str]:
        """Of those that are here: beside the weights, and in `folder`."""
        found: set[str] = set()
        for root in (self._folder, folder):
            if root is not None and root.is_dir():
                paths = (p.relative_to(root).as_posix() for p in root.rglob(f"*{self.suffix}"))
                found |= {path.removesuffix(self.suffix).removesuffix(".wav") for path in paths}
        return sorted(found)

    @cached_property
    def frames(self) -> int:
        """Of a voice: of those that are here, else of the published ones."""
        names = self.names()
        return len(self.find(names[0]).latent) if names else _PUBLISHED_FRAMES

    @mlx_work
    def find(
        self, name: str | Path, folder: Path | None = None, *, offline: bool = False
    ) -> SpeakerVoice:
        """A voice by its file or name; a published one is fetched.

        Args:
            name: a path; one of `names`; or a recording's name in the voices' repository, such as
                "expresso/ex03-ex01_happy_001_channel1_334s.wav".
            folder: one with further voices.
            offline: never use the network.

        Raises:
            ArgumentError: there is no such voice, or it is of another model.
            CheckpointError: its file is damaged.
        """
        path = local_path(name)
        if path.is_file():
            return self._read(path)
        endings = (self.suffix, f".wav{self.suffix}")
        for root in filter(None, (self._folder, folder)):
            for file in (root / f"{name}{end}" for end in endings):
                if file.is_file() and file.resolve().is_relative_to(root.resolve()):
                    return self._read(file)
        try:
            fetched = file_of_repository(
                catalog.VOICE_REPOSITORY, f"{name}{self.suffix}", offline=offline
            )
        except HubError as error:
            here = ", ".join(self.names(folder)[:8]) or "none"
            raise ArgumentError(
                f"there is no voice {shown(str(name))} for this model: here are {here}; "
                f"of {catalog.VOICE_REPOSITORY}: {error}"
            ) from error
        return self._read(fetched)

    def _read(self, path: Path) -> SpeakerVoice:
        if is_zip(path):
            raise ArgumentError(
                f"{path}: is a voice for {persona_models()}; {self._takes}, a .safetensors file"
            )
        tensors = read_safetensors(path)
        if "codes" in tensors:
            raise ArgumentError(
                f"{path}: is a voice of a recording, for {catalog.made_of_recordings()}; "
                f"{self._takes}"
            )
        if TENSOR not in tensors:
            raise CheckpointError(f"{path}: is no voice of a text-to-speech model: no {TENSOR}")
        about = read_metadata(path)
        signature = f"{about.get('sig', '')}@{about.get('epoch', '')}"
        if about.get("sig") is not None and signature != self._signature:
            raise ArgumentError(
                f"{path}: is a voice that was made for {catalog.signed(signature)}; {self._takes}"
            )
        latent = on_host(TENSOR, tensors[TENSOR].astype(mx.float32))
        if latent.ndim != 3 or len(latent) != 1 or latent.shape[1] != self._dim:
            raise CheckpointError(
                f"{path}: {TENSOR} must be [1, {self._dim}, frames], is {list(latent.shape)}"
            )
        finite(f"{path}: {TENSOR}", latent)
        name = path.name.removesuffix(self.suffix).removesuffix(_SUFFIX).removesuffix(".wav")
        return SpeakerVoice(name, np.ascontiguousarray(latent[0].T))


def slots_of(voices: Sequence[SpeakerVoice | None], speakers: int, dim: int, frames: int) -> Masked:
    """The condition of up to `speakers` voices, the first speaker's first.

    Args:
        voices: of a conversation; None leaves a slot empty.
        speakers: slots.
        dim: of a voice's latent.
        frames: of a slot where there is no voice at all.

    Raises:
        ArgumentError: there are too many, or they are not of one length.
    """
    if len(voices) > speakers:
        raise ArgumentError(f"this model takes up to {speakers} voices, not {len(voices)}")
    lengths = {len(voice.latent) for voice in voices if voice is not None}
    if len(lengths) > 1:
        raise ArgumentError(f"voices must be of one length, are of {sorted(lengths)} frames")
    length = max(lengths, default=frames)
    values = np.zeros((speakers, length, dim), np.float32)
    mask = np.zeros((speakers, length), np.bool_)
    for slot, voice in enumerate(voices):
        if voice is not None:
            values[slot], mask[slot] = voice.latent, True
    return Masked(mx.array(values.reshape(-1, dim)), mx.array(mask.reshape(-1)))
