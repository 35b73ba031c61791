"""moshi-local: voice chat with Moshi in the terminal. The library underneath is `moshi_mlx`."""

from .audio import DuplexDevice, LiveAudio, PortAudioDevice
from .cli import main
from .events import Event, FrameDone, Lag, Listener, Opened, Restarted
from .files import FileAudio
from .loop import AudioPort, LoopReport, Read, run_loop

__all__ = [
    "AudioPort",
    "DuplexDevice",
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
    "Restarted",
    "main",
    "run_loop",
]
