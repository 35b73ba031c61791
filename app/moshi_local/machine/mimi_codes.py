"""The codes that Mimi gives for the bundled question, with and without TF32.

MLX reads MLX_ENABLE_TF32 once per process, so each way is a process: this module, run with a
model's name, prints the codes as JSON. Knows nothing of sessions.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import mlx.core as mx
import numpy as np
import soundfile

from moshi_mlx import MoshiError, catalog
from moshi_mlx.arrays import Codes, Pcm
from moshi_mlx.checkpoint import open_checkpoint
from moshi_mlx.hub import bundled_folder

__all__ = ["bundled_question", "tf32_agreement"]

ENOUGH = 0.98
"""The share of codes that should be the same."""


def bundled_question() -> Pcm:
    """A spoken question, float32 [samples], 24 kHz."""
    folder = bundled_folder(catalog.default_model())
    pcm: Pcm = soundfile.read(folder / "question.wav", dtype="float32")[0]
    return pcm


def tf32_agreement(name: str) -> dict[str, Any]:
    """The share of a model's codes that are the same whether MLX may use TF32 or not.

    Without TF32 it multiplies in float32. Only an M5's GPU, or NVIDIA's, has TF32; elsewhere all
    codes are the same.

    Args:
        name: a model that is on this machine.

    Raises:
        MoshiError: the codes cannot be computed.
    """
    exact, fast = (_codes_with(name, tf32=tf32) for tf32 in (False, True))
    equal = float(np.mean(exact == fast))
    return {"codes": exact.size, "equal": round(equal, 5), "enough": equal >= ENOUGH}


def _codes_with(name: str, *, tf32: bool) -> Codes:
    command = [sys.executable, "-P", "-m", __name__, name]
    env = os.environ | {"MLX_ENABLE_TF32": str(int(tf32))}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise MoshiError(f"Mimi's codes could not be computed: {last}")
    return np.array(json.loads(done.stdout.splitlines()[-1]), np.int32)


def _codes(name: str) -> Codes:
    """int32 [8, frames]."""
    mimi = open_checkpoint(name, offline=True).load_mimi(8)
    pcm = bundled_question()
    whole = pcm[: len(pcm) // mimi.frame_size * mimi.frame_size]
    return np.array(mimi.encode(mx.array(whole)[None, None])[0])


if __name__ == "__main__":
    print(json.dumps(_codes(sys.argv[1]).tolist()))
