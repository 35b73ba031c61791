"""What every kind of conversation sets up alike: consoles, model, session, summary.

Knows the library and the doctor's verdicts; nothing of sound and terminals.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mlx.core as mx
import typer
from rich.console import Console

import moshi_mlx
from moshi_mlx import Model, Moshi, MoshiError, Session, VerbError, catalog
from moshi_mlx.backend import slow_reason
from moshi_mlx.families import Verb
from moshi_mlx.families.kinds import KINDS, other_verb
from moshi_mlx.outputs import model_inputs

from .config_file import config_path
from .first_start import make_model
from .machine.verdict import Verdict, check_before
from .options import ModelSource, PersonaFlags, SamplingFlags, TranslationFlags
from .report import LoopReport
from .role import Role, files_of, own_voices, told

__all__ = [
    "asked",
    "consoles",
    "inputs_of",
    "load_model",
    "open_session",
    "print_json",
    "session_arguments",
]


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
    source: ModelSource, notes: Console, kv_bits: int | None = None, verb: Verb = "talk"
) -> tuple[Model, Verdict]:
    """The model that a command was asked for, and what its memory and speed are here.

    The name of a series becomes the precision that suits this machine.

    Raises:
        MoshiError: the model cannot do what the verb says, does not fit, or cannot be loaded.
    """
    _check_verb(source.name, verb)
    if catalog.series(source.name):
        notes.print("measuring this machine …")
    verdict = check_before(source.name, force=source.force, kv_bits=kv_bits)
    needs = verdict.needs
    if note := moshi_mlx.prepare_gpu(None if needs is None else needs.total):
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
        demonstration = (
            f"{entry.name} is a demonstration model: it knows a few dozen sentences. "
            f"For a real one: --model {catalog.all_series()[0]}"
        )
    for line in filter(None, (slow_reason(), demonstration, f"loading {verdict.model}")):
        notes.print(line, markup=False, soft_wrap=True)
    moshi = moshi_mlx.load(
        verdict.model,
        verb=verb,
        codec=source.codec.value,
        lora=source.lora,
        dtype=mx.float16 if source.float16 else None,
    )
    notes.print(f"codec {moshi.codec.name}")
    return moshi, verdict


def _check_verb(name: str, verb: Verb) -> None:
    """Refuses a published model that cannot do it, before anything is measured or fetched."""
    entry = catalog.entry_of(name)
    if entry is not None and KINDS[entry.family].verb != verb:
        able = ", ".join(e.name for e in catalog.ENTRIES if KINDS[e.family].verb == verb)
        raise VerbError(f"{other_verb(verb, KINDS[entry.family], name)}; {able} can")


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
