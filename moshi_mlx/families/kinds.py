"""What models of each `model_type` are for, and which module does it. Knows no weights.

A family is a module beside this one and a line in `KINDS`; nothing else knows its name.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .. import catalog
from ..config import ModelConfig
from ..errors import ConfigError, HubError, MoshiError, VerbError, shown
from ..files import read_json
from ..hub import canonical, is_folder_name, local_path

Verb = Literal["talk", "transcribe", "speak", "translate", "complete"]


@dataclass(frozen=True, slots=True)
class Kind:
    """What models of a `model_type` are for.

    what: for messages: "a text-to-speech model".
    verb: what it can do.
    module: the module here that does it; None where there is none yet.
    persona: they take a persona and a voice.
    """

    what: str
    verb: Verb
    module: str | None = None
    persona: bool = False


KINDS = {
    "moshi": Kind("a dialogue model", "talk", "dialogue"),
    "personaplex": Kind("a dialogue model", "talk", "persona", persona=True),
    "hibiki": Kind("a speech translation model", "translate", "translate"),
    "stt": Kind("a speech-to-text model", "transcribe", "transcribe"),
    "tts": Kind("a text-to-speech model", "speak", "speak"),
    "helium": Kind("a text model", "complete", "complete"),
}
"""By `model_type`."""


COMMANDS: dict[Verb, str] = {
    "talk": "moshi-local",
    "transcribe": "moshi-local transcribe FILE",
    "speak": "moshi-local speak TEXT",
    "translate": "moshi-local translate IN OUT",
    "complete": "moshi-local complete PROMPT",
}
"""The command of each verb."""


def kind_of(config: ModelConfig, where: str = "config.json") -> Kind:
    """What a model is for.

    Raises:
        ConfigError: its `model_type` is unknown.
    """
    kind = KINDS.get(config.model_type)
    if kind is None:
        file = where if where.endswith(".json") else f"the config.json of {where}"
        raise ConfigError(
            f"{file}: field 'model_type' is {shown(config.model_type)}; "
            f"known are {', '.join(KINDS)}"
        )
    return kind


def other_verb(verb: Verb, kind: Kind, where: str) -> str:
    """What to say of a model, `where`, that is asked for what its kind cannot do."""
    entries = (entry for entry in catalog.ENTRIES if KINDS[entry.family].verb == verb)
    others = ", ".join(dict.fromkeys(entry.series or entry.name for entry in entries))
    return (
        f"{where} is {kind.what}: it can {kind.verb}, but not {verb}; {others} can. "
        f"`{COMMANDS[kind.verb]} --model {where}` runs it"
    )


def _able(verb: Verb) -> list[str]:
    """Names in the catalogue of the models that can do it."""
    return [entry.name for entry in catalog.ENTRIES if KINDS[entry.family].verb == verb]


def check_verb(name: str | Path, verb: Verb) -> None:
    """Refuses a model that is known not to do it, before anything is measured or fetched.

    Args:
        name: of any model; a repository that isn't in the catalogue passes.
        verb: what is asked of it.

    Raises:
        VerbError: names those that can.
        HubError: it is no model's name, and no file's or folder's.
    """
    text = canonical(name)
    entry = catalog.entry_of(text) if isinstance(name, str) else None
    kind = local_kind(name) if entry is None else KINDS[entry.family]
    if kind is not None and kind.verb != verb:
        raise VerbError(other_verb(verb, kind, text))
    elsewhere = entry is not None or "/" in text or is_folder_name(text) or isinstance(name, Path)
    if not elsewhere and not local_path(text).exists():
        raise HubError(f"There is no model {text!r}. {catalog.suggestion(text, _able(verb))}")


def local_kind(name: str | Path) -> Kind | None:
    """What a folder's or a weights file's model is for, by its config.json; None if unknown."""
    try:
        path = local_path(canonical(name))
        config = (path.parent if path.is_file() else path) / "config.json"
        model_type = read_json(config).get("model_type") if config.is_file() else None
    except (MoshiError, OSError):  # told where it is opened
        return None
    return KINDS.get(model_type) if isinstance(model_type, str) else None


def require_verb(verb: Verb, config: ModelConfig, where: str) -> None:
    """Refuses a model that cannot do what is asked of it.

    Args:
        verb: what is asked.
        config: of the model.
        where: its name, for the message.

    Raises:
        VerbError: names what it can do.
        ConfigError: its `model_type` is unknown.
    """
    kind = kind_of(config, where)
    if kind.verb != verb:
        raise VerbError(other_verb(verb, kind, where))
    if kind.module is None:
        raise VerbError(
            f"{where} is {kind.what} (model_type '{config.model_type}'), which this version of "
            f"moshi-local cannot run: use a model that it can {verb} with, such as nano"
        )


def takes_no(name: str, what: str) -> VerbError:
    """The error that a model cannot be given something; names those of the catalogue that can.

    Args:
        name: of the model.
        what: "a persona" or "a voice".
    """
    return VerbError(f"{name} cannot be given {what}: use {persona_models()}")


def persona_models() -> str:
    """Those of the catalogue that take a persona and a voice, for messages."""
    names = (e.series or e.name for e in catalog.ENTRIES if KINDS[e.family].persona)
    return " or ".join(dict.fromkeys(names))
