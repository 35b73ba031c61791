"""The real program on a virtual sound card: the real nano, real PortAudio, real time."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import soundfile

from benchmarks import live
from tests import rig

pytestmark = pytest.mark.device

SECONDS = 15.0
ATTEMPTS = 3
"""A machine that tests share may be too busy for a while; the card's clock does not wait."""
FIRST_REPLY = "Hello! How can I help you?"
XRUNS_PER_CALLBACK = 0.01
"""What such a machine may cost; `python -m benchmarks.live` measures, and allows none."""


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> Iterator[rig.VirtualCard]:
    """The virtual card; conftest.py skips these tests where it cannot run."""
    with rig.VirtualCard.start(tmp_path_factory.mktemp("rig") / "card") as running:
        yield running


def test_nano_answers_through_the_sound_card(card: rig.VirtualCard) -> None:
    for _ in range(ATTEMPTS):
        run = live.talk(card, SECONDS, "--model", "nano")
        if not run.faults:
            break
    timely = ("xruns", "callbacks in place")  # counted below, with more patience
    assert [f for f in run.faults if not any(word in f for word in timely)] == []
    assert run.summary["xruns"] <= XRUNS_PER_CALLBACK * run.summary["callbacks"]
    blocks = SECONDS * live.CALLBACKS_A_SECOND
    assert run.summary["callbacks"] == pytest.approx(blocks, rel=0.1)
    assert run.summary["frames"] == pytest.approx(SECONDS * 12.5, rel=0.1)
    assert run.summary["words"], "it said something"
    assert run.both[:, 0].any(), "the question was in the room"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_conversation_in_order(
    card: rig.VirtualCard, number: signal.Signals
) -> None:
    run = live.talk(card, 2.0, "--model", "nano", stop_with=number)
    assert run.exit_code == 0
    assert run.summary["callbacks"] > 0
    assert "Traceback" not in run.errors


def test_on_speakers_it_does_not_interrupt_itself(card: rig.VirtualCard) -> None:
    for _ in range(ATTEMPTS):
        with card.echo(*live.ROOM):
            run = live.talk(card, 8.0, "--model", "nano")
        if FIRST_REPLY in run.summary["text"]:
            break
    assert run.summary["echo_cancelled"]
    assert FIRST_REPLY in run.summary["text"]


def test_no_network_at_all_is_needed(card: rig.VirtualCard, tmp_path: Path) -> None:
    alone = ["unshare", "--net", "--map-root-user"]
    if subprocess.run([*alone, "true"], capture_output=True).returncode:
        pytest.skip("this system makes no network namespaces")
    record = ["--record", str(tmp_path / "kept"), "--record-format", "wav"]
    run = live.talk(card, 4.0, "--model", "nano", *record, through=alone)
    assert run.exit_code == 0, run.errors
    assert run.summary["frames"] > 30
    (sound,) = (tmp_path / "kept").glob("*.wav")
    assert soundfile.info(sound).channels == 2


def test_a_full_disk_ends_what_is_kept_and_is_told_at_the_end(
    card: rig.VirtualCard, tmp_path: Path
) -> None:
    limit = ["prlimit", "--fsize=400000"]
    keep = ["--record", str(tmp_path / "kept"), "--events", "/dev/full"]
    run = live.talk(card, 7.0, "--model", "nano", *keep, through=limit)
    assert run.exit_code == 2
    (sound,) = (tmp_path / "kept").glob("*.wav")
    (transcript,) = (tmp_path / "kept").glob("*.json")
    facts = json.loads(transcript.read_text())
    assert facts["seconds"] == pytest.approx(soundfile.info(sound).duration) == 4.16
    assert facts["problem"] == f"File too large: {sound.name} ends here"
    *_, recorded, told = run.errors.splitlines()
    assert recorded == f"recorded {sound}, 4.2 s"
    assert told == (
        "moshi-local: events are no longer written to /dev/full: No space left on device; "
        f"not all was recorded: {facts['problem']}"
    )


def test_a_wrong_device_is_one_line_with_the_right_ones(card: rig.VirtualCard) -> None:
    command = [sys.executable, "-m", "moshi_local", "--output", "gramophone"]
    done = subprocess.run(command, env=card.environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith('moshi-local: output "gramophone" matches no device; output devices: ')
    assert "pulse" in line
