"""Will it hold: what models need, the formula, the verdicts, and the report; without a network."""

from __future__ import annotations

import io
import json
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import typer
from rich.console import Console

import moshi_mlx
from moshi_local import cli, platform
from moshi_local.machine import checkup, launches, mimi_codes, prediction, verdict
from moshi_local.machine import doctor as doctor_module
from moshi_local.machine.bench import time_steps
from moshi_local.machine.checkup import full_checkup, steps_by_hand
from moshi_local.machine.doctor import (
    cached_models,
    diagnose,
    doctor,
    sound_system,
)
from moshi_local.machine.prediction import (
    Shape,
    Speed,
    measure_speed,
    needs_of_checkpoint,
    predict,
    published_shape,
    shape_of,
)
from moshi_local.machine.verdict import Verdict, check_before, late_warning
from moshi_local.platform import Machine, machine
from moshi_local.report import warm_up
from moshi_mlx import AudioDeviceError, HubError, MoshiError, catalog
from moshi_mlx.backend import on_gpu
from moshi_mlx.checkpoint import open_checkpoint
from moshi_mlx.files import read_json
from moshi_mlx.footprint import Needs
from moshi_mlx.hub import bundled_folder, resolve
from moshi_mlx.published import read_config
from moshi_mlx.weights import skeleton

SMALL = Path(__file__).parents[1] / "fixtures" / "lm" / "moshi-mlx" / "config.json"
# A Mac as it could be; its GPU may use two thirds.
MAC = Machine(
    chip="Apple M2",
    cores=8,
    performance_cores=4,
    memory_total=16_000_000_000,
    memory_available=9_000_000_000,
    gpu_memory=13_000_000_000,
    os="macOS 15.1",
    python="3.12.1",
    mlx="0.32",
    backend="gpu",
    device="Apple M2",
)
MARGIN = 2_000_000_000
"""What a Mac with that memory keeps for all else."""
NO_SPEED = (0.0, 0.0)


@pytest.fixture(autouse=True)
def without_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nobody connects, and the hub's cache is empty; models are as on a GPU, in bfloat16."""

    def refuse(*_: Any) -> None:
        raise AssertionError("the network was used")

    from huggingface_hub import constants

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(prediction, "default_dtype", lambda: mx.bfloat16)
    monkeypatch.setattr(prediction, "on_gpu", lambda: True)


def fast_enough_for(*bits: int) -> Any:
    """A machine that holds 80 ms with these precisions; notes what it was asked to measure."""
    asked: list[int] = []

    def speed_of(shape: Shape) -> Speed:
        asked.append(shape.bits)
        frame = 0.05 if shape.bits in bits else 0.1
        return Speed(NO_SPEED, NO_SPEED, (frame, frame), NO_SPEED)

    speed_of.asked = asked  # type: ignore[attr-defined]
    return speed_of


# --------------------------------------------------------------------- what a model needs


@pytest.mark.parametrize(
    ("name", "read", "weights"),
    [
        ("moshiko-q4", 4.61, 4.81),
        ("moshika-q8", 7.84, 8.17),
        ("kyutai/moshiko-mlx-bf16", 14.75, 15.38),
    ],
)
def test_published_models(name: str, read: float, weights: float) -> None:
    """Gigabytes of the files on the hub, and those that a frame reads, from the shapes alone."""
    shape = published_shape(name)
    assert shape is not None
    assert shape.read_per_frame / 1e9 == pytest.approx(read, abs=0.005)
    assert shape.needs.weights / 1e9 == pytest.approx(weights, abs=0.006)
    # Keys and values, 32 layers, 3000 frames, 4096 wide, 2 bytes.
    assert shape.needs.conversation == 2 * 32 * 3000 * 4096 * 2
    assert shape.needs.total == sum(
        (shape.needs.weights, shape.needs.conversation, 254_000_000, 300_000_000)
    )


def test_names_that_are_not_published() -> None:
    assert [published_shape(name) for name in ("nano", "moshiko", "org/other")] == [None] * 3


