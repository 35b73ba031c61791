"""The platform: what is parsed, what is asked of macOS (stand-ins for its libraries), Linux."""

from __future__ import annotations

import ctypes
import os
import platform
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from moshi_local import chat
from moshi_local import platform as system
from moshi_local.options import SoundFlags

GIB = 2**30
# As macOS prints them, shortened.
SYSCTL = """hw.memsize: 17179869184
hw.physicalcpu: 8
hw.perflevel0.physicalcpu: 4
hw.perflevel1.physicalcpu: 4
machdep.cpu.brand_string: Apple M2
"""
VM_STAT = """Mach Virtual Memory Statistics: (page size of 16384 bytes)
Pages free:                               10000.
Pages active:                            300000.
Pages inactive:                          200000.
Pages speculative:                         5000.
Pages throttled:                              0.
Pages wired down:                        100000.
"""
MEMINFO = """MemTotal:       16384000 kB
MemFree:         1000000 kB
MemAvailable:    8192000 kB
HugePages_Total:       0
"""


class Function:
    """A function of a library: through ctypes with the types that were set, into Python."""

    def __init__(self, body: Callable[..., Any]) -> None:
        self.body = body
        self.restype: Any = ctypes.c_int
        self.argtypes: tuple[Any, ...] = ()

    def __call__(self, *arguments: Any) -> Any:
        assert len(arguments) == len(self.argtypes)
        return ctypes.CFUNCTYPE(self.restype, *self.argtypes)(self.body)(*arguments)


class Library:
    """Functions by name, a new one each time, as ctypes' own."""

    def __init__(self, **functions: Callable[..., Any]) -> None:
        self.functions = functions

    def __getitem__(self, name: str) -> Function:
        if name not in self.functions:
            raise AttributeError(f"symbol not found: {name}")
        return Function(self.functions[name])


