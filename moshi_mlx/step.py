"""One frame of the language model, made of few functions that can be compiled.

Between the layers lies the cache, whose shapes change; all the rest has the same shapes in every
frame, so it is traced once: what comes before the first attention, what lies between two, and
what follows the last with the text, the depth transformer and all drawing. The functions belong to
a model and a way of sampling, and serve all conversations with these. Knows nothing of the delays,
or of what came before but for the cache.
"""

import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from .arrays import Tokens
from .backend import on_gpu
from .cache import Cache
from .conditions import Conditions
from .embedding import EmbeddingSum
from .guidance import Guidance
from .lm import Lm
from .sampling import Sampling, draw, penalized
from .transformer import Attention, CrossKv, Turns, sinusoids
from .trees import named_parameters

Function = Callable[..., tuple[mx.array, ...]]
Guards = list[mx.array]

NOT_FORCED = 2**32 - 2
"""In place of a token that is given: it is to be drawn. As uint32, what −2 is as int32."""

TextHook = Callable[[Tokens], npt.ArrayLike]
"""Text tokens int32 [B] → the tokens to use in their place."""
TextChoice = Callable[[Tokens, mx.array], npt.ArrayLike]
"""The same, given the text logits [B, text_card] too; 2B with guidance."""


class Recent(NamedTuple):
    """Tokens generated lately, which the guard makes less likely.

    text: bool [B, text_card]; audio: bool [generated, B, card]; None without that guard.
    """

    text: mx.array | None
    audio: mx.array | None


class Given(NamedTuple):
    """What a frame is told instead of drawing it.

    text: uint32 [B], `NOT_FORCED` where it is to be drawn.
    codes: uint32 [B, generated] likewise, or None: all are drawn.
    slices: codebooks that the depth transformer goes through.
    sparse: a token may be −1, which counts as zero.
    hook: replaces the text before the depth transformer sees it.
    """

    text: npt.NDArray[np.uint32]
    codes: npt.NDArray[np.uint32] | None
    slices: int
    sparse: bool = False
    hook: TextChoice | None = None


class Heard(NamedTuple):
    """What the other side's codec has only on the device.

    codes: int32 [B, given], of the last streams.
    there: int32 [given], 1 for streams of which this step reads them, else 0.
    """

    codes: mx.array
    there: mx.array


class Drawn(NamedTuple):
    """A frame's tokens uint32 [B, 1 + slices], text logits and states of the (doubled) batch."""

    tokens: mx.array
    text_logits: mx.array
    state: mx.array


class StepKind(NamedTuple):
    """What the functions of a step depend on, beside the model.

    compiled: let MLX fuse what has fixed shapes; the numbers are the same.
    """

    text: Sampling
    audio: Sampling
    generated: int
    guidance: Guidance | None
    compiled: bool


class Stepped(NamedTuple):
    """What does not change during a conversation, prepared once.

    added: to every frame's input: [B, 1, dim] each.
    cross: what the layers cross-attend.
    """

    added: tuple[mx.array, ...]
    cross: tuple[CrossKv, ...] | None


def prepared(lm: Lm, conditions: Conditions | None) -> Stepped:
    """Conditions, ready for a step, and evaluated: what is lazy belongs to its thread."""
    cross = lm.cross(conditions)
    total = None if conditions is None else conditions.sum
    added = () if total is None else (total,)
    mx.eval(added, cross)
    return Stepped(added, None if cross is None else tuple(cross))


def frame_step(lm: Lm, kind: StepKind) -> "FrameStep":
    """The model's step of this kind: made at first use, and again when its arrays were replaced."""
    steps: dict[StepKind, FrameStep] | None = lm.__dict__.get("_frame_steps")
    if steps is None:
        steps = {}
        # Past nn.Module's own way, which would take the dict for parameters.
        object.__setattr__(lm, "_frame_steps", steps)
    if kind not in steps or not steps[kind].current:
        steps[kind] = FrameStep(lm, kind)
    return steps[kind]


