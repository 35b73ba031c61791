"""Speech translation: from file to file, and the command for that and for live translation.

Knows nothing of how a model translates. What is live about it is the conversation in `chat`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from moshi_mlx import Model, Speech
from moshi_mlx.arguments import real, whole
from moshi_mlx.arrays import Pcm
from moshi_mlx.families.translate import LONGEST_TAIL
from moshi_mlx.files import signals_interrupt
from moshi_mlx.hub import canonical
from moshi_mlx.sounds import Sound

from . import arguments as a
from .assembly import consoles, inputs_of, load_model
from .audio.files import check_sound_files, write_sound
from .beside import TextsBeside
from .chat import ChatOptions, chat
from .observers.event_log import STDOUT
from .options import (
    CodecChoice,
    EchoMode,
    Keeping,
    ModelSource,
    SamplingFlags,
    SoundFlags,
    TranslationFlags,
)
from .report import words_as_dicts
from .terminal.lines import print_words
from .terminal.progress import SoundProgress

__all__ = ["TranslationOptions", "translate_command", "translate_file"]

TRANSLATION = "Translation"


@dataclass(frozen=True, slots=True)
class TranslationOptions:
    """What a translation from file to file is asked for; the other fields as `Hibiki.translate`.

    stereo: write both sides, the source left and the translation right.
    beside: files for the translation's words with their times.
    """

    source: Path
    target: Path
    model: ModelSource
    flags: TranslationFlags = field(default_factory=TranslationFlags)
    best_of: int = 1
    seed: int = 0
    sampling: SamplingFlags = field(default_factory=SamplingFlags)
    kv_bits: int | None = None
    tail: float = LONGEST_TAIL
    stereo: bool = False
    beside: TextsBeside = field(default_factory=TextsBeside)


def translate_file(options: TranslationOptions) -> None:
    """Translates a recording. Its outputs are written at the end, each whole.

    Raises:
        MoshiError: what is wrong with an option, a file or the model.
    """
    real("--cfg", options.flags.cfg, 0, 100)
    whole("--best-of", options.best_of, 1)
    screen, notes = consoles(stdout_is_taken=False)
    sound = check_sound_files(
        options.source,
        options.target,
        [*options.beside.outputs()],
        inputs_of(options.model),
        what="the translation",
    )
    model, verdict = load_model(options.model, notes, options.kv_bits, "translate")
    heard = sound.read(model.sample_rate).mean(axis=0)
    began = time.monotonic()
    try:
        with (
            signals_interrupt("SIGTERM", "SIGHUP"),
            SoundProgress(notes, sound.seconds) as progress,
        ):
            speech: Speech = model.translate(
                heard,
                quality=options.flags.quality,
                cfg=options.flags.cfg,
                best_of=options.best_of,
                seed=options.seed,
                tail_seconds=options.tail,
                text=options.sampling.text(model.text_sampling),
                audio=options.sampling.audio(model.audio_sampling),
                kv_bits=verdict.kv_bits,
                progress=progress.heard,
            )
    except (KeyboardInterrupt, SystemExit):
        notes.print(f"moshi-local: stopped; {options.target} was not written", soft_wrap=True)
        raise
    took = time.monotonic() - began
    _write(options, speech, heard, _summary(options, model, sound, speech, took))
    print_words(screen, speech.words)
    notes.print(
        f"{sound.seconds:.1f} s translated in {took:.1f} s, {sound.seconds / took:.1f} times as "
        f"fast as it was spoken: {options.target}, {speech.seconds:.1f} s",
        markup=False,
        soft_wrap=True,
    )


def _summary(
    options: TranslationOptions, model: Model, sound: Sound, speech: Speech, took: float
) -> dict[str, object]:
    """For JSON; times in seconds."""
    return {
        "text": speech.text,
        "words": words_as_dicts(speech.words),
        "source": str(options.source),
        "source_seconds": round(sound.seconds, 3),
        "output": str(options.target),
        "output_seconds": round(speech.seconds, 3),
        "elapsed_seconds": round(took, 3),
        "model": model.name,
        "codec": model.codec.name,
        "seed": options.seed,
        "quality": options.flags.quality,
        "cfg": options.flags.cfg,
        "best_of": options.best_of,
    }


def _write(
    options: TranslationOptions, speech: Speech, heard: Pcm, summary: dict[str, object]
) -> None:
    sound: Any = speech.pcm
    if options.stereo:
        length = max(len(heard), len(sound))
        sides = [np.pad(side, (0, length - len(side))) for side in (heard, sound)]
        sound = np.column_stack(sides)
    write_sound(options.target, sound, speech.sample_rate)
    options.beside.write(speech.words, summary)


# ---------------------------------------------------------------------------- the command

_FILES_ONLY = {"best_of", "tail", "stereo", "srt", "vtt", "json_file"}
_LIVE_ONLY = {"input", "output", "rate", "echo", "noise_suppression", "record", "record_format"}
_LIVE_ONLY |= {"events", "trace", "seconds", "plain", "push_to_talk"}


def translate_command(
    context: typer.Context,
    source: Annotated[
        Path | None,
        typer.Argument(metavar="IN.wav", help="A recording: any rate, any channels."),
    ] = None,
    target: Annotated[
        Path | None,
        typer.Argument(metavar="OUT.wav", help="The translation, 24 kHz: .wav or .flac."),
    ] = None,
    live: Annotated[
        bool,
        typer.Option("--live", help="Translate the microphone live.", rich_help_panel=TRANSLATION),
    ] = False,
    quality: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Ask for this quality: very_bad, bad, neutral, good or very_good.",
            rich_help_panel=TRANSLATION,
        ),
    ] = "very_good",
    cfg: Annotated[
        float,
        typer.Option(
            metavar="FACTOR",
            help="Move this far away from the worst quality; 3 is usual. The voice becomes more "
            "alike, mistakes become likelier, and it takes twice the work.",
            show_default="1, not at all",
            rich_help_panel=TRANSLATION,
        ),
    ] = 1.0,
    best_of: Annotated[
        int,
        typer.Option(
            min=1,
            max=64,
            metavar="N",
            help="Make N translations side by side, and take the one whose text is likeliest.",
            rich_help_panel=TRANSLATION,
        ),
    ] = 1,
    tail: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=3600.0,
            metavar="SECONDS",
            help="Wait this long after the recording for the translation's end.",
            rich_help_panel=TRANSLATION,
        ),
    ] = LONGEST_TAIL,
    model: Annotated[str | None, a.model_option("translate")] = None,
    force: a.ForceOption = False,
    codec: a.CodecNameOption = CodecChoice.auto,
    lora: a.LoraOption = None,
    kv_bits: a.KvBitsOption = None,
    float16: a.Float16Option = False,
    seed: a.SeedZeroOption = 0,
    temperature: a.TemperatureOption = None,
    temperature_text: a.TemperatureTextOption = None,
    top_k: a.TopKOption = None,
    top_k_text: a.TopKTextOption = None,
    top_p: a.TopPOption = None,
    min_p: a.MinPOption = None,
    stereo: Annotated[
        bool,
        typer.Option(
            "--stereo",
            help="Write both sides: the source left, the translation right.",
            rich_help_panel=a.OUTPUT,
        ),
    ] = False,
    srt: Annotated[
        Path | None, a.text_file_option("srt", "SubRip subtitles of the translation")
    ] = None,
    vtt: Annotated[
        Path | None, a.text_file_option("vtt", "WebVTT subtitles of the translation")
    ] = None,
    json_file: Annotated[
        Path | None, a.text_file_option("json", "words with their times of the translation")
    ] = None,
    push_to_talk: a.PushToTalkOption = False,
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
    plain: a.PlainOption = False,
) -> None:
    """Translate speech: a recording, or live with --live.

    The translation keeps the speaker's voice as far as the model can. Live, use headphones, and
    end with q or Ctrl-C: the last words still come.
    """
    how = "goes with IN and OUT, not with --live" if live else "goes with --live"
    a.refuse_given(context, _FILES_ONLY if live else _LIVE_ONLY, how)
    model_source = ModelSource(
        canonical(model or a.default_of("translate")), codec, lora, float16, force
    )
    sampling = SamplingFlags(temperature, temperature_text, top_k, top_k_text, top_p, min_p)
    flags = TranslationFlags(quality, real("--cfg", cfg, 0, 100))
    if live:
        if source is not None:
            raise typer.BadParameter("--live takes no files: leave IN and OUT out")
        chat(
            ChatOptions(
                model=model_source,
                seed=None if a.source_of(context, "seed") == "DEFAULT" else seed,
                sampling=sampling,
                sound=SoundFlags(input, output, rate, echo, noise_suppression),
                keeping=Keeping(record, record_format.value, events, trace),
                kv_bits=kv_bits,
                push_to_talk=push_to_talk,
                loop_guard=False,
                seconds=seconds,
                plain=plain or events == STDOUT,
                translation=flags,
            )
        )
        return
    if source is None or target is None:
        missing = "IN and OUT" if source is None else "OUT"
        raise typer.BadParameter(f"give {missing}, or --live to translate the microphone")
    translate_file(
        TranslationOptions(
            source=source,
            target=target,
            model=model_source,
            flags=flags,
            best_of=best_of,
            seed=seed,
            sampling=sampling,
            kv_bits=kv_bits,
            tail=tail,
            stereo=stereo,
            beside=TextsBeside(srt, vtt, json_file),
        )
    )
