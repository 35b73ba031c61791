"""What a bench came to: figures by axis, as a table, as JSON and as a picture.

Knows scores, names and numbers; nothing of sound and models.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from xml.sax.saxutils import escape

from ..text import Word, join_words
from .scenes import RIGHT, Axis, Marks
from .scores import (
    Behaviour,
    Overlap,
    Span,
    backchannels,
    behaviour,
    latency,
    response_latencies,
    speaks_on,
    stop_latencies,
    takes_over,
    timing_divergence,
)

_STOPPED_SECONDS = 1.0

Score = dict[str, Any]
"""Of one scene: JSON's values."""


def scored(
    marks: Marks,
    words: Sequence[Word],
    voice: Sequence[Span],
    seconds: float,
    sentences: Sequence[str] = (),
    text: Sequence[Word] | None = None,
) -> Score:
    """The score of a scene.

    Args:
        marks: where to look.
        words: the model's, with their times.
        voice: when it sounds.
        seconds: of the scene.
        sentences: all that the model can say, if that is known.
        text: what a model's behaviour is read off then, if that isn't `words`.
    """
    score: Score = {"axis": marks.axis.value, "scene": marks.name}
    score["text"] = join_words(word.text for word in words)
    end = marks.turn_end
    if marks.axis is Axis.PAUSE:
        score["takeover"] = takes_over([word for word in words if word.start < end])
        if seconds > end + 1:
            score["answers"] = takes_over([word for word in words if word.start >= end])
    elif marks.axis is Axis.BACKCHANNEL:
        spans = [span for span in voice if span[0] < end]
        murmurs, over = backchannels(spans, words)
        score |= {"takeover": over, "frequency": len(murmurs) / seconds}
        score["divergence"] = timing_divergence(murmurs, seconds, marks.people)
    elif marks.axis is Axis.TURN:
        score["takeover"] = takes_over(words)
        if score["takeover"]:
            score["latency"] = latency(words, end)
            later = [start for start, _ in voice if start >= end]
            score["sound_latency"] = later[0] - end if later else None
    elif marks.overlap is not None:
        score |= _overlap_score(marks, words, voice, sentences, text)
    return score


def _overlap_score(
    marks: Marks,
    words: Sequence[Word],
    voice: Sequence[Span],
    sentences: Sequence[str],
    text: Sequence[Word] | None,
) -> Score:
    assert marks.overlap is not None
    onset, end = marks.overlap
    score: Score = {"speaking": speaks_on(voice, onset) is not None}
    if marks.in_time is False:
        return score | {"left_out": "the model did not speak"}
    overlap = Overlap(marks.overlap, marks.overlap_text, marks.context)
    read = text if text is not None and sentences else words
    score["behaviour"] = behaviour(read, voice, overlap, sentences).value
    user = [*marks.spoken]
    score["stop_latencies"] = stop_latencies(user, voice)
    score["response_latencies"] = response_latencies(user, voice)
    if marks.axis is Axis.INTERRUPTION:
        after = [word for word in words if word.start >= end]
        score["takeover"] = takes_over(after)
        if score["takeover"]:
            score["latency"] = latency(after, end)
        score["stop_time"] = speaks_on(voice, onset)
    return score


# ---------------------------------------------------------------------------------------- figures


@dataclass(frozen=True)
class FigureKind:
    """A figure of an axis.

    key: in JSON.
    name: for people.
    better: "low" or "high"; "" where neither is.
    unit: "s" for seconds, "" for a share or a rate.
    of: the value from the scores of an axis; None where there is nothing to tell.
    """

    key: str
    name: str
    better: Literal["low", "high", ""]
    unit: str
    of: Callable[[Sequence[Score]], float | None]


def _values(scores: Sequence[Score], key: str) -> list[float]:
    return [float(s[key]) for s in scores if s.get(key) is not None]


def _mean(key: str) -> Callable[[Sequence[Score]], float | None]:
    def of(scores: Sequence[Score]) -> float | None:
        values = _values(scores, key)
        return statistics.fmean(values) if values else None

    return of


def _median(key: str) -> Callable[[Sequence[Score]], float | None]:
    def of(scores: Sequence[Score]) -> float | None:
        values = _values(scores, key)
        return statistics.median(values) if values else None

    return of


def _mean_of_all(key: str) -> Callable[[Sequence[Score]], float | None]:
    def of(scores: Sequence[Score]) -> float | None:
        values = [value for score in scores for value in score.get(key, ())]
        return statistics.fmean(values) if values else None

    return of


