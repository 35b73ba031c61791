"""Nano's examination: what it says to renditions, wordings, voices and noises never trained on.

    python -m recipes.nano.evaluate MODEL_FOLDER --json OUT.json --picture OUT.svg

The whole chain runs as in a conversation (sound, codec, language model, codec, sound), many
conversations side by side, and an independent recognizer listens to nano. Needs flite, festival,
espeak-ng and the packages of the extra `nano`.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

import moshi_mlx
from moshi_mlx.activity import audible_spans
from moshi_mlx.conversation_bench import Whisper
from moshi_mlx.families import Moshi
from moshi_mlx.generate import Generator
from moshi_mlx.text import plain_words
from moshi_quantize.listening import recognize

from . import ears, script
from .behaviour import (
    DISTURBANCES,
    NOT_MEASURED,
    Disturbance,
    disturbed_by,
    given_text,
    hesitations,
    overlaps,
    own_voice,
    people,
)
from .codec_data import FRAME_SIZE, canonical_rendition
from .codec_evaluation import ADDED_ERRORS, AS_TRAINED, OWN_VOICE, codec_figures
from .renditions import Line, evaluation_lines, one_speaker, rng_for, unheard_engine_lines
from .report import Goal, markdown, plot, write_card
from .speech import NOISE_KINDS, SAMPLE_RATE, augment, decibels, noise, speak
from .tokens import PAD, sounds
from .train_lm import expected_reply, said_text

_PROMPTS = Path("/usr/share/asterisk/sounds")
_SIDE_BY_SIDE = 48
_AT_ONCE = 4 * _SIDE_BY_SIDE  # conversations kept in memory
_PAUSE_SECONDS = 0.48  # a longer pause ends a reply
_STOPPED_SECONDS = 0.32  # silent for this long: has stopped
_LONG_REPLY_SECONDS = 2.3
_RIGHT = "right reply heard"
_UNHEARD_VOICES, _UNHEARD_ENGINE = "unheard voices", "unheard engine (Pico)"
_NEURAL_GROUPS = (
    "unheard neural voices (Kokoro)",
    "unheard neural voices (Kokoro), new wordings",
)
_HESITATIONS, _OWN_SPEECH, _PEOPLE = "hesitations", "own voice, open ear", "people"
_ALL_UNHEARD = "unheard voices and engine together"
_STILLNESS, _INTERRUPTIONS, _LONG_TURNS = "stillness", "interruptions", "long turns"


@dataclass(frozen=True)
class Size:
    """How much is examined.

    `each` is how many of each kind at most, all if None. Nano has `answer` seconds for an answer,
    and there is silence for `still` seconds.
    """

    each: int | None = None
    interruptions: int = 40
    answer: float = 5.6
    still: float = 30.0


QUICK = Size(each=1, interruptions=1, answer=3.2, still=1.0)
"""So little that the figures mean nothing: to see that everything runs."""


@dataclass
class Examination:
    """Figures by group, nano's answers, and how long it spoke on when interrupted (seconds)."""

    figures: dict[str, dict[str, Any]] = field(default_factory=dict)
    answers: list[Answer] = field(default_factory=list)
    stops: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Heard:
    """A conversation: both sides [samples] float32, nano's text tokens [frames]."""

    user: np.ndarray
    nano: np.ndarray
    text_tokens: np.ndarray