def test_on_the_cpu_it_is_float32() -> None:
    config = read_config(read_json(SMALL)).lm
    half, whole = (shape_of("small", config, 16, t) for t in (mx.bfloat16, mx.float32))
    assert whole.needs.weights == 2 * half.needs.weights
    assert whole.needs.conversation == 2 * half.needs.conversation


def test_quantized_keys_and_values_need_less() -> None:
    shapes = [published_shape("moshiko-q4", bits) for bits in (None, 8, 4)]
    plain, eight, four = (shape.needs for shape in shapes if shape is not None)
    assert eight.conversation == plain.conversation * 8.5 / 16
    assert four.conversation == plain.conversation * 5 / 16
    assert plain.total - eight.total == plain.conversation - eight.conversation
    assert (
        needs_of_checkpoint(open_checkpoint("nano"), 8).conversation == 2 * 4 * 100 * 192 * 9 // 8
    )
    just = int((plain.total + eight.total) / 2)
    here = replace(MAC, gpu_memory=just + MARGIN)
    assert check_before("moshiko-q4", here=here, kv_bits=8).fits
    with pytest.raises(MoshiError, match="moshiko-q4 needs"):
        check_before("moshiko-q4", here=here)


@pytest.mark.gpu
def test_needs_of_a_checkpoint_are_those_of_the_loaded_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(prediction, "default_dtype", lambda: mx.float32)
    checkpoint = open_checkpoint("nano")
    needs = needs_of_checkpoint(checkpoint)
    parameters = prediction.named_parameters(moshi_mlx.load("nano", dtype=mx.float32).lm)
    assert needs.weights == sum(a.nbytes for a in parameters.values())
    # 4 layers, context 100, 192 wide, float32.
    assert needs.conversation == 2 * 4 * 100 * 192 * 4
    assert needs.codec == checkpoint.files.mimi.stat().st_size


# ------------------------------------------------------------------------------ prediction


def test_the_formula() -> None:
    config = read_config(read_json(SMALL)).lm
    context = config.transformer.context
    assert context is not None
    shape = Shape("small", 4, config, 2_000_000, Needs(3_000_000, 500_000, 0))
    speed = Speed(
        weights=(1e-8, 2e-8),  # 100 MB/s, 50 MB/s
        attention=(1e-8, 1e-8),
        launches=(0.010, 0.012),
        codec=(0.007, 0.008),
    )
    found = predict(shape, speed)
    assert found.weights == pytest.approx((20, 40))
    assert found.conversation == pytest.approx((5, 5))
    assert found.frame_ms == {"p50": 42.0, "p95": 65.0}
    assert predict(shape, speed, positions=0).frame_ms == {"p50": 37.0, "p95": 60.0}
    assert predict(shape, speed, positions=2 * context) == found


# For which Metal has one kernel for an attention (MLX 0.32, scaled_dot_product_attention).
FUSED_HEADS = {64, 96, 128, 192, 256}


def test_the_narrow_model_has_all_launches() -> None:
    """The same layers, slices and delays as Moshi, and next to no weights."""
    config = read_config().lm
    narrow = launches.narrow(config)
    assert (narrow.delays, narrow.n_q, narrow.card) == (config.delays, config.n_q, config.card)
    assert narrow.transformer.num_layers == 32
    assert narrow.depth is not None and config.depth is not None
    assert narrow.depth.weight_sets == config.depth.weight_sets
    assert [t.num_layers for t in narrow.depth.transformers] == [6] * 8
    assert narrow.transformer.head_dim in FUSED_HEADS
    assert shape_of("narrow", narrow, 16).read_per_frame < 40_000_000  # 0.4 ms at 100 GB/s


def test_a_matrix_pass_reads_what_it_says() -> None:
    c = read_config(read_json(SMALL)).lm.transformer
    work, size = prediction._matrix_pass(c, 16)
    work(2)
    inner = c.dim * (c.dim + 2 * c.num_kv_heads * c.head_dim) + c.dim * c.dim
    assert size == 2 * c.num_layers * (inner + 3 * c.dim * c.gated_hidden)
    wide = replace(c, dim=64, num_heads=2, feedforward=96)  # groups divide it
    q4, q8 = (prediction._matrix_pass(wide, bits)[1] for bits in (4, 8))
    assert q4 / q8 == pytest.approx((4 + 1) / (8 + 0.5))  # with scales, groups of 32 and 64


