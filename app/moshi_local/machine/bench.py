"""What a step of the language model costs on this machine, also beside upstream's.

Codes in, codes out: the codec is timed separately. Both implementations run the same weights,
interleaved, so that other load on the machine affects both.
"""

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from moshi_mlx import Model, MoshiError, Sampling, Timing
from moshi_mlx.backend import compile_by_default
from moshi_mlx.blas import with_openblas
from moshi_mlx.config import PUBLISHED_GROUPS, LmConfig, TransformerConfig
from moshi_mlx.errors import ConfigError, counted
from moshi_mlx.files import read_json
from moshi_mlx.footprint import floor_ms, kv_bytes, weight_bytes_per_frame
from moshi_mlx.generate import Generator
from moshi_mlx.layouts import to_mlx
from moshi_mlx.lm import Lm
from moshi_mlx.published import read_config
from moshi_mlx.trees import named_parameters
from moshi_mlx.weights import load_lm, skeleton

from ..platform import peak_memory
from ..report import percentiles
from .launches import codec_launches, step_launches
from .mlx_counters import counting
from .profile import Profile

__all__ = ["Report", "bench_config", "bench_model", "compare", "print_bench"]

WARM_UP = 20
# As published; top-k of a small vocabulary is cut to its size.
TEXT = Sampling(temperature=0.7, top_k=25)
AUDIO = Sampling(temperature=0.8, top_k=250)


@dataclass
class Report:
    """Times in milliseconds, sizes in bytes.

    compiled: the step was; see `Generator`.
    kv_bits: of keys and values; see `Generator`.
    python_ms: the part of `frame_ms` not spent waiting for MLX, which works meanwhile.
    host_syncs_per_frame: evaluations that Python waits for, in a step of the language model; and
        `session_syncs_per_frame` with the codec, None where there is none.
    primitives_per_frame: of the graphs evaluated, without views; `views_per_frame` are those.
    launches_per_frame: kernels that a GPU would launch, by parts; see `launches`.
    predicted_roofline_ms: by chip, for a full context; a prediction, see `footprint.floor_ms`.
    """

    name: str
    frames: int
    compiled: bool
    kv_bits: int | None
    frame_ms: dict[str, float]
    python_ms: dict[str, float]
    stages: dict[str, dict[str, float]]
    host_syncs_per_frame: int
    session_syncs_per_frame: int | None
    primitives_per_frame: int
    views_per_frame: int
    launches_per_frame: dict[str, int]
    weight_bytes_per_frame: int
    kv_bytes_per_frame: int
    peak_memory_bytes: int
    predicted_roofline_ms: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        return dict(vars(self))


@dataclass(frozen=True)
class Upstream:
    """The same figures of upstream's step."""

    frame_ms: dict[str, float]
    host_syncs_per_frame: int
    primitives_per_frame: int
    views_per_frame: int


def random_codes(config: LmConfig, frames: int, given: int) -> np.ndarray:
    """Codes of the other side, int32 [frames, 1, given]."""
    rng = np.random.default_rng(0)
    return rng.integers(0, config.card, (frames, 1, given), dtype=np.int32)


@dataclass(frozen=True)
class Asked:
    """What one step asks of MLX; see `Report`."""

    host_syncs_per_frame: int
    primitives_per_frame: int
    views_per_frame: int
    python_seconds: list[float]


def count_step(
    lm: Lm,
    generated: int | None = None,
    compiled: bool | None = None,
    frames: int = 20,
    kv_bits: int | None = None,
) -> Asked:
    """Counts a step that follows some others, and times what is outside MLX in `frames` more."""
    generator = make_generator(lm, generated, compiled, kv_bits)
    *before, last = random_codes(lm.config, 4, generator.given)
    for codes in before:
        generator.step(codes)
    with counting() as counts:
        generator.step(last)
    python = []
    for codes in random_codes(lm.config, frames, generator.given):
        began = time.perf_counter()
        with counting(graphs=False) as timed:
            generator.step(codes)
        python.append(time.perf_counter() - began - timed.waited)
    return Asked(counts.syncs, counts.launches, counts.views, python)


