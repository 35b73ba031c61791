"""The first start without a model's name, and the list of models."""

import io
import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import constants
from rich.console import Console

from moshi_local import cli
from moshi_local.first_start import first_model, make_model
from moshi_local.machine.models import survey
from moshi_local.machine.prediction import Shape, Speed, published_shape
from moshi_local.platform import Machine
from moshi_mlx import HubError, catalog
from moshi_mlx.catalog import Entry
from moshi_mlx.hub import resolve
from tests.moshi_mlx.test_families import nano_as

MAC = Machine(
    chip="Apple M4 Pro", cores=12, performance_cores=8, memory_total=24_000_000_000,
    memory_available=16_000_000_000, gpu_memory=18_000_000_000, os="macOS 15.1", python="3.12.1",
    mlx="0.32", backend="gpu", device="Apple M4 Pro",
)  # fmt: skip
NOTHING = (0.0, 0.0)


def speed(shape: Shape) -> Speed:
    """273 GB/s, and nothing else takes time."""
    return Speed((1 / 273e9,) * 2, (1 / 273e9,) * 2, NOTHING, NOTHING)


def slow(shape: Shape) -> Speed:
    return Speed((1e-9,) * 2, (1e-9,) * 2, NOTHING, NOTHING)


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


class Asked:
    """The user at the first start."""

    def __init__(self, answers: Path, *, says: bool, here: Machine = MAC) -> None:
        self.answers, self.says, self.here = answers, says, here
        self.questions: list[str] = []
        self.fetched: list[str] = []
        self.text = io.StringIO()

    def __call__(self, speed_of: Callable[[Shape], Speed] = speed) -> str:
        def confirm(question: str) -> bool:
            self.questions.append(question)
            return self.says

        return first_model(
            Console(file=self.text, width=500), self.answers, confirm, here=self.here,
            speed_of=speed_of, fetch=self.fetched.append,
        )  # fmt: skip


def test_yes_fetches_and_is_remembered(tmp_path: Path) -> None:
    user = Asked(tmp_path / "folder" / "answers.json", says=True)
    assert user() == "moshiko-q8"
    said = user.text.getvalue()
    assert "nano is a demonstration model" in said
    assert "8.6 GB to download" in said
    assert "CC-BY 4.0" in said
    assert "of 80 ms" in said
    assert user() == "moshiko-q8"
    assert (user.questions, user.fetched) == (["Download moshiko-q8 now?"], ["moshiko-q8"])


def test_no_is_remembered_too(tmp_path: Path) -> None:
    user = Asked(tmp_path / "answers.json", says=False)
    assert [user(), user()] == ["nano", "nano"]
    assert (len(user.questions), user.fetched) == (1, [])
    assert "Later: moshi-local --model moshiko-q8" in user.text.getvalue()


def test_a_machine_that_is_too_small_or_too_slow_is_not_asked(tmp_path: Path) -> None:
    small = replace(MAC, memory_total=8_000_000_000, gpu_memory=5_000_000_000)
    for user, speed_of in (
        (Asked(tmp_path / "small.json", says=True, here=small), speed),
        (Asked(tmp_path / "slow.json", says=True), slow),
    ):
        assert user(speed_of) == "nano"
        assert user.questions == []
        assert (
            "None here, it seems: moshiko-q4 in real time (80 ms per frame): no"
            in user.text.getvalue()
        )


def test_a_failed_download_is_asked_for_again(tmp_path: Path) -> None:
    def fail(name: str) -> None:
        raise HubError("the connection broke")

    answers = tmp_path / "answers.json"
    with pytest.raises(HubError, match="broke"):
        first_model(
            Console(file=io.StringIO()),
            answers,
            lambda _: True,
            here=MAC,
            speed_of=speed,
            fetch=fail,
        )
    assert not answers.exists()
    answers.write_text("{broken")
    assert Asked(answers, says=False)() == "nano"


def test_without_a_terminal_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "first_model", pytest.fail)
    assert cli._first() == "nano"


