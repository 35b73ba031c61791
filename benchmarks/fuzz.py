"""Odd input for as long as asked: no traceback, no signal, no hang.

    python -m benchmarks.fuzz [--minutes 20] [--seed 0] [TARGET ...]

Hypothesis makes run files, manifests, alignments, config.json, weights, sound files, command lines
and calls of a session; whatever is wrong with them must end in one line. Each target is a separate
process, two at a time, which writes down what it is about to try: a crash names its input. Prints
the examples per target; exit code 1 if anything else than an error of ours was raised.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import hypothesis
import numpy as np
import soundfile
from hypothesis import strategies as st

HANG_SECONDS = 120
MEMORY = 12 << 30
EXAMPLES = 100
"""Per seed; then comes the next seed, until the time is over."""

Case = Callable[[st.DataObject, Path], None]

ODD: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 7, 1.5, -0.5, 1e-30, 1e30, 10**7, 10**30, float("nan"),
    float("inf"), -float("inf"), "", " ", "x", "1", "1e-3", "nan", "é", "\u2028", "..", "/", "~",
    [], [1], [1, 2, 3], [None], ["a", 1], {}, {"a": 1}, [[[]]],
]  # fmt: skip
NAMES = st.text(st.characters(codec="utf-8"), max_size=8)
VALUES = st.one_of(st.sampled_from(ODD), st.integers(), st.floats(), NAMES)


def mutated(data: st.DataObject, base: Any) -> Any:
    """A copy of JSON data with one to three values replaced, removed or added anywhere."""
    found = json.loads(json.dumps(base))
    for _ in range(data.draw(st.integers(1, 3))):
        place = found
        while isinstance(place, dict | list) and place:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            key = data.draw(st.sampled_from(keys))
            inner = place[key]
            if isinstance(inner, dict | list) and inner and data.draw(st.booleans()):
                place = inner
                continue
            what = data.draw(st.sampled_from(["replace", "remove", "add"]))
            if what == "replace":
                place[key] = deepcopy(data.draw(VALUES))
            elif what == "remove":
                del place[key]
            elif isinstance(place, dict):
                place[data.draw(NAMES)] = deepcopy(data.draw(VALUES))
            else:
                place.append(deepcopy(data.draw(VALUES)))
            break
    return found


def damaged(data: st.DataObject, whole: bytes) -> bytes:
    """Bytes with a few changed, cut off or doubled."""
    found = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(0, min(len(found) - 1, 4096))))
        what = data.draw(st.sampled_from(["set", "cut", "insert", "drop"]))
        if what == "set" and found:
            found[at] = data.draw(st.integers(0, 255))
        elif what == "cut":
            del found[data.draw(st.integers(0, len(found))) :]
        elif what == "insert":
            found[at:at] = data.draw(st.binary(max_size=9))
        else:
            del found[at : at + data.draw(st.integers(1, 9))]
    return bytes(found)


def tidy(work: Callable[[], Any]) -> Any:
    """Runs it; what it raises must be one of the library's own errors."""
    from moshi_mlx import MoshiError

    try:
        return work()
    except MoshiError as error:
        said = str(error).strip()
    assert said, "an error without a message"
    return None


