# mypy: ignore-errors
"""Times upstream's generator: run by `bench` with a Python that has upstream's moshi_mlx 0.3.0.

Arguments: a folder with config.json and model.safetensors, bits, frames, frames of warm-up.
Prints as JSON the seconds of each step, and what one more step asks of MLX. Imports nothing of
this project but `mlx_counters.py`, which stands alone: there, `moshi_mlx` is upstream's.
"""

import importlib.util
import json
import sys
import time
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np


def main() -> None:
    from moshi_mlx import models, utils  # upstream's: importing this file needs only MLX

    folder, bits, frames, warm_up = Path(sys.argv[1]), *map(int, sys.argv[2:5])
    raw = json.loads((folder / "config.json").read_text())
    model = models.Lm(models.LmConfig.from_config_dict(raw))
    model.set_dtype(mx.bfloat16)
    if bits < 16:
        nn.quantize(model, bits=bits, group_size={4: 32, 8: 64}[bits])
    model.load_weights(str(folder / "model.safetensors"), strict=True)
    mx.eval(model.parameters())
    generator = models.LmGen(
        model=model,
        max_steps=warm_up + frames + 5,
        text_sampler=utils.Sampler(temp=0.7, top_k=25),
        audio_sampler=utils.Sampler(temp=0.8, top_k=min(250, raw["card"] - 1)),
    )
    rng = np.random.default_rng(0)

    def step():
        codes = rng.integers(0, raw["card"], (1, raw["n_q"] - raw["dep_q"]), dtype=np.int32)
        began = time.perf_counter()
        text = generator.step(mx.array(codes))[0]
        audio = generator.last_audio_tokens()
        mx.eval(text, *([] if audio is None else [audio]))
        return time.perf_counter() - began

    times = [step() for _ in range(warm_up + frames)][warm_up:]
    with counters_module().counting() as counts:
        step()
    print(
        json.dumps(
            {
                "seconds": times,
                "host_syncs_per_frame": counts.syncs,
                "primitives_per_frame": counts.launches,
                "views_per_frame": counts.views,
            }
        )
    )


def counters_module():
    """`mlx_counters.py` beside this file, without the package around it."""
    spec = importlib.util.spec_from_file_location(
        "mlx_counters", Path(__file__).with_name("mlx_counters.py")
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["mlx_counters"] = module  # where dataclasses look
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
