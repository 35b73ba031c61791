"""Single keys from the terminal, while the program runs.

Knows nothing of what they mean. The terminal is in cbreak mode meanwhile: keys come at once and
unseen, and Ctrl-C and Ctrl-Z are signals as ever. POSIX only; where standard input is no
terminal, or when the program is in the background, there are no keys.
"""

from __future__ import annotations

import math
import os
import re
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Any, Protocol

try:
    import termios
    import tty
except ImportError:  # Windows: no keys there
    termios = tty = None  # type: ignore[assignment]

__all__ = [
    "HeldKey",
    "Keys",
    "TerminalUser",
    "give_back_on_stop",
    "in_foreground",
    "split_keys",
]

HELD_SECONDS = 0.7
"""A key counts as held for this long after it came: terminals report no release, and a held key
repeats after about 0.5 s, then many times per second."""
BACKGROUND_SECONDS = 0.5
"""How often a program in the background looks whether the terminal is its own again."""

_ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|O.|.)?", re.DOTALL)


class HeldKey:
    """Whether a key is held, from the times (seconds) at which it came."""

    def __init__(self) -> None:
        self.held = False
        self._until = -math.inf

    def press(self, now: float) -> bool:
        """The key came; True if it was not held before."""
        begun = not self.held
        self.held, self._until = True, now + HELD_SECONDS
        return begun

    def passed(self, now: float) -> bool:
        """Time has passed; True if the key has been let go since the last call."""
        if self.held and now >= self._until:
            self.held = False
            return True
        return False

    def left(self, now: float) -> float | None:
        """Seconds until it counts as let go, or None while it is not held."""
        return max(0.0, self._until - now) if self.held else None


def split_keys(text: str) -> list[str]:
    """The single keys in what a terminal sent, in lower case; arrows and the like are left out."""
    return list(_ESCAPE.sub("", text).lower())


def in_foreground(fd: int) -> bool:
    """Whether this program may use the terminal `fd`; to touch it in the background stops it."""
    try:
        return os.tcgetpgrp(fd) == os.getpgrp()
    except OSError:  # a terminal, but not the one that controls this program
        return True


class TerminalUser(Protocol):
    """What has taken the terminal for itself and can give it back for a while."""

    def suspend(self) -> None:
        """Give it back."""

    def resume(self) -> None:
        """Take it again."""


class Keys:
    """Calls `actions[key]` for each key that comes, from its own thread.

    Args:
        actions: what to do, by key in lower case.
        hold: called with True when space begins to be held, and with False when it is let go.
        fd: the terminal; standard input if None.
    """

    def __init__(
        self,
        actions: Mapping[str, Callable[[], None]],
        hold: Callable[[bool], None] | None = None,
        *,
        fd: int | None = None,
    ) -> None:
        self._actions = actions
        self._hold = hold
        self._fd = fd
        self._before: list[Any] | None = None
        self._thread: threading.Thread | None = None
        self._space = HeldKey()

    @property
    def active(self) -> bool:
        """Whether there are keys at all."""
        return self._before is not None

    def __enter__(self) -> Keys:
        if self._fd is None:
            with suppress(OSError, ValueError, AttributeError):  # closed, or none
                self._fd = sys.stdin.fileno()
        if termios is None or self._fd is None or not os.isatty(self._fd):
            return self
        if not in_foreground(self._fd):
            return self
        try:
            self._before = termios.tcgetattr(self._fd)
            self.resume()
        except termios.error:  # it went away
            self._before = None
            return self
        self._wake, self._waker = os.pipe()
        self._thread = threading.Thread(target=self._run, name="keys", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # The thread first: a key that is flushed between its `select` and its `read` would let it
        # wait indefinitely.
        if self._thread is not None:
            os.close(self._waker)
            self._thread.join(1.0)
            self._thread = None
            os.close(self._wake)
        self.suspend()
        self._before = None

    def suspend(self) -> None:
        """The terminal as it was; what was typed and not read is forgotten."""
        if self._before is not None and self._fd is not None and in_foreground(self._fd):
            with suppress(termios.error):
                termios.tcsetattr(self._fd, termios.TCSANOW, self._before)
                termios.tcflush(self._fd, termios.TCIFLUSH)

    def resume(self) -> None:
        """Keys one by one, without echo."""
        if self._before is not None and self._fd is not None and in_foreground(self._fd):
            with suppress(termios.error):
                tty.setcbreak(self._fd, termios.TCSANOW)

    def _run(self) -> None:
        assert self._fd is not None
        waited = [self._fd, self._wake]
        while True:
            ready, _, _ = select.select(waited, [], [], self._space.left(time.monotonic()))
            if self._wake in ready:
                break
            if self._fd in ready and not in_foreground(self._fd):
                if select.select([self._wake], [], [], BACKGROUND_SECONDS)[0]:
                    break
            elif self._fd in ready:
                try:
                    data = os.read(self._fd, 1024)
                except OSError:
                    break
                if not data:
                    break
                for key in split_keys(data.decode(errors="ignore")):
                    self._came(key)
            if self._space.passed(time.monotonic()) and self._hold:
                self._hold(False)
        if self._space.held and self._hold:
            self._hold(False)

    def _came(self, key: str) -> None:
        if key == " " and self._hold:
            if self._space.press(time.monotonic()):
                self._hold(True)
        elif action := self._actions.get(key):
            action()


@contextmanager
def give_back_on_stop(*users: TerminalUser) -> Iterator[None]:
    """On Ctrl-Z, `users` give the terminal back before the program stops; on `fg` they take it.

    The last user gives it back first. Call it in the main thread.
    """
    if not hasattr(signal, "SIGTSTP") or signal.getsignal(signal.SIGTSTP) == signal.SIG_IGN:
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        for user in reversed(users):
            user.suspend()
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)  # stops here, and resumes here
        signal.signal(number, stop)
        go_on(number, frame)

    def go_on(_: int, __: FrameType | None) -> None:
        for user in users:
            user.resume()

    # SIGCONT too: `bg` and then `fg` sends nothing else.
    handlers = {signal.SIGTSTP: stop, signal.SIGCONT: go_on}
    before = [(number, signal.signal(number, handler)) for number, handler in handlers.items()]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)
