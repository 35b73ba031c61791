"""Events told in the background, so that the loop's thread never waits for a listener.

A terminal, a disk or a pipe may stand still for as long as it likes. Knows nothing of what the
listeners do.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress

from moshi_mlx.closing import Closing

from ..events import Event, FrameDone, Listener

__all__ = ["Dispatcher"]

CLOSE_SECONDS = 2.0
CAPACITY = 256


class Dispatcher(Closing):
    """A listener that passes events on to `listeners`, in order, on its own thread.

    Args:
        listeners: they are called one after the other; give one that must not wait for the
            others its own Dispatcher.
        capacity: events that may wait. Beyond it the oldest FrameDone is lost, or if none
            waits, the oldest event.
        on_failure: called on the dispatcher's thread with a listener that raised, and the error;
            that listener is not called again.

    `failures` has these too; `lost_frames` and `lost_events` count what was never delivered. A
    context manager; may be called from any thread.
    """

    def __init__(
        self,
        listeners: Sequence[Listener],
        *,
        capacity: int = CAPACITY,
        on_failure: Callable[[Listener, Exception], None] | None = None,
    ) -> None:
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1, not {capacity}")
        self.failures: list[tuple[Listener, Exception]] = []
        self.lost_frames = 0
        self.lost_events = 0
        self._listeners = list(listeners)
        self._capacity = capacity
        self._on_failure = on_failure
        # Two queues with the events' numbers: the oldest of either kind is found at once.
        self._frames: deque[tuple[int, Event]] = deque()
        self._others: deque[tuple[int, Event]] = deque()
        self._count = 0
        self._closing = False
        self._abandoned = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="dispatcher", daemon=True)
        self._thread.start()

    def __call__(self, event: Event) -> None:
        """Take `event`; never waits for a listener. After `close` it is ignored."""
        with self._changed:
            if self._closing:
                return
            queue = self._frames if isinstance(event, FrameDone) else self._others
            queue.append((self._count, event))
            self._count += 1
            if len(self._frames) + len(self._others) > self._capacity:
                self._lose_one()
            self._changed.notify()

    def close(self, timeout: float = CLOSE_SECONDS) -> bool:
        """Deliver what waits, for at most `timeout` seconds; whether all was delivered.

        What is left then is lost. A listener that still blocks is left behind: it is called no
        more when it comes back. May be called again.
        """
        with self._changed:
            self._closing = True
            self._changed.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout)
        with self._changed:
            self._abandoned = True
            while self._frames or self._others:
                self._lose_one()
        return not (self.lost_frames or self.lost_events or self._thread.is_alive())

    def _lose_one(self) -> None:
        if self._frames:
            self._frames.popleft()
            self.lost_frames += 1
        else:
            self._others.popleft()
            self.lost_events += 1

    def _run(self) -> None:
        while (event := self._next()) is not None:
            for listener in tuple(self._listeners):
                try:
                    listener(event)
                except Exception as error:
                    self._drop(listener, error)
                if self._abandoned:
                    return

    def _next(self) -> Event | None:
        """The event to deliver now; None at the end."""
        with self._changed:
            while not (self._frames or self._others):
                if self._closing:
                    return None
                self._changed.wait()
            if not self._others or (self._frames and self._frames[0][0] < self._others[0][0]):
                return self._frames.popleft()[1]
            return self._others.popleft()[1]

    def _drop(self, listener: Listener, error: Exception) -> None:
        # By identity: two listeners may be equal.
        self._listeners = [each for each in self._listeners if each is not listener]
        self.failures.append((listener, error))
        if self._on_failure is not None:
            with suppress(Exception):  # the others shall be told in any case
                self._on_failure(listener, error)