def _stopped(scores: Sequence[Score]) -> float | None:
    values = _values(scores, "stop_time")
    return statistics.fmean(v <= _STOPPED_SECONDS for v in values) if values else None


def _share_of(label: Behaviour) -> Callable[[Sequence[Score]], float | None]:
    def of(scores: Sequence[Score]) -> float | None:
        labels = [s["behaviour"] for s in scores if "behaviour" in s]
        return statistics.fmean(x == label.value for x in labels) if labels else None

    return of


def _labels(right: Behaviour) -> list[FigureKind]:
    return [
        FigureKind(
            label.value,
            f"{label.value} after the overlap",
            "high" if label is right else "",
            "",
            _share_of(label),
        )
        for label in (right, *(each for each in Behaviour if each is not right))
    ]


_TAKEOVER = _mean("takeover")
_BOTH = _mean_of_all("stop_latencies")
_RESPONSE = FigureKind(
    "response_latency", "response latency, mean", "low", "s", _mean_of_all("response_latencies")
)

KINDS_OF_FIGURES: Mapping[Axis, Sequence[FigureKind]] = {
    Axis.PAUSE: [
        FigureKind("takeover", "takes over in a pause", "low", "", _TAKEOVER),
        FigureKind("answers", "answers in the end", "high", "", _mean("answers")),
    ],
    Axis.BACKCHANNEL: [
        FigureKind("takeover", "takes over in a long turn", "low", "", _TAKEOVER),
        FigureKind("frequency", "backchannels per second", "", "", _mean("frequency")),
        FigureKind("divergence", "divergence of their times", "low", "", _mean("divergence")),
    ],
    Axis.TURN: [
        FigureKind("takeover", "takes the turn", "high", "", _TAKEOVER),
        FigureKind("latency", "latency of the first word, mean", "low", "s", _mean("latency")),
        FigureKind(
            "sound_latency", "latency of the sound, median", "low", "s", _median("sound_latency")
        ),
    ],
    Axis.INTERRUPTION: [
        FigureKind("takeover", "takes the turn", "high", "", _TAKEOVER),
        FigureKind("latency", "latency of the first word, mean", "low", "s", _mean("latency")),
        FigureKind("stop_time", "speaks on, median", "low", "s", _median("stop_time")),
        FigureKind("stopped", "stops within 1 s", "high", "", _stopped),
        *_labels(RIGHT[Axis.INTERRUPTION]),
        FigureKind("stop_latency", "both speak, mean", "low", "s", _BOTH),
        _RESPONSE,
    ],
    **{
        axis: [
            *_labels(RIGHT[axis]),
            FigureKind("stop_latency", "both speak, mean", "", "s", _BOTH),
            _RESPONSE,
        ]
        for axis in (Axis.USER_BACKCHANNEL, Axis.OTHERS, Axis.BACKGROUND)
    },
}
"""The figures of each axis, in order."""

AxisFigures = dict[Axis, dict[str, float]]
"""By axis: value by key, and "scenes", how many they come from."""


def figures_of(scores: Sequence[Score]) -> AxisFigures:
    """AxisFigures from scores; a published set counts for its axis."""
    out: AxisFigures = {}
    for axis, kinds in KINDS_OF_FIGURES.items():
        own = [score for score in scores if score["axis"] == axis.value]
        if not own:
            continue
        values = {kind.key: kind.of(own) for kind in kinds}
        out[axis] = {key: value for key, value in values.items() if value is not None}
        out[axis]["scenes"] = len(own)
        if left_out := sum("left_out" in score for score in own):
            out[axis]["left_out"] = left_out
    return out


# ------------------------------------------------------------------------------------------ table

_ARROWS = {"low": "↓", "high": "↑", "": ""}


def figures_rows(models: Mapping[str, AxisFigures]) -> list[list[str]]:
    """A head, and a row per figure: axis, figure with an arrow to where it is good, the models."""
    rows = [["axis", "figure", "", *models]]
    for axis, kinds in KINDS_OF_FIGURES.items():
        if not any(axis in figures for figures in models.values()):
            continue
        shown = axis.value.replace("_", " ")
        for kind in kinds:
            values = [figures.get(axis, {}).get(kind.key) for figures in models.values()]
            if all(value is None for value in values):
                continue
            texts = [
                "–" if v is None else f"{v:.3f}{' ' * bool(kind.unit)}{kind.unit}" for v in values
            ]
            rows.append([shown, kind.name, _ARROWS[kind.better], *texts])
            shown = ""
        counts = [_count(figures.get(axis, {})) for figures in models.values()]
        rows.append([shown, "scenes", "", *counts])
    return rows