def program(main: Callable[[Sequence[str]], int], arguments: Sequence[str]) -> None:
    """Runs a command; it must end with an exit code, and say why in a line if that is an error."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(arguments)
        except SystemExit as error:  # argparse
            code = error.code if isinstance(error.code, int) else 2
    said = err.getvalue()
    assert code in (0, 1, 2), f"exit code {code}"
    assert "Traceback" not in said + out.getvalue()
    assert code != 2 or said.strip(), "an error without a message"


# ------------------------------------------------------------------------------ targets

RUN: dict[str, Any] = {
    "model": "nano", "run_dir": "run", "max_steps": 1, "log_every": 1,
    "data": {"train": "train.jsonl", "duration_sec": 1.0, "batch_size": 1, "variants": 1},
    "lora": {"rank": 2, "scaling": 2.0}, "optim": {"name": "adamw", "lr": 1e-3},
    "loss": {"semantic_weight": 3, "text_padding_weight": 0.15}, "seed": 0,
}  # fmt: skip


def settings(data: st.DataObject, folder: Path) -> None:
    """The YAML of a training run."""
    import yaml

    from moshi_mlx.training.settings import read_settings

    text = yaml.safe_dump(mutated(data, RUN), allow_unicode=True).encode("utf-8", "replace")
    path = folder / "run.yaml"
    path.write_bytes(damaged(data, text) if data.draw(st.booleans()) else text)
    tidy(lambda: read_settings(path))


def manifests(data: st.DataObject, folder: Path) -> None:
    """A manifest, its alignments and its recordings."""
    from moshi_mlx.training.data import read_manifest, read_stereo, read_words

    (folder / "a.wav").write_bytes(_wav(2))
    lines = [mutated(data, {"path": "a.wav", "duration": 0.2}), {"path": "a.wav", "duration": 0.2}]
    text = "\n".join(json.dumps(line) for line in lines).encode()
    (folder / "m.jsonl").write_bytes(damaged(data, text) if data.draw(st.booleans()) else text)
    words = {"alignments": [["a", [0.0, 0.1], "SPEAKER_MAIN"], ["b", [0.1, 0.2], "SPEAKER_MAIN"]]}
    text = json.dumps(mutated(data, words)).encode()
    (folder / "a.json").write_bytes(damaged(data, text) if data.draw(st.booleans()) else text)
    tidy(lambda: read_manifest(folder / "m.jsonl"))
    tidy(lambda: read_words(folder / "a.json"))
    (folder / "b.wav").write_bytes(damaged(data, _wav(2)))
    tidy(lambda: read_stereo(folder / "b.wav", 24_000))


def configs(data: st.DataObject, folder: Path) -> None:
    """A model's folder with another config.json; what can be loaded must also step."""
    import moshi_mlx
    from moshi_mlx.hub import bundled_folder

    nano = bundled_folder("nano")
    for path in nano.iterdir():
        (folder / path.name).unlink(missing_ok=True)
        (folder / path.name).symlink_to(path)
    which = data.draw(st.sampled_from(["config.json", "config.json", "mimi_config.json"]))
    text = json.dumps(mutated(data, json.loads((nano / which).read_text()))).encode()
    (folder / which).unlink()
    (folder / which).write_bytes(damaged(data, text) if data.draw(st.booleans()) else text)

    def work() -> None:
        moshi = moshi_mlx.load(folder, verb="talk", codec="mlx")
        with moshi.session() as session:
            session.step(np.zeros(moshi.frame_size))
            session.step(np.zeros(moshi.frame_size))

    tidy(work)


def weights(data: st.DataObject, folder: Path) -> None:
    """A damaged safetensors file."""
    import mlx.core as mx

    from moshi_mlx.safetensors import read_metadata, read_safetensors
    from moshi_mlx.state import load_state

    mx.save_safetensors(str(folder / "w.safetensors"), {"a": mx.ones((4, 2)), "b": mx.zeros(3)})
    path = folder / "damaged.safetensors"
    path.write_bytes(damaged(data, (folder / "w.safetensors").read_bytes()))
    tidy(lambda: mx.eval(list(read_safetensors(path).values())))
    tidy(lambda: read_metadata(path))
    tidy(lambda: load_state(path))


def sounds(data: st.DataObject, folder: Path) -> None:
    """A damaged sound file, read as `run` does."""
    from moshi_local.audio.files import FileAudio
    from moshi_local.port import Read

    path = folder / "in.wav"
    path.write_bytes(damaged(data, _wav(data.draw(st.sampled_from([1, 2])))))

    def work() -> None:
        out = folder / "out.wav"
        frame = np.zeros(1920, np.float32)
        with FileAudio(path, out, sample_rate=24_000, frame_size=1920, tail=0.1) as port:
            while port.read(frame, 0.0) is not Read.END:
                assert np.isfinite(frame).all()
                port.write(frame)

    tidy(work)


