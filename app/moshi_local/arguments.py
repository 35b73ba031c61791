"""The options of `moshi-local` as typer wants them: names, help, groups. Knows no command."""

from __future__ import annotations

import math
from collections.abc import Collection
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from moshi_mlx import catalog
from moshi_mlx.cache import KV_GROUPS
from moshi_mlx.families.kinds import KINDS, Verb
from moshi_mlx.outputs import is_stdout

from .options import CodecChoice, EchoMode

MODEL = "Model"
SAMPLING = "Sampling"
CONVERSATION = "Conversation"
PERSONA = "Persona and voice"
SOUND = "Sound"
FILES = "Recordings and logs"
OUTPUT = "Output"

DEFAULT_TAIL = 4.0


class _PlainFlags:
    """Help without a type behind options that take no value."""

    def get_params(self, context: Any) -> Any:
        params = super().get_params(context)  # type: ignore[misc]
        for parameter in params:
            if getattr(parameter, "is_flag", False) and parameter.metavar is None:
                parameter.metavar = " "
        return params


class Group(_PlainFlags, TyperGroup):
    """The program."""


class Command(_PlainFlags, TyperCommand):
    """One of its commands."""


class RecordFormat(StrEnum):
    """Of a recording."""

    flac = "flac"
    wav = "wav"


def _known_kv_bits(bits: int | None) -> int | None:
    if bits is not None and bits not in KV_GROUPS:
        raise typer.BadParameter(f"must be {' or '.join(map(str, sorted(KV_GROUPS)))}")
    return bits


def _known_bits(bits: int | None) -> int | None:
    if bits not in (None, 4, 8):
        raise typer.BadParameter("must be 4 or 8")
    return bits


def finite(value: float | None) -> float | None:
    """The value of an option, which is neither infinite nor NaN. Raises typer.BadParameter."""
    if isinstance(value, float) and not math.isfinite(value):
        raise typer.BadParameter(f"must be a finite number, is {value}")
    return value


def _stdout_as_dash(target: str | None) -> str | None:
    """`/dev/stdout` is what - is; opened again it would begin at the file's first byte."""
    return "-" if target and is_stdout(Path(target)) else target


def refuse_options_before(context: typer.Context) -> None:
    """`moshi-local --seed 1 run …` would lose the seed without a word."""
    for name in context.params:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise typer.BadParameter(
                f"options of {context.invoked_subcommand} go after {context.invoked_subcommand}"
            )


def default_of(verb: Verb) -> str:
    """What a command of that verb uses: the first of the catalogue that can do it, its short name.

    One that comes with the program goes before those that are fetched, as they do there.
    """
    entry = next(entry for entry in catalog.ENTRIES if KINDS[entry.family].verb == verb)
    return (*entry.aliases, entry.name)[0]


def model_option(verb: Verb) -> Any:
    """--model of a command of that verb."""
    return typer.Option(
        "--model",
        metavar="NAME",
        help="Use this model: a name from `moshi-local models`, a folder, a weights file, or "
        "org/repo on the Hugging Face hub.",
        show_default=default_of(verb),
        rich_help_panel=MODEL,
    )


def text_file_option(suffix: str, what: str) -> Any:
    """A file that is written beside the sound, such as --srt."""
    return typer.Option(
        f"--{suffix}",
        metavar=f"FILE.{suffix}",
        help=f"Write {what} to this file.",
        show_default=False,
        rich_help_panel=OUTPUT,
    )


def source_of(context: typer.Context, name: str) -> str:
    """Where a parameter's value comes from: COMMANDLINE, DEFAULT, …"""
    source = context.get_parameter_source(name)
    return "DEFAULT" if source is None else source.name


def refuse_given(context: typer.Context, names: Collection[str], how: str) -> None:
    """Refuses options that mean nothing here; they would be lost without a word.

    Args:
        context: of the command.
        names: of the parameters.
        how: they are used, for the message: "goes with --live".

    Raises:
        typer.BadParameter: one of them is on the command line.
    """
    for parameter in context.command.params:
        name = str(parameter.name)
        if name in names and source_of(context, name) == "COMMANDLINE":
            raise typer.BadParameter(f"{parameter.opts[0]} {how}")


# ---------------------------------------------------------------------------- the model

