"""`moshi-local voices`: what voices there are, and one's own: made of a recording, shown, removed.

A voice of one's own is made with its speaker's consent, which stays in the file.
"""

from __future__ import annotations

import difflib
import json
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from moshi_mlx import HubError, MoshiError, VerbError, catalog
from moshi_mlx.arrays import Pcm
from moshi_mlx.checkpoint import config_of, find_files, open_checkpoint
from moshi_mlx.config import MimiConfig, ModelConfig
from moshi_mlx.families.kinds import KINDS, Kind, kind_of, local_kind, takes_no
from moshi_mlx.families.speaker_voices import TENSOR
from moshi_mlx.families.voice_files import VoiceFiles, voices_in
from moshi_mlx.hub import ModelFiles, canonical, file_of_repository, files_of_repository
from moshi_mlx.outputs import Output, check_outputs
from moshi_mlx.sounds import Sound, open_sound
from moshi_mlx.voices import VOICE_SUFFIXES, Voice, load_voice, voice_from_sound
from moshi_mlx.worker import on_good_thread

from . import arguments as a
from .audio.files import SPEECH_FORMATS, write_sound
from .audio.playback import playback_on
from .machine.verdict import local_files
from .observers.record import made_here
from .role import one_short_line, own_voices

__all__ = ["add_voice", "heard", "listing", "voices_app"]

MOST_SECONDS = 120.0
"""Of a recording, silence at its ends included."""
CONSENT_QUESTION = "Whose voice is this, and how did they agree?"
_NAME = re.compile(r"\w[\w-]{0,63}")
_OF_MODEL = re.compile(r"(\.wav)?\.\w+@\d+$")
_LONGEST_CONSENT = 1000  # characters
_CODEBOOKS = 8
_RATE = 24_000

voices_app = typer.Typer(cls=a.Group, invoke_without_command=True)

_ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="NAME",
        help="Only this model: a name from `moshi-local models`, a folder, or org/repo.",
        show_default=False,
    ),
]
_NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The voice's name.")]


@voices_app.callback()
def voices_command(
    context: typer.Context, model: _ModelOption = None, as_json: a.JsonOption = False
) -> None:
    """List the voices that models can speak with, and your own.

    Without a command it lists them. Nothing is fetched.
    """
    if context.invoked_subcommand is not None:
        a.refuse_options_before(context)
        return
    found = listing(None if model is None else canonical(model))
    if as_json:
        _print_json(found)
    else:
        _print_listing(Console(highlight=False), found)


@voices_app.command("add", cls=a.Command)
def add_command(
    name: _NameArgument,
    source: Annotated[
        Path,
        typer.Argument(
            metavar="FILE.wav", help="A recording of one speaker: 1 to 60 seconds, of any format."
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="NAME",
            help="Make the voice with the codec of this model.",
            show_default="personaplex",
        ),
    ] = None,
    consent: Annotated[
        str | None,
        typer.Option(
            "--i-have-consent",
            metavar="TEXT",
            help="State whose voice it is and how they agreed to this use; kept in the file.",
            show_default="asked on a terminal",
        ),
    ] = None,
    accept_faults: Annotated[
        bool, typer.Option("--accept-faults", help="Also take a recording that clips or is noisy.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace your voice of that name.")
    ] = False,
) -> None:
    """Make a voice of your own from a recording, with its speaker's consent."""
    chosen = _takers()[0] if model is None else canonical(model)
    voice, target = add_voice(
        name, source, chosen, consent, accept_faults=accept_faults, force=force
    )
    print(f"voice {name}: {_seconds(voice):.1f} s, saved as {target}")
    print(f"moshi-local --model {chosen} --voice {name}")