class FrameStep:
    """Steps a model: tokens of a frame in, tokens of the next out; made by `frame_step`."""

    def __init__(self, lm: Lm, kind: StepKind) -> None:
        self._lm = weakref.ref(lm)  # the model holds its steps, not they the model
        self._kind = kind
        self._stack = lm.stack_embeddings()
        self._parts = _Parts(self._lm, kind, self._stack)
        # Each time costs a GPU a batch of its own, which is more than Python takes for a layer.
        self._begin_every = 4 if on_gpu() else 1
        layers = range(1, len(lm.transformer.layers))
        self._first = self._function(self._parts.first)
        self._middles = [self._function(self._parts.middle(i)) for i in layers]
        self._ends: dict[tuple[int, bool, bool], Function] = {}
        self._halves: dict[tuple[int, bool, bool], tuple[Function, Function]] = {}
        # A compiled function has the arrays in it that it was traced with.
        self._traced_with = _identities(lm) if kind.compiled else []

    @property
    def current(self) -> bool:
        """No array of the model was replaced since."""
        lm = self._lm()
        assert lm is not None
        return self._stack is lm.stack_embeddings() and (
            not self._kind.compiled or self._traced_with == _identities(lm)
        )

    def __call__(
        self,
        tokens: Tokens,
        caches: Sequence[Sequence[Cache]],
        keys: Sequence[mx.array],
        given: Given,
        recent: Recent,
        stepped: Stepped,
        heard: Heard | None = None,
    ) -> Drawn:
        """Builds the graph of a frame; nothing is evaluated, unless there is a hook.

        Args:
            tokens: what the model reads, [B, 1 + n_q]; twice as many rows with guidance. Zero
                where `heard` has it.
            caches: of the temporal transformer, layer by layer: one for all rows, which then are at
                the same position, or one for each row.
            keys: random numbers' keys of this frame, one for each of `caches`.
            given: what is not to be drawn.
            recent: for the guard.
            stepped: what `prepared` made of the conditions.
            heard: tokens that the host has not seen.
        """
        lm = self._lm()
        assert lm is not None
        inputs = mx.array(tokens if self._stack is None else self._stack.rows(tokens))
        positions = [cache[0].offset for cache in caches]
        turns = _turns(lm, positions, len(tokens))
        layers = lm.transformer.layers
        added = [*stepped.added, *_position(lm, positions)]
        x, *heads = self._first(inputs, turns, added, [] if heard is None else [*heard])
        for i, layer in enumerate(layers):
            if i % self._begin_every == 0:
                mx.async_eval(x, heads)  # begins while Python makes the rest of the graph
            y = _attended(layer.self_attn, heads, [cache[i] for cache in caches])
            cross = [] if stepped.cross is None else [*stepped.cross[i]]
            if layer is layers[-1]:
                break
            x, *heads = self._middles[i](x, y, turns, cross)
        guards = [mask for mask in recent if mask is not None]
        codes = [] if given.codes is None else [mx.array(given.codes)]
        which = (given.slices, bool(codes), given.sparse)
        text = mx.array(given.text)
        if given.hook is None:
            end = self._end(which)
            return Drawn(*end(x, y, [*keys], text, codes, guards, cross))
        speak, sound = self._half(which)
        text, logits, z = speak(x, y, [*keys], text, guards, cross)
        chosen = np.asarray(given.hook(np.array(text).astype(np.int32), logits), dtype=np.int32)
        text = mx.array(chosen.astype(np.uint32))
        (drawn,) = sound(z, [*keys], text, codes, guards)
        return Drawn(drawn, logits, z)

    def _function(self, function: Function) -> Function:
        compile: Callable[[Function], Function] = mx.compile  # its annotations are stricter
        return compile(function) if self._kind.compiled else function

    def _end(self, which: tuple[int, bool, bool]) -> Function:
        if which not in self._ends:
            self._ends[which] = self._function(self._parts.end(*which))
        return self._ends[which]

    def _half(self, which: tuple[int, bool, bool]) -> tuple[Function, Function]:
        if which not in self._halves:
            sound = self._function(self._parts.sound(*which))
            self._halves[which] = self._function(self._parts.speak), sound
        return self._halves[which]


