"""What MLX does with our models on this machine's GPU: numbers, times, memory. One command.

    python -m benchmarks.gpu [--seconds 400] [--json FILE] [--torch PYTHON] [--small] [PART ...]

Needs a checkout and no downloaded model: what is as large as the published one has random weights.
The parts run one after the other in the order of PARTS, or those that are named. Each is a process,
so that one that fails, hangs or takes all memory leaves the others alone. One that reaches its own
limit or the end of `--seconds` is stopped, and what it had found by then is kept; those that would
begin later, the last in that order, are left out. Prints a table; the JSON has the same. Exit code
1 if numbers are wrong or a part failed.

Times are of one run, on a machine that should do nothing else. `--torch` is a Python that has
PyTorch's `moshi`. `--small` takes a small model and few frames, to try the program on a CPU.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

import moshi_mlx
from benchmarks.slowest import worst
from moshi_local.machine.bench import AUDIO, TEXT, WARM_UP, make_generator, step_times
from moshi_local.machine.launches import codec_launches, step_launches
from moshi_local.machine.mimi_codes import ENOUGH, bundled_question, tf32_agreement
from moshi_local.machine.prediction import long_conversation_ms
from moshi_local.platform import machine
from moshi_local.report import STAGES, percentiles
from moshi_mlx import prepare_gpu
from moshi_mlx.codec import MlxCodec
from moshi_mlx.config import LmConfig, MimiConfig
from moshi_mlx.files import read_json, write_json
from moshi_mlx.lm import Lm
from moshi_mlx.mimi import Mimi
from moshi_mlx.program import one_line
from moshi_mlx.published import read_config, read_mimi_config
from moshi_mlx.session import Session
from moshi_mlx.text import TextTokenizer
from moshi_mlx.weights import skeleton
from moshi_mlx.worker import Worker
from tests import conformance
from tests.fixtures import make_mimi
from tests.fixtures.make_mimi_expected import DATA, FRAMES, NANO
from tests.fixtures.make_mimi_expected import signal as mimi_signal

ROOT = Path(__file__).parents[1]
CASES = ROOT / "tests" / "fixtures" / "lm"
SMALL = ROOT / "tests" / "fixtures" / "bench" / "small.json"
TF32 = "MLX_ENABLE_TF32"
CHUNK = 256
"""Frames between two looks at the memory."""
TURN = 10
"""Steps that one of several interleaved conversations makes at a time."""
TAIL = 50
"""Frames of silence after the question, for the answer."""

Found = dict[str, Any]
"""What a part has found, as JSON has it. `passed`: whether its numbers are right."""


@dataclass(frozen=True)
class Setting:
    """What the parts are measured on.

    config: the language model's shape.
    frames: of a short measurement; `long` of the one that goes past the context.
    torch: a Python that may have PyTorch's moshi.
    """

    small: bool
    torch: str

    @cached_property
    def config(self) -> LmConfig:
        if self.small:
            return read_config(read_json(SMALL)).lm
        return read_config(preset="moshi").lm

    @property
    def frames(self) -> int:
        return 20 if self.small else 400

    @property
    def long(self) -> int:
        return 60 if self.small else 3100

    @property
    def generated(self) -> int:
        """Streams of Moshi's own."""
        return moshi_mlx.Moshi.generated_streams(self.config)

    def made(self, bits: int) -> Lm:
        """A model with random weights, made on the device."""
        mx.random.seed(0)
        lm = skeleton(self.config, bits)
        mx.eval(lm.parameters())
        return lm


# ------------------------------------------------------------------------------------ numbers


def device(setting: Setting) -> Iterator[Found]:
    """The machine, what MLX says of its device, and whether MLX may use TF32."""
    info = {name: str(value) for name, value in mx.device_info().items()}
    yield {**machine().as_dict(), "device_info": info, TF32: os.environ.get(TF32, "not set")}


