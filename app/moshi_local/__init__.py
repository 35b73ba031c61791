"""moshi-local: voice chat with Moshi in the terminal. The library underneath is `moshi_mlx`."""

from .audio.card import LiveAudio
from .audio.files import FileAudio
from .audio.portaudio import PortAudioDevice, SoundDevice
from .cli import main
from .events import DeviceLost, Event, FrameDone, Lag, Listener, Opened
from .loop import run_loop
from .port import AudioPort, Read
from .report import LoopReport

__all__ = [
    "AudioPort",
    "DeviceLost",
    "Event",
    "FileAudio",
    "FrameDone",
    "Lag",
    "Listener",
    "LiveAudio",
    "LoopReport",
    "Opened",
    "PortAudioDevice",
    "Read",
    "SoundDevice",
    "main",
    "run_loop",
]
