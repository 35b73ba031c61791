"""Generation, one frame at a time: codes in, codes and text out.

Holds the state of a conversation: caches, the ring of delayed tokens, the random numbers' seed.
Knows nothing of PCM, words or threads.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from .arrays import Tokens
from .backend import compile_by_default
from .delays import TokenRing
from .lm import Lm
from .sampling import Sampling
from .step import NOT_FORCED, FrameStep, Recent


class Step(NamedTuple):
    """What one step gives.

    tokens: int32 [B, 1 + generated], text first, moved back by the delays: −2 while nothing is out.
    text_logits: [B, text_card] of this step, before sampling.
    state: [B, dim], the temporal state of this step.
    """

    tokens: Tokens
    text_logits: mx.array
    state: mx.array


class Generator:
    """A conversation, or several side by side, with a language model.

    Args:
        lm: the model; generators on one model share nothing else.
        batch: number of conversations.
        text: how text tokens are drawn.
        audio: how codes are drawn.
        seed: the same seed and input give the same output.
        conditions: one mapping from conditioner to value per conversation.
        generated: audio streams to generate, `dep_q` if None; the streams after them are given.
        compiled: let MLX fuse what a frame computes; the numbers are the same. On a GPU if None.
        kv_bits: quantize the temporal transformer's keys and values to 8 or 4 bits; None: no.

    Raises:
        ValueError: an argument is none that is possible.
    """

    def __init__(
        self,
        lm: Lm,
        *,
        batch: int = 1,
        text: Sampling,
        audio: Sampling,
        seed: int = 0,
        conditions: Sequence[Mapping[str, str | mx.array | None]] | None = None,
        generated: int | None = None,
        compiled: bool | None = None,
        kv_bits: int | None = None,
    ) -> None:
        config = lm.config
        self.lm = lm
        self.batch = batch
        self.generated = config.dep_q if generated is None else generated
        if not 0 <= self.generated <= config.dep_q:
            raise ValueError(f"generated must be from 0 to {config.dep_q}, is {generated}")
        self._text, self._audio = text, audio
        self._seed = seed
        given = None
        if config.conditioners:
            given = lm.condition_provider(conditions or [{}] * batch)
        elif conditions:
            raise ValueError("this model has no conditioners")
        self._step = FrameStep(
            lm,
            text=text,
            audio=audio,
            generated=self.generated,
            conditions=given,
            compiled=compile_by_default() if compiled is None else compiled,
        )
        self._cache = lm.transformer.make_cache(bits=kv_bits)
        self._ring = TokenRing(config.delays, config.initial_tokens, batch)
        window = max(s.repetition_window for s in (text, audio))
        self._recent: deque[Tokens] = deque(maxlen=window)

    @property
    def given(self) -> int:
        """Audio streams that each step must be given."""
        return self.lm.config.n_q - self.generated

    @property
    def steps(self) -> int:
        """Steps made so far."""
        return self._ring.step

    def step(self, codes: npt.ArrayLike, *, text: int | None = None) -> Step:
        """Hears one frame and says one: the frame given is heard in this very step.

        Args:
            codes: integers [B, given]: the other side's codes; −1 for none.
            text: the text token of this step, in place of one that is drawn. The codes follow it:
                the padding token makes the model pause.

        Raises:
            ValueError: the shape is wrong, or `text` is no token of the model.
        """
        if text is not None and not 0 <= text < self.lm.config.text_card:
            raise ValueError(f"text must be from 0 to {self.lm.config.text_card - 1}, is {text}")
        heard = np.asarray(codes, dtype=np.int32)
        if heard.shape != (self.batch, self.given):
            raise ValueError(f"codes must be [{self.batch}, {self.given}], are {heard.shape}")
        self._ring.hear(heard)
        key = mx.array([self._seed % 2**32, self.steps], dtype=mx.uint32)
        forced = np.full(self.batch, NOT_FORCED if text is None else text, dtype=np.uint32)
        drawn, logits, z = self._step(self._ring.read(), self._cache, key, forced, self._lately())
        tokens = np.array(drawn).astype(np.int32)  # the step's one synchronisation
        if self._text.guarded or self._audio.guarded:
            self._recent.append(tokens)
        return Step(self._ring.say(tokens), logits, z)

    def extra_heads(self, state: mx.array) -> list[mx.array]:
        """Probabilities [B, extra_heads_dim] of every extra head for a step's state."""
        return [mx.softmax(head(state), axis=-1) for head in self.lm.extra_heads]

    def _lately(self) -> Recent:
        """What the guards need."""
        config = self.lm.config
        text = audio = None
        if self._text.guarded:
            text = mx.array(self._said(0, config.text_card_out, self._text.repetition_window))
        if self._audio.guarded:
            streams = range(1, 1 + self.generated)
            window = self._audio.repetition_window
            audio = mx.array(np.stack([self._said(k, config.card, window) for k in streams]))
        return Recent(text, audio)

    def _said(self, stream: int, size: int, window: int) -> npt.NDArray[np.bool_]:
        """Tokens of the stream's last steps, bool [B, size]; padding is no repetition."""
        mask = np.zeros((self.batch, size), dtype=np.bool_)
        for tokens in list(self._recent)[-window:]:
            mask[np.arange(self.batch), tokens[:, stream]] = True
        if stream == 0:
            config = self.lm.config
            mask[:, [config.text_padding_id, config.text_end_padding_id]] = False
        return mask
