"""Voices of speech models: those that a model cross-attends, and those that it hears first.

Finds them by name or file, beside the model, in a folder and on the hub. Knows nothing of
scripts or of how a model speaks.
"""

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from .. import catalog
from ..codec import Codec
from ..config import ModelId
from ..errors import ArgumentError, CheckpointError, HubError, shown
from ..hub import file_of_repository, is_folder_name, local_path
from ..safetensors import read_metadata, read_safetensors
from ..sounds import open_sound
from ..threads import mlx_work
from ..voices import VOICES, Voice, load_voice, voice_of_recording

LATENTS = "speaker_wavs"
"""The conditioner that takes voices, and the tensor of a voice's file."""
_MOST_FRAMES = 10_000
_HUB, _FILE = "hf://", "file://"
_SOUND = ".wav"


@dataclass(frozen=True, eq=False)
class SpeakerVoice:
    """A voice that a model cross-attends.

    name: for messages.
    latents: float32 [L, dim]: what an encoder made of a recording.
    """

    name: str
    latents: mx.array


@mlx_work
def load_speaker_voice(path: Path, made_for: ModelId | None, dim: int) -> SpeakerVoice:
    """Reads a voice's file.

    Args:
        path: of the file: safetensors with `speaker_wavs`, float [1, dim, L].
        made_for: what the file must be made for; None takes any.
        dim: of the model's conditioner.

    Raises:
        CheckpointError: the file is missing, damaged, no voice, or another model's; names it.
    """
    tensors, about = read_safetensors(path), read_metadata(path)
    found = tensors.get(LATENTS)
    if found is None:
        raise CheckpointError(
            f"{path}: is no voice for a speech model: it has no tensor {LATENTS}, but "
            f"{', '.join(map(shown, sorted(tensors)[:3])) or 'nothing'}"
        )
    theirs = f"{about.get('sig', '?')}@{about.get('epoch', '?')}"
    if made_for is not None and "sig" in about and about["sig"] != made_for.sig:
        raise CheckpointError(
            f"{path}: is a voice for model {shown(theirs)}, this one is {made_for}: use the file "
            f"of the same voice that ends in {suffix_of(made_for)}"
        )
    if not mx.issubdtype(found.dtype, mx.floating):
        raise CheckpointError(f"{path}: {LATENTS} must be floats, is {found.dtype}")
    if found.ndim != 3 or found.shape[0] != 1 or not 1 <= found.shape[2] <= _MOST_FRAMES:
        raise CheckpointError(
            f"{path}: {LATENTS} must be [1, {dim}, frames], is {list(found.shape)}"
        )
    if found.shape[1] != dim:
        raise CheckpointError(
            f"{path}: is a voice for another model: {LATENTS} has {found.shape[1]} channels, this "
            f"model's voices {dim}"
        )
    latents = found[0].T.astype(mx.float32)
    if not mx.isfinite(latents).all().item():
        raise CheckpointError(f"{path}: {LATENTS} has numbers that are not finite")
    mx.eval(latents)
    return SpeakerVoice(path.name.removesuffix(".safetensors"), latents)


def suffix_of(made_for: ModelId | None) -> str:
    """What the name of a voice ends in, for a model."""
    return ".safetensors" if made_for is None else f".{made_for}.safetensors"


