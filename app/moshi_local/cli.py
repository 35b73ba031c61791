"""The commands of `moshi-local`: options in, plain functions called, one line for an error."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import mlx.core as mx
import typer
from rich.console import Console

import moshi_mlx
from moshi_mlx import catalog
from moshi_mlx.hub import canonical
from moshi_mlx.outputs import Output, check_outputs
from moshi_mlx.program import refuse_empty, run_program

from . import arguments as a
from .assembly import asked, inputs_of, load_model
from .audio.devices import list_devices, print_devices
from .chat import ChatOptions, chat
from .completion import complete_command
from .config_file import config_folder, config_path, read_defaults
from .evaluation import evaluate_command
from .first_start import first_model
from .machine.bench import bench_config, bench_model, print_bench
from .machine.checkup import DEFAULT_REPORT, full_checkup
from .machine.doctor import doctor
from .machine.models import print_models, rows_as_json, survey
from .machine.prediction import Speeds
from .machine.profile import FLAME_SUFFIXES, Profile
from .observers.event_log import STDOUT
from .observers.trace import Trace
from .offline import FileOptions, answer_file
from .options import (
    CodecChoice,
    EchoMode,
    Keeping,
    ModelSource,
    PersonaFlags,
    SamplingFlags,
    SoundFlags,
)
from .piping import pipe_command
from .platform import batch_gpu_work, machine
from .serving import serve_command
from .speaking import speak_command
from .transcription import transcribe_command
from .translation import translate_command
from .voices import voices_app

__all__ = ["app", "main"]

app = typer.Typer(
    cls=a.Group,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    epilog=f"Defaults of these options can be set in {config_path()}: keys are the long options "
    "without dashes, a table per command.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"moshi-local {moshi_mlx.__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def live_command(
    context: typer.Context,
    model: a.ModelOption = None,
    quantized: a.QuantizedOption = None,
    hf_repo: a.HfRepoOption = None,
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
    push_to_talk: a.PushToTalkOption = False,
    no_greeting: a.NoGreetingOption = False,
    no_loop_guard: a.NoLoopGuardOption = False,
    captions: a.CaptionsOption = None,
    seconds: a.SecondsOption = None,
    input: a.InputOption = None,
    output: a.OutputOption = None,
    rate: a.RateOption = None,
    echo: a.EchoOption = EchoMode.auto,
    noise_suppression: a.NoiseSuppressionOption = False,
    record: a.RecordOption = None,
    record_format: a.RecordFormatOption = a.RecordFormat.flac,
    events: a.EventsOption = None,
    trace: a.TraceOption = None,
    seed: a.SeedOption = None,
    temperature: a.TemperatureOption = None,
    temperature_text: a.TemperatureTextOption = None,
    top_k: a.TopKOption = None,
    top_k_text: a.TopKTextOption = None,
    top_p: a.TopPOption = None,
    min_p: a.MinPOption = None,
    plain: a.PlainOption = False,
    as_json: a.JsonOption = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Talk with Moshi, a speech model that listens while it speaks.

    Without a command it talks live, with microphone and speaker, until q or Ctrl-C.
    """
    if context.invoked_subcommand is not None:
        a.refuse_options_before(context)
        return
    if events == STDOUT and as_json:
        raise typer.BadParameter("--events - and --json both write to stdout: choose one")
    role = PersonaFlags(persona, voice, not no_prompt_cache, keep_persona)
    name = _asked(context, model, quantized, hf_repo)
    if name is None:  # the question of the first start is about models that take no persona
        name = catalog.default_model() if any(role.both) else _first()
    chat(
        ChatOptions(
            model=ModelSource(name, codec, lora, float16, force, base),
            seed=seed,
            sampling=SamplingFlags(temperature, temperature_text, top_k, top_k_text, top_p, min_p),
            sound=SoundFlags(input, output, rate, echo, noise_suppression),
            keeping=Keeping(record, record_format.value, events, trace),
            persona=role,
            kv_bits=kv_bits,
            push_to_talk=push_to_talk,
            greeting=not no_greeting,
            loop_guard=not no_loop_guard,
            seconds=seconds,
            plain=plain,
            as_json=as_json,
            captions=None if captions is None else canonical(captions),
        )
    )


