"""What keeping the first positions in sight (`Generator.keep`) does to a model, once they would go.

    python -m benchmarks.keeping [--frames 500]

The bundled model goes through its own conversation, token for token as it spoke it, with its first
4 to 40 positions kept. For the frames after three contexts, the mean Kullback-Leibler divergence
of the text's distribution from that of the model as it is: what is kept is attended right before
the other positions ("near", what we do), or at its own, which moves ever farther away ("own").
"""

from __future__ import annotations

import argparse

import mlx.core as mx
import numpy as np

import moshi_mlx
from moshi_local.machine.mimi_codes import bundled_question
from moshi_mlx import Moshi
from moshi_mlx.arrays import Codes, Tokens
from moshi_mlx.generate import Generator


def text_logits(
    moshi: Moshi, heard: list[Codes], said: list[Tokens] | None, keep: int, *, own: bool = False
) -> tuple[list[Tokens], np.ndarray]:
    """What is written, and the text logits [frames, text_card] that led to it.

    Args:
        moshi: the model.
        heard: codes of every frame.
        said: what it has to write; None: what it draws.
        keep: positions that are kept.
        own: at their own positions.
    """
    generator = Generator(moshi.lm, text=moshi.text_sampling, audio=moshi.audio_sampling)
    written, logits = [], []
    for index, codes in enumerate(heard):
        forced = None if said is None else said[index]
        step = (
            generator.step(codes.T)
            if forced is None
            else generator.step(codes.T, text=forced[:, 0], audio=forced[:, 1:])
        )
        written.append(step.written)
        logits.append(np.array(step.text_logits[0]))
        if index + 1 == keep:
            generator.keep(keep)
            for ring in generator._cache if own else ():
                ring.keep(keep, lambda keys, _: keys)
    return written, np.stack(logits)


def divergence(theirs: np.ndarray, ours: np.ndarray) -> float:
    """Mean over frames of the divergence of softmax(ours) from softmax(theirs), in nats."""
    p, q = (a - np.logaddexp.reduce(a, axis=-1, keepdims=True) for a in (theirs, ours))
    return float((np.exp(p) * (p - q)).sum(-1).mean())


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description="the first positions, kept in sight")
    parser.add_argument("--frames", type=int, default=500)
    options = parser.parse_args()
    mx.set_default_device(mx.cpu)
    moshi = moshi_mlx.load("nano", verb="talk", codec="mlx")
    question = bundled_question()
    sound = np.resize(question, (options.frames, moshi.frame_size))
    state = moshi.codec.init_state()
    heard = [moshi.codec.encode_step(pcm, state) for pcm in sound]
    said, plain = text_logits(moshi, heard, None, 0)
    late = slice(3 * (moshi.lm.config.transformer.context or 0), None)
    print("kept   near      own")
    for keep in (4, 10, 20, 40):
        found = [text_logits(moshi, heard, said, keep, own=own)[1] for own in (False, True)]
        print(f"{keep:4d}  ", *(f"{divergence(plain[late], each[late]):.1e}" for each in found))


if __name__ == "__main__":
    main()
