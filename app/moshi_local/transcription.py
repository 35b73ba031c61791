"""Speech to text: recordings, and the command for these and for the microphone.

Knows nothing of how a model transcribes. What is live about it is the conversation in `chat`.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from moshi_mlx import (
    AudioFileError,
    Event,
    HeardWord,
    MoshiError,
    TurnEnded,
    WindowRefreshed,
    Word,
)
from moshi_mlx.files import named_as, signals_interrupt
from moshi_mlx.hub import canonical
from moshi_mlx.outputs import Output, WholeFile, check_outputs, is_stdout
from moshi_mlx.sounds import Sound, open_sound
from moshi_mlx.text import join_words

from . import arguments as a
from .assembly import consoles, inputs_of, load_model, transcription_arguments
from .chat import ChatOptions, chat
from .observers.event_log import STDOUT, event_as_dict
from .options import (
    CodecChoice,
    EchoMode,
    Keeping,
    ModelSource,
    SoundFlags,
    TranscriptionFlags,
)
from .report import LoopReport
from .terminal.lines import clock, describe
from .terminal.progress import SoundProgress
from .word_formats import WordFormat, WordWriter, word_writer

if TYPE_CHECKING:  # the family is imported with its first model
    from moshi_mlx import Stt

__all__ = ["TranscriptionOptions", "transcribe_command", "transcribe_files"]

TRANSCRIPTION = "Transcription"
DEFAULT_BATCH = 8
MOST_AT_ONCE = 64
STDIN = "standard input"
_DASH = Path("-")


@dataclass(frozen=True, slots=True)
class TranscriptionOptions:
    """What a transcription of recordings is asked for.

    sources: sound files; "-" is standard input.
    model: what transcribes.
    output: a file, or a folder for a file of each recording; None: standard output.
    format: of what is written; None: by the output's name, else plain text.
    batch: recordings that are heard side by side.
    flags: of the transcription.
    kv_bits: as `Stt.transcribe` takes it.
    """

    sources: Sequence[Path]
    model: ModelSource
    output: Path | None = None
    format: WordFormat | None = None
    batch: int = DEFAULT_BATCH
    flags: TranscriptionFlags = field(default_factory=TranscriptionFlags)
    kv_bits: int | None = None

    def targets(self) -> _Targets:
        """Where what is written goes. Raises MoshiError where that is unclear."""
        return _targets(self.output, self.format, self.sources)


@dataclass(frozen=True, slots=True)
class _Targets:
    """Where transcripts go: a file each, or standard output; all of one format."""

    format: WordFormat
    files: Sequence[Output] = ()
    folder: Output | None = None

    def heading(self, name: str, count: int) -> str:
        """What stands before a recording's text, one of `count`, on standard output."""
        plain = self.format is WordFormat.txt and not self.files
        return f"==> {name} <==\n" if plain and count > 1 else ""


def transcribe_files(options: TranscriptionOptions) -> None:
    """Transcribes recordings, in order. Each file is written at its recording's end, whole.

    Raises:
        MoshiError: what is wrong with an option, a file or the model.
    """
    screen, notes = consoles(stdout_is_taken=False)
    targets = options.targets()
    folders = [] if targets.folder is None else [targets.folder]
    read = [path for path in options.sources if path != _DASH]
    check_outputs([*folders, *targets.files], [*read, *inputs_of(options.model)])
    with ExitStack() as stack:
        recordings = [stack.enter_context(_recording(path)) for path in options.sources]
        for folder in folders:
            stack.enter_context(folder.made())
        model, verdict = load_model(options.model, notes, options.kv_bits, "transcribe")
        how = transcription_arguments(model, verdict.kv_bits, options.flags)
        seconds = sum(each.sound.seconds for each in recordings)
        live = not targets.files and screen.is_terminal
        began = time.monotonic()
        with SoundProgress(screen if live else notes, seconds) as bar:
            run = _Run(cast("Stt", model), how, targets, bar, live, len(recordings))
            try:
                with signals_interrupt("SIGTERM", "SIGHUP"):
                    for first in range(0, len(recordings), options.batch):
                        run.batch(recordings[first : first + options.batch])
            except (KeyboardInterrupt, SystemExit):
                bar.stop()
                notes.print(f"moshi-local: stopped{run.lost}", markup=False, soft_wrap=True)
                raise
    took = time.monotonic() - began
    where = "" if options.output is None else f": {options.output}"
    notes.print(
        f"{seconds:.1f} s transcribed in {took:.1f} s, {seconds / took:.1f} times real time{where}",
        markup=False,
        soft_wrap=True,
    )


