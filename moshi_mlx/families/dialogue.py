"""Dialogue models: Moshi and its fine-tunes, which listen and speak at the same time.

Makes sessions; all else is in the parts.
"""

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path

import numpy.typing as npt

from ..arguments import truth
from ..conditions import Condition
from ..config import LmConfig
from ..errors import ArgumentError
from ..generate import Generator
from ..sampling import Sampling
from ..session import Frame, Opening, Session
from ..state import SavedState, state_from
from ..voices import Voice
from .kinds import takes_no
from .model import Model
from .prompt_states import PromptStates
from .prompts import Prompt


class Moshi(Model):
    """A loaded dialogue model; made by `load`. Its sessions share the weights and nothing else."""

    @classmethod
    def generated_streams(cls, config: LmConfig) -> int:
        """Its own side: half of the streams, or all that its depth transformer makes if fewer.

        Some models can generate both sides; in a conversation they still hear the other one.
        """
        return min(config.dep_q, config.n_q - config.n_q // 2)

    def voices(self) -> list[str]:
        """Names of the voices that a session can have; none where the model has its own."""
        return []

    def voice(self, name: Voice | str | Path, *, folder: Path | None = None) -> Voice:
        """A voice by its name or file.

        Raises:
            VerbError: the model takes no voice.
        """
        raise takes_no(self.name, "a voice")

    def prompt(
        self, persona: str | None = None, voice: Voice | str | Path | None = None
    ) -> Prompt | None:
        """What a session with these begins with; None where there is nothing to begin with.

        Raises:
            VerbError: the model takes no persona and no voice.
        """
        if persona is None and voice is None:
            return None
        raise takes_no(self.name, "a persona" if persona is not None else "a voice")

    def voice_from_sound(
        self, pcm: npt.ArrayLike, *, name: str, accept_faults: bool = False
    ) -> Voice:
        """The voice of a recording of one speaker, who must agree to it: see `Voice.save`.

        Args:
            pcm: sound [samples] at `sample_rate`: floats in −1 … 1, int16 or int32; 1 to 60 s of
                speech.
            name: of the voice.
            accept_faults: also take a recording that clips or is noisy.

        Raises:
            VerbError: the model takes no voice.
            ArgumentError: the recording is too short, too long, clips, or is noisy.
        """
        raise takes_no(self.name, "a voice")

    def session(
        self,
        *,
        persona: str | None = None,
        voice: Voice | str | Path | None = None,
        seed: int = 0,
        text: Sampling | None = None,
        audio: Sampling | None = None,
        conditions: Mapping[str, Condition] | None = None,
        kv_bits: int | None = None,
        state: SavedState | str | Path | None = None,
        prompt_cache: bool = True,
        keep_persona: bool = False,
        hook: Callable[[Frame], str | None] | None = None,
    ) -> Session:
        """A new conversation, or a saved one that is resumed.

        Args:
            persona: of the models that take one: who the model is and what it knows, as a text.
            voice: of these: the name of one of `voices`, a file, or a `Voice`.
            seed: the same seed and sound give the same conversation.
            text: how text is drawn; the model's own way if None.
            audio: how codes are drawn; the model's own way if None.
            conditions: of a model with conditioners: name to value.
            kv_bits: quantize keys and values to 8 or 4 bits, so that a
                long one takes less memory; None: as it is computed.
            state: what `Session.save` gave, or the file it was written to; it keeps its seed.
            prompt_cache: keep what the model remembers of a persona and a voice, in memory and in
                the cache folder, so that the next session with them starts at once.
            keep_persona: keep persona and voice in sight however long the conversation gets, in
                place of the oldest of what the model remembers; no reference does this. Not with
                `kv_bits`.
            hook: called with every frame on the thread that made the step; what it returns is said,
                as by `Session.say`.

        Raises:
            VerbError: the model takes no persona or voice.
            ConfigError: a condition is not one of the model's.
            SessionError: the state is of another model, or the codec is rustymimi.
            CheckpointError: the file of the state or the voice is missing or broken.
            ArgumentError: an argument has an impossible value.
        """
        resumed = state_from(state)
        prompt_cache = truth("prompt_cache", prompt_cache)
        keep_persona = truth("keep_persona", keep_persona)
        if resumed is not None and (persona is not None or voice is not None or keep_persona):
            raise ArgumentError("a saved conversation has its persona and voice: give only state")
        if keep_persona and kv_bits is not None:
            raise ArgumentError(
                f"kv_bits must be None with keep_persona, is {kv_bits}: quantized keys and values "
                "cannot be kept in sight"
            )
        prompt = self.prompt(persona, voice)
        if keep_persona and prompt is None:
            raise ArgumentError("keep_persona needs a persona or a voice: give one of them")

        def begun() -> tuple[Generator, Opening | None]:
            generator = self.generator(
                text=text,
                audio=audio,
                seed=seed,
                conditions=None if conditions is None else [conditions],
                kv_bits=kv_bits,
            )
            if prompt is None:
                return generator, None
            return generator, self._prompts.run(
                prompt, generator, kv_bits, prompt_cache, keep_persona
            )

        generator, opening = self.worker.call(begun)
        return Session(self.codec, self.text, generator, self.worker, resumed, hook, opening)

    @cached_property
    def _prompts(self) -> PromptStates:
        return PromptStates(self.files)


FAMILY = Moshi
