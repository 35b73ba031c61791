"""Figures of a run and of a comparison: each under its own name, each measured in its turn."""

import io

import numpy as np
import pytest
from rich.console import Console

from moshi_local.machine.bench import compare
from moshi_local.report import FrameTimes, LoopReport, percentiles, quantiles
from moshi_local.terminal.lines import print_report


def nearest(values: list[float], share: float) -> float:
    """The value at this share of the way through the sorted ones, between two if need be."""
    at = share * (len(values) - 1)
    low, rest = int(at), at - int(at)
    ordered = [*sorted(values), 0.0]
    return ordered[low] + rest * (ordered[low + 1] - ordered[low])


def test_quantiles_are_each_their_own() -> None:
    values = np.random.default_rng(0).gamma(2.0, 0.01, 777).tolist()
    wanted = [nearest(values, share) for share in (0.5, 0.95, 0.99)] + [max(values)]
    assert quantiles(values) == pytest.approx(wanted)
    assert percentiles(values) == pytest.approx(
        dict(zip(("p50", "p95", "p99", "max"), [1000 * w for w in wanted], strict=True)), abs=1e-3
    )


def report_of(milliseconds: list[float]) -> LoopReport:
    report = LoopReport(12.5)
    for each in milliseconds:
        report.times.add(each / 1000, (each / 4000, each / 2000, each / 4000))
    return report


def test_the_closing_report_in_words() -> None:
    """201 frames of 1 to 201 ms, in any order: 0.101 s of work in each 0.08 s of sound."""
    report = report_of(np.random.default_rng(0).permutation(np.arange(1.0, 202.0)).tolist())
    text = io.StringIO()
    print_report(Console(file=text), report, 0.08)
    assert text.getvalue().splitlines() == [
        "201 frames, 16.1 s of sound, 1.26 s of work per second",
        "frame p50 101.0, p95 191.0, p99 199.0, max 201.0 ms of 80 ms",
    ]


def test_the_report_of_a_sound_card_has_its_counters() -> None:
    report = report_of([1.0])
    report.port = {
        "callbacks": 11, "xruns": 2, "gaps": 3, "restarts": 4, "lags": 5,
        "input_dropped_seconds": 0.56, "output_dropped_seconds": 0.78,
    }  # fmt: skip
    text = io.StringIO()
    print_report(Console(file=text), report, 0.08)
    assert text.getvalue().splitlines()[2:] == [
        "11 callbacks, 2 xruns, 3 gaps, 4 restarts",
        "late 5 times: 0.56 s of input and 0.78 s of output dropped",
    ]


def test_the_report_in_json() -> None:
    found = report_of([10.0, 20.0, 30.0, 40.0]).as_dict()
    assert found["frame_ms"] == {"p50": 25.0, "p95": 38.5, "p99": 39.7, "max": 40.0}
    stages = found["stages_ms"]
    assert isinstance(stages, dict)
    assert stages["encode"] == {"p50": 6.25, "p95": 9.625, "p99": 9.925, "max": 10.0}
    assert stages["model"] == {"p50": 12.5, "p95": 19.25, "p99": 19.85, "max": 20.0}
    assert (found["frames"], found["seconds"]) == (4, 0.32)
    assert found["real_time_factor"] == pytest.approx(0.1 / 0.32, abs=1e-4)


def test_the_longest_frame_outlives_the_window() -> None:
    times = FrameTimes(capacity=3)
    for seconds in (0.5, 0.001, 0.002, 0.003):
        times.add(seconds, (0.0, seconds, 0.0))
    assert times.summary()["model"] == {"p50": 2.0, "p95": 2.9, "p99": 2.98, "max": 500.0}


def test_two_that_are_compared_take_turns() -> None:
    """So that what else the machine does meanwhile meets both."""
    order: list[str] = []

    def timed(name: str) -> list[float]:
        order.append(name)
        return [float(len(order)), 0.5]

    ours, theirs = compare(lambda: timed("a"), lambda: timed("b"), 3)
    assert order == ["a", "b"] * 3
    assert ours == [1.0, 0.5, 3.0, 0.5, 5.0, 0.5]
    assert theirs == [2.0, 0.5, 4.0, 0.5, 6.0, 0.5]
    order.clear()
    assert compare(lambda: timed("a"), None, 2) == ([1.0, 0.5, 2.0, 0.5], [])
