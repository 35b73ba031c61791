"""Steps per second of a small transcriber beside those of the reference, on the CPU.

    python -m benchmarks.stt_speed --torch PYTHON

PYTHON has `torch` and `moshi` 0.2.13; without it only ours are measured. Each round is a separate
process with random weights in float32, codes in and tokens on the host, without the codec; rounds
of both alternate, with the same number of threads. Prints the median step of each round, and the
ratio of the best ones.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlx.core as mx
import numpy as np

from benchmarks.torch_step import WARM_UP
from moshi_mlx.families.hearing import Hearing
from moshi_mlx.generate import Generator
from moshi_mlx.lm import Lm
from moshi_mlx.published import read_config
from moshi_mlx.sampling import Sampling

SHAPE: dict[str, Any] = {
    "dim": 512, "num_heads": 8, "num_layers": 8, "hidden_scale": 4.125, "context": 375,
    "max_period": 100_000, "gating": "silu", "norm": "rms_norm_f32", "causal": True,
    "positional_embedding": "rope", "layer_scale": None, "text_card": 4000, "card": 2048,
    "existing_text_padding_id": 3, "n_q": 32, "dep_q": 0, "delays": [0] * 33, "conditioners": {},
    "cross_attention": False, "depformer_dim": 64, "depformer_num_heads": 2,
    "depformer_num_layers": 2, "depformer_dim_feedforward": None, "depformer_multi_linear": True,
    "depformer_pos_emb": "none", "depformer_weights_per_step": True,
}  # fmt: skip
OURS = "--ours"


def our_steps(steps: int, config: Path) -> list[float]:
    """Seconds of each step after a warm-up."""
    mx.random.seed(0)
    lm = Lm(read_config(json.loads(config.read_text(encoding="utf-8"))).lm)
    mx.eval(lm.parameters())
    greedy = Sampling(temperature=0)
    hearing = Hearing(Generator(lm, text=greedy, audio=greedy))
    shape = (WARM_UP + steps, 1, SHAPE["n_q"])
    codes = np.random.default_rng(0).integers(0, SHAPE["card"], shape, dtype=np.int32)
    seconds = []
    for heard in codes:
        began = time.perf_counter()
        hearing.hear(heard)
        seconds.append(time.perf_counter() - began)
    return seconds[WARM_UP:]


def a_round(command: list[str], threads: int) -> float:
    """The median step of a process, in seconds."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    env = os.environ | dict.fromkeys(names, str(threads))
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command[:2])}: {done.stderr.strip().splitlines()[-1]}")
    return statistics.median(json.loads(done.stdout.splitlines()[-1])["seconds"])


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--torch", metavar="PYTHON")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(OURS, type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.ours is not None:
        print(json.dumps({"seconds": our_steps(args.steps, args.ours)}))
        return 0
    with TemporaryDirectory() as where:
        config = Path(where) / "config.json"
        config.write_text(json.dumps(SHAPE), encoding="utf-8")
        steps = str(args.steps)
        ours = [sys.executable, "-m", "benchmarks.stt_speed", "--steps", steps, OURS, str(config)]
        commands = {"ours": ours}
        if args.torch is not None:
            script = str(Path(__file__).with_name("torch_step.py"))
            commands["PyTorch"] = [args.torch, script, steps, str(config), "float32"]
        found: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(args.rounds):
            for name, command in commands.items():
                found[name].append(a_round(command, args.threads))
    for name, medians in found.items():
        shown = ", ".join(f"{1000 * median:.2f}" for median in medians)
        print(f"{name}: {1 / min(medians):.1f} steps a second; medians {shown} ms")
    if "PyTorch" in found:
        print(f"ratio {min(found['PyTorch']) / min(found['ours']):.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