@voices_app.command("show", cls=a.Command)
def show_command(name: _NameArgument, as_json: a.JsonOption = False) -> None:
    """Show what is known of a voice of your own, or of a voice's file."""
    path = _own_or_file(name)
    about = _about(path)
    if problem := about.get("problem"):
        raise MoshiError(str(problem))
    if as_json:
        _print_json(about)
        return
    for key, value in about.items():
        if value not in (None, ""):
            print(f"{key}: {one_short_line(str(value), _LONGEST_CONSENT)}")


@voices_app.command("remove", cls=a.Command)
def remove_command(name: _NameArgument) -> None:
    """Remove a voice of your own."""
    path = _own(name)
    path.unlink()
    print(f"removed {path}")


@voices_app.command("published", cls=a.Command)
def published_command(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[WORD]…", help="Only names that have all of these in them."),
    ] = None,
    as_json: a.JsonOption = False,
) -> None:
    """List the published voices for text to speech by name, as the hub has them now."""
    wanted = [word.casefold() for word in words or ()]
    names = [
        file
        for file in files_of_repository(catalog.VOICE_REPOSITORY)
        if file.endswith(".wav") and all(word in file.casefold() for word in wanted)
    ]
    rows = [{"name": name, "licence": catalog.voice_licence(name)} for name in names]
    if as_json:
        _print_json(rows)
        return
    for row in rows:
        print(f"{row['name']}  ({row['licence']})")


@voices_app.command("play", cls=a.Command)
def play_command(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME|FILE",
            help="A published voice, one of your own, a voice's file, or a sound file.",
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="NAME",
            help="Make sound of a voice's codes with the codec of this model.",
            show_default="the first one that is here",
        ),
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--save",
            metavar="FILE",
            help="Write it to this sound file.",
            show_default="play it on the speaker",
        ),
    ] = None,
    output: a.OutputOption = None,
    rate: a.RateOption = None,
) -> None:
    """Hear a voice. A published one is fetched if it is not here."""
    if save is not None:
        check_outputs([Output(save, "the voice", tuple(SPEECH_FORMATS))])
    pcm, sample_rate, about = heard(name, None if model is None else canonical(model))
    print(about, file=sys.stderr)
    if save is not None:
        write_sound(save, pcm, sample_rate)
        return
    with playback_on(output, rate, sample_rate) as playback:
        playback.write(pcm)
        playback.finish()


def heard(name: str, model: str | None) -> tuple[Pcm, int, str]:
    """What a voice sounds like.

    Args:
        name: of a published voice or one of the user's own; a voice's file, or a sound file.
        model: whose codec makes sound of codes; None takes the first one that is here.

    Returns:
        float32 [samples], their rate (Hz), and a line that says what it is.

    Raises:
        MoshiError: there is no such voice, it cannot be fetched, or it has no sound.
    """
    path = Path(name).expanduser()
    if path.suffix not in VOICE_SUFFIXES and path.is_file():
        return _sound_of(path), _RATE, str(path)
    if any(name.startswith(f"{folder.name}/") for folder in catalog.VOICE_FOLDERS):
        file = f"{name.partition('.wav')[0]}.wav"
        path = file_of_repository(catalog.VOICE_REPOSITORY, file)
        licence = catalog.voice_licence(name)
        return _sound_of(path), _RATE, f"{file} of {catalog.VOICE_REPOSITORY}, licence {licence}"
    if "/" in name and not path.exists():
        folders = ", ".join(folder.name for folder in catalog.VOICE_FOLDERS)
        raise MoshiError(f"there is no voice {name!r}: the published ones are in {folders}")
    path = _own_or_file(name)
    voice = load_voice(path)
    if voice.codes is None:
        raise MoshiError(
            f"voice {voice.name} is what a model read of a recording, which cannot be played: let "
            "the model speak with it"
        )
    return _decoded(voice, model), _RATE, f"voice {voice.name}, {_seconds(voice):.1f} s"


def _sound_of(path: Path) -> Pcm:
    """Mono, at _RATE."""
    mixed: Pcm = open_sound(path).read(_RATE).mean(axis=0)
    return mixed


