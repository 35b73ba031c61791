"""What is drawn, beside formulas written out: filters in their order, random numbers, the guards.

The models are real; their heads are replaced by ones whose logits are known.
"""

from collections.abc import Callable, Iterator

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from moshi_mlx.generate import Generator
from moshi_mlx.lm import Lm
from moshi_mlx.sampling import Sampling, draw
from tests.moshi_mlx.test_lm import load

LOGITS = np.log([0.5, 0.25, 0.15, 0.07, 0.03])
GREEDY = Sampling(temperature=0)
PADDING, END_OF_PADDING = 3, 0


# -------------------------------------------------------------------------------- the filters


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


def probabilities(logits: np.ndarray, s: Sampling) -> np.ndarray:
    """Temperature first, then each filter on what the one before left, in float64."""
    x = logits / s.temperature
    if s.top_k:
        x = np.where(x >= np.sort(x)[::-1][: s.top_k].min(), x, -np.inf)
    if s.top_p:
        p = softmax(x)
        likelier = np.array([p[p > each].sum() for each in p])
        x = np.where(likelier < s.top_p, x, -np.inf)
    if s.min_p:
        p = softmax(x)
        x = np.where(p >= s.min_p * p.max(), x, -np.inf)
    return softmax(x)


@pytest.mark.parametrize(
    ("sampling", "kept"),
    [
        (Sampling(temperature=0.5, top_k=0, top_p=0.7), 1),  # 2 if the temperature came later
        (Sampling(temperature=2.0, top_k=0, top_p=0.7), 3),  # 2
        (Sampling(temperature=2.0, top_k=0, min_p=0.4), 3),  # 2
        (Sampling(temperature=0.5, top_k=0, min_p=0.2), 2),  # 3
        (Sampling(temperature=1.0, top_k=2, top_p=0.6), 1),  # 2 if top-k came after top-p
        (Sampling(temperature=1.0, top_k=0, top_p=0.8, min_p=0.2), 3),  # 2 if min-p came first
        (Sampling(temperature=1.3, top_k=4, top_p=0.95, min_p=0.1), 4),
        (Sampling(temperature=0.7, top_k=25), 5),
    ],
)
def test_filters_apply_in_their_order(sampling: Sampling, kept: int) -> None:
    """Numbers spread evenly over 0 … 1 draw each token as often as its probability says."""
    expected, n = probabilities(LOGITS, sampling), 4000
    assert (expected > 0).sum() == kept
    rows = mx.broadcast_to(mx.array(LOGITS.astype(np.float32)), (n, len(LOGITS)))
    evenly = mx.array(((np.arange(n) + 0.5) / n).astype(np.float32))
    counts = np.bincount(np.array(draw(rows, evenly, sampling)), minlength=len(LOGITS))
    np.testing.assert_allclose(counts, n * expected, atol=2)


# ------------------------------------------------------------------------------ random numbers


def with_biases(lm: Lm, text: np.ndarray, codes: np.ndarray) -> Lm:
    """The model, with these logits whatever it reads: text [text_card], codes [dep_q, card]."""

    def head(bias: np.ndarray, like: nn.Module) -> nn.Linear:
        layer = nn.Linear(like.weight.shape[1], len(bias))
        layer.weight = mx.zeros_like(like.weight)
        layer.bias = mx.array(bias.astype(np.float32))
        return layer

    lm.text_linear = head(text, lm.text_linear)
    heads = lm.depformer.linear_out
    lm.depformer.linear_out = [head(b, h) for b, h in zip(codes, heads, strict=True)]
    return lm


@pytest.mark.parametrize("compiled", [False, True])
def test_every_token_has_a_random_number_for_itself(compiled: bool) -> None:
    """Of all steps, streams and conversations, where every token is as likely as any other."""
    lm = load("moshi")
    config, steps = lm.config, 40
    with_biases(lm, np.zeros(config.text_card_out), np.zeros((config.dep_q, config.card)))
    even = Sampling(temperature=1.0, top_k=0)
    generator = Generator(lm, batch=2, text=even, audio=even, seed=4, compiled=compiled)
    heard = np.zeros((2, generator.given))
    written = np.stack([generator.step(heard).written for _ in range(steps)])
    cards = np.array([config.text_card_out] + [config.card] * config.dep_q)
    drawn = (written + 0.5) / cards  # [steps, conversations, streams], evenly in 0 … 1
    assert drawn.mean() == pytest.approx(0.5, abs=0.03)
    assert drawn.std() == pytest.approx(np.sqrt(1 / 12), abs=0.02)

    def near(a: np.ndarray, b: np.ndarray) -> float:
        return float((np.abs(a - b) < 0.02).mean())  # 0.04 of independent numbers

    for axis in range(3):
        for i in range(drawn.shape[axis]):
            for j in range(i):
                shared = near(drawn.take(i, axis), drawn.take(j, axis))
                assert shared < 0.5, f"{i} and {j} of axis {axis} draw the same"


