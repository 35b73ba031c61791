"""What all tests share: the device, signals, and when a test may be left out."""

import ctypes.util
import os
import signal
from collections.abc import Iterator

import pytest

import moshi_mlx  # noqa: F401  before MLX, for its BLAS
from tests import rig
from tests.device import set_device

REQUIRED = "MOSHI_REQUIRE_DEVICE_TESTS"


def pytest_configure() -> None:
    """Before any module of tests is imported."""
    set_device()


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
