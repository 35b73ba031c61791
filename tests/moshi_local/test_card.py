"""LiveAudio through the real PortAudio on the virtual card: real delay, lost server, live echo."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from tests import rig
from tests.moshi_local.test_echo import QUESTION, decibels, speech

pytestmark = pytest.mark.device

ATTEMPTS = 6
"""A machine that tests share may be too busy for a while; the card's clock does not wait."""


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> Iterator[rig.VirtualCard]:
    """The virtual card; conftest.py skips these tests where it cannot run."""
    with rig.VirtualCard.start(tmp_path_factory.mktemp("rig") / "card") as running:
        yield running


@dataclass
class Program:
    """loopback.py while it runs, and its summary when it has ended."""

    summary: dict[str, Any] = field(default_factory=dict)


@contextmanager
def through(card: rig.VirtualCard, *options: str) -> Iterator[Program]:
    """Run loopback.py; the block begins when it listens, and after it the program ends."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.loopback", *options],
        env=card.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    rig.prefer(process)
    assert process.stderr is not None
    program = Program()
    try:
        for line in process.stderr:
            if line.startswith("listening"):
                break
        yield program
        out, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, errors
    program.summary = json.loads(out)


def delay_between(first: np.ndarray, second: np.ndarray) -> float:
    """By how much the second is later than the first, up to a second (seconds)."""
    size = 1 << (2 * len(first)).bit_length()
    product = np.fft.rfft(second, size) * np.fft.rfft(first, size).conj()
    return int(np.argmax(np.fft.irfft(product)[: rig.RATE])) / rig.RATE


@pytest.mark.parametrize(
    "options",
    ["", "--rate 16000", "--rate 44100", "--rate 48000", "--separate", "--separate --rate 48000"],
)
def test_the_reported_delay_is_the_real_one(card: rig.VirtualCard, options: str) -> None:
    for _ in range(ATTEMPTS):
        with card.recording() as both:
            with through(card, "--seconds", "4", *options.split()) as program:
                player = card.play(QUESTION)
            player.terminate()
            player.wait()
        found = program.summary
        real = delay_between(both.samples[:, 0], both.samples[:, 1])
        reported = 0.001 * found.get("delay_ms", 0.0)
        if not found["xruns"] and abs(reported - real) < 0.04:
            break
    assert np.abs(both.samples[:, 1]).max() > 0.1, "it was heard"
    assert reported == pytest.approx(real, abs=0.04)
    assert real < 0.4
    if "--rate" in options:
        assert found["output_rate"] == found["input_rate"] == int(options.split()[-1])


@pytest.mark.parametrize("options", ["", "--separate"])
def test_a_killed_sound_server_is_survived(card: rig.VirtualCard, options: str) -> None:
    for _ in range(ATTEMPTS):
        with through(card, "--seconds", "6", *options.split()) as program:
            time.sleep(1.5)
            card.kill()
            time.sleep(1.5)
            card.plug_in()
            back = time.monotonic()
        kinds = [kind for _, kind in program.summary["events"] if kind != "Lag"]
        reopened = [when for when, kind in program.summary["events"] if kind == "Opened"][1:]
        if reopened and reopened[-1] - back < 2.0:
            break
    assert kinds[:2] == ["Opened", "DeviceLost"], kinds
    assert reopened
    assert reopened[-1] - back < 2.0
    assert program.summary["frames"] > 12.5 * 3.0


def test_an_echo_in_the_room_is_cancelled(card: rig.VirtualCard, tmp_path: Path) -> None:
    """The microphone hears the speaker 60 ms later, at 0.3 of its level."""
    far, kept = tmp_path / "far.wav", tmp_path / "kept.wav"
    soundfile.write(far, speech(12.0), rig.RATE)
    options = ["--seconds", "8", "--echo", "auto", "--say", str(far), "--keep", str(kept)]
    for _ in range(ATTEMPTS):
        with card.echo(60, 0.3), card.recording() as both, through(card, *options) as program:
            pass
        heard, _ = soundfile.read(kept, dtype="float32")
        began = int(np.argmax(np.abs(both.samples[:, 1]) > 0.01))
        room = both.samples[began + 5 * rig.RATE : began + 7 * rig.RATE, 0]
        reduction = decibels(room) - decibels(heard[5 * rig.RATE : 7 * rig.RATE])
        if reduction > 25:
            break
    assert program.summary["echo_cancelled"] == 1
    assert decibels(room) > -45, "there was an echo"
    assert reduction > 25