def _decoded(voice: Voice, model: str | None) -> Pcm:
    """The sound of a voice's codes. Raises MoshiError."""
    codes = voice.codes
    assert codes is not None
    here = (name for name in _takers() if local_files(name) is not None)
    chosen = next(here, None) if model is None else model
    if chosen is None:
        raise MoshiError(
            f"voice {voice.name} is codes, and no model is here that makes sound of them: name one "
            "with --model"
        )
    checkpoint = open_checkpoint(chosen)

    def made() -> Pcm:
        codec = checkpoint.choose_codec("mlx", len(codes))
        return codec.decode_step(codes, codec.init_state())

    return on_good_thread(made)


def add_voice(
    name: str,
    source: Path,
    model: str,
    consent: str | None,
    *,
    accept_faults: bool = False,
    force: bool = False,
) -> tuple[Voice, Path]:
    """Makes a voice and writes it to the user's own ones.

    Args:
        name: of the voice.
        source: the recording.
        model: whose codec makes it; its files are fetched if they are not here.
        consent: the statement; None asks for it on a terminal.
        accept_faults: also take a recording that clips or is noisy.
        force: replace a voice of that name.

    Returns:
        The voice and its file.

    Raises:
        MoshiError: there is no consent, the recording or the name cannot be used, or the model
            takes no voice.
    """
    if not _NAME.fullmatch(name):
        raise MoshiError(
            f"a voice cannot be called {name!r}: use up to 64 letters, digits, - and _"
        )
    target = own_voices() / f"{name}{VOICE_SUFFIXES[0]}"
    there = _same_name(name)
    if there is not None and not force:
        raise MoshiError(
            f"there is a voice {there.stem} already, {there}: give another name, or --force to "
            "replace it"
        )
    if consent is not None and not consent.strip():
        raise _no_consent()
    sound = open_sound(source)
    _check_sound(source, sound)
    _check_model(model, name)
    if consent is None:
        consent = _asked()
    if len(consent) > _LONGEST_CONSENT:
        raise MoshiError(
            f"the statement of consent has {len(consent)} characters: use {_LONGEST_CONSENT} at "
            "most"
        )
    checkpoint = open_checkpoint(model)
    codebooks = _codebooks(checkpoint.config, model)
    _check_name(model, _here(checkpoint.files), name)

    def made() -> Voice:
        codec = checkpoint.choose_codec("mlx", codebooks)
        pcm = sound.read(codec.sample_rate)[0]
        return voice_from_sound(
            codec, pcm, name=name, accept_faults=accept_faults, codebooks=codebooks
        )

    voice = on_good_thread(made)
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    voice.save(target, consent=consent, source=source.name)
    if there is not None and there.name != target.name:
        with suppress(FileNotFoundError):  # the same file, on a disk that ignores case
            if not there.samefile(target):
                there.unlink()
    return voice, target


def listing(model: str | None = None) -> dict[str, Any]:
    """Models with their voices and the user's own ones, as JSON has it. Nothing is fetched.

    Args:
        model: only this one.

    Raises:
        MoshiError: the model is not in the catalogue, and not here.
    """
    entries = [e for e in catalog.ENTRIES if model is None or model in (e.name, e.repository)]
    entries = entries or catalog.series(model or "")
    entries = [e for e in entries if e.voices or model is not None or _speaks(e)]
    rows = [
        {
            "model": entry.name,
            "licence": entry.licence,
            "choice": KINDS[entry.family].persona or _speaks(entry),
            "published": _speaks(entry),
            "voices": list(entry.voices),
            "here": _here(local_files(entry.name)),
        }
        for entry in entries
    ]
    if model is not None and not entries:
        kind, files = local_kind(model), None
        if "/" not in model and not Path(model).exists():
            known = [e.name for e in catalog.ENTRIES if e.voices or _speaks(e)]
            raise HubError(f"There is no model {model!r}. {catalog.suggestion(model, known)}")
        if kind is None or kind.persona or kind.verb == "speak":
            files = find_files(model, offline=True)
            kind = kind_of(config_of(files), model)
        here = _here(files)
        rows = [
            {
                "model": model,
                "licence": None,
                "choice": kind.persona or kind.verb == "speak",
                "published": kind.verb == "speak",
                "voices": here,
                "here": here,
            }
        ]
    own = [_about(path) for path in voices_in(own_voices())]
    published = {
        "repository": catalog.VOICE_REPOSITORY,
        "folders": [asdict(folder) for folder in catalog.VOICE_FOLDERS],
        "here": _published_here(),
    }
    return {"models": rows, "published": published, "own": own, "folder": str(own_voices())}


