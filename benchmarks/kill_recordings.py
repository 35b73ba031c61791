"""Recordings whose program is killed: what was heard until then must be readable.

    python -m benchmarks.kill_recordings [--times 10] [--speed 10] [--seed 0]
    python -m benchmarks.kill_recordings --live [--times 10] [--model nano]

Starts a real recorder, which a fake session feeds faster than real time, or with --live
`moshi-local --record` on the virtual sound card. Sends SIGKILL at a random moment and looks at
the files with ordinary readers: sound, its tag and its length; transcript; subtitles. A line a
kill; exit code 1 if anything was wrong.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import select
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np
import soundfile

from moshi_local.events import FrameDone
from moshi_local.observers.dispatcher import Dispatcher
from moshi_local.observers.record import Recorder
from moshi_mlx.hub import bundled_folder
from moshi_mlx.testing import FRAME_RATE, FRAME_SIZE, FRAMES_PER_WORD, SAMPLE_RATE, FakeSession
from tests import rig

MAY_LACK = 1.1
"""Seconds of sound that may be missing at the end."""
TRANSCRIPT_MAY_LACK = 6.0
START_SECONDS = 60.0
LIVE_LOAD_SECONDS = 120.0
QUESTION = bundled_folder("nano") / "question.wav"
TAG = "right channel: synthetic speech"
TIME = r"\d\d+:\d\d:\d\d\.\d\d\d"
CUE = re.compile(rf"({TIME}) --> ({TIME})\n<v (?:Moshi|You)>([^\n]*)</v>")


@dataclass
class Report:
    """One kill: seconds of sound that had been given, seconds that were found, what is wrong."""

    given: float
    seconds: float = 0.0
    words: int = 0
    cues: int = 0
    faults: list[str] = field(default_factory=list)


def cues(path: Path) -> list[tuple[str, str, str]]:
    """(start, end, text) of each cue of a WebVTT file. Raises ValueError if it is not valid."""
    text = path.read_text(encoding="utf-8")
    if not text.endswith("\n"):
        raise ValueError("its last line is cut")
    head, *blocks = text[:-1].split("\n\n")
    if head != "WEBVTT":
        raise ValueError(f"begins with {head[:20]!r}")
    found = []
    for block in blocks:
        if block.startswith("NOTE ") and "-->" not in block:
            continue
        if not (cue := CUE.fullmatch(block)):
            raise ValueError(f"has a wrong cue: {block[:60]!r}")
        found.append((cue[1], cue[2], cue[3]))
    if any(start >= end for start, end, _ in found) or found != sorted(found):
        raise ValueError("has times that go back")
    return found


def inspect(folder: Path, given: float) -> Report:
    """Look at the one recording in `folder`, to which `given` seconds had been told."""
    report = Report(given)
    wavs = sorted(folder.glob("moshi-*.wav"))
    if len(wavs) != 1:
        report.faults.append(f"there are {len(wavs)} recordings")
        return report
    try:
        with soundfile.SoundFile(wavs[0]) as file:
            tag, rate, channels = file.comment, file.samplerate, file.channels
            sound = file.read(dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError) as error:
        report.faults.append(f"the sound cannot be read: {error}")
        return report
    report.seconds = len(sound) / rate
    if channels != 2 or len(sound) % FRAME_SIZE:
        report.faults.append(f"{channels} channels, {len(sound)} samples")
    if not tag.startswith(TAG):
        report.faults.append(f"the tag is {tag!r}")
    # A frame may be written before the count of it is seen here.
    if not given - MAY_LACK <= report.seconds <= given + MAY_LACK:
        report.faults.append(f"{report.seconds:.2f} s of {given:.2f} s")
    try:
        transcript = json.loads(wavs[0].with_suffix(".json").read_text(encoding="utf-8"))
        report.words = len(transcript["words"])
        if report.seconds - transcript["seconds"] > TRANSCRIPT_MAY_LACK:
            report.faults.append(f"the transcript ends at {transcript['seconds']} s")
    except (ValueError, OSError, KeyError) as error:
        report.faults.append(f"the transcript cannot be read: {error!r}")
    try:
        report.cues = len(cues(wavs[0].with_suffix(".vtt")))
    except (ValueError, OSError) as error:
        report.faults.append(f"the subtitles cannot be read: {error}")
    return report


# ------------------------------------------------------------------ a recorder by itself


def record_for_ever(folder: Path, speed: float) -> None:
    """Record what a fake session says, `speed` times as fast as real; a line on stdout a frame.

    Frame n sounds at the level (n mod 100) / 128.
    """
    session = FakeSession()
    recorder = Recorder(
        folder, sample_rate=SAMPLE_RATE, frame_size=FRAME_SIZE, model="fake", seed=0
    )
    with recorder, Dispatcher([recorder], capacity=1500) as dispatcher:
        began = time.monotonic()
        index = 0
        while True:
            frame = session.step(np.full(FRAME_SIZE, level(index), np.float32))
            session.heard[index] = session.heard[index][:0]  # hours must fit into memory
            for event in (*frame.events, FrameDone(index / FRAME_RATE, frame, frame.pcm)):
                dispatcher(event)
            index += 1
            print(index, flush=True)
            time.sleep(max(0.0, began + index / FRAME_RATE / speed - time.monotonic()))


def level(index: int) -> float:
    """What frame `index` sounds like."""
    return index % 100 / 128


def kill_fakes(
    folder: Path, times: int, longest: float = 2.0, speed: float = 10.0, seed: int = 0
) -> list[Report]:
    """Kill `times` recorders, each after up to `longest` seconds."""
    rng = random.Random(seed)
    return [
        kill_fake(folder / str(n), rng.uniform(longest / 10, longest), speed) for n in range(times)
    ]


def kill_fake(folder: Path, after: float, speed: float) -> Report:
    """Kill a recorder `after` seconds, and look at what it left."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.kill_recordings",
        "--child",
        str(folder),
        "--speed",
        str(speed),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as program:
        assert program.stdout is not None
        try:
            first = _line(program.stdout, START_SECONDS)
            time.sleep(after)
        finally:
            program.kill()
        counts = (first + program.stdout.read()).split()
    if not counts:
        return Report(0.0, faults=["it did not begin"])
    report = inspect(folder, int(counts[-1]) / FRAME_RATE)
    if not report.faults:
        wav = next(folder.glob("moshi-*.wav"))
        frames = soundfile.read(wav)[0].reshape(-1, FRAME_SIZE, 2)
        expected = np.array([level(n) for n in range(len(frames))])
        if not np.array_equal(frames, np.broadcast_to(expected[:, None, None], frames.shape)):
            report.faults.append("the sound is not what was given")
        due = int((report.seconds - TRANSCRIPT_MAY_LACK) * FRAME_RATE / FRAMES_PER_WORD)
        if report.words < due:
            report.faults.append(f"{report.words} words of {due}")
    return report


