"""In an event loop: frames arrive from somewhere, the model works on its own thread.

python examples/event_loop.py
"""

import asyncio
from collections.abc import AsyncIterator

import numpy as np

import moshi_mlx
from moshi_mlx.arrays import Pcm


async def microphone(frame_size: int) -> AsyncIterator[Pcm]:
    """A second of noise, one frame every 80 ms."""
    rng = np.random.default_rng(0)
    for _ in range(12):
        await asyncio.sleep(0.08)
        yield rng.uniform(-0.1, 0.1, frame_size).astype(np.float32)


async def main() -> None:
    moshi = moshi_mlx.load("nano", verb="talk")
    with moshi.session(seed=0) as session:
        async for frame in session.stream(microphone(moshi.frame_size)):
            print(
                f"frame {frame.index}: {1000 * frame.timing.total:.1f} ms, {len(frame.pcm)} samples"
            )


if __name__ == "__main__":
    asyncio.run(main())
