"""A picture of a conversation as SVG: both waveforms, and Moshi's words on a time line.

Knows samples and words. Knows nothing of models, sound cards or terminals.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
import soundfile
from numpy.typing import NDArray

from moshi_mlx import Word
from moshi_mlx.outputs import WholeFile

__all__ = ["conversation_svg", "draw_conversation"]

SUFFIXES = (".svg",)
WIDTH_PER_SECOND = 90.0
MARGIN = 64.0
ROW = 90.0
WORDS = 74.0
COLUMN = 2.0  # width of one bar of a waveform
USER, MOSHI, INK = "#a5782a", "#3a62a0", "#333"
STYLE = (
    f"text{{font:12px Helvetica,Arial,sans-serif;fill:{INK}}}"
    ".side{font-weight:bold}.time{fill:#777;font-size:10px}.tick{stroke:#ddd}"
)


def conversation_svg(
    user: NDArray[np.float32], moshi: NDArray[np.float32], words: Sequence[Word], rate: int
) -> str:
    """Both sides over time.

    Args:
        user, moshi: float32 [samples], in −1 … 1.
        words: Moshi's, with times in seconds.
        rate: samples per second.
    """
    seconds = max(len(user), len(moshi)) / rate
    width = 2 * MARGIN + seconds * WIDTH_PER_SECOND
    height = 2 * ROW + WORDS + 30
    loudest = max(float(np.abs(x).max(initial=0.0)) for x in (user, moshi)) or 1.0
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'role="img" aria-label="A conversation: both waveforms and the words of Moshi">',
        f"<style>{STYLE}</style>",
        f'<rect width="{width:.0f}" height="{height:.0f}" fill="#fff"/>',
        *_time_line(seconds, height),
        _side("user", user / loudest, rate, ROW / 2 + 8, USER),
        _side("Moshi", moshi / loudest, rate, ROW * 1.5 + 8, MOSHI),
        *_words(words, 2 * ROW + 26),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _x(seconds: float) -> float:
    return MARGIN + seconds * WIDTH_PER_SECOND


def _time_line(seconds: float, height: float) -> list[str]:
    """A line per second, numbered."""
    parts = []
    for second in range(int(seconds) + 1):
        x = _x(second)
        parts.append(f'<path class="tick" d="M{x:.1f} 8V{height - 20:.0f}"/>')
        parts.append(f'<text class="time" x="{x + 2:.1f}" y="{height - 8:.0f}">{second} s</text>')
    return parts


def _side(name: str, pcm: NDArray[np.float32], rate: int, middle: float, colour: str) -> str:
    """One waveform: a bar from the lowest to the highest sample of each column."""
    samples = max(1, round(rate * COLUMN / WIDTH_PER_SECOND))
    columns = pcm[: len(pcm) // samples * samples].reshape(-1, samples)
    path = "".join(
        f"M{MARGIN + COLUMN * i:.0f} {middle - scale * high:.1f}V{middle - scale * low:.1f}"
        for scale in (ROW / 2 - 6,)
        for i, (low, high) in enumerate(zip(columns.min(axis=1), columns.max(axis=1), strict=True))
        if high - low > 0.01
    )
    return (
        f'<text class="side" x="8" y="{middle + 4:.0f}" style="fill:{colour}">{name}</text>'
        f'<path d="{path}" stroke="{colour}" stroke-width="{COLUMN - 0.6}" fill="none"/>'
    )


def _words(words: Sequence[Word], top: float) -> list[str]:
    """Each word slanted under the moment it begins."""
    return [
        f'<text transform="translate({_x(word.start):.1f} {top:.0f}) rotate(55)" '
        f'style="fill:{MOSHI}">{escape(word.text)}</text>'
        for word in words
    ]


def draw_conversation(recording: Path, words: Sequence[Word], target: Path) -> None:
    """Draws a stereo recording (the user left, Moshi right) to an SVG file. Raises MoshiError."""
    picture = WholeFile(target, "the picture", SUFFIXES)
    pcm, rate = soundfile.read(recording, dtype="float32", always_2d=True)
    picture.write(conversation_svg(pcm[:, 0], pcm[:, 1], words, rate), mode=0o644)