def _published_here() -> list[str]:
    """Names of the published voices that have been fetched."""
    with suppress(HubError):
        files = files_of_repository(catalog.VOICE_REPOSITORY, offline=True)
        return sorted({f"{file.partition('.wav')[0]}.wav" for file in files if ".wav" in file})
    return []


def _here(files: ModelFiles | None) -> list[str]:
    """Those of a model that are on this machine; a file's name may end with its model's."""
    names = [] if files is None else VoiceFiles(files).names()
    return sorted({_OF_MODEL.sub("", name) for name in names})


def _speaks(entry: catalog.Entry) -> bool:
    """Whether an entry is one for speech from text, which takes the published voices."""
    return KINDS[entry.family].verb == "speak" and not entry.bundled


def _takers() -> list[str]:
    """Models of the catalogue for which a voice can be made of a recording."""
    return [entry.name for entry in catalog.ENTRIES if entry.recordings]


def _codebooks(config: ModelConfig, model: str) -> int:
    """How many a voice for this model has. Raises VerbError if none can be made."""
    kind = kind_of(config, model)
    if kind.persona:
        return _CODEBOOKS
    if kind.verb == "speak" and TENSOR not in config.lm.conditioners:
        return config.lm.n_q
    raise _no_recordings(kind, model)


def _no_recordings(kind: Kind, model: str) -> VerbError:
    if kind.verb != "speak":
        return takes_no(model, "a voice")
    able = " or ".join(
        e.name for e in catalog.ENTRIES if e.recordings and KINDS[e.family].verb == "speak"
    )
    return VerbError(
        f"{model} takes published voices alone, since what encodes a recording for it is not "
        f"public: use {able}"
    )


def _check_sound(source: Path, sound: Sound) -> None:
    made = made_here(source)
    if made == "a conversation":
        raise MoshiError(
            f"{source} is a recording that moshi-local made of a conversation, and whoever speaks "
            "there has not recorded it to give away a voice: record the speaker for this"
        )
    if made is not None:
        raise MoshiError(
            f"{source} is synthetic speech that moshi-local made, of a voice whose speaker agreed "
            "to that voice alone: record the speaker for this"
        )
    if sound.seconds > MOST_SECONDS:
        raise MoshiError(
            f"{source} has {sound.seconds:.0f} s of sound: cut 1 to 60 s of one speaker out of it"
        )


def _check_model(model: str, name: str) -> None:
    """As far as that needs no file that is not here."""
    entry = catalog.entry_of(model)
    if entry is not None and not entry.recordings:
        raise _no_recordings(KINDS[entry.family], model)
    known = () if entry is None else entry.voices
    _check_name(model, [*known, *_here(local_files(model))], name)


def _check_name(model: str, known: Sequence[str], name: str) -> None:
    """That it is none of the model's own, which would be found first."""
    for voice in known:
        if voice.casefold() == name.casefold():
            raise MoshiError(f"{model} has a voice {voice} already: give yours another name")


