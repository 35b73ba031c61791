"""The commands of `moshi-local`: options in, plain functions called, one line for an error.

Everything is put together here: the model, the loop, the sound card or the files, the terminal.
"""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

import moshi_mlx
from moshi_mlx import Moshi, MoshiError, Sampling, Session

from .audio import LiveAudio, PortAudioDevice, choose_devices
from .bench import bench_config, bench_model
from .bench import print_report as print_bench
from .events import Event, FrameDone
from .files import FileAudio, check_files
from .loop import LoopReport, run_loop, stop_on_signals, warm_up
from .picture import draw_conversation
from .terminal import Transcript, print_report, print_words

__all__ = ["app", "main"]

DEFAULT_MODEL = "nano"
DEFAULT_TAIL = 4.0

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class Codec(StrEnum):
    """Which implementation of Mimi turns sound into codes and back."""

    auto = "auto"
    mlx = "mlx"
    rust = "rust"


@dataclass(frozen=True, slots=True)
class ModelSource:
    """What to load: a name, the codec to run it with, and an adapter beside it."""

    name: str
    codec: Codec
    lora: Path | None


@dataclass(frozen=True, slots=True)
class SamplingFlags:
    """The sampling options of the command line; None where the model's own value holds."""

    temperature: float | None = None
    temperature_text: float | None = None
    top_k: int | None = None
    top_k_text: int | None = None
    top_p: float | None = None
    min_p: float | None = None

    def audio(self, default: Sampling) -> Sampling | None:
        """For the tokens of the voice, or None if no option says anything about them."""
        return _changed(default, self.temperature, self.top_k, self.top_p, self.min_p)

    def text(self, default: Sampling) -> Sampling | None:
        """For the tokens of the text."""
        return _changed(default, self.temperature_text, self.top_k_text, self.top_p, self.min_p)


def _changed(
    default: Sampling,
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
) -> Sampling | None:
    options = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    given: dict[str, Any] = {k: v for k, v in options.items() if v is not None}
    if not given:
        return None
    if temperature and default.greedy:
        # top_k 1 of a greedy model would make the temperature mean nothing.
        default = Sampling()
    return replace(default, **given)


