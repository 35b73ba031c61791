"""Sampling: distributions, filters, seeds, the guard."""

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moshi_mlx.errors import ArgumentError
from moshi_mlx.generate import Generator
from moshi_mlx.sampling import Sampling, penalized, sample
from tests.moshi_mlx.test_lm import load

LOGITS = np.log(np.array([0.5, 0.25, 0.15, 0.07, 0.03], dtype=np.float32))


def frequencies(sampling: Sampling, draws: int = 20_000) -> np.ndarray:
    rows = mx.broadcast_to(mx.array(LOGITS), (draws, 5))
    tokens = np.array(sample(rows, mx.random.key(0), sampling))
    return np.bincount(tokens, minlength=5) / draws


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(temperature=1, top_k=0), [0.5, 0.25, 0.15, 0.07, 0.03]),
        (Sampling(temperature=1, top_k=2), [2 / 3, 1 / 3, 0, 0, 0]),
        (Sampling(temperature=1, top_k=0, top_p=0.7), [2 / 3, 1 / 3, 0, 0, 0]),
        (Sampling(temperature=1, top_k=4, top_p=0.8), [5 / 9, 2.5 / 9, 1.5 / 9, 0, 0]),
        (Sampling(temperature=1, top_k=0, min_p=0.4), [2 / 3, 1 / 3, 0, 0, 0]),
        (Sampling(temperature=0.5, top_k=2), [0.8, 0.2, 0, 0, 0]),
        (Sampling(temperature=0), [1, 0, 0, 0, 0]),
        (Sampling(top_k=1), [1, 0, 0, 0, 0]),
    ],
)
def test_frequencies(sampling: Sampling, expected: list[float]) -> None:
    np.testing.assert_allclose(frequencies(sampling), expected, atol=0.015)


@pytest.mark.gpu
@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.floats(-20, 20, width=32), min_size=2, max_size=30),
    st.integers(0, 40),
    st.just(0.0) | st.floats(1e-6, 1),
    st.just(0.0) | st.floats(1e-6, 1),
    st.integers(0, 2**31),
)
def test_a_token_is_always_drawn(
    logits: list[float], top_k: int, top_p: float, min_p: float, seed: int
) -> None:
    sampling = Sampling(temperature=0.7, top_k=top_k, top_p=top_p, min_p=min_p)
    token = sample(mx.array([logits]), mx.random.key(seed), sampling)
    assert 0 <= int(token[0]) < len(logits)


def test_out_of_range_is_refused() -> None:
    nan, inf = float("nan"), float("inf")
    wrong: list[tuple[str, Any]] = [
        *(("temperature", value) for value in (-1, nan, inf, "1", True, 1e-9)),
        *(("top_k", value) for value in (-1, 2.5, nan, True, None)),
        *(("top_p", value) for value in (1.5, -0.1, nan)),
        *(("min_p", value) for value in (1.5, -0.1, nan)),
        *(("repetition_penalty", value) for value in (0, -2, nan, inf)),
        *(("repetition_window", value) for value in (0, -1, 1.5, 10**9)),
    ]
    for name, value in wrong:
        with pytest.raises(ArgumentError, match=f"{name}|a temperature") as error:
            Sampling(**{name: value})
        assert repr(value) in str(error.value)


@pytest.mark.gpu
def test_seed_decides() -> None:
    """The same seed gives the same conversation, another one another."""
    lm = load("moshi")
    user = np.random.default_rng(0).integers(0, lm.config.card, (1, 8, 20))

    def tokens(seed: int) -> np.ndarray:
        hot = Sampling(temperature=1.0, top_k=20)
        generator = Generator(lm, text=hot, audio=hot, seed=seed)
        return np.stack([generator.step(user[:, :, t]).written for t in range(20)])

    first = tokens(1)
    mx.random.seed(99)  # the global generator has no part in it
    assert (tokens(1) == first).all()
    assert (tokens(2) != first).any()


def test_penalty() -> None:
    logits = mx.array([[2.0, -2.0, 1.0]])
    recent = mx.array([[True, True, False]])
    assert penalized(logits, recent, 2.0).tolist() == [[1.0, -4.0, 1.0]]


def test_guard_breaks_repetition() -> None:
    """A greedy model that says the same codes again and again says others with the guard."""
    lm = load("moshi")

    def distinct(penalty: float) -> int:
        guard = Sampling(temperature=0, repetition_penalty=penalty, repetition_window=16)
        generator = Generator(lm, text=guard, audio=Sampling(temperature=0))
        text = [int(generator.step(np.zeros((1, 8))).written[0, 0]) for _ in range(80)]
        return len(set(text[40:]))

    assert distinct(3.0) > distinct(1.0)