def time_steps(
    lm: Lm,
    frames: int,
    generated: int | None = None,
    compiled: bool | None = None,
    kv_bits: int | None = None,
) -> list[float]:
    """Seconds of each of `frames` steps of a conversation, after a warm-up."""
    return step_times(make_generator(lm, generated, compiled, kv_bits), WARM_UP + frames)[WARM_UP:]


def step_times(generator: Generator, frames: int) -> list[float]:
    """Seconds of each of the next `frames` steps."""
    times = []
    for codes in random_codes(generator.lm.config, frames, generator.given):
        began = time.perf_counter()
        generator.step(codes)
        times.append(time.perf_counter() - began)
    return times


def make_generator(
    lm: Lm,
    generated: int | None = None,
    compiled: bool | None = None,
    kv_bits: int | None = None,
) -> Generator:
    """A conversation that draws tokens as the published models do."""
    return Generator(
        lm, text=TEXT, audio=AUDIO, generated=generated, compiled=compiled, kv_bits=kv_bits
    )


def make_report(
    name: str,
    lm: Lm,
    times: Sequence[float],
    stages: dict[str, Any],
    launched: dict[str, int],
    generated: int | None = None,
    compiled: bool | None = None,
    kv_bits: int | None = None,
    session_syncs: int | None = None,
) -> Report:
    """Puts times together with what is counted."""
    asked = count_step(lm, generated, compiled, kv_bits=kv_bits)
    config, transformer = lm.config, lm.config.transformer
    float_size = lm.out_norm.weight.dtype.size
    # The prediction is for GPUs, where floats have 16 bits.
    least = weight_bytes_per_frame(lm, config, generated=generated, float_size=2)
    least += kv_bytes(transformer, 2, kv_bits)
    return Report(
        name=name,
        frames=len(times),
        compiled=compile_by_default() if compiled is None else compiled,
        kv_bits=kv_bits,
        frame_ms=percentiles(times),
        python_ms=percentiles(asked.python_seconds),
        stages=stages,
        host_syncs_per_frame=asked.host_syncs_per_frame,
        session_syncs_per_frame=session_syncs,
        primitives_per_frame=asked.primitives_per_frame,
        views_per_frame=asked.views_per_frame,
        launches_per_frame=launched,
        weight_bytes_per_frame=weight_bytes_per_frame(lm, config, generated=generated),
        kv_bytes_per_frame=kv_bytes(transformer, float_size, kv_bits, WARM_UP + len(times)),
        peak_memory_bytes=peak_memory(),
        predicted_roofline_ms=floor_ms(least),
    )


def bench_model(
    moshi: Model,
    frames: int,
    compiled: bool | None = None,
    kv_bits: int | None = None,
    profile: Profile | None = None,
) -> Report:
    """Times a loaded model: the language model, and a session's stages on silence.

    A look profile, if asked for, is at the session's frames, after they were timed.
    """
    generated = moshi.generated_streams(moshi.lm.config)
    times = time_steps(moshi.lm, frames, generated, compiled, kv_bits)
    silence = np.zeros(moshi.frame_size, np.float32)
    with moshi.session(kv_bits=kv_bits) as session:
        timings = [session.step(silence).timing for _ in range(WARM_UP + min(frames, 200))]
        with counting() as counts:
            session.step(silence)
        if profile is not None:
            look = partial(profile.look, lambda: session.step(silence).timing, frames)
            moshi.worker.call(look)  # there the steps are made
    stages = {
        stage: percentiles([getattr(t, stage) for t in timings[WARM_UP:]])
        for stage in ("encode", "model", "decode")
    }
    lm = moshi.lm
    bits = 4 if isinstance(lm.text_linear, nn.QuantizedLinear) else 16
    launched = step_launches(lm.config, bits, TEXT, AUDIO, generated)
    launched |= codec_launches(moshi.mimi.config, moshi.codec.num_codebooks)
    name, syncs = moshi.files.name, counts.syncs
    return make_report(
        name, lm, times, stages, launched, generated, compiled, kv_bits, session_syncs=syncs
    )


