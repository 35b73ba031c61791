"""The real `moshi-local speak` on the virtual sound card, measured.

    python -m benchmarks.speaking --model MODEL [--seconds 60] [--bursts] [-- OPTIONS]

Speaks sentences for about that long and records the speaker. With --bursts the text comes through
a pipe: a few words at a time, with pauses between that are longer than the words last. Prints what
the sound card did, when sound began, and the silences on the speaker beside the words. Exit code 1
if there was an xrun or a gap, or no sound.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests import rig

WORDS = "one two three four five six seven eight nine ten the a and of it was there when they came"
WORDS_A_SECOND = 2.5
LEVEL = 0.003
STALL_SECONDS = (0.5, 3.0)


@dataclass(frozen=True)
class SpokenRun:
    """One run: what the program said of it, and the speaker as the rig heard it.

    first_text: seconds from the recording's begin to the first text that was given.
    stalls: (begin, seconds) of the pauses between two bursts.
    """

    facts: dict[str, Any]
    told: str
    speaker: NDArray[np.float32]
    exit_code: int
    first_text: float
    stalls: list[tuple[float, float]]

    @property
    def first_sound(self) -> float | None:
        """Seconds of the recording."""
        loud = np.flatnonzero(np.abs(self.speaker) > LEVEL)
        return float(loud[0] / rig.RATE) if len(loud) else None

    def silences(self, least: float = 0.15) -> list[tuple[float, float]]:
        """(begin, seconds) of what is silent for at least that long, between the sounds."""
        window = rig.RATE // 100
        pieces = self.speaker[: len(self.speaker) // window * window].reshape(-1, window)
        loud = np.flatnonzero(np.abs(pieces).max(axis=1) > LEVEL)
        gaps = np.diff(loud)
        return [
            (float(loud[i] / 100), float(gaps[i] / 100))
            for i in np.flatnonzero(gaps >= 100 * least)
        ]


def sentences(seconds: float, seed: int = 0) -> str:
    """Text that takes about that long to say."""
    rng = random.Random(seed)
    words = [rng.choice(WORDS.split()) for _ in range(round(seconds * WORDS_A_SECOND))]
    return " ".join(f"{word}." if i % 9 == 8 else word for i, word in enumerate(words))


def spoken(card: rig.VirtualCard, folder: Path, text: str, options: Sequence[str]) -> SpokenRun:
    """`moshi-local speak` of a text in a file."""
    source = folder / "text.txt"
    source.write_text(text)
    return _run(card, folder, str(source), options, [])


def spoken_in_bursts(
    card: rig.VirtualCard, folder: Path, text: str, options: Sequence[str], seed: int = 0
) -> SpokenRun:
    """The same through a pipe, in pieces that do not end where words do."""
    rng, pieces, at = random.Random(seed), [], 0
    while at < len(text):
        size = rng.randint(3, 30)
        pieces.append((text[at : at + size], rng.uniform(*STALL_SECONDS)))
        at += size
    return _run(card, folder, "-", options, pieces)


def _run(
    card: rig.VirtualCard,
    folder: Path,
    source: str,
    options: Sequence[str],
    pieces: Sequence[tuple[str, float]],
) -> SpokenRun:
    facts = folder / "facts.json"
    command = [sys.executable, "-m", "moshi_local", "speak", source, "--json", str(facts)]
    lines: list[str] = []
    stalls: list[tuple[float, float]] = []
    loaded = threading.Event()
    with card.recording() as both:
        began = time.monotonic()
        program = subprocess.Popen(
            [*command, *options],
            env=card.environment,
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        rig.prefer(program)

        def follow() -> None:
            assert program.stderr is not None
            for line in program.stderr:
                lines.append(line)
                if line.startswith("codec "):
                    loaded.set()
            loaded.set()

        follower = threading.Thread(target=follow)
        follower.start()
        loaded.wait()
        first = time.monotonic() - began
        assert program.stdin is not None
        for text, pause in pieces:
            program.stdin.write(text)
            program.stdin.flush()
            stalls.append((time.monotonic() - began, pause))
            time.sleep(pause)
        program.stdin.close()
        code = program.wait()
        follower.join()
    found = json.loads(facts.read_text()) if code == 0 else {}
    return SpokenRun(found, "".join(lines), both.samples[:, 1], code, first, stalls)


def faults(run: SpokenRun) -> list[str]:
    """What a clean run must not have."""
    if run.exit_code:
        return [f"exit code {run.exit_code}: {run.told.strip()[-300:]}"]
    found = [f"{run.facts[name]} {name}" for name in ("xruns", "gaps") if run.facts[name]]
    if run.first_sound is None:
        found.append("no sound on the speaker")
    return found


def main() -> int:
    """Measure and print; 1 if the run was not clean."""
    parser = argparse.ArgumentParser(description="moshi-local speak on the virtual sound card")
    parser.add_argument("--model", required=True)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--bursts", action="store_true", help="the text comes through a pipe")
    parser.add_argument("options", nargs="*", help="more options of moshi-local speak, after --")
    options = parser.parse_args()
    if missing := rig.missing_programs():
        print(f"not installed: {missing} (apt-get install pulseaudio pulseaudio-utils)")
        return 2
    run_it = spoken_in_bursts if options.bursts else spoken
    with tempfile.TemporaryDirectory(prefix="rig") as name:
        folder = Path(name)
        with rig.VirtualCard.start(folder / "card") as card:
            given = ["--model", options.model, *options.options]
            run = run_it(card, folder, sentences(options.seconds), given)
    print(run.told, end="")
    if run.first_sound is not None:
        print(f"text to sound on the speaker: {run.first_sound - run.first_text:.2f} s")
        silences = [seconds for _, seconds in run.silences()]
        longest = max(silences, default=0.0)
        print(f"{len(silences)} silences of 0.15 s and more, the longest {longest:.2f} s")
    for fault in faults(run):
        print(f"FAULT: {fault}")
    return 1 if faults(run) else 0


if __name__ == "__main__":
    sys.exit(main())
