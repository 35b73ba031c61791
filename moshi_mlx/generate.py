"""Generation, one frame at a time: codes in, codes and text out.

Holds the state of a conversation: caches, the ring of delayed tokens, the random numbers' seed.
Knows nothing of PCM, words or threads.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import wraps
from typing import Any, NamedTuple, TypeVar, cast

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from .arguments import callable_or_none, finite, integers, on_host, seed_of, whole
from .arrays import Tokens
from .backend import compile_by_default, kv_bits_problem, on_gpu
from .conditions import Condition
from .config import UNGENERATED_TOKEN, ZERO_TOKEN
from .delays import TokenRing
from .errors import ArgumentError, SessionError, shown
from .guidance import Guidance
from .lm import Lm
from .sampling import Sampling
from .state import MOST_FRAMES, SavedState, damage_refused, model_fingerprint
from .step import (
    Drawn,
    Given,
    Heard,
    Recent,
    StepKind,
    Stepped,
    TextChoice,
    TextHook,
    frame_step,
    prepared,
)
from .threads import Exclusive, mlx_work
from .transformer import attend

M = TypeVar("M", bound=Callable[..., Any])

_MOST_CONVERSATIONS = 1024
_KERNEL_KEYS = (1024, 2048)
"""Numbers of keys from which on Metal attends in two passes, and in more pieces on large chips."""


def _alone(method: M) -> M:
    """A generator's method, while no other of its methods runs."""

    @mlx_work
    @wraps(method)
    def alone(self: "Generator", *args: Any, **kwargs: Any) -> Any:
        with self._turn.held():
            return method(self, *args, **kwargs)

    return cast(M, alone)


class Step(NamedTuple):
    """What one step gives.

    frame: int32 [B, 1 + generated], the newest frame that is complete, text first: moved back by
        the delays. None while nothing is out: in the first `max(delays)` steps.
    written: int32 [B, 1 + generated], what this step wrote for the next one to read.
    text_logits: float32 [B, text_card] of this step, before guidance and sampling; 2B with it.
    state: float32 [B, dim], the temporal state of this step; 2B with guidance.
    """

    frame: Tokens | None
    written: Tokens
    text_logits: mx.array
    state: mx.array


class Begun(NamedTuple):
    """A step on its way; to be finished before the next one begins.

    tokens: int32 [B, 1 + generated], what it writes; not evaluated.
    frame: int32 likewise, as `Step.frame`; what it leads to can be evaluated together with it.
    """

    generator: "Generator"
    codes: mx.array
    drawn: Drawn
    tokens: mx.array
    frame: mx.array | None

    def finish(self) -> Step:
        """Waits for the device, unless `codes` and `tokens` are evaluated."""
        return self.generator._finish(self)


