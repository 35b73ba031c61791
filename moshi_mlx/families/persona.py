"""PersonaPlex: a dialogue model that is told who it is and what it sounds like.

Joins the parts; all else is in `prompts`, `voice_files` and `voices`.
"""

from functools import cached_property
from pathlib import Path

import numpy.typing as npt

from ..errors import ArgumentError
from ..voices import Voice, voice_from_sound
from .dialogue import Moshi
from .prompts import Prompt, make_prompt, persona_text
from .voice_files import VoiceFiles


class PersonaPlex(Moshi):
    """A loaded PersonaPlex model; made by `load`."""

    def voices(self) -> list[str]:
        """Names of the voices that came with the model, or were put into its folder `voices`."""
        return self._voices.names()

    def voice(self, name: Voice | str | Path, *, folder: Path | None = None) -> Voice:
        """A voice by its name or file.

        Args:
            name: one of `voices` ("NATF2", or "NATF2.pt"), or a voice's file.
            folder: one with further voices; the model's own come first.

        Raises:
            ArgumentError: there is none of that name; names those that come near.
            CheckpointError: the file is missing, damaged, or no voice.
        """
        return name if isinstance(name, Voice) else self._voices.find(name, folder)

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
    def _voices(self) -> VoiceFiles:
        return VoiceFiles(self.files)


FAMILY = PersonaPlex
