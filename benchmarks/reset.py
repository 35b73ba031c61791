"""The first frame after a reset, and of a new conversation, against later frames.

    python -m benchmarks.reset [--model nano] [--rounds 20] [--compile]

Each round resets a generator, times its first frame and ten later ones, then does the same with a
new generator on the same model. Prints medians in milliseconds and their ratio to a later frame.
"""

import argparse
import time

import numpy as np

import moshi_mlx
from moshi_mlx.generate import Generator

LATER = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="nano")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    moshi = moshi_mlx.load(args.model, verb="talk", codec="mlx")

    def make() -> Generator:
        return Generator(
            moshi.lm,
            text=moshi.text_sampling,
            audio=moshi.audio_sampling,
            generated=moshi.generated_streams(moshi.lm.config),
            compiled=args.compile,
        )

    generator = make()
    rng = np.random.default_rng(0)

    def frame(generator: Generator) -> float:
        codes = rng.integers(0, moshi.lm.config.card, (1, generator.given))
        began = time.perf_counter()
        generator.step(codes)
        return 1000 * (time.perf_counter() - began)

    for _ in range(30):
        frame(generator)
    times: dict[str, list[float]] = {"after a reset": [], "of a new one": [], "later": []}
    for _ in range(args.rounds):
        generator.reset()
        times["after a reset"].append(frame(generator))
        times["later"] += [frame(generator) for _ in range(LATER)]
        fresh = make()
        times["of a new one"].append(frame(fresh))
        times["later"] += [frame(fresh) for _ in range(LATER)]
    later = float(np.median(times["later"]))
    for name, found in times.items():
        median = float(np.median(found))
        print(f"{name:14} {median:7.2f} ms  {median / later:.2f} of a later frame")


if __name__ == "__main__":
    main()
