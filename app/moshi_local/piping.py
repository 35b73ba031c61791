"""`moshi-local pipe`: a conversation through stdin and stdout, for programs that own the sound."""

from __future__ import annotations

import secrets
import signal
import sys
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from moshi_mlx import MoshiError, catalog
from moshi_mlx.hub import canonical
from moshi_mlx.outputs import Output, check_outputs

from . import arguments as a
from .assembly import consoles, inputs_of, load_model, open_session
from .audio.pipe import PipeAudio
from .conversation import Conversation
from .events import Listener
from .loop import run_loop, stop_on_signals
from .observers.dispatcher import Dispatcher
from .observers.event_log import STDOUT, EventLog
from .options import CodecChoice, ModelSource, PersonaFlags, SamplingFlags
from .report import warm_up
from .role import role_for

__all__ = ["PipeOptions", "pipe", "pipe_command"]

_STDERR = 2
_WARM_UP_FRAMES = 12


@dataclass(frozen=True, slots=True)
class PipeOptions:
    """What `pipe` is asked for; events go to stderr where no file is named."""

    model: ModelSource
    seed: int | None = None
    sampling: SamplingFlags = field(default_factory=SamplingFlags)
    persona: PersonaFlags = field(default_factory=PersonaFlags)
    kv_bits: int | None = None
    loop_guard: bool = True
    events: Path | None = None


def pipe(options: PipeOptions) -> None:
    """Until the end of stdin; what was heard by then has been answered.

    Raises:
        MoshiError: stdin or stdout is a terminal, or something cannot be read or written.
        typer.Exit: a signal came.
    """
    for stream, name in ((sys.stdin, "stdin"), (sys.stdout, "stdout")):
        if stream.isatty():
            raise MoshiError(
                f"{name} is a terminal: pipe is for programs that read and write sound, such as "
                "ffmpeg … | moshi-local pipe | ffmpeg …"
            )
    outputs = [] if options.events is None else [Output(options.events, "events", kind="stream")]
    check_outputs(outputs, inputs_of(options.model, options.persona))
    role = role_for(options.persona, options.model.name, options.kv_bits)
    # Lines of JSON and lines for people do not go together.
    notes = Console(quiet=True) if options.events is None else consoles(stdout_is_taken=True)[1]
    model, verdict = load_model(options.model, notes, options.kv_bits)
    seed = secrets.randbits(31) if options.seed is None else options.seed
    with open_session(
        model, seed, options.sampling, verdict.kv_bits, role=role, notes=notes
    ) as session:
        warm_up(session, model.frame_size, _WARM_UP_FRAMES)
        conversation = Conversation(session, frame_rate=model.frame_rate, guard=options.loop_guard)
        port = PipeAudio(sys.stdin.fileno(), sys.stdout.fileno(), frame_size=model.frame_size)
        with stop_on_signals() as stop, ExitStack() as stack:
            log = stack.enter_context(EventLog(options.events or _STDERR))
            listeners: list[Listener] = [stack.enter_context(Dispatcher([log]))]
            run_loop(
                conversation,
                port,
                frame_size=model.frame_size,
                frame_rate=model.frame_rate,
                listeners=listeners,
                stop=lambda: bool(stop),
            )
    if stop.signal is not None:
        raise typer.Exit(128 + stop.signal)
    if port.reader_gone:
        raise typer.Exit(128 + signal.SIGPIPE)


def pipe_command(
    model: a.ModelOption = None,
    force: a.ForceOption = False,
    codec: a.CodecNameOption = CodecChoice.auto,
    lora: a.LoraOption = None,
    base: a.BaseOption = None,
    kv_bits: a.KvBitsOption = None,
    float16: a.Float16Option = False,
    persona: a.PersonaOption = None,
    voice: a.VoiceOption = None,
    no_prompt_cache: a.NoPromptCacheOption = False,
    keep_persona: a.KeepPersonaOption = False,
    no_loop_guard: a.NoLoopGuardOption = False,
    seed: a.SeedOption = None,
    temperature: a.TemperatureOption = None,
    temperature_text: a.TemperatureTextOption = None,
    top_k: a.TopKOption = None,
    top_k_text: a.TopKTextOption = None,
    top_p: a.TopPOption = None,
    min_p: a.MinPOption = None,
    events: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write the events to this file; it is replaced. Notes then go to stderr.",
            show_default="stderr",
            rich_help_panel=a.FILES,
        ),
    ] = None,
) -> None:
    """Talk through a pipe: sound on stdin, Moshi on stdout, events on stderr.

    Both are 16-bit little-endian samples, mono, 24 kHz; the output is as long as the input. Every
    event is a line of JSON. Ends with its input.
    """
    if events is not None and str(events) == STDOUT:
        raise typer.BadParameter("stdout carries sound alone: give --events a file")
    pipe(
        PipeOptions(
            model=ModelSource(
                canonical(model or catalog.default_model()), codec, lora, float16, force, base
            ),
            seed=seed,
            sampling=SamplingFlags(temperature, temperature_text, top_k, top_k_text, top_p, min_p),
            persona=PersonaFlags(persona, voice, not no_prompt_cache, keep_persona),
            kv_bits=kv_bits,
            loop_guard=not no_loop_guard,
            events=events,
        )
    )
