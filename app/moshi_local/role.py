"""Who a model is asked to be: persona and voice of the options, looked at before it is loaded.

Knows where the user's own voices are. Knows nothing of how a model is loaded and of sound.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from moshi_mlx import ArgumentError, catalog
from moshi_mlx.checkpoint import config_of
from moshi_mlx.families.kinds import KINDS, takes_no
from moshi_mlx.families.voice_files import VoiceFiles
from moshi_mlx.hub import ModelFiles, local_path
from moshi_mlx.session import Opening
from moshi_mlx.voices import Voice

from .config_file import config_folder
from .machine.verdict import local_files
from .options import PersonaFlags
from .texts import text_in

__all__ = ["Role", "consent_of", "files_of", "one_short_line", "own_voices", "role_for"]

LARGEST_PERSONA = 100_000
"""Bytes of its file: far more than a model remembers."""
_SHOWN = 60  # characters of a persona, and of a statement of consent


@dataclass(frozen=True, slots=True)
class Role:
    """What `Moshi.session` is given; all of it checked as far as that needs no model.

    voice: a name where the model's files are not here yet.
    """

    persona: str | None = None
    voice: Voice | str | None = None
    cached: bool = True
    keep: bool = False

    @property
    def asked(self) -> bool:
        """Whether there is a persona or a voice."""
        return self.persona is not None or self.voice is not None

    def as_dict(self) -> dict[str, object]:
        """For a summary; empty if nothing was asked."""
        voice = self.voice.name if isinstance(self.voice, Voice) else self.voice
        both = {"persona": self.persona, "voice": voice}
        return {name: value for name, value in both.items() if value is not None}


def own_voices() -> Path:
    """The folder of the user's own voices; it need not be there."""
    return config_folder() / "voices"


def files_of(flags: PersonaFlags) -> Iterator[Path]:
    """The files that persona and voice name, which need not be there."""
    persona, voice = flags.both
    if persona is not None and persona.startswith("@"):
        yield local_path(persona[1:])
    if voice is not None:
        yield local_path(voice)
        yield own_voices() / f"{voice}.safetensors"


def role_for(flags: PersonaFlags, model: str, kv_bits: int | None) -> Role:
    """Persona and voice for a model that is not loaded yet.

    Args:
        flags: the options.
        model: its name, of any kind.
        kv_bits: the option.

    Raises:
        MoshiError: the model takes none, a file cannot be used, there is no such voice, or the
            options exclude each other.
    """
    asked, voice = flags.both
    if flags.keep and asked is None and voice is None:
        raise ArgumentError("--keep-persona goes with --persona or --voice")
    if flags.keep and kv_bits is not None:
        raise ArgumentError(
            "--keep-persona does not go with --kv-bits: quantized keys and values cannot be kept "
            "in sight"
        )
    if asked is None and voice is None:
        return Role()
    files = local_files(model)
    kind = KINDS.get(_model_type(model, files) or "")
    if kind is not None and kind.verb == "talk" and not kind.persona:
        raise takes_no(model, "a voice" if asked is None else "a persona")
    persona = None if asked is None else read_persona(asked)
    found: Voice | str | None = voice
    if voice is not None and files is not None:
        found = VoiceFiles(files).find(voice, own_voices())
    return Role(persona, found, flags.cached, flags.keep)


def read_persona(persona: str) -> str:
    """The text of a persona: itself, or what is in the file after an "@".

    Raises:
        ArgumentError: the file is missing, too large, or has no text; names it.
    """
    if not persona.startswith("@"):
        return persona
    return text_in(local_path(persona[1:]), LARGEST_PERSONA, f"--persona {persona}")


def told(persona: str | None, voice: Voice | None, opening: Opening, keep: bool) -> Iterator[str]:
    """Lines for the user: who speaks, by whose consent, and what the prompt took."""
    if persona is not None:
        yield f"persona: {one_short_line(persona)}"
    if voice is not None:
        yield f"voice {one_short_line(voice.name)}{consent_of(voice)}"
    kept = "kept from an earlier conversation, " if opening.from_cache else ""
    line = f"prompt of {opening.frames} frames: {kept}{opening.seconds:.2f} s"
    yield f"{line}; it stays in sight" if keep else line


def one_short_line(text: str, most: int = _SHOWN) -> str:
    """A text of anybody's for the terminal: no line ends and control characters, not too long."""
    plain = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return plain if len(plain) <= most else f"{plain[: most - 1].rstrip()}…"


def consent_of(voice: Voice) -> str:
    """By whose consent, to follow the voice's name; nothing where its file doesn't say."""
    consent = voice.about.get("consent", "").strip()
    if not consent:
        return ""
    date = one_short_line(voice.about.get("date", "")[:10])
    return f": with consent “{one_short_line(consent)}”" + (f", {date}" if date else "")


def _model_type(model: str, files: ModelFiles | None) -> str | None:
    """By the catalogue, or by the files where they are here."""
    entry = catalog.entry_of(model)
    if entry is not None:
        return entry.family
    return None if files is None else config_of(files).model_type
