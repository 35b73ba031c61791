"""The one place that knows the platform: macOS first, Linux for development.

Says what machine this is, and asks the system to treat a conversation as urgent: no App Nap, the
fast cores, weights that stay in memory. Knows nothing of models and sound streams.

What talks to macOS goes through ctypes, without further packages. It was written from Apple's
headers and has never run on a Mac: there was none. What could be tried without one is the calls'
arguments, against stand-ins for the libraries (`tests/moshi_local/test_platform.py`). So every
failure becomes a note of what was not possible, and the program continues.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import platform
import re
import resource
import subprocess
import sys
import threading
import webbrowser
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx

from moshi_mlx import backend

__all__ = [
    "Machine",
    "allow_open_files",
    "asks_for_microphone",
    "batch_gpu_work",
    "bluetooth",
    "default_devices",
    "first_callback_seconds",
    "headphones",
    "keep_awake_and_fast",
    "machine",
    "memory_available",
    "microphone_advice",
    "microphone_permission",
    "open_in_browser",
    "peak_memory",
    "prefer_this_thread",
    "quick_switches",
    "reopen_for_permission",
    "sound_latency",
    "under_memory_pressure",
]

MACOS = platform.system() == "Darwin"

# Where macOS has them; since macOS 11 some are files only for the loader.
_OBJC = "/usr/lib/libobjc.A.dylib"
_SYSTEM = "/usr/lib/libSystem.B.dylib"
_FOUNDATION = "/System/Library/Frameworks/Foundation.framework/Foundation"
_AV_FOUNDATION = "/System/Library/Frameworks/AVFoundation.framework/AVFoundation"
_CORE_AUDIO = "/System/Library/Frameworks/CoreAudio.framework/CoreAudio"

# Foundation/NSProcessInfo.h, NSActivityOptions (64 bits).
_USER_INITIATED = 0x00FF_FFFF | 1 << 20  # with NSActivityIdleSystemSleepDisabled
_LATENCY_CRITICAL = 0xFF_0000_0000
# sys/qos.h
_QOS_USER_INTERACTIVE = 0x21
# CoreAudio/AudioHardware.h and AudioHardwareBase.h
_SYSTEM_OBJECT = 1
_GLOBAL_SCOPE = int.from_bytes(b"glob")
_DEFAULT_INPUT = int.from_bytes(b"dIn ")
_DEFAULT_OUTPUT = int.from_bytes(b"dOut")
_RUN_LOOP = int.from_bytes(b"rnlp")
# AVFoundation/AVCaptureDevice.h, AVAuthorizationStatus
_AUTHORIZATION = {0: "not determined", 1: "restricted", 2: "denied", 3: "authorized"}
_SMALL_BUFFER = 64
"""pa_mac_core.c, PA_MAC_SMALL_BUFFER_SIZE (frames)."""

_SYSCTL = "/usr/sbin/sysctl"
_SYSCTL_NAMES = (
    "hw.memsize",
    "hw.physicalcpu",
    "hw.perflevel0.physicalcpu",  # performance cores, on Apple Silicon
    "hw.perflevel1.physicalcpu",  # efficiency cores
    "machdep.cpu.brand_string",
)
_PRESSURE = "kern.memorystatus_vm_pressure_level"  # 1 normal, 2 warning, 4 critical
_CGROUP = Path("/sys/fs/cgroup")

SWITCH_SECONDS = 0.001
"""So long a thread may keep Python to itself while the sound card's waits for it, of a block of
20 ms; Python's own 5 ms can come several times in a row."""


# ------------------------------------------------------------------------------ the machine