def numbers(setting: Setting) -> Iterator[Found]:
    """The language model's cases, and Mimi, against the reference's numbers."""
    checks: dict[str, Callable[[], tuple[bool, Found]]] = {
        f"lm {case.name}": partial(lm_case, case) for case in sorted(CASES.iterdir())
    }
    checks["mimi nano"] = partial(mimi_case, NANO / "mimi.safetensors", "nano")
    checks["mimi small"] = partial(mimi_case, DATA / "small.safetensors", "small")
    if not setting.small:
        checks["mimi full size"] = full_size_mimi
    wrong = 0
    for done, (name, check) in enumerate(checks.items(), 1):
        try:
            passed, found = check()
        except Exception as error:  # the others are still to be tried
            passed, found = False, {"error": one_line(error) or repr(error)}
        wrong += not passed
        state = {"checked": done, "of": len(checks), "wrong": wrong, "passed": wrong == 0}
        yield {**state, name: found if passed else {"WRONG": True, **found}}


def lm_case(case: Path) -> tuple[bool, Found]:
    """Largest differences of a case of `tests.conformance`."""
    result = conformance.run_case(case)
    return conformance.passes(result), {name: float(f"{v:.2g}") for name, v in result.items()}


def full_size_mimi() -> tuple[bool, Found]:
    """The published size with random weights."""
    with tempfile.TemporaryDirectory() as folder:
        return mimi_case(make_mimi.write(Path(folder) / "mimi.safetensors"), "seed0")


def mimi_case(weights: Path, name: str) -> tuple[bool, Found]:
    """Codes that differ and the largest difference in the sound, in one piece and by frames."""
    expected = mx.load(str(DATA / f"expected_{name}.safetensors"))
    assert isinstance(expected, dict)
    codes, config = np.array(expected["codes"]), None
    if name != "seed0":
        file = NANO / "mimi_config.json" if name == "nano" else DATA / "small.json"
        config = read_mimi_config(read_json(file))
    codec = MlxCodec(moshi_mlx.load_mimi(weights, len(codes), config))
    size = codec.frame_size
    pcm = np.array(expected["pcm_in"]).ravel() if name == "seed0" else mimi_signal(FRAMES * size)
    state = codec.init_state()
    frames = range(codes.shape[1])
    heard = [codec.encode_step(pcm[size * i : size * (i + 1)], state) for i in frames]
    said = [codec.decode_step(codes[:, i : i + 1], state) for i in frames]
    mimi = codec.mimi
    whole = mimi.encode(mx.array(pcm)[None, None])[0], mimi.decode(mx.array(codes)[None])
    passed, found = True, {}
    both = {"whole": whole, "by frames": (np.hstack(heard), np.stack(said))}
    for way, (ours, sound) in both.items():
        differ = int((np.array(ours) != codes).sum())
        kept = np.array(sound).reshape(-1, size)[np.array(expected["pcm_out_frames"])]
        distance = conformance.difference(kept, np.array(expected["pcm_out"]))
        passed &= differ <= (1 - ENOUGH) * codes.size and distance <= conformance.TOLERANCE
        found[way] = {"codes differ": differ, "of": codes.size, "sound": float(f"{distance:.2g}")}
    return passed, found


def codes_with_tf32(setting: Setting) -> Iterator[Found]:
    """How many of nano's codes differ because MLX may use TF32."""
    yield tf32_agreement("nano")


def nano_answers(setting: Setting) -> Iterator[Found]:
    """Nano's answer to the bundled question, here and on the CPU."""
    here = mx.default_device()
    mx.set_default_device(mx.Device(mx.cpu))
    on_cpu = answer(stepped=1.0)
    mx.set_default_device(here)
    ours = answer(stepped=0.5)
    yield {"words": " ".join(ours), "on the CPU": " ".join(on_cpu), "passed": ours == on_cpu}


def answer(stepped: float) -> list[str]:
    """Nano's words on MLX's default device; this share of the frames by `step`, then `stream`."""
    moshi = moshi_mlx.load("nano", verb="talk", codec="mlx")
    size = moshi.frame_size
    question = bundled_question()
    pcm = np.concatenate([question, np.zeros(-len(question) % size + TAIL * size, np.float32)])
    frames = pcm.reshape(-1, size)
    begin = round(stepped * len(frames))
    with moshi.session(seed=0) as session:
        words = [word.text for frame in frames[:begin] for word in session.step(frame).words]

        async def rest() -> None:
            async for frame in session.stream(frames[begin:]):
                words.extend(word.text for word in frame.words)

        if begin < len(frames):
            asyncio.run(rest())
        return words + [word.text for word in session.flush()]


# -------------------------------------------------------------------------------------- times