def write_random_model(
    folder: Path, raw: dict[str, Any], bits: int, where: str = "config"
) -> tuple[Path, LmConfig]:
    """A model with random weights in bfloat16, 4 or 8 bits, as upstream reads it.

    Raises:
        ConfigError: `raw`, which is from `where`, cannot be read, or has widths that no group of
            these bits divides.
    """
    config = read_config(raw, where).lm
    _check_widths(config, raw, bits, where)
    mx.random.seed(0)
    lm = skeleton(config, bits, mx.bfloat16)
    path = folder / "model.safetensors"
    mx.save_safetensors(str(path), to_mlx(named_parameters(lm), config))
    (folder / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    return path, config


def _check_widths(config: LmConfig, raw: dict[str, Any], bits: int, where: str) -> None:
    """That the groups of these bits divide the inputs of every layer."""
    group = PUBLISHED_GROUPS.get(bits, 1)
    for name, width in _widths(config, raw):
        if width and width % group == 0:
            continue
        below, above = width // group * group, (width // group + 1) * group
        fit = " and ".join(str(w) for w in (below, above) if w)
        value = raw.get(name.partition(".")[0])
        given = f" {value!r}" if isinstance(value, int | float) else ""
        raise ConfigError(
            f"{where}: field '{name}'{given} gives layers of {counted(width, 'input')}, and {bits} "
            f"bits need a multiple of {group}, as {fit}: change it, or use --bits 16"
            if width
            else f"{where}: field '{name}'{given} gives layers without inputs: give a larger one"
        )


def _widths(config: LmConfig, raw: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """The fields that say how many inputs layers have, and what they say."""
    yield "dim", config.transformer.dim
    yield "hidden_scale", _hidden(config.transformer)
    if depth := config.depth:
        yield "depformer_dim", depth.dim
        field = "depformer_dim_feedforward"
        for transformer in depth.transformers:
            yield field if raw.get(field) else "hidden_scale", _hidden(transformer)
        if depth.low_rank_embeddings is not None:
            yield "depformer_low_rank_embeddings", depth.low_rank_embeddings
    for name, conditioner in config.conditioners.items():
        yield f"conditioners.{name}.{conditioner.kind}.dim", conditioner.dim


def _hidden(transformer: TransformerConfig) -> int:
    """Inputs of a feed-forward's second matrix."""
    gated = transformer.gating != "none"
    return transformer.gated_hidden if gated else transformer.feedforward


def bench_config(
    config_path: Path,
    bits: int,
    frames: int,
    upstream: Path | None = None,
    rounds: int = 2,
    compiled: bool | None = None,
    kv_bits: int | None = None,
    dtype: mx.Dtype | None = None,
    profile: Profile | None = None,
) -> tuple[Report, Upstream | None]:
    """Times a model of this configuration with random weights.

    Args:
        config_path: a config.json.
        bits: 4, 8 or 16 (bfloat16 weights).
        frames: steps per round.
        upstream: a Python with upstream's moshi_mlx, to be timed on the same weights, interleaved.
        rounds: how often each is run.
        compiled: as `Generator` takes it.
        kv_bits: as `Generator` takes it; upstream's has all bits.
        dtype: what ours computes in, as `load_lm` takes it.
        profile: also look inside our frames, after all was timed.

    Returns:
        Our make_report, and upstream's figures if asked for.
    """
    if bits not in (*PUBLISHED_GROUPS, 16):
        raise MoshiError(f"bits must be 4, 8 or 16, are {bits}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path, config = write_random_model(folder, read_json(config_path), bits, str(config_path))
        lm = load_lm(path, config, dtype=dtype)
        counts: dict[str, int] = {}

        def theirs_once() -> list[float]:
            assert upstream is not None
            found = upstream_steps(upstream, folder, bits, frames)
            times: list[float] = found.pop("seconds")
            counts.update(found)
            return times

        ours, theirs = compare(
            lambda: time_steps(lm, frames, compiled=compiled, kv_bits=kv_bits),
            None if upstream is None else theirs_once,
            rounds,
        )
        if profile is not None:
            generator = make_generator(lm, compiled=compiled, kv_bits=kv_bits)
            profile.look(lambda: Timing(0.0, step_times(generator, 1)[0], 0.0), frames)
        name = f"{config_path.stem}, {bits} bits"
        launched = step_launches(config, bits, TEXT, AUDIO)
        mine = make_report(name, lm, ours, {}, launched, compiled=compiled, kv_bits=kv_bits)
        return mine, Upstream(percentiles(theirs), **counts) if theirs else None


def compare(
    ours: Callable[[], list[float]], theirs: Callable[[], list[float]] | None, rounds: int
) -> tuple[list[float], list[float]]:
    """A B A B: the times of both, gathered over the rounds."""
    a: list[float] = []
    b: list[float] = []
    for _ in range(rounds):
        a += ours()
        if theirs is not None:
            b += theirs()
    return a, b


def upstream_steps(python: Path, folder: Path, bits: int, frames: int) -> dict[str, Any]:
    """What `upstream_step.py` finds on the same weights, in its own process."""
    script = Path(__file__).with_name("upstream_step.py")
    arguments = [str(folder), str(bits), str(frames), str(WARM_UP)]
    try:
        done = subprocess.run(
            [str(python), "-I", str(script), *arguments],
            capture_output=True,
            text=True,
            check=False,
            env=with_openblas(os.environ),
        )
    except OSError as error:
        raise MoshiError(f"{python}: cannot be run: {error.strerror}") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise MoshiError(f"{python}: upstream's step failed: {last}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def print_bench(mine: Report, theirs: Upstream | None) -> None:
    """A few readable lines."""
    ms = mine.frame_ms
    print(
        f"{mine.name}: p50 {ms['p50']:.2f}  p95 {ms['p95']:.2f}  p99 {ms['p99']:.2f}  "
        f"max {ms['max']:.2f} ms per step, {counted(mine.frames, 'step')}"
    )
    if theirs is not None:
        print(
            f"  upstream: p50 {theirs.frame_ms['p50']:.2f}  p95 {theirs.frame_ms['p95']:.2f} ms; "
            f"ours is {theirs.frame_ms['p50'] / ms['p50']:.1f} times as fast (p50)"
        )
    for stage, times in mine.stages.items():
        print(f"  {stage}: p50 {times['p50']:.2f}  p95 {times['p95']:.2f} ms")
    if mine.session_syncs_per_frame is not None:
        print(f"  a frame with its codec waits {mine.session_syncs_per_frame} times for MLX")
    print(_asked("ours", mine) + f", {mine.python_ms['p50']:.2f} ms outside MLX (p50)")
    if theirs is not None:
        print(_asked("upstream", theirs))
    parts = ", ".join(f"{name} {count}" for name, count in mine.launches_per_frame.items())
    total = sum(mine.launches_per_frame.values())
    print(f"  on a GPU, compiled: {total} launches per frame ({parts}), counted from the graph")
    print(
        f"  reads {mine.weight_bytes_per_frame / 1e6:.1f} MB of weights and "
        f"{mine.kv_bytes_per_frame / 1e6:.2f} MB of keys and values per step; "
        f"peak memory {mine.peak_memory_bytes / 1e6:.0f} MB"
    )
    print("  lower bound of a step by memory bandwidth, predicted, not measured:")
    floors = [f"{chip} {ms:.2f}" for chip, ms in mine.predicted_roofline_ms.items()]
    print(f"    {'; '.join(floors)} ms")


def _asked(whose: str, counts: Report | Upstream) -> str:
    return (
        f"  {whose}: {counts.host_syncs_per_frame} host synchronisations and "
        f"{counts.primitives_per_frame} primitives per step (and {counts.views_per_frame} views)"
    )
