"""The echo canceller on made speech: how much echo goes, and what is left of a voice meanwhile.

    python -m benchmarks.echo [--delay 60] [--gain 0.1 0.3 1.0] [--drift 0] [--overdriven]
                              [--noise -65]

30 s at 24 kHz: the speaker alone (to 12 s), both (to 20 s), a near voice alone (to 24 s), the
speaker alone again. Prints for each echo gain and each way to cancel: the echo's reduction (dB)
in the first two seconds, from 4 to 12 s, and after the double talk; STOI of the near voice in
double talk and alone; the time of a frame (ms of one core). Exit code 1 if the program's own way
at a gain up to 0.3 falls below 25 dB or a STOI of 0.80. Needs espeak-ng and the nano extra.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray
from pystoi import stoi

from moshi_local.audio.echo import AEC3_DELAY, EchoCanceller
from moshi_mlx.arrays import Pcm
from moshi_mlx.testing import FRAME_SIZE, SAMPLE_RATE

Process = Callable[[Pcm, Pcm], Pcm]

LEAST_ERLE, LEAST_STOI = 25.0, 0.80
SECONDS = 30
FAR = (
    "The history of the lighthouse goes back more than two thousand years. Sailors needed a fixed "
    "light on the coast, so people burned wood on a tower. Later on, oil lamps and lenses made "
    "the light much brighter. Today most of them run by themselves, and a small computer turns "
    "the lamp on at dusk. Some towers are now museums, and visitors may climb the narrow stairs "
    "to look across the bay. Would you like to hear about the oldest one that still stands, or "
    "should I tell you how the lens was invented by a young engineer?"
)
NEAR = (
    "Wait, stop for a second, I wanted to ask you something else. How tall was the first tower, "
    "and who paid for all of that wood? Also, please speak a little slower, because my brother "
    "is listening too. Thank you."
)


def at(start: float, end: float) -> slice:
    """The samples from `start` to `end` (seconds)."""
    return slice(round(start * SAMPLE_RATE), round(end * SAMPLE_RATE))


def decibels(pcm: NDArray[np.floating]) -> float:
    """The level of `pcm` over full scale."""
    return float(10 * np.log10(np.mean(np.square(pcm, dtype=np.float64)) + 1e-20))


def say(text: str, voice: str, samples: int, level: float) -> NDArray[np.float64]:
    """`text`, again and again, with this level (dB over full scale)."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "say.wav"
        subprocess.run(["espeak-ng", "-v", voice, "-s", "165", "-w", str(path), text], check=True)
        pcm, rate = soundfile.read(path)
    pcm = soxr.resample(pcm, rate, SAMPLE_RATE)
    pcm = np.resize(np.concatenate([pcm, np.zeros(SAMPLE_RATE // 3)]), samples)
    return pcm * 10 ** ((level - decibels(pcm)) / 20)


@dataclass(frozen=True)
class Scene:
    """What is played, what the microphone hears, and the near voice in it."""

    played: Pcm
    heard: Pcm
    near: Pcm


def make_scene(
    *, delay: float, gain: float, drift: float, overdriven: bool, noise: float, seed: int = 0
) -> Scene:
    """A room: `delay` (ms), then a direct sound and 0.2 s of reverberation 6 dB below, `gain`
    in all; `drift` is the microphone's clock against the speaker's (ppm), `noise` in dB."""
    rng, n = np.random.default_rng(seed), SECONDS * SAMPLE_RATE
    far = say(FAR, "en-us", n, -20.0)
    far[at(20, 24)] = 0.0
    near = np.zeros(n)
    near[at(12, 24)] = say(NEAR, "en-gb+f3", 12 * SAMPLE_RATE, -24.0)
    tail = np.arange(SAMPLE_RATE // 5)
    room = rng.standard_normal(len(tail)) * 10 ** (-3 * tail / SAMPLE_RATE / 0.25)
    room /= np.sqrt(np.sum(room**2))
    room[0] = 10 ** (6 / 20)
    room *= gain / np.sqrt(np.sum(room**2))
    room = np.concatenate([np.zeros(round(delay * SAMPLE_RATE / 1000)), room])
    spoken = np.tanh(2.5 * far) / 2.5 if overdriven else far
    size = 1 << (n + len(room)).bit_length()
    echo = np.fft.irfft(np.fft.rfft(spoken, size) * np.fft.rfft(room, size), size)[:n]
    echo = np.interp(np.arange(n) * (1 + 1e-6 * drift), np.arange(n), echo, right=0.0)
    heard = echo + near + rng.standard_normal(n) * 10 ** (noise / 20)
    return Scene(far.astype(np.float32), heard.astype(np.float32), near.astype(np.float32))


def late(pcm: Pcm, samples: int = AEC3_DELAY) -> Pcm:
    """`pcm`, delayed by some samples."""
    return np.concatenate([np.zeros(samples, np.float32), pcm])[: len(pcm)]


def with_microphone(blend: float) -> Process:
    """AEC3 with so much of the microphone itself: what DESIGN.md measured."""
    canceller = EchoCanceller(SAMPLE_RATE, FRAME_SIZE, blend=0.0)
    before: Pcm = np.zeros(FRAME_SIZE, np.float32)

    def process(heard: Pcm, played: Pcm) -> Pcm:
        nonlocal before
        both = np.concatenate([before[-AEC3_DELAY:], heard])[:FRAME_SIZE]
        before = heard.copy()
        return ((canceller.process(heard, played) + blend * both) / (1 + blend)).astype(np.float32)

    return process


WAYS: dict[str, Callable[[], Process]] = {
    "nothing": lambda: lambda heard, played: heard,
    "AEC3 alone": lambda: EchoCanceller(SAMPLE_RATE, FRAME_SIZE, blend=0.0).process,
    "AEC3 + 0.1 microphone": lambda: with_microphone(0.1),
    "AEC3 + 0.3 microphone": lambda: with_microphone(0.3),
    "AEC3 + 0.1 linear": lambda: EchoCanceller(SAMPLE_RATE, FRAME_SIZE, blend=0.1).process,
    "AEC3 + 0.2 linear": lambda: EchoCanceller(SAMPLE_RATE, FRAME_SIZE, blend=0.2).process,
    "AEC3 + 0.5 linear": lambda: EchoCanceller(SAMPLE_RATE, FRAME_SIZE, blend=0.5).process,
    "the program's (0.3)": lambda: EchoCanceller(SAMPLE_RATE, FRAME_SIZE).process,
    "with noise suppression": lambda: (
        EchoCanceller(SAMPLE_RATE, FRAME_SIZE, noise_suppression=True).process
    ),
}


@dataclass(frozen=True)
class Figures:
    """Reductions in dB, STOI from 0 to 1, milliseconds a frame."""

    first: float
    settled: float
    after: float
    both: float
    alone: float
    milliseconds: float


def measure(scene: Scene, make: Callable[[], Process]) -> Figures:
    """Run a canceller over the scene, frame by frame."""
    process, out = make(), []
    began = time.process_time()
    for start in range(0, len(scene.heard) - FRAME_SIZE + 1, FRAME_SIZE):
        frame = slice(start, start + FRAME_SIZE)
        out.append(process(scene.heard[frame], scene.played[frame]))
    took = time.process_time() - began
    clean = np.concatenate(out)
    delay = _delay(clean[at(20, 24)], scene.near[at(20, 24)])
    near, heard = late(scene.near, delay), late(scene.heard, delay)

    def reduction(start: float, end: float) -> float:
        return decibels(heard[at(start, end)]) - decibels(clean[at(start, end)])

    def likeness(start: float, end: float) -> float:
        return float(stoi(near[at(start, end)], clean[at(start, end)], SAMPLE_RATE))

    return Figures(
        reduction(0.1, 2),
        reduction(4, 12),
        reduction(25, 29.5),
        likeness(12.2, 20),
        likeness(20.5, 24),
        1000 * took / len(out),
    )


def _delay(late_pcm: Pcm, pcm: Pcm) -> int:
    """By how many samples the one is later than the other, up to 50 ms."""
    size = 2 * len(pcm)
    product = np.fft.rfft(late_pcm, size) * np.fft.rfft(pcm, size).conj()
    return int(np.argmax(np.fft.irfft(product)[: SAMPLE_RATE // 20]))


def main() -> int:
    """Measure and print; 1 if the program's own way falls short."""
    parser = argparse.ArgumentParser(description="echo cancellers on made speech")
    parser.add_argument("--delay", type=float, default=60.0, help="ms")
    parser.add_argument("--gain", type=float, nargs="+", default=[0.1, 0.3, 1.0])
    parser.add_argument("--drift", type=float, default=0.0, help="ppm")
    parser.add_argument("--noise", type=float, default=-65.0, help="dB over full scale")
    parser.add_argument("--overdriven", action="store_true", help="a small, loud loudspeaker")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    options = parser.parse_args()
    print(f"{'':34} echo reduced by (dB)        STOI of the near voice")
    print(f"{'gain, way':34} first 2 s  4-12 s  after   both speak  alone  ms per frame")
    failed = False
    for gain in options.gain:
        scene = make_scene(
            delay=options.delay,
            gain=gain,
            drift=options.drift,
            overdriven=options.overdriven,
            noise=options.noise,
        )
        for way in options.ways:
            f = measure(scene, WAYS[way])
            print(
                f"{gain:<5g} {way:28} {f.first:9.1f} {f.settled:7.1f} {f.after:6.1f} "
                f"{f.both:12.2f} {f.alone:6.2f} {f.milliseconds:12.2f}",
                flush=True,
            )
            if way.startswith("the program") and gain <= 0.3:
                failed |= min(f.settled, f.after) < LEAST_ERLE or f.both < LEAST_STOI
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