def test_a_prediction_is_near_what_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """The measuring hangs together, in processor time, since others run too: the middle of three.

    Both do the same work, so that without a part of it the prediction is too low.
    """
    monkeypatch.setattr(time, "perf_counter", time.process_time)
    monkeypatch.setattr(prediction, "default_dtype", lambda: mx.float32)
    monkeypatch.setattr(prediction, "_SPENT", 0.05)
    monkeypatch.setattr(prediction, "_FRAMES", 10)
    monkeypatch.setattr(prediction, "_codec_times", lambda: NO_SPEED)
    config = read_config(read_json(Path(__file__).parents[1] / "fixtures/bench/small.json")).lm
    shape = shape_of("small", config, 16)
    lm = skeleton(config, dtype=mx.float32)
    mx.eval(lm.parameters())
    ratios = []
    for _ in range(3):
        predicted = predict(shape, measure_speed(shape), positions=30).frame_ms["p50"]
        ratios.append(predicted / (1000 * float(np.median(time_steps(lm, 15)))))
    assert 0.65 < sorted(ratios)[1] < 2


# -------------------------------------------------------------------------------- verdicts


def test_a_verdict() -> None:
    needs = Needs(1, 1, 1, 1)
    good = Verdict("m", needs, 4, {"p50": 50.0, "p95": 61.2, "max": 99.0})
    assert (good.fits, good.holds) == (True, True)
    assert good.line == "m in real time (80 ms per frame): yes, p95 61 ms"
    long = replace(good, growth_ms=19.0)
    assert long.holds is False
    assert long.line.endswith("no, p95 61 ms, up to 19 ms more in a long conversation")
    assert replace(good, predicted=True).line.endswith("p95 61 ms (predicted, not measured)")
    assert replace(good, frame_ms={"p95": 80.1}).holds is False
    large = replace(good, memory=3)
    assert (large.fits, large.holds) == (False, False)
    unknown = Verdict("org/other", None, 4)
    assert (unknown.fits, unknown.holds) == (None, None)
    assert replace(good, memory=0).fits is None  # the system did not say what there is


def test_a_model_that_cannot_fit_is_refused_before_it_is_fetched() -> None:
    with pytest.raises(MoshiError) as error:
        check_before("moshika-bf16", here=MAC)
    assert str(error.value) == (
        "moshika-bf16 needs 17.5 GB of memory (15.4 GB weights, 1.6 GB for a long conversation, "
        "0.6 GB codec and working memory); on this machine a model can use 11.0 GB of 16.0 GB. "
        "Use --model moshika-q8 (needs 10.3 GB) or --model nano, or --force to try it anyway"
    )
    assert check_before("moshika-bf16", here=MAC, force=True).fits is False


def test_a_small_machine_is_told_of_nano() -> None:
    here = replace(MAC, memory_total=8_000_000_000, gpu_memory=None)
    with pytest.raises(MoshiError, match=r"there is 8.0 GB. Use --model moshiko-q4 \(needs 6.9"):
        check_before("kyutai/moshiko-mlx-q8", here=here)
    with pytest.raises(MoshiError, match=r"\. Use --model nano, or"):
        check_before("moshiko", here=replace(here, gpu_memory=5_500_000_000))


def test_a_mac_with_8_gb_is_told_how_to_make_a_model_that_fits() -> None:
    """3 bits for most, keys and values in 4; and by name what is only too long in full."""
    here = replace(MAC, memory_total=8 << 30, gpu_memory=5_730_000_000)
    assert here.usable_memory == 5_730_000_000 - (1 << 30)
    for name in ("moshika", "moshika-q4", "kyutai/moshika-mlx-q8"):
        with pytest.raises(MoshiError) as error:
            check_before(name, here=here)
        assert (
            "Use --model moshika-small --kv-bits 4 (needs 4.5 GB), once made by `moshi-quantize "
            "moshika-bf16 moshika-small --recipe q3-mixed --no-report` or --model nano, or --force"
        ) in str(error.value)
    with pytest.raises(MoshiError, match=r"Use --model moshiko-q4 --kv-bits 8 \(needs 6.2 GB\)"):
        check_before("moshiko-q4", here=replace(here, gpu_memory=7_600_000_000))
    with pytest.raises(MoshiError, match="Use --model nano, or"):
        check_before("moshiko-q4", here=replace(here, gpu_memory=5_600_000_000))


