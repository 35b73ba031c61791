"""Processes that benchmarks start and watch."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

STOPPING_SECONDS = 10.0


@dataclass(frozen=True)
class Served:
    """A server that is ready: its address and its process."""

    url: str
    pid: int


@contextmanager
def served(*arguments: str) -> Iterator[Served]:
    """A server on a free port, with these arguments, until the context ends.

    Raises:
        RuntimeError: it ended before it was ready; the message has its last line.
    """
    command = [sys.executable, "-m", "moshi_local", "serve", "--port", "0", "--seed", "0"]
    process = subprocess.Popen([*command, *arguments], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        line = ""
        while (found := re.search(r"is ready: (http\S+)", line)) is None:
            last, line = line, process.stderr.readline()
            if not line:
                raise RuntimeError(f"the server has ended: {last.strip()}")
        # Its log is read on, or it would wait for a reader.
        threading.Thread(target=process.stderr.read, daemon=True).start()
        yield Served(found[1], process.pid)
    finally:
        process.terminate()
        process.wait(STOPPING_SECONDS)


def free_port() -> int:
    """One that no program listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def resident_bytes(pid: int) -> float:
    """Of a process; NaN if it has ended."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return float("nan")
    return pages * os.sysconf("SC_PAGE_SIZE")
