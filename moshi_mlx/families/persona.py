"""PersonaPlex: a dialogue model that is told who it is and what it sounds like.

Knows where a model's voices are; all else is in `prompts` and `voices`.
"""

import difflib
import tarfile
import zlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy.typing as npt

from ..errors import ArgumentError, CheckpointError, shown
from ..hub import is_folder_name, local_path
from ..torch_files import LARGEST_FILE
from ..voices import VOICE_SUFFIXES, VOICES, Voice, load_voice, read_voice, voice_from_sound
from .dialogue import Moshi
from .prompts import Prompt, make_prompt, persona_text

_MOST_MEMBERS = 1000


class PersonaPlex(Moshi):
    """A loaded PersonaPlex model; made by `load`."""

    def voices(self) -> list[str]:
        """Names of the voices that came with the model, or were put into its folder `voices`."""
        found = {path.stem for path in self._files()}
        return sorted(found | {PurePosixPath(name).stem for name, _ in self._archived(None)})

    def voice(self, name: Voice | str | Path) -> Voice:
        """A voice by its name or file.

        Args:
            name: one of `voices` ("NATF2", or "NATF2.pt"), or a voice's file.

        Raises:
            ArgumentError: there is none of that name; names those that come near.
            CheckpointError: the file is missing, damaged, or no voice.
        """
        if isinstance(name, Voice):
            return name
        if isinstance(name, Path):
            return load_voice(local_path(name))
        if not isinstance(name, str) or not name.strip():
            raise ArgumentError(f"voice must be a name, a path or a Voice, is {name!r}")
        if is_folder_name(name):
            return load_voice(local_path(name))
        stem = name
        for suffix in VOICE_SUFFIXES:
            stem = stem.removesuffix(suffix)
        for path in self._files():
            if path.stem == stem:
                return load_voice(path)
        if stem not in self._unpacked:
            for member, data in self._archived(stem):
                self._unpacked[stem] = read_voice(data, member, f"{self.files.voices}: {member}")
        if stem in self._unpacked:
            return self._unpacked[stem]
        if Path(name).is_file():
            return load_voice(name)
        known = self.voices()
        close = difflib.get_close_matches(stem.upper(), known, n=3, cutoff=0.6)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        there = f"It has {', '.join(known)}" if known else "It came with none: give a file"
        raise ArgumentError(f"{self.name} has no voice {name!r}: {hint}{there}")

    def voice_from_sound(
        self, pcm: npt.ArrayLike, *, name: str, accept_faults: bool = False
    ) -> Voice:
        return self.worker.call(
            lambda: voice_from_sound(self.codec, pcm, name=name, accept_faults=accept_faults)
        )

    def prompt(
        self, persona: str | None = None, voice: Voice | str | Path | None = None
    ) -> Prompt | None:
        """What a session with these begins with; None where there is nothing to begin with.

        Args:
            persona: a text; empty is none.
            voice: as `voice` takes it.

        Raises:
            ArgumentError: there is no such voice, it is for another model, or the prompt is longer
                than what the model remembers.
            CheckpointError: the voice's file is missing, damaged, or no voice.
        """
        if not isinstance(persona, str | None):
            raise ArgumentError(f"persona must be a text, is {persona!r}")
        tokens = self.text.encode(persona_text(persona or ""))
        if voice is None and not tokens:
            return None
        spoken = None if voice is None else self.voice(voice)
        prompt = make_prompt(self.lm.config, text=tokens, voice=spoken)
        frames, context = prompt.frames.shape[2], self.lm.config.transformer.context
        if context is not None and frames >= context:
            raise ArgumentError(
                f"persona and voice take {frames} frames ({len(tokens)} of text), the model "
                f"remembers {context}: make the persona or the voice shorter"
            )
        return prompt

    @cached_property
    def _unpacked(self) -> dict[str, Voice]:
        """Voices of the archive that were asked for."""
        return {}

    def _files(self) -> list[Path]:
        """Those in the folder `voices`."""
        folder = self.checkpoint.folder / VOICES
        try:
            return sorted(path for path in folder.iterdir() if path.suffix in VOICE_SUFFIXES)
        except OSError:
            return []

    def _archived(self, wanted: str | None) -> Iterator[tuple[str, bytes]]:
        """Names and contents of the archive's voices: without content, or of the one wanted.

        Nothing is unpacked to the disk. Raises CheckpointError.
        """
        archive = self.files.voices
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


FAMILY = PersonaPlex
