"""The echo canceller: the echo goes, a voice at the same time stays, and who needs it."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile

from moshi_local.audio.echo import BLEND, EchoCanceller, LinearCanceller, needs_canceller
from moshi_local.events import Opened
from moshi_local.options import EchoMode
from moshi_mlx.hub import bundled_folder
from moshi_mlx.testing import FRAME_SIZE, SAMPLE_RATE
from tests.fakes.card import SimulatedCard, pass_through, simulated

QUESTION = bundled_folder("nano") / "question.wav"


def speech(seconds: float, level: float = 0.1) -> np.ndarray:
    """Somebody who speaks without a pause (RMS `level`)."""
    pcm, _ = soundfile.read(QUESTION, dtype="float32")
    tenths = pcm[: len(pcm) // 2400 * 2400].reshape(-1, 2400)
    loud = tenths[np.abs(tenths).max(axis=1) > 0.05].ravel()
    return np.resize(loud, round(seconds * SAMPLE_RATE)) * np.float32(level / np.std(loud))


def room(played: np.ndarray, delay: float, gain: float) -> np.ndarray:
    """What comes back `delay` seconds later: a direct sound and two reflections."""
    out = np.zeros_like(played)
    for later, factor in ((0.0, 1.0), (0.011, -0.4), (0.037, 0.25)):
        n = round((delay + later) * SAMPLE_RATE)
        out[n:] += np.float32(gain * factor) * played[: len(played) - n]
    return out


def run(canceller: EchoCanceller, heard: np.ndarray, played: np.ndarray) -> np.ndarray:
    out = [
        canceller.process(heard[at : at + FRAME_SIZE], played[at : at + FRAME_SIZE])
        for at in range(0, len(heard) - FRAME_SIZE + 1, FRAME_SIZE)
    ]
    return np.concatenate(out)


def decibels(pcm: np.ndarray) -> float:
    return float(20 * np.log10(np.std(pcm) + 1e-9))


@pytest.mark.parametrize(("delay", "gain"), [(0.06, 0.3), (0.06, 1.0), (0.35, 0.3)])
def test_an_echo_goes_and_a_voice_stays(delay: float, gain: float) -> None:
    """8 s of the speaker alone, then 4 s of both. `python -m benchmarks.echo` has the figures."""
    played = speech(12.0)
    near = np.zeros_like(played)
    near[8 * SAMPLE_RATE :] = speech(4.0, 0.06)[::-1]
    noise = 1e-4 * np.random.default_rng(0).standard_normal(len(near)).astype(np.float32)
    heard = room(played, delay, gain) + near + noise
    alone, both = slice(4 * SAMPLE_RATE, 8 * SAMPLE_RATE), slice(9 * SAMPLE_RATE, 11 * SAMPLE_RATE)
    likeness = []
    for blend in (BLEND, 0.0):
        canceller = EchoCanceller(SAMPLE_RATE, FRAME_SIZE, blend=blend)
        clean = run(canceller, heard, played)
        assert decibels(heard[alone]) - decibels(clean[alone]) > 25
        voice = np.roll(clean, -round(canceller.delay * SAMPLE_RATE))
        likeness.append(np.corrcoef(voice[both], near[both])[0, 1])
    assert likeness[0] > 0.8
    assert likeness[0] > likeness[1] + 0.02, "AEC3 alone takes more of the voice"


@pytest.mark.parametrize("suppress", [False, True])
@pytest.mark.parametrize("cancel", [False, True])
def test_a_voice_alone_passes_later_by_what_is_said(cancel: bool, suppress: bool) -> None:
    near = speech(4.0)
    canceller = EchoCanceller(
        SAMPLE_RATE, FRAME_SIZE, cancel=cancel, noise_suppression=suppress, blend=0.0
    )
    clean = run(canceller, near, np.zeros_like(near))
    size = 2 * len(near)
    product = np.fft.rfft(clean, size) * np.fft.rfft(near, size).conj()
    found = int(np.argmax(np.fft.irfft(product)[:2400]))
    assert found == pytest.approx(canceller.delay * SAMPLE_RATE, abs=10)


def test_noise_is_suppressed_when_wanted() -> None:
    noise = 0.01 * np.random.default_rng(0).standard_normal(6 * SAMPLE_RATE).astype(np.float32)
    quiet = np.zeros_like(noise)
    settled = slice(4 * SAMPLE_RATE, None)
    levels = [
        decibels(
            run(EchoCanceller(SAMPLE_RATE, FRAME_SIZE, noise_suppression=on), noise, quiet)[settled]
        )
        for on in (False, True)
    ]
    assert levels[0] - levels[1] > 4


def test_the_linear_filter_finds_a_path_and_keeps_it_while_another_speaks() -> None:
    played = speech(10.0)
    near = np.zeros_like(played)
    near[6 * SAMPLE_RATE : 8 * SAMPLE_RATE] = speech(2.0, 0.06)[::-1]
    heard = room(played, 0.05, 0.5) + near
    linear, block = LinearCanceller(480, 15), 480
    left = np.concatenate(
        [
            linear.step(heard[at : at + block], played[at : at + block])
            for at in range(0, len(heard), block)
        ]
    )
    rest = left - near

    def reduction(start: float, end: float) -> float:
        part = slice(round(start * SAMPLE_RATE), round(end * SAMPLE_RATE))
        return decibels((heard - near)[part]) - decibels(rest[part])

    assert reduction(4, 6) > 20
    assert reduction(6.5, 8) > 15
    assert reduction(8.5, 10) > 20


def test_nothing_played_changes_nothing_and_teaches_nothing() -> None:
    linear, near = LinearCanceller(480, 15), speech(1.0)
    for at in range(0, len(near), 480):
        left = linear.step(near[at : at + 480], np.zeros(480, np.float32))
        np.testing.assert_array_equal(left, near[at : at + 480])


@pytest.mark.parametrize(
    ("mode", "name", "needed"),
    [("auto", "MacBook Pro Speakers", True), ("auto", "AirPods Pro", False),
     ("auto", "External Headphones", False), ("auto", "USB Headset", False),
     ("auto", "Galaxy Buds2", False), ("on", "AirPods", True), ("off", "Speakers", False)],
)  # fmt: skip
def test_headphones_need_no_canceller(mode: str, name: str, needed: bool) -> None:
    assert needs_canceller(EchoMode(mode), name) == needed


@pytest.mark.parametrize(
    ("one_clock", "ppm", "rate"),
    [(True, 0.0, 24_000), (True, 0.0, 48_000), (False, 0.0, 24_000), (False, 30.0, 48_000)],
)
def test_what_the_card_played_is_what_is_cancelled(one_clock: bool, ppm: float, rate: int) -> None:
    """Through the whole port: what is said comes back 60 ms after it was played."""
    said = speech(14.0)
    air = np.zeros(15 * SAMPLE_RATE, np.float32)
    grid = np.arange(len(air)) / SAMPLE_RATE

    def listen(times: np.ndarray, played: np.ndarray) -> None:
        at = (times[0] <= grid) & (grid <= times[-1])
        air[at] = np.interp(grid[at], times, played)

    def sound(times: np.ndarray) -> np.ndarray:
        return 0.3 * np.interp(times - 0.06, grid, air)

    card = SimulatedCard(
        sound,
        listen,
        one_clock=one_clock,
        input_ppm=ppm,
        output_ppm=-ppm,
        input_rate=rate,
        output_rate=rate,
    )
    kept: list[np.ndarray] = []

    def answer(frame: np.ndarray) -> np.ndarray:
        kept.append(frame.copy())
        at = (len(kept) - 1) * FRAME_SIZE
        return said[at : at + FRAME_SIZE]

    with simulated(card, echo=EchoMode.auto) as port:
        pass_through(card, port, 12.0, answer=answer)
        (opened,) = [e for e in port.take_events(0.0) if isinstance(e, Opened)]
    assert opened.echo_cancelled
    heard = np.concatenate(kept)[6 * SAMPLE_RATE : 11 * SAMPLE_RATE]
    echo = sound(np.arange(6 * SAMPLE_RATE, 11 * SAMPLE_RATE) / SAMPLE_RATE)
    assert decibels(echo) - decibels(heard) > 25
