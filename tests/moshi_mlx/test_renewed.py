"""Weights that change after a model was used: what was made of them before is made again."""

from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from moshi_mlx.generate import Generator
from moshi_mlx.lm import Lm
from moshi_mlx.sampling import Sampling
from moshi_mlx.trees import named_parameters
from tests.moshi_mlx.test_lm import load

GREEDY = Sampling(temperature=0)


def logits_after_two_steps(generator: Generator) -> np.ndarray:
    """The second step has read a token of every stream; −1 of one of them."""
    heard = np.arange(generator.given)[None] % generator.lm.config.card
    generator.step(heard, text=7, audio=np.arange(generator.generated))
    heard[0, -1] = -1
    return np.array(generator.step(heard).text_logits)


def other(array: mx.array) -> mx.array:
    noise = mx.random.normal(array.shape, key=mx.random.key(7))
    return array + mx.std(array) * noise.astype(array.dtype)


def by_assignment(lm: Lm, name: str, value: mx.array) -> None:
    path, _, leaf = name.rpartition(".")
    setattr(dict(lm.named_modules())[path], leaf, value)


def by_loading(lm: Lm, name: str, value: mx.array) -> None:
    lm.load_weights([(name, value)], strict=False)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("change", [by_assignment, by_loading])
@pytest.mark.parametrize("name", ["text_emb.weight", "audio_embs.0.weight", "audio_embs.9.weight"])
def test_a_changed_embedding_is_read(
    name: str, change: Callable[[Lm, str, mx.array], None], compiled: bool
) -> None:
    """By conversations that begin, or begin again, afterwards: as a model that was loaded so."""

    def make(lm: Lm) -> Generator:
        return Generator(lm, text=GREEDY, audio=GREEDY, compiled=compiled)

    used, fresh = load("moshi"), load("moshi")
    running = make(used)
    before = logits_after_two_steps(running)
    value = other(named_parameters(used)[name])
    for lm in (used, fresh):
        change(lm, name, value)
    wanted = logits_after_two_steps(make(fresh))
    assert np.abs(wanted - before).max() > 1e-3
    np.testing.assert_array_equal(logits_after_two_steps(make(used)), wanted)
    running.reset()
    np.testing.assert_array_equal(logits_after_two_steps(running), wanted)


def test_a_step_reads_what_teacher_forcing_reads() -> None:
    """`forward` has no table made in advance: both follow a change of all tables at once."""
    lm = load("small-norms")
    generator = Generator(lm, text=GREEDY, audio=GREEDY)
    generator.step(np.zeros((1, generator.given)))
    for table in (lm.text_emb, *lm.audio_embs):
        table.weight = other(table.weight)
    generator.reset()
    logits = np.array(generator.step(np.zeros((1, generator.given))).text_logits)
    codes = mx.zeros((1, 1 + lm.config.n_q, 2), mx.int32)
    np.testing.assert_allclose(logits, lm.forward(codes).text_logits[:, 0, 0], atol=1e-5)


def test_tables_that_were_quantized_later_are_read() -> None:
    """With the numbers of a model that was quantized before its first step."""
    used, fresh = load("moshi"), load("moshi")
    logits_after_two_steps(Generator(used, text=GREEDY, audio=GREEDY))
    for lm in (used, fresh):
        nn.quantize(lm, 32, 4, class_predicate=lambda _, m: isinstance(m, nn.Embedding))
    found, wanted = (
        logits_after_two_steps(Generator(lm, text=GREEDY, audio=GREEDY)) for lm in (used, fresh)
    )
    np.testing.assert_array_equal(found, wanted)
