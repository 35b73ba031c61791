"""Make the recording of `make demo`: a user's side of a short talk, spoken by flite.

    python tests/make_question.py [OUT.wav]       default: moshi_mlx/models/nano/question.wav

24 kHz, 16 bit, mono. The voice is flite's `rms`, a user voice of nano's training data; phrases
are made as that data was: silence before the first sound cut to 40 ms, level 0.08 (root mean
square). Between them is the pause a person leaves for the reply; the time for the last reply is
`moshi-local run`'s tail. Needs flite on the PATH; the same flite gives the same file. Only for
those who change the recording: it ships.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

RATE = 24_000
VOICE = "rms"
LEVEL = 0.08
LEAD_SECONDS = 0.04
SILENCE = 0.01
"""Softer than this (of full scale) is not yet speech."""

START_SECONDS = 0.6
TALK = [("hello", 3.0), ("what is your name", 2.6), ("count to five", 0.3)]
"""Each phrase, and the pause after it (seconds)."""

DEFAULT = Path(__file__).parent.parent / "moshi_mlx" / "models" / "nano" / "question.wav"


def speak(text: str, voice: str = VOICE, stretch: float = 1.0) -> NDArray[np.float32]:
    """`text` as float32 at RATE, cut and levelled; `stretch` above 1 is slower."""
    with tempfile.TemporaryDirectory() as folder:
        wav = Path(folder) / "speech.wav"
        command = ["flite", "-voice", voice, "--setf", f"duration_stretch={stretch}"]
        subprocess.run([*command, "-t", text, "-o", str(wav)], check=True)
        speech, rate = soundfile.read(wav, dtype="float32")
    speech = soxr.resample(speech, rate, RATE)
    first, last = np.flatnonzero(np.abs(speech) > SILENCE)[[0, -1]]
    margin = round(LEAD_SECONDS * RATE)
    speech = speech[max(0, first - margin) : last + margin]
    return speech * np.float32(LEVEL / np.sqrt(np.mean(speech**2)))


def make(talk: list[tuple[str, float]]) -> NDArray[np.float32]:
    """The whole recording."""
    pieces = [np.zeros(round(START_SECONDS * RATE), np.float32)]
    for text, pause in talk:
        pieces += [speak(text), np.zeros(round(pause * RATE), np.float32)]
    return np.concatenate(pieces)


def main() -> None:
    """Write the recording."""
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT
    sound = make(TALK)
    soundfile.write(target, sound, RATE, subtype="PCM_16")
    print(f"{target.name}: {len(sound) / RATE:.2f} s, peak {np.abs(sound).max():.2f}")


if __name__ == "__main__":
    main()