def test_on_a_terminal_end_of_input_is_an_interruption(tmp_path: Path) -> None:
    """The real program behind a real terminal: Ctrl-C at the question ends it with 130."""
    code = (
        "import sys\n"
        "from moshi_local import cli, first_start\n"
        "from tests.moshi_local.test_first_start import MAC, speed\n"
        "import functools\n"
        "cli.first_model = functools.partial(first_start.first_model, here=MAC, speed_of=speed)\n"
        "sys.exit(cli.main([]))\n"
    )
    ours, theirs = pty.openpty()
    environment = os.environ | {"XDG_CONFIG_HOME": str(tmp_path), "HF_HUB_CACHE": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=theirs, stdout=theirs, stderr=theirs, env=environment,
        start_new_session=True, preexec_fn=_controlling,
    ) as program:  # fmt: skip
        os.close(theirs)
        seen = b""
        while b"Download moshiko-q8 now?" not in seen:
            seen += os.read(ours, 4096)
        for _ in range(3):  # Python may lose one that comes while it frees an object
            os.write(ours, b"\x03")
            with suppress(subprocess.TimeoutExpired):
                program.wait(10)
                break
        program.kill()
        assert program.wait(30) == 130
    os.close(ours)
    assert not list(tmp_path.rglob("first-start.json"))


def _controlling() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


# ------------------------------------------------------------------------- moshi-local models

WORDY = Entry(
    name="wordy-q4", about="writes down", family="stt", precision="q4",
    nbytes=700_000_000, licence="CC-BY 4.0", repository="somebody/wordy-q4", series="wordy",
    languages=("en", "fr"),
)  # fmt: skip


def test_a_row_is_all_that_a_model_needs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of another family, with a configuration of its own: listed, judged, suggested, found."""
    monkeypatch.setattr(catalog, "ENTRIES", (*catalog.ENTRIES, WORDY))
    assert cli.main(["models", "--quick"]) == 0
    said = capsys.readouterr().out
    row = next(line for line in said.splitlines() if line.startswith("wordy-q4"))
    assert row.split()[-6:] == ["0.7", "GB", "CC-BY", "4.0", "no", "yes"]
    assert "wordy: the best of wordy-q4" in said
    assert cli.main(["models", "--quick", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["wordy-q4"]["languages"] == ["en", "fr"]
    assert rows["nano"]["local"] is True
    assert rows["nano"]["here"]["fits"] is True
    assert cli.main(["run", "a", "b", "--model", "wordi-q4"]) == 2
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    small = replace(MAC, gpu_memory=17_000_000_000)
    found = {row.entry.name: row for row in survey(small, speed)}
    assert found["wordy-q4"].verdict.fits is True
    assert found["wordy-q4"].verdict.frame_ms is None
    assert published_shape("wordy-q4") is None
    q8 = found["moshiko-q8"].verdict
    assert q8.holds is True
    assert q8.predicted is True
    assert found["moshiko-bf16"].verdict.fits is False


# ------------------------------------------------------------------------------- made here


def test_a_model_that_is_made_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for with what it costs, made by moshi-quantize, and never without a question."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    text, ran = io.StringIO(), list[Sequence[str]]()

    def run(code: int) -> Callable[[Sequence[str]], int]:
        def program(arguments: Sequence[str]) -> int:
            ran.append(arguments)
            return code

        return program

    def make(says: bool | None, code: int = 0, name: str = "personaplex-q4") -> None:
        confirm = None if says is None else (lambda _: bool(says))
        make_model(name, Console(file=text, width=500), confirm, run=run(code))

    make(None)
    make(True, name="moshiko-q4")
    assert not ran and not text.getvalue()
    with pytest.raises(HubError, match="personaplex-q4 is not made"):
        make(False)
    for words in ("17.1 GB to download, 5.2 GB to keep", "about 25 minutes", "NVIDIA Open Model"):
        assert words in text.getvalue()
    assert not ran
    with pytest.raises(HubError, match="ended with 2, see above"):
        make(True, code=2)
    make(True)
    folder = tmp_path / "cache" / "moshi-local" / "models" / "personaplex-q4"
    arguments = ["personaplex", str(folder), "--bits", "4", "--no-report"]
    assert ran == [["-m", "moshi_quantize", *arguments]] * 2
    with pytest.raises(HubError, match=re.escape(" ".join(["`moshi-quantize", *arguments]))):
        resolve("personaplex-q4")
    folder.parent.mkdir(parents=True)
    nano_as(folder)
    make(True)
    assert len(ran) == 2
    assert resolve("personaplex-q4", offline=True).weights[0].parent == folder
    (folder / "mimi.safetensors").unlink()
    with pytest.raises(HubError, match="make it again: `moshi-quantize personaplex "):
        resolve("personaplex-q4")


def test_the_list_has_models_that_are_made_here() -> None:
    rows = {row.entry.name: row for row in survey(MAC, None)}
    assert rows["personaplex-q4"].verdict.fits and not rows["personaplex-q4"].local
    assert not rows["personaplex-q4"].entry.bundled
    assert [e.name for e in catalog.series("personaplex")] == [
        "personaplex", "personaplex-q8", "personaplex-q4",
    ]  # fmt: skip