def commands(data: st.DataObject, folder: Path) -> None:
    """Command lines of the three programs, with what is in the folder."""
    import typer

    from moshi_local import cli as talk
    from moshi_mlx.training.cli import main as train
    from moshi_quantize import cli as quantize

    (folder / "in.wav").write_bytes(_wav(1))
    (folder / "empty").write_bytes(b"")
    (folder / "run.yaml").write_text(json.dumps({**RUN, "max_steps": 0}))
    which = data.draw(st.sampled_from(["talk", "talk", "quantize", "train"]))
    argv: list[str] = []
    if which == "train":
        known = ["--fields", "--fresh", "--help"]
    else:
        group = typer.main.get_command((talk if which == "talk" else quantize).app)
        commands = getattr(group, "commands", {})
        command = group
        if commands:
            name = data.draw(st.sampled_from(sorted(commands)))
            argv.append(name)
            command = commands[name]
        known = sorted({o for p in command.params for o in p.opts if o not in _LONG})
        if argv[:1] == ["bench"]:
            argv += ["--frames", "2"]
    odd = st.sampled_from(_WORDS) | NAMES.filter(lambda text: "\0" not in text)
    for _ in range(data.draw(st.integers(0, 5))):
        argv.append(data.draw(st.sampled_from(known) | odd))
    main = {"talk": talk.main, "quantize": quantize.main, "train": train}[which]
    program(main, argv)


_LONG = {"--full", "--frames", "--conversation", "--profile", "--gputrace", "--upload"}
_WORDS = [
    "in.wav", "out.wav", "missing.wav", "empty", ".", "", "-", "nano", "/dev/null", "/dev/full",
    "run.yaml", "0", "1", "-1", "2", "0.5", "nan", "inf", "1e-9", "x", "acme/none", "out.flac",
    "sub/out.wav", "--", "--seed", "--model", "--help", "-q", "hear", "report", "4", "8",
]  # fmt: skip


