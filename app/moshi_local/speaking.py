"""`moshi-local speak`: a text, a file or what arrives on standard input becomes speech.

Joins the model's speech, what takes it (a file, a pipe, the speaker), and the files of its words.
Knows nothing of how a model speaks.
"""

from __future__ import annotations

import json
import secrets
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Protocol

import numpy as np
import typer
from rich.console import Console
from rich.progress import Progress, TextColumn

from moshi_mlx import ArgumentError, Model, Word, __version__
from moshi_mlx.arguments import real
from moshi_mlx.arrays import Pcm
from moshi_mlx.files import signals_interrupt
from moshi_mlx.hub import canonical
from moshi_mlx.outputs import Output, WholeFile, check_outputs

from . import arguments as a
from . import platform as system
from .assembly import consoles, first_that_can, inputs_of, load_model
from .audio.devices import choose_device
from .audio.files import SPEECH_FORMATS, SoundTags, SoundWriter
from .audio.playback import Playback
from .audio.portaudio import PortAudioDevice
from .audio.quiet import quiet_libraries
from .observers.event_log import STDOUT
from .observers.record import SOFTWARE
from .observers.transcript import subtitles_as_srt, subtitles_as_vtt
from .observers.wav import streamed_header, to_pcm16
from .options import CodecChoice, ModelSource, SamplingFlags, SoundFlags
from .role import own_voices
from .texts import Arriving, file_of, text_in

__all__ = ["SpeakingOptions", "speak", "speak_command"]