@dataclass(frozen=True, slots=True)
class _Recording:
    """What is transcribed, and what it is called."""

    name: str
    sound: Sound


@contextmanager
def _recording(path: Path) -> Iterator[_Recording]:
    """A sound file; of standard input, a copy while the block runs. Raises AudioFileError."""
    if path != _DASH:
        yield _Recording(str(path), open_sound(path))
        return
    if sys.stdin.isatty():
        raise AudioFileError(f"{STDIN} is a terminal: pipe a sound file into it")
    with tempfile.NamedTemporaryFile(prefix="moshi-local-") as copy:
        shutil.copyfileobj(sys.stdin.buffer, copy)
        copy.flush()
        spooled = Path(copy.name)
        with named_as(Path(STDIN), spooled):
            yield _Recording(STDIN, open_sound(spooled))


def _targets(output: Path | None, asked: WordFormat | None, sources: Sequence[Path]) -> _Targets:
    if output is None or output == _DASH or is_stdout(output):
        kind = asked or WordFormat.txt
        if len(sources) > 1 and kind not in (WordFormat.txt, WordFormat.json):
            raise MoshiError(
                f"{len(sources)} recordings as {kind.value} are one file each: give a folder for "
                "them with --output"
            )
        return _Targets(kind)
    suffix = output.suffix.lower().removeprefix(".")
    named = next((each for each in WordFormat if each.value == suffix), None)
    if len(sources) == 1 and not output.is_dir() and not str(output).endswith("/"):
        if asked is not None and named is not None and asked != named:
            raise MoshiError(
                f"--output {output} is named as {named.value}, and --format says {asked.value}: "
                "leave one out"
            )
        if suffix and asked is None and named is None:
            suffixes = " or ".join(f".{each.value}" for each in WordFormat)
            raise MoshiError(
                f"--output {output}: .{suffix} is not a format of transcripts: name it {suffixes}, "
                "or say which with --format"
            )
        return _Targets(asked or named or WordFormat.txt, [Output(output, "the transcript")])
    if not output.is_dir() and named is not None:
        raise MoshiError(
            f"--output {output} is one file, and there are {len(sources)} recordings: give a "
            f"folder, and --format {named.value}"
        )
    kind = asked or WordFormat.txt
    stems = ["stdin" if path == _DASH else path.stem for path in sources]
    for i, stem in enumerate(stems):
        if stem in stems[:i]:
            raise MoshiError(
                f"{sources[stems.index(stem)]} and {sources[i]} would both become "
                f"{stem}.{kind.value} in {output}: transcribe one after the other into two folders"
            )
    files = [Output(output / f"{stem}.{kind.value}", "the transcript") for stem in stems]
    return _Targets(kind, files, Output(output, "transcripts into", kind="folder"))


class _Transcript:
    """What is known of a recording's transcript, as it comes; `heading` stands before it."""

    def __init__(self, recording: _Recording, writer: WordWriter, heading: str) -> None:
        self._recording, self._writer = recording, writer
        self._text = heading + writer.begin()
        self.words: list[Word] = []
        """All until now."""
        self._events: list[Event] = []
        self.seconds = 0.0

    def add(self, words: Sequence[Word], events: Sequence[Event]) -> None:
        """More of it."""
        self.words += words
        self._events += [each for each in events if isinstance(each, TurnEnded | WindowRefreshed)]
        self._text += "".join(map(self._writer.add, words))

    def end(self, facts: dict[str, object]) -> None:
        """That was all; `facts` are of the run."""
        about = {
            **transcript_as_dict(self.words),
            "events": [event_as_dict(event) for event in self._events],
            "source": self._recording.name,
            "seconds": round(self._recording.sound.seconds, 3),
            **facts,
        }
        self._text += self._writer.end(about)

    def taken(self) -> str:
        """The text that was not taken yet."""
        text, self._text = self._text, ""
        return text


def transcript_as_dict(words: Sequence[Word]) -> dict[str, Any]:
    """Words for JSON, with pause probabilities if the model has them; times in seconds."""
    return {
        "text": join_words(word.text for word in words),
        "words": [_word_as_dict(word) for word in words],
    }


def _word_as_dict(word: Word) -> dict[str, Any]:
    found = {"text": word.text, "start": round(word.start, 3), "end": round(word.end, 3)}
    pauses = word.pauses if isinstance(word, HeardWord) else None
    return found if pauses is None else {**found, "pauses": [round(p, 4) for p in pauses]}


