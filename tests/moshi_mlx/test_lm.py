"""The language model: the reference's numbers, and what holds for any numbers."""

import shutil
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moshi_mlx.config import LmConfig, TransformerConfig
from moshi_mlx.errors import ConfigError
from moshi_mlx.generate import Generator, Step
from moshi_mlx.lm import Lm
from moshi_mlx.sampling import Sampling
from moshi_mlx.transformer import Transformer
from tests import conformance

CASES = Path(__file__).parents[1] / "fixtures" / "lm"
GREEDY = Sampling(temperature=0)


@pytest.mark.gpu
@pytest.mark.parametrize("case", sorted(p.name for p in CASES.iterdir()))
def test_reference_numbers(case: str) -> None:
    result = conformance.run_case(CASES / case)
    assert conformance.passes(result), result


def test_conformance_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A changed weight fails, a missing folder is a line, and the exit code says so."""
    case = tmp_path / "case"
    shutil.copytree(CASES / "small-norms", case)
    weights = mx.load(str(case / "model.safetensors"))
    assert isinstance(weights, dict)
    name = "transformer.layers.1.self_attn.out_projs.0.weight"
    weights[name] = weights[name] * 1.1
    mx.save_safetensors(str(case / "model.safetensors"), weights)
    folders = [str(CASES / "small-norms"), str(case), str(tmp_path / "nothing")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["conformance.py", *folders])
        assert conformance.main() == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line[:4] for line in lines[:3]] == ["pass", "FAIL", "FAIL"]
    assert lines[-1] == "1 passed, 2 failed"


def load(case: str) -> Lm:
    return conformance.load_case(CASES / case)[0]


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_chunks_equal_the_whole(data: st.DataObject) -> None:
    """Steps of any size through the ring equal one pass, past three times the context."""
    context = data.draw(st.integers(1, 9), "context")
    lookahead = data.draw(st.integers(1, 3), "lookahead")
    config = TransformerConfig(
        dim=16, num_heads=2, num_layers=2, feedforward=32, context=context, kv_repeat=2
    )
    mx.random.seed(0)
    transformer = Transformer(config)
    length = 3 * context + data.draw(st.integers(1, 12), "beyond")
    x = mx.random.normal((2, length, 16))
    cache = transformer.make_cache(lookahead)
    parts, at = [], 0
    while at < length:
        size = min(data.draw(st.integers(1, context + 4), "size"), length - at)
        parts.append(transformer(x[:, at : at + size], cache))
        at += size
    assert mx.allclose(mx.concatenate(parts, axis=1), transformer(x), atol=1e-5).item()


@pytest.mark.parametrize("bits", [8, 4])
def test_quantized_steps_equal_quantized_blocks(bits: int) -> None:
    """What a position sees is rounded in the same way whether it came in this block or before."""
    config = TransformerConfig(
        dim=64, num_heads=2, num_layers=2, feedforward=96, context=11, kv_repeat=2
    )
    mx.random.seed(0)
    transformer = Transformer(config)
    x = mx.random.normal((2, 40, 64))
    whole = transformer(x, transformer.make_cache(bits=bits))
    cache = transformer.make_cache(bits=bits)
    parts = [transformer(x[:, i:j], cache) for i, j in ((0, 3), (3, 20), (20, 21))]
    parts += [transformer(x[:, i : i + 1], cache) for i in range(21, 40)]
    # A number between two steps may be rounded up here and down there.
    assert mx.allclose(mx.concatenate(parts, axis=1), whole, atol=2e-3).item()
    off = float(np.abs(np.array(whole - transformer(x))).max())
    assert 0 < off < {8: 0.01, 4: 0.2}[bits]


def test_quantized_keys_and_values_are_near_the_reference() -> None:
    """Past twice the context, with heads of 16, which are filled up. No number is the same."""
    lm, expected, _ = conformance.load_case(CASES / "moshi")
    output = lm.forward(mx.array(expected["forward.codes"]), kv_bits=8)
    there = expected["forward.text_mask"]
    off = np.abs(np.array(output.text_logits) - expected["forward.text_logits"])[there]
    assert 1e-3 < off.max() < 0.1
    there, theirs = expected["forward.mask"], expected["forward.logits"]
    same = np.array(output.audio_logits).argmax(-1) == theirs.argmax(-1)
    assert same[there].mean() > 0.95


@pytest.mark.parametrize("compiled", [False, True])
def test_quantized_stream_equals_forward(compiled: bool) -> None:
    """The step's logits with 8 bits are those of teacher forcing with 8 bits, past the context."""
    lm = load("moshi")
    config = lm.config
    steps = 2 * (config.transformer.context or 0) + 10
    rng = np.random.default_rng(0)
    user = rng.integers(0, config.card, (1, config.n_q - config.dep_q, steps))
    generator = Generator(lm, text=GREEDY, audio=GREEDY, compiled=compiled, kv_bits=8)
    stream = [generator.step(user[:, :, t]) for t in range(steps)]
    codes = heard_and_said(config, stream, user)
    output = lm.forward(mx.array(codes), kv_bits=8)
    logits = np.stack([np.array(step.text_logits) for step in stream], axis=1)
    ours = np.array(output.text_logits[:, 0])
    np.testing.assert_allclose(ours, logits[:, : codes.shape[2]], atol=0.02, rtol=0)
    exact = np.array(lm.forward(mx.array(codes)).text_logits[:, 0])
    near, far = (np.sqrt(np.mean(np.square(ours - x))) for x in (logits[:, : len(ours[0])], exact))
    assert near < far / 3


