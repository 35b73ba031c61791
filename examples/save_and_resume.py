"""Save a conversation to a file, and resume it as if it had never stopped.

python examples/save_and_resume.py state.safetensors
"""

import sys

import numpy as np

import moshi_mlx


def main(path: str) -> None:
    moshi = moshi_mlx.load("nano", verb="talk", codec="mlx")
    rng = np.random.default_rng(0)
    sound = rng.uniform(-0.1, 0.1, (20, moshi.frame_size)).astype(np.float32)
    with moshi.session(seed=0) as session:
        for pcm in sound[:10]:
            session.step(pcm)
        session.save().save(path)
        expected = [session.step(pcm).pcm for pcm in sound[10:]]
    with moshi.session(state=path) as session:
        resumed = [session.step(pcm).pcm for pcm in sound[10:]]
    print("the same to the last bit:", np.array_equal(expected, resumed))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(*sys.argv[1:])
