"""Moshi, the full-duplex speech-text model, in MLX: the library of moshi-local.

`load` gives a model, `Moshi.session` a conversation: sound in, sound and words out, 80 ms at a
time. `load_mimi` gives the codec alone.
"""

import logging

from .backend import prepare_gpu
from .codec import Codec
from .config import LmConfig, MimiConfig, ModelConfig
from .distributions import installation_problem
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
from .events import Event, SpeechEnded, SpeechStarted, WordSpoken
from .families import Model, Moshi, load
from .lm import Lm, LmOutput
from .mimi import Mimi
from .sampling import Sampling
from .session import Frame, Session, Timing
from .text import TextTokenizer, Word
from .weights_mimi import load_mimi

__version__ = "0.1.0"

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
    "Sampling",
    "Session",
    "SessionError",
    "SpeechEnded",
    "SpeechStarted",
    "TextTokenizer",
    "Timing",
    "TokenizerError",
    "VerbError",
    "Word",
    "WordSpoken",
    "load",
    "load_mimi",
    "prepare_gpu",
]
