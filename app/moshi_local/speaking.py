"""`moshi-local speak`: a text, a file or what arrives on standard input becomes speech.

Joins the model's speech, what takes it (a file, a pipe, the speaker), and the files of its words.
Knows nothing of how a model speaks.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Protocol

import numpy as np
import typer
from rich.console import Console
from rich.progress import Progress, TextColumn

from moshi_mlx import ArgumentError, Model, MoshiError, SpokenWord, Word, __version__
from moshi_mlx.arrays import Pcm
from moshi_mlx.errors import counted
from moshi_mlx.families.speak import Tts
from moshi_mlx.families.speaker_voices import SpeakerVoice
from moshi_mlx.families.speech_script import (
    ScriptReader,
    entries_of,
    remarks_on,
    turns_of,
    turns_of_json,
)
from moshi_mlx.files import signals_interrupt
from moshi_mlx.hub import canonical
from moshi_mlx.outputs import Output, check_outputs, is_stdout
from moshi_mlx.spoken_text import LANGUAGES, spoken_text
from moshi_mlx.text import join_words
from moshi_mlx.voices import Voice

from . import arguments as a
from .assembly import consoles, inputs_of, load_model
from .audio.devices import choose_device
from .audio.files import SPEECH_FORMATS, SoundTags, SoundWriter
from .audio.playback import Playback, playback_on
from .beside import TextsBeside
from .observers.record import SOFTWARE, SPEECH_TAG
from .observers.wav import streamed_header, to_pcm16
from .options import CodecChoice, ModelSource, SamplingFlags, SoundFlags, SpeakingFlags
from .role import consent_of, one_short_line, own_voices
from .terminal.lines import printable
from .texts import Arriving, file_of, sentences, text_in
from .whole_words import WholeWords

__all__ = [
    "SpeakingOptions",
    "one_channel",
    "speak",
    "speak_command",
    "speech_tags",
]

_STEPS_A_SECOND = 12.5
LARGEST_TEXT = 20_000_000
"""Bytes of a file: some hundred hours of speech."""


@dataclass(frozen=True, slots=True)
class SpeakingOptions:
    """What `speak` is asked for; the other fields as `Tts.speak` has them.

    text: the text, a file's name, or "-" for standard input as it arrives.
    target: the sound file, or "-" for a WAV on standard output; None is the speaker.
    voices: names or files; the second one is the other speaker's.
    beside: files for the words with their times.
    """

    text: str
    model: ModelSource
    target: Path | None = None
    voices: tuple[str, ...] = ()
    flags: SpeakingFlags = field(default_factory=SpeakingFlags)
    seed: int = 0
    sampling: SamplingFlags = field(default_factory=SamplingFlags)
    kv_bits: int | None = None
    sound: SoundFlags = field(default_factory=SoundFlags)
    beside: TextsBeside = field(default_factory=TextsBeside)

    @property
    def piped(self) -> bool:
        """Whether the sound goes to standard output."""
        return self.target is not None and (str(self.target) == "-" or is_stdout(self.target))

    def outputs(self) -> Iterator[Output]:
        """The files that are written."""
        if self.target is not None and not self.piped:
            yield Output(self.target, "the speech", tuple(SPEECH_FORMATS))
        yield from self.beside.outputs()


def speak(options: SpeakingOptions) -> None:
    """Makes speech, and gives it to the file, the pipe or the speaker while it is made.

    Raises:
        MoshiError: what is wrong with an option, a text, a file, the model or a device.
    """
    _, notes = consoles(options.piped)
    path = None if options.text == "-" else file_of(options.text)
    check_outputs(options.outputs(), [path, *_voice_files(options), *inputs_of(options.model)])
    playback: Playback | None = None
    text: list[str] | Arriving
    if options.flags.normalize is not None:
        spoken_text("", options.flags.normalize)  # whether that can be done
    if options.text == "-":
        text = Arriving(
            sys.stdin.fileno(),
            "standard input",
            waits=lambda: playback.settle() if playback else None,
        )
    else:
        text = script_of(options.text) if path is None else script_in(path)
    if options.target is None:
        choose_device("output", options.sound.output)
    model, verdict = load_model(options.model, notes, options.kv_bits, "speak")
    voices = _voices(model, options, notes)
    if isinstance(text, Arriving) and sys.stdin.isatty():
        notes.print("type the text; Ctrl-D ends it", markup=False)
    with ExitStack() as stack:
        sink: _Sink
        if options.target is None:
            sound, rate = options.sound, model.sample_rate
            playback = stack.enter_context(playback_on(sound.output, sound.rate, rate))
            streamed = (lambda: not text.ended) if isinstance(text, Arriving) else (lambda: False)
            sink = _Heard(playback, model.sample_rate, streamed)
        elif options.piped:
            sink = _Piped(sys.stdout.buffer, model)
        else:
            tags = speech_tags(model.name)
            writer = SoundWriter(options.target, model.sample_rate, tags=tags)
            sink = _Filed(stack.enter_context(writer))
        made = _Made(model.sample_rate, sink, text if isinstance(text, Arriving) else None)
        try:
            with signals_interrupt("SIGTERM", "SIGHUP"), _progress(notes, made):
                script = _normalized(_remarked(text, model, notes), options.flags.normalize, notes)
                made.take(_stream(model, options, script, voices, verdict.kv_bits))
        except (KeyboardInterrupt, SystemExit):
            kept = "" if options.target is None else f"; {options.target} was not written"
            notes.print(f"moshi-local: stopped{kept}", soft_wrap=True)
            raise
    played = {} if playback is None else playback.statistics()
    spoken = [word for word in made.words if word.text]
    options.beside.write(spoken, _summary(options, model, made) | played)
    for line in _told(options, made, playback):
        notes.print(line, markup=False, soft_wrap=True)


def script_of(text: str, read: Callable[[str], list[str]] = turns_of) -> list[str]:
    """The turns of a text, checked before a model is loaded.

    Args:
        text: as `turns_of` takes it.
        read: text → turns.

    Raises:
        ArgumentError: there is no word, or a turn or a break makes no sense.
    """
    turns = read(text)
    reader = ScriptReader(lambda word: [len(word)], frame_rate=_STEPS_A_SECOND)
    if not any(entry.text for entry in entries_of(reader, turns)):
        raise ArgumentError("the text has no word to speak")
    return turns


def script_in(path: Path) -> list[str]:
    """The same of a file; one that is named .json must be JSON. Errors name it."""
    text = text_in(path, LARGEST_TEXT)
    try:
        return script_of(text, turns_of_json if path.suffix.lower() == ".json" else turns_of)
    except ArgumentError as error:
        raise ArgumentError(f"{path}: {error}") from error


def _remarked(
    text: list[str] | Arriving, model: Model, notes: Console
) -> list[str] | Iterator[str]:
    """The text; what may not be meant in it is told before it is spoken, or where it ends."""
    assert isinstance(model, Tts), "no other model is loaded to speak"

    def tell(turns: Sequence[str]) -> None:
        lines = remarks_on(turns)
        both = all(any(turn.strip() for turn in turns[i::2]) for i in (0, 1))
        if both and model.speakers == 1:
            lines.append(f"{model.name} has one voice: both speakers of the script speak with it")
        for line in lines:
            notes.print(f"note: {line}", markup=False, soft_wrap=True)

    def arriving(pieces: Iterable[str]) -> Iterator[str]:
        seen = []
        for piece in pieces:
            seen.append(piece)
            yield piece
        with suppress(MoshiError):  # told where it is spoken
            tell(turns_of("".join(seen)))

    if isinstance(text, Arriving):
        return arriving(text)
    tell(text)
    return text


def _normalized(
    text: list[str] | Iterator[str], language: str | None, notes: Console
) -> Sequence[str] | Iterator[str]:
    """What `Tts.speak` is given: the text, as it is or written out and shown."""
    if language is None:
        return text

    def shown(piece: str) -> str:
        spoken = spoken_text(piece, language)
        for line in spoken.splitlines():
            notes.print(printable(line), markup=False, soft_wrap=True)
        return spoken

    if isinstance(text, list):
        return [shown(turn) for turn in text]
    return map(shown, sentences(text))


def _voice_files(options: SpeakingOptions) -> Iterator[Path]:
    """The files that the voices may name, which need not be there."""
    for voice in options.voices:
        yield Path(voice).expanduser()
        yield own_voices() / f"{voice}.safetensors"


def _voices(model: Model, options: SpeakingOptions, notes: Console) -> list[SpeakerVoice | Voice]:
    """Those that were asked for; says by whose consent. Raises MoshiError."""
    assert isinstance(model, Tts), "no other model is loaded to speak"
    model.check_voices(len(options.voices))
    found = [model.voice(name, folder=own_voices()) for name in options.voices]
    for voice in found:
        if isinstance(voice, Voice):
            line = f"voice {one_short_line(voice.name)}{consent_of(voice)}"
            notes.print(line, markup=False, soft_wrap=True)
    return found


def _stream(
    model: Model,
    options: SpeakingOptions,
    text: Sequence[str] | Iterator[str],
    voices: Sequence[Any],
    kv_bits: int | None,
) -> Any:
    """The model's speech, which is made as it is taken."""
    flags = options.flags
    return model.speak(
        text,
        voice=voices or None,
        cfg=flags.cfg,
        speed=flags.speed,
        codebooks=flags.codebooks,
        seed=options.seed,
        text=options.sampling.text(model.text_sampling),
        audio=options.sampling.audio(model.audio_sampling),
        kv_bits=kv_bits,
    )


