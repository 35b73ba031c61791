"""What a run's file may say: ranges and types of all fields, and the guide's table of them."""

import os
import subprocess
import sys
from dataclasses import MISSING
from pathlib import Path
from typing import Any, get_origin

import pytest

from moshi_mlx.errors import ConfigError
from moshi_mlx.training.fields import Declared, brief, declared, documentation
from moshi_mlx.training.settings import RunConfig, read_settings
from moshi_mlx.training.settings import written as as_yaml

GUIDE = Path(__file__).parents[2] / "docs" / "training.md"
RUN = "model: nano\nrun_dir: run\ndata: {train: a.jsonl}\nmax_steps: 1\n"


def all_fields(kind: type[Any] = RunConfig, prefix: str = "") -> list[tuple[str, Declared]]:
    """Name with its sections, and field, of all that have a value."""
    found = []
    for each in declared(kind):
        name = prefix + each.name
        found += all_fields(each.hint, f"{name}.") if each.section else [(name, each)]
    return found


def run_with(name: str, value: str) -> str:
    """A run's file with a field set."""
    section, _, field = name.rpartition(".")
    kept = [line for line in RUN.splitlines() if line.partition(":")[0] != name.partition(".")[0]]
    line = f"{field}: {value}"
    if section.startswith("data"):
        line = f"train: a.jsonl, {line}" if section == "data" else f"train: a, user: {{{line}}}"
        section = "data"
    return "\n".join([*kept, f"{section}: {{{line}}}" if section else line])


def reading(folder: Path, text: str | bytes) -> RunConfig:
    path = folder / "run.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_settings(path)


def test_every_number_has_a_range() -> None:
    for name, field in all_fields():
        numbers = field.hint in (int, float) or get_origin(field.hint) is tuple
        assert (field.range is not None) == numbers, name


def test_numbers_outside_of_their_range_are_refused(tmp_path: Path) -> None:
    for name, field in all_fields():
        if (limits := field.range) is None:
            continue
        step = 1 if field.hint is int else 1e-6
        wrong: list[object] = [limits.low - step, limits.high + step, "-1e300", ".nan", ".inf"]
        wrong += [limits.low] * limits.above + [limits.high] * limits.below
        wrong += ["true", "'1'", "[]", "{}", "1" + 400 * "0", "text"]
        for value in wrong:
            pair = get_origin(field.hint) is tuple
            text = run_with(name, f"[{value}, {value}]" if pair else str(value))
            with pytest.raises(ConfigError) as caught:
                reading(tmp_path, text)
            line = str(caught.value)
            assert f": {name.replace('.', ': ')}: must be {field.allowed}; is " in line, value
            assert "\n" not in line


