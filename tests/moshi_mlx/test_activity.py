"""When a side of a conversation sounds: the frames and the loudness that count."""

import numpy as np
import pytest

from moshi_mlx import SpeechEnded, SpeechStarted
from moshi_mlx.activity import Activity

LOUD, QUIET = np.full(1920, 0.006, np.float32), np.full(1920, 0.004, np.float32)


@pytest.mark.parametrize(("pause", "ends"), [(5, False), (6, True)])
def test_a_pause_of_six_frames_ends_what_was_said(pause: int, ends: bool) -> None:
    activity = Activity("user", 12.5)
    frames = [QUIET, LOUD, LOUD, *[QUIET] * pause, LOUD]
    events = [event for i, pcm in enumerate(frames) for event in activity.step(i, pcm)]
    pauses = [SpeechEnded(3 / 12.5, "user"), SpeechStarted((3 + pause) / 12.5, "user")]
    assert events == [SpeechStarted(1 / 12.5, "user"), *(pauses if ends else [])]
    assert activity.active


def test_loudness_is_what_counts_and_not_its_sign() -> None:
    activity = Activity("moshi", 12.5)
    assert activity.step(0, np.full(1920, 0.005, np.float32)) == [], "as loud as the limit"
    assert activity.step(1, -LOUD) == [SpeechStarted(0.08, "moshi")]