class _Made:
    """What has been made so far, on its way to where it goes.

    Args:
        rate: of the sound (Hz).
        sink: where it goes.
        arriving: the text, if it arrives.
    """

    def __init__(self, rate: int, sink: _Sink, arriving: Arriving | None) -> None:
        self.words: list[SpokenWord] = []
        self.samples = 0
        self.first: float | None = None
        """Seconds from the text to the first sound that was made."""
        self.took = 0.0
        """Seconds of work."""
        self.began = time.monotonic()
        self.on_more: Callable[[], None] = lambda: None
        """Called after each piece."""
        self._rate, self._sink, self._arriving = rate, sink, arriving

    @property
    def seconds(self) -> float:
        """Of sound."""
        return self.samples / self._rate

    def take(self, stream: Iterable[Any]) -> None:
        """All of it, as it comes. Raises MoshiError."""
        for chunk in self._timed(stream):
            pcm = one_channel(chunk.pcm)
            if self.first is None and len(pcm):
                arriving = self._arriving
                if arriving is not None and arriving.first_at is not None:
                    self.began = arriving.first_at
                self.first = time.monotonic() - self.began
            self.words += chunk.words
            self.samples += len(pcm)
            self._sink.write(pcm, chunk.words)
            self.on_more()
        self._sink.finish()

    def _timed(self, stream: Iterable[Any]) -> Iterator[Any]:
        """The same; the time that it takes counts, but not that of waiting for text."""
        chunks, ended, arriving = iter(stream), object(), self._arriving
        while True:
            began, waited = time.monotonic(), arriving.waited if arriving else 0.0
            chunk = next(chunks, ended)
            waited = arriving.waited - waited if arriving else 0.0
            self.took += time.monotonic() - began - waited
            if chunk is ended:
                return
            yield chunk


