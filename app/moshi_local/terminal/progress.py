"""How far a sound has been heard, on a terminal: a bar, and the speed beside real time.

Knows seconds and lines. Knows nothing of models and files.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from .lines import printable

__all__ = ["SoundProgress"]


class SoundProgress(Progress):
    """A bar on a terminal, nothing elsewhere. A context manager, which leaves nothing behind.

    Args:
        console: where to draw.
        seconds: of the sound.
    """

    def __init__(self, console: Console, seconds: float) -> None:
        self._open_line = ""
        super().__init__(
            TextColumn("{task.completed:.0f}/{task.total:.0f} s"),
            BarColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            redirect_stdout=False,
            disable=not console.is_terminal,
        )
        self._seconds = seconds
        self._began = time.monotonic()
        self._task = self.add_task("", total=seconds, speed="")

    def heard(self, now: float) -> None:
        """The sound has been heard for `now` seconds."""
        speed = now / max(time.monotonic() - self._began, 0.001)
        last = "" if now < self._seconds else ", finishing"
        text = f"{speed:.1f} times real time{last}"
        self.update(self._task, completed=now, speed=text)

    def put(self, text: str) -> None:
        """More of a text, above the bar: whole lines stay, the last one still grows there."""
        *lines, self._open_line = (self._open_line + text).split("\n")
        for line in lines:
            self.console.print(printable(line), markup=False, highlight=False, soft_wrap=True)

    def get_renderables(self) -> Iterable[RenderableType]:
        """What is drawn: the end of the line that grows, if there is one, and the bar."""
        if self._open_line:
            yield Text(printable(self._open_line)[1 - self.console.width :], no_wrap=True)
        yield from super().get_renderables()
