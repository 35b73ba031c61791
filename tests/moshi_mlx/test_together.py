"""Conversations that step together are what they are alone."""

import mlx.core as mx
import numpy as np
import pytest

from moshi_mlx import ArgumentError, SessionError
from moshi_mlx.config import UNGENERATED_TOKEN
from moshi_mlx.generate import Generator, step_together
from moshi_mlx.guidance import Guidance
from moshi_mlx.lm import Lm
from moshi_mlx.sampling import Sampling
from tests.moshi_mlx.test_generate import load

WARM = Sampling(temperature=0.8, top_k=20, repetition_penalty=1.1)


def codes_of(lm: Lm, row: int, step: int) -> np.ndarray:
    """What a conversation hears."""
    rng = np.random.default_rng([row, step])
    return rng.integers(0, lm.config.card, (1, lm.config.n_q - lm.config.dep_q), dtype=np.int32)


@pytest.mark.parametrize("name", ["lm/moshi-mlx", "lm/moshi-2b", "lm/gqa-rope-concat"])
@pytest.mark.parametrize("compiled", [False, True])
def test_rows_join_and_leave(name: str, compiled: bool) -> None:
    """Three conversations of different ages, past the context, one of which rests meanwhile."""
    lm = load(name)
    made = [
        [Generator(lm, text=WARM, audio=WARM, seed=seed, compiled=compiled) for seed in (1, 2, 3)]
        for _ in range(2)
    ]
    alone, together = made
    steps = 2 * (lm.config.transformer.context or 20) + 3
    present = [
        [row for row in range(3) if step >= 4 * row and not (row == 1 and 9 <= step < 13)]
        for step in range(steps)
    ]
    for rows in present:
        heard = [codes_of(lm, row, alone[row].steps) for row in rows]
        found = step_together([together[row] for row in rows], heard)
        for row, codes, step in zip(rows, heard, found, strict=True):
            wanted = alone[row].step(codes)
            assert np.array_equal(step.written, wanted.written)
            assert (step.frame is None) == (wanted.frame is None)
            assert mx.allclose(step.text_logits, wanted.text_logits, atol=1e-4, rtol=1e-4)
            assert step.text_logits.shape == wanted.text_logits.shape
    for one, other in zip(alone, together, strict=True):
        assert one.steps == other.steps > 0
        state = other.save()
        one.restore(state)


def test_what_cannot_step_beside_others_steps_alone() -> None:
    """Guidance, a batch, and forced text, each beside a plain conversation."""
    lm = load("lm/moshi-mlx")

    def make() -> list[Generator]:
        greedy = Sampling(temperature=0)
        return [
            Generator(lm, text=greedy, audio=greedy, seed=0),
            Generator(lm, text=greedy, audio=greedy, batch=2),
            Generator(lm, text=greedy, audio=greedy, guidance=Guidance(2.0)),
            Generator(lm, text=greedy, audio=greedy, seed=5),
        ]

    alone, together = make(), make()
    for step in range(6):
        heard = [np.repeat(codes_of(lm, i, step), g.batch, axis=0) for i, g in enumerate(alone)]
        text = [7, None, None, None] if step == 3 else None
        found = step_together(together, heard, text)
        for i, (generator, codes) in enumerate(zip(alone, heard, strict=True)):
            wanted = generator.step(codes, text=7 if i == 0 and step == 3 else None)
            assert np.array_equal(found[i].written, wanted.written)


def test_nothing_is_stepped_when_something_is_wrong() -> None:
    lm = load("lm/moshi-mlx")
    generators = [Generator(lm, text=WARM, audio=WARM, seed=seed) for seed in (1, 2)]
    good = codes_of(lm, 0, 0)
    with pytest.raises(ArgumentError, match="codes"):
        step_together(generators, [good, good[:, :1]])
    with pytest.raises(ArgumentError, match="text"):
        step_together(generators, [good, good], [None, 10**6])
    with pytest.raises(ArgumentError, match="each generator once"):
        step_together([generators[0]] * 2, [good, good])
    with generators[1]._turn.held(), pytest.raises(SessionError, match="in use"):
        step_together(generators, [good, good])
    assert [generator.steps for generator in generators] == [0, 0]
    assert UNGENERATED_TOKEN not in step_together(generators, [good, good])[0].written
