"""Defaults of the options, from a TOML file that the user may write. Knows no option's meaning.

Keys are the long options of `moshi-local` without their dashes; those of a command are in a table
with its name:

    model = "moshiko"
    echo = "on"

    [run]
    seed = 7
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import typer

from moshi_mlx import ConfigError
from moshi_mlx.program import value_problem

__all__ = ["config_folder", "config_path", "read_defaults"]

_NOT_SETTINGS = {"help", "version", "install_completion", "show_completion"}


def config_folder() -> Path:
    """Where the program keeps what the user has chosen, by the platform's custom."""
    return Path(typer.get_app_dir("moshi-local"))


def config_path() -> Path:
    """The file; it need not be there."""
    return config_folder() / "config.toml"


def read_defaults(command: Any, path: Path) -> dict[str, Any]:
    """The file's defaults as a parser's `default_map`; empty without a file.

    Args:
        command: the program's click group.
        path: the TOML file.

    Raises:
        ConfigError: the file is not TOML, names an unknown option, or gives an option a
            value that it does not take; names file and key.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as TOML: {error}") from error
    return _defaults(command, data, str(path))


def _defaults(command: Any, data: dict[str, Any], where: str) -> dict[str, Any]:
    commands: dict[str, Any] = getattr(command, "commands", {})
    context = command.context_class(command)
    options = {
        option.lstrip("-"): parameter
        for parameter in command.params
        for option in parameter.opts
        if option.startswith("--") and parameter.name not in _NOT_SETTINGS
    }
    found: dict[str, Any] = {}
    for key, value in data.items():
        if key in commands and isinstance(value, dict):
            found[key] = _defaults(commands[key], value, f"{where}: [{key}]")
        elif key in options:
            found[options[key].name] = _checked(options[key], context, value, f"{where}: {key}")
        else:
            raise ConfigError(
                f"{where}: there is no option '{key}'; known are {', '.join(sorted(options))}"
            )
    return found


def _checked(parameter: Any, context: Any, value: Any, where: str) -> Any:
    if parameter.is_flag and not isinstance(value, bool):
        raise ConfigError(f"{where}: must be true or false, is {value!r}")
    if not parameter.is_flag and isinstance(value, bool | dict | list):
        raise ConfigError(f"{where}: must be a string or a number, is {value!r}")
    if isinstance(value, str) and value.startswith("~"):
        value = str(Path(value).expanduser())
    try:
        parameter.process_value(context, value)
    except Exception as error:  # the parser's own class, which typer hides
        problem = value_problem(error) or getattr(error, "message", str(error))
        raise ConfigError(f"{where}: {problem}") from error
    return value
