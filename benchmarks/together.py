"""What a frame costs for N conversations that step together, one by one, or in N processes.

    python -m benchmarks.together tests/fixtures/bench/{small,middle}.json [--picture FILE.svg]

Random weights. The rounds of the first two are interleaved. On a CPU a product with more rows costs
more; a GPU reads the weights once for all of them.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Mapping, Sequence
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from moshi_local.machine.bench import write_random_model
from moshi_mlx.config import LmConfig
from moshi_mlx.files import read_json
from moshi_mlx.generate import Generator, step_together
from moshi_mlx.lm import Lm
from moshi_mlx.sampling import Sampling
from moshi_mlx.weights import load_lm

WARM = 5
WAYS = ("one by one", "in as many processes", "together")
_COLOURS = ("#a5782a", "#888", "#3a62a0")

Figures = Mapping[int, Sequence[float]]
"""Number of conversations → median milliseconds of a frame of all, by WAYS."""


def rounds(lm: Lm, count: int, frames: int) -> tuple[float, float]:
    """Of all `count` conversations: one by one, and together."""
    alone, together = (_generators(lm, count) for _ in range(2))
    times: tuple[list[float], list[float]] = ([], [])
    for codes in _codes(alone, frames):
        began = time.perf_counter()
        for generator, own in zip(alone, codes, strict=True):
            generator.step(own)
        middle = time.perf_counter()
        step_together(together, codes)
        times[0].append(1000 * (middle - began))
        times[1].append(1000 * (time.perf_counter() - middle))
    return statistics.median(times[0][WARM:]), statistics.median(times[1][WARM:])


def processes(path: Path, config: LmConfig, count: int, frames: int) -> float:
    """Of `count` conversations, each in one process; all step at the same time."""
    context = get_context("spawn")
    barrier = context.Barrier(count)
    with context.Pool(count, _take_barrier, (barrier,)) as pool:
        waiting = [pool.apply_async(_process, (path, config, frames)) for _ in range(count)]
        times = [result.get() for result in waiting]
    return statistics.median(np.max(times, axis=0)[WARM:])


_barrier: Barrier


def _take_barrier(barrier: Barrier) -> None:
    global _barrier
    _barrier = barrier


def _process(path: Path, config: LmConfig, frames: int) -> list[float]:
    generators = _generators(load_lm(path, config), 1)
    times = []
    for codes in _codes(generators, frames):
        _barrier.wait()
        began = time.perf_counter()
        generators[0].step(codes[0])
        times.append(1000 * (time.perf_counter() - began))
    return times


def _generators(lm: Lm, count: int) -> list[Generator]:
    how = Sampling()
    return [Generator(lm, text=how, audio=how, seed=i) for i in range(count)]


def _codes(generators: Sequence[Generator], frames: int) -> list[list[np.ndarray]]:
    """What each hears in each frame."""
    rng = np.random.default_rng(0)
    shape = (1, generators[0].given)
    return [
        [rng.integers(0, 100, shape, dtype=np.int32) for _ in generators]
        for _ in range(WARM + frames)
    ]


def draw(models: Mapping[str, Figures], target: Path) -> None:
    """A frame's cost against the number of conversations."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3), layout="constrained")
    every = figure.subplots(1, len(models), squeeze=False)[0]
    for axes, (name, figures) in zip(every, models.items(), strict=True):
        counts = list(figures)
        for way, colour in enumerate(_COLOURS):
            costs = [figures[count][way] for count in counts]
            axes.plot(counts, costs, "o-", color=colour, label=WAYS[way], markersize=4)
        axes.axhline(80, color="#999", linewidth=0.8, linestyle=":")
        axes.annotate("80 ms", (counts[0], 80), color="#777", va="bottom")
        axes.set(title=name, xlabel="conversations", xticks=counts)
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
    every[0].set_ylabel("ms for a frame of all")
    every[0].legend(frameon=False)
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "together"}):
        figure.savefig(target, format="svg", metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("configs", type=Path, nargs="+", help="config.json of models")
    parser.add_argument("--bits", type=int, choices=(4, 8, 16), default=4)
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--frames", type=int, default=30)
    parser.add_argument("--picture", type=Path, help="draw it into this SVG")
    args = parser.parse_args()
    models: dict[str, Figures] = {}
    for file in args.configs:
        print(f"{file.stem}: ms for a frame of all conversations, median")
        print("conversations", *(f"{way:>22}" for way in WAYS))
        figures: dict[int, Sequence[float]] = {}
        with TemporaryDirectory() as folder:
            path, config = write_random_model(Path(folder), read_json(file), args.bits, str(file))
            lm = load_lm(path, config)
            for count in args.counts:
                alone, together = rounds(lm, count, args.frames)
                apart = processes(path, config, count, args.frames)
                figures[count] = alone, apart, together
                print(f"{count:13}", *(f"{ms:22.1f}" for ms in figures[count]), flush=True)
        models[f"{file.stem}, {args.bits} bits"] = figures
    if args.picture is not None:
        draw(models, args.picture)


if __name__ == "__main__":
    main()
