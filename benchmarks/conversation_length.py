"""Frame time and memory against the length of a conversation.

    python -m benchmarks.conversation_length times [--upstream PYTHON] [--picture FILE.svg]
    python -m benchmarks.conversation_length memory [--frames 45000]

`times` steps a model with random weights (`--config`) once through `--frames` frames, and compares
a conversation that is as long as the model's context with one that is at the end, in turns of ten
frames, so that what else the machine does hits both alike. Upstream's stops by itself after 4000
frames. `memory` lets nano hear its question again and again.
"""

import argparse
import gc
import itertools
import json
import tempfile
import time
from pathlib import Path

import mlx.core as mx
import numpy as np
import soundfile

import moshi_mlx
from moshi_local.machine.bench import (
    WARM_UP,
    compare,
    make_generator,
    step_times,
    upstream_steps,
    write_random_model,
)
from moshi_local.platform import peak_memory
from moshi_mlx.files import read_json
from moshi_mlx.weights import load_lm

SMALL = Path(__file__).parents[1] / "tests" / "fixtures" / "bench" / "small.json"
UPSTREAM_FRAMES = 4000  # upstream's program ends there, after 320 s
TURN, BIN = 10, 100


def times(args: argparse.Namespace) -> None:
    """`times` of the command line."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path, config = write_random_model(folder, read_json(args.config), args.bits)
        lm = load_lm(path, config)
        context = config.transformer.context or args.frames
        early, late = make_generator(lm), make_generator(lm)
        ours = step_times(late, args.frames)
        step_times(early, context)
        at_context, at_end = compare(
            lambda: step_times(early, TURN), lambda: step_times(late, TURN), args.turns // TURN
        )
        ratio = np.median(at_end) / np.median(at_context)
        print(
            f"frame {args.frames} / frame {context}: {ratio:.3f} "
            f"({1e3 * np.median(at_end):.2f} / {1e3 * np.median(at_context):.2f} ms, p50 of "
            f"{len(at_end)} interleaved)"
        )
        runs = {"moshi-mlx": ours[WARM_UP:]}
        if args.upstream:
            frames = min(args.frames, UPSTREAM_FRAMES) - WARM_UP
            found = upstream_steps(args.upstream, folder, args.bits, frames)
            runs["upstream 0.3.0"] = found["seconds"]
    for run, seconds in runs.items():
        bins = binned(seconds)
        print(f"{run}: p50 of the first {BIN} {bins[0]:.2f} ms, of the last {bins[-1]:.2f} ms")
    if args.picture:
        draw(runs, context, args.picture)


def binned(seconds: list[float]) -> np.ndarray:
    """The median of every `BIN` frames, in milliseconds."""
    whole = np.array(seconds[: len(seconds) // BIN * BIN])
    return 1e3 * np.median(whole.reshape(-1, BIN), axis=1)


def draw(runs: dict[str, list[float]], context: int, target: Path) -> None:
    """Frame time against the frame's number."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.subplots()
    colours = ("#3a62a0", "#a5782a")
    for (name, seconds), colour in zip(runs.items(), colours, strict=False):
        bins = binned(seconds)
        x = WARM_UP + BIN * (0.5 + np.arange(len(bins)))
        axes.plot(x, bins, color=colour, label=name)
        if len(seconds) < max(map(len, runs.values())):
            axes.plot(x[-1], bins[-1], "x", color=colour, markersize=8)
            axes.annotate(" stops", (x[-1], bins[-1]), color=colour, va="center")
    axes.axvline(context, color="#999", linewidth=0.8, linestyle=":")
    axes.annotate(f" context ({context})", (context, 0), color="#777", va="bottom")
    axes.set(xlabel="frame of the conversation (80 ms each)", ylabel="p50 of a step, ms")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "frames"}):
        figure.savefig(target, format="svg", metadata={"Date": None})


def memory(args: argparse.Namespace) -> None:
    """`memory` of the command line: a JSON line now and then, the growth at the end."""
    moshi = moshi_mlx.load("nano")
    pcm, _ = soundfile.read(moshi.files.mimi.parent / "question.wav", dtype="float32")
    size = moshi.frame_size
    frames = [pcm[i : i + size] for i in range(0, len(pcm) - size + 1, size)]
    rows = []
    with moshi.session() as session:
        began = time.perf_counter()
        for number, frame in enumerate(itertools.islice(itertools.cycle(frames), args.frames), 1):
            session.step(frame)
            if number % args.every == 0:
                gc.collect()
                took = time.perf_counter() - began
                row = {
                    "frame": number,
                    "peak_mb": peak_memory() / 1e6,
                    "mlx_mb": mx.get_active_memory() / 1e6,
                    "ms_per_frame": 1e3 * took / args.every,
                }
                print(json.dumps({k: round(v, 3) for k, v in row.items()}), flush=True)
                rows.append(row)
                began = time.perf_counter()
    first, last = rows[0], rows[-1]
    print(
        f"frames {first['frame']} to {last['frame']}: peak memory of the process "
        f"+{last['peak_mb'] - first['peak_mb']:.2f} MB, MLX's arrays "
        f"{last['mlx_mb'] - first['mlx_mb']:+.3f} MB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Time and memory against a conversation's length.")
    commands = parser.add_subparsers(required=True)
    some = commands.add_parser("times", help="frame time, also upstream's")
    some.add_argument("--config", type=Path, default=SMALL)
    some.add_argument("--bits", type=int, default=16)
    some.add_argument("--frames", type=int, default=10_000)
    some.add_argument("--turns", type=int, default=400, help="interleaved frames at the end")
    some.add_argument("--upstream", type=Path, metavar="PYTHON", help="has moshi_mlx 0.3.0")
    some.add_argument("--picture", type=Path)
    some.set_defaults(run=times)
    some = commands.add_parser("memory", help="memory of a session of nano")
    some.add_argument("--frames", type=int, default=45_000)
    some.add_argument("--every", type=int, default=1000)
    some.set_defaults(run=memory)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