def test_a_mac_keeps_a_share_for_all_else() -> None:
    """8 bits would leave 6.7 GB of 16 to macOS and what else runs."""
    shares = {8: (5.73, None), 16: (11.45, "q4"), 24: (17.18, "q8"), 32: (22.9, "bf16")}
    for total, (limit, most) in shares.items():
        here = replace(MAC, memory_total=total << 30, gpu_memory=int(limit * 1e9))
        fitting = [
            entry.precision
            for entry in catalog.series("moshiko")
            if (needs := verdict.needs_of(entry.name)) and needs.total <= here.usable_memory
        ]
        assert next(iter(fitting), None) == most
    cuda = replace(MAC, os="Debian", memory_total=16 << 30, gpu_memory=12 << 30)
    assert cuda.usable_memory == 12 << 30


def test_what_fits_passes_and_is_told_of_other_programs() -> None:
    assert check_before("moshiko-q4", here=MAC).advice is None
    advice = check_before("moshiko-q8", here=MAC).advice
    assert advice == "close other programs first: moshiko-q8 needs 1.3 GB more than is free now"
    assert check_before("nano", here=MAC).fits
    # Nothing is known of what is not here; loading says what is wrong with a name.
    assert check_before("org/other", here=MAC).needs is None
    assert check_before("moshiko-bf16", here=replace(MAC, memory_total=0, gpu_memory=None))


@pytest.mark.parametrize(
    ("memory", "holding", "chosen", "asked"),
    [
        (11e9, (4, 8), "moshika-q8", [8]),
        (11e9, (4,), "moshika-q4", [8, 4]),
        (11e9, (), "moshika-q4", [8, 4, 8, 4]),  # and with keys and values in 8 bits
        (8e9, (4, 8), "moshika-q4", [4]),
    ],
)
def test_the_precision_is_chosen(
    memory: float, holding: tuple[int, ...], chosen: str, asked: list[int]
) -> None:
    speed_of = fast_enough_for(*holding)
    here = replace(MAC, gpu_memory=int(memory) + MARGIN)
    found = check_before("moshika", here=here, speed_of=speed_of)
    assert (found.model, found.kv_bits) == (chosen, None)
    assert speed_of.asked == asked
    if asked:
        assert found.predicted
        assert found.holds is bool(holding)


@pytest.mark.parametrize(
    ("memory", "asked", "chosen"),
    [
        (11e9, None, 8),  # in full, a long conversation is late
        (6.5e9, None, 8),  # in full, it does not fit
        (11e9, 4, 4),  # what was asked for
    ],
)
def test_keys_and_values_in_8_bits_before_giving_up(
    memory: float, asked: int | None, chosen: int
) -> None:
    def speed_of(shape: Shape) -> Speed:
        frame = 0.05 if shape.bits == 4 and shape.kv_bits else 0.1
        return Speed(NO_SPEED, NO_SPEED, (frame, frame), NO_SPEED)

    here = replace(MAC, gpu_memory=int(memory) + MARGIN)
    found = check_before("moshiko", here=here, speed_of=speed_of, kv_bits=asked)
    assert (found.model, found.kv_bits, found.fits) == ("moshiko-q4", chosen, True)
    assert found.needs == verdict.needs_of("moshiko-q4", chosen)


def test_a_model_that_is_here_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    files = resolve("nano")
    monkeypatch.setattr(verdict, "local_files", lambda n: files if n.endswith("q4") else None)
    assert check_before("moshiko", here=MAC, speed_of=fast_enough_for(4, 8)).model == "moshiko-q4"
    # …if it is in time.
    assert check_before("moshiko", here=MAC, speed_of=fast_enough_for(8)).model == "moshiko-q8"


def test_a_series_is_no_model_but_its_most_exact_one() -> None:
    for name in set(catalog.all_series()) & set(catalog.names()):
        assert catalog.series(name)[0].name == name


