"""The commands of `moshi-local`: options in, plain functions called, one line for an error.

The live conversation is put together in `talk`; the one from file to file here.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import mlx.core as mx
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

import moshi_mlx
from moshi_mlx import MoshiError
from moshi_mlx.cache import KV_GROUPS

from .audio.devices import list_devices, print_devices
from .audio.echo import EchoMode
from .audio.files import FileAudio, check_files
from .chat import TalkOptions, consoles, load, open_session, print_json, talk
from .events import Event, FrameDone
from .loop import run_loop, stop_on_signals, warm_up
from .machine.bench import bench_config, bench_model
from .machine.bench import print_report as print_bench
from .machine.doctor import doctor
from .machine.profile import Inside
from .observers.event_log import STDOUT
from .observers.picture import draw_conversation
from .options import Codec, Keeping, ModelSource, SamplingFlags, SoundFlags
from .terminal.lines import print_report, print_words

__all__ = ["app", "main"]

DEFAULT_MODEL = "nano"
DEFAULT_TAIL = 4.0

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class RecordFormat(StrEnum):
    """Of a recording."""

    flac = "flac"
    wav = "wav"


# ------------------------------------------------------------------------------ the options

ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="nano (bundled), moshiko or moshika (as exact as this machine can), moshiko-q4, "
        "moshika-q8, …, a folder, or a repository of the hub. Default: nano.",
        show_default=False,
    ),
]
CodecOption = Annotated[Codec, typer.Option(help="The implementation of Mimi.")]
QuantizedOption = Annotated[
    int | None,
    typer.Option("-q", "--quantized", help="4 or 8: Moshi (moshiko) with so many bits."),
]
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


def _known_kv_bits(bits: int | None) -> int | None:
    if bits is not None and bits not in KV_GROUPS:
        raise typer.BadParameter(f"must be {' or '.join(map(str, sorted(KV_GROUPS)))}")
    return bits


KvBitsOption = Annotated[
    int | None,
    typer.Option(
        "--kv-bits",
        callback=_known_kv_bits,
        help="8 or 4: what the model keeps of the conversation, in so many bits a number.",
    ),
]
Float16Option = Annotated[
    bool,
    typer.Option(
        "--float16",
        help="Compute in float16, not in the backend's own type (float32 on the CPU, "
        "bfloat16 on a GPU).",
    ),
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
    quantized: QuantizedOption = None,
    hf_repo: Annotated[
        str | None, typer.Option("--hf-repo", help="A repository of the hub, as --model.")
    ] = None,
    codec: CodecOption = Codec.auto,
    lora: LoraOption = None,
    kv_bits: KvBitsOption = None,
    float16: Float16Option = False,
    force: Annotated[
        bool, typer.Option("--force", help="Load a model that does not fit in memory.")
    ] = False,
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
    rate: Annotated[
        int | None,
        typer.Option(
            min=8000,
            max=192_000,
            help="Open the devices at this rate (Hz). Default: 24000, or the device's own.",
            show_default=False,
        ),
    ] = None,
    echo: Annotated[
        EchoMode, typer.Option(help="Cancel the speaker's echo; auto: unless on headphones.")
    ] = EchoMode.auto,
    noise_suppression: Annotated[
        bool, typer.Option("--noise-suppression", help="Take noise out of the microphone's sound.")
    ] = False,
    push_to_talk: Annotated[
        bool, typer.Option("--push-to-talk", help="Listen only while the space bar is held.")
    ] = False,
    no_greeting: Annotated[
        bool, typer.Option("--no-greeting", help="Let Moshi wait until you have spoken (or 30 s).")
    ] = False,
    no_loop_guard: Annotated[
        bool, typer.Option("--no-loop-guard", help="Let Moshi repeat itself without end.")
    ] = False,
    seconds: Annotated[
        float | None, typer.Option(min=0.0, help="End by itself after so many seconds.")
    ] = None,
    record: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Record into this folder: sound (you left, Moshi right), "
            "transcript and subtitles. Made if missing; nothing is overwritten.",
        ),
    ] = None,
    record_format: Annotated[
        RecordFormat, typer.Option(help="A WAV while it runs, made FLAC at the end.")
    ] = RecordFormat.flac,
    events: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Write every event as a JSON line to this file, which is "
            "replaced, or to - (stdout). Holds what was said, no sound.",
        ),
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write the timings of the last two minutes at the end, for "
            "ui.perfetto.dev. The file is replaced.",
        ),
    ] = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="Plain lines in place of the screen.")
    ] = False,
    as_json: JsonOption = False,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print it."),
    ] = False,
) -> None:
    """Talk with Moshi, a speech model that listens while it speaks. q or Ctrl-C ends.

    Without a command: live, with microphone and speaker.
    """
    if context.invoked_subcommand is not None:
        _refuse_options_before(context)
        return
    if events == STDOUT and as_json:
        raise typer.BadParameter("--events - and --json both write to stdout: choose one")
    talk(
        TalkOptions(
            model=ModelSource(_model_name(model, quantized, hf_repo), codec, lora, float16),
            seed=seed,
            sampling=SamplingFlags(temperature, temperature_text, top_k, top_k_text, top_p, min_p),
            sound=SoundFlags(input, output, rate, echo, noise_suppression),
            keeping=Keeping(record, record_format.value, events, trace),
            kv_bits=kv_bits,
            push_to_talk=push_to_talk,
            greeting=not no_greeting,
            loop_guard=not no_loop_guard,
            seconds=seconds,
            force=force,
            plain=plain,
            as_json=as_json,
        )
    )


@app.command("devices")
def devices_command(as_json: JsonOption = False) -> None:
    """List the sound devices; * marks the defaults."""
    found = list_devices()
    if as_json:
        print(json.dumps([asdict(device) for device in found], ensure_ascii=False, indent=1))
    else:
        print_devices(Console(highlight=False), found)


@app.command("doctor")
def doctor_command(
    model: ModelOption = None,
    quantized: QuantizedOption = None,
    kv_bits: KvBitsOption = None,
    frames: Annotated[int, typer.Option(min=1, help="Frames to time.")] = 100,
    as_json: JsonOption = False,
) -> None:
    """Say whether this machine holds a conversation with a model, with numbers.

    Exit code 0 if it does, 1 if not.
    """
    name = _model_name(model, quantized, None)
    code = doctor(name, frames=frames, as_json=as_json, list_devices=list_devices, kv_bits=kv_bits)
    raise typer.Exit(code)


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
    kv_bits: KvBitsOption = None,
    float16: Float16Option = False,
    as_json: JsonOption = False,
) -> None:
    """Answer a recording: the live loop, from file to file."""
    if picture and not stereo:
        raise typer.BadParameter("--picture goes with --stereo")
    flags = SamplingFlags(temperature, temperature_text, top_k, top_k_text, top_p, min_p)
    source_of = ModelSource(model or DEFAULT_MODEL, codec, lora, float16)
    run_file(source, target, source_of, seed, flags, kv_bits, tail, stereo, picture, as_json)


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
    compiled: Annotated[
        bool | None,
        typer.Option("--compile/--no-compile", help="Let MLX fuse the step; on a GPU by default."),
    ] = None,
    kv_bits: KvBitsOption = None,
    float16: Float16Option = False,
    trace: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a trace of as many frames, for ui.perfetto.dev."),
    ] = None,
    flame: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.html",
            help="Write where Python's time goes in as many frames, as a flame plot.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Time a step of the language model: codes in, codes out."""
    if model and config:
        raise typer.BadParameter("--model and --config go one at a time")
    theirs = None
    inside = Inside(trace, flame)
    dtype = mx.float16 if float16 else None
    if config is None:
        if upstream is not None:
            raise typer.BadParameter("--vs-upstream goes with --config")
        moshi = moshi_mlx.load(model or DEFAULT_MODEL, verb="talk", dtype=dtype)
        mine = bench_model(moshi, frames, compiled, kv_bits, inside)
    else:
        mine, theirs = bench_config(
            config,
            bits,
            frames,
            upstream,
            compiled=compiled,
            kv_bits=kv_bits,
            dtype=dtype,
            inside=inside,
        )
    if as_json:
        print(json.dumps(mine.as_dict() | ({"upstream": vars(theirs)} if theirs else {})))
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


