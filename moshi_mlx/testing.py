"""A stand-in for a session, for tests that need no weights.

It says back what it hears, and a word about every second. A program that drives
a session can test its own loop, sound and command line with it.
"""

from __future__ import annotations

import time

from .arrays import Pcm
from .events import WordSpoken
from .session import Frame, Timing
from .text import Word

SAMPLE_RATE = 24_000  # Mimi's
FRAME_SIZE = 1920
FRAME_RATE = SAMPLE_RATE / FRAME_SIZE
FRAMES_PER_WORD = 12


class FakeSession:
    """`step` returns its input after `delays[frame]` seconds (0 where not given)."""

    def __init__(self, delays: dict[int, float] | None = None) -> None:
        self.delays = delays or {}
        self.heard: list[Pcm] = []
        self.resets = 0
        self.held: list[bool] = []

    def step(self, pcm: Pcm, *, hold_text: bool = False) -> Frame:
        """One frame, echoed; `held` keeps what `hold_text` was."""
        index = len(self.heard)
        began = time.perf_counter()
        time.sleep(self.delays.get(index, 0.0))
        self.heard.append(pcm.copy())
        self.held.append(hold_text)
        word = index % FRAMES_PER_WORD == FRAMES_PER_WORD - 1
        end = (index + 1) / FRAME_RATE
        words = (Word(f"word{index}", end - 0.4, end),) if word else ()
        return Frame(
            index=index,
            pcm=pcm.copy(),
            text=" word" if word else "",
            words=words,
            partial="",
            speaking=word,
            user_speaking=False,
            tokens=None,
            events=tuple(WordSpoken(w.end, w) for w in words),
            timing=Timing(encode=0.0, model=time.perf_counter() - began, decode=0.0),
        )

    def flush(self) -> tuple[Word, ...]:
        """The word that was still open."""
        end = len(self.heard) / FRAME_RATE
        return (Word("last", end - 0.1, end),)

    def reset(self) -> None:
        """Forget everything."""
        self.heard.clear()
        self.held.clear()
        self.resets += 1
