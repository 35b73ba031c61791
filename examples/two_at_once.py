"""Several conversations on one model, each from its own thread: what a server does.

python examples/two_at_once.py
"""

import threading

import numpy as np

import moshi_mlx
from moshi_local import Engine


def talk(engine: Engine, name: str, seed: int) -> None:
    """Says nothing for two seconds, and prints what the model says."""
    silence = np.zeros(engine.moshi.frame_size, np.float32)
    with engine.open(seed=seed) as conversation:
        for _ in range(25):
            frame, events = conversation.step(silence)
            if frame is not None and frame.text.strip():
                print(f"{name}: {frame.text}")
            for event in events:
                print(f"{name}: {type(event).__name__} at {event.time:.2f} s")


def main() -> None:
    with Engine(lambda: moshi_mlx.load("nano", verb="talk")) as engine:
        threads = [
            threading.Thread(target=talk, args=[engine, name, seed])
            for seed, name in enumerate(("first", "second"))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


if __name__ == "__main__":
    main()
