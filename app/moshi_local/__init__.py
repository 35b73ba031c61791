"""moshi-local: voice chat with Moshi in the terminal. The library underneath is `moshi_mlx`."""

from .cli import main
from .events import DeviceLost, Event, FrameDone, Lag, Listener, Opened
from .files import FileAudio
from .live import LiveAudio
from .loop import AudioPort, LoopReport, Read, run_loop
from .stream import PortAudioDevice, SoundDevice

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