def test_what_continues_draws_other_numbers() -> None:
    """A step after a reset draws the first step's numbers, the one after it others."""
    lm = load("small-norms")
    config = lm.config
    with_biases(lm, np.zeros(config.text_card_out), np.zeros((config.dep_q, config.card)))
    even = Sampling(temperature=1.0, top_k=0)
    generator = Generator(lm, batch=8, text=even, audio=even)
    heard = np.zeros((8, generator.given))
    first, second = (generator.step(heard).written for _ in range(2))
    generator.reset()
    np.testing.assert_array_equal(generator.step(heard).written, first)
    np.testing.assert_array_equal(generator.step(heard).written, second)
    assert (first == second).mean() < 0.5


# ---------------------------------------------------------------------------------- the guards


def guarded(penalty: float, window: int) -> Sampling:
    return Sampling(temperature=0, repetition_penalty=penalty, repetition_window=window)


def preferring(card: int, *tokens: int) -> np.ndarray:
    """Logits 4, 2, 1, … for these tokens; the rest are hopeless."""
    logits = np.full(card, -50.0)
    logits[list(tokens)] = [4.0 / 2**i for i in range(len(tokens))]
    return logits


def repeating(logits: np.ndarray, penalty: float, window: int) -> Iterator[int]:
    """The formula: the largest logit, those of the last `window` tokens divided."""
    said: list[int] = []
    while True:
        now = logits.copy()
        for token in {*said[-window:]}:
            now[token] = now[token] / penalty if now[token] > 0 else now[token] * penalty
        said.append(int(now.argmax()))
        yield said[-1]


@pytest.fixture
def heads() -> Callable[..., Lm]:
    def make(*text: int) -> Lm:
        lm = load("moshi")
        config = lm.config
        codes = [preferring(config.card, k, k + 8, k + 16) for k in range(config.dep_q)]
        return with_biases(lm, preferring(config.text_card_out, *text), np.stack(codes))

    return make


@pytest.mark.parametrize(("text_window", "audio_window"), [(1, 5), (2, 64), (64, 1)])
def test_the_guards_follow_the_formula(
    heads: Callable[..., Lm], text_window: int, audio_window: int
) -> None:
    """Text and each codebook by themselves, over its window; a code 3 is no padding."""
    lm = heads(7, 9, 11)
    text, audio = guarded(3.0, text_window), guarded(3.0, audio_window)
    generator = Generator(lm, text=text, audio=audio)
    heard = np.zeros((1, generator.given))
    said = np.stack([generator.step(heard).written[0] for _ in range(20)])
    for stream, head in enumerate([lm.text_linear, *lm.depformer.linear_out]):
        window = audio_window if stream else text_window
        wanted = repeating(np.array(head.bias), 3.0, window)
        assert said[:, stream].tolist() == [next(wanted) for _ in range(20)], f"stream {stream}"


@pytest.mark.parametrize("padding", [PADDING, END_OF_PADDING])
def test_padding_is_never_a_repetition(heads: Callable[..., Lm], padding: int) -> None:
    """Silence between words may last; the words around it are guarded."""
    lm = heads(padding, 9)
    assert {lm.config.text_padding_id, lm.config.text_end_padding_id} == {PADDING, END_OF_PADDING}
    generator = Generator(lm, text=guarded(3.0, 8), audio=GREEDY)
    heard = np.zeros((1, generator.given))
    assert [int(generator.step(heard).written[0, 0]) for _ in range(12)] == [padding] * 12


def test_the_guard_counts_what_was_forced_and_what_was_prefilled(
    heads: Callable[..., Lm],
) -> None:
    lm = heads(7, 9)
    generator = Generator(lm, text=guarded(3.0, 4), audio=GREEDY)
    heard = np.zeros((1, generator.given))
    generator.step(heard, text=7)
    assert generator.step(heard).written[0, 0] == 9
    again = Generator(lm, text=guarded(3.0, 4), audio=GREEDY)
    frames = np.zeros((1, 1 + lm.config.n_q, 3), np.int32)
    frames[:, 0] = 7
    again.prefill(frames)
    assert again.step(heard).written[0, 0] == 9


def test_conversations_are_guarded_apart(heads: Callable[..., Lm]) -> None:
    generator = Generator(heads(7, 9), batch=2, text=guarded(3.0, 4), audio=GREEDY)
    heard = np.zeros((2, generator.given))
    generator.step(heard, text=[7, 20])
    assert generator.step(heard).written[:, 0].tolist() == [9, 7]