@pytest.mark.gpu
@pytest.mark.skipif(not on_gpu(), reason="MLX computes on the CPU here; see `make test-gpu`")
def test_a_gpu_limits_what_a_model_may_take() -> None:
    here = machine()
    assert here.backend == "gpu"
    assert here.device == mx.device_info()["device_name"]
    assert here.gpu_memory
    assert 0 < here.usable_memory <= min(here.memory_total, here.gpu_memory)


# ------------------------------------------------------------------------------ measuring


class Slow:
    """A session whose first steps take long."""

    def __init__(self, *seconds: float) -> None:
        self.seconds = list(seconds)
        self.steps = 0
        self.resets = 0

    def step(self, pcm: Any) -> None:
        assert pcm.shape == (1920,)
        assert 0 < np.abs(pcm).max() <= 0.01
        time.sleep(self.seconds[min(self.steps, len(self.seconds) - 1)])
        self.steps += 1

    def reset(self) -> None:
        self.resets += 1


def test_a_session_is_timed_after_a_warm_up() -> None:
    session = Slow(0.05, 0.05, 0.001)
    times = warm_up(session, 1920, 4, before=2)
    assert (session.steps, session.resets) == (6, 1)
    assert len(times) == 4
    assert np.median(times) < 0.04


def test_a_hopeless_session_is_not_timed_for_long() -> None:
    session = Slow(0.03)
    assert len(warm_up(session, 1920, 100, before=2, limit=0.01)) == 1
    assert session.steps == 3


def test_the_warning() -> None:
    assert late_warning("moshiko-q8", [0.079] * 20) is None
    assert late_warning("moshiko-q8", [0.12] * 20) == (
        "moshiko-q8 takes 120 ms per frame here (p95), and real time is 80 ms: the sound will have "
        "gaps. Close other programs, or use --model moshiko-q4, which reads least per frame"
    )
    assert "--model nano" in (late_warning("moshiko-q4", [0.12]) or "")
    assert "faster machine" in (late_warning("nano", [0.12]) or "")
    assert late_warning("nano", [0.12], budget_ms=160) is None


# -------------------------------------------------------------------------------- report


@dataclass
class Device:
    index: int = 3
    name: str = "[Blue] microphone"
    inputs: int = 1
    outputs: int = 2
    default_input: bool = True


