"""Offline voice chat with Moshi: the program, and its parts for those who build on them."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .audio.card import LiveAudio
    from .audio.files import FileAudio
    from .audio.portaudio import PortAudioDevice, SoundDevice
    from .cli import main
    from .conversation import Conversation
    from .engine import Engine, EngineConversation
    from .events import DeviceLost, Event, FrameDone, Lag, Listener, Opened
    from .loop import run_loop
    from .port import AudioPort, PortStatus, Read
    from .report import LoopReport, warm_up

_PARTS = {
    "AudioPort": "port",
    "Conversation": "conversation",
    "DeviceLost": "events",
    "Engine": "engine",
    "EngineConversation": "engine",
    "Event": "events",
    "FileAudio": "audio.files",
    "FrameDone": "events",
    "Lag": "events",
    "Listener": "events",
    "LiveAudio": "audio.card",
    "LoopReport": "report",
    "Opened": "events",
    "PortAudioDevice": "audio.portaudio",
    "PortStatus": "port",
    "Read": "port",
    "SoundDevice": "audio.portaudio",
    "main": "cli",
    "run_loop": "loop",
    "warm_up": "report",
}

__all__ = [
    "AudioPort",
    "Conversation",
    "DeviceLost",
    "Engine",
    "EngineConversation",
    "Event",
    "FileAudio",
    "FrameDone",
    "Lag",
    "Listener",
    "LiveAudio",
    "LoopReport",
    "Opened",
    "PortAudioDevice",
    "PortStatus",
    "Read",
    "SoundDevice",
    "main",
    "run_loop",
    "warm_up",
]


def __getattr__(name: str) -> Any:
    """The parts, each imported when it is asked for."""
    if name not in _PARTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_PARTS[name]}", __name__), name)
