"""Steps of a speech model in Kyutai's PyTorch `moshi` with random weights in float32.

Run by `benchmarks.tts_speed` as `torch_tts_step.py CONFIG` in a Python that may have it, so nothing
of ours is imported here. For each line on its input, with a number of steps, makes as many and
prints the seconds of each as JSON. Exit code 3 if a package is missing.
"""

import json
import sys
import time
from pathlib import Path

MISSING = 3


def main() -> int:
    """Measure and print."""
    try:
        import torch
        from moshi.models import LMGen, loaders
    except ImportError as error:
        print(error, file=sys.stderr)
        return MISSING
    torch.set_num_threads(1)
    torch.manual_seed(0)
    fields = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    lm = loaders.get_moshi_lm(None, fields, device="cpu", dtype=torch.float32)

    def forced(tokens: object) -> None:
        """As the machine does."""
        tokens.fill_(3)  # type: ignore[attr-defined]

    generator = LMGen(
        lm, temp=0.6, temp_text=0.6, top_k=250, top_k_text=25, on_text_hook=forced, check=False
    )
    codes = torch.zeros(1, lm.n_q - lm.dep_q, 1, dtype=torch.long)
    with torch.no_grad(), generator.streaming(1):
        for line in sys.stdin:
            seconds = []
            for _ in range(int(line)):
                began = time.perf_counter()
                generator.step(codes)
                seconds.append(time.perf_counter() - began)
            print(json.dumps(seconds), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
