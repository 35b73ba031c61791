"""The delay pattern beside a table that is filled in by hand.

Position p of stream k holds frame p − 1 − delay of what is generated and frame p − delay of what is
given; positions up to the delay hold the initial token.
"""

import mlx.core as mx
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from moshi_mlx.config import UNGENERATED_TOKEN
from moshi_mlx.delays import TokenRing, delayed, undelayed
from moshi_mlx.generate import Generator
from moshi_mlx.sampling import Sampling
from tests.moshi_mlx.test_lm import load

patterns = st.lists(st.integers(0, 4), min_size=2, max_size=5)


@settings(deadline=None, max_examples=60)
@given(patterns, st.data())
def test_the_ring_is_the_table(delays: list[int], data: st.DataObject) -> None:
    """What each step reads, and which frame comes out, for any delays and any share of streams."""
    streams, steps, batch = len(delays), 14, 2
    said = data.draw(st.integers(1, streams), "streams generated")
    initial = [1000 + k for k in range(streams)]
    ring = TokenRing(delays, initial, batch)
    rng = np.random.default_rng(0)
    heard = rng.integers(0, 500, (steps, batch, streams - said), dtype=np.int32)
    spoken = rng.integers(500, 1000, (steps, batch, said), dtype=np.int32)
    table = np.empty((batch, streams, 2 * steps), np.int32)
    for k, delay in enumerate(delays):
        table[:, k, : 1 + delay] = initial[k]
        for s in range(steps):
            if k < said and s + 1 > delay:
                table[:, k, s + 1] = spoken[s, :, k]
            if k >= said and s > 0:  # position 0 of the table is before the first frame
                table[:, k, s + delay] = heard[s, :, k - said]
    longest = max(delays)
    for s in range(steps):
        ring.hear(heard[s])
        np.testing.assert_array_equal(ring.read(), table[:, :, s])
        frame = ring.say(spoken[s])
        assert (frame is None) == (s < longest)
        if frame is not None:
            # The newest frame of which every stream is out: its text was written first.
            first = s + 1 - longest
            wanted = [table[:, k, first + delays[k]] for k in range(said)]
            np.testing.assert_array_equal(frame, np.stack(wanted, axis=1))


@settings(deadline=None, max_examples=60)
@given(patterns, st.integers(1, 9))
def test_a_block_is_shifted_there_and_back(delays: list[int], length: int) -> None:
    streams, batch = len(delays), 2
    initial = [1000 + k for k in range(streams)]
    codes = np.arange(batch * streams * length).reshape(batch, streams, length).astype(np.int32)
    table = np.empty((batch, streams, 1 + length), np.int32)
    for k, delay in enumerate(delays):
        for p in range(1 + length):
            table[:, k, p] = initial[k] if p <= delay else codes[:, k, p - 1 - delay]
    sequence = delayed(mx.array(codes), delays, initial)
    np.testing.assert_array_equal(sequence, table)
    back, there = undelayed(sequence[:, :, 1:, None].astype(mx.float32), delays)
    for k, delay in enumerate(delays):
        kept = max(0, length - delay)
        assert np.array(there)[0, k].tolist() == [True] * kept + [False] * (length - kept)
        np.testing.assert_array_equal(back[:, k, :kept, 0], codes[:, k, :kept])
        assert not np.array(back[:, k, kept:]).any()


def test_a_conversation_gives_back_the_frames_that_it_was_made_to_say() -> None:
    """Forced position by position as the delays have it; whole frames come out, none is lost."""
    lm = load("small-long-delays")
    delays = np.array(lm.config.delays)
    steps = int(delays.max()) + 8
    generator = Generator(lm, text=Sampling(temperature=0), audio=Sampling(temperature=0))
    own = delays[: 1 + generator.generated]
    assert own.max() > 1
    rng = np.random.default_rng(3)
    frames = rng.integers(1, 20, (steps, len(own)))
    out = []
    for s in range(steps):
        # Position s + 1 holds, of stream k, frame s − delay: what lies before is never read.
        tokens = [frames[s - d, k] if s >= d else 0 for k, d in enumerate(own)]
        step = generator.step(np.zeros((1, generator.given)), text=tokens[0], audio=tokens[1:])
        out.append(step.frame)
    assert [frame is None for frame in out] == [s < delays.max() for s in range(steps)]
    found = np.concatenate([frame for frame in out if frame is not None])
    assert (found != UNGENERATED_TOKEN).all()
    np.testing.assert_array_equal(found, frames[: steps - delays.max()])
