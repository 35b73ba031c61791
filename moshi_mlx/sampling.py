"""From logits to tokens: temperature, top-k, top-p, min-p and a guard against repetition."""

from dataclasses import dataclass

import mlx.core as mx

from .arguments import real, whole
from .errors import ArgumentError


@dataclass(frozen=True)
class Sampling:
    """How one kind of token is drawn. Temperature 0 takes the largest logit.

    The filters apply in the order of the fields, each to what the one before left; 0 switches one
    off. Logits of tokens among the last `repetition_window` of their stream are divided (negative
    ones multiplied) by `repetition_penalty` (Keskar et al. 2019); 1 switches that off. `bonus` is
    a token and what is added to its logit before anything else.

    Raises:
        ArgumentError: a number is out of range, or none.
    """

    temperature: float = 0.8
    top_k: int = 250
    top_p: float = 0.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    repetition_window: int = 64
    bonus: tuple[int, float] = (0, 0.0)

    def __post_init__(self) -> None:
        if real("temperature", self.temperature, 0, 1e6):
            real("a temperature that is not 0", self.temperature, 1e-6, 1e6)
        for name in ("top_p", "min_p"):
            if real(name, getattr(self, name), 0, 1):
                real(f"a {name} that is not 0", getattr(self, name), 1e-6, 1)
        real("repetition_penalty", self.repetition_penalty, 1e-3, 1e3)
        # Frozen, but for numbers that only behave like integers.
        object.__setattr__(self, "top_k", whole("top_k", self.top_k, 0))
        token, more = self.bonus
        bonus = whole("bonus's token", token, 0), real("bonus", more, -1e3, 1e3)
        object.__setattr__(self, "bonus", bonus)
        window = whole("repetition_window", self.repetition_window, 1, 100_000)
        object.__setattr__(self, "repetition_window", window)

    @property
    def greedy(self) -> bool:
        return self.temperature == 0 or self.top_k == 1

    @property
    def guarded(self) -> bool:
        return self.repetition_penalty != 1


def penalized(logits: mx.array, recent: mx.array, penalty: float) -> mx.array:
    """Logits [N, V] with the tokens marked in `recent`, bool [N, V], made less likely."""
    return mx.where(recent, mx.where(logits > 0, logits / penalty, logits * penalty), logits)


def sample(logits: mx.array, key: mx.array | None, sampling: Sampling) -> mx.array:
    """Draws one token per row: logits [N, V] → int32 [N]. The same key draws the same tokens.

    Greedy sampling needs no key; elsewhere None takes MLX's own random state.
    """
    uniform = None if sampling.greedy else mx.random.uniform(shape=(len(logits),), key=key)
    return draw(logits, uniform, sampling).astype(mx.int32)


def draw(logits: mx.array, uniform: mx.array | None, sampling: Sampling) -> mx.array:
    """Draws one token per row: logits [N, V] → uint32 [N].

    Args:
        logits: of any floating type.
        uniform: numbers in 0 … 1, float32 [N], that decide; greedy sampling needs none.
        sampling: how to draw.
    """
    token, bonus = sampling.bonus
    if bonus:
        logits = logits + mx.where(mx.arange(logits.shape[-1]) == token, bonus, 0.0)
    if sampling.greedy:
        return mx.argmax(logits, axis=-1)
    if uniform is None:
        raise ArgumentError("only greedy sampling goes without random numbers")
    candidates = None
    if 0 < sampling.top_k < logits.shape[-1]:
        candidates = mx.argpartition(-logits, sampling.top_k - 1, axis=-1)[:, : sampling.top_k]
        logits = mx.take_along_axis(logits, candidates, axis=-1)
    logits = logits.astype(mx.float32) / sampling.temperature
    if 0 < sampling.top_p < 1:
        logits = _top_p(logits, sampling.top_p)
    if sampling.min_p > 0:
        floor = mx.max(logits, axis=-1, keepdims=True) + mx.log(mx.array(sampling.min_p))
        logits = mx.where(logits < floor, -mx.inf, logits)
    # As mx.random.categorical does: how many cumulative weights the number is not below. It is less
    # than the last, since no number is 1, so what has no weight is never drawn.
    weights = mx.cumsum(mx.softmax(logits, axis=-1), axis=-1)
    drawn = mx.sum(weights <= uniform[:, None] * weights[:, -1:], axis=-1, keepdims=True)
    if candidates is None:
        return drawn[:, 0].astype(mx.uint32)
    return mx.take_along_axis(candidates, drawn, axis=-1)[:, 0]


def _top_p(logits: mx.array, top_p: float) -> mx.array:
    """Keeps the likeliest tokens until they hold `top_p` of the probability."""
    order = mx.argsort(-logits, axis=-1)
    probabilities = mx.softmax(mx.take_along_axis(logits, order, axis=-1), axis=-1)
    before = mx.cumsum(probabilities, axis=-1) - probabilities
    keep = mx.put_along_axis(mx.zeros(logits.shape, mx.bool_), order, before < top_p, axis=-1)
    return mx.where(keep, logits, -mx.inf)
