"""What all tests share: when a test that needs the sound card may be left out."""

import ctypes.util
import os

import pytest
import rig

REQUIRED = "MOSHI_REQUIRE_DEVICE_TESTS"


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