@app.command("run", cls=a.Command)
def run_command(
    context: typer.Context,
    source: Annotated[
        Path, typer.Argument(metavar="IN.wav", help="A recording: any rate, any channels.")
    ],
    target: Annotated[
        Path,
        typer.Argument(
            metavar="OUT.wav", help="Moshi's answer, 24 kHz: .wav or .flac. The file is replaced."
        ),
    ],
    model: a.ModelOption = None,
    quantized: a.QuantizedOption = None,
    hf_repo: a.HfRepoOption = None,
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
    captions: a.CaptionsOption = None,
    seed: a.SeedZeroOption = 0,
    temperature: a.TemperatureOption = None,
    temperature_text: a.TemperatureTextOption = None,
    top_k: a.TopKOption = None,
    top_k_text: a.TopKTextOption = None,
    top_p: a.TopPOption = None,
    min_p: a.MinPOption = None,
    tail: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=3600.0,
            metavar="SECONDS",
            help="Go on for this long after the recording, on silence, for the reply.",
            rich_help_panel=a.OUTPUT,
        ),
    ] = a.DEFAULT_TAIL,
    stereo: Annotated[
        bool,
        typer.Option(
            "--stereo", help="Write both sides: you left, Moshi right.", rich_help_panel=a.OUTPUT
        ),
    ] = False,
    picture: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.svg",
            help="Draw both sides and the words; goes with --stereo.",
            show_default=False,
            rich_help_panel=a.OUTPUT,
        ),
    ] = None,
    as_json: a.JsonOption = False,
) -> None:
    """Answer a recording: the live loop, from file to file."""
    if picture and not stereo:
        raise typer.BadParameter("--picture goes with --stereo")
    name = _asked(context, model, quantized, hf_repo) or catalog.default_model()
    answer_file(
        FileOptions(
            source=source,
            target=target,
            model=ModelSource(name, codec, lora, float16, force, base),
            seed=seed,
            sampling=SamplingFlags(temperature, temperature_text, top_k, top_k_text, top_p, min_p),
            persona=PersonaFlags(persona, voice, not no_prompt_cache, keep_persona),
            kv_bits=kv_bits,
            tail=tail,
            stereo=stereo,
            picture=picture,
            as_json=as_json,
            captions=None if captions is None else canonical(captions),
        )
    )


app.command("complete", cls=a.Command)(complete_command)
app.command("evaluate", cls=a.Command)(evaluate_command)
app.command("transcribe", cls=a.Command)(transcribe_command)
app.command("translate", cls=a.Command)(translate_command)
app.command("pipe", cls=a.Command)(pipe_command)
app.command("serve", cls=a.Command)(serve_command)
app.command("speak", cls=a.Command)(speak_command)


@app.command("models", cls=a.Command)
def models_command(
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Do not measure this machine to predict speeds."),
    ] = False,
    as_json: a.JsonOption = False,
) -> None:
    """List the published models: size, licence, what is here, what fits and what is fast enough."""
    speeds = None if quick else Speeds()
    if speeds is not None:
        print("measuring this machine …", file=sys.stderr)
    rows = survey(machine(), speeds)
    if as_json:
        print(rows_as_json(rows))
    else:
        print_models(Console(highlight=False), rows)


app.add_typer(voices_app, name="voices")


@app.command("devices", cls=a.Command)
def devices_command(as_json: a.JsonOption = False) -> None:
    """List the sound devices; * marks the defaults."""
    found = list_devices()
    if as_json:
        print(json.dumps([asdict(device) for device in found], ensure_ascii=False, indent=1))
    else:
        print_devices(Console(highlight=False), found)


@app.command("doctor", cls=a.Command)
def doctor_command(
    context: typer.Context,
    model: a.ModelOption = None,
    quantized: a.QuantizedOption = None,
    hf_repo: a.HfRepoOption = None,
    kv_bits: a.KvBitsOption = None,
    captions: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Check also whether this speech-to-text model can write captions beside it.",
            show_default=False,
            rich_help_panel=a.MODEL,
        ),
    ] = None,
    frames: Annotated[int, typer.Option(min=1, metavar="N", help="Time this many frames.")] = 100,
    full: a.FullOption = False,
    report: a.ReportOption = None,
    as_json: a.JsonOption = False,
) -> None:
    """Check whether this machine can talk with a model in real time, with numbers.

    The exit code is 0 if it can and 1 if it cannot, as without a microphone or a speaker.
    """
    if report is not None and not full:
        raise typer.BadParameter("--report goes with --full")
    if full and as_json:
        raise typer.BadParameter("--full writes a file of JSON: leave --json out")
    if full and captions is not None:
        raise typer.BadParameter("--full measures one model: leave --captions out")
    name = _asked(context, model, quantized, hf_repo) or catalog.default_model()
    print("measuring this machine …", file=sys.stderr)
    if full:
        code = full_checkup(
            report or DEFAULT_REPORT,
            name,
            frames=frames,
            list_devices=list_devices,
            kv_bits=kv_bits,
        )
    else:
        code = doctor(
            name,
            frames=frames,
            as_json=as_json,
            list_devices=list_devices,
            kv_bits=kv_bits,
            captions=None if captions is None else canonical(captions),
        )
    raise typer.Exit(code)


