"""Make the picture of the screen in the README: a real conversation with nano, stopped in a word.

    python tests/make_screenshot.py [OUT.svg]       default: docs/screen.svg

Nano answers its question through the live loop, from file to file; so there is no sound card, and
no delay from mouth to ear to show. The times on it are of the machine that it is made on.
"""

from __future__ import annotations

import io
import re
import sys
import tempfile
from pathlib import Path

from make_question import DEFAULT as QUESTION
from rich.console import Console
from rich.segment import Segment, Segments

import moshi_mlx
from moshi_local.conversation import Conversation
from moshi_local.events import Event, FrameDone, Opened
from moshi_local.files import FileAudio
from moshi_local.loop import run_loop, warm_up
from moshi_local.screen import ScreenState, level

WIDTH, HEIGHT = 84, 16
ENOUGH_WORDS = 12
"""Words that Moshi has said when the picture is taken, in the midst of the next one."""
DEFAULT = Path(__file__).parent.parent / "docs" / "screen.svg"


def converse() -> ScreenState:
    """The state in the midst of a word."""
    moshi = moshi_mlx.load("nano")
    state = ScreenState(name="nano", budget=1 / moshi.frame_rate)
    state(Opened(0.0, QUESTION.name, "answer.wav"))
    words = 0
    taken = False

    def listen(event: Event) -> None:
        nonlocal words, taken
        state(event)
        if isinstance(event, FrameDone):
            words += len(event.frame.words)
            taken = words >= ENOUGH_WORDS and bool(event.frame.partial) and event.frame.speaking

    with tempfile.TemporaryDirectory() as folder, moshi.session(seed=0) as session:
        warm_up(session, moshi.frame_size)
        target = Path(folder) / "answer.wav"
        with FileAudio(
            QUESTION, target, sample_rate=moshi.sample_rate, frame_size=moshi.frame_size, tail=4.0
        ) as port:
            run_loop(
                Conversation(session, frame_rate=moshi.frame_rate),
                port,
                frame_size=moshi.frame_size,
                frame_rate=moshi.frame_rate,
                # The last word is told at the end too: by then the picture is taken.
                listeners=[lambda event: None if taken else listen(event)],
                stop=lambda: taken,
            )
    return state


def draw(state: ScreenState, target: Path) -> None:
    """The screen as an SVG file."""
    console = Console(
        file=io.StringIO(),
        record=True,
        width=WIDTH,
        height=HEIGHT,
        force_terminal=True,
        color_system="truecolor",
    )
    for row in state.rows(WIDTH, HEIGHT, [level(peak) for peak in state.peaks]):
        console.print(Segments([*row, Segment.line()]), end="", soft_wrap=True)
    # The viewer's own monospaced font: a picture fetches nothing from the network.
    picture = re.sub(
        r"@font-face \{.*?\}\n", "", console.export_svg(title="moshi-local"), flags=re.S
    )
    target.write_text(picture, encoding="utf-8")


def main() -> None:
    """Converse, and draw."""
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT
    draw(converse(), target)
    print(target)


if __name__ == "__main__":
    main()