_DEFAULT = catalog.default_model()
_SERIES = " or ".join(catalog.all_series())

ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="NAME",
        help=f"Use this model: {_DEFAULT} (comes with the program, the default), {_SERIES} (the "
        "most exact precision that this machine can run), another name from `moshi-local models`, "
        "a folder, or org/repo on the Hugging Face hub.",
        show_default=False,
        rich_help_panel=MODEL,
    ),
]
QuantizedOption = Annotated[
    int | None,
    typer.Option(
        "-q",
        "--quantized",
        metavar="BITS",
        callback=_known_bits,
        help=f"Use {catalog.all_series()[0]} with 4 or 8 bits per weight.",
        show_default=False,
        rich_help_panel=MODEL,
    ),
]
HfRepoOption = Annotated[
    str | None,
    typer.Option(
        "--hf-repo",
        metavar="ORG/REPO",
        help="Use a model from the Hugging Face hub; the same as --model.",
        show_default=False,
        rich_help_panel=MODEL,
    ),
]
ForceOption = Annotated[
    bool,
    typer.Option(
        "--force",
        help="Load the model even if it does not fit in memory.",
        rich_help_panel=MODEL,
    ),
]
CodecNameOption = Annotated[
    CodecChoice,
    typer.Option(
        help="Encode and decode sound with this implementation of Mimi; auto takes the faster one, "
        "which is measured once per machine.",
        rich_help_panel=MODEL,
    ),
]
LoraOption = Annotated[
    Path | None,
    typer.Option(
        metavar="PATH",
        help="Apply a LoRA adapter: its file, or the folder that has it.",
        show_default=False,
        rich_help_panel=MODEL,
    ),
]
BaseOption = Annotated[
    str | None,
    typer.Option(
        "--base",
        metavar="NAME",
        help="Take the codec and the tokenizer of a fine-tune from this model, or what an adapter "
        "given as --model belongs to.",
        show_default="found by its shape",
        rich_help_panel=MODEL,
    ),
]
KvBitsOption = Annotated[
    int | None,
    typer.Option(
        "--kv-bits",
        metavar="BITS",
        callback=_known_kv_bits,
        help="Quantize the keys and values of the conversation to 8 or 4 bits, to save memory.",
        show_default="not quantized",
        rich_help_panel=MODEL,
    ),
]
Float16Option = Annotated[
    bool,
    typer.Option(
        "--float16",
        help="Compute in float16 instead of float32 (CPU) or bfloat16 (GPU).",
        rich_help_panel=MODEL,
    ),
]

# ---------------------------------------------------------------------------- sampling

SeedOption = Annotated[
    int | None,
    typer.Option(
        min=0,
        max=2**32 - 1,
        metavar="N",
        help="Make sampling repeatable with this seed.",
        show_default="random",
        rich_help_panel=SAMPLING,
    ),
]
SeedZeroOption = Annotated[
    int,
    typer.Option(
        min=0,
        max=2**32 - 1,
        metavar="N",
        help="Make sampling repeatable with this seed.",
        rich_help_panel=SAMPLING,
    ),
]


def _sampling(option: str, metavar: str, what: str, high: float | None = None) -> object:
    return typer.Option(
        option,
        metavar=metavar,
        callback=finite,
        min=0,
        max=high,
        help=what,
        show_default="the model's own",
        rich_help_panel=SAMPLING,
    )


TemperatureOption = Annotated[
    float | None,
    _sampling("--temperature", "T", "Sample the voice at this temperature; 0 is greedy."),
]
TemperatureTextOption = Annotated[
    float | None,
    _sampling("--temperature-text", "T", "Sample the text at this temperature; 0 is greedy."),
]
TopKOption = Annotated[
    int | None,
    _sampling("--top-k", "K", "Sample the voice from the K likeliest tokens; 0 from all."),
]
TopKTextOption = Annotated[
    int | None,
    _sampling("--top-k-text", "K", "Sample the text from the K likeliest tokens; 0 from all."),
]
TopPOption = Annotated[
    float | None,
    _sampling(
        "--top-p", "P", "Sample voice and text from the likeliest tokens up to this share.", 1
    ),
]
MinPOption = Annotated[
    float | None,
    _sampling("--min-p", "P", "Drop tokens less likely than this share of the likeliest one.", 1),
]

# ---------------------------------------------------------------------------- persona

PersonaOption = Annotated[
    str | None,
    typer.Option(
        "--persona",
        metavar="TEXT|@FILE",
        help="Tell the model who it is and what it knows: a text, or a text file. For PersonaPlex.",
        show_default=False,
        rich_help_panel=PERSONA,
    ),
]
VoiceOption = Annotated[
    str | None,
    typer.Option(
        "--voice",
        metavar="NAME|FILE",
        help="Let the model speak with this voice: see `moshi-local voices`. For PersonaPlex.",
        show_default="the model's choice",
        rich_help_panel=PERSONA,
    ),
]
NoPromptCacheOption = Annotated[
    bool,
    typer.Option(
        "--no-prompt-cache",
        help="Neither use nor keep what the model remembers of persona and voice; a conversation "
        "with them then starts later.",
        rich_help_panel=PERSONA,
    ),
]
KeepPersonaOption = Annotated[
    bool,
    typer.Option(
        "--keep-persona",
        help="Keep persona and voice in sight when the conversation gets longer than the model "
        "remembers. An experiment; not with --kv-bits.",
        rich_help_panel=PERSONA,
    ),
]

