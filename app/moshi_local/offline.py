"""A conversation from file to file: the live loop without a sound card."""

from __future__ import annotations

import signal
import statistics
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from moshi_mlx import Model
from moshi_mlx.outputs import Output

from .assembly import (
    check_captions,
    consoles,
    heard_as_dict,
    inputs_of,
    load_captions,
    load_model,
    open_session,
    print_json,
)
from .audio.files import FileAudio, check_sound_files
from .events import Event, FrameDone
from .listening import Listening
from .loop import run_loop, stop_on_signals
from .observers.picture import SUFFIXES, draw_conversation
from .options import ModelSource, PersonaFlags, SamplingFlags
from .report import warm_up
from .role import role_for
from .terminal.lines import print_report, print_words

if TYPE_CHECKING:  # imported where they are asked for
    from .captions import Captions

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
    captions: the name of a model that writes down what the recording says.
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
    captions: str | None = None


def answer_file(options: FileOptions) -> None:
    """Lets the model hear a recording, and writes what it says."""
    source, target = options.source, options.target
    screen, notes = consoles(options.as_json)
    picture = options.picture
    outputs = [] if picture is None else [Output(picture, "the picture", SUFFIXES)]
    inputs = inputs_of(options.model, options.persona)
    sound = check_sound_files(source, target, outputs, inputs)
    role = role_for(options.persona, options.model.name, options.kv_bits)
    check_captions(options.captions)
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
    with ExitStack() as stack:
        session = stack.enter_context(
            open_session(
                moshi, options.seed, options.sampling, verdict.kv_bits, role=role, notes=notes
            )
        )
        captions: Captions | None = None
        if options.captions is not None:
            force = options.model.force
            captioner = load_captions(options.captions, notes, moshi, verdict, force)
            captions = _captions(stack.enter_context(captioner.open_session()), moshi)
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
                listeners=[advance, *([] if captions is None else [captions])],
                stop=lambda: bool(stop),
            )
            if captions is not None and port.whole:
                captions.finish()
    if not port.whole:
        notes.print(f"moshi-local: stopped; {target} was not written", soft_wrap=True)
        raise typer.Exit(128 + (stop.signal or signal.SIGINT))
    if options.as_json:
        extra = {"model": verdict.model, "codec": moshi.codec.name, "seed": options.seed}
        if captions is not None:
            extra |= heard_as_dict(captioner.verdict.model, captions.words)
        print_json(report, {**extra, **role.as_dict(), "output": str(target)})
    else:
        print_words(screen, report.words, None if captions is None else captions.words)
        print_report(notes, report, 1 / moshi.frame_rate)
    if picture is not None:
        draw_conversation(target, report.words, picture)


def _captions(session: Listening, moshi: Model) -> Captions:
    from .captions import Captions

    return Captions(session, frame_rate=moshi.frame_rate)


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
