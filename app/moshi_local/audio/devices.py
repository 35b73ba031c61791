"""The sound devices that PortAudio sees: listed, found by number or name, looked for again.

Opens no stream.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from moshi_mlx import AudioDeviceError

from .quiet import quiet_libraries

__all__ = [
    "DeviceInfo",
    "choose_device",
    "choose_devices",
    "find_device",
    "is_number",
    "lasting_name",
    "list_devices",
    "print_devices",
    "reason_of",
    "refresh_devices",
    "sounddevice",
]


_TYPED = dict.fromkeys(map(ord, "\u2018\u2019\u201b\u2032\u02b9\u02bc\u00b4\u0060"), "'")
_TYPED |= dict.fromkeys(map(ord, "\u201c\u201d\u201f\u2033\u00ab\u00bb"), '"')
"""What a keyboard types for marks that a system puts into names."""
_CAUSES = {
    -9985: "another program may be using it",
    -9996: "it is gone",
    -9997: "it does not run at this rate",
    -9998: "it does not have as many channels",
}
"""What PortAudio's error codes mean, where its words do not say it."""


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """A sound device as PortAudio lists it; `inputs` and `outputs` are channels, `rate` its own
    rate (Hz), `low_input` and `low_output` the least latencies that PortAudio advises (seconds).
    """

    index: int
    name: str
    inputs: int
    outputs: int
    rate: int = 0
    host_api: str = ""
    default_input: bool = False
    default_output: bool = False
    low_input: float = 0.0
    low_output: float = 0.0

    def channels(self, kind: str) -> int:
        """The number of channels of `kind`, "input" or "output"."""
        return self.inputs if kind == "input" else self.outputs

    def is_default(self, kind: str) -> bool:
        """Whether the system takes this one when none is named."""
        return self.default_input if kind == "input" else self.default_output

    def low_latency(self, kind: str) -> float:
        """The least latency that PortAudio advises for `kind` (seconds)."""
        return self.low_input if kind == "input" else self.low_output


def sounddevice() -> Any:
    """The sounddevice module; imported late, since it needs the PortAudio library."""
    try:
        with quiet_libraries():  # it starts PortAudio
            import sounddevice
    except OSError as error:
        raise AudioDeviceError(
            f"the PortAudio library is missing ({error}); "
            "on Debian or Ubuntu: apt-get install libportaudio2"
        ) from error
    return sounddevice


def list_devices() -> list[DeviceInfo]:
    """All sound devices that PortAudio saw when it was started or refreshed last."""
    sd = sounddevice()
    try:
        host_apis = sd.query_hostapis()
        numbers = sorted(number for api in host_apis for number in api["devices"])
        found = [_query(sd, number) for number in numbers]
    except sd.PortAudioError as error:
        raise AudioDeviceError(f"cannot list the sound devices: {reason_of(error)}") from error
    defaults = [_default(sd, kind) for kind in ("input", "output")]
    return [
        DeviceInfo(
            d["index"],
            d["name"],
            d["max_input_channels"],
            d["max_output_channels"],
            round(d["default_samplerate"]),
            host_apis[d["hostapi"]]["name"],
            d["index"] == defaults[0],
            d["index"] == defaults[1],
            d["default_low_input_latency"],
            d["default_low_output_latency"],
        )
        for d in found
    ]


def _query(sd: Any, number: int) -> dict[str, Any]:
    """What sounddevice says of a device, also where the name is not UTF-8, which it demands."""
    try:
        return dict(sd.query_devices(number))
    except UnicodeDecodeError:
        info = sd._lib.Pa_GetDeviceInfo(number)
        return {
            "index": number,
            "name": sd._ffi.string(info.name).decode(errors="replace"),
            "hostapi": info.hostApi,
            "max_input_channels": info.maxInputChannels,
            "max_output_channels": info.maxOutputChannels,
            "default_samplerate": info.defaultSampleRate,
            "default_low_input_latency": info.defaultLowInputLatency,
            "default_low_output_latency": info.defaultLowOutputLatency,
        }


def _default(sd: Any, kind: str) -> int:
    """The number of the system's own device, or -1."""
    try:
        return int(sd.query_devices(None, kind)["index"])
    except UnicodeDecodeError:
        default = getattr(sd._lib, f"Pa_GetDefault{kind.capitalize()}Device")
        return int(default())
    except (sd.PortAudioError, ValueError):
        return -1