# ---------------------------------------------------------------------------- conversation

PushToTalkOption = Annotated[
    bool,
    typer.Option(
        "--push-to-talk",
        help="Listen only while the space bar is held.",
        rich_help_panel=CONVERSATION,
    ),
]
NoGreetingOption = Annotated[
    bool,
    typer.Option(
        "--no-greeting",
        help="Keep Moshi quiet until you have spoken, for at most 30 seconds.",
        rich_help_panel=CONVERSATION,
    ),
]
NoLoopGuardOption = Annotated[
    bool,
    typer.Option(
        "--no-loop-guard",
        help="Let Moshi repeat the same phrase over and over.",
        rich_help_panel=CONVERSATION,
    ),
]
CaptionsOption = Annotated[
    str | None,
    typer.Option(
        "--captions",
        metavar="NAME",
        help="Write down what you say too, with this speech-to-text model, such as "
        f"{default_of('transcribe')}: on the screen, in events and recordings.",
        show_default=False,
        rich_help_panel=CONVERSATION,
    ),
]
SecondsOption = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        metavar="SECONDS",
        help="Stop after this much time.",
        show_default="until q or Ctrl-C",
        rich_help_panel=CONVERSATION,
    ),
]

# ---------------------------------------------------------------------------- sound

InputOption = Annotated[
    str | None,
    typer.Option(
        "--input",
        metavar="DEVICE",
        help="Listen to this microphone: its number, or part of its name.",
        show_default="the system's",
        rich_help_panel=SOUND,
    ),
]
OutputOption = Annotated[
    str | None,
    typer.Option(
        "--output",
        metavar="DEVICE",
        help="Play on this speaker: its number, or part of its name.",
        show_default="the system's",
        rich_help_panel=SOUND,
    ),
]
RateOption = Annotated[
    int | None,
    typer.Option(
        min=8000,
        max=192_000,
        metavar="HZ",
        help="Open the devices at this sample rate.",
        show_default="24000, or the device's own",
        rich_help_panel=SOUND,
    ),
]
EchoOption = Annotated[
    EchoMode,
    typer.Option(
        help="Cancel the speaker's echo; auto does so unless the output is headphones.",
        rich_help_panel=SOUND,
    ),
]
NoiseSuppressionOption = Annotated[
    bool,
    typer.Option(
        "--noise-suppression",
        help="Remove background noise from the microphone's sound.",
        rich_help_panel=SOUND,
    ),
]

# ---------------------------------------------------------------------------- files

RecordOption = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Record the conversation into this folder: sound (you left, Moshi right), transcript "
        "and subtitles. Nothing there is overwritten.",
        show_default=False,
        rich_help_panel=FILES,
    ),
]
RecordFormatOption = Annotated[
    RecordFormat,
    typer.Option(
        help="Keep the recording in this format; it is a WAV file until the conversation ends.",
        rich_help_panel=FILES,
    ),
]
EventsOption = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        callback=_stdout_as_dash,
        help="Write every event as a line of JSON to this file, or to - for stdout. The file is "
        "replaced. It holds what was said, but no sound.",
        show_default=False,
        rich_help_panel=FILES,
    ),
]
TraceOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Write the timings of the last two minutes for ui.perfetto.dev. The file is replaced.",
        show_default=False,
        rich_help_panel=FILES,
    ),
]

FullOption = Annotated[
    bool,
    typer.Option(
        "--full",
        help="Measure all that can be measured, for some minutes, and write a report to send to "
        "the developers, with the steps that need a person. It names no person, folder or device.",
        rich_help_panel=FILES,
    ),
]
ReportOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.json",
        help="With --full, write this file. It is never replaced.",
        show_default="moshi-local-doctor.json",
        rich_help_panel=FILES,
    ),
]

# ---------------------------------------------------------------------------- output

PlainOption = Annotated[
    bool,
    typer.Option(
        "--plain", help="Print plain lines instead of drawing a screen.", rich_help_panel=OUTPUT
    ),
]
JsonOption = Annotated[
    bool,
    typer.Option("--json", help="Print the result as JSON on stdout.", rich_help_panel=OUTPUT),
]
