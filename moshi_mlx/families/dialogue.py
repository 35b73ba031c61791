"""Dialogue models: Moshi and its fine-tunes, which listen and speak at the same time.

Makes sessions; all else is in the parts.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from ..conditions import Condition
from ..config import LmConfig
from ..generate import Generator
from ..sampling import Sampling
from ..session import Frame, Session
from ..state import SavedState, state_from
from .model import Model


class Moshi(Model):
    """A loaded dialogue model; made by `load`. Its sessions share the weights and nothing else."""

    @classmethod
    def generated_streams(cls, config: LmConfig) -> int:
        """Its own side: half of the streams, or all that its depth transformer makes if fewer.

        Some models can generate both sides; in a conversation they still hear the other one.
        """
        return min(config.dep_q, config.n_q - config.n_q // 2)

    def session(
        self,
        *,
        seed: int = 0,
        text: Sampling | None = None,
        audio: Sampling | None = None,
        conditions: Mapping[str, Condition] | None = None,
        kv_bits: int | None = None,
        state: SavedState | str | Path | None = None,
        hook: Callable[[Frame], str | None] | None = None,
    ) -> Session:
        """A new conversation, or a saved one that is resumed.

        Args:
            seed: the same seed and sound give the same conversation.
            text: how text is drawn; the model's own way if None.
            audio: how codes are drawn; the model's own way if None.
            conditions: of a model with conditioners: name to value.
            kv_bits: quantize keys and values to 8 or 4 bits, so that a
                long one takes less memory; None: as it is computed.
            state: what `Session.save` gave, or the file it was written to; it keeps its seed.
            hook: called with every frame on the thread that made the step; what it returns is said,
                as by `Session.say`.

        Raises:
            ConfigError: a condition is not one of the model's.
            SessionError: the state is of another model, or the codec is rustymimi.
            CheckpointError: the state's file is missing or broken.
            ArgumentError: an argument has an impossible value.
        """
        resumed = state_from(state)
        generator = self.worker.call(
            lambda: Generator(
                self.lm,
                text=text or self.text_sampling,
                audio=audio or self.audio_sampling,
                seed=seed,
                conditions=None if conditions is None else [conditions],
                generated=self.generated_streams(self.lm.config),
                kv_bits=kv_bits,
            )
        )
        return Session(self.codec, self.text, generator, self.worker, resumed, hook)


FAMILY = Moshi
