"""What all tests share: the device, signals, and when a test may be left out."""

import ctypes.util
import os
import signal
from collections.abc import Iterator

import mlx.core as mx
import pytest

from moshi_mlx.backend import on_gpu
from tests import rig

REQUIRED = "MOSHI_REQUIRE_DEVICE_TESTS"
GPU = "MOSHI_TEST_GPU"


def pytest_configure() -> None:
    """Computes on the CPU everywhere, as numbers are compared in float32; with MOSHI_TEST_GPU=1
    (`make test-gpu`) on a GPU. Subprocesses compute on MLX's own device."""
    if os.environ.get(GPU) != "1":
        mx.set_default_device(mx.cpu)
    elif not on_gpu():
        raise pytest.UsageError(f"{GPU}=1, and MLX has no GPU: use `make test-gpu`")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips tests marked `device` where the virtual card cannot run; CI may not skip them."""
    if item.get_closest_marker("device") is None:
        return
    missing = rig.missing_programs()
    if ctypes.util.find_library("portaudio") is None:
        missing = f"{missing}, libportaudio2".removeprefix(", ")
    if not missing:
        return
    reason = f"the virtual sound card needs {missing} (.ci/run names the packages)"
    if os.environ.get(REQUIRED) == "1":
        pytest.fail(f"{reason}, and {REQUIRED}=1", pytrace=False)
    pytest.skip(reason)


@pytest.fixture(autouse=True)
def signals_are_not_ignored() -> Iterator[None]:
    """Who is started by nohup or in the background ignores some, and so do those it starts."""
    watched = (signal.SIGINT, signal.SIGHUP)
    ignored = [number for number in watched if signal.getsignal(number) == signal.SIG_IGN]
    for number in ignored:
        is_interrupt = number == signal.SIGINT
        signal.signal(number, signal.default_int_handler if is_interrupt else signal.SIG_DFL)
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