@pytest.mark.parametrize(
    ("printed", "short"),
    [
        ("kern.memorystatus_vm_pressure_level: 1\n", False),
        ("kern.memorystatus_vm_pressure_level: 2\n", True),
        ("kern.memorystatus_vm_pressure_level: 4\n", True),
        ("", None),
    ],
)
def test_other_programs_are_named_only_when_macos_is_short_of_memory(
    printed: str, short: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is free on a Mac says little; where the system says nothing, it is all there is."""
    quick(monkeypatch, 4, 8)
    monkeypatch.setattr(platform, "MACOS", True)
    monkeypatch.setattr(platform, "_output", lambda *_: printed)
    assert platform.under_memory_pressure() is short
    advice = diagnose("moshiko-q8", list_devices=list).verdict.advice
    assert (advice is None) is (short is False)
    assert advice is None or advice.startswith("close other programs first")


def quick(monkeypatch: pytest.MonkeyPatch, *bits: int) -> None:
    monkeypatch.setattr(doctor_module, "Speeds", lambda: fast_enough_for(*bits))
    monkeypatch.setattr(doctor_module, "machine", lambda: MAC)


def test_the_report_of_a_model_that_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    quick(monkeypatch, 4)
    screen = Console(file=io.StringIO(), width=100)
    began = time.perf_counter()
    code = doctor("nano", frames=4, list_devices=lambda: [Device()], screen=screen)
    took = 1000 * (time.perf_counter() - began)
    text = screen.file.getvalue()  # type: ignore[attr-defined]
    assert "Apple M2, 8 cores, 4 of them fast" in text
    assert "3 [Blue] microphone (default)" in text
    assert "measured, 4 frames" in text
    assert "predicted for this machine, not measured" in text
    line = next(
        line
        for line in text.splitlines()
        if line.startswith("nano in real time (80 ms per frame): ")
    )
    assert (": yes" in line) == (code == 0)
    assert "cannot talk live" not in text
    found = diagnose("nano", frames=4, list_devices=list).verdict
    assert found.frame_ms is not None
    assert 0 < found.frame_ms["p50"] <= found.frame_ms["p95"] <= found.frame_ms["max"] < took
    assert not found.predicted


@pytest.mark.parametrize(("bits", "code"), [((4, 8), 0), ((4,), 1)])
def test_json_of_a_model_that_is_not_here(
    bits: tuple[int, ...],
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    quick(monkeypatch, *bits)
    assert doctor("moshika-q8", as_json=True, list_devices=lambda: [Device()]) == code
    found = json.loads(capsys.readouterr().out)
    verdict = found["verdict"]
    assert (verdict["model"], verdict["predicted"], verdict["holds"]) == (
        "moshika-q8",
        True,
        code == 0,
    )
    assert verdict["needs"]["total"] == sum(
        verdict["needs"][part] for part in ("weights", "conversation", "codec", "working")
    )
    assert found["machine"]["usable_memory"] == 11_000_000_000
    assert found["sound"][0]["name"] == "[Blue] microphone"
    assert found["models"] == {"bundled": catalog.bundled(), "cached": []}
    assert [(v["model"], v["fits"]) for v in found["others"]] == [
        ("moshiko-bf16", False),
        ("moshiko-q8", True),
        ("moshiko-q4", True),
        ("personaplex", False),
        ("personaplex-q8", True),
        ("personaplex-q4", True),
    ]
    if code:
        assert verdict["advice"] == "use --model moshika-q4, which is predicted to run in real time"


def test_nothing_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    quick(monkeypatch)
    verdict = diagnose("moshiko", list_devices=list).verdict
    assert verdict.model == "moshiko-q4"
    assert verdict.advice == "use --model nano, which is small and comes with the program"


def test_a_machine_without_sound(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_library() -> list[Any]:
        raise AudioDeviceError("the PortAudio library is missing")

    quick(monkeypatch, 4, 8)
    found = diagnose("moshiko-q4", list_devices=no_library)
    assert (found.sound, found.sound_problem) == ([], "the PortAudio library is missing")
    assert found.verdict.holds
    assert found.as_dict()["sound_missing"] == ["microphone", "speaker"]
    screen = Console(file=io.StringIO(), width=200)
    assert doctor("moshiko-q4", list_devices=lambda: [Device(inputs=0)], screen=screen) == 1
    text = screen.file.getvalue()  # type: ignore[attr-defined]
    assert "no microphone: it cannot talk live here; files work: moshi-local run" in text
    assert "memory: in float32, as the CPU computes" in text


def test_which_portaudio(monkeypatch: pytest.MonkeyPatch) -> None:
    """Homebrew's may be found before the one that sounddevice brings."""
    from moshi_local.audio import devices

    class Module:
        _libname = "/opt/homebrew/lib/libportaudio.dylib"

        def get_portaudio_version(self) -> tuple[int, str]:
            return 1246976, "PortAudio V19.7.0-devel, revision unknown"

    def missing() -> Any:
        raise AudioDeviceError("the PortAudio library is missing")

    quick(monkeypatch)
    monkeypatch.setattr(devices, "sounddevice", Module)
    screen = Console(file=io.StringIO(), width=100)
    doctor("moshiko-q4", list_devices=list, screen=screen)
    text = screen.file.getvalue()  # type: ignore[attr-defined]
    assert "V19.7.0-devel, revision unknown" in text
    assert "/opt/homebrew/lib/libportaudio.dylib" in text
    monkeypatch.setattr(devices, "sounddevice", missing)
    assert sound_system() == {}


def test_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    quick(monkeypatch)
    with pytest.raises(HubError, match=r"no model 'nonesuch'\. A model is one of nano-stt, "):
        diagnose("nano", list_devices=pytest.fail, captions="nonesuch")
    assert diagnose("org/other", list_devices=list).verdict.holds is None
    for name in ("moshki-q4", str(tmp_path), "./nowhere"):
        with pytest.raises(HubError):
            diagnose(name, list_devices=list)


def test_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A whole model is listed by its alias; half a one and other things are not."""
    from huggingface_hub import constants

    assert cached_models() == []
    cache = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    files = ["model.q4.safetensors", "tokenizer_spm_32k_3.model"]
    mimi = "tokenizer-e351c8d8-checkpoint125.safetensors"
    for repo, names in {
        "kyutai/moshiko-mlx-q4": [*files, mimi],
        "kyutai/moshika-mlx-q4": files,
        "org/other": ["config.json"],
    }.items():
        folder = cache / f"models--{repo.replace('/', '--')}"
        (folder / "refs").mkdir(parents=True)
        (folder / "refs" / "main").write_text("c0ffee")
        (folder / "snapshots" / "c0ffee").mkdir(parents=True)
        for name in names:
            (folder / "snapshots" / "c0ffee" / name).write_text("{}")
    monkeypatch.setattr("huggingface_hub.scan_cache_dir", scan_of(cache))
    assert cached_models() == ["moshiko-q4"]


def scan_of(cache: Path) -> Any:
    """The real scan, of this folder: its default was bound when it was imported."""
    from huggingface_hub import scan_cache_dir

    return lambda: scan_cache_dir(cache)


def test_this_machine_has_numbers_for_all() -> None:
    """No stand-in: the verdict on memory of every published precision, from this machine."""
    here = machine()
    for entry in catalog.series("moshiko"):
        assert check_before(entry.name, here=here, force=True).fits is not None


# ---------------------------------------------------------------------- the whole checkup


@dataclass
class FullDevice(Device):
    name: str = "Anna’s AirPods Pro"
    rate: int = 24_000
    host_api: str = "Core Audio"
    default_output: bool = False


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Mac whose measurements take no time; what is measured has its own tests."""
    quick(monkeypatch, 4, 8)
    monkeypatch.setattr(checkup, "MACOS", True)
    monkeypatch.setattr(checkup, "_ask_nano", lambda: {"late": 0})
    monkeypatch.setattr(checkup, "_bench", lambda name, frames, kv_bits: {"frames": frames})
    monkeypatch.setattr(checkup, "tf32_agreement", lambda name: {"equal": 1.0})


def run_checkup(path: Path, name: str = "nano", device: Any = FullDevice) -> dict[str, Any]:
    silent = Console(file=io.StringIO())
    devices = [device()] if device else []
    full_checkup(path, name, frames=2, list_devices=lambda: devices, screen=silent, notes=silent)
    return read_json(path)


@pytest.mark.usefixtures("short")
def test_a_checkup_says_nothing_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of devices, folders and repositories may be names of people."""
    home = tmp_path / "anna"
    shutil.copytree(bundled_folder("nano"), home)
    facts = {"portaudio": "V19", "library": f"{home}/site-packages/x.dylib"}
    monkeypatch.setattr(doctor_module, "sound_system", lambda: facts)
    monkeypatch.setattr(doctor_module, "cached_models", lambda: ["anna/moshi", "moshiko-q4"])

    def fail(name: str) -> dict[str, Any]:
        raise MoshiError(f"{home}/model.safetensors: is damaged")

    monkeypatch.setattr(checkup, "tf32_agreement", fail)
    found = run_checkup(tmp_path / "report.json", str(home))
    assert "anna" not in json.dumps(found, ensure_ascii=False).casefold()
    assert found["verdict"]["model"] == "another model"
    assert found["cached"] == ["another model", "moshiko-q4"]
    assert set(found["bench"]) == {"nano", "another model", "moshiko-q4"}
    assert found["left_out"]["tf32 of nano"] == "MoshiError: …: is damaged"
    (device,) = found["sound"]["devices"]
    assert (device["kind"], device["headphones"], device["rate"]) == ("AirPods", True, 24_000)
    assert "name" not in device


@pytest.mark.usefixtures("short")
def test_a_checkup_lists_what_a_person_does(tmp_path: Path) -> None:
    found = run_checkup(tmp_path / "report.json")
    assert len(found["by_hand"]) == len(steps_by_hand("nano"))
    for step in found["by_hand"]:
        assert step["commands"] and set(step["answers"].values()) == {None}
    assert found["bench"] == {"nano": {"frames": 6}}
    assert found["left_out"] == {}


@pytest.mark.usefixtures("short")
def test_a_checkup_goes_on_after_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what is too large, and of what fails in whatever way, the report says so."""
    monkeypatch.setattr(
        doctor_module, "cached_models", lambda: ["moshiko-q8", "moshiko-q4", "moshiko-bf16"]
    )

    def fail(name: str, *_: Any) -> dict[str, Any]:
        if name == "moshiko-q4":
            raise RuntimeError("[metal::malloc] no more\n")
        return {}

    monkeypatch.setattr(checkup, "_bench", fail)
    found = run_checkup(tmp_path / "report.json")
    assert found["bench"] == {"nano": {}, "moshiko-q4": None, "moshiko-q8": {}}
    assert found["left_out"] == {
        "bench of moshiko-bf16": "it does not fit in memory",
        "bench of moshiko-q4": "RuntimeError: [metal::malloc] no more",
    }
    assert "--model moshiko-q8" in json.dumps(found["by_hand"])


def test_commands_for_a_person_exist() -> None:
    program: Any = typer.main.get_command(cli.app)
    commands = [c for step in steps_by_hand("moshiko-q4") for c in step.commands]
    ours = [c.partition("moshi-local ")[2].split(";")[0].split() for c in commands]
    ours = [words for words in ours if words and words[-1] != "bench')"]
    assert len(ours) >= 6
    for words in ours:
        command = program.commands.get(words[0], program)
        known = {option for p in command.params for option in p.opts}
        assert {w for w in words if w.startswith("-")} <= known, words


@pytest.mark.usefixtures("short")
def test_a_checkup_without_a_mac_and_without_sound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkup, "MACOS", False)
    found = run_checkup(tmp_path / "report.json", device=None)
    assert "by_hand" not in found
    assert found["left_out"] == {
        "devices": "there are none",
        "by_hand": "the steps for a person are for a Mac",
    }


