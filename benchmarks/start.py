"""Seconds from the command to the first sound, part by part.

    python -m benchmarks.start [--model nano] [--runs 5] [--cold]

Each run is a new process that does what `moshi-local run` does, on silence. `--cold` gives each an
empty folder for the kernels that MLX compiles, as after a restart of the machine; files stay in the
system's cache.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time

import numpy as np

PARTS = ("library imported", "model loaded", "warmed up", "first frame out")


def start(model: str) -> list[float]:
    """The moments at which the parts were done, on the clock of `time.time` (seconds)."""
    from rich.console import Console

    from moshi_local.assembly import load_model, open_session
    from moshi_local.options import ModelSource, SamplingFlags
    from moshi_local.report import warm_up

    moments = [time.time()]
    moshi, _ = load_model(ModelSource(model), Console(stderr=True))
    moments.append(time.time())
    with open_session(moshi, 0, SamplingFlags(), None) as session:
        warm_up(session, moshi.frame_size)
        moments.append(time.time())
        session.step(np.zeros(moshi.frame_size))
        moments.append(time.time())
    return moments


def once(model: str, environment: dict[str, str]) -> list[float]:
    """Seconds since the start of a new process, at the end of each part."""
    command = [sys.executable, "-m", "benchmarks.start", "--serve", "--model", model]
    began = time.time()
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return [moment - began for moment in json.loads(done.stdout)]


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the start, part by part.")
    parser.add_argument("--model", default="nano")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--cold", action="store_true", help="no kernels compiled before")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        print(json.dumps(start(args.model)))
        return
    rows = []
    for _ in range(args.runs):
        with tempfile.TemporaryDirectory() as folder:
            cold = {"TMPDIR": folder} if args.cold else {}
            rows.append(once(args.model, os.environ | cold))
    print(f"{'seconds from the start':24}{'median':>8}{'max':>8}")
    for part, times in zip(PARTS, np.array(rows).T, strict=True):
        print(f"{part:24}{np.median(times):8.2f}{times.max():8.2f}")


if __name__ == "__main__":
    main()
