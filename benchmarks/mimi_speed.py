"""Milliseconds per frame of encode and decode at the published size, ours beside others.

    python -m benchmarks.mimi_speed [--frames 100] [--upstream PYTHON]

All see the same random Mimi and the same frames, in turns of ten, so that what else the machine
does hits all alike. PYTHON: an environment with upstream's moshi_mlx 0.3.0.
"""

import argparse
import importlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

FRAME_SIZE, CODEBOOKS, TURN = 1920, 8, 10
# encode and decode of one frame, each blocking until its result is there
Steps = tuple[Callable[[Any], Any], Callable[[Any], Any]]


def ours(path: Path) -> Steps:
    from moshi_mlx.codec import MlxCodec
    from moshi_mlx.weights_mimi import load_mimi

    codec = MlxCodec(load_mimi(path, CODEBOOKS))
    state = codec.init_state()
    return (lambda x: codec.encode_step(x, state)), (lambda c: codec.decode_step(c, state))


def rust(path: Path) -> Steps:
    from moshi_mlx.codec import RustCodec

    codec = RustCodec(path, CODEBOOKS)
    state = codec.init_state()
    return (lambda x: codec.encode_step(x, state)), (lambda c: codec.decode_step(c, state))


def upstream(path: Path) -> Steps:
    import mlx.core as mx

    theirs = importlib.import_module("moshi_mlx.models.mimi")  # in upstream's moshi_mlx, not ours
    mimi = theirs.Mimi(theirs.mimi_202407(CODEBOOKS))
    mimi.load_pytorch_weights(str(path), strict=False)  # it doesn't drop the extra codebooks

    def encode(x: Any) -> Any:
        return np.array(mimi.encode_step(mx.array(x)[None, None]))[0]

    def decode(codes: Any) -> Any:
        return np.array(mimi.decode_step(mx.array(codes)[None]))[0, 0]

    return encode, decode


def turns(steps: Steps, frames: int) -> Iterator[dict[str, list[float]]]:
    """Milliseconds of `TURN` frames at a time."""
    rng = np.random.default_rng(0)
    for start in range(0, frames, TURN):
        took: dict[str, list[float]] = {"encode": [], "decode": []}
        for _ in range(min(TURN, frames - start)):
            pcm = rng.uniform(-0.5, 0.5, FRAME_SIZE).astype(np.float32)
            began = time.perf_counter()
            codes = steps[0](pcm)
            encoded = time.perf_counter()
            steps[1](codes)
            took["encode"].append(1e3 * (encoded - began))
            took["decode"].append(1e3 * (time.perf_counter() - encoded))
        yield took


def elsewhere(python: str, path: Path, frames: int) -> Iterator[dict[str, list[float]]]:
    """`turns` of upstream's Mimi in another environment: a line of JSON after each line given."""
    from moshi_mlx.blas import with_openblas

    command = [python, "-P", __file__, "--frames", str(frames), "--serve", str(path)]
    environment = with_openblas({k: v for k, v in os.environ.items() if k != "PYTHONPATH"})
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        for _ in range(0, frames, TURN):
            child.stdin.write("\n")
            child.stdin.flush()
            yield json.loads(child.stdout.readline())


def main() -> None:
    parser = argparse.ArgumentParser(description="Time one frame of Mimi, ours beside others.")
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument("--upstream", metavar="PYTHON", help="has moshi_mlx 0.3.0")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        for took in turns(upstream(args.serve), args.frames):
            sys.stdin.readline()
            print(json.dumps(took), flush=True)
        return

    from tests.fixtures import make_mimi

    with tempfile.TemporaryDirectory() as folder:
        path = make_mimi.write(Path(folder) / "mimi.safetensors")
        runs = {"ours": turns(ours(path), args.frames)}
        if importlib.util.find_spec("rustymimi"):
            runs["rustymimi"] = turns(rust(path), args.frames)
        if args.upstream:
            runs["upstream"] = elsewhere(args.upstream, path, args.frames)
        results: dict[str, dict[str, list[float]]] = {
            name: {"encode": [], "decode": []} for name in runs
        }
        for rows in zip(*runs.values(), strict=True):
            for name, took in zip(runs, rows, strict=True):
                for direction, times in took.items():
                    results[name][direction] += times
    print(f"{'ms per frame':14}{'p50':>10}{'p95':>10}{'p50 / ours':>12}")
    for name, directions in results.items():
        for direction, times in directions.items():
            p50, p95 = np.percentile(times, [50, 95])
            ratio = p50 / np.median(results["ours"][direction])
            print(f"{name:10}{direction:8}{p50:8.1f}{p95:10.1f}{ratio:10.1f}")


if __name__ == "__main__":
    main()
