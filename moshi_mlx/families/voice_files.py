"""Where the voices of a model are: a folder and an archive beside its weights.

Finds them by name. Knows nothing of prompts, and needs no model to be loaded.
"""

import difflib
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from ..errors import ArgumentError, CheckpointError, shown
from ..hub import ModelFiles, is_folder_name, local_path
from ..torch_files import LARGEST_FILE
from ..voices import VOICE_SUFFIXES, VOICES, Voice, load_voice, read_voice

_MOST_MEMBERS = 1000


class VoiceFiles:
    """The voices that are beside a model's weights.

    Args:
        files: of the model.
    """

    def __init__(self, files: ModelFiles) -> None:
        self._name, self._archive = files.name, files.voices
        self._folder = files.weights[0].parent / VOICES
        self._unpacked: dict[str, Voice] = {}  # of the archive, as far as they were asked for

    def names(self) -> list[str]:
        """Of all of them. Raises CheckpointError."""
        found = {path.stem for path in voices_in(self._folder)}
        return sorted(found | {PurePosixPath(name).stem for name, _ in self._archived(None)})

    def find(self, name: str | Path, folder: Path | None = None) -> Voice:
        """A voice by its name or file.

        Args:
            name: one of `names` ("NATF2", or "NATF2.pt"), one in `folder`, or a voice's file.
            folder: one with further voices; a model's own come first.

        Raises:
            ArgumentError: there is none of that name; names those that come near.
            CheckpointError: the file is missing, damaged, or no voice.
        """
        if isinstance(name, Path):
            return load_voice(local_path(name))
        if not isinstance(name, str) or not name.strip():
            raise ArgumentError(f"voice must be a name, a path or a Voice, is {name!r}")
        if is_folder_name(name):
            return load_voice(local_path(name))
        stem = name
        for suffix in VOICE_SUFFIXES:
            stem = stem.removesuffix(suffix)
        if (found := self._own(stem)) is not None:
            return found
        others = [] if folder is None else voices_in(folder)
        for path in others:
            if path.stem == stem:
                return load_voice(path)
        if Path(name).is_file():
            return load_voice(name)
        raise self._unknown(name, stem, [path.stem for path in others])

    def _own(self, stem: str) -> Voice | None:
        for path in voices_in(self._folder):
            if path.stem == stem:
                return load_voice(path)
        if stem not in self._unpacked:
            for member, data in self._archived(stem):
                self._unpacked[stem] = read_voice(data, member, f"{self._archive}: {member}")
        return self._unpacked.get(stem)

    def _unknown(self, name: str, stem: str, others: Sequence[str]) -> ArgumentError:
        known = [*self.names(), *others]
        near = {each.upper(): each for each in known}
        close = [near[n] for n in difflib.get_close_matches(stem.upper(), near, n=3, cutoff=0.6)]
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        there = f"It has {', '.join(known)}" if known else "It came with none: give a file"
        return ArgumentError(f"{self._name} has no voice {name!r}: {hint}{there}")

    def _archived(self, wanted: str | None) -> Iterator[tuple[str, bytes]]:
        """Names and contents of the archive's voices: without content, or of the one wanted.

        Nothing is unpacked to the disk. Raises CheckpointError.
        """
        archive = self._archive
        if archive is None:
            return
        try:
            with tarfile.open(archive, "r:gz") as tar:
                for count, member in enumerate(tar):
                    if member.size > LARGEST_FILE or count >= _MOST_MEMBERS:
                        raise CheckpointError(f"{archive}: {shown(member.name)} is too large")
                    path = PurePosixPath(member.name)
                    if not member.isreg() or path.suffix != ".pt" or path.name.startswith("."):
                        continue
                    if wanted is None:
                        yield path.name, b""
                    elif path.stem == wanted and (file := tar.extractfile(member)) is not None:
                        yield path.name, file.read()
        except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
            raise CheckpointError(f"{archive}: cannot be read, fetch it again ({error})") from error


def voices_in(folder: Path) -> list[Path]:
    """The files of voices in a folder, which need not be there; hidden ones are none."""
    try:
        return sorted(
            path
            for path in folder.iterdir()
            if path.suffix in VOICE_SUFFIXES and not path.name.startswith(".")
        )
    except OSError:
        return []