def one_channel(pcm: Any) -> Pcm:
    """One channel, [samples], also where a model keeps two speakers apart."""
    mixed: Pcm = pcm if pcm.ndim == 1 else np.clip(pcm.sum(axis=1), -1.0, 1.0)
    return mixed


# ------------------------------------------------------------------------ where speech goes


class _Sink(Protocol):
    """What takes sound and words as they are made. Its methods may raise MoshiError."""

    def write(self, pcm: Pcm, words: Sequence[Word]) -> None:
        """The next float32 [samples], and the words that it ends."""

    def finish(self) -> None:
        """That was all."""


class _Filed:
    """A sound file."""

    def __init__(self, writer: SoundWriter) -> None:
        self._writer = writer

    def write(self, pcm: Pcm, words: Sequence[Word]) -> None:
        self._writer.write(pcm)

    def finish(self) -> None:
        self._writer.finish()


class _Piped:
    """A WAV on standard output, of a length that is not known."""

    def __init__(self, stream: BinaryIO, model: Model) -> None:
        tags = speech_tags(model.name)
        self._stream = stream
        self._header = streamed_header(
            model.sample_rate, 1, {"ICMT": tags.comment, "ISFT": tags.software}
        )

    def write(self, pcm: Pcm, words: Sequence[Word]) -> None:
        self._stream.write(self._header + to_pcm16(pcm).astype("<i2").tobytes())
        self._stream.flush()
        self._header = b""

    def finish(self) -> None:
        self._stream.flush()


