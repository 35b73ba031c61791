"""The speaker alone: all that it is given is played, in order, whatever the device does."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from moshi_local.audio import playback as playback_module
from moshi_local.audio.playback import FIRST_SECONDS, Playback
from moshi_mlx import AudioDeviceError
from moshi_mlx.testing import SAMPLE_RATE
from tests.fakes.card import BLOCK, HandCard

CUSHION = round(FIRST_SECONDS * SAMPLE_RATE)


@pytest.fixture
def card() -> HandCard:
    return HandCard()


@pytest.fixture
def playback(card: HandCard) -> Iterator[Playback]:
    with Playback(card, sample_rate=SAMPLE_RATE) as opened:
        yield opened


def ramp(start: int, n: int) -> np.ndarray:
    return np.arange(start + 1, start + n + 1, dtype=np.float32) / 2**20


def call(card: HandCard, blocks: int = 1) -> np.ndarray:
    return card.call(np.zeros(blocks * BLOCK, np.float32))


def test_sound_begins_when_there_is_a_cushion_and_none_is_lost(
    card: HandCard, playback: Playback
) -> None:
    """After a gap there must be twice as much."""
    playback.write(ramp(0, CUSHION - BLOCK))
    assert not call(card).any()
    assert playback.first_sound_at is None
    playback.write(ramp(CUSHION - BLOCK, BLOCK))
    blocks = CUSHION // BLOCK
    np.testing.assert_array_equal(call(card, blocks), ramp(0, CUSHION))
    assert playback.first_sound_at is not None
    assert not call(card, 2).any()
    assert playback.statistics()["gaps"] == 1
    playback.write(ramp(CUSHION, CUSHION))
    assert not call(card).any()
    playback.write(ramp(2 * CUSHION, CUSHION))
    np.testing.assert_array_equal(call(card, 2 * blocks), ramp(CUSHION, 2 * CUSHION))


def test_a_pause_that_is_known_is_no_gap(card: HandCard, playback: Playback) -> None:
    playback.write(ramp(0, 100))
    assert not call(card).any()
    playback.settle()
    np.testing.assert_array_equal(call(card)[:100], ramp(0, 100))
    assert not call(card, 5).any()
    assert playback.statistics()["gaps"] == 0


def run(work: Callable[[], None], card: HandCard) -> list[np.ndarray]:
    """What the card plays until `work` has ended on another thread; it calls all the time."""
    errors: list[BaseException] = []

    def body() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    played = []
    while thread.is_alive():
        played.append(call(card, 50))
    thread.join()
    if errors:
        raise errors[0]
    return played


def test_more_than_may_wait_waits_to_be_written(card: HandCard, playback: Playback) -> None:
    sound = ramp(0, 60 * SAMPLE_RATE)

    def work() -> None:
        playback.write(sound)
        playback.finish()

    played = np.concatenate(run(work, card))
    np.testing.assert_array_equal(played[np.flatnonzero(played)], sound)
    assert playback.statistics()["xruns"] == 0


def test_a_device_that_is_lost_comes_back_at_another_rate(
    card: HandCard, playback: Playback, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits is played on, in time."""
    monkeypatch.setattr(playback_module, "REOPEN_SECONDS", 0.0)
    tone = np.sin(np.arange(SAMPLE_RATE) / 20).astype(np.float32)
    playback.write(tone)
    first = call(card, 10)
    card.ended, card.refusals = True, 2
    card.info = HandCard(output_rate=48_000).info
    playback.write(tone[:0])
    playback.settle()
    rest = call(card, 100)
    heard = rest[: 2 * (SAMPLE_RATE - len(first)) - 200]
    wanted = np.sin((len(first) + np.arange(len(heard)) / 2) / 20)
    np.testing.assert_allclose(heard[200:], wanted[200:], atol=0.01)
    assert playback.statistics()["restarts"] == 1
    assert card.opens == 4


def test_a_device_that_never_plays_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    card, now = HandCard(), [0.0]

    def clock() -> float:
        now[0] += 1.0
        return now[0]

    monkeypatch.setattr(playback_module, "_POLL_SECONDS", 0.0)
    with Playback(card, sample_rate=SAMPLE_RATE, clock=clock) as playback:
        playback.write(ramp(0, SAMPLE_RATE))
        with pytest.raises(AudioDeviceError, match="was opened 5 times and never played"):
            playback.finish()
    assert card.opens == 5
