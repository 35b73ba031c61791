"""A conversation from file to file: the live loop without a sound card."""

from __future__ import annotations

import signal
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from moshi_mlx.outputs import Output

from .assembly import consoles, inputs_of, load_model, open_session, print_json
from .audio.files import FileAudio, check_sound_files
from .events import Event, FrameDone
from .loop import run_loop, stop_on_signals
from .observers.picture import SUFFIXES, draw_conversation
from .options import ModelSource, PersonaFlags, SamplingFlags
from .report import warm_up
from .role import role_for
from .terminal.lines import print_report, print_words

__all__ = ["FileOptions", "answer_file"]

LONG_SECONDS = 600.0
"""From here on it is said how long a recording will take."""
ESTIMATE_FRAMES = 5


@dataclass(frozen=True, slots=True)
class FileOptions:
    """What `run` is asked for.

    tail: seconds of silence after the recording, for the reply.
    stereo: write both sides, the user left and Moshi right.
    picture: draw both sides and the words as an SVG file there.
    """

    source: Path
    target: Path
    model: ModelSource
    seed: int = 0
    sampling: SamplingFlags = field(default_factory=SamplingFlags)
    persona: PersonaFlags = field(default_factory=PersonaFlags)
    kv_bits: int | None = None
    tail: float = 4.0
    stereo: bool = False
    picture: Path | None = None
    as_json: bool = False


def answer_file(options: FileOptions) -> None:
    """Lets the model hear a recording, and writes what it says."""
    source, target = options.source, options.target
    screen, notes = consoles(options.as_json)
    picture = options.picture
    outputs = [] if picture is None else [Output(picture, "the picture", SUFFIXES)]
    inputs = inputs_of(options.model, options.persona)
    sound = check_sound_files(source, target, outputs, inputs)
    role = role_for(options.persona, options.model.name, options.kv_bits)
    moshi, verdict = load_model(options.model, notes, options.kv_bits)
    rate, frame_size = moshi.sample_rate, moshi.frame_size
    port = FileAudio(
        sound,
        target,
        sample_rate=rate,
        frame_size=frame_size,
        tail=options.tail,
        stereo=options.stereo,
    )
    with open_session(
        moshi, options.seed, options.sampling, verdict.kv_bits, role=role, notes=notes
    ) as session:
        long = sound.seconds >= LONG_SECONDS
        times = warm_up(session, frame_size, ESTIMATE_FRAMES if long else 0)
        if long:
            work = _duration(port.frames * statistics.median(times))
            there = _duration(sound.seconds)
            text = f"{source} has {there} of sound: about {work} of work"
            notes.print(text, markup=False, soft_wrap=True)
        with stop_on_signals() as stop, port, _progress(notes, port.frames) as advance:
            report = run_loop(
                session,
                port,
                frame_size=frame_size,
                frame_rate=moshi.frame_rate,
                listeners=[advance],
                stop=lambda: bool(stop),
            )
    if not port.whole:
        notes.print(f"moshi-local: stopped; {target} was not written", soft_wrap=True)
        raise typer.Exit(128 + (stop.signal or signal.SIGINT))
    if options.as_json:
        extra = {"model": verdict.model, "codec": moshi.codec.name, "seed": options.seed}
        print_json(report, {**extra, **role.as_dict(), "output": str(target)})
    else:
        print_words(screen, report.words)
        print_report(notes, report, 1 / moshi.frame_rate)
    if picture is not None:
        draw_conversation(target, report.words, picture)


def _duration(seconds: float) -> str:
    """Hours and minutes, as 1 h 05 min."""
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"


@contextmanager
def _progress(notes: Console, frames: int) -> Iterator[Any]:
    """A bar on a terminal, nothing elsewhere; gives a listener that moves it."""
    columns = (TextColumn("{task.completed:.0f}/{task.total:.0f} frames"), BarColumn())
    with Progress(
        *columns,
        TimeRemainingColumn(),
        console=notes,
        transient=True,
        disable=not notes.is_terminal,
    ) as bar:
        task = bar.add_task("", total=frames)

        def advance(event: Event) -> None:
            if isinstance(event, FrameDone):
                bar.advance(task)

        yield advance
