"""What every kind of conversation sets up alike: consoles, model, session, summary.

Knows the library and the doctor's verdicts; nothing of sound and terminals.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import typer
from rich.console import Console

import moshi_mlx
from moshi_mlx import Model, Moshi, MoshiError, Session, VerbError, Word, catalog
from moshi_mlx.backend import slow_reason
from moshi_mlx.checkpoint import find_files
from moshi_mlx.families import Verb
from moshi_mlx.families.kinds import KINDS, check_verb
from moshi_mlx.outputs import model_inputs
from moshi_mlx.text import join_words

from .config_file import config_path
from .first_start import make_model
from .listening import Listening
from .machine.verdict import Verdict, check_before, check_together
from .options import (
    ModelSource,
    PersonaFlags,
    SamplingFlags,
    TranscriptionFlags,
    TranslationFlags,
)
from .report import LoopReport, words_as_dicts
from .role import Role, files_of, own_voices, told

__all__ = [
    "CaptionModel",
    "asked",
    "check_captions",
    "consoles",
    "heard_as_dict",
    "inputs_of",
    "load_captions",
    "load_model",
    "open_session",
    "open_transcription",
    "print_json",
    "session_arguments",
    "transcription_arguments",
]

CAPTIONS_CATCH_UP = 2
"""Frames that a step of captions takes at most, so that it fits between two of the conversation."""


def consoles(stdout_is_taken: bool) -> tuple[Console, Console]:
    """Where words go and where notes go; `stdout_is_taken` by JSON."""
    notes = Console(stderr=True, highlight=False)
    return (notes if stdout_is_taken else Console(highlight=False)), notes


def asked(question: str) -> bool:
    """The user's answer, yes or no, on a terminal."""
    return typer.confirm(question, default=None, err=True)


def inputs_of(source: ModelSource, persona: PersonaFlags | None = None) -> Iterator[Path]:
    """The files that every command reads, which no output may replace."""
    yield from model_inputs(source.name)
    yield from model_inputs(source.lora)
    yield config_path()
    yield from () if persona is None else files_of(persona)


def load_model(
    source: ModelSource,
    notes: Console,
    kv_bits: int | None = None,
    verb: Verb = "talk",
    beside: Verdict | None = None,
) -> tuple[Model, Verdict]:
    """The model that a command was asked for, and what its memory and speed are here.

    The name of a series becomes the precision that suits this machine.

    Args:
        source: what to load.
        notes: where to say what is done.
        kv_bits: as the family's `session` takes it.
        verb: what it is to do.
        beside: of another model that is loaded, and stays.

    Raises:
        MoshiError: the model cannot do what the verb says, does not fit, or cannot be loaded.
    """
    check_verb(source.name, verb)
    if catalog.series(source.name):
        notes.print("measuring this machine …")
    verdict = check_before(source.name, force=source.force, kv_bits=kv_bits)
    needs = [each.needs for each in (verdict, beside) if each is not None]
    known = [each.total for each in needs if each is not None]
    if note := moshi_mlx.prepare_gpu(sum(known) if len(known) == len(needs) else None):
        notes.print(note, markup=False, soft_wrap=True)
    if verdict.kv_bits and not kv_bits:
        notes.print(
            f"keys and values in {verdict.kv_bits} bits: in full, a long conversation would be too "
            "much for this machine",
            soft_wrap=True,
        )
    on_terminal = sys.stdin.isatty() and sys.stderr.isatty()
    make_model(verdict.model, notes, asked if on_terminal else None)
    entry = catalog.find(verdict.model)
    demonstration = None
    if entry is not None and entry.bundled:
        kind = KINDS[entry.family].verb
        knows = "a few dozen sentences" if kind == "talk" else "a few hundred words"
        able = (e for e in catalog.ENTRIES if KINDS[e.family].verb == kind and not e.bundled)
        real = next(able)
        demonstration = (
            f"{entry.name} is a demonstration model: it knows {knows}. "
            f"For a real one: --model {real.series or real.name}"
        )
    for line in filter(None, (slow_reason(), demonstration, f"loading {verdict.model}")):
        notes.print(line, markup=False, soft_wrap=True)
    moshi = moshi_mlx.load(
        verdict.model,
        verb=verb,
        codec=source.codec.value,
        lora=source.lora,
        base=source.base,
        dtype=mx.float16 if source.float16 else None,
    )
    notes.print(f"codec {moshi.codec.name}")
    if verb == "transcribe" and not moshi.lm.config.extra_heads:
        notes.print("no pause heads: ends of turns are not told")
    return moshi, verdict


def check_captions(name: str | None) -> None:
    """Refuses a model that cannot write captions, before the one that talks is loaded.

    Raises:
        VerbError: it cannot transcribe.
        HubError: there is no model of that name.
    """
    if name is None:
        return
    check_verb(name, "transcribe")
    published = catalog.entry_of(name) is not None
    if not published and ("/" not in name or Path(name).exists()):  # else it may be fetched
        find_files(name, offline=True)