def _asked() -> str:
    """The statement of consent, from whoever sits at the terminal."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise _no_consent()
    said = str(typer.prompt(CONSENT_QUESTION, err=True)).strip()
    if not said:
        raise _no_consent()
    return said


def _no_consent() -> MoshiError:
    return MoshiError(
        "a voice is only made with its speaker's consent: state whose voice it is and how they "
        'agreed, by --i-have-consent "…"'
    )


def _same_name(name: str) -> Path | None:
    """One's own voice of that name; case doesn't count, as on many disks."""
    found = (p for p in voices_in(own_voices()) if p.stem.casefold() == name.casefold())
    return next(found, None)


def _own(name: str) -> Path:
    """The file of a voice of one's own. Raises MoshiError."""
    stem = name
    for suffix in VOICE_SUFFIXES:
        stem = stem.removesuffix(suffix)
    paths = voices_in(own_voices())
    for path in paths:
        if path.stem == stem:
            return path
    names = [path.stem for path in paths]
    near = {each.upper(): each for each in names}
    close = [near[n] for n in difflib.get_close_matches(stem.upper(), near, n=3, cutoff=0.6)]
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    have = f"You have {', '.join(names)}" if names else "You have none: `moshi-local voices add`"
    raise MoshiError(f"you have no voice {name!r}: {hint}{have}")


def _own_or_file(name: str) -> Path:
    try:
        return _own(name)
    except MoshiError:
        path = Path(name)
        if path.suffix in VOICE_SUFFIXES and path.is_file():
            return path
        if path.suffix and not path.exists():
            raise MoshiError(f"there is no file {name}, and you have no voice {name!r}") from None
        raise


def _about(path: Path) -> dict[str, Any]:
    """What a voice's file says; its problem, where it cannot be read."""
    try:
        voice = load_voice(path)
    except MoshiError as error:
        return {"name": path.stem, "file": str(path), "problem": str(error)}
    return {
        "name": path.stem,
        "file": str(path),
        "seconds": round(_seconds(voice), 2),
        "kind": "codes" if voice.codes is not None else "embeddings",
        **{key: voice.about.get(key) or None for key in ("consent", "date", "source")},
    }


def _seconds(voice: Voice) -> float:
    return voice.frames / MimiConfig().frame_rate


def _print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False, indent=1))


def _print_listing(console: Console, found: dict[str, Any]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1))
    for column in ("model", "voices", "licence"):
        table.add_column(column, overflow="fold")
    for row in found["models"]:
        more = [name for name in row["here"] if name not in row["voices"]]
        published = ["published ones, below"] if row["published"] else []
        voices = ", ".join([*row["voices"], *more, *published]) or "–"
        if not row["choice"] and row["voices"]:
            voices += " (no choice)"
        table.add_row(row["model"], voices, row["licence"] or "see its own files")
    console.print(table, markup=False)
    _print_published(console, found["published"])
    if not found["own"]:
        console.print("Your own: none yet; `moshi-local voices add` makes one.", soft_wrap=True)
        return
    own = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1))
    for column in ("your own", "seconds", "consent", "date"):
        own.add_column(column, overflow="fold")
    for row in found["own"]:
        said = row.get("consent") or row.get("problem") or "–"
        seconds, date = row.get("seconds"), (row.get("date") or "")[:10]
        cells = (one_short_line(row["name"]), "" if seconds is None else f"{seconds:.1f}")
        own.add_row(*cells, one_short_line(said, 200), one_short_line(date))
    console.print(own, markup=False)


def _print_published(console: Console, found: dict[str, Any]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1))
    for column in ("published", "for text to speech", "licence"):
        table.add_column(column, overflow="fold")
    for folder in found["folders"]:
        table.add_row(f"{folder['name']}/…", folder["about"], folder["licence"])
    console.print(table, markup=False)
    if found["here"]:
        console.print(f"Of these here: {', '.join(found['here'])}", markup=False, soft_wrap=True)
    console.print(
        "Their names: `moshi-local voices published`; to hear one: `moshi-local voices play NAME`.",
        markup=False,
        soft_wrap=True,
    )