class _Heard:
    """The speaker. While text arrives, and on a machine that is too slow, it gets whole words.

    Args:
        playback: of the speaker.
        rate: of the sound (Hz).
        arriving: says whether more text may come.
    """

    def __init__(self, playback: Playback, rate: int, arriving: Callable[[], bool]) -> None:
        self._playback, self._arriving = playback, arriving
        self._words = WholeWords(rate)

    def write(self, pcm: Pcm, words: Sequence[Word]) -> None:
        self._playback.write(self._words.add(pcm, [word.end for word in words]))
        if not self._arriving() and not self._playback.counters.gaps:
            self._playback.write(self._words.rest())

    def finish(self) -> None:
        self._playback.write(self._words.rest())
        self._playback.finish()


def speech_tags(model: str) -> SoundTags:
    """What a file of synthetic speech says about itself."""
    made = f"made with {SOFTWARE} {__version__}"
    return SoundTags(
        title="Synthetic speech",
        comment=f"{SPEECH_TAG} {model}; {made}",
        software=f"{SOFTWARE} {__version__}",
        date=f"{datetime.now().astimezone():%Y-%m-%d}",
    )


# ------------------------------------------------------------------------ what is told of it


@contextmanager
def _progress(notes: Console, made: _Made) -> Iterator[None]:
    """A line on a terminal, nothing elsewhere: how much has been made, and how fast."""
    with Progress(
        TextColumn("{task.description}"),
        console=notes,
        transient=True,
        redirect_stdout=False,
        disable=not notes.is_terminal,
    ) as lines:
        task = lines.add_task("")
        made.on_more = lambda: lines.update(task, description=_how_much(made))
        yield


def _how_much(made: _Made) -> str:
    speed = made.seconds / max(made.took, 1e-3)
    return (
        f"{made.seconds:.1f} s of speech made in {made.took:.1f} s, {speed:.1f} times as fast as "
        "it is heard"
    )


def _told(options: SpeakingOptions, made: _Made, playback: Playback | None) -> Iterator[str]:
    """Lines for the user."""
    if made.first is not None:
        first = made.first
        if playback is not None and playback.first_sound_at is not None:
            first = playback.first_sound_at - made.began
        yield f"first sound after {first:.2f} s"
    where = "" if options.target is None or options.piped else f": {options.target}"
    yield f"{_how_much(made)}{where}"
    if playback is not None:
        port = playback.statistics()
        names = ("callback", "xrun", "gap", "restart")
        yield ", ".join(counted(int(port[f"{name}s"]), name) for name in names)


def _summary(options: SpeakingOptions, model: Model, made: _Made) -> dict[str, object]:
    """For JSON; times in seconds."""
    return {
        "text": join_words(word.text for word in made.words if word.text),
        "words": [
            {
                "text": word.text,
                "start": round(word.start, 3),
                "end": round(word.end, 3),
                "speaker": "AB"[word.speaker],
            }
            for word in made.words
        ],
        "output": None if options.target is None else str(options.target),
        "output_seconds": round(made.seconds, 3),
        "elapsed_seconds": round(made.took, 3),
        "first_sound_seconds": None if made.first is None else round(made.first, 3),
        "model": model.name,
        "codec": model.codec.name,
        "voices": list(options.voices),
        "seed": options.seed,
        "speed": options.flags.speed,
        "cfg": options.flags.cfg,
        "codebooks": options.flags.codebooks,
        "normalized": options.flags.normalize,
    }


