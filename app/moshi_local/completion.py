"""`moshi-local complete`: text that goes on from a text, as it is made. Knows nothing of how."""

from __future__ import annotations

import json
import sys
import time
from typing import Annotated

import mlx.core as mx
import typer

import moshi_mlx
from moshi_mlx import ArgumentError, Sampling
from moshi_mlx.files import signals_interrupt
from moshi_mlx.hub import canonical

from . import arguments as a
from .assembly import consoles
from .options import SamplingFlags

__all__ = ["complete_command"]

COMPLETION = "Completion"
LARGEST_PROMPT = 10_000_000
"""Bytes."""


def complete_command(
    prompt: Annotated[
        str, typer.Argument(metavar="PROMPT|-", help="The text to go on from, or - for stdin.")
    ],
    max_tokens: Annotated[
        int,
        typer.Option(
            min=1,
            max=1_000_000,
            metavar="N",
            help="Draw at most N tokens; a word has one or two.",
            rich_help_panel=COMPLETION,
        ),
    ] = 100,
    stop: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT",
            help="End before this text; may be given several times.",
            show_default=False,
            rich_help_panel=COMPLETION,
        ),
    ] = None,
    model: Annotated[str | None, a.model_option("complete")] = None,
    kv_bits: a.KvBitsOption = None,
    float16: a.Float16Option = False,
    seed: a.SeedZeroOption = 0,
    temperature: Annotated[
        float | None,
        typer.Option(
            callback=a.finite,
            min=0,
            metavar="T",
            help="Draw at this temperature; 0 is greedy.",
            show_default="0.8",
            rich_help_panel=a.SAMPLING,
        ),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="K",
            help="Draw from the K likeliest tokens; 0 from all.",
            show_default="0",
            rich_help_panel=a.SAMPLING,
        ),
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            metavar="P",
            help="Draw from the likeliest tokens up to this share.",
            show_default="0.95",
            rich_help_panel=a.SAMPLING,
        ),
    ] = None,
    as_json: a.JsonOption = False,
) -> None:
    """Go on from a text with Helium, a text model.

    It was not trained to follow instructions or to chat: for that, use mlx-lm.
    """
    _, notes = consoles(stdout_is_taken=True)
    text = _of_stdin() if prompt == "-" else prompt
    name = canonical(model or a.default_of("complete"))
    notes.print(f"loading {name}", markup=False, soft_wrap=True)
    helium = moshi_mlx.load(name, verb="complete", dtype=mx.float16 if float16 else None)
    flags = SamplingFlags(None, temperature, None, top_k, top_p)
    how: Sampling | None = flags.text(helium.text_sampling)
    began = time.monotonic()
    made = helium.complete(
        text, max_tokens=max_tokens, stop=stop or (), text=how, seed=seed, kv_bits=kv_bits
    )
    pieces: list[str] = []
    with signals_interrupt("SIGTERM", "SIGHUP"):
        for piece in made:
            pieces.append(piece)
            if not as_json:
                sys.stdout.write(piece)
                sys.stdout.flush()
    took = time.monotonic() - began
    if as_json:
        summary = {
            "prompt": text,
            "text": "".join(pieces),
            "finish_reason": made.finish_reason,
            "tokens": made.tokens,
            "elapsed_seconds": round(took, 3),
            "model": name,
            "seed": seed,
        }
        print(json.dumps(summary, ensure_ascii=False, indent=1))
        return
    print()
    notes.print(
        f"{made.tokens} tokens in {took:.1f} s, {made.tokens / max(took, 1e-3):.1f} per second"
    )


def _of_stdin() -> str:
    """All of standard input. Raises ArgumentError."""
    data = sys.stdin.buffer.read(LARGEST_PROMPT + 1)
    if len(data) > LARGEST_PROMPT:
        raise ArgumentError(f"standard input has more than {LARGEST_PROMPT // 1_000_000} MB")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ArgumentError("standard input is not text in UTF-8") from None
    if not text.strip():
        raise ArgumentError("standard input has no text: pipe the text to go on from into it")
    return text