class _Run:
    """Batch after batch through the model, and what comes of it to where it belongs.

    Standard output gets the recordings one after the other, each as it comes.
    """

    def __init__(
        self,
        stt: Stt,
        how: dict[str, Any],
        targets: _Targets,
        bar: SoundProgress,
        live: bool,
        count: int,
    ) -> None:
        self._stt, self._how, self._targets, self._count = stt, how, targets, count
        self._bar, self._live = bar, live
        self._before = 0.0  # seconds of the batches before this one
        self._written: set[int] = set()
        self._first = 0  # number of the batch's first recording

    @property
    def lost(self) -> str:
        """What a stop now leaves unwritten, for a message."""
        files = self._targets.files
        left = [str(each.path) for i, each in enumerate(files) if i not in self._written]
        if not left:
            return ""
        return f"; {', '.join(left)} {'was' if len(left) == 1 else 'were'} not written"

    def batch(self, recordings: Sequence[_Recording]) -> None:
        """Recordings side by side."""
        kind = self._targets.format
        found = [
            _Transcript(each, word_writer(kind), self._targets.heading(each.name, self._count))
            for each in recordings
        ]
        ended: set[int] = set()
        told = 0  # the first whose text has not all gone to standard output
        sounds = [each.sound.mono(self._stt.sample_rate) for each in recordings]
        for passage in self._stt.transcribing(sounds, **self._how):
            transcript = found[passage.source]
            transcript.add(passage.words, passage.events)
            for event in passage.events:
                self._note(recordings[passage.source], event)
            transcript.seconds = passage.seconds
            self._bar.heard(self._before + sum(each.seconds for each in found))
            if passage.ended:
                transcript.end(self._facts())
                if not transcript.words:
                    self._say(f"note: no word was heard in {recordings[passage.source].name}")
                ended.add(passage.source)
                if self._targets.files:
                    self._write(self._first + passage.source, transcript)
            while not self._targets.files and told < len(found):
                self._put(found[told].taken())
                if told not in ended:
                    break
                told += 1
        self._before += sum(each.sound.seconds for each in recordings)
        self._first += len(recordings)

    def _facts(self) -> dict[str, object]:
        stt = self._stt
        return {"model": stt.name, "codec": stt.codec.name, "pause_heads": stt.heads}

    def _write(self, number: int, transcript: _Transcript) -> None:
        target = self._targets.files[number]
        WholeFile(target.path, target.what).write(transcript.taken(), mode=0o666)
        self._written.add(number)

    def _put(self, text: str) -> None:
        """On standard output, at once."""
        if self._live:
            self._bar.put(text)
        elif text:
            try:
                sys.stdout.write(text)
                sys.stdout.flush()
            except BrokenPipeError as error:  # whoever read it has seen enough
                raise typer.Exit from error

    def _note(self, recording: _Recording, event: Event) -> None:
        if isinstance(event, WindowRefreshed):
            self._say(f"{recording.name} {clock(event.time)}  {describe(event)}")

    def _say(self, note: str) -> None:
        self._bar.console.print(note, markup=False, highlight=False, soft_wrap=True)


# ---------------------------------------------------------------------------- the command

_FILES_ONLY = {"batch"}
_LIVE_ONLY = {"input", "rate", "noise_suppression", "events", "trace", "seconds", "plain"}
_LIVE_ONLY |= {"push_to_talk"}


