"""The examination of nano: it runs from the first sound to the report, and the report is right."""

import ctypes.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from moshi_mlx.errors import MoshiError
from moshi_mlx.hub import bundled_folder
from recipes.nano.evaluate import GOALS, main
from recipes.nano.report import CARD_BEGIN, CARD_END, markdown, write_card

CARD = bundled_folder("nano") / "MODEL_CARD.md"


def reached() -> dict[str, dict[str, float]]:
    """Figures that just reach every goal."""
    figures: dict[str, dict[str, float]] = {}
    for goal in GOALS:
        value = float(goal.bound.split()[-1]) if goal.bound else 0.5
        figures.setdefault(goal.group, {})[goal.figure] = value
    return figures


def test_report_marks_missed_goals() -> None:
    figures = reached()
    assert "missed" not in markdown(figures, GOALS)
    figures["replies"] |= {"delay median": 0.7, "delay p90": 9.0}
    assert markdown(figures, GOALS).count("missed") == 1
    assert "| ≤ 0.5 | 0.700 (missed) |" in markdown(figures, GOALS)
    figures["replies"]["delay median"] = float("nan")
    assert "nan (missed)" in markdown(figures, GOALS)


def test_report_leaves_out_goals_without_figures() -> None:
    figures = {"replies": {"delay median": 0.4}}
    assert markdown(figures, GOALS).startswith(
        "| what | goal | reached |\n|---|---|---|\n| median response delay, s | ≤ 0.5 | 0.400 |\n\n"
    )


def test_neighbours_with_the_same_figures_share_a_table() -> None:
    figures: dict[str, dict[str, Any]] = {}
    figures |= {"a": {"x": 1, "y": 0.5}, "b": {"x": 2, "y": 0.25}, "c": {"z": {"bad": 0.125}}}
    tables = markdown(figures, ()).split("\n\n")[1:]
    assert tables[0] == "| group | x | y |\n|---|---|---|\n| a | 1 | 0.500 |\n| b | 2 | 0.250 |"
    assert tables[1] == "| group | z |\n|---|---|\n| c | bad 0.125 |\n"


def test_card_keeps_what_is_around_the_figures(tmp_path: Path) -> None:
    card = tmp_path / "CARD.md"
    card.write_text(f"before\n{CARD_BEGIN}\nold\n{CARD_END}\nafter\n")
    for _ in range(2):
        write_card(card, "new\n")
    assert card.read_text() == f"before\n{CARD_BEGIN}\nnew\n{CARD_END}\nafter\n"
    card.write_text(f"before\n{CARD_BEGIN}\nafter\n")
    with pytest.raises(MoshiError, match="End of figures"):
        write_card(card, "new\n")


def test_what_is_not_measured_misses_nothing() -> None:
    figures = reached()
    figures["people"] = {"wrong answer": "not measured", "not understood or silent": 0.1}  # type: ignore[dict-item]
    text = markdown(figures, GOALS)
    assert "| people: wrong answers | ≤ 0.15 | not measured |" in text
    assert text.count("missed") == 1


def test_conversations_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pocketsphinx")
    if shutil.which("flite") is None or ctypes.util.find_library("espeak-ng") is None:
        pytest.skip("needs flite and espeak-ng")
    monkeypatch.setenv("MOSHI_EARS", str(tmp_path))  # no whisper, no Kokoro
    out = tmp_path / "figures.json"
    parts = ["telephone", "hesitations", "overlaps", "given text", "open ear", "people", "neural"]
    outputs = ["--cache", str(tmp_path / "speech"), "--json", str(out)]
    main(["nano", "--quick", *outputs, "--only", *parts])
    figures = json.loads(out.read_text())
    assert figures["text held"]["quiet seconds"] == 1.0
    assert figures["real interruption"]["stops within 1 s"] == 1.0
    for group in ("hesitations", "user backchannel", "talk to others", "background voice"):
        assert all(isinstance(v, str) or 0 <= v <= 1 for v in figures[group].values()), group
    assert figures["telephone"]["questions"] == 1
    for group, figure in (
        ("text forced", "words heard right"),
        ("own voice, open ear", "word error"),
        ("people", "wrong answer"),
        ("unheard neural voices (Kokoro)", "right reply heard"),
    ):
        assert figures[group][figure] == "not measured"


def test_everything_runs(tmp_path: Path) -> None:
    for package in ("matplotlib", "pocketsphinx", "pystoi", "ttspico"):
        pytest.importorskip(package)
    if shutil.which("flite") is None or ctypes.util.find_library("espeak-ng") is None:
        pytest.skip("needs flite and espeak-ng")
    card, answers, picture = (tmp_path / n for n in ("CARD.md", "answers.jsonl", "figures.svg"))
    shutil.copy(CARD, card)
    outputs = ["--card", str(card), "--answers", str(answers), "--picture", str(picture)]
    figures_file, tables = tmp_path / "figures.json", tmp_path / "tables.md"
    outputs += ["--json", str(figures_file), "--markdown", str(tables)]
    main(["nano", "--quick", "--cache", str(tmp_path / "speech"), *outputs])
    figures = json.loads(figures_file.read_text())
    assert all(goal.figure in figures[goal.group] for goal in GOALS)
    assert figures["replies"]["answered at all"] > 0.7
    assert figures["replies"]["whole replies recognized"] > 0.5
    assert figures["unheard engine (Pico)"]["questions"] == 1
    asked = [json.loads(line) for line in answers.read_text().splitlines()]
    assert len(asked) == sum("right text" in f for f in figures.values()) - 1
    assert all(0 < a["delay"] < 2 for a in asked if a["delay"] is not None)
    text = card.read_text()
    assert tables.read_text().splitlines()[2] in text
    assert "](figures.svg)" in text
    assert text.partition(CARD_BEGIN)[0] == CARD.read_text().partition(CARD_BEGIN)[0]
    assert picture.read_text().count("unheard engine (Pico)") == 3