def model(setting: Setting, bits: int) -> Iterator[Found]:
    """Steps of the language model: times, the worst frames, memory on the way, a reset."""
    prepare_gpu()  # as the program does
    generator = make_generator(setting.made(bits), setting.generated)
    made = memory()
    began = time.perf_counter()
    step_times(generator, 1)
    first = time.perf_counter() - began
    step_times(generator, WARM_UP)
    generator.reset()
    mx.reset_peak_memory()
    frames = setting.long if bits == 4 else setting.frames
    times: list[float] = []
    rows = []
    while len(times) < frames:
        chunk = step_times(generator, min(CHUNK, frames - len(times)))
        times += chunk
        rows.append({"frame": len(times), **percentiles(chunk), **memory()})
        yield {
            "frame_ms": percentiles(times),
            "frames": len(times),
            "worst": worst(times),
            "first step ever, ms": round(1000 * first),
            "made": made,
            "on the way": rows,
        }
    resets = []
    for _ in range(5):
        generator.reset()
        one, *later = step_times(generator, 11)
        resets.append(one / float(np.median(later)))
    yield {"first after a reset": f"{np.median(resets):.2f} of a later one (median of 5)"}


def memory() -> dict[str, int]:
    """MLX's arrays, what it keeps for new ones, and the most there was at once, in MB."""
    sizes = (mx.get_active_memory(), mx.get_cache_memory(), mx.get_peak_memory())
    return {n: s // 1_000_000 for n, s in zip(("active", "cache", "peak"), sizes, strict=True)}


def ways(setting: Setting) -> Iterator[Found]:
    """A model in 4 bits, interleaved: compiled or not, keys and values in 8 and 4 bits."""
    lm = setting.made(4)
    options: dict[str, dict[str, Any]] = {
        "compiled": {"compiled": True},
        "not compiled": {"compiled": False},
        "compiled, kv 8 bits": {"compiled": True, "kv_bits": 8},
        "compiled, kv 4 bits": {"compiled": True, "kv_bits": 4},
    }
    makers = {name: make_generator(lm, setting.generated, **o) for name, o in options.items()}
    for generator in makers.values():
        step_times(generator, WARM_UP)
    times: dict[str, list[float]] = {name: [] for name in makers}
    for _ in range(setting.frames // 2 // TURN):
        for name, generator in makers.items():
            times[name] += step_times(generator, TURN)
    yield {name: percentiles(found) for name, found in times.items()}
    for bits in (None, 8, 4):
        ms = round(long_conversation_ms(lm, bits), 2)
        yield {f"attention to a full context, kv {bits or 16} bits": f"{ms} ms more per frame"}


def whole_frames(setting: Setting) -> Iterator[Found]:
    """Whole frames, the model in 4 bits, Mimi of the published size, all weights random.

    The text is held: random weights would say tokens that no tokenizer knows.
    """
    mimi = Mimi(MimiConfig())
    mimi.drop_scales()
    mx.eval(mimi.parameters())
    codec = MlxCodec(mimi)
    generator = make_generator(setting.made(4), setting.generated)
    tokenizer = TextTokenizer(NANO / "tokenizer.model")
    session = Session(codec, tokenizer, generator, Worker())
    rng = np.random.default_rng(0)

    def frame() -> tuple[float, moshi_mlx.Timing]:
        pcm = rng.uniform(-0.1, 0.1, codec.frame_size)
        began = time.perf_counter()
        timing = session.step(pcm, hold_text=True).timing
        return time.perf_counter() - began, timing

    for _ in range(WARM_UP):
        frame()
    times = [frame() for _ in range(setting.frames)]
    whole = [seconds for seconds, _ in times]
    stages = {s: percentiles([getattr(t, s) for _, t in times]) for s in STAGES}
    yield {"frame_ms": percentiles(whole), **stages, "worst": worst(whole), **memory()}


def launched(setting: Setting) -> Iterator[Found]:
    """Kernels of a frame, counted from the graph."""
    for bits in (4, 16):
        counts = step_launches(setting.config, bits, TEXT, AUDIO, setting.generated)
        yield {f"{bits} bits": {**counts, "all": sum(counts.values())}}
    counts = codec_launches()
    yield {"codec": {**counts, "all": sum(counts.values())}}


def beside_torch(setting: Setting) -> Iterator[Found]:
    """PyTorch's moshi in the same shape with random weights, bfloat16; compare with "16 bits"."""
    from benchmarks import torch_step

    command = [setting.torch, torch_step.__file__, str(setting.frames)]
    command += [str(SMALL)] if setting.small else []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    last = (done.stderr.strip().splitlines() or ["no output"])[-1]
    if done.returncode == torch_step.MISSING:
        yield {"left out": last}
        return
    if done.returncode:
        raise RuntimeError(last)
    found = json.loads(done.stdout.splitlines()[-1])
    seconds, peak = found.pop("seconds"), found.pop("peak")
    yield {"frame_ms": percentiles(seconds), "peak": peak // 1_000_000, **found}


# -------------------------------------------------------------------------------------- parts


@dataclass(frozen=True)
class Part:
    """A measurement in a separate process; `limit`: its seconds at most."""

    run: Callable[[Setting], Iterator[Found]]
    limit: float
    tf32: bool | None = None


PARTS: dict[str, Part] = {
    "device": Part(device, 30),
    "numbers": Part(numbers, 100, tf32=False),
    "nano": Part(nano_answers, 60),
    "4 bits": Part(partial(model, bits=4), 150),
    "session": Part(whole_frames, 60),
    "16 bits": Part(partial(model, bits=16), 60),
    "torch": Part(beside_torch, 120),
    "ways": Part(ways, 90),
    "8 bits": Part(partial(model, bits=8), 60),
    "tf32": Part(codes_with_tf32, 60),
    "numbers with tf32": Part(numbers, 100, tf32=True),
    "launches": Part(launched, 60),
}
INFORMS = {"numbers with tf32"}
"""Parts whose numbers may be wrong: they show what users would get."""


def run_part(name: str, options: argparse.Namespace, seconds: float) -> Found:
    """What a part found within `seconds`, and how it ended."""
    part = PARTS[name]
    limit = min(part.limit, seconds)
    command = [sys.executable, "-m", "benchmarks.gpu", name, "--inside", "--torch", options.torch]
    command += ["--small"] if options.small else []
    env = os.environ if part.tf32 is None else os.environ | {TF32: str(int(part.tf32))}
    began = time.monotonic()
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            command, cwd=ROOT, env=env, stdout=out, stderr=said, start_new_session=True
        )
        try:
            code: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # with what it has started
                process.wait()
        out.seek(0)
        said.seek(0)
        lines = out.read().split("\n")[:-1]  # of a line cut short nothing is kept
        complaints = said.read().strip().splitlines()
    found: Found = {}
    for line in lines:
        found |= json.loads(line)
    if code is None:
        found["stopped"] = f"after {limit:.0f} s"
    elif code:
        found["failed"] = complaints[-1] if complaints else f"exit code {code}"
    return found | {"seconds": round(time.monotonic() - began, 1)}


def rows(found: Found) -> Iterator[tuple[str, str]]:
    """Lines of the table."""
    for name, value in found.items():
        if isinstance(value, list):
            yield from ((name if i == 0 else "", readable(item)) for i, item in enumerate(value))
        else:
            yield name, readable(value)


def readable(value: Any) -> str:
    """A value on one line."""
    if isinstance(value, dict):
        return "  ".join(f"{k} {readable(v)}" for k, v in value.items())
    return str(value)


def main() -> int:
    """Run the parts and print; 1 if numbers are wrong or a part failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--seconds", type=float, default=400)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--torch", default=sys.executable, metavar="PYTHON")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if unknown := set(options.parts) - PARTS.keys():
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    if options.inside:
        for found in PARTS[options.parts[0]].run(Setting(options.small, options.torch)):
            print(json.dumps(found), flush=True)
        return 0
    end = time.monotonic() + options.seconds
    report: dict[str, Found] = {}
    for name in options.parts or PARTS:
        left = end - time.monotonic()
        found = run_part(name, options, left) if left > 0 else {"left out": "no time left"}
        report[name] = found
        for i, (what, value) in enumerate(rows(found)):
            print(f"{name if i == 0 else '':18} {what:22} {value}", flush=True)
        if options.json is not None:
            write_json(options.json, report)
    bad = [
        name
        for name, found in report.items()
        if "failed" in found or (found.get("passed") is False and name not in INFORMS)
    ]
    print(f"wrong or failed: {', '.join(bad) or 'nothing'}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
