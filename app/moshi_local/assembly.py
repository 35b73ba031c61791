"""What every kind of conversation sets up alike: consoles, model, session, summary.

Knows the library and the doctor's verdicts; nothing of sound and terminals.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import typer
from rich.console import Console

import moshi_mlx
from moshi_mlx import Moshi, Session, catalog
from moshi_mlx.backend import slow_reason
from moshi_mlx.outputs import model_inputs

from .config_file import config_path
from .first_start import make_model
from .machine.verdict import Verdict, check_before
from .options import ModelSource, SamplingFlags
from .report import LoopReport

__all__ = ["asked", "consoles", "inputs_of", "load_model", "open_session", "print_json"]


def consoles(stdout_is_taken: bool) -> tuple[Console, Console]:
    """Where words go and where notes go; `stdout_is_taken` by JSON."""
    notes = Console(stderr=True, highlight=False)
    return (notes if stdout_is_taken else Console(highlight=False)), notes


def asked(question: str) -> bool:
    """The user's answer, yes or no, on a terminal."""
    return typer.confirm(question, default=None, err=True)


def inputs_of(source: ModelSource) -> Iterator[Path]:
    """The files that every command reads, which no output may replace."""
    yield from model_inputs(source.name)
    yield from model_inputs(source.lora)
    yield config_path()


def load_model(
    source: ModelSource, notes: Console, kv_bits: int | None = None
) -> tuple[Moshi, Verdict]:
    """The model that a command was asked for, and what its memory and speed are here.

    The name of a series becomes the precision that suits this machine.

    Raises:
        MoshiError: the model cannot talk, does not fit, or cannot be loaded.
    """
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
        verb="talk",
        codec=source.codec.value,
        lora=source.lora,
        dtype=mx.float16 if source.float16 else None,
    )
    notes.print(f"codec {moshi.codec.name}")
    return moshi, verdict


def open_session(moshi: Moshi, seed: int, sampling: SamplingFlags, kv_bits: int | None) -> Session:
    """A fresh conversation, drawn as the options say."""
    session: Session = moshi.session(
        seed=seed,
        text=sampling.text(moshi.text_sampling),
        audio=sampling.audio(moshi.audio_sampling),
        kv_bits=kv_bits,
    )
    return session


def print_json(report: LoopReport, extra: dict[str, object]) -> None:
    """The summary on stdout."""
    json.dump({**report.as_dict(), **extra}, sys.stdout, ensure_ascii=False, indent=1)
    print()