def converse(moshi: Moshi, users: Sequence[np.ndarray]) -> list[Heard]:
    """Nano's side of conversations whose user's sides [samples] are given, as sessions hear it."""
    order = sorted(range(len(users)), key=lambda i: len(users[i]))
    heard: dict[int, Heard] = {}
    for start in range(0, len(order), _SIDE_BY_SIDE):
        chosen = order[start : start + _SIDE_BY_SIDE]
        frames = -(-len(users[chosen[-1]]) // FRAME_SIZE)
        pcm = np.zeros((len(chosen), 1, frames * FRAME_SIZE), np.float32)
        for row, i in enumerate(chosen):
            pcm[row, 0, : len(users[i])] = users[i]
        codes = np.array(moshi.mimi.encode(mx.array(pcm)))
        generator = Generator(
            moshi.lm, batch=len(chosen), text=moshi.text_sampling, audio=moshi.audio_sampling
        )
        steps = [generator.step(codes[:, :, t]).frame for t in range(frames)]
        tokens = np.stack([frame for frame in steps if frame is not None], axis=2)
        said = np.array(moshi.mimi.decode(mx.array(tokens[:, 1:])))[:, 0]
        for row, i in enumerate(chosen):
            length = len(users[i])
            nano = np.pad(said[row], (FRAME_SIZE, 0))[:length]
            text = np.pad(tokens[row, 0], (1, 0), constant_values=PAD)
            heard[i] = Heard(users[i], nano, text[: -(-length // FRAME_SIZE)])
    return [heard[i] for i in range(len(users))]


# --------------------------------------------------------------------------- what can be heard


def audible_seconds(pcm: np.ndarray, pause: float = _PAUSE_SECONDS) -> list[tuple[float, float]]:
    """When something sounds: (start, end) in seconds, over pauses shorter than `pause`."""
    spans = audible_spans(pcm, SAMPLE_RATE, window=0.01, pause=pause)
    return [(start / SAMPLE_RATE, end / SAMPLE_RATE) for start, end in spans]


def cut(pcm: np.ndarray, start: float, end: float, margin: float = 0.06) -> np.ndarray:
    """A span of a recording with a little margin."""
    return pcm[max(0, int((start - margin) * SAMPLE_RATE)) : int((end + margin) * SAMPLE_RATE)]


def share(values: Sequence[bool]) -> float:
    return float(np.mean(values)) if len(values) else float("nan")


def quantile(values: Sequence[float] | np.ndarray, q: float) -> float:
    return float(np.quantile(values, q)) if len(values) else float("nan")


def same_words(a: str, b: str | None) -> bool:
    return b is not None and plain_words(a) == plain_words(b)


# --------------------------------------------------------------------------------------- answers


@dataclass(frozen=True)
class Answer:
    """What nano answered: its text stream, what the recognizer heard, and when (seconds)."""

    line: Line
    text: str
    heard: str | None
    delay: float | None

    @property
    def right(self) -> bool:
        """The recognizer heard the right reply."""
        return same_words(expected_reply(self.line.rendition.text), self.heard)

    @property
    def right_text(self) -> bool:
        return same_words(expected_reply(self.line.rendition.text), self.text)

    @property
    def agrees(self) -> bool:
        return same_words(self.text, self.heard)


def placed(
    line: Line, cache: Path, wait: float, disturb: Disturbance | None = None
) -> tuple[np.ndarray, float]:
    """A line as a microphone hears it, with silence before and `wait` seconds after; its end."""
    rng = rng_for(line.rendition.text, f"evaluation {line.rendition.voice}")
    speech = speak(line.rendition, cache)
    lead = rng.uniform(0.4, 1.2)
    end = lead + speech.speech_end
    length = round((end + wait) * SAMPLE_RATE)
    start = round(lead * SAMPLE_RATE)
    pcm = np.pad(speech.pcm, (start, length - start - len(speech.pcm)))
    if disturb is not None:
        return disturbed_by(disturb, pcm, rng), end
    return augment(pcm, rng, strength=0.6), end


def answers(
    moshi: Moshi,
    lines: Sequence[Line],
    cache: Path,
    wait: float,
    disturb: Disturbance | None = None,
) -> list[Answer]:
    """Nano's answers to lines, each in a separate conversation."""
    out = []
    for first in range(0, len(lines), _AT_ONCE):
        chosen = lines[first : first + _AT_ONCE]
        recordings = [placed(line, cache, wait, disturb) for line in chosen]
        conversations = converse(moshi, [pcm for pcm, _ in recordings])
        for line, (_, end), conversation in zip(chosen, recordings, conversations, strict=True):
            spans = audible_seconds(conversation.nano, pause=1.0)
            heard = (
                recognize(cut(conversation.nano, *spans[0]), SAMPLE_RATE, script.replies())
                if spans
                else None
            )
            delay = spans[0][0] - end if spans else None
            text = said_text(conversation.text_tokens, moshi.text)
            out.append(Answer(line, text, heard, delay))
        print(f"{len(out)} of {len(lines)} answers", flush=True)
    return out


def answer_groups() -> dict[str, list[Line]]:
    """What is asked, by what is new about it."""
    trained = [w for i in script.INTENTS for w in (i.train_wordings[0], i.train_wordings[-1])]
    new = [w for i in script.INTENTS for w in i.held_out_wordings]
    unknown = script.OUT_OF_SCRIPT_HELD_OUT
    neural: dict[str, list[Line]] = {}
    if ears.has_kokoro():
        neural = {
            name: evaluation_lines(texts, False, salt="neural", neural=True)
            for name, texts in zip(_NEURAL_GROUPS, (trained, new), strict=True)
        }
    return {
        "known voices, new renditions": evaluation_lines(trained, True, salt="rendition"),
        "known voices, new wordings": evaluation_lines(new, True, salt="wording"),
        _UNHEARD_VOICES: evaluation_lines(trained, False, salt="voice"),
        f"{_UNHEARD_VOICES}, new wordings": evaluation_lines(new, False, salt="voice"),
        _UNHEARD_ENGINE: unheard_engine_lines(trained),
        f"{_UNHEARD_ENGINE}, new wordings": unheard_engine_lines(new),
        "unknown, known voices": evaluation_lines(unknown, True, "unknown"),
        f"unknown, {_UNHEARD_VOICES}": evaluation_lines(unknown, False, "unknown"),
        f"unknown, {_UNHEARD_ENGINE}": unheard_engine_lines(unknown, "unknown"),
    } | neural


def conditions() -> dict[str, list[Line]]:
    """What is asked under each of `DISTURBANCES`: an intent's first wording, by voices in turns."""
    asked = [intent.train_wordings[0] for intent in script.INTENTS]
    return {name: evaluation_lines(asked, True, salt=name) for name in DISTURBANCES}


def answer_figures(group: Sequence[Answer]) -> dict[str, Any]:
    """How often the right reply came."""
    return {
        _RIGHT: share([a.right for a in group]),
        "right text": share([a.right_text for a in group]),
        "questions": len(group),
    }


def reply_figures(everything: Sequence[Answer]) -> dict[str, Any]:
    """How replies sound and when they come, be they right or wrong."""
    whole = [a for a in everything if any(same_words(a.text, r) for r in script.replies())]
    delays = np.array([a.delay for a in everything if a.delay is not None and a.delay > 0])
    return {
        "whole replies recognized": share([a.agrees for a in whole]),
        "text agrees with sound": share([a.agrees for a in everything]),
        "answered at all": share([a.delay is not None for a in everything]),
        "before the user's end": share([a.delay is not None and a.delay <= 0 for a in everything]),
        "delay median": quantile(delays, 0.5),
        "delay p90": quantile(delays, 0.9),
    }


def examine_answers(
    moshi: Moshi, groups: dict[str, list[Line]], cache: Path, wait: float
) -> Examination:
    """Nano's answers to groups of lines, `wait` seconds for each."""
    lines = [line for group in groups.values() for line in group]
    out = Examination(answers=answers(moshi, lines, cache, wait))
    rest = iter(out.answers)
    answered = {name: list(islice(rest, len(group))) for name, group in groups.items()}
    if _UNHEARD_VOICES in answered and _UNHEARD_ENGINE in answered:
        answered[_ALL_UNHEARD] = answered[_UNHEARD_VOICES] + answered[_UNHEARD_ENGINE]
    out.figures = {name: answer_figures(group) for name, group in answered.items()}
    out.figures["replies"] = reply_figures(out.answers)
    return out


# ------------------------------------------------------------------------------------- stillness


def backgrounds(seconds: float) -> dict[str, np.ndarray]:
    """Recordings without speech: silence, noises of several levels, sounds, a new noise."""
    rng = np.random.default_rng(2024)
    length = int(seconds * SAMPLE_RATE)
    out: dict[str, np.ndarray] = {"silence": np.zeros(length, np.float32)}
    for level in (-75, -60, -50, -40):
        for kind in NOISE_KINDS:
            out[f"{kind} {level} dBFS"] = decibels(level) * noise(kind, length, rng)
    for number in range(4):
        out[f"sounds {number}"] = decibels(-65) * noise("pink", length, rng) + sounds(length, rng)
    brown = np.cumsum(rng.standard_normal(length))
    kernel = np.ones(SAMPLE_RATE // 20) / (SAMPLE_RATE // 20)
    brown = brown - np.convolve(brown, kernel, "same")
    for level in (-55, -42):
        out[f"brown {level} dBFS"] = decibels(level) * brown / np.sqrt(np.mean(brown**2))
    return {name: np.clip(pcm, -1, 1).astype(np.float32) for name, pcm in out.items()}


def stillness(moshi: Moshi, cache: Path, size: Size) -> dict[str, Any]:
    """How quiet nano stays without a speaker, from the start and after an answer."""
    recordings = dict(islice(backgrounds(size.still).items(), size.each))
    first = dict.fromkeys(recordings, 0.0)
    lines = evaluation_lines(["hello", "tell me a joke", "who are you"], True, salt="still")
    for line in lines[: size.each]:
        pcm, end = placed(line, cache, size.answer)
        name = f"after an answer: {line.rendition.text}"
        recordings[name] = np.pad(pcm, (0, int(size.still * SAMPLE_RATE)))
        first[name] = end + size.answer
    names = list(recordings)
    quiet: dict[str, list[bool]] = {"silence": [], "noise": []}
    starts, minutes = 0, 0.0
    worst: dict[str, float] = {}
    for name, conversation in zip(
        names, converse(moshi, [recordings[n] for n in names]), strict=True
    ):
        spans = audible_seconds(conversation.nano[int(first[name] * SAMPLE_RATE) :])
        whole_seconds = int(len(conversation.nano) / SAMPLE_RATE - first[name])
        still = [
            not any(start < second + 1 and end > second for start, end in spans)
            for second in range(whole_seconds)
        ]
        silent = name == "silence" or name.startswith("after")
        quiet["silence" if silent else "noise"] += still
        starts += len(spans)
        minutes += whole_seconds / 60
        if not all(still):
            worst[name] = share(still)
    return {
        "quiet seconds": share([*quiet["silence"], *quiet["noise"]]),
        "quiet seconds in silence": share(quiet["silence"]),
        "quiet seconds in noise": share(quiet["noise"]),
        "false starts per minute": starts / minutes,
        "minutes": minutes,
        "not quiet": worst,
    }


# --------------------------------------------------------------------------------- interruptions


def interruptions(moshi: Moshi, cache: Path, size: Size) -> tuple[dict[str, Any], list[float]]:
    """How fast nano falls silent when it is interrupted, and what it says then.

    Figures, and how long nano spoke on each time (seconds).
    """
    long_replies = [
        i
        for i in script.INTENTS
        if speak(canonical_rendition(i.reply), cache).speech_end > _LONG_REPLY_SECONDS
    ]
    stop = script.find_intent(script.STOP_INTENT)
    rng = np.random.default_rng(7)
    recordings, marks = [], []
    for number in range(size.interruptions):
        intent = long_replies[number % len(long_replies)]
        by_stop = number % 2 == 0
        word = stop.wordings[number // 2 % len(stop.wordings)]
        other = script.INTENTS[int(rng.integers(len(script.INTENTS)))].train_wordings[0]
        texts = [intent.train_wordings[0], word if by_stop else other]
        asked, spoken = (speak(r, cache) for r in one_speaker(texts, number, "interruption"))
        lead = 0.6
        onset = lead + asked.speech_end + 0.45 + rng.uniform(0.3, 0.9)
        length = round((onset + spoken.speech_end + size.answer) * SAMPLE_RATE)
        pcm = np.zeros(length, np.float32)
        for speech, at in ((asked, lead), (spoken, onset)):
            begin = round(at * SAMPLE_RATE)
            pcm[begin : begin + len(speech.pcm)] += speech.pcm
        recordings.append(augment(pcm, rng, strength=0.4))
        marks.append((onset, onset + spoken.speech_end, expected_reply(texts[1])))
    stops: list[float] = []
    replies: list[bool] = []
    for conversation, (onset, end, reply) in zip(converse(moshi, recordings), marks, strict=True):
        spans = audible_seconds(conversation.nano, pause=_STOPPED_SECONDS)
        speaking = [span for span in spans if span[0] < onset < span[1]]
        if not speaking:
            continue  # nano was not speaking: nothing to interrupt
        stops.append(speaking[0][1] - onset)
        later = [span for span in audible_seconds(conversation.nano, 1.0) if span[1] > end + 0.2]
        heard = None
        if later:
            answer = cut(conversation.nano, max(later[0][0], end), later[-1][1])
            heard = recognize(answer, SAMPLE_RATE, script.replies())
        replies.append(same_words(reply, heard))
    figures = {
        "stops within 1 s": share([s <= 1.0 for s in stops]),
        "stop time median": quantile(stops, 0.5),
        "stop time p90": quantile(stops, 0.9),
        "right reply afterwards": share(replies),
        "interruptions": len(stops),
    }
    return figures, stops


def long_turns(moshi: Moshi, cache: Path, size: Size) -> dict[str, Any]:
    """Murmurs in the pauses of monologues never trained on, and the reply to them."""
    rng = np.random.default_rng(11)
    recordings, pauses = [], []
    told = [m for m in script.MONOLOGUES if m.held_out][: size.each]
    for number, monologue in enumerate(told):
        for voice in range(2)[: size.each]:
            at, parts, ends = 0.6, [], []
            for rendition in one_speaker(monologue.sentences, 2 * number + voice, "long turn"):
                speech = speak(rendition, cache)
                parts.append((at, speech.pcm))
                ends.append(at + speech.speech_end)
                at = ends[-1] + rng.uniform(0.7, 1.0)
            pcm = np.zeros(round((ends[-1] + size.answer) * SAMPLE_RATE), np.float32)
            for start, part in parts:
                begin = round(start * SAMPLE_RATE)
                pcm[begin : begin + len(part)] += part
            recordings.append(augment(pcm, rng, strength=0.4))
            pauses.append(ends)
    murmurs: list[bool] = []
    held_back: list[bool] = []
    replies: list[bool] = []
    for conversation, ends in zip(converse(moshi, recordings), pauses, strict=True):
        spans = audible_seconds(conversation.nano)
        for end in ends[:-1]:
            near = [s for s in spans if end - 0.1 < s[0] < end + 0.9]
            murmurs.append(bool(near))
            held_back.append(all(s[1] - s[0] < 1.0 for s in near))
        last = [s for s in audible_seconds(conversation.nano, 1.0) if s[0] > ends[-1]]
        heard = (
            recognize(cut(conversation.nano, *last[0]), SAMPLE_RATE, script.replies())
            if last
            else None
        )
        replies.append(same_words(script.MONOLOGUE_REPLY, heard))
    return {
        "murmurs in pauses": share(murmurs),
        "leaves the turn to the user": share(held_back),
        "right reply at the end": share(replies),
        "long turns": len(recordings),
    }


# ---------------------------------------------------------------------------------------- report

GOALS = (
    Goal("codec: STOI, own voice, renditions not trained on", OWN_VOICE, "STOI", least=0.93),
    Goal("the same on the replies just as it was trained on them", AS_TRAINED, "STOI"),
    Goal(
        "codec: open word error added, renditions not trained on",
        OWN_VOICE,
        ADDED_ERRORS,
        most=0.03,
    ),
    Goal("the same on the replies just as it was trained on them", AS_TRAINED, ADDED_ERRORS),
    Goal("replies recognized", "replies", "whole replies recognized", least=0.97),
    Goal("text agrees with what is heard", "replies", "text agrees with sound"),
    Goal("right reply, new renditions", "known voices, new renditions", _RIGHT, least=0.97),
    Goal("right reply, new wordings", "known voices, new wordings", _RIGHT, least=0.92),
    Goal("right reply, unheard voices and engine together", _ALL_UNHEARD, _RIGHT, least=0.75),
    Goal("of these, unheard voices of known engines", _UNHEARD_VOICES, _RIGHT, least=0.97),
    Goal("of these, an unheard engine (Pico)", _UNHEARD_ENGINE, _RIGHT, least=0.85),
    Goal("right reply, unheard neural voices (Kokoro)", _NEURAL_GROUPS[0], _RIGHT, least=0.85),
    Goal("the same, new wordings", _NEURAL_GROUPS[1], _RIGHT, least=0.70),
    *(
        Goal(f"right reply, {name}", name, _RIGHT, least=least)
        for name, least in zip(DISTURBANCES, (0.75, 0.75, 0.5, 0.8), strict=True)
    ),
    Goal("takes over in a pause inside a question", _HESITATIONS, "takes over", most=0.2),
    Goal("the right reply in the end", _HESITATIONS, "right reply in the end", least=0.8),
    Goal("goes on under a user's backchannel", "user backchannel", "goes on", least=0.8),
    Goal("goes on while the user talks to others", "talk to others", "goes on", least=0.8),
    Goal("goes on under a voice in the background", "background voice", "goes on", least=0.8),
    Goal(
        "stops within 1 s when really interrupted",
        "real interruption",
        "stops within 1 s",
        least=0.95,
    ),
    Goal("quiet while its text is held", "text held", "quiet seconds", least=0.95),
    Goal("words of forced text heard right", "text forced", "words heard right", least=0.85),
    Goal("word error of its voice, whisper", _OWN_SPEECH, "word error", most=0.08),
    Goal("the same of flite's originals", _OWN_SPEECH, "word error, originals"),
    Goal("words begin after their text by, mean s", _OWN_SPEECH, "word starts, mean s off"),
    Goal("people: not understood or silent", _PEOPLE, "not understood or silent", least=0.8),
    Goal("people: wrong answers", _PEOPLE, "wrong answer", most=0.15),
    Goal("unknown is not understood", "unknown, known voices", _RIGHT, least=0.80),
    Goal("quiet seconds in silence and noise", _STILLNESS, "quiet seconds", least=0.99),
    Goal("false starts per minute there", _STILLNESS, "false starts per minute"),
    Goal("stops within 1 s when interrupted", _INTERRUPTIONS, "stops within 1 s", least=0.95),
    Goal("median response delay, s", "replies", "delay median", most=0.5),
    Goal("90th percentile of the response delay, s", "replies", "delay p90"),
)


def examine_behaviour(
    moshi: Moshi,
    cache: Path,
    size: Size,
    wanted: Callable[[str], bool],
    figures: dict[str, dict[str, Any]],
    prompts: Path | None,
) -> None:
    """Adds the figures of `behaviour`, as far as they are wanted."""
    count = min(size.interruptions, size.each or size.interruptions)
    whisper = Whisper(ears.folder() / "whisper") if ears.has_whisper() else None
    if wanted(_HESITATIONS):
        figures[_HESITATIONS] = hesitations(moshi, cache, count)
    if wanted("overlaps"):
        figures |= overlaps(moshi, cache, count)
    if wanted("given text"):
        figures |= given_text(moshi, cache, count, whisper)
    if wanted(_OWN_SPEECH):
        figures[_OWN_SPEECH] = own_voice(moshi, cache, count, whisper)
    if wanted(_PEOPLE):
        figures[_PEOPLE] = people(moshi, prompts, size.each or 200)


def evaluate(
    model: str | Path,
    cache: Path,
    size: Size | None = None,
    only: Sequence[str] = (),
    prompts: Path | None = None,
) -> Examination:
    """Examines a model, or of the groups those alone whose name contains a part of `only`.

    Args:
        model: a name or a folder.
        cache: of renditions.
        size: how much.
        only: parts of names.
        prompts: a folder of people's recordings in G.722; None: people are not measured.
    """
    moshi = moshi_mlx.load(model, codec="mlx", verb="talk")
    size = size or Size()

    def wanted(name: str) -> bool:
        return not only or any(part.lower() in name.lower() for part in only)

    lines = {name: group[: size.each] for name, group in answer_groups().items() if wanted(name)}
    out = examine_answers(moshi, lines, cache, size.answer) if lines else Examination()
    if wanted(_STILLNESS):
        out.figures[_STILLNESS] = stillness(moshi, cache, size)
    if wanted(_INTERRUPTIONS):
        out.figures[_INTERRUPTIONS], out.stops = interruptions(moshi, cache, size)
    if wanted(_LONG_TURNS):
        out.figures[_LONG_TURNS] = long_turns(moshi, cache, size)
    for name, group in conditions().items():
        if wanted(name):
            chosen = group[: size.each]
            found = answers(moshi, chosen, cache, size.answer, DISTURBANCES[name])
            out.figures[name] = answer_figures(found)
            out.answers += found
    for name in _NEURAL_GROUPS:
        if wanted(name) and not ears.has_kokoro():
            out.figures[name] = {_RIGHT: NOT_MEASURED, "questions": 0}
    examine_behaviour(moshi, cache, size, wanted, out.figures, prompts)
    if wanted("codec"):
        out.figures |= codec_figures(moshi.mimi, cache, size.each)
    return out


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Examine a nano model.")
    parser.add_argument("model", help='"nano", or a folder with config.json and its files')
    parser.add_argument("--cache", type=Path, default=Path("build/nano/speech"))
    parser.add_argument("--json", type=Path, help="figures")
    parser.add_argument("--markdown", type=Path, help="tables")
    parser.add_argument("--picture", type=Path, help="plots, SVG")
    parser.add_argument("--card", type=Path, help="Markdown file that has a place for the tables")
    parser.add_argument("--answers", type=Path, help="every answer, as lines of JSON")
    parser.add_argument("--only", nargs="+", default=(), help="parts of names of groups")
    parser.add_argument(
        "--people",
        type=Path,
        default=_PROMPTS if _PROMPTS.is_dir() else None,
        help="folder of a person's recordings in G.722, such as asterisk's prompts",
    )
    parser.add_argument("--quick", action="store_true", help="one of each, to see that it runs")
    args = parser.parse_args(arguments)
    size = QUICK if args.quick else None
    done = evaluate(args.model, args.cache, size, args.only, args.people)
    print(markdown(done.figures, GOALS))
    if args.json:
        args.json.write_text(json.dumps(done.figures, indent=1) + "\n", encoding="utf-8")
    if args.answers:
        rows = (json.dumps(asdict(a) | {"right": a.right}) for a in done.answers)
        args.answers.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    if args.markdown:
        args.markdown.write_text(markdown(done.figures, GOALS), encoding="utf-8")
    if args.picture:
        delays = [a.delay for a in done.answers if a.delay is not None]
        histograms = {
            "response delay (s)": (delays, 0.5),
            "speaks on when interrupted (s)": (done.stops, 1.0),
        }
        plot(done.figures, GOALS, _RIGHT, histograms, args.picture)
    if args.card:
        picture = args.picture and os.path.relpath(args.picture, args.card.parent)
        write_card(args.card, markdown(done.figures, GOALS, picture))


if __name__ == "__main__":
    main()
