"""How a dialogue model behaves in conversation: the command for the bench of the library.

Knows options, progress and where results go. Knows nothing of scenes and scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, cast

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from moshi_mlx import Moshi, MoshiError
from moshi_mlx.conversation_bench import (
    DEFAULT_SCENES,
    Axis,
    Bench,
    BenchOptions,
    Evaluation,
    evaluations_json,
    figures_rows,
    figures_svg,
)
from moshi_mlx.families.kinds import check_verb
from moshi_mlx.files import signals_interrupt
from moshi_mlx.hub import canonical
from moshi_mlx.outputs import Output, WholeFile, check_outputs, is_stdout

from . import arguments as a
from .assembly import consoles, inputs_of, load_model
from .options import CodecChoice, ModelSource

__all__ = ["EvaluationOptions", "evaluate_command", "evaluate_model"]

SCENES = "Scenes"
_RATE = 24_000  # of every published dialogue model
_MOST_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class EvaluationOptions:
    """What `evaluate` is asked for.

    json: a file for all figures and scores; "-" is standard output.
    picture: an SVG file.
    """

    model: ModelSource
    bench: BenchOptions
    json: Path | None = None
    picture: Path | None = None


def evaluate_model(options: EvaluationOptions) -> Evaluation:
    """Runs the bench, and shows and writes what came out.

    Raises:
        MoshiError: what is wrong with an option, a file or the model.
    """
    taken = options.json is not None and (options.json == Path("-") or is_stdout(options.json))
    screen, notes = consoles(taken)
    check_outputs(_outputs(options, taken), inputs_of(options.model))
    check_verb(options.model.name, "talk")
    bench = Bench(options.bench, _RATE)  # what is missing shows before a model is loaded
    for axis in bench.left_out:
        notes.print(
            f"{axis} is left out: there is no voice for it here; install espeak-ng or flite, or "
            "add recordings",
            soft_wrap=True,
        )
    model, verdict = load_model(options.model, notes, options.bench.kv_bits)
    if model.sample_rate != _RATE:
        raise MoshiError(f"{model.name}: its sound has {model.sample_rate} Hz, not {_RATE}")
    with _Progress(notes, bench.count) as bar:
        try:
            with signals_interrupt("SIGTERM", "SIGHUP"):
                found = bench.run(cast("Moshi", model), on_scene=bar.scene, on_frame=bar.heard)
        except (KeyboardInterrupt, SystemExit):
            bar.stop()
            notes.print(f"moshi-local: stopped; {_left(options, bar.done)}", soft_wrap=True)
            raise
    _print_table(screen, verdict.model, found)
    for file, what, text in (
        (None if taken else options.json, "the figures", lambda: evaluations_json([found])),
        (
            options.picture,
            "the picture",
            lambda: figures_svg({Path(verdict.model).name: found.figures}),
        ),
    ):
        if file is not None:
            WholeFile(file, what).write(text(), mode=0o644)
    if taken:
        print(evaluations_json([found]), end="")
    return found


def _outputs(options: EvaluationOptions, taken: bool) -> list[Output]:
    out = options.bench.out
    return [
        *([] if options.json is None or taken else [Output(options.json, "the figures")]),
        *([] if options.picture is None else [Output(options.picture, "the picture", [".svg"])]),
        *([] if out is None else [Output(out, "scenes into", kind="replaced folder")]),
    ]


def _left(options: EvaluationOptions, done: int) -> str:
    """What a stop leaves behind, for a message."""
    if options.bench.out is None and options.bench.published is None:
        return "nothing was written; with --out, the next run goes on from there"
    where = options.bench.out or options.bench.published
    scenes = "1 scene is" if done == 1 else f"{done} scenes are"
    return f"{scenes} kept in {where}, and the same command goes on from there"


class _Progress(Progress):
    """A bar on a terminal, or a line after each tenth of the scenes where there is none."""

    def __init__(self, console: Console, scenes: int) -> None:
        super().__init__(
            TextColumn("{task.completed:.0f}/{task.total:.0f} scenes"),
            BarColumn(),
            TextColumn("{task.fields[seconds]:.0f} s of sound"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.done = 0
        self._scenes, self._seconds = scenes, 0.0
        self._task = self.add_task("", total=scenes, seconds=0.0)

    def scene(self, done: int, kept: bool) -> None:
        before, self.done = self.done, done
        self.update(self._task, completed=done)
        tenths = [10 * n // max(self._scenes, 1) for n in (before, done)]
        if not self.console.is_terminal and tenths[0] != tenths[1]:
            self.console.print(f"{done} of {self._scenes} scenes")

    def heard(self, seconds: float) -> None:
        self._seconds += seconds
        self.update(self._task, seconds=self._seconds)


def _print_table(screen: Console, name: str, found: Evaluation) -> None:
    head, *rows = figures_rows({Path(name).name: found.figures})
    table = Table(box=None, pad_edge=False)
    for number, column in enumerate(head):
        table.add_column(column, justify="right" if number > 2 else "left", no_wrap=number < 2)
    for row in rows:
        table.add_row(*row)
    screen.print(table)


# ---------------------------------------------------------------------------- the command


def evaluate_command(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A dialogue model: a name from `moshi-local models`, a folder, or org/repo on the "
            "Hugging Face hub.",
        ),
    ],
    scenes: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Run this many scenes of each axis, or of each published set.",
            show_default=f"{DEFAULT_SCENES}; all of a published set",
            rich_help_panel=SCENES,
        ),
    ] = None,
    only: Annotated[
        list[Axis] | None,
        typer.Option(
            metavar="AXIS",
            help=f"Look at this axis alone; may be repeated: {', '.join(Axis)}.",
            show_default=False,
            rich_help_panel=SCENES,
        ),
    ] = None,
    voice_files: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Let these recordings be the user's side: questions in it, and folders stories, "
            "backchannels, asides and background.",
            show_default="synthesizers that are installed",
            rich_help_panel=SCENES,
        ),
    ] = None,
    full_duplex_bench: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Run the samples of Full-Duplex-Bench (v1, v1.5) in this folder instead; the "
            "answers are written beside their inputs, or below --out.",
            show_default=False,
            rich_help_panel=SCENES,
        ),
    ] = None,
    seed: a.SeedZeroOption = 0,
    side_by_side: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=_MOST_AT_ONCE,
            metavar="N",
            help="Run this many conversations at once, which is faster and takes more memory.",
            show_default="by the model's size, at most 8",
            rich_help_panel=SCENES,
        ),
    ] = None,
    ears: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Let the Whisper model in this folder hear the answers (needs faster-whisper).",
            show_default="the model's own text",
            rich_help_panel=SCENES,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Keep both sides of every scene in this folder; those that are there already are "
            "not run again.",
            show_default=False,
            rich_help_panel=a.OUTPUT,
        ),
    ] = None,
    json: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.json",
            help="Write all figures and every scene's score to this file, or to - for stdout.",
            show_default=False,
            rich_help_panel=a.OUTPUT,
        ),
    ] = None,
    picture: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.svg",
            help="Draw the figures as bars.",
            show_default=False,
            rich_help_panel=a.OUTPUT,
        ),
    ] = None,
    force: a.ForceOption = False,
    codec: a.CodecNameOption = CodecChoice.auto,
    lora: a.LoraOption = None,
    base: a.BaseOption = None,
    kv_bits: a.KvBitsOption = None,
    float16: a.Float16Option = False,
) -> None:
    """Measure how a model converses: turns, pauses, interruptions, other voices.

    The axes and scores are those of Full-Duplex-Bench. Scenes are made on this machine.
    """
    if voice_files is not None and full_duplex_bench is not None:
        raise typer.BadParameter("give --voice-files or --full-duplex-bench, not both")
    bench = BenchOptions(
        scenes=scenes,
        axes=_axes(only),
        seed=seed,
        at_once=side_by_side,
        kv_bits=kv_bits,
        recordings=voice_files,
        published=full_duplex_bench,
        out=out,
        ears=ears,
    )
    source = ModelSource(canonical(model), codec, lora, float16, force, base=base)
    evaluate_model(EvaluationOptions(source, bench, json, picture))


def _axes(only: Sequence[Axis] | None) -> tuple[Axis, ...]:
    return tuple(axis for axis in Axis if not only or axis in only)
