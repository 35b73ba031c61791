"""Plain lines: the words as they come, and what happens between them."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from moshi_local import events
from moshi_local.report import LoopReport
from moshi_local.terminal.lines import Transcript, describe, print_report
from moshi_mlx import Event, Word, WordSpoken


def printed(*told: Event) -> list[str]:
    file = io.StringIO()
    transcript = Transcript(Console(file=file, width=40))
    for event in told:
        transcript(event)
    transcript.end_line()
    return file.getvalue().splitlines()


def spoken(text: str, start: float) -> WordSpoken:
    return WordSpoken(start + 0.2, Word(text, start, start + 0.2))


def test_words_are_lines_by_phrase_and_notes_lines_of_their_own() -> None:
    assert printed(
        spoken("Hello", 1.0),
        spoken("there.", 1.3),
        spoken("Yes?", 3.0),
        events.Paused(64.0, True),
        spoken("Again.", 70.0),
        events.ResetDone(71.0),
        spoken("Hello", 0.5),
    ) == [
        "0:01.0  Hello there.",
        "0:03.0  Yes?",
        "1:04.0  the model pauses",
        "1:10.0  Again.",
        "1:11.0  the conversation starts over",
        "0:00.5  Hello",
    ]


def test_what_a_model_says_cannot_steer_the_terminal() -> None:
    assert printed(spoken("\x1b[31m[bold]\x07no\r", 1.0)) == ["0:01.0  [31m[bold]no"]


@pytest.mark.parametrize(
    ("event", "text"),
    [
        (events.Opened(0.0, "mic", "ear"), 'listening: input "mic", output "ear"'),
        (
            events.Opened(0.0, "mic", "ear", echo_cancelled=True),
            'listening: input "mic", output "ear", echo cancelled',
        ),
        (events.DeviceLost(0.0, "it stopped"), "it stopped; reopening"),
        (events.Lag(0.0, 0.08, 0.0), None),
        (events.Resumed(0.0, 61.4), "resumed after 61 s of sleep"),
        (events.MicrophoneClosed(0.0, True), "microphone closed"),
        (events.MicrophoneClosed(0.0, False), "microphone open"),
        (events.Paused(0.0, False), "the model resumes"),
        (events.GreetingHeld(0.0, True), "Moshi waits for you to speak first"),
        (events.GreetingHeld(0.0, False), None),
        (events.LoopBroken(0.0, "la", 6), '"la" 6 times in a row: Moshi was made to pause'),
        (events.RecordingStopped(0.0, "disk full"), "recording stopped: disk full"),
        (Event(0.0), None),
    ],
)
def test_each_event_in_words(event: Event, text: str | None) -> None:
    assert describe(event) == text


@pytest.mark.parametrize(
    ("lags", "told"),
    [
        (0, []),
        (1, ["late once: 0.50 s of input and 0.25 s of output dropped"]),
        (7, ["late 7 times: 0.50 s of input and 0.25 s of output dropped"]),
    ],
)
def test_lateness_is_one_line_at_the_end_where_there_was_any(lags: int, told: list[str]) -> None:
    names = ("callbacks", "xruns", "gaps", "restarts")
    port: dict[str, float | int] = dict(zip(names, (9, 1, 2, 3), strict=True))
    dropped = {"input_dropped_seconds": 0.5, "output_dropped_seconds": 0.25}
    text = io.StringIO()
    report = LoopReport(12.5, port={**port, "lags": lags, **dropped})
    print_report(Console(file=text, width=100), report, 0.08)
    assert text.getvalue().splitlines()[2:] == ["9 callbacks, 1 xrun, 2 gaps, 3 restarts", *told]


def test_a_dead_microphone_has_its_advice() -> None:
    text = describe(events.MicrophoneDead(0.0, "allow it in System Settings"))
    assert text is not None
    assert text.endswith("allow it in System Settings")
