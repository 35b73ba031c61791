"""How long a conversation with a persona and a voice takes to its first frame, three ways.

    python -m benchmarks.prompt [--dim 512] [--layers 8]

A model of PersonaPlex' streams, delays and depth transformer with random weights: the prompt by
steps, in one pass, and from the states that are kept, on disk and in memory; then a reset.
"""

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlx.core as mx
import numpy as np

from moshi_mlx import Session
from moshi_mlx.checkpoint import open_checkpoint
from moshi_mlx.families.persona import PersonaPlex
from moshi_mlx.generate import Generator
from moshi_mlx.published import PRESETS, read_config
from moshi_mlx.trees import named_parameters
from moshi_mlx.voices import Voice
from moshi_mlx.weights import skeleton

PERSONA = "You work for a bakery and your name is Ada. You are friendly, and sell bread and cake."
VOICE_FRAMES = 50


def model(dim: int, layers: int) -> PersonaPlex:
    """With nano's codec and tokenizer."""
    nano = open_checkpoint("nano")
    raw = {
        **PRESETS["personaplex"], "model_type": "personaplex", "dim": dim, "num_layers": layers,
        "num_heads": dim // 64, "card": 512, "text_card": 512, "depformer_dim": dim // 2,
        "depformer_num_heads": dim // 64, "depformer_dim_feedforward": round(dim / 2 * 4.125),
    }  # fmt: skip
    config = read_config(raw)
    lm = skeleton(config.lm.generating(8))
    mx.eval(named_parameters(lm))
    checkpoint = replace(nano, config=config)
    return PersonaPlex(checkpoint, lm, checkpoint.choose_codec("mlx", 8))


def by_steps(moshi: PersonaPlex, voice: Voice) -> None:
    """Every frame of the prompt through the step of a conversation, with all of it forced."""
    prompt = moshi.prompt(PERSONA, voice)
    assert prompt is not None
    frames, delays = prompt.frames[0], moshi.lm.config.delays[1:9]

    def run() -> None:
        generator = Generator(moshi.lm, text=moshi.text_sampling, audio=moshi.audio_sampling)
        for t in range(frames.shape[1] - 1):
            said = [frames[1 + k, t + 1 - delay] for k, delay in enumerate(delays)]
            generator.step(frames[None, 9:, t], text=frames[0, t + 1], audio=said)
        generator.step(prompt.after)

    moshi.worker.call(run)


def main() -> None:
    """A line a way."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    args = parser.parse_args()
    moshi = model(args.dim, args.layers)
    codes = np.random.default_rng(0).integers(0, 512, (8, VOICE_FRAMES), dtype=np.int32)
    voice = Voice("random", codes=codes)
    given: dict[str, Any] = {"persona": PERSONA, "voice": voice}
    silence = np.zeros(moshi.frame_size, np.float32)
    prompt = moshi.prompt(**given)
    assert prompt is not None
    print(f"{prompt.frames.shape[2]} frames of prompt")

    def begin(**changes: Any) -> Session:
        session: Session = moshi.session(**given, **changes)
        session.step(silence)
        return session

    def say(what: str, work: Callable[[], object]) -> None:
        began = time.perf_counter()
        work()
        print(f"{what}: {time.perf_counter() - began:.3f} s")

    begin(prompt_cache=False)  # what is done once in a process
    with TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        say("by steps", lambda: by_steps(moshi, voice))
        say("in one pass", lambda: begin(prompt_cache=False))
        say("in one pass, kept", begin)
        session = begin()
        say("from memory", begin)
        moshi.__dict__.pop("_prompts")
        say("from disk", begin)
        say("a reset", session.reset)
        say("a step", lambda: session.step(silence))
        size = sum(path.stat().st_size for path in Path(folder).rglob("*.safetensors"))
        print(f"kept: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