# ------------------------------------------------------------------------------ the options

ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="nano (bundled), moshiko-q4, moshika-q8, …, a folder, or a repository "
        "of the hub. Default: nano.",
        show_default=False,
    ),
]
CodecOption = Annotated[Codec, typer.Option(help="The implementation of Mimi.")]
LoraOption = Annotated[
    Path | None,
    typer.Option(help="An adapter to the model: its file, or the folder that it is in."),
]
TemperatureOption = Annotated[
    float | None,
    typer.Option("--temperature", min=0.0, help="Of the voice; 0 takes the likeliest token."),
]
TemperatureTextOption = Annotated[
    float | None, typer.Option("--temperature-text", min=0.0, help="Of the text.")
]
TopKOption = Annotated[
    int | None, typer.Option("--top-k", min=0, help="Of the voice; 0 for all tokens.")
]
TopKTextOption = Annotated[int | None, typer.Option("--top-k-text", min=0, help="Of the text.")]
TopPOption = Annotated[
    float | None, typer.Option("--top-p", min=0.0, max=1.0, help="Of voice and text.")
]
MinPOption = Annotated[
    float | None, typer.Option("--min-p", min=0.0, max=1.0, help="Of voice and text.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print a JSON summary on stdout.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"moshi-local {moshi_mlx.__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def live_command(
    context: typer.Context,
    model: ModelOption = None,
    quantized: Annotated[
        int | None,
        typer.Option("-q", "--quantized", help="4 or 8: Moshi (moshiko) with so many bits."),
    ] = None,
    hf_repo: Annotated[
        str | None, typer.Option("--hf-repo", help="A repository of the hub, as --model.")
    ] = None,
    codec: CodecOption = Codec.auto,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Makes sampling repeatable. Default: random.")
    ] = None,
    temperature: TemperatureOption = None,
    temperature_text: TemperatureTextOption = None,
    top_k: TopKOption = None,
    top_k_text: TopKTextOption = None,
    top_p: TopPOption = None,
    min_p: MinPOption = None,
    input: Annotated[
        str | None, typer.Option("--input", help="Microphone: number or part of its name.")
    ] = None,
    output: Annotated[
        str | None, typer.Option("--output", help="Speaker: number or part of its name.")
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(min=0.0, help="End by itself after so many seconds.")
    ] = None,
    lora: LoraOption = None,
    as_json: JsonOption = False,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print it."),
    ] = False,
) -> None:
    """Talk with Moshi, a speech model that listens while it speaks. Ctrl-C ends.

    Without a command: live, with microphone and speaker. Wear headphones: there is no echo
    cancellation yet.
    """
    if context.invoked_subcommand is not None:
        _refuse_options_before(context)
        return
    flags = SamplingFlags(temperature, temperature_text, top_k, top_k_text, top_p, min_p)
    name = _model_name(model, quantized, hf_repo)
    talk(ModelSource(name, codec, lora), seed, flags, input, output, seconds, as_json)


@app.command("run")
def run_command(
    source: Annotated[
        Path, typer.Argument(metavar="IN.wav", help="A recording: any rate, any channels.")
    ],
    target: Annotated[
        Path, typer.Argument(metavar="OUT.wav", help="Moshi's answer, 24 kHz; .wav or .flac.")
    ],
    model: ModelOption = None,
    codec: CodecOption = Codec.auto,
    seed: Annotated[int, typer.Option(min=0, help="Makes sampling repeatable.")] = 0,
    temperature: TemperatureOption = None,
    temperature_text: TemperatureTextOption = None,
    top_k: TopKOption = None,
    top_k_text: TopKTextOption = None,
    top_p: TopPOption = None,
    min_p: MinPOption = None,
    tail: Annotated[
        float,
        typer.Option(min=0.0, max=3600.0, help="Seconds of silence after IN.wav, for the reply."),
    ] = DEFAULT_TAIL,
    stereo: Annotated[
        bool, typer.Option("--stereo", help="Write both sides: the user left, Moshi right.")
    ] = False,
    picture: Annotated[
        Path | None,
        typer.Option(help="With --stereo: draw both sides and the words as an SVG file."),
    ] = None,
    lora: LoraOption = None,
    as_json: JsonOption = False,
) -> None:
    """Answer a recording: the live loop, from file to file."""
    if picture and not stereo:
        raise typer.BadParameter("--picture goes with --stereo")
    flags = SamplingFlags(temperature, temperature_text, top_k, top_k_text, top_p, min_p)
    source_of = ModelSource(model or DEFAULT_MODEL, codec, lora)
    run_file(source, target, source_of, seed, flags, tail, stereo, picture, as_json)


@app.command("bench")
def bench_command(
    model: ModelOption = None,
    config: Annotated[
        Path | None,
        typer.Option(help="A config.json: the model gets random weights.", exists=True),
    ] = None,
    bits: Annotated[int, typer.Option(help="With --config: 4, 8, or 16 for bfloat16.")] = 16,
    frames: Annotated[int, typer.Option(min=1, help="Steps to time, per round.")] = 100,
    upstream: Annotated[
        Path | None,
        typer.Option(
            "--vs-upstream",
            metavar="PYTHON",
            help="With --config: a Python with upstream's moshi_mlx 0.3.0, timed in turn.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Time a step of the language model: codes in, codes out."""
    if model and config:
        raise typer.BadParameter("--model and --config go one at a time")
    theirs = None
    if config is None:
        if upstream is not None:
            raise typer.BadParameter("--vs-upstream goes with --config")
        mine = bench_model(moshi_mlx.load(model or DEFAULT_MODEL), frames)
    else:
        mine, theirs = bench_config(config, bits, frames, upstream)
    if as_json:
        print(json.dumps(mine.as_dict() | ({"upstream_frame_ms": theirs} if theirs else {})))
    else:
        print_bench(mine, theirs)


def _model_name(model: str | None, quantized: int | None, hf_repo: str | None) -> str:
    """The one model that the options name. Upstream's -q may stand beside --hf-repo."""
    if quantized not in (None, 4, 8):
        raise typer.BadParameter("-q must be 4 or 8")
    if model and (hf_repo or quantized):
        raise typer.BadParameter("--model goes neither with --hf-repo nor with -q")
    if quantized and not hf_repo:
        return f"moshiko-q{quantized}"
    return model or hf_repo or DEFAULT_MODEL


def _refuse_options_before(context: typer.Context) -> None:
    """`moshi-local --seed 1 run …` would lose the seed without a word."""
    for name in context.params:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise typer.BadParameter(
                f"options of {context.invoked_subcommand} go after {context.invoked_subcommand}"
            )


# ---------------------------------------------------------------------------- the functions


def talk(
    model: ModelSource,
    seed: int | None,
    flags: SamplingFlags,
    input: str | None,
    output: str | None,
    seconds: float | None,
    as_json: bool,
) -> None:
    """The live conversation; ends by Ctrl-C, SIGTERM or after `seconds`."""
    screen, notes = _consoles(as_json)
    transcript = Transcript(screen)
    seed = secrets.randbits(31) if seed is None else seed
    choose_devices(input, output)
    moshi = _load(model, notes)
    rate, frame_size = moshi.sample_rate, moshi.frame_size
    with _session(moshi, seed, flags) as session:
        warm_up(session, frame_size)
        device = PortAudioDevice(input, output, rate)
        with (
            stop_on_signals() as stop,
            LiveAudio(device, sample_rate=rate, frame_size=frame_size) as port,
        ):
            report = run_loop(
                session,
                port,
                frame_size=frame_size,
                frame_rate=moshi.frame_rate,
                listeners=[transcript],
                stop=lambda: bool(stop),
                seconds=seconds,
            )
    transcript.end_line()
    print_report(notes, report, 1 / moshi.frame_rate)
    if as_json:
        _print_json(report, {"model": model.name, "seed": seed})


def run_file(
    source: Path,
    target: Path,
    model: ModelSource,
    seed: int,
    flags: SamplingFlags,
    tail: float,
    stereo: bool,
    picture: Path | None,
    as_json: bool,
) -> None:
    """The same loop from the file `source` to the file `target`."""
    screen, notes = _consoles(as_json)
    check_files(source, target)
    moshi = _load(model, notes)
    rate, frame_size = moshi.sample_rate, moshi.frame_size
    port = FileAudio(
        source, target, sample_rate=rate, frame_size=frame_size, tail=tail, stereo=stereo
    )
    with _session(moshi, seed, flags) as session:
        warm_up(session, frame_size)
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
        raise typer.Exit(130)
    if picture is not None:
        draw_conversation(target, report.words, picture)
    if as_json:
        _print_json(report, {"model": model.name, "seed": seed, "output": str(target)})
    else:
        print_words(screen, report.words)
        print_report(notes, report, 1 / moshi.frame_rate)


def _consoles(as_json: bool) -> tuple[Console, Console]:
    """Where words go and where notes go; with --json, stdout is for the JSON alone."""
    notes = Console(stderr=True, highlight=False)
    return (notes if as_json else Console(highlight=False)), notes


def _load(model: ModelSource, notes: Console) -> Moshi:
    notes.print(f"loading {model.name}", markup=False, soft_wrap=True)
    return moshi_mlx.load(model.name, codec=model.codec.value, lora=model.lora)


def _session(moshi: Moshi, seed: int, flags: SamplingFlags) -> Session:
    return moshi.session(
        seed=seed, text=flags.text(moshi.text_sampling), audio=flags.audio(moshi.audio_sampling)
    )


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


def _print_json(report: LoopReport, extra: dict[str, object]) -> None:
    print(json.dumps({**report.as_dict(), **extra}, ensure_ascii=False, indent=1))


# typer brings its own copy of click or imports it, by version; this is its ClickException.
_UsageError: type[Exception] = typer.BadParameter.__mro__[2]


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; returns the exit code: 0, 2 for an error, 130 when interrupted."""
    try:
        return app(arguments, prog_name="moshi-local", standalone_mode=False) or 0
    except (MoshiError, _UsageError, OSError) as error:
        return _fail(error)


def _fail(error: Exception) -> int:
    """One line on stderr; exit code 2."""
    describe = getattr(error, "format_message", error.__str__)
    print(f"moshi-local: {' '.join(describe().split())}", file=sys.stderr)
    return 2
