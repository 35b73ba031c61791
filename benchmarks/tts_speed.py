"""Steps per second of a small random speech model, beside Kyutai's PyTorch `moshi` on this CPU.

    python -m benchmarks.tts_speed [--torch PYTHON] [--steps N] [--rounds N]

Both have the same shapes, float32, one thread and forced text; their rounds are interleaved, so
that what else the machine does meets both. Prints the median of each.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import mlx.core as mx
import numpy as np

from moshi_mlx.generate import Generator
from moshi_mlx.lm import Lm
from moshi_mlx.published import read_config
from moshi_mlx.sampling import Sampling

CONFIG = {
    "card": 2048, "n_q": 16, "dep_q": 16, "delays": [0, 0, *[2] * 15], "dim": 512,
    "text_card": 8000, "text_card_out": 5, "existing_text_padding_id": 3, "num_heads": 8,
    "num_layers": 8, "hidden_scale": 4.125, "causal": True, "layer_scale": None, "context": 500,
    "max_period": 10000, "gating": "silu", "norm": "rms_norm_f32", "positional_embedding": "rope",
    "depformer_dim": 256, "depformer_num_heads": 4, "depformer_num_layers": 4,
    "depformer_dim_feedforward": 768, "depformer_multi_linear": True,
    "depformer_pos_emb": "none", "depformer_weights_per_step": True,
    "depformer_low_rank_embeddings": 64, "demux_second_stream": True,
}  # fmt: skip
WARM_UP = 20


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--torch", metavar="PYTHON", help="one that has PyTorch and moshi")
    parser.add_argument("--steps", type=int, default=50, help="of a round")
    parser.add_argument("--rounds", type=int, default=4)
    args = parser.parse_args()
    mx.random.seed(0)
    lm = Lm(read_config(CONFIG).lm)
    mx.eval(lm.parameters())
    audio, text = Sampling(0.6, top_k=250), Sampling(0.6, top_k=25)
    generator = Generator(lm, text=text, audio=audio)
    nothing = np.zeros((1, 0), np.int32)

    def ours(steps: int) -> list[float]:
        seconds = []
        for _ in range(steps):
            began = time.perf_counter()
            generator.step(nothing, on_text=lambda tokens: np.full_like(tokens, 3))
            seconds.append(time.perf_counter() - began)
        return seconds

    with TemporaryDirectory() as folder:
        config = Path(folder) / "config.json"
        config.write_text(json.dumps(CONFIG), encoding="utf-8")
        other = None
        if args.torch:
            script = str(Path(__file__).with_name("torch_tts_step.py"))
            other = subprocess.Popen(
                [args.torch, script, str(config)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip

        def theirs(steps: int) -> list[float]:
            assert other is not None
            assert other.stdin is not None
            assert other.stdout is not None
            print(steps, file=other.stdin, flush=True)
            line = other.stdout.readline()
            if not line:
                raise SystemExit(f"{args.torch} cannot run the reference")
            found: list[float] = json.loads(line)
            return found

        sides = {"moshi_mlx": ours} | ({"PyTorch moshi": theirs} if other else {})
        found: dict[str, list[float]] = {name: [] for name in sides}
        for side in sides.values():
            side(WARM_UP)
        for _ in range(args.rounds):
            for name, side in sides.items():
                found[name] += side(args.steps)
        if other is not None and other.stdin is not None:
            other.stdin.close()
            other.wait()
    for name, seconds in found.items():
        middle = statistics.median(seconds)
        print(f"{name}: {1 / middle:.1f} steps per second ({1000 * middle:.1f} ms)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
