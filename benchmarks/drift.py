"""The delay from microphone to speaker over simulated hours, on two clocks that differ.

    python -m benchmarks.drift [--hours 1] [--ppm 100]

The microphone's clock is fast by --ppm, the speaker's slow by as much; both call LiveAudio on
simulated time, as fast as it goes. Exit code 1 if the delay is not constant within 20 ms after
the first minute, or if there were gaps.
"""

from __future__ import annotations

import argparse
import sys
import time

import numpy as np

from tests.fakes.card import Pulses, SimulatedCard, pass_through, simulated

TOLERANCE = 0.02


def main() -> int:
    """Simulate and print; 1 if the delay moved."""
    parser = argparse.ArgumentParser(description="drift of two sound clocks, simulated")
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--ppm", type=float, default=100.0, help="each clock, in opposite senses")
    parser.add_argument("--input-rate", type=int, default=24_000)
    parser.add_argument("--output-rate", type=int, default=24_000)
    parser.add_argument("--jitter", type=float, default=10.0, help="of a step, ms")
    options = parser.parse_args()
    pulses, rng = Pulses(), np.random.default_rng(0)
    card = SimulatedCard(
        pulses.sound,
        pulses.listen,
        input_ppm=options.ppm,
        output_ppm=-options.ppm,
        input_rate=options.input_rate,
        output_rate=options.output_rate,
    )
    began, end = time.perf_counter(), 3600.0 * options.hours
    with simulated(card) as port:
        pass_through(
            card, port, end, lambda now: 0.04 + 0.001 * options.jitter * rng.uniform(-1, 1)
        )
        found = port.statistics()
    took = time.perf_counter() - began
    rows = np.array([d for d in pulses.delays if d[0] > min(60.0, end / 2)])
    slope = np.polyfit(rows[:, 0] / 3600, 1000 * rows[:, 1], 1)[0]
    delays = 1000 * rows[:, 1]
    moved = float(np.ptp(delays)) / 2
    print(f"{options.hours:g} h simulated in {took:.0f} s ({end / took:.0f} times real time)")
    print(f"clocks {options.ppm:g} and {-options.ppm:g} ppm; found {found['drift_ppm']:.0f} ppm")
    print(
        f"delay ms: min {delays.min():.1f}, median {np.median(delays):.1f}, "
        f"max {delays.max():.1f}, slope {slope:.2f} an hour; reported {found['delay_ms']:.1f}"
    )
    print(f"gaps {found['gaps']}, left out {1000 * found['output_dropped_seconds']:.0f} ms")
    return 1 if moved > 1000 * TOLERANCE or found["gaps"] else 0


if __name__ == "__main__":
    sys.exit(main())