def run_file(
    source: Path,
    target: Path,
    model: ModelSource,
    seed: int,
    flags: SamplingFlags,
    kv_bits: int | None,
    tail: float,
    stereo: bool,
    picture: Path | None,
    as_json: bool,
) -> None:
    """The same loop from the file `source` to the file `target`."""
    screen, notes = consoles(as_json)
    check_files(source, target)
    moshi = load(model, notes)
    rate, frame_size = moshi.sample_rate, moshi.frame_size
    port = FileAudio(
        source, target, sample_rate=rate, frame_size=frame_size, tail=tail, stereo=stereo
    )
    with open_session(moshi, seed, flags, kv_bits) as session:
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
        extra = {"model": model.name, "codec": moshi.codec.name, "seed": seed}
        print_json(report, {**extra, "output": str(target)})
    else:
        print_words(screen, report.words)
        print_report(notes, report, 1 / moshi.frame_rate)


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


# typer brings its own copy of click or imports it, by version; this is its ClickException.
_UsageError: type[Exception] = typer.BadParameter.__mro__[2]


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; returns the exit code: 0, 2 for an error, 130 when interrupted."""
    try:
        return app(arguments, prog_name="moshi-local", standalone_mode=False) or 0
    except (MoshiError, _UsageError, OSError) as error:
        return _fail(error)
    except (KeyboardInterrupt, typer.Abort):
        return 130


def _fail(error: Exception) -> int:
    """One line on stderr; exit code 2."""
    describe = getattr(error, "format_message", error.__str__)
    print(f"moshi-local: {' '.join(describe().split())}", file=sys.stderr)
    return 2