def _identities(lm: Lm) -> list[int]:
    """Of all arrays; the traced functions keep theirs, so no other array gets these numbers."""
    return [id(array) for array in named_parameters(lm).values()]


def _position(lm: Lm, positions: Sequence[int]) -> list[mx.array]:
    """What is added to the embeddings for positions, where that is how the model knows them."""
    c = lm.transformer.config
    if c.positions not in ("sin", "sin_rope"):
        return []
    return [mx.stack([sinusoids(position, 1, c.dim, c.max_period) for position in positions])]


def _turns(lm: Lm, positions: Sequence[int], rows: int) -> Turns:
    """Of rows that are all at one position, or each at its own."""
    if len(positions) == 1:
        return lm.transformer.turns(positions[0], rows)
    each = [lm.transformer.turns(position, 1) for position in positions]
    there = [turns for turns in each if turns is not None]
    return mx.concatenate(there) if there else None


def _attended(attention: Attention, heads: Sequence[mx.array], caches: Sequence[Cache]) -> mx.array:
    """What one position of each row attends to: all in one cache, or each in its own."""
    queries, both = heads
    if len(caches) == 1:
        return attention.mix_heads((queries, both), caches[0], None)
    rows = zip(mx.split(queries, len(caches)), mx.split(both, len(caches), axis=1), strict=True)
    mixed = [attention.mix_heads(row, cache, None) for row, cache in zip(rows, caches, strict=True)]
    return mx.concatenate(mixed)


