"""What was played stays beside what is heard when sound is dropped, or comes late."""

import numpy as np
import pytest

from moshi_local.audio.capture import Reference

RATE, FRAME = 24_000, 1920


def played(start: int, samples: int) -> np.ndarray:
    """Samples that tell when they were played; zero is none of them."""
    return np.arange(1 + start, 1 + start + samples, dtype=np.float32)


def on_one_clock() -> Reference:
    return Reference(sample_rate=RATE, device_rate=RATE, frame_size=FRAME, one_clock=True)


def take(reference: Reference) -> np.ndarray:
    frame = np.full(FRAME, np.nan, np.float32)
    reference.take(frame, 0.0, 0.0)
    return frame


@pytest.mark.parametrize("seconds", [0.08, 0.05, 0.16, 1001 / RATE])
def test_what_was_dropped_of_the_microphone_is_left_out(seconds: float) -> None:
    reference = on_one_clock()
    reference.ring.put(played(0, 5 * FRAME))
    np.testing.assert_array_equal(take(reference), played(0, FRAME))
    reference.skip(seconds)
    start = FRAME + round(seconds * RATE)
    np.testing.assert_array_equal(take(reference), played(start, FRAME))
    np.testing.assert_array_equal(take(reference), played(start + FRAME, FRAME))


def test_what_comes_too_late_is_left_out_and_the_rest_keeps_its_place() -> None:
    reference = on_one_clock()
    reference.ring.put(played(0, FRAME - 500))
    frame = take(reference)
    np.testing.assert_array_equal(frame[: FRAME - 500], played(0, FRAME - 500))
    assert not frame[FRAME - 500 :].any()
    reference.ring.put(played(FRAME - 500, 500 + FRAME))
    np.testing.assert_array_equal(take(reference), played(FRAME, FRAME))