def _line(stream: IO[bytes], timeout: float) -> bytes:
    """The first line, or nothing if none comes in `timeout` seconds."""
    ready, _, _ = select.select([stream], [], [], timeout)
    return stream.readline() if ready else b""


# ----------------------------------------------------------------------------- live


def kill_live(folder: Path, times: int, model: str, seed: int) -> list[Report]:
    """Kill `moshi-local --record` `times` times, on the virtual card, while it is spoken to."""
    rng = random.Random(seed)
    with rig.VirtualCard.start(folder / "card") as card:
        return [
            kill_one_live(card, folder / str(n), model, rng.uniform(1.0, 15.0))
            for n in range(times)
        ]


def kill_one_live(card: rig.VirtualCard, folder: Path, model: str, after: float) -> Report:
    """Kill it `after` seconds of conversation; its own journal says what it had heard."""
    folder.mkdir()
    journal = folder / "events.jsonl"
    command = [sys.executable, "-m", "moshi_local", "--model", model]
    command += ["--record", str(folder), "--events", str(journal)]
    with (folder / "log").open("wb") as log:
        program = subprocess.Popen(
            command,
            env=card.environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        rig.prefer(program)
        try:
            deadline = time.monotonic() + LIVE_LOAD_SECONDS
            while not frames_in(journal) and time.monotonic() < deadline:
                if program.poll() is not None:
                    break
                time.sleep(0.05)
            player = card.play(QUESTION)
            time.sleep(after if program.poll() is None else 0.0)
            player.terminate()
            player.wait()
        finally:
            program.kill()
            program.wait()
    if not (frames := frames_in(journal)):
        words = (folder / "log").read_text(errors="replace").split()
        return Report(0.0, faults=[f"it did not begin: {' '.join(words)[-300:]}"])
    return inspect(folder, frames / FRAME_RATE)


def frames_in(journal: Path) -> int:
    """How many frames a journal tells; its last line may be cut."""
    if not journal.exists():
        return 0
    return journal.read_bytes().count(b'{"event": "FrameDone"')


def main() -> int:
    """Kill, look and print; 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description="recordings whose program is killed")
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--speed", type=float, default=10.0, help="times as fast as real")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--live", action="store_true", help="moshi-local on the virtual card")
    parser.add_argument("--model", default="nano", help="with --live")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        record_for_ever(options.child, options.speed)
    if options.live and (missing := rig.missing_programs()):
        print(f"not installed: {missing} (apt-get install pulseaudio pulseaudio-utils)")
        return 2
    with tempfile.TemporaryDirectory(prefix="kill") as name:
        folder = Path(name)
        if options.live:
            reports = kill_live(folder, options.times, options.model, options.seed)
        else:
            reports = kill_fakes(folder, options.times, speed=options.speed, seed=options.seed)
    for report in reports:
        print(
            f"given {report.given:7.2f} s, found {report.seconds:7.2f} s, {report.words:3} words, "
            f"{report.cues:3} cues: {'; '.join(report.faults) or 'whole'}"
        )
    failed = sum(bool(report.faults) for report in reports)
    print(f"{len(reports) - failed} whole, {failed} not")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
