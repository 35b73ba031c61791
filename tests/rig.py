"""A sound card without hardware: PulseAudio in a folder of its own, as the tests need it.

One stereo null sink: its left side is the room at the microphone, its right side the speaker.
What is played into `vmic` is heard by the program under test; what that plays is on the right.
A recording of the null sink's monitor has both sides on one clock.

    with VirtualCard.start(folder) as card:
        program = subprocess.Popen([...], env=card.environment)
        with card.recording() as both:          # float32 [samples, 2] when the block has ended
            card.play(Path("question.wav"))
        with card.echo(60, 0.3):                # the microphone hears the speaker
            ...
        card.kill()                             # the sound server crashes,
        card.plug_in()                          # and comes back

Needs pulseaudio, pulseaudio-utils, libasound2-plugins and libportaudio2; no root, no systemd.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

RATE = 24_000
PROGRAMS = ("pulseaudio", "pactl", "paplay", "parec")
START_SECONDS = 10.0
PRIORITY = -10
"""Niceness of the sound server and what talks to it, where the system allows that."""

# norewinds: without it some streams stall for a second at their start.
SERVER = """\
load-module module-native-protocol-unix auth-anonymous=1 socket={folder}/native
load-module module-null-sink sink_name=rig norewinds=1 rate={rate} channels=2 \
channel_map=front-left,front-right
load-module module-remap-sink sink_name=vmic master=rig channels=1 channel_map=mono \
master_channel_map=front-left remix=no
load-module module-remap-sink sink_name=vspk master=rig channels=1 channel_map=mono \
master_channel_map=front-right remix=no
load-module module-remap-source source_name=mic master=rig.monitor channels=1 channel_map=mono \
master_channel_map=front-left remix=no
set-default-sink vspk
set-default-source mic
"""

# Only the plugin, so that PortAudio lists two devices and does not probe for hardware.
ALSA = """\
pcm.!default { type pulse hint { show on description "Default (PulseAudio)" } }
ctl.!default { type pulse }
pcm.pulse { type pulse hint { show on description "PulseAudio" } }
"""


class RigError(Exception):
    """The virtual card did not come up."""


def prefer(process: subprocess.Popen[Any]) -> None:
    """Give `process` PRIORITY if we may: a sound card's clock does not wait for busy machines.

    The process must lead a session: Linux shares the processors between sessions first
    (sched_autogroup), and only inside one by niceness.
    """
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, process.pid, PRIORITY)
        Path(f"/proc/{process.pid}/autogroup").write_text(str(PRIORITY))


def missing_programs() -> str:
    """The programs that are not installed, or ""."""
    return ", ".join(p for p in PROGRAMS if shutil.which(p) is None)


@dataclass
class Recording:
    """Both sides of the talk: [:, 0] at the microphone, [:, 1] at the speaker."""

    samples: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 2), np.float32))


class VirtualCard:
    """A running virtual sound card; `environment` is for the programs that shall use it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._server: subprocess.Popen[bytes] | None = None
        self.environment = _environment(folder)

    @classmethod
    @contextmanager
    def start(cls, folder: Path) -> Iterator[VirtualCard]:
        """Start the card in `folder` (short: it holds a unix socket); stop it at the end."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        (folder / "run").mkdir(mode=0o700)
        (folder / "asound.conf").write_text(ALSA)
        (folder / "rig.pa").write_text(SERVER.format(folder=folder, rate=RATE))
        card = cls(folder)
        try:
            card.plug_in()
            yield card
        finally:
            if card._server is not None:
                card._server.terminate()
                try:
                    card._server.wait(5)
                except subprocess.TimeoutExpired:
                    card.kill()

    def plug_in(self) -> None:
        """Start the sound server, at the beginning or after `kill`; returns when it is up."""
        (self._folder / "native").unlink(missing_ok=True)
        command = ["pulseaudio", "-n", "-F", str(self._folder / "rig.pa"), "--daemonize=no"]
        command += ["--use-pid-file=no", "--exit-idle-time=-1", "--disallow-exit=yes"]
        command += ["--realtime=yes", "--high-priority=yes"]
        with (self._folder / "log").open("wb") as log:
            self._server = subprocess.Popen(
                command,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        prefer(self._server)
        self._wait_until_up(self._server)

    def kill(self) -> None:
        """End the sound server at once, as when it crashes."""
        assert self._server is not None
        self._server.kill()
        self._server.wait()
        self._server = None

    @contextmanager
    def echo(self, milliseconds: int, gain: float) -> Iterator[None]:
        """While the block runs, the microphone hears the speaker, so much later and fainter."""
        source = self._control(
            "load-module", "module-remap-source", "source_name=spkmon", "master=rig.monitor",
            "channels=1", "channel_map=mono", "master_channel_map=front-right", "remix=no",
        )  # fmt: skip
        loop = self._control(
            "load-module", "module-loopback", "source=spkmon", "sink=vmic",
            f"latency_msec={milliseconds}", f"rate={RATE}", "channels=1",
        )  # fmt: skip
        try:
            stream, deadline = None, time.monotonic() + START_SECONDS
            while stream is None and time.monotonic() < deadline:
                time.sleep(0.05)
                for entry in self._control("list", "sink-inputs").split("Sink Input #")[1:]:
                    if f"Owner Module: {loop}\n" in entry:
                        stream = entry.split("\n", 1)[0]
            if stream is None:
                raise RigError("the echo path did not come up")
            # PulseAudio's volume is cubic.
            self._control("set-sink-input-volume", stream, str(round(65536 * gain ** (1 / 3))))
            yield
        finally:
            self._control("unload-module", loop)
            self._control("unload-module", source)

    def _control(self, *arguments: str) -> str:
        done = subprocess.run(
            ["pactl", *arguments], env=self.environment, capture_output=True, text=True
        )
        if done.returncode:
            raise RigError(f"pactl {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout.strip()

    def play(self, wav: Path) -> subprocess.Popen[bytes]:
        """Begin to play `wav` into the microphone; wait on the process for its end."""
        command = ["paplay", "-d", "vmic", "--latency-msec=200", str(wav)]
        player = subprocess.Popen(command, env=self.environment, start_new_session=True)
        prefer(player)
        return player

    @contextmanager
    def recording(self) -> Iterator[Recording]:
        """Record both sides while the block runs."""
        raw = self._folder / f"both.{time.monotonic_ns()}.raw"
        command = ["parec", "-d", "rig.monitor", "--format=s16le", f"--rate={RATE}"]
        command += ["--channels=2", "--latency-msec=20", "--raw"]
        both = Recording()
        with raw.open("wb") as sound:
            recorder = subprocess.Popen(
                command, env=self.environment, stdout=sound, start_new_session=True
            )
        prefer(recorder)
        try:
            yield both
        finally:
            recorder.terminate()
            recorder.wait()
        samples = np.fromfile(raw, np.int16)
        both.samples = samples[: len(samples) // 2 * 2].reshape(-1, 2).astype(
            np.float32
        ) / np.float32(32768)
        raw.unlink()

    def _wait_until_up(self, server: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_SECONDS
        command = ["pactl", "list", "short", "sources"]
        while time.monotonic() < deadline and server.poll() is None:
            listed = subprocess.run(command, env=self.environment, capture_output=True, text=True)
            if any(line.split("\t")[1:2] == ["mic"] for line in listed.stdout.splitlines()):
                return
            time.sleep(0.05)
        log = (self._folder / "log").read_text(errors="replace").strip()
        raise RigError(f"pulseaudio did not come up in {START_SECONDS:.0f} s: {log[-500:]}")


def _environment(folder: Path) -> dict[str, str]:
    """This process's environment, with the virtual card in place of the machine's."""
    return {
        **os.environ,
        "PULSE_SERVER": f"unix:{folder}/native",
        "PULSE_RUNTIME_PATH": f"{folder}/run",
        "PULSE_STATE_PATH": f"{folder}/run",
        "PULSE_COOKIE": f"{folder}/cookie",
        "XDG_RUNTIME_DIR": str(folder),
        "ALSA_CONFIG_PATH": f"{folder}/asound.conf",
    }
