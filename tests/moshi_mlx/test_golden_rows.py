"""Conversations side by side, and codebooks one after another: none changes what another gets."""

from collections.abc import Sequence

import mlx.core as mx
import numpy as np
import pytest

from moshi_mlx.files import read_json
from moshi_mlx.generate import Generator
from moshi_mlx.lm import Lm
from moshi_mlx.mimi import Mimi
from moshi_mlx.published import read_mimi_config
from moshi_mlx.sampling import Sampling
from moshi_mlx.weights_mimi import load_mimi
from tests.fixtures.make_mimi_expected import DATA
from tests.moshi_mlx.test_lm import load
from tests.moshi_mlx.test_mimi import pcm_of

GREEDY = Sampling(temperature=0)
LEAST_EQUAL = 0.98  # random codebooks have near ties
FRAMES = 9


def mimi_of(codebooks: int) -> Mimi:
    config = read_mimi_config(read_json(DATA / "small.json"))
    return load_mimi(DATA / "small.safetensors", codebooks, config)


@pytest.fixture(scope="module")
def small() -> Mimi:
    return mimi_of(4)


def steps(mimi: Mimi, pcm: mx.array, codes: mx.array) -> tuple[np.ndarray, np.ndarray]:
    """Codes and sound, frame by frame, past the transformers' windows."""
    state = mimi.init_state(len(pcm))
    heard = [mimi.encode_step(frame, state) for frame in mx.split(pcm, FRAMES, axis=-1)]
    said = [mimi.decode_step(frame, state) for frame in mx.split(codes, FRAMES, axis=-1)]
    return np.array(mx.concatenate(heard, -1)), np.array(mx.concatenate(said, -1))


def test_recordings_of_a_batch_are_coded_as_if_alone(small: Mimi) -> None:
    """Silence, noise and louder noise, frame by frame and at once."""
    noise = pcm_of(small, FRAMES, batch=2, seed=5)
    pcm = mx.concatenate([mx.zeros_like(noise[:1]), noise * mx.array([[[0.1]], [[1.0]]])])
    bins = small.config.quantizer.bins
    codes = mx.random.randint(0, bins, (3, 4, FRAMES), key=mx.random.key(2))
    together = steps(small, pcm, codes)
    whole = np.array(small.encode(pcm)), np.array(small.decode(codes))
    for row in range(3):
        alone = steps(small, pcm[row : row + 1], codes[row : row + 1])
        for heard, said in (together, whole):
            assert (heard[row] == alone[0][0]).mean() >= LEAST_EQUAL
            np.testing.assert_allclose(said[row], alone[1][0], atol=1e-4)
    assert (together[0][1] != together[0][2]).any()


def test_fewer_codebooks_are_the_first_of_more(small: Mimi) -> None:
    """Each codes what those before it left; the sound from them all lacks the others' part."""
    pcm = pcm_of(small, FRAMES, seed=6)
    codes = small.encode(pcm)
    for count in (1, 2, 3):
        fewer = mimi_of(count)
        assert (np.array(fewer.encode(pcm)) == np.array(codes[:, :count])).mean() >= LEAST_EQUAL
        said = fewer.decode(codes[:, :count])
        np.testing.assert_allclose(said, small.decode(codes[:, :count]), atol=1e-5)


def order(rows: Sequence[int], lm: Lm, user: np.ndarray) -> np.ndarray:
    generator = Generator(lm, batch=len(rows), text=GREEDY, audio=GREEDY)
    given = user[:, list(rows)]
    forced = [int(row % 2) * 9 - 2 for row in rows]  # −2: drawn; 7: forced
    return np.stack([generator.step(codes, text=forced).written for codes in given], axis=1)


def test_conversations_may_sit_in_any_order() -> None:
    """Past the context, some of them with forced text."""
    lm = load("moshi")
    length = (lm.config.transformer.context or 0) + 4
    user = np.random.default_rng(0).integers(0, lm.config.card, (length, 4, 8))
    whole = order([0, 1, 2, 3], lm, user)
    np.testing.assert_array_equal(order([3, 1, 0], lm, user), whole[[3, 1, 0]])
    assert (whole[1, :, 0] == 7).all()
    assert (whole[0] != whole[2]).any()
