"""What a frame costs for N conversations that step together, against N on their own.

    python -m benchmarks.together --config tests/fixtures/bench/middle.json --bits 4

The rounds are interleaved. On a CPU a product with more rows costs more; a GPU reads the weights
once for all of them.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from moshi_local.machine.bench import write_random_model
from moshi_mlx.files import read_json
from moshi_mlx.generate import Generator, step_together
from moshi_mlx.lm import Lm
from moshi_mlx.sampling import Sampling
from moshi_mlx.weights import load_lm

WARM = 5


def rounds(lm: Lm, count: int, frames: int) -> tuple[list[float], list[float]]:
    """Milliseconds of a frame of all `count` conversations: alone one by one, and together."""
    how = Sampling()
    alone, together = (
        [Generator(lm, text=how, audio=how, seed=i) for i in range(count)] for _ in range(2)
    )
    rng = np.random.default_rng(0)
    given = alone[0].given
    times: tuple[list[float], list[float]] = ([], [])
    for frame in range(WARM + frames):
        codes = [rng.integers(0, 100, (1, given), dtype=np.int32) for _ in range(count)]
        began = time.perf_counter()
        for generator, own in zip(alone, codes, strict=True):
            generator.step(own)
        middle = time.perf_counter()
        step_together(together, codes)
        ended = time.perf_counter()
        if frame >= WARM:
            times[0].append(1000 * (middle - began))
            times[1].append(1000 * (ended - middle))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--bits", type=int, choices=(4, 8, 16), default=4)
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--frames", type=int, default=30)
    args = parser.parse_args()
    with TemporaryDirectory() as folder:
        raw, where = read_json(args.config), str(args.config)
        path, config = write_random_model(Path(folder), raw, args.bits, where)
        lm = load_lm(path, config)
    print("conversations  one by one    together     ratio   (median ms of a frame of all)")
    for count in args.counts:
        alone, together = map(statistics.median, rounds(lm, count, args.frames))
        print(f"{count:13} {alone:11.1f} {together:11.1f} {alone / together:9.2f}")


if __name__ == "__main__":
    main()