@dataclass(frozen=True, slots=True)
class Machine:
    """What the program runs on. Memory in bytes; 0 where the system does not say.

    chip: "Apple M2 Pro", or the processor's name.
    cores: physical ones on macOS, those the program may use on Linux.
    performance_cores: of these, the fast ones; None where there is one kind.
    memory_total: what there is, or what the container may use.
    memory_available: what could be had now without swapping.
    gpu_memory: what the GPU may use at most; None where MLX computes on the CPU.
    backend: "gpu" or "cpu", where MLX computes; `device` is that one's name.
    """

    chip: str
    cores: int
    performance_cores: int | None
    memory_total: int
    memory_available: int
    gpu_memory: int | None
    os: str
    python: str
    mlx: str
    backend: str
    device: str

    @property
    def usable_memory(self) -> int:
        """What a model may take at most (bytes).

        On a Mac an eighth of all memory less than the GPU may have, since that is the same memory:
        8 bits in 16 GB would leave 6.7 GB to macOS and all other programs.
        """
        if self.gpu_memory is None:
            return self.memory_total
        shared = self.os.startswith("macOS")
        return min(self.memory_total, self.gpu_memory - (self.memory_total // 8 if shared else 0))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def machine() -> Machine:
    """This machine, as it is now; takes some milliseconds."""
    chip, cores, fast, total = _mac_hardware() if MACOS else _linux_hardware()
    gpu = mx.default_device() == mx.Device(mx.gpu)
    info = _device_info()
    gpu_memory = info.get("max_recommended_working_set_size") or info.get("total_memory")
    system = f"macOS {_macos_version()}" if MACOS else _linux_name()
    return Machine(
        chip=chip,
        cores=cores,
        performance_cores=fast,
        memory_total=total,
        memory_available=memory_available(),
        gpu_memory=int(gpu_memory) if gpu and gpu_memory else None,
        os=system,
        python=platform.python_version(),
        mlx=importlib.metadata.version("mlx"),
        backend="gpu" if gpu else "cpu",
        device=str(info.get("device_name", chip)),
    )


def memory_available() -> int:
    """Bytes that could be had now without swapping; 0 where the system does not say.

    On macOS free, speculative and inactive pages, as psutil counts them; on Linux MemAvailable, or
    what the container has left if that is less.
    """
    if MACOS:
        return available_from_vm_stat(_output("/usr/bin/vm_stat"))
    free = memory_from_meminfo(_text(Path("/proc/meminfo"))).get("MemAvailable", 0)
    limit = _container_limit()
    if limit is None:
        return free
    # Files that are merely cached count as used, but make room.
    cached = re.search(r"^inactive_file (\d+)", _text(_CGROUP / "memory.stat"), re.MULTILINE)
    used = _number(_text(_CGROUP / "memory.current")) - (int(cached[1]) if cached else 0)
    return max(0, min(free, limit - max(0, used)))


def peak_memory() -> int:
    """The most memory that this process has had at once (bytes), with what MLX had on a GPU."""
    unit = 1 if MACOS else 1024  # of ru_maxrss
    on_gpu = mx.get_peak_memory() if backend.on_gpu() else 0
    return on_gpu + resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def values_from_sysctl(text: str) -> dict[str, str]:
    """The lines `name: value` of sysctl; names that a Mac does not have are missing."""
    pairs = (line.partition(": ") for line in text.splitlines())
    return {name.strip(): value.strip() for name, colon, value in pairs if colon}


def under_memory_pressure() -> bool | None:
    """Whether macOS is short of memory; None elsewhere, or if it does not say.

    On a Mac, little free memory says nothing: the system compresses, and drops what it cached.
    """
    return pressure_from_sysctl(_output(_SYSCTL, _PRESSURE)) if MACOS else None


def pressure_from_sysctl(text: str) -> bool | None:
    """Whether the level that sysctl prints is above normal; None if it prints none."""
    level = _number(values_from_sysctl(text).get(_PRESSURE, ""))
    return level > 1 if level else None


def available_from_vm_stat(text: str) -> int:
    """Free, speculative and inactive pages of `vm_stat`, in bytes; 0 if it says nothing."""
    size = re.search(r"page size of (\d+) bytes", text)
    if size is None:
        return 0
    kinds = r"^Pages (?:free|speculative|inactive):\s+(\d+)\."
    return int(size[1]) * sum(int(n) for n in re.findall(kinds, text, re.MULTILINE))


def memory_from_meminfo(text: str) -> dict[str, int]:
    """The lines of /proc/meminfo that are in kB, in bytes."""
    return {
        name: 1024 * int(kilobytes)
        for name, kilobytes in re.findall(r"^(\S+):\s+(\d+) kB$", text, re.MULTILINE)
    }


def chip_from_cpuinfo(text: str) -> str:
    """The processor's name in /proc/cpuinfo, or "" (most ARM kernels say none)."""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else ""


def _mac_hardware() -> tuple[str, int, int | None, int]:
    """Chip, cores, performance cores, memory."""
    values = values_from_sysctl(_output(_SYSCTL, *_SYSCTL_NAMES))
    fast = _number(values.get("hw.perflevel0.physicalcpu", ""))
    slow = _number(values.get("hw.perflevel1.physicalcpu", ""))
    return (
        values.get("machdep.cpu.brand_string") or platform.machine(),
        _number(values.get("hw.physicalcpu", "")) or os.cpu_count() or 1,
        fast if fast and slow else None,
        _number(values.get("hw.memsize", "")),
    )


def _linux_hardware() -> tuple[str, int, int | None, int]:
    """Chip, cores, None, memory."""
    total = memory_from_meminfo(_text(Path("/proc/meminfo"))).get("MemTotal", 0)
    limits = (total, _container_limit(), _address_space_left())
    total = min(filter(None, limits), default=0)
    with suppress(AttributeError, OSError):
        return _linux_chip(), len(os.sched_getaffinity(0)), None, total
    return _linux_chip(), os.cpu_count() or 1, None, total


def _linux_chip() -> str:
    return chip_from_cpuinfo(_text(Path("/proc/cpuinfo"))) or platform.machine()


def _linux_name() -> str:
    with suppress(OSError):
        name = platform.freedesktop_os_release().get("PRETTY_NAME", platform.system())
        return f"{name}, {platform.system()} {platform.release()}"
    return f"{platform.system()} {platform.release()}"


def _address_space_left() -> int | None:
    """Bytes that this process may still map on Linux; None without a limit (`ulimit -v`)."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return None
    pages = _number(_text(Path("/proc/self/statm")).partition(" ")[0])
    return max(1, limit - pages * resource.getpagesize())


def _container_limit() -> int | None:
    """Bytes that a Linux container may use; None without a limit (or with the old cgroups)."""
    return _number(_text(_CGROUP / "memory.max")) or None


def _macos_version() -> str:
    """As the system says it: a Python built with an older SDK is told 16 where it is 26."""
    return _output("/usr/bin/sw_vers", "-productVersion").strip() or platform.mac_ver()[0]


def _device_info() -> Mapping[str, Any]:
    """What MLX says of its device."""
    with suppress(Exception):  # a backend that cannot say must not end the program
        return mx.device_info()
    return {}


def _output(*command: str) -> str:
    """What a program of the system prints; "" if it cannot be run. Some lines may be missing."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _number(text: str) -> int:
    """A whole number, or 0."""
    return int(text) if text.strip().isdecimal() else 0


# ------------------------------------------------------------------------ fast and awake


def allow_open_files(count: int) -> None:
    """Lets the process open this many files and sockets, as far as the system allows it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


@contextmanager
def keep_awake_and_fast(reason: str = "a voice conversation") -> Iterator[list[str]]:
    """While it lasts, macOS neither slows the program down in the background nor goes to sleep.

    An activity of NSProcessInfo that is user-initiated and latency-critical: no App Nap, exact
    timers. Gives notes of what was not possible, to be shown or not. On Linux it does nothing.
    """
    notes: list[str] = []
    end: Callable[[], None] | None = None
    if MACOS:
        try:
            end = _begin_activity(reason)
        except Exception as error:  # whatever ctypes and the system come up with
            notes.append(f"macOS may slow this program down in the background ({error})")
    try:
        yield notes
    finally:
        if end is not None:
            with suppress(Exception):
                end()


def prefer_this_thread() -> str | None:
    """Asks macOS for the fast cores for the calling thread; returns a note if that failed.

    Quality of service "user interactive", the highest that a thread may take for itself. Linux
    has no equivalent without privileges.
    """
    if not MACOS:
        return None
    try:
        set_class = _function(
            _library(_SYSTEM),
            "pthread_set_qos_class_self_np",
            ctypes.c_int,
            ctypes.c_uint,
            ctypes.c_int,
        )
        status = set_class(_QOS_USER_INTERACTIVE, 0)
    except Exception as error:
        return f"macOS may put the model on slow cores ({error})"
    return f"macOS may put the model on slow cores (error {status})" if status else None


@contextmanager
def quick_switches() -> Iterator[None]:
    """Let the sound card's thread have Python sooner, while the block runs."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_SECONDS)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def batch_gpu_work() -> None:
    """Lets MLX hand more to Metal at once, unless the user has said how much.

    Each batch costs, and a frame is a thousand small kernels: others measured 11 to 13 % on M1 to
    M4, and nothing on M5. To be called before MLX computes; never tried on a Mac by us.
    """
    if MACOS and not _mac_hardware()[0].startswith("Apple M5"):
        os.environ.setdefault("MLX_MAX_OPS_PER_BUFFER", "1000")


def _begin_activity(reason: str) -> Callable[[], None]:
    """Begins an activity of NSProcessInfo; returns what ends it. Raises OSError, AttributeError."""
    _library(_FOUNDATION)  # registers its classes
    objc = _ObjectiveC()
    with objc.pool():
        processes = objc.get_class("NSProcessInfo")
        process = _must(objc.send(processes, "processInfo", _POINTER), "the process")
        text = objc.string(reason)
        options = ctypes.c_uint64, _USER_INITIATED | _LATENCY_CRITICAL
        begin = "beginActivityWithOptions:reason:"
        activity = _must(
            objc.send(process, begin, _POINTER, options, (_POINTER, text)), "the activity"
        )
        objc.send(activity, "retain", _POINTER)  # else it ends with the pool

    def end() -> None:
        with objc.pool():
            objc.send(process, "endActivity:", None, (_POINTER, activity))
            objc.send(activity, "release", None)

    return end


_POINTER = ctypes.c_void_p


class _ObjectiveC:
    """Messages to objects of Objective-C. Raises OSError, AttributeError."""

    def __init__(self) -> None:
        self._library = library = _library(_OBJC)
        self._class = _function(library, "objc_getClass", _POINTER, ctypes.c_char_p)
        self._selector = _function(library, "sel_registerName", _POINTER, ctypes.c_char_p)
        self._push = _function(library, "objc_autoreleasePoolPush", _POINTER)
        self._pop = _function(library, "objc_autoreleasePoolPop", None, _POINTER)

    @contextmanager
    def pool(self) -> Iterator[None]:
        """For what is returned to us; a thread of Python has no pool."""
        pool = self._push()
        try:
            yield
        finally:
            self._pop(pool)

    def get_class(self, name: str) -> int:
        """The class with this name."""
        return _must(self._class(name.encode()), name)

    def send(self, receiver: int, selector: str, result: Any, *arguments: tuple[Any, Any]) -> Any:
        """What `receiver` answers; arguments as (type, value)."""
        # One prototype per message: on arm64 a call by a wrong one puts arguments elsewhere.
        types = [kind for kind, _ in arguments]
        call = _function(self._library, "objc_msgSend", result, _POINTER, _POINTER, *types)
        return call(receiver, self._selector(selector.encode()), *(v for _, v in arguments))

    def string(self, text: str) -> int:
        """An NSString, until the pool ends."""
        argument = ctypes.c_char_p, text.encode()
        strings = self.get_class("NSString")
        return _must(self.send(strings, "stringWithUTF8String:", _POINTER, argument), "the string")


def _must(found: int | None, what: str) -> int:
    if not found:
        raise OSError(f"{what} is not there")
    return found


def _library(path: str) -> Any:
    """A library of the system; raises OSError. Tests put stand-ins here."""
    return ctypes.CDLL(path)


def _function(library: Any, name: str, result: Any, *arguments: Any) -> Any:
    """A separate function with these types, not the one that the library shares."""
    function = library[name]
    function.restype = result
    function.argtypes = arguments
    return function


# ------------------------------------------------------------------------------ sound


class _Address(ctypes.Structure):
    """AudioObjectPropertyAddress; element 0 is the main one."""

    _fields_ = (
        ("selector", ctypes.c_uint32),
        ("scope", ctypes.c_uint32),
        ("element", ctypes.c_uint32),
    )


def default_devices() -> tuple[int, int] | None:
    """CoreAudio's numbers of the default input and output; None elsewhere, or if it fails.

    They are not PortAudio's numbers: only that they change says something, namely that the user
    has plugged something in or chosen another device. May be asked at any time, streams or not;
    0 is none.
    """
    if not MACOS:
        return None
    try:
        read = _core_audio()
        return read(_DEFAULT_INPUT), read(_DEFAULT_OUTPUT)
    except Exception:  # whatever ctypes and the system come up with
        return None


@cache
def _core_audio() -> Callable[[int], int]:
    """A function that reads a 32-bit property of the audio system. Raises OSError and others."""
    library = _library(_CORE_AUDIO)
    get = _function(
        library,
        "AudioObjectGetPropertyData",
        ctypes.c_int32,
        ctypes.c_uint32,
        ctypes.POINTER(_Address),
        ctypes.c_uint32,
        ctypes.c_void_p,
        ctypes.POINTER(ctypes.c_uint32),
        ctypes.c_void_p,
    )
    put = _function(
        library,
        "AudioObjectSetPropertyData",
        ctypes.c_int32,
        ctypes.c_uint32,
        ctypes.POINTER(_Address),
        ctypes.c_uint32,
        ctypes.c_void_p,
        ctypes.c_uint32,
        ctypes.c_void_p,
    )
    # A program without a run loop hears of no change unless CoreAudio may use its own thread;
    # jackd asks for the same. If it refuses, the first answer still holds.
    address = _Address(_RUN_LOOP, _GLOBAL_SCOPE, 0)
    no_loop = ctypes.c_void_p(None)
    put(
        _SYSTEM_OBJECT,
        ctypes.byref(address),
        0,
        None,
        ctypes.sizeof(no_loop),
        ctypes.byref(no_loop),
    )

    def read(selector: int) -> int:
        address = _Address(selector, _GLOBAL_SCOPE, 0)
        value = ctypes.c_uint32(0)
        size = ctypes.c_uint32(ctypes.sizeof(value))
        status = get(
            _SYSTEM_OBJECT,
            ctypes.byref(address),
            0,
            None,
            ctypes.byref(size),
            ctypes.byref(value),
        )
        if status:
            raise OSError(f"CoreAudio says {status}")
        return value.value

    return read


def microphone_permission() -> str | None:
    """Whether macOS lets the terminal program use the microphone.

    "authorized", "denied", "restricted" (by an administrator) or "not determined" (the
    user was not asked yet); None elsewhere, or where it cannot be known.
    """
    if not MACOS:
        return None
    try:
        _library(_FOUNDATION)
        _library(_AV_FOUNDATION)
        objc = _ObjectiveC()
        with objc.pool():
            status = objc.send(
                objc.get_class("AVCaptureDevice"),
                "authorizationStatusForMediaType:",
                ctypes.c_long,
                (_POINTER, objc.string("soun")),  # AVMediaTypeAudio
            )
        return _AUTHORIZATION.get(status)
    except Exception:  # whatever ctypes and the system come up with
        return None


def asks_for_microphone() -> bool:
    """Whether the system may ask the user for permission when a microphone is started."""
    return MACOS and microphone_permission() in (None, "not determined")


def reopen_for_permission() -> bool:
    """Whether a microphone that is opened now may need to be opened again to be heard.

    So it is on macOS if the user has not allowed it yet: Apple does not say whether sound begins
    by itself after "Allow".
    """
    return MACOS and microphone_permission() != "authorized"


def microphone_advice() -> str:
    """What to do when the microphone gives nothing but silence."""
    if MACOS:
        return (
            "allow your terminal program to use the microphone: System Settings, Privacy & "
            "Security, Microphone; then quit that program and open it again"
        )
    return "is it muted, or is another one the default? `pactl list sources short` lists them"


_HEADPHONES = re.compile(
    r"head(phone|set)|ear(phone|bud|pod)|air ?pods|\bbuds|in-ear|kopfhörer|écouteurs",
    re.IGNORECASE,
)


def open_in_browser(url: str) -> bool:
    """Opens an address in the user's browser; False where there is none with a window.

    Does not wait: some browsers keep the caller until they are closed.
    """
    if sys.platform == "linux" and not any(
        os.environ.get(name) for name in ("BROWSER", "DISPLAY", "WAYLAND_DISPLAY")
    ):
        return False  # one in the terminal would take it over

    def opened() -> None:
        with suppress(OSError, webbrowser.Error):
            webbrowser.open(url)

    threading.Thread(target=opened, daemon=True, name="browser").start()
    return True


def headphones(name: str) -> bool:
    """Whether an output device's name says that only the user hears it, so that no echo returns.

    A guess by the name; "External Headphones" is what macOS calls the headphone socket.
    """
    return bool(_HEADPHONES.search(name))


_BLUETOOTH = re.compile(
    r"bluetooth|air ?pods|\bbuds|\bbeats\b|\bbose\b|\bjabra\b|\bW[FH]-\w*\d|hands-?free",
    re.IGNORECASE,
)


def bluetooth(name: str) -> bool:
    """Whether a device's name says that it is connected by Bluetooth: a guess.

    Such a headset takes seconds to begin, since it changes from listening to a call.
    """
    return bool(_BLUETOOTH.search(name))


def first_callback_seconds() -> float:
    """How long a stream may take from its start to its first callback.

    AirPods and others have been seen to take 1 to 6 s on macOS.
    """
    return 8.0 if MACOS else 2.0


def sound_latency(
    low_latency: float, device_rate: float, rate: float, block_seconds: float
) -> float:
    """What to ask of PortAudio as latency for a stream in one direction (seconds).

    On macOS PortAudio makes the device's buffer of it, whose length is the number of frames in
    latency · `rate`, less the device's fixed latency, rounded up to whole blocks of the stream; the
    device takes that number at its own rate (CalculateOptimalBufferSize in pa_mac_core.c). So this
    asks for a buffer of `block_seconds`. The fixed latency is in `low_latency`, what PortAudio
    gives as the device's lowest: (fixed + 64) / `device_rate`.

    Elsewhere it is 0.08. On the virtual card, on a Linux machine with two to six times the work it
    could do, runs of 15 to 20 s had xruns: 0.04 ("low") in 2 of 3, 0.06 in 1 of 6, 0.08 in 0 of 6
    (a minute at 0.08 had 4 once). From microphone to speaker it was 220 ms at 0.04 and 280 ms at
    0.08.
    """
    if not MACOS:
        return 0.08
    fixed = max(0, round(low_latency * device_rate) - _SMALL_BUFFER)
    return (round(block_seconds * device_rate) + fixed) / rate