class _Parts:
    """The pure functions of a step, over the model's weights."""

    def __init__(self, lm: "weakref.ref[Lm]", kind: StepKind, stack: EmbeddingSum | None) -> None:
        self._ref = lm
        self._kind = kind
        self._stack = stack

    @property
    def _lm(self) -> Lm:
        lm = self._ref()
        assert lm is not None
        return lm

    def first(
        self, inputs: mx.array, turns: Turns, added: list[mx.array], heard: list[mx.array]
    ) -> tuple[mx.array, ...]:
        """Rows or tokens [B, 1 + n_q] → x [B, 1, dim] and the first attention's heads."""
        lm, stack = self._lm, self._stack
        if heard:
            codes, there = heard
            known, rest = mx.split(inputs, [-codes.shape[1]], axis=1)
            # A row's number is the token's and where its table begins, which is there already.
            inputs = mx.concatenate([known, rest + codes * there], axis=1)
        x = lm.embed(inputs[:, :, None]) if stack is None else stack(inputs)
        for row in added:
            x = x + row.astype(x.dtype)
        return x, *lm.transformer.layers[0].begin(x, turns)

    def middle(self, i: int) -> Function:
        """x and what was attended [B, 1, dim] → x and the heads of layer i's attention."""

        def middle(
            x: mx.array, attended: mx.array, turns: Turns, cross: list[mx.array]
        ) -> tuple[mx.array, ...]:
            before, layer = self._lm.transformer.layers[i - 1 : i + 1]
            x = before.finish(x, attended, _pair(cross))
            return x, *layer.begin(x, turns)

        return middle

    def end(self, slices: int, forced: bool, sparse: bool) -> Function:
        """After the last attention: the frame's tokens, the text's logits, the state."""
        sound = self.sound(slices, forced, sparse)

        def end(
            x: mx.array,
            attended: mx.array,
            keys: list[mx.array],
            text: mx.array,
            codes: list[mx.array],
            guards: Guards,
            cross: list[mx.array],
        ) -> tuple[mx.array, ...]:
            z, logits = self._state(x, attended, cross)
            uniform = self._uniform(keys, len(text))
            text = self._draw_text(logits, uniform, text, guards)
            return *sound(z, keys, text, codes, guards, uniform), logits, z

        return end

    def speak(
        self,
        x: mx.array,
        attended: mx.array,
        keys: list[mx.array],
        text: mx.array,
        guards: Guards,
        cross: list[mx.array],
    ) -> tuple[mx.array, ...]:
        """After the last attention, up to the text: its tokens, its logits, the state."""
        z, logits = self._state(x, attended, cross)
        return self._draw_text(logits, self._uniform(keys, len(text)), text, guards), logits, z

    def sound(self, slices: int, forced: bool, sparse: bool) -> Function:
        """From the text on: text and codes, uint32 [B, 1 + slices].

        Args:
            slices: codebooks to go through.
            forced: some codes are given.
            sparse: a given token may be −1.
        """
        audio, guidance = self._kind.audio, self._kind.guidance

        def sound(
            z: mx.array,
            keys: list[mx.array],
            text: mx.array,
            codes: list[mx.array],
            guards: Guards,
            uniform: mx.array | None = None,
        ) -> tuple[mx.array, ...]:
            if uniform is None:
                uniform = self._uniform(keys, len(text))
            drawn = [text]

            def draw_code(k: int, logits: mx.array) -> mx.array:
                if guidance is not None:
                    logits = guidance.guided(logits)
                if audio.guarded:
                    logits = penalized(logits, guards[-1][k, ...], audio.repetition_penalty)
                code = draw(logits, None if uniform is None else uniform[1 + k, ...], audio)
                if forced:
                    code = mx.where(codes[0][:, k] == NOT_FORCED, code, codes[0][:, k])
                drawn.append(self._begun(code))
                return self._doubled(drawn[-1])

            if slices:
                self._lm.depformer.generate(
                    z, self._doubled(text), slices, draw_code, sparse=sparse
                )
            return (mx.stack(drawn, axis=1),)

        return sound

    def _state(
        self, x: mx.array, attended: mx.array, cross: list[mx.array]
    ) -> tuple[mx.array, mx.array]:
        """The state [B, dim] and the text's logits [B, text_card]."""
        lm = self._lm
        z = lm.out_norm(lm.transformer.layers[-1].finish(x, attended, _pair(cross)))[:, 0]
        return z, lm.text_linear(z)

    def _draw_text(
        self, logits: mx.array, uniform: mx.array | None, text: mx.array, guards: Guards
    ) -> mx.array:
        kind = self._kind
        if kind.guidance is not None:
            logits = kind.guidance.guided_text(logits)
        if kind.text.guarded:
            logits = penalized(logits, guards[0], kind.text.repetition_penalty)
        drawn = draw(logits, None if uniform is None else uniform[0, ...], kind.text)
        return self._begun(mx.where(text == NOT_FORCED, drawn, text))

    def _doubled(self, tokens: mx.array) -> mx.array:
        """For both halves, with guidance."""
        return tokens if self._kind.guidance is None else mx.concatenate([tokens, tokens])

    def _begun(self, tokens: mx.array) -> mx.array:
        """Tokens, on which MLX begins while Python makes the rest of the graph."""
        if not self._kind.compiled:  # there, only shapes go through
            mx.async_eval(tokens)
        return tokens

    def _uniform(self, keys: list[mx.array], batch: int) -> mx.array | None:
        """The frame's random numbers in 0 … 1, float32 [1 + generated, B], at once.

        Those of a key are the same whatever steps beside it.
        """
        kind = self._kind
        if kind.text.greedy and (kind.audio.greedy or not kind.generated):
            return None
        size = batch // len(keys)
        draw: Callable[[mx.array], mx.array] = mx.vmap(
            lambda k: mx.random.uniform(shape=(size,), key=k)
        )
        each = [draw(mx.random.split(key, 1 + kind.generated)) for key in keys]
        return each[0] if len(each) == 1 else mx.concatenate(each, axis=1)


def _pair(cross: list[mx.array]) -> Any:
    """Keys and values, or None."""
    return tuple(cross) if cross else None
