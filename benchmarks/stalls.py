"""Stalls of the model, live on the virtual sound card: how soon all is normal again.

    python -m benchmarks.stalls [--stalls 0.15 0.5 2]

The real nano, the real sound card code; before some frames the model waits as if the machine had
been busy. For each stall the table says what was dropped and after how many seconds the delay from
mouth to ear was what it was before (within a frame, and no sound waited). Exit code 1 if one took
longer than a second.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import moshi_mlx
from benchmarks import live
from moshi_local.audio.card import LiveAudio
from moshi_local.audio.portaudio import PortAudioDevice
from moshi_local.events import Event, FrameDone, Lag
from moshi_local.loop import run_loop
from moshi_local.report import warm_up
from tests import rig

CALM_SECONDS = 6.0
"""Before the first stall, and after each."""
NEAR_SECONDS = 0.08
LIMIT_SECONDS = 1.0


class Stalling:
    """A session that waits `seconds` before the step that begins at `at` (seconds of its clock)."""

    def __init__(self, session: moshi_mlx.Session, stalls: list[tuple[float, float]]) -> None:
        self._session, self._stalls = session, list(stalls)
        self.ended: list[float] = []

    def step(self, pcm: Any, *, hold_text: bool = False) -> moshi_mlx.Frame:
        """As the session's."""
        if self._stalls and self._session.frames / 12.5 >= self._stalls[0][0]:
            time.sleep(self._stalls.pop(0)[1])
            self.ended.append(time.monotonic())
        return self._session.step(pcm, hold_text=hold_text)

    def flush(self) -> tuple[moshi_mlx.Word, ...]:
        """As the session's."""
        return self._session.flush()

    def reset(self) -> None:
        """As the session's."""
        self._session.reset()


def inside(stalls: list[float]) -> list[dict[str, float]]:
    """The conversation, in a process whose sound card is the virtual one."""
    moshi = moshi_mlx.load("nano")
    plan = [(CALM_SECONDS * (1 + i), s) for i, s in enumerate(stalls)]
    seen: list[tuple[float, Event]] = []
    with moshi.session(seed=0) as session:
        stalling = Stalling(session, plan)
        warm_up(session, moshi.frame_size)
        device = PortAudioDevice(None, None, moshi.sample_rate, refresh=True)
        port = LiveAudio(device, sample_rate=moshi.sample_rate, frame_size=moshi.frame_size)
        with port:
            print(live.LISTENING, file=sys.stderr, flush=True)
            run_loop(
                stalling,
                port,
                frame_size=moshi.frame_size,
                frame_rate=moshi.frame_rate,
                listeners=[lambda event: seen.append((time.monotonic(), event))],
                seconds=CALM_SECONDS * (1 + len(stalls)) + sum(stalls) + 2,
            )
    frames = [(when, e) for when, e in seen if isinstance(e, FrameDone) and e.delay is not None]
    rows = []
    for seconds, end in zip(stalls, stalling.ended, strict=True):
        began = end - seconds
        normal = median(e.delay or 0.0 for when, e in frames if began - 3 < when < began)
        after = [(when, e) for when, e in frames if end < when < end + CALM_SECONDS - 1]
        wrong = [
            when - end
            for when, e in after
            if abs((e.delay or 0.0) - normal) > NEAR_SECONDS or e.lag > NEAR_SECONDS
        ]
        lags = [e for when, e in seen if isinstance(e, Lag) and began < when < end + 3]
        rows.append(
            {
                "stall": seconds,
                "delay_before": normal,
                "delay_after": median(e.delay or 0.0 for _, e in after[-12:]),
                "input_dropped": sum(e.input_dropped for e in lags),
                "output_dropped": sum(e.output_dropped for e in lags),
                "normal_after": max(wrong, default=0.0),
            }
        )
    return rows


def main() -> int:
    """Measure and print; 1 if a stall had effects for longer than a second."""
    parser = argparse.ArgumentParser(description="stalls in a live conversation")
    parser.add_argument("--stalls", type=float, nargs="+", default=[0.15, 0.5, 2.0])
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        print(json.dumps(inside(options.stalls)))
        return 0
    with (
        tempfile.TemporaryDirectory(prefix="rig") as folder,
        rig.VirtualCard.start(Path(folder) / "card") as card,
    ):
        stalls = [str(s) for s in options.stalls]
        command = [sys.executable, "-m", "benchmarks.stalls", "--inside", "--stalls", *stalls]
        program = subprocess.Popen(
            command, env=card.environment, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        rig.prefer(program)
        while program.poll() is None:
            card.play(live.QUESTION).wait()
        assert program.stdout is not None
        rows = json.loads(program.stdout.read()) if program.returncode == 0 else []
    print("stall s  delay before → after, ms  dropped in, out, ms  normal after, s")
    for row in rows:
        print(
            f"{row['stall']:7.2f}  {1000 * row['delay_before']:12.0f} → "
            f"{1000 * row['delay_after']:5.0f}        {1000 * row['input_dropped']:6.0f} "
            f"{1000 * row['output_dropped']:6.0f}         {row['normal_after']:6.2f}"
        )
    return 0 if rows and all(row["normal_after"] <= LIMIT_SECONDS for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
