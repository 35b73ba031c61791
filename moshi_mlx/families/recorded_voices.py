"""Voices that a speaking model goes on from: recordings that came with it or are published, and
files that `Voice.save` wrote of others, with consent.

Finds them by name. Knows nothing of how a model goes on from them.
"""

import difflib
from pathlib import Path
from typing import Any

from .. import catalog
from ..codec import Codec
from ..errors import ArgumentError, HubError, shown
from ..hub import file_of_repository, is_folder_name, local_path
from ..sounds import open_sound
from ..voices import VOICES, Voice, load_voice, voice_of_recording

_FILE, _SOUND = ".safetensors", ".wav"


class RecordedVoices:
    """The voices of one model.

    Args:
        folder: of its weights; recordings and voices are in VOICES there.
        codec: of the model.
    """

    def __init__(self, folder: Path, codec: Codec[Any]) -> None:
        self._folder, self._codec = folder / VOICES, codec

    def names(self, folder: Path | None = None) -> list[str]:
        """Of those that are here: beside the weights, and in `folder`."""
        found = _named(self._folder, _FILE) | _named(self._folder, _SOUND)
        return sorted(found | _named(folder, _FILE))

    def find(self, name: str | Path, folder: Path | None = None, *, offline: bool = False) -> Voice:
        """A voice by its file or name; a published recording is fetched.

        Args:
            name: a file that `Voice.save` wrote; one of `names`; or a recording's name in the
                voices' repository, such as "expresso/ex03-ex01_happy_001_channel1_334s.wav".
            folder: one with further voices.
            offline: never use the network.

        Raises:
            ArgumentError: there is no such voice; names those that come near.
            CheckpointError: its file is damaged, or no voice.
            HubError: it cannot be fetched.
        """
        text = str(name)
        if isinstance(name, Path) or is_folder_name(text):
            return load_voice(local_path(name))
        stem = text.removesuffix(_FILE).removesuffix(_SOUND)
        for root in filter(None, (self._folder, folder)):
            if stem in _named(root, _FILE):
                return load_voice(root / f"{stem}{_FILE}")
        if stem in _named(self._folder, _SOUND):
            return self._recording(self._folder / f"{stem}{_SOUND}")
        if Path(text).is_file():
            return load_voice(text)
        if "/" in text:
            file = f"{stem}{_SOUND}"
            try:
                path = file_of_repository(catalog.VOICE_REPOSITORY, file, offline=offline)
            except HubError as error:
                raise HubError(f"voice {shown(file)}: {error}") from error
            return self._recording(path)
        known = self.names(folder)
        close = difflib.get_close_matches(stem, known, n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise ArgumentError(
            f"there is no voice {shown(text)}{hint}: this model goes on from a recording, which "
            "`moshi-local voices add` makes a voice of"
        )

    def _recording(self, path: Path) -> Voice:
        sound = open_sound(path).read(self._codec.sample_rate).mean(axis=0)
        return voice_of_recording(self._codec, sound, name=path.stem)


def _named(folder: Path | None, ending: str) -> set[str]:
    """Names of the files with that ending; none where there is no folder."""
    if folder is None or not folder.is_dir():
        return set()
    paths = (path for path in folder.rglob(f"*{ending}") if not path.name.startswith("."))
    return {path.relative_to(folder).as_posix().removesuffix(ending) for path in paths}
