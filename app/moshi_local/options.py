"""What the command line can ask for, as values. Knows no parser and no parts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

from moshi_mlx import Sampling

__all__ = [
    "CodecChoice",
    "Keeping",
    "ModelSource",
    "PersonaFlags",
    "SamplingFlags",
    "SoundFlags",
    "SpeakingFlags",
    "TranscriptionFlags",
    "TranslationFlags",
]


class EchoMode(StrEnum):
    """When to cancel the speaker's echo."""

    auto = "auto"
    on = "on"
    off = "off"


class CodecChoice(StrEnum):
    """Which implementation of Mimi turns sound into codes and back."""

    auto = "auto"
    mlx = "mlx"
    rust = "rust"


@dataclass(frozen=True, slots=True)
class ModelSource:
    """What to load: a name, the codec to run it with, and an adapter beside it.

    base: what a fine-tune's codec and tokenizer are taken from; None: found by its shape.
    float16: compute in it, in place of the type that `moshi_mlx.load` chooses.
    force: load it even if it does not fit in memory.
    """

    name: str
    codec: CodecChoice = CodecChoice.auto
    lora: Path | None = None
    float16: bool = False
    force: bool = False
    base: str | None = None


@dataclass(frozen=True, slots=True)
class PersonaFlags:
    """Who the model is asked to be; None or a blank where nothing is asked.

    persona: a text, or "@" and the name of a file that has it.
    voice: a name or a file.
    cached: keep what the model remembers of them for the next conversation.
    keep: let them stay in sight however long this one gets.
    """

    persona: str | None = None
    voice: str | None = None
    cached: bool = True
    keep: bool = False

    @property
    def both(self) -> tuple[str | None, str | None]:
        """Persona and voice, None where it is blank."""
        persona, voice = ((text or "").strip() for text in (self.persona, self.voice))
        return self.persona if persona else None, self.voice if voice else None


@dataclass(frozen=True, slots=True)
class SamplingFlags:
    """The sampling options; None where the model's own value holds."""

    temperature: float | None = None
    temperature_text: float | None = None
    top_k: int | None = None
    top_k_text: int | None = None
    top_p: float | None = None
    min_p: float | None = None

    def audio(self, default: Sampling) -> Sampling | None:
        """For the tokens of the voice, or None if no option says anything about them."""
        return _changed(default, self.temperature, self.top_k, self.top_p, self.min_p)

    def text(self, default: Sampling) -> Sampling | None:
        """For the tokens of the text."""
        return _changed(default, self.temperature_text, self.top_k_text, self.top_p, self.min_p)


@dataclass(frozen=True, slots=True)
class TranslationFlags:
    """What only a translation has: the quality asked for, and how far from the worst to move."""

    quality: str = "very_good"
    cfg: float = 1.0


@dataclass(frozen=True, slots=True)
class SpeakingFlags:
    """What only speech from text has.

    speed: from −2, slower, to 2, faster.
    cfg: how closely to keep to the voice; None is the model's own.
    codebooks: of the sound; None is all of them.
    normalize: the language, "en" or "fr", in which numbers, units and abbreviations are written
        out before they are spoken; None leaves the text as it is.
    """

    speed: float = 0.0
    cfg: float | None = None
    codebooks: int | None = None
    normalize: str | None = None


@dataclass(frozen=True, slots=True)
class TranscriptionFlags:
    """What only a transcription has; None where the model's own value holds.

    spell: words whose spelling the model is shown.
    spell_sound: a recording of these words.
    turn_threshold: the probability of a pause from which a turn may have ended.
    turn_hold: how long it must stay there (seconds).
    """

    spell: str | None = None
    spell_sound: Path | None = None
    turn_threshold: float | None = None
    turn_hold: float | None = None


@dataclass(frozen=True, slots=True)
class SoundFlags:
    """Which sound devices, and what is done with the microphone's sound."""

    input: str | None = None
    output: str | None = None
    rate: int | None = None
    echo: EchoMode = EchoMode.auto
    noise_suppression: bool = False


@dataclass(frozen=True, slots=True)
class Keeping:
    """What is written of a conversation; nothing if not asked for. `events` may be "-"."""

    record: Path | None = None
    record_format: Literal["flac", "wav"] = "flac"
    events: str | None = None
    trace: Path | None = None


def _changed(
    default: Sampling,
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
) -> Sampling | None:
    options = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    given: dict[str, Any] = {k: v for k, v in options.items() if v is not None}
    if not given:
        return None
    if temperature and default.greedy:
        # top_k 1 of a greedy model would make the temperature mean nothing.
        default = Sampling()
    return replace(default, **given)
