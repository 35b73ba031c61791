"""What a GPU makes different: bfloat16, fused steps, other formulas and another layout.

`make test-gpu` runs it on the machine's GPU, or on a pretended one (tests/pretended_gpu). Numbers
may differ from the CPU's by what their type rounds, words may not.
"""

from __future__ import annotations

import asyncio

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import soundfile

import moshi_mlx
from moshi_mlx import Frame, Moshi, Sampling
from moshi_mlx.backend import on_gpu
from moshi_mlx.embedding import make_embedding
from moshi_mlx.files import read_json
from moshi_mlx.generate import Generator
from moshi_mlx.hub import bundled_folder
from moshi_mlx.lm import Lm
from moshi_mlx.published import read_config
from moshi_mlx.seanet import elu
from moshi_mlx.trees import named_leaves
from moshi_mlx.weights import load_lm
from tests.moshi_mlx.test_lm import CASES
from tests.project.test_demo import REPLIES

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not on_gpu(), reason="MLX computes on the CPU here; see `make test-gpu`"),
]

HOT = Sampling(temperature=1, top_k=20)
BFLOAT16_STEP = 2.0**-8
"""How much bfloat16 rounds, at most, as a share of a number."""


def load(dtype: mx.Dtype | None = None) -> Lm:
    config = read_config(read_json(CASES / "moshi" / "config.json")).lm
    return load_lm(CASES / "moshi" / "model.safetensors", config, dtype=dtype)


@pytest.fixture(scope="module")
def moshi() -> Moshi:
    return moshi_mlx.load("nano", verb="talk", codec="mlx")


@pytest.fixture(scope="module")
def question(moshi: Moshi) -> np.ndarray:
    """The bundled recording and time for the last answer, float32 [frames, 1920]."""
    pcm, _ = soundfile.read(bundled_folder("nano") / "question.wav", dtype="float32")
    pcm = np.concatenate([pcm, np.zeros(4 * moshi.sample_rate, np.float32)])
    return pcm[: len(pcm) // moshi.frame_size * moshi.frame_size].reshape(-1, moshi.frame_size)


def test_nano_answers_in_the_same_words(moshi: Moshi, question: np.ndarray) -> None:
    assert moshi.lm.out_norm.weight.dtype == mx.bfloat16
    with moshi.session() as session:
        words = [word.text for pcm in question for word in session.step(pcm).words]
    assert " ".join(words) == " ".join(REPLIES)


def test_steps_then_a_stream(moshi: Moshi, question: np.ndarray) -> None:
    """What one thread has fused serves another: the streamed frames are those of more steps."""
    frames = question[:40]

    async def rest(session: moshi_mlx.Session) -> list[Frame]:
        return [frame async for frame in session.stream(frames[20:])]

    with moshi.session() as session:
        mixed = [session.step(pcm) for pcm in frames[:20]] + asyncio.run(rest(session))
    with moshi.session() as session:
        stepped = [session.step(pcm) for pcm in frames]
    assert [frame.text for frame in mixed] == [frame.text for frame in stepped]
    assert any(frame.words for frame in mixed)
    for a, b in zip(mixed, stepped, strict=True):
        np.testing.assert_allclose(a.pcm, b.pcm, atol=1e-3)


def test_a_fused_step_is_near_a_plain_one() -> None:
    """Fused unless told otherwise. Both are given the same tokens, past the context."""
    lm = load()
    config = lm.config
    rng = np.random.default_rng(0)
    fused, plain = (
        Generator(lm, text=HOT, audio=HOT, compiled=compiled) for compiled in (None, False)
    )
    assert fused._kind.compiled
    assert lm.out_norm.weight.dtype == mx.bfloat16
    for _ in range((config.transformer.context or 0) + 5):
        codes = rng.integers(0, config.card, (1, fused.given))
        text, audio = rng.integers(0, config.text_card), rng.integers(0, config.card, 8)
        a, b = (step.step(codes, text=text, audio=audio) for step in (fused, plain))
        x, y = (np.array(step.text_logits) for step in (a, b))
        np.testing.assert_allclose(x, y, atol=8 * BFLOAT16_STEP * np.abs(y).max())


@pytest.mark.parametrize("bits", [4, 8])
def test_rows_of_a_quantized_table(bits: int) -> None:
    mx.random.seed(0)
    module = nn.Module()
    module.table = make_embedding(9, 64)
    nn.quantize(module, 32, bits)
    table = module.table
    whole = mx.dequantize(
        table.weight, table.scales, table.biases, group_size=32, bits=bits, dtype=mx.float32
    )
    rows = table(mx.array([[3, -1], [8, 0]]))
    assert mx.allclose(rows[0, 0], whole[3], atol=1e-6).item()
    assert mx.allclose(rows[1], whole[mx.array([8, 0])], atol=1e-6).item()
    assert not rows[0, 1].any().item()


def test_elu() -> None:
    x = np.concatenate([np.linspace(-30, 3, 1000), [-1e-6, 0.0]]).astype(np.float32)
    expected = np.where(x > 0, x, np.expm1(x.astype(np.float64)))
    np.testing.assert_allclose(np.array(elu(mx.array(x))), expected, rtol=1e-5, atol=1e-7)


def test_matrices_lie_by_rows() -> None:
    """By columns they are faster with the CPU's BLAS only, and a step's kernels want rows."""
    linears = [m for m in named_leaves(load(mx.float32)).values() if isinstance(m, nn.Linear)]
    assert linears
    assert all(np.array(m.weight, copy=False).flags.c_contiguous for m in linears)
