"""Moshi, the full-duplex speech-text model, in MLX: the library of moshi-local.

`load` gives a model, `Moshi.session` a conversation: sound in, sound and words out, 80 ms at a
time. `load_mimi` gives the codec alone.
"""

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

from .blas import use_openblas
from .distributions import installation_problem

if TYPE_CHECKING:
    from .backend import prepare_gpu
    from .codec import Codec
    from .config import LmConfig, MimiConfig, ModelConfig
    from .errors import (
        ArgumentError,
        AudioDeviceError,
        AudioFileError,
        CheckpointError,
        ConfigError,
        HubError,
        MoshiError,
        SessionError,
        TokenizerError,
        VerbError,
    )
    from .events import (
        Event,
        SpeechEnded,
        SpeechStarted,
        TextSaid,
        TurnEnded,
        WindowRefreshed,
        WordSpoken,
    )
    from .families import Model, Moshi, PersonaPlex, Stt, load
    from .families.transcribe import Passage
    from .families.transcription_session import HeardFrame, TranscriptionSession
    from .lm import Lm, LmOutput
    from .mimi import Mimi
    from .sampling import Sampling
    from .session import Frame, Session, Timing
    from .speech import Speech, SpokenWord
    from .text import TextTokenizer, Word
    from .transcription import HeardWord, Transcription
    from .voices import Voice, load_voice
    from .weights_mimi import load_mimi

_PARTS = {
    "ArgumentError": "errors",
    "AudioDeviceError": "errors",
    "AudioFileError": "errors",
    "CheckpointError": "errors",
    "Codec": "codec",
    "ConfigError": "errors",
    "Event": "events",
    "Frame": "session",
    "HeardFrame": "families.transcription_session",
    "HeardWord": "transcription",
    "HubError": "errors",
    "Lm": "lm",
    "LmConfig": "config",
    "LmOutput": "lm",
    "Mimi": "mimi",
    "MimiConfig": "config",
    "Model": "families",
    "ModelConfig": "config",
    "Moshi": "families",
    "MoshiError": "errors",
    "Passage": "families.transcribe",
    "PersonaPlex": "families",
    "Sampling": "sampling",
    "Session": "session",
    "SessionError": "errors",
    "Speech": "speech",
    "SpeechEnded": "events",
    "SpeechStarted": "events",
    "SpokenWord": "speech",
    "Stt": "families",
    "TextSaid": "events",
    "TextTokenizer": "text",
    "Timing": "session",
    "TokenizerError": "errors",
    "Transcription": "transcription",
    "TranscriptionSession": "families.transcription_session",
    "TurnEnded": "events",
    "VerbError": "errors",
    "Voice": "voices",
    "WindowRefreshed": "events",
    "Word": "text",
    "WordSpoken": "events",
    "load": "families",
    "load_mimi": "weights_mimi",
    "load_voice": "voices",
    "prepare_gpu": "backend",
}

__version__ = "0.1.0"

use_openblas()  # before anything imports MLX

if (_problem := installation_problem()) is not None:
    logging.getLogger(__name__).warning(_problem)

__all__ = [
    "ArgumentError",
    "AudioDeviceError",
    "AudioFileError",
    "CheckpointError",
    "Codec",
    "ConfigError",
    "Event",
    "Frame",
    "HeardFrame",
    "HeardWord",
    "HubError",
    "Lm",
    "LmConfig",
    "LmOutput",
    "Mimi",
    "MimiConfig",
    "Model",
    "ModelConfig",
    "Moshi",
    "MoshiError",
    "Passage",
    "PersonaPlex",
    "Sampling",
    "Session",
    "SessionError",
    "Speech",
    "SpeechEnded",
    "SpeechStarted",
    "SpokenWord",
    "Stt",
    "TextSaid",
    "TextTokenizer",
    "Timing",
    "TokenizerError",
    "Transcription",
    "TranscriptionSession",
    "TurnEnded",
    "VerbError",
    "Voice",
    "WindowRefreshed",
    "Word",
    "WordSpoken",
    "load",
    "load_mimi",
    "load_voice",
    "prepare_gpu",
]


def __getattr__(name: str) -> Any:
    """The parts, each imported when it is asked for."""
    if name not in _PARTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_PARTS[name]}", __name__), name)
