"""LiveAudio and PortAudio without a model: says back what it hears. The device tests run it.

    python -m tests.loopback --seconds 5 [--rate 48000] [--separate] [--echo on] [--say far.wav]

With --say it plays that file in place of what it hears; --keep writes what it heard, after the
echo canceller. A line "listening" on stderr when it does; a JSON summary on stdout at the end.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import soundfile

from moshi_local.audio.card import LiveAudio
from moshi_local.audio.portaudio import PortAudioDevice
from moshi_local.options import EchoMode
from moshi_local.port import Read
from moshi_mlx.testing import FRAME_SIZE, SAMPLE_RATE


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description="pass-through by LiveAudio")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rate", type=int)
    parser.add_argument("--block", type=int)
    parser.add_argument("--separate", action="store_true")
    parser.add_argument("--echo", type=EchoMode, default=EchoMode.off)
    parser.add_argument("--say", type=Path)
    parser.add_argument("--keep", type=Path)
    options = parser.parse_args()
    say = np.zeros(0, np.float32)
    if options.say:
        say, _ = soundfile.read(options.say, dtype="float32")
    device = PortAudioDevice(
        rate=options.rate, block=options.block, separate=options.separate, refresh=True
    )
    frame, kept, told = np.zeros(FRAME_SIZE, np.float32), [], []
    with LiveAudio(
        device, sample_rate=SAMPLE_RATE, frame_size=FRAME_SIZE, echo=options.echo
    ) as port:
        print("listening", file=sys.stderr, flush=True)
        began, frames = time.monotonic(), 0
        while time.monotonic() - began < options.seconds:
            status = port.read(frame, 0.2)
            now = time.monotonic()
            told += [(round(now, 3), type(event).__name__) for event in port.take_events(now)]
            if status is not Read.FRAME:
                continue
            if options.say:
                out = np.zeros(FRAME_SIZE, np.float32)
                piece = say[frames * FRAME_SIZE : (frames + 1) * FRAME_SIZE]
                out[: len(piece)] = piece
                port.write(out)
            else:
                port.write(frame)
            kept.append(frame.copy())
            frames += 1
        summary = {**port.statistics(), "frames": frames, "events": told}
    if options.keep:
        soundfile.write(options.keep, np.concatenate(kept), SAMPLE_RATE)
    print(json.dumps(summary))
    return 0


if __name__ == "__main__":
    sys.exit(main())