class SpeakerVoices:
    """The voices of one model.

    Args:
        name: of the model, for messages.
        folder: of its weights.
        made_for: what its voices' files must be made for.
        dim: of the conditioner that takes them; None: voices are heard as codes.
    """

    def __init__(self, name: str, folder: Path, made_for: ModelId | None, dim: int | None) -> None:
        self._name, self._folder = name, folder / VOICES
        self._made_for, self._dim = made_for, dim

    def names(self, folder: Path | None = None) -> list[str]:
        """Of those that are beside the model, and in another folder if there is one."""
        found = {name for name, _ in self._local(self._folder)}
        if folder is not None:
            found |= {name for name, _ in self._local(folder)}
        return sorted(found)

    def find(
        self,
        name: str | Path,
        codec: Codec[Any],
        *,
        folder: Path | None = None,
        offline: bool = False,
    ) -> SpeakerVoice | Voice:
        """A voice by its name or file.

        Args:
            name: one of `names`, a file, "hf://org/repo/path", or a published voice's name, such as
                "expresso/ex03-ex01_happy_001_channel1_334s.wav".
            codec: of the model, for voices that are heard.
            folder: one with further voices; the model's own come first.
            offline: look only at what is here.

        Raises:
            ArgumentError: there is none of that name; names those that come near.
            CheckpointError: the file is missing, damaged, no voice, or another model's.
            HubError: it cannot be fetched.
        """
        if not isinstance(name, str | Path) or not str(name).strip():
            raise ArgumentError(f"voice must be a name, a path or a voice, is {shown(name)}")
        text = str(name)
        if text.startswith(_FILE):
            return self._load(local_path(text.removeprefix(_FILE)), codec)
        if text.startswith(_HUB):
            parts = text.removeprefix(_HUB).split("/", 2)
            if len(parts) < 3:
                raise ArgumentError(f"voice {text!r} must be hf://org/repo/path")
            return self._published("/".join(parts[:2]), parts[2], codec, offline)
        if isinstance(name, Path) or is_folder_name(text):
            return self._load(local_path(name), codec)
        for where in (self._folder, folder):
            for each, path in () if where is None else self._local(where):
                if text in (each, each.removesuffix(_SOUND), path.name):
                    return self._load(path, codec, trusted=where is self._folder)
        if Path(text).is_file():
            return self._load(Path(text), codec)
        if "/" in text:
            return self._published(catalog.VOICE_REPOSITORY, text, codec, offline)
        raise self._unknown(text, folder)

    def _local(self, folder: Path) -> Iterator[tuple[str, Path]]:
        """Names and files in a folder, which need not be there."""
        suffix = suffix_of(self._made_for) if self._dim is not None else ".safetensors"
        endings = (suffix,) if self._dim is not None else (suffix, _SOUND)
        try:
            paths = sorted(path for path in folder.rglob("*") if not path.name.startswith("."))
        except OSError:
            return
        for path in paths:
            ending = next((each for each in endings if path.name.endswith(each)), None)
            if ending is not None:
                name = path.relative_to(folder).as_posix()
                yield name.removesuffix(ending if ending != _SOUND else ""), path

    def _published(
        self, repository: str, file: str, codec: Codec[Any], offline: bool
    ) -> SpeakerVoice | Voice:
        file = file.removesuffix(suffix_of(self._made_for))
        if self._dim is not None and not file.endswith(".safetensors"):
            file += suffix_of(self._made_for)
        try:
            path = file_of_repository(repository, file, offline=offline)
        except HubError as error:
            raise HubError(f"voice {file}: {error}") from error
        return self._load(path, codec, trusted=True)

    def _load(self, path: Path, codec: Codec[Any], trusted: bool = False) -> SpeakerVoice | Voice:
        """A voice's file; `trusted`: a recording that is published as a voice is one too."""
        if self._dim is not None:
            return load_speaker_voice(path, self._made_for, self._dim)
        if path.suffix != ".safetensors" and trusted:
            sound = open_sound(path).read(codec.sample_rate).mean(axis=0)
            return voice_of_recording(codec, sound, name=path.stem)
        return load_voice(path)

    def _unknown(self, name: str, folder: Path | None) -> ArgumentError:
        known = self.names(folder)
        close = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        there = f"It has {', '.join(known[:10])}. " if known else ""
        return ArgumentError(
            f"{self._name} has no voice {name!r}: {hint}{there}Give a file, or the name of one in "
            f"{catalog.VOICE_REPOSITORY} on the hub, as FOLDER/NAME.wav"
        )
