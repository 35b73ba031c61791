"""A file of hours through a small transcriber: memory stays flat, times never go back.

    python -m benchmarks.long_transcription --hours 3

The model is random, of the shape of the tests' one, and the sound is the bundled question again and
again with pauses between: what is written means nothing, but comes all the time. Prints the peak
memory of the process after ten minutes of sound and at the end, and its speed.
"""

import argparse
import resource
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import soundfile

import moshi_mlx
from moshi_mlx import WindowRefreshed
from tests.fixtures import make_stt

EARLY_SECONDS = 600.0
PAUSE_SECONDS = 1.5
RATE = 24_000


def write_sound(path: Path, seconds: float) -> None:
    """The question and a pause, until it is that long."""
    pcm, _ = soundfile.read(make_stt.NANO / "question.wav", dtype="float32")
    part = np.concatenate([pcm, np.zeros(round(PAUSE_SECONDS * RATE), np.float32)])
    left = round(seconds * RATE)
    with soundfile.SoundFile(path, "w", RATE, 1) as file:
        while left > 0:
            file.write(part[:left])
            left -= len(part)


def peak_bytes() -> int:
    """Of the process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def main() -> int:
    """Measure, print, and fail where times go back."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hours", type=float, default=3.0)
    args = parser.parse_args()
    with TemporaryDirectory() as where:
        folder = make_stt.write(Path(where) / "stt", quiet=0.05)
        path = Path(where) / "sound.flac"
        write_sound(path, 3600 * args.hours)
        stt = moshi_mlx.load(folder, verb="transcribe", codec="mlx")
        early, words, refreshed, last, back = 0, 0, 0, 0.0, 0
        began = time.perf_counter()
        for passage in stt.transcribing([path]):
            for word in passage.words:
                back += not last <= word.start <= word.end <= passage.seconds
                last = word.end
            words += len(passage.words)
            refreshed += sum(isinstance(event, WindowRefreshed) for event in passage.events)
            if not early and passage.seconds >= EARLY_SECONDS:
                early = peak_bytes()
        took = time.perf_counter() - began
    heard = passage.seconds
    print(f"{heard / 3600:.2f} h in {took:.0f} s, {heard / took:.1f} times real time")
    print(f"{words} words, {refreshed} windows refreshed, {back} times out of order")
    end = peak_bytes()
    print(f"peak memory: {early / 1e6:.1f} MB after 10 minutes, {end / 1e6:.1f} MB at the end")
    return 1 if back else 0


if __name__ == "__main__":
    sys.exit(main())