def transcribe_command(
    context: typer.Context,
    sources: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="FILE",
            help="Recordings: any rate, any channels, any length; - is standard input.",
            show_default=False,
        ),
    ] = None,
    live: Annotated[
        bool,
        typer.Option(
            "--live", help="Transcribe the microphone live.", rich_help_panel=TRANSCRIPTION
        ),
    ] = False,
    format: Annotated[
        WordFormat | None,
        typer.Option(
            help="Write text, or words with their times as JSON, subtitles (SubRip, WebVTT), or "
            "tab-separated values.",
            show_default="by the output's name, else txt",
            rich_help_panel=a.OUTPUT,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE|FOLDER",
            help="Write to this file, or a file for each recording into this folder.",
            show_default="standard output",
            rich_help_panel=a.OUTPUT,
        ),
    ] = None,
    batch: Annotated[
        int,
        typer.Option(
            min=1,
            max=MOST_AT_ONCE,
            metavar="N",
            help="Transcribe this many recordings side by side, which is faster and takes more "
            "memory.",
            rich_help_panel=TRANSCRIPTION,
        ),
    ] = DEFAULT_BATCH,
    spell: Annotated[
        str | None,
        typer.Option(
            metavar="WORDS",
            help='Show the model these spellings first: "Kyutai, Mimi". An experiment.',
            show_default=False,
            rich_help_panel=TRANSCRIPTION,
        ),
    ] = None,
    spell_sound: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="With --spell, a recording of these words in this order.",
            show_default=False,
            rich_help_panel=TRANSCRIPTION,
        ),
    ] = None,
    turn_threshold: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            metavar="P",
            help="A turn has ended when a pause is likelier than this; for models with pause "
            "heads.",
            show_default="0.5",
            rich_help_panel=TRANSCRIPTION,
        ),
    ] = None,
    turn_hold: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=60,
            metavar="SECONDS",
            help="And stays so for this long.",
            show_default="0",
            rich_help_panel=TRANSCRIPTION,
        ),
    ] = None,
    model: Annotated[str | None, a.model_option("transcribe")] = None,
    force: a.ForceOption = False,
    codec: a.CodecNameOption = CodecChoice.auto,
    lora: a.LoraOption = None,
    kv_bits: a.KvBitsOption = None,
    float16: a.Float16Option = False,
    push_to_talk: a.PushToTalkOption = False,
    seconds: a.SecondsOption = None,
    input: a.InputOption = None,
    rate: a.RateOption = None,
    noise_suppression: a.NoiseSuppressionOption = False,
    events: a.EventsOption = None,
    trace: a.TraceOption = None,
    plain: a.PlainOption = False,
    as_json: a.JsonOption = False,
) -> None:
    """Write down what is said: in recordings, or live with --live.

    Text appears while it is written. Live, q or Ctrl-C ends it, and the last words still come.
    """
    how = "goes with files, not with --live" if live else "goes with --live"
    a.refuse_given(context, _FILES_ONLY if live else _LIVE_ONLY, how)
    source = ModelSource(
        canonical(model or a.default_of("transcribe")), codec, lora, float16, force
    )
    if spell_sound is not None:
        if spell is None:
            raise typer.BadParameter("--spell-sound goes with --spell")
        open_sound(spell_sound)  # what is wrong with it is told before a model is loaded
    flags = TranscriptionFlags(spell, spell_sound, turn_threshold, turn_hold)
    if live:
        if sources:
            raise typer.BadParameter("--live takes no files: leave them out")
        if events == STDOUT and as_json:
            raise typer.BadParameter("--events - and --json both write to stdout: choose one")
        _live(
            ChatOptions(
                model=source,
                sound=SoundFlags(input, None, rate, EchoMode.off, noise_suppression),
                keeping=Keeping(None, "flac", events, trace),
                kv_bits=kv_bits,
                push_to_talk=push_to_talk,
                loop_guard=False,
                seconds=seconds,
                plain=plain or events == STDOUT,
                as_json=as_json,
                transcription=flags,
            ),
            output,
            format,
        )
        return
    if not sources:
        raise typer.BadParameter("give FILE, or --live to transcribe the microphone")
    if as_json and format not in (None, WordFormat.json):
        raise typer.BadParameter(f"--json is --format json, and --format says {format.value}")
    if sources.count(_DASH) > 1:
        raise typer.BadParameter("- is there twice, and standard input can be read once")
    transcribe_files(
        TranscriptionOptions(
            sources=sources,
            model=source,
            output=output,
            format=WordFormat.json if as_json else format,
            batch=batch,
            flags=flags,
            kv_bits=kv_bits,
        )
    )


def _live(options: ChatOptions, output: Path | None, format: WordFormat | None) -> None:
    """The microphone, and what was written down as a file at the end, if that is asked for."""
    if output is None and format is not None:
        raise typer.BadParameter("--format goes with --output, where it goes with --live")
    targets = _Targets(WordFormat.txt)
    if output is not None:
        targets = _targets(output, format, [Path("live")])
    check_outputs(targets.files, inputs_of(options.model))
    report = chat(options)
    for target in targets.files:
        writer = word_writer(targets.format)
        pieces = [writer.begin(), *map(writer.add, report.words), writer.end(_facts(report))]
        WholeFile(target.path, target.what).write("".join(pieces), mode=0o666)


def _facts(report: LoopReport) -> dict[str, object]:
    return {**transcript_as_dict(report.words), "seconds": round(report.seconds, 3)}
