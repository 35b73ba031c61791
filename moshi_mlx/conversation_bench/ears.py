"""An independent ear: Whisper by the package `faster-whisper`, with the voice detector in it.

Knows sound and texts; nothing of models of ours.
"""

from pathlib import Path

import numpy as np
import soxr

from ..arrays import Pcm
from ..errors import MoshiError
from ..text import Word

_RATE = 16_000
_PAD_SECONDS = 0.25


class Whisper:
    """A recognizer of any English speech.

    Args:
        folder: a model in CTranslate2's format.
        threads: of the CPU.

    Raises:
        MoshiError: the package is not installed, or the folder has no such model.
    """

    def __init__(self, folder: Path, threads: int = 1) -> None:
        try:
            from faster_whisper import WhisperModel
        except ImportError as error:
            raise MoshiError("whisper needs the package faster-whisper: install it") from error
        if not (folder / "model.bin").is_file():
            raise MoshiError(
                f"{folder}: has no model.bin; give the folder of a Whisper model in CTranslate2's "
                "format"
            )
        try:
            self._model = WhisperModel(
                str(folder), device="cpu", compute_type="int8", cpu_threads=threads
            )
        except Exception as error:  # whatever CTranslate2 raises
            text = " ".join(str(error).split())[:200]
            raise MoshiError(f"{folder}: cannot be loaded as a Whisper model: {text}") from error

    def hear(self, pcm: Pcm, sample_rate: int) -> str:
        """The text of a mono recording, float32."""
        segments, _ = self._model.transcribe(
            _padded(pcm, sample_rate),
            language="en",
            temperature=0.0,
            condition_on_previous_text=False,
        )
        return " ".join(segment.text.strip() for segment in segments)

    def words(self, pcm: Pcm, sample_rate: int) -> list[Word]:
        """Its words with their times."""
        segments, _ = self._model.transcribe(
            _padded(pcm, sample_rate),
            language="en",
            beam_size=5,
            temperature=0.0,
            condition_on_previous_text=False,
            word_timestamps=True,
        )
        words = [word for segment in segments for word in segment.words or ()]
        return [
            Word(w.word.strip(), max(0.0, w.start - _PAD_SECONDS), max(0.0, w.end - _PAD_SECONDS))
            for w in words
        ]

    def voice(self, pcm: Pcm, sample_rate: int) -> list[tuple[float, float]]:
        """Where there is speech, by silero's detector: start and end in seconds."""
        from faster_whisper.vad import VadOptions, get_speech_timestamps

        audio = soxr.resample(pcm, sample_rate, _RATE).astype(np.float32)
        options = VadOptions(
            min_speech_duration_ms=60, min_silence_duration_ms=100, speech_pad_ms=30
        )
        found = get_speech_timestamps(audio, options, sampling_rate=_RATE)
        return [(span["start"] / _RATE, span["end"] / _RATE) for span in found]


def _padded(pcm: Pcm, sample_rate: int) -> Pcm:
    padded = np.pad(pcm, round(_PAD_SECONDS * sample_rate))
    audio: Pcm = soxr.resample(padded, sample_rate, _RATE).astype(np.float32)
    return audio
