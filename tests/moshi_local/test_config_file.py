"""Defaults of the options from the user's TOML file."""

from pathlib import Path
from typing import Any

import pytest
import typer

from moshi_local import cli
from moshi_local.chat import ChatOptions
from moshi_local.config_file import config_path, read_defaults
from moshi_local.options import EchoMode
from moshi_mlx import ConfigError


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the file is for this test."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))  # as macOS has it
    path = config_path()
    path.parent.mkdir(parents=True)
    return path


@pytest.fixture
def live(monkeypatch: pytest.MonkeyPatch) -> list[ChatOptions]:
    """What live conversations were asked for."""
    asked: list[ChatOptions] = []
    monkeypatch.setattr(cli, "chat", asked.append)
    return asked


def test_defaults_and_the_command_line(config: Path, live: list[ChatOptions]) -> None:
    config.write_text(
        'model = "moshika"\necho = "on"\nkv-bits = 8\nno-greeting = true\nseconds = 5\n'
    )
    assert cli.main([]) == 0
    assert cli.main(["--model", "nano", "--echo", "off"]) == 0
    assert cli.main(["-q", "4"]) == 0
    first, second, third = live
    assert (first.model.name, first.sound.echo, first.kv_bits) == ("moshika", EchoMode.on, 8)
    assert (first.greeting, first.seconds) == (False, 5.0)
    assert (second.model.name, second.sound.echo, second.kv_bits) == ("nano", EchoMode.off, 8)
    assert third.model.name == "moshiko-q4"


def test_a_table_per_command(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(cli, "answer_file", asked.append)
    config.write_text('temperature = 0.1\n[run]\nseed = 7\nlora = "~/talks"\n')
    assert cli.main(["run", "a.wav", "b.wav", "--tail", "1"]) == 0
    (options,) = asked
    assert (options.seed, options.tail, options.sampling.temperature) == (7, 1.0, None)
    assert options.model.lora == Path.home() / "talks"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model = ", "cannot be read as TOML"),
        ("modle = 'nano'", "there is no option 'modle'; known are .*model"),
        ("[run]\nechoo = 1", r"\[run\]: there is no option 'echoo'"),
        ("echo = 'loud'", "echo: .*'auto'"),
        ("kv-bits = 5", "kv-bits: must be 4 or 8"),
        ("plain = 'yes'", "plain: must be true or false, is 'yes'"),
        ("seed = -1", "seed: .*0"),
        ("model = [1]", "model: must be a string or a number"),
    ],
)
def test_what_is_wrong_is_named(config: Path, text: str, message: str) -> None:
    config.write_text(text)
    with pytest.raises(ConfigError, match=message) as error:
        read_defaults(typer.main.get_command(cli.app), config)
    assert str(config) in str(error.value)


def test_one_line_and_exit_code_2(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config.write_text("modle = 1")
    assert cli.main(["devices"]) == 2
    assert capsys.readouterr().err.startswith(f"moshi-local: {config}: there is no option 'modle'")
    config.unlink()
    assert cli.main(["--version"]) == 0
