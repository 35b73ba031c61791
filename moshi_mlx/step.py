"""One frame of the language model, made of few functions that can be compiled.

Between the layers lies the cache, whose shapes change; all the rest has the same shapes in every
frame, so it is traced once: what comes before the first attention, what lies between two, and
what follows the last with the text, the depth transformer and all drawing. Knows nothing of the
delays or of what came before but for the cache.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from .cache import Cache
from .conditions import Conditions
from .lm import Lm
from .sampling import Sampling, draw, penalized
from .transformer import sinusoids

Function = Callable[..., tuple[mx.array, ...]]

NOT_FORCED = 2**32 - 1
"""In place of a text token that is given: it is to be drawn."""


class Recent(NamedTuple):
    """Tokens said lately, which the guard makes less likely.

    text: bool [B, text_card]; audio: bool [generated, B, card]; None without that guard.
    """

    text: mx.array | None
    audio: mx.array | None


class FrameStep:
    """Steps a model: tokens of a frame in, tokens of the next out.

    Args:
        lm: the model. Its weights belong to the step from now on: make another if they change.
        text: how text tokens are drawn.
        audio: how codes are drawn.
        generated: audio streams to generate.
        conditions: of the models that have conditioners.
        compiled: let MLX fuse what has fixed shapes; the numbers are the same.
    """

    def __init__(
        self,
        lm: Lm,
        *,
        text: Sampling,
        audio: Sampling,
        generated: int,
        conditions: Conditions | None,
        compiled: bool,
    ) -> None:
        self._lm = lm
        self._text, self._audio = text, audio
        self._generated = generated
        self._conditions = conditions
        self._compiled = compiled
        self._cross = lm.cross(conditions)
        if conditions is not None:  # what is lazy belongs to this thread
            mx.eval(conditions.sum, conditions.cross, self._cross)
        self._stack = lm.stack_embeddings()
        layers = range(1, len(lm.transformer.layers))
        functions: list[Function] = [self._first, *map(self._middle, layers), self._last]
        make: Callable[[Function], Function] = mx.compile  # its annotations are stricter
        self._functions = [make(f) for f in functions] if compiled else functions

    def __call__(
        self,
        tokens: npt.NDArray[np.int32],
        cache: Sequence[Cache],
        key: mx.array,
        forced: npt.NDArray[np.uint32],
        recent: Recent,
    ) -> tuple[mx.array, mx.array, mx.array]:
        """Builds the graph of a frame; nothing is evaluated.

        Args:
            tokens: what the model reads, [B, 1 + n_q].
            cache: of the temporal transformer.
            key: random numbers' key of this frame.
            forced: text tokens [B] in place of drawn ones, or `NOT_FORCED`.
            recent: for the guard.

        Returns:
            Tokens uint32 [B, 1 + generated], text logits [B, text_card], states [B, dim].
        """
        inputs = mx.array(tokens if self._stack is None else self._stack.rows(tokens))
        position = cache[0].offset
        offset = mx.array(position)
        first, *middles, last = self._functions
        transformer = self._lm.transformer
        x, *heads = first(inputs, offset, *self._position(position))
        for i, function in enumerate([*middles, last]):
            mx.async_eval(x, heads)  # begins while Python makes the rest of the graph
            q, k, v = heads
            y = transformer.layers[i].self_attn.mix_heads((q, k, v), cache[i], None)
            del q, k, v  # the cache writes in place what nobody else holds
            if function is last:
                break
            x, *heads = function(x, y, offset)
        guards = [mask for mask in recent if mask is not None]
        drawn, logits, z = last(x, y, key, mx.array(forced), *guards)
        return drawn, logits, z

    def _position(self, position: int) -> list[mx.array]:
        """What is added to the embeddings for a position, where that is how the model knows it."""
        c = self._lm.transformer.config
        if c.positions not in ("sin", "sin_rope"):
            return []
        return [sinusoids(position, 1, c.dim, c.max_period)]

    def _first(
        self, inputs: mx.array, offset: mx.array, *position: mx.array
    ) -> tuple[mx.array, ...]:
        """Rows or tokens [B, 1 + n_q] → x [B, 1, dim] and the first attention's heads."""
        stack = self._stack
        x = self._lm.embed(inputs[:, :, None]) if stack is None else stack(inputs)
        if self._conditions is not None and self._conditions.sum is not None:
            x = x + self._conditions.sum.astype(x.dtype)
        for row in position:
            x = x + row.astype(x.dtype)
        return x, *self._lm.transformer.layers[0].begin(x, offset)

    def _middle(self, i: int) -> Function:
        """x and what was attended [B, 1, dim] → x and the heads of layer i's attention."""
        before, layer = self._lm.transformer.layers[i - 1 : i + 1]
        cross = None if self._cross is None else self._cross[i - 1]

        def middle(x: mx.array, attended: mx.array, offset: mx.array) -> tuple[mx.array, ...]:
            x = before.finish(x, attended, cross)
            return x, *layer.begin(x, offset)

        return middle

    def _last(
        self, x: mx.array, attended: mx.array, key: mx.array, forced: mx.array, *guards: mx.array
    ) -> tuple[mx.array, ...]:
        """After the last attention: the frame's tokens, the text's logits, the state."""
        lm, generated = self._lm, self._generated
        cross = None if self._cross is None else self._cross[-1]
        z = lm.out_norm(lm.transformer.layers[-1].finish(x, attended, cross))[:, 0]
        logits = lm.text_linear(z)
        masks = list(guards)
        text_mask = masks.pop(0) if self._text.guarded else None
        audio_masks = masks.pop(0) if self._audio.guarded else None
        uniform = self._uniform(key, len(z))
        guarded = logits
        if text_mask is not None:
            guarded = penalized(logits, text_mask, self._text.repetition_penalty)
        text = draw(guarded, None if uniform is None else uniform[0], self._text)
        text = self._begun(mx.where(forced == NOT_FORCED, text, forced))

        def draw_code(k: int, logits: mx.array) -> mx.array:
            if audio_masks is not None:
                logits = penalized(logits, audio_masks[k], self._audio.repetition_penalty)
            drawn = draw(logits, None if uniform is None else uniform[1 + k], self._audio)
            return self._begun(drawn)

        drawn = [text]
        if generated:
            drawn += lm.depformer.generate(z, text, generated, draw_code)
        return mx.stack(drawn, axis=1), logits, z

    def _begun(self, tokens: mx.array) -> mx.array:
        """Tokens, on which MLX begins while Python makes the rest of the graph."""
        if not self._compiled:  # there, only shapes go through
            mx.async_eval(tokens)
        return tokens

    def _uniform(self, key: mx.array, batch: int) -> mx.array | None:
        """The frame's random numbers in 0 … 1, float32 [1 + generated, B], at once."""
        if self._text.greedy and (self._audio.greedy or not self._generated):
            return None
        keys = mx.random.split(key, 1 + self._generated)
        numbers: mx.array = mx.vmap(lambda k: mx.random.uniform(shape=(batch,), key=k))(keys)
        return numbers