def test_defaults_and_ends_of_ranges_are_accepted(tmp_path: Path) -> None:
    for name, field in all_fields():
        if (limits := field.range) is None:
            continue
        ends = [limits.low] * (not limits.above) + [limits.high] * (not limits.below)
        for value in ends if field.default is MISSING else [*ends, field.default]:
            pair = get_origin(field.hint) is tuple and not isinstance(value, tuple)
            text = f"[{value}, {value}]" if pair else as_yaml(value)
            reading(tmp_path, run_with(name, text) + "\nmax_minutes: 1" * ("minutes" not in name))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (run_with("max_steps", "0"), r"max_steps: must be a whole number, 1 … .*; is 0$"),
        (run_with("max_steps", "true"), "whole number.*; is true"),
        (run_with("max_steps", "1e3"), "whole number.*; is '1e3'"),
        (run_with("data.user.gain_db", "[4, -10]"), r"low to high.*; is \[4.0, -10.0\]"),
        (run_with("optim.lr", "1e400"), "optim: lr: must be a number.*; is inf"),
        (run_with("save", "[a, [b]]"), r"one of float32, bfloat16; is \['a', …\]"),
        (run_with("codec", "no"), "one of auto, mlx, rust; is false"),
        (run_with("model", "''"), "model: must be text; is ''"),
        (run_with("run_dir", '"a\\0b"'), r"run_dir: must be a path; is 'a\\x00b'"),
        (run_with("run_dir", '"\\ud800"'), "run_dir: must be a path"),
        (run_with("run_dir", "~nowhere/x"), "there is no such user"),
        (run_with("max_step", "3"), "no field 'max_step'; did you mean 'max_steps'"),
        (run_with("optim.learning_rate", "3"), "optim: there is no field 'learning_rate'; known"),
        (run_with("'\\e[31m'", "3"), r"no field '\\\\e\[31m'"),
        (RUN + "max_steps: 2", "field 'max_steps' is there twice, .* line 1; delete one"),
        (RUN + "optim: {lr: 1e-3, lr: 1e-4}", "field 'lr' is there twice, .* line 5"),
        (RUN + "when: 2026-99-99", "is not YAML: month must be"),
        (RUN + "x: " + "[" * 1500, "nested too deeply"),
        (RUN.encode("utf-16"), r"run\.yaml: is UTF-16; save it as UTF-8"),
        (RUN.encode("utf-16-le"), r"run\.yaml: is UTF-16"),
        (f"{RUN}# caf\xe9".encode("latin-1"), r"Latin-1 .*0xe9 in line 5.*save it as UTF-8"),
    ],
    ids=range(21),
)
def test_what_is_wrong_is_named(text: str | bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        reading(tmp_path, text)


def test_what_is_right_is_read(tmp_path: Path) -> None:
    for text in (RUN, RUN.replace("\n", "\r\n"), f"\N{BOM}{RUN}", "<<: {max_minutes: 2}\n" + RUN):
        assert reading(tmp_path, text).max_steps == 1
    for written in ("1e-4", "1.0E-04", "0.0001", '"1e-4"'):
        assert reading(tmp_path, run_with("optim.lr", written)).optim.lr == 1e-4
    with pytest.raises(ConfigError, match="is not a file"):
        read_settings(Path("/dev/zero"))


def test_large_values_make_short_messages() -> None:
    nested: list[Any] = []
    nested.append(nested)
    assert brief(nested) == "[…]"
    assert brief([1, 2, 3, 4, 5]) == "[1, 2, 3, 4, …]"
    assert brief(10**5000) == "a number of more than 20 digits"
    assert len(brief("x" * 1000)) == 78


def test_docstrings_are_read_however_they_are_indented() -> None:
    """Python 3.13 and later take the indentation out; -OO takes all of it."""
    kind = type("Plain", (RunConfig,), {})
    for doc in ("A run.\n\nseed: of it,\n    and more.\nkeep: few.\n", None):
        kind.__doc__ = doc
        texts = documentation(kind)
        expected = "of it, and more." if doc else documentation(RunConfig)["seed"]
        assert texts["seed"] == expected


def test_fields_in_any_encoding() -> None:
    done = subprocess.run(
        [sys.executable, "-OO", "-m", "moshi_mlx.training", "--fields"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert b"# a whole number, 1 ? 99999999 steps; or null\nmax_steps: null\n" in done.stdout


def guide_table() -> str:
    """The guide's table of fields."""
    rows = ["| field | may be | default | |", "|---|---|---|---|"]
    for name, field in all_fields():
        default = "must be given" if field.default is MISSING else f"`{as_yaml(field.default)}`"
        rows.append(f"| `{name}` | {field.allowed} | {default} | {field.text} |")
    return "\n".join(rows) + "\n"


def test_the_guide_has_all_fields() -> None:
    """`python -m tests.training.test_settings` writes them there."""
    assert guide_table() in GUIDE.read_text(encoding="utf-8")


def main() -> None:
    before, _, rest = GUIDE.read_text(encoding="utf-8").partition("| field | may be |")
    after = rest[rest.index("\n\n") + 1 :]
    GUIDE.write_text(before + guide_table() + after, encoding="utf-8")


if __name__ == "__main__":
    main()
