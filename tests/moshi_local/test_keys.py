"""Keys: what a terminal sends, when a key is held, and a real terminal given back in every way."""

from __future__ import annotations

import os
import pty
import termios
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from moshi_local.terminal.keys import HELD_SECONDS, HeldKey, Keys, split_keys


def eventually(true: Callable[[], bool], seconds: float = 5.0) -> bool:
    """Whether it becomes true in time."""
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.005)
    return true()


def terminal_state(fd: int) -> list[Any]:
    """As `termios.tcgetattr`, without PENDIN: BSD and macOS set it until the next line is read."""
    state = termios.tcgetattr(fd)
    state[3] &= ~termios.PENDIN
    return state


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """The keyboard's side and the program's side of a terminal."""
    ours, theirs = pty.openpty()
    yield ours, theirs
    os.close(ours)
    os.close(theirs)


@pytest.mark.parametrize(
    ("sent", "keys"),
    [
        ("mQ ", ["m", "q", " "]),
        ("\x1b[Am", ["m"]),  # an arrow key is no A
        ("\x1b[1;5Cr", ["r"]),
        ("\x1bOPq", ["q"]),  # F1
        ("\x1b", []),
        ("\x1bm", []),  # Alt-m
    ],
)
def test_what_a_terminal_sends_as_keys(sent: str, keys: list[str]) -> None:
    assert split_keys(sent) == keys


def test_a_held_key_is_held_until_it_stops_repeating() -> None:
    key = HeldKey()
    assert key.left(0.0) is None
    assert key.press(0.0)
    assert not key.passed(0.5), "the first repetition comes late"
    assert not key.press(0.5)
    assert not key.press(0.53)
    assert key.left(0.6) == pytest.approx(0.53 + HELD_SECONDS - 0.6)
    assert not key.passed(0.53 + HELD_SECONDS - 0.01)
    assert key.passed(0.53 + HELD_SECONDS)
    assert not key.passed(9.0), "told once"
    assert key.press(10.0)


def test_keys_come_one_by_one_and_the_terminal_is_given_back(terminal: tuple[int, int]) -> None:
    keyboard, fd = terminal
    before = terminal_state(fd)
    pressed: list[str] = []
    with Keys({"m": lambda: pressed.append("m"), "q": lambda: pressed.append("q")}, fd=fd) as keys:
        assert keys.active
        local = termios.tcgetattr(fd)[3]
        assert not local & (termios.ICANON | termios.ECHO)
        assert local & termios.ISIG, "Ctrl-C and Ctrl-Z are signals"
        os.write(keyboard, b"mxM\x1b[A q")
        assert eventually(lambda: pressed[-1:] == ["q"])
        os.write(keyboard, b"left over")
    assert pressed == ["m", "m", "q"]
    assert terminal_state(fd) == before
    assert "keys" not in [thread.name for thread in threading.enumerate()]


def test_space_is_held_and_let_go(terminal: tuple[int, int]) -> None:
    keyboard, fd = terminal
    held: list[tuple[bool, float]] = []
    with Keys({}, lambda on: held.append((on, time.monotonic())), fd=fd):
        os.write(keyboard, b" ")
        assert eventually(lambda: len(held) == 1)
        time.sleep(0.3)
        os.write(keyboard, b" ")
        again = time.monotonic()
        assert eventually(lambda: len(held) == 2)
    assert [on for on, _ in held] == [True, False]
    assert held[1][1] - again >= HELD_SECONDS


def test_space_that_is_held_at_the_end_is_let_go(terminal: tuple[int, int]) -> None:
    keyboard, fd = terminal
    held: list[bool] = []
    with Keys({}, held.append, fd=fd):
        os.write(keyboard, b" ")
        assert eventually(lambda: held == [True])
    assert held == [True, False]


def test_suspended_the_terminal_is_as_it_was(terminal: tuple[int, int]) -> None:
    keyboard, fd = terminal
    before = terminal_state(fd)
    pressed: list[str] = []
    with Keys({"m": lambda: pressed.append("m")}, fd=fd) as keys:
        keys.suspend()
        assert terminal_state(fd) == before
        keys.resume()
        os.write(keyboard, b"m")
        assert eventually(lambda: pressed == ["m"])
    assert terminal_state(fd) == before


def test_no_terminal_no_keys() -> None:
    read, write = os.pipe()
    with Keys({"m": lambda: None}, fd=read) as keys:
        assert not keys.active
    os.close(read)
    os.close(write)


def test_an_error_inside_gives_the_terminal_back(terminal: tuple[int, int]) -> None:
    _, fd = terminal
    before = terminal_state(fd)
    with pytest.raises(RuntimeError), Keys({}, fd=fd):
        raise RuntimeError
    assert terminal_state(fd) == before
