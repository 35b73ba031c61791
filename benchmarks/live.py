"""The real `moshi-local` on the virtual sound card, measured.

    python -m benchmarks.live [--seconds 60] [--model nano] [--keep both.wav] [--room] [-- OPTIONS]
    python -m benchmarks.live --transcribe --model FOLDER [--seconds 60] [-- OPTIONS]

Plays nano's question into the microphone again and again, records both sides, and prints a table
of what the sound card, the frames and the memory did. Exit code 1 if there was an xrun, no
callback or fewer than there must be, no sound on the speaker side, or memory that grew by more
than 2 % after the first minute. With --transcribe it is `moshi-local transcribe --live`, which has
no speaker side.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from moshi_mlx.hub import bundled_folder
from tests import rig

from .processes import resident_bytes

QUESTION = bundled_folder("nano") / "question.wav"
LOAD_SECONDS = 120.0
LISTENING = "listening: "
SPEECH_LEVEL = 0.01
REPLY_SECONDS = 4.0
ROOM = (60, 0.3)
"""The way from the speaker to the microphone: milliseconds, gain."""
CALLBACKS_A_SECOND = 50
CALLBACK_TOLERANCE = 0.02
SAMPLE_SECONDS = 5.0
SETTLED_SECONDS = 60.0
MEMORY_GROWTH = 0.02


@dataclass(frozen=True)
class LiveRun:
    """One run: the program's own summary, and both sides as the rig heard them."""

    summary: dict[str, Any]
    both: NDArray[np.float32]
    exit_code: int
    errors: str
    memory: list[float]
    """Resident bytes, every SAMPLE_SECONDS from when it listened."""
    listening_after: float
    """Seconds from the command to when it listened."""
    speaks: bool = True

    @property
    def memory_growth(self) -> float | None:
        """By how much the last sixth is above the first minute's end; None for a short run."""
        settled = self.memory[round(SETTLED_SECONDS / SAMPLE_SECONDS) :]
        if len(settled) < 6:
            return None
        sixth = max(1, len(settled) // 6)
        return float(np.nanmean(settled[-sixth:]) / np.mean(settled[:sixth]) - 1)

    @property
    def first_sound_after(self) -> float | None:
        """Seconds from the command, which the recording begins with, to sound on the speaker."""
        loud = np.flatnonzero(np.abs(self.both[:, 1]) > SPEECH_LEVEL)
        return float(loud[0] / rig.RATE) if len(loud) else None

    @property
    def speaker_seconds(self) -> float:
        """Seconds in which the speaker side was louder than SPEECH_LEVEL, in tenths."""
        tenth = rig.RATE // 10
        speaker = self.both[: len(self.both) // tenth * tenth, 1].reshape(-1, tenth)
        return float(np.sum(np.sqrt(np.mean(speaker**2, axis=1)) > SPEECH_LEVEL) / 10)

    @property
    def faults(self) -> list[str]:
        """What a clean run must not have."""
        found = []
        if self.exit_code != 0:
            found.append(f"exit code {self.exit_code}: {self.errors.strip()[-300:]}")
        elif not self.summary["callbacks"]:
            found.append("no callback")
        elif self.summary["xruns"]:
            found.append(f"{self.summary['xruns']} xruns")
        if self.summary:
            expected = CALLBACKS_A_SECOND * self.summary["elapsed_seconds"]
            if abs(self.summary["callbacks"] / expected - 1) > CALLBACK_TOLERANCE:
                found.append(f"{self.summary['callbacks']} callbacks in place of {expected:.0f}")
        if (growth := self.memory_growth) is not None and growth > MEMORY_GROWTH:
            found.append(f"memory grew by {100 * growth:.1f} %")
        if bool(self.speaker_seconds) != self.speaks:
            found.append(f"{self.speaker_seconds} s of sound on the speaker side")
        return found


def talk(
    card: rig.VirtualCard,
    seconds: float,
    *options: str,
    stop_with: int | None = None,
    through: Sequence[str] = (),
) -> LiveRun:
    """`moshi-local` for `seconds`, questions played to it from when it listens.

    With `stop_with` the program runs without an end and gets this signal after `seconds`. The
    command `through` starts it, if given.
    """
    command = [*through, sys.executable, "-m", "moshi_local", *options, "--json"]
    if stop_with is None:
        command += ["--seconds", str(seconds)]
    lines: list[str] = []
    memory: list[float] = []
    moments: list[float] = []
    listening, ended = threading.Event(), threading.Event()
    with card.recording() as both:
        began = time.monotonic()
        program = subprocess.Popen(
            command,
            env=card.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        rig.prefer(program)

        def follow() -> None:
            assert program.stderr is not None
            for line in program.stderr:
                lines.append(line)
                if LISTENING in line:
                    moments.append(time.monotonic() - began)
                    listening.set()
            listening.set()

        def weigh() -> None:
            listening.wait()
            while not ended.wait(SAMPLE_SECONDS):
                memory.append(resident_bytes(program.pid))

        followers = [threading.Thread(target=follow), threading.Thread(target=weigh)]
        for follower in followers:
            follower.start()
        try:
            if not listening.wait(LOAD_SECONDS):
                raise rig.RigError(f"moshi-local did not listen in {LOAD_SECONDS:.0f} s")
            _play_until(card, time.monotonic() + seconds)
            if stop_with is not None:
                program.send_signal(stop_with)
            assert program.stdout is not None
            output = program.stdout.read()
            program.wait(30)
        finally:
            if program.poll() is None:
                program.kill()
                program.wait()
            ended.set()
            for follower in followers:
                follower.join()
    summary = json.loads(output) if program.returncode == 0 else {}
    listened = moments[0] if moments else float("nan")
    errors, speaks = "".join(lines), "transcribe" not in options
    return LiveRun(summary, both.samples, program.returncode, errors, memory, listened, speaks)


def _play_until(card: rig.VirtualCard, end: float) -> None:
    """Play the question, again and again, with a pause for the last reply."""
    while (left := end - time.monotonic()) > 0:
        player = card.play(QUESTION)
        try:
            player.wait(left)
        except subprocess.TimeoutExpired:
            player.terminate()
            player.wait()
        time.sleep(max(0.0, min(REPLY_SECONDS, end - time.monotonic())))


def table(run: LiveRun) -> str:
    """The figures, a line each."""
    summary = run.summary
    times = {"frame": summary["frame_ms"], **summary["stages_ms"]}
    rows = [
        ("command to listening (s)", f"{run.listening_after:.2f}"),
        ("command to first sound, question and all (s)", f"{run.first_sound_after or 0:.2f}"),
        ("seconds of sound", f"{summary['seconds']:.1f}"),
        ("frames", str(summary["frames"])),
        ("callbacks", str(summary["callbacks"])),
        ("xruns", str(summary["xruns"])),
        ("input dropped (s)", f"{summary['input_dropped_seconds']:.2f}"),
        ("words", str(len(summary["words"]))),
    ]
    if run.speaks:
        rows += [
            ("gaps in the output", str(summary["gaps"])),
            ("output dropped (s)", f"{summary['output_dropped_seconds']:.2f}"),
            ("speaker heard (s)", f"{run.speaker_seconds:.1f}"),
            ("mouth to ear (ms)", f"{summary['delay_ms']:.0f}"),
        ]
    if "heard" in summary:
        rows.append(("words of the captions", str(len(summary["heard"]["words"]))))
        rows.append(("without captions (s)", f"{summary['captions_lost']:.2f}"))
    if (growth := run.memory_growth) is not None:
        sizes = [run.memory[round(SETTLED_SECONDS / SAMPLE_SECONDS)], run.memory[-2]]
        grew = " → ".join(f"{size / 1e6:.1f}" for size in sizes)
        rows.append(("memory after a minute, at the end (MB)", f"{grew}: {100 * growth:+.2f} %"))
    rows.append(("restarts", str(summary["restarts"])))
    rows += [
        (f"{name} ms p50 p95 p99 max", " ".join(f"{ms[k]:.1f}" for k in ms))
        for name, ms in times.items()
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:{width}}  {value}" for name, value in rows)


def main() -> int:
    """Measure and print; 1 if the run was not clean."""
    parser = argparse.ArgumentParser(description="moshi-local on the virtual sound card")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--model", default="nano")
    parser.add_argument(
        "--room", action="store_true", help="the microphone hears the speaker (60 ms, gain 0.3)"
    )
    parser.add_argument(
        "--transcribe", action="store_true", help="`moshi-local transcribe --live`, with this model"
    )
    parser.add_argument("options", nargs="*", help="more options of moshi-local, after --")
    parser.add_argument("--keep", type=Path, help="write both sides to this stereo WAV")
    options = parser.parse_args()
    if missing := rig.missing_programs():
        print(f"not installed: {missing} (apt-get install pulseaudio pulseaudio-utils)")
        return 2
    with (
        tempfile.TemporaryDirectory(prefix="rig") as folder,
        rig.VirtualCard.start(Path(folder) / "card") as card,
        card.echo(*ROOM) if options.room else nullcontext(),
    ):
        command = ["transcribe", "--live"] if options.transcribe else []
        run = talk(card, options.seconds, *command, "--model", options.model, *options.options)
    if options.keep:
        soundfile.write(options.keep, run.both, rig.RATE)
    if run.summary:
        print(table(run))
        print(f"heard: {run.summary['text']}")
    for fault in run.faults:
        print(f"FAULT: {fault}")
    return 1 if run.faults else 0


if __name__ == "__main__":
    sys.exit(main())