def test_attention_sees_exactly_the_context() -> None:
    """One layer: a changed input at distance context - 1 is seen, at distance context it isn't."""
    context, length = 7, 30
    config = TransformerConfig(dim=16, num_heads=2, num_layers=1, feedforward=32, context=context)
    mx.random.seed(0)
    transformer = Transformer(config)
    x = mx.random.normal((1, length, 16))
    for distance, seen in [(0, True), (context - 1, True), (context, False)]:
        changed = mx.array(x)
        changed[:, length - 1 - distance] += 1.0
        for steps in (False, True):
            results = []
            for signal in (x, changed):
                cache = transformer.make_cache()
                sizes = [1] * length if steps else [length]
                ends = np.cumsum(sizes)
                outs = [
                    transformer(signal[:, end - size : end], cache)
                    for size, end in zip(sizes, ends.tolist(), strict=True)
                ]
                results.append(outs[-1][:, -1])
            assert bool(mx.any(mx.abs(results[0] - results[1]) > 1e-6).item()) is seen


def test_ring_does_not_grow() -> None:
    """It has room for the context from the first position on, and the same arrays for ever."""
    config = TransformerConfig(dim=8, num_heads=2, num_layers=1, feedforward=16, context=600)
    transformer = Transformer(config)
    cache = transformer.make_cache()
    rooms = set()
    x = mx.zeros((1, 1, 8))
    for _ in range(1300):
        mx.eval(transformer(x, cache))
        rooms.add(cache[0].arrays()[0].shape)
    assert rooms == {(2, 1, 2, 600, 4)}


def test_stream_equals_forward() -> None:
    """Fed its own output, teacher forcing gives the logits of the stream, past 3 × context."""
    lm = load("moshi")
    config = lm.config
    steps = 3 * (config.transformer.context or 0) + 10
    rng = np.random.default_rng(0)
    user = rng.integers(0, config.card, (1, config.n_q - config.dep_q, steps))
    generator = Generator(lm, text=GREEDY, audio=GREEDY)
    stream = [generator.step(user[:, :, t]) for t in range(steps)]
    codes = heard_and_said(config, stream, user)
    output = lm.forward(mx.array(codes))
    logits = np.stack([np.array(step.text_logits) for step in stream], axis=1)
    np.testing.assert_allclose(
        np.array(output.text_logits[:, 0]), logits[:, : codes.shape[2]], atol=1e-4, rtol=0
    )


def heard_and_said(config: LmConfig, stream: list[Step], user: np.ndarray) -> np.ndarray:
    """The codes of a stream's frames, as teacher forcing takes them."""
    said = np.stack([step.frame for step in stream if step.frame is not None], axis=2)
    heard = user[:, :, 1:]  # the frame of step 0 is never heard
    length = min(said.shape[2], heard.shape[2]) - max(config.delays)
    return np.concatenate([said[:, :, :length], heard[:, :, :length]], axis=1)


def test_batch_rows_are_independent() -> None:
    lm = load("small-norms")
    rng = np.random.default_rng(0)
    user = rng.integers(0, lm.config.card, (3, 2, 30))
    together = Generator(lm, batch=3, text=GREEDY, audio=GREEDY)
    apart = [Generator(lm, text=GREEDY, audio=GREEDY) for _ in range(3)]
    for t in range(30):
        rows = [g.step(user[i : i + 1, :, t]).written for i, g in enumerate(apart)]
        assert (together.step(user[:, :, t]).written == np.concatenate(rows)).all()


def test_wrong_shape_is_refused() -> None:
    generator = Generator(load("small-norms"), text=GREEDY, audio=GREEDY)
    with pytest.raises(ValueError, match=r"codes must be \[1, 2\], are \(1, 3\)"):
        generator.step(np.zeros((1, 3)))


def test_given_streams_are_not_generated() -> None:
    """A model that can generate all streams generates a part and is given the rest."""
    lm = load("moshi")
    generator = Generator(lm, text=GREEDY, audio=GREEDY, generated=3)
    step = generator.step(np.zeros((1, generator.given)))
    assert generator.given == 13
    assert step.written.shape == (1, 4)


def test_conditions_are_checked() -> None:
    lm = load("small-sum")
    with pytest.raises(ConfigError, match="knows a, b, c; not 'z'"):
        Generator(lm, text=GREEDY, audio=GREEDY, conditions=[{"mood": "z"}])
    with pytest.raises(ConfigError, match="no conditioner 'colour'"):
        Generator(lm, text=GREEDY, audio=GREEDY, conditions=[{"colour": "a"}])
    with pytest.raises(ValueError, match="no conditioners"):
        Generator(load("moshi"), text=GREEDY, audio=GREEDY, conditions=[{"mood": "a"}])


def test_the_conformance_program_runs_as_a_script(tmp_path: Path) -> None:
    script = Path(__file__).parents[1] / "conformance.py"
    case = sorted((Path(__file__).parents[1] / "fixtures" / "personaplex").iterdir())[0]
    done = subprocess.run(
        [sys.executable, script, case], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("1 passed, 0 failed\n")