def sessions(data: st.DataObject, folder: Path) -> None:
    """Calls of a session with odd frames; a good frame must always work after them."""
    from moshi_mlx.state import SavedState

    moshi = _nano()
    size = moshi.frame_size
    sampling = data.draw(st.fixed_dictionaries({}, optional={"seed": VALUES, "kv_bits": VALUES}))
    session = tidy(lambda: moshi.session(**sampling))
    if session is None:
        return
    dtypes = st.sampled_from(
        ["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "?", "c8", "O", "U1"]
    )
    with session:
        for _ in range(data.draw(st.integers(1, 4))):
            shape = data.draw(st.sampled_from([(size,), (size + 1,), (0,), (), (1, size), (2,)]))
            with np.errstate(all="ignore"):
                frame = np.full(shape, data.draw(st.sampled_from([0, 1, 3, 300]))).astype(
                    data.draw(dtypes)
                )
            tidy(partial(session.step, frame))
            tidy(partial(session.step, data.draw(VALUES)))
            if data.draw(st.booleans()):
                tidy(session.reset)
            saved = tidy(session.save)
            if saved is not None and data.draw(st.booleans()):
                other = SavedState(saved.arrays, mutated(data, dict(saved.facts)))
                tidy(partial(moshi.session, state=other))
        assert np.isfinite(session.step(np.zeros(size)).pcm).all()
    values = data.draw(st.lists(VALUES, max_size=3))
    tidy(lambda: moshi.codec.decode_step(values, moshi.codec.init_state()))
    tidy(lambda: moshi.codec.encode_step(values, moshi.codec.init_state()))


TARGETS: dict[str, Case] = {
    case.__name__: case
    for case in (settings, manifests, configs, weights, sounds, commands, sessions)
}

_MODEL: list[Any] = []


def _nano() -> Any:
    import moshi_mlx

    if not _MODEL:
        _MODEL.append(moshi_mlx.load("nano", verb="talk", codec="mlx"))
    return _MODEL[0]


def _wav(channels: int) -> bytes:
    sound = io.BytesIO()
    pcm = np.random.default_rng(0).uniform(-0.1, 0.1, (4800, channels))
    soundfile.write(sound, pcm, 24_000, format="WAV")
    return sound.getvalue()


# ------------------------------------------------------------------------------ running


def try_target(name: str, seconds: float, seed: int) -> NoReturn:
    """Tries one target until the time is over, and prints how many examples that made."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    case, ends = TARGETS[name], time.monotonic() + seconds
    made, failed = 0, False
    home = Path(tempfile.mkdtemp(prefix=f"fuzz-{name}-"))

    def example(data: st.DataObject) -> None:
        nonlocal made, failed
        if time.monotonic() > ends and not failed:  # what failed is being made smaller
            sys.stdout.write(f"{made}\n")
            sys.stdout.flush()
            shutil.rmtree(home, ignore_errors=True)
            os._exit(0)
        made += 1
        folder = home / "case"  # as it is when the process dies
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        os.chdir(folder)
        faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
        try:
            case(data, folder)
        except hypothesis.errors.HypothesisException:
            raise
        except Exception:
            failed = True
            raise
        faulthandler.cancel_dump_traceback_later()

    quiet = list(hypothesis.HealthCheck)
    while True:
        run = hypothesis.settings(
            max_examples=EXAMPLES, database=None, deadline=None, suppress_health_check=quiet,
            print_blob=False, phases=[hypothesis.Phase.generate],
        )(hypothesis.seed(seed)(hypothesis.given(st.data())(example)))  # fmt: skip
        run()
        seed += 1


def report(name: str, seconds: float, seed: int) -> bool:
    """Tries one target in a separate process, and prints what came of it."""
    command = [sys.executable, "-m", "benchmarks.fuzz", name, "--alone", str(seconds)]
    home = tempfile.mkdtemp(prefix="fuzz-home-")
    surroundings = {**os.environ, "HOME": home, "XDG_CACHE_HOME": home, "HF_HUB_OFFLINE": "1"}
    root = str(Path(__file__).resolve().parent.parent)
    surroundings["PYTHONPATH"] = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*command, "--seed", str(seed)], capture_output=True, text=True, env=surroundings, cwd=root,
        errors="replace",
    )  # fmt: skip
    shutil.rmtree(home, ignore_errors=True)
    if done.returncode == 0:
        sys.stdout.write(f"{name:10} {done.stdout.split()[-1]:>7} examples, nothing wrong\n")
        return True
    cause = f"exit code {done.returncode}"
    if done.returncode < 0:
        cause = signal.Signals(-done.returncode).name
    sys.stdout.write(f"{name:10} {cause}\n{done.stderr[-6000:]}\n")
    return False


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("targets", nargs="*", help=f"of {', '.join(TARGETS)}; all by default")
    parser.add_argument("--minutes", type=float, default=20.0, help="in all (20)")
    parser.add_argument("--seed", type=int, default=0, help="of the first examples (0)")
    parser.add_argument("--alone", type=float, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if unknown := set(given.targets) - set(TARGETS):
        parser.error(f"no target {', '.join(sorted(unknown))}; known are {', '.join(TARGETS)}")
    if given.alone is not None:
        try_target(given.targets[0], given.alone, given.seed)
    names = given.targets or list(TARGETS)
    workers = min(2, len(names))
    seconds = 60 * given.minutes * workers / len(names)
    with ThreadPoolExecutor(workers) as pool:
        good = list(pool.map(lambda name: report(name, seconds, given.seed), names))
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
