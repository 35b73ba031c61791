"""Several conversations on one model, each from a thread of its caller: what a server does.

python examples/two_at_once.py question.wav
"""

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import soundfile

import moshi_mlx
from moshi_local import Engine
from moshi_mlx.arrays import Pcm


def talk(engine: Engine, name: str, frames: list[Pcm]) -> None:
    """Plays the frames to a new conversation, and prints the words of its answer."""
    with engine.open(seed=0) as conversation:
        for pcm in frames:
            frame, _ = conversation.step(pcm)
            for word in () if frame is None else frame.words:
                print(f"{name}: {word.text}")


def main(source: str) -> None:
    with Engine(lambda: moshi_mlx.load("nano", verb="talk")) as engine:
        size = engine.moshi.frame_size
        question, _ = soundfile.read(source, dtype="float32")  # mono, at the model's rate
        frames = [question[start : start + size] for start in range(0, len(question) - size, size)]
        silence = [np.zeros(size, np.float32)] * len(frames)
        with ThreadPoolExecutor() as pool:
            sides = (("asked", frames), ("left alone", silence))
            talks = [pool.submit(talk, engine, name, heard) for name, heard in sides]
            for each in talks:
                each.result()  # raises what its thread raised


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(*sys.argv[1:])