def find_device(spec: str | int, kind: str, devices: Sequence[DeviceInfo]) -> DeviceInfo:
    """The device with number `spec`, or the one device whose name contains `spec`.

    `kind` is "input" or "output". A whole name goes before a part of one; case, the kind of
    apostrophe, quotation mark, dash or space, marks that cannot be seen, and how an accent or a
    digit is encoded do not count: "Anna's iPhone" is found where macOS writes "Anna’s iPhone".

    Raises AudioDeviceError, with the devices there are, when none or several fit.
    """
    usable = [d for d in devices if d.channels(kind) > 0]
    listing = ", ".join(f'{d.index} "{d.name}"' for d in usable) or "none"
    text = str(spec).strip()
    if is_number(text):
        fits = [d for d in usable if str(d.index) == (text.lstrip("0") or "0")]
    else:
        wanted = _plain(text)
        names = [(d, _plain(d.name)) for d in usable]
        fits = [d for d, name in names if name == wanted]
        fits = fits or [d for d, name in names if wanted and wanted in name]
    if len(fits) == 1:
        return fits[0]
    problem = "matches several devices" if fits else "matches no device"
    raise AudioDeviceError(f'{kind} "{text}" {problem}; {kind} devices: {listing}')


def is_number(spec: str) -> bool:
    """Whether `spec` is a device's number. Other scripts' digits, as in "Mic²", are of a name."""
    return spec.isascii() and spec.isdigit()


def lasting_name(device: DeviceInfo, kind: str, devices: Sequence[DeviceInfo]) -> str:
    """What finds `device` again after the list has changed: its name, where that is enough.

    A Bluetooth headset is two devices of one name on macOS, one per direction: `kind` tells them
    apart.
    """
    name = _plain(device.name)
    same = [other for other in devices if _plain(other.name) == name and other.channels(kind)]
    return device.name if len(same) == 1 else str(device.index)


def _plain(name: str) -> str:
    """A name as a keyboard types it: no case, one kind of each mark, none that cannot be seen."""
    text = unicodedata.normalize("NFKC", name.translate(_TYPED)).casefold()
    typed = (_plain_character(c) for c in unicodedata.normalize("NFKC", text))
    return " ".join("".join(typed).split())


def _plain_character(c: str) -> str:
    category = unicodedata.category(c)
    if category == "Pd":
        return "-"
    unseen = category in ("Cf", "Cc") and not c.isspace()
    return "" if unseen or "\ufe00" <= c <= "\ufe0f" else c  # those choose how an emoji is drawn


def choose_devices(input: str | None, output: str | None) -> tuple[DeviceInfo, DeviceInfo]:
    """The devices asked for; None for the system's own. Raises AudioDeviceError."""
    devices = list_devices()
    return _chosen("input", input, devices), _chosen("output", output, devices)


def choose_device(kind: str, spec: str | None) -> DeviceInfo:
    """One of them alone, "input" or "output". Raises AudioDeviceError."""
    return _chosen(kind, spec, list_devices())


def _chosen(kind: str, spec: str | None, devices: Sequence[DeviceInfo]) -> DeviceInfo:
    if spec is not None:
        return find_device(spec, kind, devices)
    usable = [d for d in devices if d.channels(kind)]
    if not usable:
        raise AudioDeviceError(f"there is no {kind} device; plug one in, or use files in its place")
    return next((d for d in usable if d.is_default(kind)), usable[0])


def print_devices(console: Console, devices: Sequence[DeviceInfo]) -> None:
    """A table, a line a device; the system's own are marked."""
    table = Table(box=None, pad_edge=False, header_style="")
    for name in ("", "device", "in", "out", "rate", "through", "default"):
        number = name in ("", "in", "out", "rate")
        table.add_column(name, justify="right" if number else "left", overflow="fold")
    for d in devices:
        marks = [kind for kind in ("input", "output") if d.is_default(kind)]
        row = (d.index, d.name, d.inputs or "", d.outputs or "", d.rate, d.host_api)
        # As Text: a name may have brackets, which rich would read as markup.
        table.add_row(*(Text(str(cell)) for cell in row), " and ".join(marks))
    if devices:
        console.print(table, highlight=False)
    else:
        console.print("no sound devices", highlight=False)


def refresh_devices() -> None:
    """Make PortAudio look for devices again (its list is frozen otherwise).

    It ends all streams of this process that PortAudio has open, whoever opened them. sounddevice
    has no public call for this; these two are what its own issue tracker advises.
    """
    sd = sounddevice()
    try:
        with quiet_libraries():
            sd._terminate()
            sd._initialize()
    except sd.PortAudioError as error:
        raise AudioDeviceError(f"PortAudio does not start again: {reason_of(error)}") from error


def reason_of(error: Exception) -> str:
    """PortAudio's words on one line, with those of the sound system below it, and the cause."""
    if isinstance(error, UnicodeError) or not error.args:
        return " ".join(str(error).split())
    words, code, host = (*error.args, None, None)[:3]
    below = host[2] if isinstance(host, tuple) and len(host) == 3 else ""
    cause = _CAUSES.get(code) if isinstance(code, int) else None
    parts = [" ".join(str(part).split()) for part in (words, below) if part]
    return ": ".join(parts) + (f" ({cause})" if cause else "")