@pytest.mark.usefixtures("short")
def test_a_stopped_checkup_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(name: str) -> dict[str, Any]:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkup, "tf32_agreement", stop)
    path = tmp_path / "report.json"
    assert cli.main(["doctor", "--full", "--report", str(path), "--frames", "2"]) == 130
    assert list(tmp_path.glob("*report*")) == []
    assert "names" in capsys.readouterr().err  # what it would have held


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--full"], "moshi-local-doctor.json is there already"),
        (["--full", "--report", "nowhere/report.json"], "there is no folder nowhere"),
        (["--full", "--json"], "--full writes a file of JSON"),
        (["--report", "report.json"], "--report goes with --full"),
    ],
)
def test_a_checkup_is_refused_before_it_begins(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    checkup.DEFAULT_REPORT.write_text("answers")
    assert cli.main(["doctor", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert checkup.DEFAULT_REPORT.read_text() == "answers"


def test_nano_answers_and_is_timed() -> None:
    found = checkup._ask_nano()
    assert found["words"].startswith("Hello!")
    assert found["frames"] > 100
    assert 0 <= found["late"] <= found["frames"]
    timed = checkup._bench("nano", 3, None)
    assert timed["frames"] == 3
    assert 0 < timed["mlx_memory"]["active"] <= timed["mlx_memory"]["peak"]


def test_tf32_is_switched_in_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """An M5 has TF32; elsewhere all codes are the same."""
    seen: list[str] = []
    run = subprocess.run

    def watched(*arguments: Any, **options: Any) -> Any:
        seen.append(options["env"]["MLX_ENABLE_TF32"])
        return run(*arguments, **options)

    monkeypatch.setattr(mimi_codes.subprocess, "run", watched)
    found = mimi_codes.tf32_agreement("nano")
    assert seen == ["0", "1"]
    assert 0.9 < found["equal"] <= 1.0
    assert found["enough"] is (found["equal"] >= 0.98)
    frames = len(mimi_codes.bundled_question()) // 1920
    assert found["codes"] == 8 * frames
    with pytest.raises(MoshiError, match=r"codes could not be computed: .*moshki"):
        mimi_codes.tf32_agreement("moshki")