def open_session(
    moshi: Model,
    seed: int,
    sampling: SamplingFlags,
    kv_bits: int | None,
    translation: TranslationFlags | None = None,
    role: Role | None = None,
    notes: Console | None = None,
) -> Session:
    """A fresh conversation or live translation, drawn as the options say.

    Args:
        moshi: the model.
        seed: of its random numbers.
        sampling: the options.
        kv_bits: as `Moshi.session` takes it.
        translation: the options of a live translation.
        role: persona and voice of a conversation, if there are any.
        notes: where to say which they are.

    Raises:
        MoshiError: as the family's `session`.
    """
    of_family: dict[str, Any] = {} if translation is None else asdict(translation)
    arguments = session_arguments(moshi, seed, sampling, kv_bits, role)
    session: Session = moshi.session(**arguments, **of_family)
    if notes is not None and role is not None and session.opening is not None:
        for line in told(arguments["persona"], arguments["voice"], session.opening, role.keep):
            notes.print(line, markup=False, soft_wrap=True)
    return session


def session_arguments(
    moshi: Model,
    seed: int,
    sampling: SamplingFlags,
    kv_bits: int | None,
    role: Role | None = None,
) -> dict[str, Any]:
    """The options as a family's `session` takes them. Raises MoshiError."""
    asked = {} if role is None or not role.asked else _as_arguments(role, moshi, kv_bits)
    return {
        "seed": seed,
        "text": sampling.text(moshi.text_sampling),
        "audio": sampling.audio(moshi.audio_sampling),
        "kv_bits": kv_bits,
        **asked,
    }


def open_transcription(stt: Model, kv_bits: int | None, flags: TranscriptionFlags) -> Listening:
    """A live transcription, with ends of turns as the options say. Raises MoshiError."""
    how = transcription_arguments(stt, kv_bits, flags)
    return Listening(stt.session(**how), stt.frame_size)


def transcription_arguments(
    stt: Model, kv_bits: int | None, flags: TranscriptionFlags
) -> dict[str, Any]:
    """As `Stt.session` takes them. Raises VerbError where the model cannot tell turns."""
    asked = {name: value for name, value in asdict(flags).items() if value is not None}
    turns = {name for name in asked if name.startswith("turn_")}
    if turns and not stt.lm.config.extra_heads:
        raise VerbError(
            f"{stt.name} has no pause heads and cannot tell turns: leave --turn-threshold and "
            "--turn-hold out"
        )
    given = {name.removeprefix("turn_"): value for name, value in asked.items()}
    return {"kv_bits": kv_bits, **given}


@dataclass(frozen=True, slots=True)
class CaptionModel:
    """A model that writes down what the user says, beside the one that talks."""

    model: Model
    verdict: Verdict

    def open_session(self) -> Listening:
        """A fresh session, whose steps are short. Raises MoshiError."""
        session = self.model.session(kv_bits=self.verdict.kv_bits, catch_up=CAPTIONS_CATCH_UP)
        return Listening(session, self.model.frame_size)


def load_captions(
    name: str, notes: Console, moshi: Model, talks: Verdict, force: bool = False
) -> CaptionModel:
    """Loads what writes captions, once the model that talks is loaded.

    Args:
        name: of the model.
        notes: where to say what is done.
        moshi: the model that talks.
        talks: what that needs.
        force: load it even if both together don't fit in memory.

    Raises:
        MoshiError: it cannot write captions, or not beside that model.
    """
    check_together(talks, name, force=force)
    source = ModelSource(name, force=force)
    model, verdict = load_model(source, notes, verb="transcribe", beside=talks)
    frames = [(each.sample_rate, each.frame_size) for each in (moshi, model)]
    if frames[0] != frames[1]:
        texts = " and ".join(f"{size} samples at {rate} Hz" for rate, size in frames)
        raise MoshiError(f"--captions {name}: its frames are not those of {moshi.name}: {texts}")
    return CaptionModel(model, verdict)


def heard_as_dict(model: str, words: Sequence[Word]) -> dict[str, object]:
    """Captions for a summary: who wrote them, and the words."""
    text = join_words(word.text for word in words)
    return {"captions": model, "heard": {"text": text, "words": words_as_dicts(words)}}


def _as_arguments(role: Role, moshi: Model, kv_bits: int | None) -> dict[str, Any]:
    """As `Moshi.session` takes them, the voice found. Raises MoshiError."""
    if role.keep and kv_bits is not None:
        raise MoshiError(
            f"a long conversation only fits with keys and values in {kv_bits} bits here, which "
            "cannot be kept in sight: leave out --keep-persona, or use a smaller model"
        )
    voice = role.voice
    if isinstance(voice, str):
        assert isinstance(moshi, Moshi), "only models that talk are asked"
        voice = moshi.voice(voice, folder=own_voices())
    return {
        "persona": role.persona,
        "voice": voice,
        "prompt_cache": role.cached,
        "keep_persona": role.keep,
    }


def print_json(report: LoopReport, extra: dict[str, object]) -> None:
    """The summary on stdout."""
    json.dump({**report.as_dict(), **extra}, sys.stdout, ensure_ascii=False, indent=1)
    print()
