"""Which published model a fine-tune was made of, told by its shape. Knows no weights."""

import logging
from contextlib import suppress
from pathlib import Path

from . import catalog
from .config import LmConfig
from .errors import MoshiError
from .files import read_json
from .hub import bundled_folder, resolve
from .published import read_config

_CONFIG = "config.json"
_log = logging.getLogger("moshi_mlx")


def likely_base(config: Path) -> str | None:
    """A model of the catalogue that a fine-tune's codec and tokenizer can be taken from.

    One that is on this machine goes before others; the log says which it is.

    Args:
        config: the fine-tune's config.json, which need not be there or name a field of the model:
            then it is Moshi as published.

    Returns:
        None where nothing is known of its shape, or no model has it.
    """
    with suppress(MoshiError):
        data = read_json(config) if config.is_file() else None
        own = read_config(data, str(config))
        alike = [entry for entry in catalog.ENTRIES if entry.family == own.model_type]
        alike = [e for e in alike if (shape := _shape(e)) is not None and _fits(shape, own.lm)]
        if alike:
            chosen = next(filter(_is_here, alike), alike[0])
            _log.info("%s: codec and tokenizer of %s", config.parent, chosen.name)
            return chosen.name
    return None


def _shape(entry: catalog.Entry) -> LmConfig | None:
    """What is known of a model without its files."""
    if entry.bundled:
        path = bundled_folder(entry.name) / _CONFIG
        return read_config(read_json(path), str(path)).lm
    if entry.made_from is not None or entry.preset is None:
        return None
    return read_config(None, entry.name, entry.preset).lm


def _fits(shape: LmConfig, own: LmConfig) -> bool:
    streams = ("text_card", "card", "n_q", "dep_q")
    same = all(getattr(shape, name) == getattr(own, name) for name in streams)
    return same and shape.transformer == own.transformer


def _is_here(entry: catalog.Entry) -> bool:
    if entry.bundled:
        return True
    with suppress(MoshiError):
        resolve(entry.name, offline=True, companions=True)
        return True
    return False
