"""Events in the background: in order, never waited for, never lost without being counted."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest

from moshi_local.events import Event, Listener, Resumed
from moshi_local.observers.dispatcher import Dispatcher
from tests.fakes.frames import frame_done


class Gate:
    """A listener that waits in its first event until `open` is set."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.open = threading.Event()
        self.heard: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.entered.set()
        self.open.wait()
        self.heard.append(event)


def test_in_order_and_on_another_thread() -> None:
    heard: list[tuple[Event, int]] = []
    events = [frame_done(n // 2) if n % 2 else Resumed(n, slept=1.0) for n in range(200)]
    with Dispatcher([lambda event: heard.append((event, threading.get_ident()))]) as dispatcher:
        for event in events:
            dispatcher(event)
    assert [event for event, _ in heard] == events
    assert threading.get_ident() not in {thread for _, thread in heard}
    assert (dispatcher.lost_frames, dispatcher.lost_events) == (0, 0)


def test_frames_go_first_the_oldest_before_the_others() -> None:
    gate = Gate()
    dispatcher = Dispatcher([gate], capacity=3)
    first = Resumed(0.0, slept=0.0)
    dispatcher(first)
    assert gate.entered.wait(5)
    frames = [frame_done(n) for n in range(3)]
    others = [Resumed(float(n), slept=0.0) for n in range(1, 4)]
    for event in (frames[0], others[0], frames[1], frames[2]):
        dispatcher(event)  # frames[0] goes
    dispatcher(others[1])  # frames[1] goes
    dispatcher(others[2])  # frames[2] goes
    dispatcher(frames[0])  # goes itself: the others are worth more
    assert (dispatcher.lost_frames, dispatcher.lost_events) == (4, 0)
    last = Resumed(4.0, slept=0.0)
    dispatcher(last)
    assert (dispatcher.lost_frames, dispatcher.lost_events) == (4, 1)
    gate.open.set()
    assert not dispatcher.close()
    assert gate.heard == [first, *others[1:], last]


def test_a_listener_that_raises_is_dropped_and_the_others_go_on() -> None:
    heard: list[Event] = []
    told: list[tuple[Listener, Exception]] = []
    trouble = OSError("no space")
    calls = []

    def broken(event: Event) -> None:
        calls.append(event)
        raise trouble

    def also_broken(listener: Listener, error: Exception) -> None:
        told.append((listener, error))
        raise RuntimeError("the report fails too")

    with Dispatcher([broken, heard.append], on_failure=also_broken) as dispatcher:
        for n in range(3):
            dispatcher(Resumed(n, slept=0.0))
    assert len(calls) == 1
    assert len(heard) == 3
    assert told == dispatcher.failures == [(broken, trouble)]


def test_never_hangs_on_a_listener_that_blocks_for_ever() -> None:
    gate, other = Gate(), list[Event]()
    dispatcher = Dispatcher([gate, other.append], capacity=10)
    dispatcher(Resumed(0.0, slept=0.0))
    assert gate.entered.wait(5)
    began = time.monotonic()
    for n in range(1, 30):
        dispatcher(Resumed(n, slept=0.0))
    assert time.monotonic() - began < 1.0
    assert not dispatcher.close(timeout=0.2)
    assert 0.2 <= time.monotonic() - began < 2.0
    assert dispatcher.lost_events + 1 == 30
    dispatcher(Resumed(99.0, slept=0.0))  # ignored
    gate.open.set()
    dispatcher._thread.join(5)
    # What came back after the end is not told to the others, which may be closed.
    assert [event.time for event in gate.heard] == [0.0]
    assert other == []


def test_a_program_ends_while_a_listener_blocks() -> None:
    program = """
import os, sys
from moshi_local.events import Resumed
from moshi_local.observers.dispatcher import Dispatcher
inlet, outlet = os.pipe()
dispatcher = Dispatcher([lambda event: os.write(outlet, bytes(1 << 20))])
dispatcher(Resumed(0.0, slept=0.0))
print(dispatcher.close(timeout=0.1))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "False\n", "")


def test_capacity_is_checked() -> None:
    with pytest.raises(ValueError, match="capacity"):
        Dispatcher([], capacity=0)
