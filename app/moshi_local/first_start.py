"""Questions before a model is there: whether to fetch it, or to make one that is not published.

Asks on a terminal only. Knows nothing of how models are run.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from rich.console import Console

from moshi_mlx import HubError, MoshiError, catalog
from moshi_mlx.families.kinds import KINDS
from moshi_mlx.files import read_json, write_json
from moshi_mlx.footprint import gb
from moshi_mlx.hub import making, resolve

from .machine.prediction import Shape, Speed, Speeds
from .machine.verdict import Verdict, choose, local_files
from .platform import Machine, machine

__all__ = ["first_model", "make_model"]

_FETCHED = 12.5e6  # bytes per second, for an estimate: 100 Mbit/s
_QUANTIZED = 150e6  # bytes per second of the original: read, quantized and written


def first_model(
    notes: Console,
    answers: Path,
    confirm: Callable[[str], bool],
    *,
    here: Machine | None = None,
    speed_of: Callable[[Shape], Speed] | None = None,
    fetch: Callable[[str], object] = resolve,
) -> str:
    """The model for a conversation on a terminal whose user has named none.

    Args:
        notes: where to say things.
        answers: the file that remembers the answer.
        confirm: asks a question of yes or no.
        here: the machine; this one if None.
        speed_of: measures it; `Speeds()` if None.
        fetch: fetches a model by its name.

    Raises:
        HubError: the model cannot be fetched; the answer is then asked for again next time.
    """
    nano = catalog.default_model()
    remembered = _remembered(answers)
    if remembered is not None:
        return remembered
    can_talk = (e for e in catalog.ENTRIES if KINDS[e.family].verb == "talk")
    published = [entry.name for entry in can_talk if not entry.bundled]
    on_disk = [name for name in published if local_files(name) is not None]
    if on_disk:
        notes.print(
            f"{nano} is a demonstration model. {on_disk[0]} is on this machine: "
            f"moshi-local --model {on_disk[0]}",
            soft_wrap=True,
        )
        return nano
    notes.print(
        f"{nano} is a demonstration model: it knows a few dozen sentences. Measuring which real "
        "model this machine can run …",
        soft_wrap=True,
    )
    best = choose(catalog.all_series()[0], here or machine(), speed_of or Speeds(), None)
    entry = catalog.find(best.model)
    if entry is None or best.fits is False or best.holds is False:
        notes.print(f"None here, it seems: {best.line}.", soft_wrap=True)
        _remember(answers, nano)
        return nano
    notes.print(
        f"The best one here is {entry.name} ({entry.about}): {gb(entry.nbytes)} to download and "
        f"to keep on disk, licence {entry.licence}{_speed(best)}.",
        soft_wrap=True,
    )
    if not confirm(f"Download {entry.name} now?"):
        notes.print(f"Staying with {nano}. Later: moshi-local --model {entry.name}", soft_wrap=True)
        _remember(answers, nano)
        return nano
    fetch(entry.name)
    _remember(answers, entry.name)
    return entry.name


def make_model(
    name: str,
    notes: Console,
    confirm: Callable[[str], bool] | None,
    *,
    run: Callable[[Sequence[str]], int] | None = None,
) -> None:
    """A model of the catalogue that is made here is made, if it is not there yet.

    The app and the quantizer never import each other, so `moshi-quantize` runs as a program.

    Args:
        name: of any model; others than those need nothing.
        notes: where to say things.
        confirm: asks a question of yes or no; None where there is no terminal: nothing is made.
        run: runs Python with these arguments and gives its exit code.

    Raises:
        HubError: making it failed, or the user doesn't want it.
    """
    entry = catalog.find(name)
    source = None if entry is None else catalog.find(entry.made_from or "")
    if entry is None or source is None or confirm is None or local_files(name) is not None:
        return
    fetched = 0 if local_files(source.name) is not None else source.nbytes
    minutes = (fetched / _FETCHED + source.nbytes / _QUANTIZED) / 60
    notes.print(
        f"{name} is not published: it is made on this machine, once, from {source.name} "
        f"(licence {source.licence}). {gb(fetched)} to download, {gb(entry.nbytes)} to keep, about "
        f"{minutes:.0f} minutes at 100 Mbit/s.",
        soft_wrap=True,
    )
    if not confirm(f"Make {name} now?"):
        raise HubError(f"{name} is not made. Another model: moshi-local models")
    if code := (run or _python)(["-m", "moshi_quantize", *making(entry)]):
        raise HubError(f"{name} could not be made: moshi-quantize ended with {code}, see above")


def _python(arguments: Sequence[str]) -> int:
    """Runs Python; what ends this program ends that too, which then removes what it began."""
    with subprocess.Popen([sys.executable, *arguments]) as child:
        try:
            return child.wait()
        except KeyboardInterrupt:
            raise  # the terminal tells both
        except BaseException:
            child.terminate()
            raise


def _speed(best: Verdict) -> str:
    if best.frame_ms is None:
        return ""
    p95 = best.frame_ms["p95"]
    return f"; a frame is predicted to take {p95:.0f} of {best.budget_ms:.0f} ms"


def _remembered(answers: Path) -> str | None:
    """The model chosen before, if the file says so and the catalogue still has it."""
    with suppress(MoshiError):
        name = read_json(answers).get("model")
        if isinstance(name, str) and catalog.find(name) is not None:
            return name
    return None


def _remember(answers: Path, model: str) -> None:
    with suppress(OSError):  # then it is asked again
        answers.parent.mkdir(parents=True, exist_ok=True)
        write_json(answers, {"model": model})
