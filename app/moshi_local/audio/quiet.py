"""What the sound libraries write to the terminal by themselves, left out.

ALSA, JACK and PortAudio write to file descriptor 2 while they look for devices and open them,
mostly about devices that are not in use; what matters comes as an error too. Knows nothing of
devices.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

__all__ = ["quiet_libraries", "restore_stderr"]

_NOISE = re.compile(
    rb"ALSA lib |Cannot connect to server |jack server is not running|Jack[A-Z]\w*::|JackShm"
    rb"|attempt to connect to server failed|connect\(2\) call to |Cannot lock down "
    rb"|Cannot use real-time |Expression '.*' failed in |Pa(Alsa|Jack|Oss)|\|\|PaMacCore"
)
_CLOSING_SECONDS = 1.0

_lock = threading.Lock()
_inside = 0
_saved = -1
_pump: threading.Thread | None = None


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """While it lasts, lines of sound libraries on stderr are left out; all others pass at once.

    For any number of threads: the first that enters redirects, the last that leaves restores.
    """
    _enter()
    try:
        yield
    finally:
        _leave()


def _enter() -> None:
    global _inside, _saved, _pump
    with _lock:
        _inside += 1
        if _inside > 1:
            return
        with suppress(OSError):  # there is no stderr: nothing to keep clean
            saved = os.dup(2)
            source, sink = os.pipe()
            os.dup2(sink, 2)
            os.close(sink)
            _saved = saved
            _pump = threading.Thread(
                target=_pass_on, args=(source, saved), name="stderr", daemon=True
            )
            _pump.start()


def _leave() -> None:
    global _inside
    with _lock:
        _inside -= 1
        if not _inside:
            restore_stderr()


def restore_stderr() -> None:
    """At the end of a program in which a thread never leaves: what was written gets out."""
    global _saved, _pump
    saved, pump, _saved, _pump = _saved, _pump, -1, None
    if pump is None:
        return
    os.dup2(saved, 2)  # which closes the pipe
    # A program that was started meanwhile may hold it open: the thread is left behind then.
    pump.join(_CLOSING_SECONDS)
    if not pump.is_alive():
        os.close(saved)


def _pass_on(source: int, target: int) -> None:
    """What comes from `source` goes to `target` at once, but for the libraries' lines."""
    at_start, noise = True, False
    with suppress(OSError):
        while data := os.read(source, 1 << 16):
            for piece in data.splitlines(keepends=True):
                if at_start:
                    noise = _NOISE.match(piece) is not None
                if not noise:
                    os.write(target, piece)
                at_start = piece.endswith(b"\n")
    os.close(source)