def _count(values: Mapping[str, float]) -> str:
    scenes, left_out = int(values.get("scenes", 0)), int(values.get("left_out", 0))
    return f"{scenes}" + (f", {left_out} left out" if left_out else "")


def figures_markdown(models: Mapping[str, AxisFigures]) -> str:
    """The same as a table in Markdown."""
    head, *rows = figures_rows(models)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# ---------------------------------------------------------------------------------------- picture

_INK, _GRID = "#333", "#ddd"
_COLOURS = ("#3a62a0", "#a5782a", "#4a8a5a", "#8a4a7a", "#777")
_LEFT, _WIDTH, _BAR, _GAP, _TOP = 330.0, 420.0, 11.0, 9.0, 34.0


def figures_svg(models: Mapping[str, AxisFigures]) -> str:
    """Bars, a group per figure and a bar per model: shares up to 1, and seconds up to the longest.

    Figures that are 0 everywhere, and neither good nor bad, are left out.

    Args:
        models: figures by name.
    """
    longest = max(
        (
            value
            for figures in models.values()
            for axis, values in figures.items()
            for kind in KINDS_OF_FIGURES[axis]
            if kind.unit and (value := values.get(kind.key)) is not None
        ),
        default=1.0,
    )
    parts: list[str] = []
    y = _TOP
    for axis, kinds in KINDS_OF_FIGURES.items():
        shown = [k for k in kinds if any(_is_drawn(k, f.get(axis, {})) for f in models.values())]
        if not shown:
            continue
        parts.append(
            f'<text class="axis" x="8" y="{y + 10:.0f}">{axis.value.replace("_", " ")}</text>'
        )
        y += 18
        for kind in shown:
            middle = y + _BAR * len(models) / 2 + 4
            arrow = f" {_ARROWS[kind.better]}" if kind.better else ""
            unit = f", {kind.unit}" if kind.unit else ""
            parts.append(
                f'<text x="{_LEFT - 10:.0f}" y="{middle:.1f}" text-anchor="end">'
                f"{escape(kind.name)}{unit}{arrow}</text>"
            )
            for colour, figures in zip(_cycled(len(models)), models.values(), strict=True):
                value = figures.get(axis, {}).get(kind.key)
                if value is not None:
                    length = _WIDTH * min(1.0, value / (longest if kind.unit else 1.0))
                    parts.append(
                        f'<rect x="{_LEFT:.0f}" y="{y:.1f}" width="{max(length, 1):.1f}" '
                        f'height="{_BAR - 2:.0f}" fill="{colour}"/>'
                        f'<text class="value" x="{_LEFT + length + 5:.1f}" y="{y + 8:.1f}">'
                        f"{value:.2f}</text>"
                    )
                y += _BAR
            y += _GAP
    width, height = _LEFT + _WIDTH + 60, y + 8
    legend, x = [], _LEFT
    for colour, name in zip(_cycled(len(models)), models, strict=True):
        legend.append(f'<rect x="{x:.0f}" y="10" width="10" height="10" fill="{colour}"/>')
        legend.append(f'<text x="{x + 15:.0f}" y="19">{escape(name)}</text>')
        x += 40 + 7 * len(name)
    grid = [
        f'<path stroke="{_GRID}" '
        f'd="M{_LEFT + _WIDTH * n / 4:.1f} {_TOP - 4:.0f}V{height - 8:.0f}"/>'
        for n in range(5)
    ]
    return "\n".join(
        [
            '<svg xmlns="http://www.w3.org/2000/svg" '
            f'viewBox="0 0 {max(width, x):.0f} {height:.0f}" '
            'role="img" aria-label="Figures of the conversation bench as bars">',
            f"<style>text{{font:12px Helvetica,Arial,sans-serif;fill:{_INK}}}"
            ".axis{font-weight:bold}.value{font-size:10px;fill:#777}</style>",
            f'<rect width="{max(width, x):.0f}" height="{height:.0f}" fill="#fff"/>',
            *grid,
            *legend,
            *parts,
            "</svg>",
            "",
        ]
    )


def _is_drawn(kind: FigureKind, values: Mapping[str, float]) -> bool:
    """Whether there is something to see: a value, and not 0 where that is neither good nor bad."""
    value = values.get(kind.key)
    return value is not None and bool(value or kind.better)


def _cycled(count: int) -> list[str]:
    return [_COLOURS[i % len(_COLOURS)] for i in range(count)]