class Mac:
    """The libraries of a Mac, as far as we call them. Handles are numbers above 2³², as there."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.handles: dict[int, str] = {}
        self.devices = {b"dIn ": 41, b"dOut": 42}
        self.status = 0
        self.authorization = 3
        self.libraries = {
            "libobjc": Library(
                objc_getClass=self.handle,
                sel_registerName=self.handle,
                objc_msgSend=self.send,
                objc_autoreleasePoolPush=lambda: self.handle(b"pool"),
                objc_autoreleasePoolPop=lambda pool: self.calls.append(("pop", self.name(pool))),
            ),
            "Foundation": Library(),
            "AVFoundation": Library(),
            "libSystem": Library(pthread_set_qos_class_self_np=self.set_class),
            "CoreAudio": Library(
                AudioObjectGetPropertyData=self.get, AudioObjectSetPropertyData=self.put
            ),
        }

    def load(self, path: str) -> Library:
        found = re.fullmatch(
            r"/(?:usr/lib|System/Library/Frameworks)/.*?(\w+)(\.\w)*(\.dylib)?", path
        )
        assert found is not None, path
        return self.libraries[found[1]]

    def handle(self, name: bytes) -> int:
        number = 2**40 + 16 * len(self.handles)
        self.handles[number] = name.decode()
        return number

    def name(self, handle: int | None) -> str:
        assert handle is not None
        return self.handles[handle]

    def send(self, receiver: int, selector: int, *rest: Any) -> int | None:
        message = self.name(selector)
        self.calls.append((self.name(receiver), message, *rest))
        if message == "authorizationStatusForMediaType:":
            return self.authorization
        return (
            None
            if message in ("endActivity:", "release")
            else self.handle(b"a " + message.encode())
        )

    def set_class(self, quality: int, priority: int) -> int:
        self.calls.append(("quality", quality, priority))
        return self.status

    def get(self, thing: int, address: Any, n: int, _: Any, size: Any, value: int) -> int:
        a = address.contents
        assert (thing, a.scope.to_bytes(4), a.element, n, size.contents.value) == (
            1,
            b"glob",
            0,
            0,
            4,
        )
        number = self.devices[a.selector.to_bytes(4)]
        ctypes.memmove(value, ctypes.byref(ctypes.c_uint32(number)), 4)
        return self.status

    def put(self, thing: int, address: Any, n: int, _: Any, size: int, value: int) -> int:
        content = ctypes.string_at(value, size)
        self.calls.append((thing, address.contents.selector.to_bytes(4), n, content))
        return 0


@pytest.fixture
def mac(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mac]:
    stand_in = Mac()
    monkeypatch.setattr(system, "MACOS", True)
    monkeypatch.setattr(system, "_library", stand_in.load)
    system._core_audio.cache_clear()
    yield stand_in
    system._core_audio.cache_clear()


# --------------------------------------------------------------------------------- parsing


def test_a_macs_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    printed = {"sysctl": SYSCTL, "vm_stat": VM_STAT, "sw_vers": "26.1\n"}
    monkeypatch.setattr(system, "MACOS", True)
    monkeypatch.setattr(system, "_output", lambda program, *_: printed[Path(program).name])
    found = system.machine()
    assert (found.chip, found.cores, found.performance_cores) == ("Apple M2", 8, 4)
    assert found.os == "macOS 26.1"  # what the kernel tells a Python of an older SDK is 16
    assert found.memory_total == 16 * GIB
    assert found.memory_available == 215_000 * 16_384  # free, speculative, inactive


def test_sysctl_without_some_names() -> None:
    """An Intel Mac has one kind of cores, and sysctl leaves out what it does not know."""
    values = system.values_from_sysctl("hw.memsize: 8589934592\nnonsense\n")
    assert values == {"hw.memsize": "8589934592"}


def test_vm_stat_that_says_nothing() -> None:
    assert system.available_from_vm_stat("") == 0


def test_meminfo_is_in_bytes() -> None:
    found = system.memory_from_meminfo(MEMINFO)
    assert found == {
        "MemTotal": 16_384_000 * 1024,
        "MemFree": 1_000_000 * 1024,
        "MemAvailable": 8_192_000 * 1024,
    }


def test_processor_names() -> None:
    assert system.chip_from_cpuinfo("cpu\t: 0\nmodel name\t: Some CPU @ 2 GHz\n") == (
        "Some CPU @ 2 GHz"
    )
    assert system.chip_from_cpuinfo("CPU implementer\t: 0x41\n") == ""


def test_a_container_has_less(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    files = {
        "memory.max": f"{4 * GIB}\n",
        "memory.current": f"{3 * GIB}\n",
        "memory.stat": f"anon 5\ninactive_file {GIB}\nactive_file 7\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(system, "MACOS", False)
    monkeypatch.setattr(system, "_CGROUP", tmp_path)
    real = system._text
    monkeypatch.setattr(system, "_text", lambda p: MEMINFO if p.name == "meminfo" else real(p))
    assert system.memory_available() == 2 * GIB
    assert system.machine().memory_total == 4 * GIB
    (tmp_path / "memory.max").write_text("max\n")
    assert system.memory_available() == 8_192_000 * 1024
    assert system.machine().memory_total == 16_384_000 * 1024


def test_what_a_model_may_take() -> None:
    here = system.machine()
    assert here.usable_memory == here.memory_total  # MLX on the CPU, in all our tests
    fields = {name: getattr(here, name) for name in here.as_dict()}
    on_gpu = system.Machine(**(fields | {"memory_total": 16 * GIB, "gpu_memory": 11 * GIB}))
    assert on_gpu.usable_memory == (9 if system.MACOS else 11) * GIB


# ----------------------------------------------------------------- this machine, for real


def test_this_machine() -> None:
    here = system.machine()
    assert here.chip
    assert here.os
    assert here.cores >= 1
    assert 0 < here.memory_available <= here.memory_total
    assert 10_000_000 < system.peak_memory() < here.memory_total
    assert (here.backend, here.gpu_memory is None) in (("cpu", True), ("gpu", False))


@pytest.mark.skipif(platform.system() != "Linux", reason="says what happens on Linux")
def test_on_linux_there_is_nothing_to_do() -> None:
    with system.keep_awake_and_fast() as notes:
        assert notes == []
    assert system.prefer_this_thread() is None
    assert system.default_devices() is None


@pytest.mark.skipif(platform.system() != "Linux", reason="needs a machine without these libraries")
def test_libraries_that_are_missing_give_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "MACOS", True)
    monkeypatch.setattr(system, "_SYSCTL", "/nowhere/sysctl")
    with system.keep_awake_and_fast() as notes:
        assert len(notes) == 1
        assert "Foundation" in notes[0]
    assert "libSystem" in (system.prefer_this_thread() or "")
    assert system.default_devices() is None
    assert system.machine().memory_total == 0


# -------------------------------------------------------------------- what macOS is asked


def test_an_activity_lasts_as_long_as_the_block(mac: Mac) -> None:
    with system.keep_awake_and_fast("talking") as notes:
        assert notes == []
        begun = list(mac.calls)
        mac.calls.clear()
    assert [call[:2] for call in begun] == [
        ("NSProcessInfo", "processInfo"),
        ("NSString", "stringWithUTF8String:"),
        ("a processInfo", "beginActivityWithOptions:reason:"),
        ("a beginActivityWithOptions:reason:", "retain"),
        ("pop", "pool"),
    ]
    assert begun[1][2] == b"talking"
    # NSActivityUserInitiated | NSActivityLatencyCritical, and the string: 64 bits, nothing cut off.
    assert begun[2][2] == 0xFF_00FF_FFFF
    assert mac.name(begun[2][3]) == "a stringWithUTF8String:"
    ended = [call[:2] for call in mac.calls]
    activity = "a beginActivityWithOptions:reason:"
    assert ended == [("a processInfo", "endActivity:"), (activity, "release"), ("pop", "pool")]
    assert mac.name(mac.calls[0][2]) == activity


def test_an_activity_ends_when_the_block_fails(mac: Mac) -> None:
    with pytest.raises(KeyError), system.keep_awake_and_fast():
        raise KeyError
    assert any("endActivity:" in call for call in mac.calls)


def test_a_class_that_is_missing_is_a_note(mac: Mac) -> None:
    mac.libraries["libobjc"].functions["objc_getClass"] = lambda name: None
    with system.keep_awake_and_fast() as notes:
        assert notes == [
            "macOS may slow this program down in the background (NSProcessInfo is not there)"
        ]
    assert mac.calls == [("pop", "pool")]


def test_quality_of_service(mac: Mac) -> None:
    assert system.prefer_this_thread() is None
    assert mac.calls == [("quality", 0x21, 0)]
    mac.status = 22
    assert "error 22" in (system.prefer_this_thread() or "")


def test_default_devices(mac: Mac) -> None:
    assert system.default_devices() == (41, 42)
    mac.devices[b"dOut"] = 77
    assert system.default_devices() == (41, 77)
    # Told once, with a null pointer: CoreAudio uses a thread of its own.
    assert mac.calls == [(1, b"rnlp", 0, bytes(8))]
    mac.status = -66748
    assert system.default_devices() is None


@pytest.mark.parametrize(
    ("status", "permission", "asks"),
    [
        (0, "not determined", True),
        (1, "restricted", False),
        (2, "denied", False),
        (3, "authorized", False),
        (9, None, True),
    ],
)
def test_microphone_permission(mac: Mac, status: int, permission: str | None, asks: bool) -> None:
    mac.authorization = status
    assert system.microphone_permission() == permission
    assert [call[:2] for call in mac.calls] == [
        ("NSString", "stringWithUTF8String:"),
        ("AVCaptureDevice", "authorizationStatusForMediaType:"),
        ("pop", "pool"),
    ]
    assert mac.calls[0][2] == b"soun"
    assert mac.name(mac.calls[1][2]) == "a stringWithUTF8String:"
    assert system.asks_for_microphone() is asks


def test_a_permission_that_cannot_be_known(mac: Mac, monkeypatch: pytest.MonkeyPatch) -> None:
    del mac.libraries["AVFoundation"]
    assert system.microphone_permission() is None
    assert system.asks_for_microphone(), "rather once too often"
    monkeypatch.setattr(system, "MACOS", False)
    assert system.microphone_permission() is None
    assert not system.asks_for_microphone()


def test_only_a_default_that_is_in_use_is_watched(mac: Mac) -> None:
    changed = chat._default_changed(SoundFlags(output="Speakers"))
    assert changed is not None
    mac.devices[b"dOut"] = 77
    assert not changed()
    mac.devices[b"dIn "] = 78
    assert changed()
    assert not changed()
    assert chat._default_changed(SoundFlags(input="Microphone", output="Speakers")) is None


@pytest.mark.parametrize(("chip", "set"), [("Apple M2 Pro", "1000"), ("Apple M5", None)])
def test_metal_gets_more_at_once(
    chip: str, set: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(system, "MACOS", True)
    monkeypatch.setattr(system, "_output", lambda *_: f"machdep.cpu.brand_string: {chip}")
    monkeypatch.setenv("MLX_MAX_OPS_PER_BUFFER", "7")
    system.batch_gpu_work()
    assert os.environ["MLX_MAX_OPS_PER_BUFFER"] == "7"
    monkeypatch.delenv("MLX_MAX_OPS_PER_BUFFER")
    system.batch_gpu_work()
    assert os.environ.get("MLX_MAX_OPS_PER_BUFFER") == set
    monkeypatch.delenv("MLX_MAX_OPS_PER_BUFFER", raising=False)


# ------------------------------------------------------------------------------- advice


@pytest.mark.parametrize(("mac_os", "says"), [(True, "System Settings"), (False, "pactl")])
def test_microphone_advice(mac_os: bool, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "MACOS", mac_os)
    assert says in system.microphone_advice()


@pytest.mark.parametrize(
    "name", ["External Headphones", "Anna's AirPods Pro", "USB Headset", "Galaxy Buds", "EarPods"]
)
def test_headphones(name: str) -> None:
    assert system.headphones(name)


@pytest.mark.parametrize("name", ["MacBook Pro Speakers", "Built-in Output", "HDMI", "default"])
def test_speakers(name: str) -> None:
    assert not system.headphones(name)


@pytest.mark.parametrize(
    "name", ["Anna’s AirPods Pro", "WH-1000XM5", "Galaxy Buds2", "Beats Studio", "Bose QC 45"]
)
def test_bluetooth(name: str) -> None:
    assert system.bluetooth(name)


@pytest.mark.parametrize(
    "name", ["MacBook Pro Microphone", "USB Headset", "External Headphones", "pulse", "EarPods"]
)
def test_by_wire(name: str) -> None:
    assert not system.bluetooth(name)


def test_nothing_else_in_the_app_asks_for_the_platform() -> None:
    folder = Path(system.__file__).parent
    asking = re.compile(r"sys\.platform|platform\.(system|machine|mac_ver)\(|os\.uname")
    found = {p.name for p in folder.rglob("*.py") if asking.search(p.read_text(encoding="utf-8"))}
    assert found == {"platform.py"}