class Generator:
    """A conversation, or several side by side, with a language model; for one thread at a time.

    Args:
        lm: the model; generators on one model share nothing else.
        batch: number of conversations.
        text: how text tokens are drawn.
        audio: how codes are drawn.
        seed: the same seed and input give the same output.
        conditions: one mapping from conditioner to value per conversation.
        generated: audio streams to generate, `dep_q` if None; the streams after them are given.
        guidance: also run each conversation without its conditions, and move away from that.
        null_conditions: with guidance, what it moves away from, in place of no conditions.
        compiled: let MLX fuse what a frame computes; the numbers are the same. On a GPU if None.
        kv_bits: quantize the temporal transformer's keys and values to 8 or 4 bits; None: no.

    Raises:
        ArgumentError: an argument has an impossible value.
        ConfigError: a condition is not one of the model's.
    """

    @mlx_work
    def __init__(
        self,
        lm: Lm,
        *,
        batch: int = 1,
        text: Sampling,
        audio: Sampling,
        seed: int = 0,
        conditions: Sequence[Mapping[str, Condition]] | None = None,
        generated: int | None = None,
        guidance: Guidance | None = None,
        null_conditions: Sequence[Mapping[str, Condition]] | None = None,
        compiled: bool | None = None,
        kv_bits: int | None = None,
    ) -> None:
        config = lm.config
        self._turn = Exclusive("generator")
        self.lm = lm
        self.batch = whole("batch", batch, 1, _MOST_CONVERSATIONS)
        most = config.dep_q
        self.generated = most if generated is None else whole("generated", generated, 0, most)
        for name, how in (("text", text), ("audio", audio)):
            if not isinstance(how, Sampling):
                raise ArgumentError(f"{name} must be a Sampling, is {how!r}")
        self._text, self._audio = text, audio
        self._seed = seed_of(seed)
        if not isinstance(guidance, Guidance | None):
            raise ArgumentError(f"guidance must be a Guidance, is {shown(guidance)}")
        if not isinstance(compiled, bool | None):
            raise ArgumentError(f"compiled must be true or false, is {shown(compiled)}")
        self.guidance = guidance
        if kv_bits is not None and (problem := kv_bits_problem()):
            raise ArgumentError(f"kv_bits must be None here, is {kv_bits}: {problem}")
        self._kv_bits = kv_bits
        given = None
        if null_conditions is not None and guidance is None:
            raise ArgumentError("null_conditions are for guidance")
        if config.conditioners:
            values = _mappings("conditions", conditions, batch)
            if guidance is not None:
                values += _mappings("null_conditions", null_conditions, batch)
            given = lm.condition_provider(values)
        elif conditions or null_conditions:
            raise ArgumentError("this model has no conditioners")
        self._stepped = prepared(lm, given)
        compiled = compile_by_default() if compiled is None else compiled
        self._kind = StepKind(text, audio, self.generated, guidance, compiled)
        self._cache = lm.transformer.make_cache(bits=kv_bits)
        self._rows = batch if guidance is None else 2 * batch
        self._dtype = lm.out_norm.weight.dtype
        for ring in self._cache:
            c = config.transformer
            ring.reserve(self._rows, c.num_kv_heads, c.head_dim, self._dtype)
        mx.eval([ring.arrays() for ring in self._cache])  # now, not in the first frame
        if on_gpu():
            self._compile_long_attention()
        self._begin()

    def _compile_long_attention(self) -> None:
        """Attends once as frames far into a conversation will: Metal has other kernels there."""
        c, ring = self.lm.config.transformer, self._cache[0]
        both = mx.zeros((2, self._rows, c.num_kv_heads, 1, c.head_dim), self._dtype)
        query = mx.zeros((self._rows, c.num_heads, 1, c.head_dim), self._dtype)
        for keys in {min(keys, ring.slots) for keys in (*_KERNEL_KEYS, ring.slots)}:
            ring.offset = keys - 1
            mx.eval(attend(query, ring.update(both)))

    def _begin(self) -> None:
        config = self.lm.config
        self._step = frame_step(self.lm, self._kind)
        for ring in self._cache:
            ring.reset()
        self._ring = TokenRing(config.delays, config.initial_tokens, self.batch)
        window = max(s.repetition_window for s in (self._text, self._audio))
        self._recent: deque[Tokens] = deque(maxlen=window)
        # What `prefill` knows of the next positions: the delayed codes of its last frame.
        self._known: deque[Tokens] = deque()

    @_alone
    def reset(self, seed: int | None = None) -> None:
        """Back to the beginning, with the same seed unless another is given."""
        self._seed = self._seed if seed is None else seed_of(seed)
        self._begin()

    @property
    def given(self) -> int:
        """Audio streams that each step must be given."""
        return self.lm.config.n_q - self.generated

    @property
    def seed(self) -> int:
        """Of its random numbers."""
        return self._seed

    @property
    def steps(self) -> int:
        """Steps made so far."""
        return self._ring.step

    @_alone
    def step(
        self,
        codes: npt.ArrayLike,
        *,
        text: npt.ArrayLike | None = None,
        audio: npt.ArrayLike | None = None,
        overwrite: npt.ArrayLike | None = None,
        null_mask: npt.ArrayLike | None = None,
        on_text: TextHook | None = None,
        allowed: npt.ArrayLike | None = None,
    ) -> Step:
        """Hears one frame and says one: the frame given is heard in this very step.

        Step s reads position s of all streams and writes position s + 1 of those it generates.
        Codebook k of position p is part of frame p − delays[1 + k], the text of frame
        p − delays[0].

        Args:
            codes: integers [B, given]: the other side's codes of frame s; −1 for none. `card` on
                all streams, the initial token, tells models that know it that the input has ended.
            text: text tokens to write in place of those that would be drawn: one, or [B]; −1 for
                none, −2 to draw. With two streams in one token, the multiplexed token. The codes
                follow it: the padding token makes the model pause.
            audio: codes to write, [B, generated] or [generated]: −1 for none, −2 to draw. The depth
                transformer continues from them.
            overwrite: codes to write, likewise, that the depth transformer does not see: it
                continues from what it drew, which is then lost. −2 keeps what was chosen.
            null_mask: with guidance, streams that the null half reads as none in this step: bool
                [1 + n_q] or [B, 1 + n_q], text first.
            on_text: given the text tokens int32 [B], drawn or forced, before the depth transformer
                sees them; returns the tokens to use, as `text` has them. Costs a second
                synchronisation with the device.
            allowed: text tokens that may be written, bool [B, text_card] or [text_card]: where the
                one that was drawn is not among them, the likeliest of them is. It costs the same.

        Raises:
            ArgumentError: a shape is wrong, or a token is none of the model's.
        """
        callable_or_none("on_text", on_text)
        hook = self._hooked(on_text, self._allowed(allowed))
        heard = self._codes("codes", codes, self.given, none_drawn=True)
        null = self._null_mask(null_mask)
        known, offset = list(self._known), self._cache[0].offset
        given, forced, over = self._given(text, audio, overwrite, hook)
        self._ring.hear(heard)
        try:
            drawn = self._draw(self._reads(null), given)
            tokens = np.array(drawn.tokens).astype(np.int32)  # the step's one synchronisation
        except BaseException:  # of the hook, or Ctrl-C: the step was not made
            self._known = deque(known)
            for ring in self._cache:
                ring.offset = offset
            raise
        if forced is not None and over is not None:
            chosen = forced.copy()
            chosen[:, : given.slices] = tokens[:, 1:]
            chosen = np.where(over == UNGENERATED_TOKEN, chosen, over)
            tokens = np.concatenate([tokens[:, :1], chosen], axis=1)
        return self._said(tokens, drawn)

    @_alone
    def begin(self, codes: mx.array, *, text: npt.ArrayLike | None = None) -> "Begun":
        """A step that does not wait for the device: `Begun.finish` ends it.

        Args:
            codes: int32 [B, given], as `step` has them, but evaluated or not, and not checked.
            text: as `step` has it.

        Raises:
            ArgumentError: the text is none of the model's, there is guidance, or the last frames
                of a prompt are still to be spoken (`prompted`), which `step` alone can do.
        """
        if self.guidance is not None or self.prompted:
            raise ArgumentError("with guidance, and just after a prompt, use step")
        given, _, _ = self._given(text, None, None, None)
        there = self._ring.reads_now(self.given)
        reads = self._reads(None)
        reads[:, reads.shape[1] - self.given :][:, there] = 0
        drawn = self._draw(reads, given, Heard(codes, mx.array(there.astype(np.int32))))
        tokens, frame, streams = drawn.tokens.astype(mx.int32), None, 1 + self.generated
        known = self._ring.frame_after(streams)
        if known is not None:
            frame = mx.where(mx.array(self._ring.says_now(streams)), tokens, mx.array(known))
        return Begun(self, codes, drawn, tokens, frame)

    @_alone
    def _finish(self, begun: Begun) -> Step:
        mx.eval(begun.codes, begun.tokens)
        self._ring.hear(np.array(begun.codes))
        return self._said(np.array(begun.tokens), begun.drawn)

    @property
    def prompted(self) -> bool:
        """What comes next is known in part from `prefill`."""
        return bool(self._known)

    def _draw(self, reads: Tokens, given: Given, heard: Heard | None = None) -> Drawn:
        return self._step(
            reads, [self._cache], [self._key], given, self._lately(), self._stepped, heard
        )

    @property
    def _key(self) -> mx.array:
        """Of the next step's random numbers."""
        return mx.array([self._seed, self.steps], dtype=mx.uint32)

    def _joins(self, other: "Generator") -> bool:
        """Whether this one's next step can be made together with one of `other`."""
        alone = self.batch > 1 or self.guidance is not None or self.prompted
        return not alone and (
            self.lm is other.lm
            and self._step is other._step
            and self._kv_bits == other._kv_bits
            and self._stepped.cross is None
        )

    def _said(self, tokens: Tokens, drawn: Drawn) -> Step:
        """Ends a step."""
        if self._text.guarded or self._audio.guarded:
            self._recent.append(tokens.copy())  # `Step.written` is the caller's
        # NumPy knows no bfloat16; nothing is computed unless somebody asks.
        logits, state = (a.astype(mx.float32) for a in (drawn.text_logits, drawn.state))
        return Step(self._ring.say(tokens), tokens, logits, state)

    @_alone
    def prefill(
        self,
        frames: npt.ArrayLike,
        embeddings: npt.ArrayLike | None = None,
        null_mask: npt.ArrayLike | None = None,
    ) -> mx.array:
        """Takes frames that are known, in one pass without the depth transformer.

        The same as stepping through them with every token forced. T frames give T − 1 steps, since
        step s writes position s + 1: the next step draws the text and the undelayed codes of the
        frame after these. It hears the last frame's other side, given to it, and the delayed codes
        of the last frame are forced in it without being given.

        Args:
            frames: int32 [B, 1 + n_q, T], text first, not delayed: frames `steps` to
                `steps` + T − 1; −1 for none.
            embeddings: floats [B, n, dim], n < T: what the first n steps read, as `Lm.embed` gives
                it, in place of what is in the frames. None: the frames say it all.
            null_mask: with guidance, streams that the null half reads as none, bool
                [B, 1 + n_q, T − 1], step by step.

        Returns:
            Text logits [B, T − 1, text_card] of these steps; 2B with guidance.

        Raises:
            ArgumentError: the shape is wrong, a token is none of the model's, or there are delays
                of more than one frame in the middle of a conversation.
        """
        config = self.lm.config
        known = on_host("frames", frames)
        if known.shape[:2] != (self.batch, 1 + config.n_q) or known.ndim != 3 or not known.size:
            raise ArgumentError(
                f"frames must be [{self.batch}, {1 + config.n_q}, frames], are {known.shape}"
            )
        own = slice(1, 1 + self.generated)
        integers("frames' text", known[:, 0], ZERO_TOKEN, self.lm.config.text_limit - 1)
        integers("frames' codes", known[:, 1:], ZERO_TOKEN, config.card - 1)
        replaced = self._embeddings(embeddings, known.shape[2] - 1)
        delays = np.array(config.delays)[: 1 + self.generated]
        if self.steps and delays.max() > 1:
            raise ArgumentError("a model with longer delays can only be prefilled at the beginning")
        cache = self._cache[0]
        if cache.kept and cache.offset + known.shape[2] - 1 > cache.slots:
            raise ArgumentError("after `keep`, frames must fit into the rest of the context")
        known = known.astype(np.int32)
        start, length = self.steps, known.shape[2]
        masks = self._null_masks(null_mask, length - 1)

        def written(position: int) -> Tokens:
            """Text and codes of a position, −2 where these frames don't say them."""
            found = np.full((self.batch, 1 + self.generated), UNGENERATED_TOKEN, np.int32)
            for k, frame in enumerate(position - delays - start):
                if 0 <= frame < length:
                    found[:, k] = known[:, k, frame]
                elif frame < 0:  # before the beginning: never read
                    found[:, k] = ZERO_TOKEN
            return found

        reads = []
        for t in range(length - 1):
            self._ring.hear(known[:, own.stop :, t])
            reads.append(self._reads(masks[t]))
            tokens = written(start + t + 1)
            if self._text.guarded or self._audio.guarded:
                self._recent.append(tokens)
            self._ring.say(tokens)
        after = range(start + length, start + length + int(delays.max()))
        self._known = deque(written(position) for position in after)
        if not reads:
            return mx.zeros((self.batch, 0, config.text_card_out))
        x = self.lm.embed(mx.array(np.stack(reads, axis=2)))
        if replaced is not None:
            x = mx.concatenate([replaced.astype(x.dtype), x[:, replaced.shape[1] :]], axis=1)
        for row in self._stepped.added:
            x = x + row.astype(x.dtype)
        z = self.lm.out_norm(self.lm.transformer(x, self._cache, self._stepped.cross))
        logits: mx.array = self.lm.text_linear(z)
        mx.eval(logits, [ring.arrays() for ring in self._cache])
        return logits

    @_alone
    def keep(self, positions: int) -> None:
        """Lets the first positions stay in sight, in place of the oldest of the context.

        No reference does this. Until the context is full nothing changes; then the model sees
        them right before the last `context` − `positions` others.

        Args:
            positions: at most `steps`; 0 for none.

        Raises:
            ArgumentError: there are not as many, they fill the context, or keys are quantized.
        """
        positions = whole("positions", positions, 0)
        for ring in self._cache:
            ring.keep(positions, self.lm.transformer.turned)

    @_alone
    def save(self) -> SavedState:
        """The whole state of this conversation, as a value that does not change afterwards."""
        arrays = {"ring": mx.array(self._ring.tokens)}
        for i, cache in enumerate(self._cache):
            arrays |= {f"cache.{i}.{j}": array for j, array in enumerate(cache.save())}
        for name, tokens in (("recent", self._recent), ("known", self._known)):
            if tokens:
                arrays[name] = mx.array(np.stack(tokens))
        facts = {
            "model": self._fingerprint,
            "step": self.steps,
            "seed": self._seed,
            "offset": self._cache[0].offset,
            "kept": self._cache[0].kept,
        }
        return SavedState(arrays, facts)

    @_alone
    @damage_refused()
    def restore(self, state: SavedState) -> None:
        """Continues where `save` was called, to the bit: here, or on the same model elsewhere.

        Raises:
            SessionError: the state is damaged, of another model, or of another number of
                conversations; nothing has changed then.
        """
        if state.facts.get("model") != self._fingerprint:
            raise SessionError(
                "this state was saved with another model, number of conversations or --kv-bits"
            )
        seed = seed_of(state.facts["seed"])
        step = whole("step", state.facts["step"], 0, MOST_FRAMES)
        whole("offset", state.facts["offset"], step, step)
        most = 0 if self._kv_bits else min(step, self._cache[0].slots - 1)
        stays = whole("kept", state.facts.get("kept", 0), 0, most)
        held = [cache.filled_at(step) for cache in self._cache]
        fresh = {f"cache.{i}.{j}": a for i, like in enumerate(held) for j, a in enumerate(like)}
        fresh["ring"] = mx.array(self._ring.tokens)
        longest = {"recent": step, "known": max(self.lm.config.delays)}
        for name in longest.keys() & state.arrays.keys():
            count = whole(f"the length of {name}", len(state.arrays[name]), 1, longest[name])
            fresh[name] = mx.zeros((count, self.batch, 1 + self.generated), mx.int32)
        state.check_like(fresh)
        tokens = {name: state.numpy(name) for name in fresh if not name.startswith("cache.")}
        counts = [len(like) for like in held]
        del fresh, held  # views of the rings, which could not be written in place then
        self._ring.check(step, self.given, tokens["ring"])
        for name, found in tokens.items():
            text, codes = np.split(found, [1], axis=1 if name == "ring" else 2)
            integers(f"{name}'s text", text, UNGENERATED_TOKEN, self.lm.config.text_limit - 1)
            most = self.lm.config.card if name == "ring" else self.lm.config.card - 1
            integers(f"{name}'s codes", codes, UNGENERATED_TOKEN, most)
        self._begin()
        self._seed, self._ring.step, self._ring.tokens = seed, step, tokens["ring"]
        for i, (cache, count) in enumerate(zip(self._cache, counts, strict=True)):
            arrays = [state.arrays[f"cache.{i}.{j}"] for j in range(count)]
            cache.restore(step, arrays, stays, self.lm.transformer.turned)
        mx.eval([cache.arrays() for cache in self._cache])
        for name, kept in (("recent", self._recent), ("known", self._known)):
            kept.extend(tokens.get(name, ()))

    def extra_heads(self, state: mx.array) -> list[mx.array]:
        """Probabilities [B, extra_heads_dim] of every extra head for a step's state."""
        return [mx.softmax(head(state), axis=-1) for head in self.lm.extra_heads]

    @property
    def _fingerprint(self) -> str:
        guided = self.guidance is not None
        # Of the weights: fine-tunes of one configuration differ here.
        weights = self.lm.out_norm.weight.astype(mx.float32).tolist()
        return model_fingerprint(
            self.lm.config, self.batch, self.generated, self._kv_bits, guided, weights
        )

    def _given(
        self,
        text: npt.ArrayLike | None,
        audio: npt.ArrayLike | None,
        overwrite: npt.ArrayLike | None,
        hook: TextChoice | None,
    ) -> tuple[Given, Tokens | None, Tokens | None]:
        """What a step is told: for the step, and the codes forced and overwritten, if any."""
        draw = UNGENERATED_TOKEN
        words = self._tokens("text", draw if text is None else text, draw)
        codes = [
            None if given is None else self._codes(name, given, self.generated)
            for name, given in (("audio", audio), ("overwrite", overwrite))
        ]
        known = self._known.popleft() if self._known else None
        if known is not None:
            words = np.where(words == draw, known[:, 0], words)
        if audio is None and overwrite is None and known is None:
            sparse = bool((words == ZERO_TOKEN).any()) or hook is not None
            given = Given(words.astype(np.uint32), None, self.generated, sparse, hook)
            return given, None, None
        forced, over = (
            np.full((self.batch, self.generated), draw, np.int32) if c is None else c for c in codes
        )
        if known is not None:
            forced = np.where(forced == draw, known[:, 1:], forced)
        free = np.flatnonzero(((forced == draw) & (over == draw)).any(axis=0))
        slices = int(free[-1]) + 1 if len(free) else 0
        sparse = hook is not None or bool((words == ZERO_TOKEN).any() | (forced < 0).any())
        given = Given(words.astype(np.uint32), forced.astype(np.uint32), slices, sparse, hook)
        return given, forced, over

    def _hooked(
        self, on_text: TextHook | None, allowed: npt.NDArray[np.bool_] | None
    ) -> TextChoice | None:
        """Both ways to change the text, with what the hook returns checked."""
        if on_text is None and allowed is None:
            return None

        def hook(tokens: Tokens, logits: mx.array) -> Tokens:
            if allowed is not None:
                drawn = tokens[:, None]
                there = np.take_along_axis(allowed, drawn, axis=1)[:, 0]
                if not there.all():
                    if self.guidance is not None:
                        logits = self.guidance.guided_text(logits)
                    found = np.where(allowed, np.array(logits.astype(mx.float32)), -np.inf)
                    tokens = np.where(there, tokens, found.argmax(axis=1).astype(np.int32))
            if on_text is not None:
                return self._tokens("on_text's tokens", on_text(tokens), ZERO_TOKEN)
            return tokens

        return hook

    def _allowed(self, allowed: npt.ArrayLike | None) -> npt.NDArray[np.bool_] | None:
        """As bool [B, text_card], checked."""
        if allowed is None:
            return None
        given = on_host("allowed", allowed)
        if given.dtype != np.bool_:
            raise ArgumentError(f"allowed must be bool, is {given.dtype}")
        spread = _spread("allowed", given, (self.batch, self.lm.config.text_card_out))
        if not spread.any(axis=1).all():
            raise ArgumentError("allowed must have a token for each conversation")
        return spread

    def _tokens(self, name: str, tokens: npt.ArrayLike, least: int) -> Tokens:
        """Text tokens as int32 [B], checked."""
        given = integers(name, tokens, least, self.lm.config.text_limit - 1)
        return _spread(name, given, (self.batch,))

    def _codes(
        self, name: str, codes: npt.ArrayLike, streams: int, none_drawn: bool = False
    ) -> Tokens:
        """Codes as int32 [B, streams], checked."""
        least, card = ZERO_TOKEN if none_drawn else UNGENERATED_TOKEN, self.lm.config.card
        given = integers(name, codes, least, card if none_drawn else card - 1)
        shape = (self.batch, streams)
        return _whole_shape(name, given, shape) if none_drawn else _spread(name, given, shape)

    def _embeddings(self, embeddings: npt.ArrayLike | None, steps: int) -> mx.array | None:
        """What the first steps read, of both halves with guidance; checked."""
        if embeddings is None:
            return None
        given, dim = on_host("embeddings", embeddings), self.lm.config.transformer.dim
        if given.ndim != 3 or given.shape[::2] != (self.batch, dim) or given.shape[1] > steps:
            raise ArgumentError(
                f"embeddings must be [{self.batch}, at most {steps}, {dim}], are {given.shape}"
            )
        if given.dtype.kind != "f":
            raise ArgumentError(f"embeddings must be floats, are {given.dtype}")
        finite("embeddings", given)
        return mx.array(np.concatenate([given] * (self._rows // self.batch)))

    def _null_mask(self, mask: npt.ArrayLike | None) -> npt.NDArray[np.bool_] | None:
        """As bool [B, 1 + n_q], checked."""
        if mask is None:
            return None
        if self.guidance is None:
            raise ArgumentError("null_mask is for guidance")
        given = on_host("null_mask", mask)
        if given.dtype != np.bool_:
            raise ArgumentError(f"null_mask must be bool, is {given.dtype}")
        return _spread("null_mask", given, (self.batch, 1 + self.lm.config.n_q))

    def _null_masks(
        self, masks: npt.ArrayLike | None, steps: int
    ) -> list[npt.NDArray[np.bool_] | None]:
        """Of the steps of a `prefill`, each as `_null_mask` has it."""
        if masks is None:
            return [None] * steps
        given = on_host("null_mask", masks)
        shape = (self.batch, 1 + self.lm.config.n_q, steps)
        return [
            self._null_mask(mask)
            for mask in np.moveaxis(_whole_shape("null_mask", given, shape), 2, 0)
        ]

    def _reads(self, null_mask: npt.NDArray[np.bool_] | None) -> Tokens:
        """What the model reads in this step; with guidance, then what the null half reads."""
        own = self._ring.read()
        if self.guidance is None:
            return own
        null = own.copy()
        if null_mask is not None:
            null[null_mask] = ZERO_TOKEN
        if not self.guidance.text and self.steps:
            null[:, 0] = ZERO_TOKEN
        return np.concatenate([own, null])

    def _lately(self) -> Recent:
        """What the guards need."""
        config = self.lm.config
        text = audio = None
        if self._text.guarded:
            text = mx.array(self._marked(0, config.text_card_out, self._text.repetition_window))
        if self._audio.guarded and self.generated:
            streams = range(1, 1 + self.generated)
            window = self._audio.repetition_window
            audio = mx.array(np.stack([self._marked(k, config.card, window) for k in streams]))
        return Recent(text, audio)

    def _marked(self, stream: int, size: int, window: int) -> npt.NDArray[np.bool_]:
        """Tokens of the stream's last steps, bool [B, size]; padding does not count."""
        mask = np.zeros((self.batch, size), dtype=np.bool_)
        for tokens in list(self._recent)[-window:]:
            said = tokens[:, stream]
            rows = np.flatnonzero((said >= 0) & (said < size))  # what was forced may be neither
            mask[rows, said[rows]] = True
        if stream == 0:
            config = self.lm.config
            mask[:, [config.text_padding_id, config.text_end_padding_id]] = False
        return mask


def step_together(
    generators: Sequence[Generator],
    codes: Sequence[npt.ArrayLike],
    text: Sequence[int | None] | None = None,
) -> list[Step]:
    """Steps several conversations with a model at the price of little more than one.

    They need not be of the same age: each attends to its own past, and all else is done for all
    at once. Each gets what it would get alone, but for the rounding of sums. What cannot be
    stepped beside others (more than one conversation each, guidance, a prompt that is still to be
    spoken, conditions to attend to) is stepped alone.

    Args:
        generators: of one model, each one once.
        codes: for each of them what `Generator.step` takes, [B, given].
        text: for each of them the token to write, None to draw.

    Raises:
        ArgumentError: a shape is wrong, or a token is none of the model's; no step was made.
    """
    said = [None] * len(generators) if text is None else list(text)
    if not len(generators) == len(codes) == len(said) or len({*map(id, generators)}) < len(said):
        raise ArgumentError("generators, codes and text must be as many, each generator once")
    pairs = zip(generators, codes, strict=True)
    heard = [own._codes("codes", given, own.given, none_drawn=True) for own, given in pairs]
    for generator, token in zip(generators, said, strict=True):
        if token is not None:
            generator._tokens("text", token, UNGENERATED_TOKEN)
    groups: list[list[int]] = []
    for i, generator in enumerate(generators):
        beside = (g for g in groups if generators[g[0]]._joins(generator))
        group = next(beside, None) if generator._joins(generator) else None
        if group is None:
            groups.append([i])
        else:
            group.append(i)
    steps: dict[int, Step] = {}
    for group in groups:
        members = [generators[i] for i in group]
        made = _step_group(members, [heard[i] for i in group], [said[i] for i in group])
        steps |= dict(zip(group, made, strict=True))
    return [steps[i] for i in range(len(generators))]


@mlx_work
def _step_group(
    members: list[Generator], heard: list[Tokens], text: list[int | None]
) -> list[Step]:
    """Those that can step together; codes [1, given]."""
    if len(members) == 1:
        return [members[0].step(heard[0], text=text[0])]
    with ExitStack() as stack:
        for member in members:
            stack.enter_context(member._turn.held())
        words = zip(members, text, strict=True)
        given = [member._given(own, None, None, None)[0] for member, own in words]
        offsets = [member._cache[0].offset for member in members]
        for member, own in zip(members, heard, strict=True):
            member._ring.hear(own)
        lately = [member._lately() for member in members]
        try:
            drawn = members[0]._step(
                np.concatenate([member._reads(None) for member in members]),
                [member._cache for member in members],
                [member._key for member in members],
                Given(
                    np.concatenate([own.text for own in given]),
                    None,
                    given[0].slices,
                    any(own.sparse for own in given),
                ),
                Recent(
                    _joined([recent.text for recent in lately], 0),
                    _joined([recent.audio for recent in lately], 1),
                ),
                _stepped_together([member._stepped for member in members]),
            )
            tokens = np.array(drawn.tokens).astype(np.int32)  # the one synchronisation
        except BaseException:
            for member, offset in zip(members, offsets, strict=True):
                for ring in member._cache:
                    ring.offset = offset
            raise
        rows = [Drawn(*(array[i : i + 1] for array in drawn)) for i in range(len(members))]
        return [m._said(tokens[i : i + 1], rows[i]) for i, m in enumerate(members)]


def _joined(parts: Sequence[mx.array | None], axis: int) -> mx.array | None:
    there = [part for part in parts if part is not None]
    return mx.concatenate(there, axis=axis) if there else None


def _stepped_together(each: Sequence[Stepped]) -> Stepped:
    added = zip(*(stepped.added for stepped in each), strict=True)
    return Stepped(tuple(mx.concatenate([*rows]) for rows in added), None)


def _mappings(name: str, values: Any, batch: int) -> list[Mapping[str, Condition]]:
    """The conditions of each conversation; None: absent."""
    if values is None:
        return [{}] * batch
    good = isinstance(values, Sequence) and all(isinstance(value, Mapping) for value in values)
    if not good or len(values) != batch:
        found = len(values) if good else shown(values)
        raise ArgumentError(f"{name} must be {batch} mappings, are {found}")
    return list(values)


def _whole_shape(name: str, found: npt.NDArray[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    if found.shape != shape:
        raise ArgumentError(f"{name} must be {list(shape)}, are {found.shape}")
    return found


def _spread(name: str, found: npt.NDArray[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """An array of that shape, or of one conversation, which then is that of each."""
    if found.shape not in (shape, shape[1:]):
        one = list(shape[1:]) or "one number"
        raise ArgumentError(f"{name} must be {list(shape)} or {one}, are {found.shape}")
    return np.broadcast_to(found, shape)
