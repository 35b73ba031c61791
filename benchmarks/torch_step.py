"""Steps of Kyutai's PyTorch `moshi` with random weights, in bfloat16 unless another type is named.

Run by `benchmarks.gpu` and `benchmarks.stt_speed` as `torch_step.py STEPS [CONFIG [TYPE]]` in a
Python that may have it, so nothing of ours is imported here. Prints a line of JSON: the seconds of
each step after a warm-up (codes in, tokens on the host), the peak memory in bytes, the versions.
Exit code 3 if a package is missing.
"""

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path

WARM_UP = 20
MISSING = 3


def main() -> int:
    """Measure and print."""
    try:
        import torch
        from moshi.models import LMGen, loaders
    except ImportError as error:
        print(error, file=sys.stderr)
        return MISSING
    steps, *config = sys.argv[1:]
    fields = json.loads(Path(config[0]).read_text(encoding="utf-8")) if config else None
    on_gpu = torch.cuda.is_available()
    torch.manual_seed(0)
    dtype = getattr(torch, config[1]) if config[1:] else torch.bfloat16
    lm = loaders.get_moshi_lm(None, fields, device="cuda" if on_gpu else "cpu", dtype=dtype)
    generator = LMGen(lm)
    given = lm.n_q - lm.dep_q
    codes = torch.randint(lm.card, (WARM_UP + int(steps), 1, given, 1), device=lm.device)
    seconds = []
    with torch.no_grad(), generator.streaming(1):
        for heard in codes:
            began = time.perf_counter()
            tokens = generator.step(heard)
            if tokens is not None:
                tokens.tolist()
            seconds.append(time.perf_counter() - began)
    found = {
        "seconds": seconds[WARM_UP:],
        "peak": torch.cuda.max_memory_allocated() if on_gpu else 0,
        "torch": torch.__version__,
        "moshi": version("moshi"),
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
    }
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