# ---------------------------------------------------------------------------- the command

SPEECH = "Speech"
_SPEAKER_ONLY = {"output", "rate"}
_MOST_VOICES = 2


def speak_command(
    context: typer.Context,
    text: Annotated[
        str,
        typer.Argument(
            metavar="TEXT|FILE|-",
            help="The text; a file, if there is one of that name or it is one word that ends in "
            ".txt, .md or .json; or - for standard input, which is spoken as it arrives.",
        ),
    ],
    save: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--save",
            metavar="FILE",
            help="Write the speech to this file, which is replaced: .wav, .flac, .mp3, .opus or "
            ".ogg; - is a WAV on stdout.",
            show_default="play it on the speaker",
            rich_help_panel=a.OUTPUT,
        ),
    ] = None,
    voice: Annotated[
        list[str] | None,
        typer.Option(
            "--voice",
            metavar="NAME|FILE",
            help="Speak with this voice: see `moshi-local voices`. Given twice, the second one is "
            "the other speaker's.",
            show_default="the model's choice",
            rich_help_panel=SPEECH,
        ),
    ] = None,
    speed: Annotated[
        float,
        typer.Option(
            min=-2.0,
            max=2.0,
            metavar="FACTOR",
            help="Speak faster, up to 2, or slower, down to -2.",
            rich_help_panel=SPEECH,
        ),
    ] = 0.0,
    cfg: Annotated[
        float | None,
        typer.Option(
            callback=a.finite,
            min=0.0,
            max=100.0,
            metavar="FACTOR",
            help="Keep this closely to the voice; some models know a few values only.",
            show_default="2, or the model's own",
            rich_help_panel=SPEECH,
        ),
    ] = None,
    codebooks: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Make the sound of this many codebooks; fewer are faster, and sound worse.",
            show_default="all",
            rich_help_panel=SPEECH,
        ),
    ] = None,
    normalize: Annotated[
        str | None,
        typer.Option(
            "--normalize",
            metavar="|".join(LANGUAGES),
            help="Write numbers, times, units and abbreviations out in this language before they "
            "are spoken, and show the text on stderr. Text that arrives is then spoken sentence by "
            "sentence.",
            show_default="as it is",
            rich_help_panel=SPEECH,
        ),
    ] = None,
    model: Annotated[str | None, a.model_option("speak")] = None,
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
    srt: Annotated[Path | None, a.text_file_option("srt", "SubRip subtitles")] = None,
    vtt: Annotated[Path | None, a.text_file_option("vtt", "WebVTT subtitles")] = None,
    json_file: Annotated[
        Path | None, a.text_file_option("json", "the words with their times")
    ] = None,
    output: a.OutputOption = None,
    rate: a.RateOption = None,
) -> None:
    """Speak a text: on the speaker while it is made, or into a file.

    Lines that begin with A: and B: are two speakers, and <break time="500ms"/> is a pause. The
    voice is synthetic, and the file says so.
    """
    if save is not None:
        a.refuse_given(context, _SPEAKER_ONLY, "goes with the speaker, not with -o")
    if len(voice or ()) > _MOST_VOICES:
        raise typer.BadParameter(
            f"--voice is there {len(voice or ())} times: a script has two speakers, so it is taken "
            "at most twice"
        )
    speak(
        SpeakingOptions(
            text=text,
            target=save,
            model=ModelSource(
                canonical(model or a.default_of("speak")), codec, lora, float16, force
            ),
            voices=tuple(voice or ()),
            flags=SpeakingFlags(speed, cfg, codebooks, normalize),
            seed=seed,
            sampling=SamplingFlags(temperature, temperature_text, top_k, top_k_text, top_p, min_p),
            kv_bits=kv_bits,
            sound=SoundFlags(output=output, rate=rate),
            beside=TextsBeside(srt, vtt, json_file),
        )
    )