@app.command("bench", cls=a.Command)
def bench_command(
    context: typer.Context,
    model: a.ModelOption = None,
    quantized: a.QuantizedOption = None,
    hf_repo: a.HfRepoOption = None,
    force: a.ForceOption = False,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.json",
            help="Time a model of this configuration with random weights.",
            exists=True,
            show_default=False,
            rich_help_panel=a.MODEL,
        ),
    ] = None,
    bits: Annotated[
        int | None,
        typer.Option(
            metavar="BITS",
            help="With --config, use 4, 8 or 16 bits per weight.",
            show_default="16",
            rich_help_panel=a.MODEL,
        ),
    ] = None,
    kv_bits: a.KvBitsOption = None,
    float16: a.Float16Option = False,
    frames: Annotated[
        int, typer.Option(min=1, metavar="N", help="Time this many steps per round.")
    ] = 100,
    upstream: Annotated[
        Path | None,
        typer.Option(
            "--vs-upstream",
            metavar="PYTHON",
            help="With --config, also time Kyutai's moshi_mlx 0.3.0 on the same weights, "
            "interleaved; give a Python that has it.",
            show_default=False,
        ),
    ] = None,
    compiled: Annotated[
        bool | None,
        typer.Option(
            "--compile/--no-compile",
            help="Let MLX fuse the step.",
            show_default="on a GPU",
        ),
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write a trace of as many frames for ui.perfetto.dev.",
            show_default=False,
            rich_help_panel=a.OUTPUT,
        ),
    ] = None,
    flame: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.html",
            help="Write a flame graph of where Python spends its time.",
            show_default=False,
            rich_help_panel=a.OUTPUT,
        ),
    ] = None,
    as_json: a.JsonOption = False,
) -> None:
    """Time a step of the language model: codes in, codes out."""
    name = _asked(context, model, quantized, hf_repo)
    if name and config:
        raise typer.BadParameter("give --model or --config, not both")
    for option, given in (("--vs-upstream", upstream), ("--bits", bits)):
        if given is not None and config is None:
            raise typer.BadParameter(f"{option} goes with --config")
    theirs = None
    source = ModelSource(name or catalog.default_model(), float16=float16, force=force)
    check_outputs(
        [
            *([] if trace is None else [Output(trace, "the trace")]),
            *([] if flame is None else [Output(flame, "the flame plot", FLAME_SUFFIXES)]),
        ],
        [config, upstream, *inputs_of(source)],
    )
    profile = Profile(None if trace is None else Trace(trace), flame)
    if config is None:
        moshi, _ = load_model(source, Console(stderr=True, highlight=False), kv_bits)
        mine = bench_model(moshi, frames, compiled, kv_bits, profile)
    else:
        mine, theirs = bench_config(
            config,
            16 if bits is None else bits,
            frames,
            upstream,
            compiled=compiled,
            kv_bits=kv_bits,
            dtype=mx.float16 if float16 else None,
            profile=profile,
        )
    if as_json:
        print(json.dumps(mine.as_dict() | ({"upstream": vars(theirs)} if theirs else {})))
    else:
        print_bench(mine, theirs)


def _asked(
    context: typer.Context, model: str | None, quantized: int | None, hf_repo: str | None
) -> str | None:
    """The one model that a command was asked for, or None.

    A model from the configuration file gives way to any option on the command line.
    """
    source = context.get_parameter_source("model")
    if source is not None and source.name == "DEFAULT_MAP" and (quantized or hf_repo):
        model = None
    return named_model(model, quantized, hf_repo)


def named_model(model: str | None, quantized: int | None, hf_repo: str | None) -> str | None:
    """The one model that the options name; upstream's -q may stand beside --hf-repo."""
    if model is not None and (hf_repo or quantized):
        raise typer.BadParameter("--model goes neither with --hf-repo nor with -q")
    if quantized and not hf_repo:
        series = catalog.series(catalog.all_series()[0])
        return next(entry.name for entry in series if entry.bits == quantized)
    name = hf_repo if model is None else model
    return None if name is None else canonical(name)


def _first() -> str:
    """The model of a conversation without a name; asks on a terminal, once."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return catalog.default_model()
    answers = config_folder() / "first-start.json"
    return first_model(
        Console(stderr=True, highlight=False),
        answers,
        asked,
    )


# typer brings its own copy of click or imports it, by version; this is its ClickException.
_UsageError: type[Exception] = typer.BadParameter.__mro__[2]


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; returns the exit code: 0, 1 (doctor: no), 2 (error), or 128 and a signal's."""

    def work() -> int | None:
        refuse_empty(sys.argv[1:] if arguments is None else arguments)
        batch_gpu_work()
        defaults = read_defaults(typer.main.get_command(app), config_path())
        code: int | None = app(
            arguments, prog_name="moshi-local", standalone_mode=False, default_map=defaults
        )
        return code

    return run_program("moshi-local", work, [_UsageError], [typer.Abort])
