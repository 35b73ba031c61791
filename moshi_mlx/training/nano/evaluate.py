"""Nano's examination: what it says to renditions, wordings, voices and noises never trained on.

    python -m moshi_mlx.training.nano.evaluate MODEL_FOLDER --json OUT.json --markdown OUT.md

The whole chain runs as in a conversation (sound, codec, language model, codec, sound), many
conversations side by side, and an independent recognizer listens to nano. Needs flite, espeak-ng
and the packages `pocketsphinx` and `pystoi`; plots need `matplotlib`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

import moshi_mlx
from moshi_mlx.generate import Generator
from moshi_mlx.moshi import Moshi

from . import script
from .codec_data import FRAME_SIZE, canonical_rendition
from .recognize import intelligibility, plain_words, recognize, transcribe, word_error_rate
from .renditions import Line, evaluation_lines, one_speaker, rng_for
from .speech import NOISE_KINDS, SAMPLE_RATE, augment, decibels, noise, speak
from .tokens import PAD, sounds
from .train_lm import expected_reply, said_text

_SIDE_BY_SIDE = 48
_WINDOW = SAMPLE_RATE // 100
_AUDIBLE = 0.01  # root mean square of 10 ms; -40 dBFS, 18 dB below nano's speech
_PAUSE_SECONDS = 0.48  # a longer pause ends a reply
_STOPPED_SECONDS = 0.32  # so long silent: has stopped
_ANSWER_SECONDS = 5.6
_LONG_REPLY_SECONDS = 2.3
_RIGHT = "right reply heard"


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
        steps = [generator.step(codes[:, :, t]).tokens for t in range(frames)]
        tokens = np.stack(steps[1:], axis=2)  # nothing is out in the first step
        said = np.array(moshi.mimi.decode(mx.array(tokens[:, 1:])))[:, 0]
        for row, i in enumerate(chosen):
            length = len(users[i])
            nano = np.pad(said[row], (FRAME_SIZE, 0))[:length]
            text = np.pad(tokens[row, 0], (1, 0), constant_values=PAD)
            heard[i] = Heard(users[i], nano, text[: -(-length // FRAME_SIZE)])
    return [heard[i] for i in range(len(users))]


# --------------------------------------------------------------------------- what can be heard


def audible_spans(pcm: np.ndarray, pause: float = _PAUSE_SECONDS) -> list[tuple[float, float]]:
    """When something sounds: (start, end) in seconds, over pauses shorter than `pause`."""
    windows = pcm[: len(pcm) // _WINDOW * _WINDOW].reshape(-1, _WINDOW)
    loud = np.flatnonzero(np.sqrt(np.mean(windows**2, 1)) > _AUDIBLE)
    spans: list[tuple[float, float]] = []
    for window in loud:
        start, end = window / 100, (window + 1) / 100
        if spans and start - spans[-1][1] < pause:
            spans[-1] = (spans[-1][0], end)
        else:
            spans.append((start, end))
    return spans


def cut(pcm: np.ndarray, start: float, end: float, margin: float = 0.06) -> np.ndarray:
    """A span of a recording with a little margin."""
    return pcm[max(0, int((start - margin) * SAMPLE_RATE)) : int((end + margin) * SAMPLE_RATE)]


def share(values: Sequence[bool]) -> float:
    return float(np.mean(values)) if len(values) else float("nan")


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


def placed(line: Line, cache: Path) -> tuple[np.ndarray, float]:
    """A line in a recording with silence around it, as a microphone hears it; its speech's end."""
    rng = rng_for(line.rendition.text, f"evaluation {line.rendition.voice}")
    speech = speak(line.rendition, cache)
    lead = rng.uniform(0.4, 1.2)
    end = lead + speech.speech_end
    length = round((end + _ANSWER_SECONDS) * SAMPLE_RATE)
    start = round(lead * SAMPLE_RATE)
    pcm = np.pad(speech.pcm, (start, length - start - len(speech.pcm)))
    return augment(pcm, rng, strength=0.6), end


def answers(moshi: Moshi, lines: Sequence[Line], cache: Path) -> list[Answer]:
    """Nano's answers to lines, each in a conversation of its own."""
    recordings = [placed(line, cache) for line in lines]
    out = []
    conversations = converse(moshi, [pcm for pcm, _ in recordings])
    for line, (_, end), conversation in zip(lines, recordings, conversations, strict=True):
        spans = audible_spans(conversation.nano, pause=1.0)
        heard = recognize(cut(conversation.nano, *spans[0]), SAMPLE_RATE) if spans else None
        delay = spans[0][0] - end if spans else None
        text = said_text(conversation.text_tokens, moshi.text)
        out.append(Answer(line, text, heard, delay))
    return out


def answer_groups() -> dict[str, list[Line]]:
    """What is asked, by what is new about it."""
    trained = [w for i in script.INTENTS for w in (i.train_wordings[0], i.train_wordings[-1])]
    new = [w for i in script.INTENTS for w in i.held_out_wordings]
    unknown = script.OUT_OF_SCRIPT_HELD_OUT
    return {
        "known voices, new renditions": evaluation_lines(trained, True, salt="rendition"),
        "known voices, new wordings": evaluation_lines(new, True, salt="wording"),
        "unheard voices": evaluation_lines(trained, False, salt="voice"),
        "unheard voices, new wordings": evaluation_lines(new, False, salt="voice"),
        "unknown, known voices": evaluation_lines(unknown, True, "unknown"),
        "unknown, unheard voices": evaluation_lines(unknown, False, "unknown"),
    }


def examine_answers(moshi: Moshi, cache: Path) -> tuple[dict[str, Any], list[Answer]]:
    """Figures of the answers, and the answers."""
    figures: dict[str, Any] = {}
    everything: list[Answer] = []
    for name, lines in answer_groups().items():
        group = answers(moshi, lines, cache)
        everything += group
        figures[name] = {
            _RIGHT: share([a.right for a in group]),
            "right text": share([a.right_text for a in group]),
            "questions": len(group),
        }
        print(name, figures[name], flush=True)
    whole = [a for a in everything if any(same_words(a.text, r) for r in script.replies())]
    delays = np.array([a.delay for a in everything if a.delay is not None and a.delay > 0])
    figures["replies"] = {
        "whole replies recognized": share([a.agrees for a in whole]),
        "text agrees with sound": share([a.agrees for a in everything]),
        "answered at all": share([a.delay is not None for a in everything]),
        "before the user's end": share([a.delay is not None and a.delay <= 0 for a in everything]),
        "delay median": float(np.median(delays)),
        "delay p90": float(np.quantile(delays, 0.9)),
    }
    print(figures["replies"], flush=True)
    return figures, everything


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


def stillness(moshi: Moshi, cache: Path, seconds: float = 30.0) -> dict[str, Any]:
    """How quiet nano stays when nobody speaks, at once and after an answer."""
    recordings = backgrounds(seconds)
    first = dict.fromkeys(recordings, 0.0)
    for line in evaluation_lines(["hello", "tell me a joke", "who are you"], True, salt="still"):
        pcm, end = placed(line, cache)
        name = f"after an answer: {line.rendition.text}"
        recordings[name] = np.pad(pcm, (0, int(seconds * SAMPLE_RATE)))
        first[name] = end + _ANSWER_SECONDS
    names = list(recordings)
    quiet: dict[str, list[bool]] = {"silence": [], "noise": []}
    starts, minutes = 0, 0.0
    worst: dict[str, float] = {}
    for name, conversation in zip(
        names, converse(moshi, [recordings[n] for n in names]), strict=True
    ):
        spans = audible_spans(conversation.nano[int(first[name] * SAMPLE_RATE) :])
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
    figures = {
        "quiet seconds": share([*quiet["silence"], *quiet["noise"]]),
        "quiet seconds in silence": share(quiet["silence"]),
        "quiet seconds in noise": share(quiet["noise"]),
        "false starts per minute": starts / minutes,
        "minutes": minutes,
        "not quiet": worst,
    }
    print("stillness", figures, flush=True)
    return figures


# --------------------------------------------------------------------------------- interruptions


def interruptions(moshi: Moshi, cache: Path, count: int = 40) -> dict[str, Any]:
    """How fast nano falls silent when somebody speaks into its answer, and what it says then."""
    long_replies = [
        i
        for i in script.INTENTS
        if speak(canonical_rendition(i.reply), cache).speech_end > _LONG_REPLY_SECONDS
    ]
    stop = script.find_intent(script.STOP_INTENT)
    rng = np.random.default_rng(7)
    recordings, marks = [], []
    for number in range(count):
        intent = long_replies[number % len(long_replies)]
        by_stop = number % 2 == 0
        word = stop.wordings[number // 2 % len(stop.wordings)]
        other = script.INTENTS[int(rng.integers(len(script.INTENTS)))].train_wordings[0]
        texts = [intent.train_wordings[0], word if by_stop else other]
        asked, spoken = (speak(r, cache) for r in one_speaker(texts, number, "interruption"))
        lead = 0.6
        onset = lead + asked.speech_end + 0.45 + rng.uniform(0.3, 0.9)
        length = round((onset + spoken.speech_end + _ANSWER_SECONDS) * SAMPLE_RATE)
        pcm = np.zeros(length, np.float32)
        for speech, at in ((asked, lead), (spoken, onset)):
            begin = round(at * SAMPLE_RATE)
            pcm[begin : begin + len(speech.pcm)] += speech.pcm
        recordings.append(augment(pcm, rng, strength=0.4))
        marks.append((onset, onset + spoken.speech_end, expected_reply(texts[1])))
    stops: list[float] = []
    replies: list[bool] = []
    for conversation, (onset, end, reply) in zip(converse(moshi, recordings), marks, strict=True):
        spans = audible_spans(conversation.nano, pause=_STOPPED_SECONDS)
        speaking = [span for span in spans if span[0] < onset < span[1]]
        if not speaking:
            continue  # nano was not speaking: nothing to interrupt
        stops.append(speaking[0][1] - onset)
        later = [span for span in audible_spans(conversation.nano, 1.0) if span[1] > end + 0.2]
        heard = None
        if later:
            answer = cut(conversation.nano, max(later[0][0], end), later[-1][1])
            heard = recognize(answer, SAMPLE_RATE)
        replies.append(same_words(reply, heard))
    figures = {
        "stops within 1 s": share([s <= 1.0 for s in stops]),
        "stop time median": float(np.median(stops)) if stops else float("nan"),
        "stop time p90": float(np.quantile(stops, 0.9)) if stops else float("nan"),
        "right reply afterwards": share(replies),
        "interruptions": len(stops),
    }
    print("interruptions", figures, flush=True)
    return figures


def long_turns(moshi: Moshi, cache: Path) -> dict[str, Any]:
    """Murmurs in the pauses of monologues never trained on, and the reply to them."""
    rng = np.random.default_rng(11)
    recordings, pauses = [], []
    for number, monologue in enumerate(m for m in script.MONOLOGUES if m.held_out):
        for voice in range(2):
            at, parts, ends = 0.6, [], []
            for rendition in one_speaker(monologue.sentences, 2 * number + voice, "long turn"):
                speech = speak(rendition, cache)
                parts.append((at, speech.pcm))
                ends.append(at + speech.speech_end)
                at = ends[-1] + rng.uniform(0.7, 1.0)
            pcm = np.zeros(round((ends[-1] + _ANSWER_SECONDS) * SAMPLE_RATE), np.float32)
            for start, part in parts:
                begin = round(start * SAMPLE_RATE)
                pcm[begin : begin + len(part)] += part
            recordings.append(augment(pcm, rng, strength=0.4))
            pauses.append(ends)
    murmurs: list[bool] = []
    held_back: list[bool] = []
    replies: list[bool] = []
    for conversation, ends in zip(converse(moshi, recordings), pauses, strict=True):
        spans = audible_spans(conversation.nano)
        for end in ends[:-1]:
            near = [s for s in spans if end - 0.1 < s[0] < end + 0.9]
            murmurs.append(bool(near))
            held_back.append(all(s[1] - s[0] < 1.0 for s in near))
        last = [s for s in audible_spans(conversation.nano, 1.0) if s[0] > ends[-1]]
        heard = recognize(cut(conversation.nano, *last[0]), SAMPLE_RATE) if last else None
        replies.append(same_words(script.MONOLOGUE_REPLY, heard))
    figures = {
        "murmurs in pauses": share(murmurs),
        "leaves the turn to the user": share(held_back),
        "right reply at the end": share(replies),
        "long turns": len(recordings),
    }
    print("long turns", figures, flush=True)
    return figures


# ----------------------------------------------------------------------------------------- codec


def codec_figures(moshi: Moshi, cache: Path) -> dict[str, Any]:
    """The codec on nano's own replies: intelligibility and open-vocabulary word errors."""
    replies = script.replies()
    speeches = [speak(canonical_rendition(reply), cache).pcm for reply in replies]
    longest = max(-(-len(pcm) // FRAME_SIZE) for pcm in speeches) + 4
    batch = np.zeros((len(speeches), 1, longest * FRAME_SIZE), np.float32)
    for row, pcm in enumerate(speeches):
        batch[row, 0, : len(pcm)] = pcm
    decoded = [
        np.array(moshi.mimi.decode(moshi.mimi.encode(mx.array(batch[i : i + 16]))))[:, 0]
        for i in range(0, len(batch), 16)
    ]
    audio = [row[: len(pcm)] for row, pcm in zip(np.concatenate(decoded), speeches, strict=True)]
    pairs = list(zip(speeches, audio, strict=True))
    scores = [intelligibility(pcm, out, SAMPLE_RATE) for pcm, out in pairs]
    stoi, estoi = np.nanmean(scores, 0)

    def errors(recordings: Sequence[np.ndarray]) -> float:
        heard = [transcribe(pcm, SAMPLE_RATE) for pcm in recordings]
        return word_error_rate(zip(replies, heard, strict=True))

    figures = {
        "STOI": float(stoi),
        "ESTOI": float(estoi),
        "open word error rate, original": errors(speeches),
        "open word error rate, codec": errors(audio),
        "recognized": share(
            [recognize(o, SAMPLE_RATE) == r for r, o in zip(replies, audio, strict=True)]
        ),
    }
    print("codec", figures, flush=True)
    return figures


# ---------------------------------------------------------------------------------------- report

GOALS: tuple[tuple[str, str, str, float, bool], ...] = (
    ("codec", "STOI", "STOI of the codec on the replies it was trained on", 0.93, True),
    ("replies", "whole replies recognized", "replies recognized", 0.97, True),
    (
        "known voices, new renditions",
        "right reply heard",
        "right reply, new renditions",
        0.95,
        True,
    ),
    ("known voices, new wordings", _RIGHT, "right reply, new wordings", 0.95, True),
    ("unheard voices", _RIGHT, "right reply, unheard voices and engines", 0.75, True),
    ("unknown, known voices", _RIGHT, "unknown is not understood", 0.80, True),
    ("stillness", "quiet seconds", "quiet seconds in silence and noise", 0.98, True),
    ("interruptions", "stops within 1 s", "stops within 1 s when interrupted", 0.80, True),
    ("replies", "delay median", "median response delay, s", 0.6, False),
)
"""(group, figure, name, goal, more is better)."""


def markdown(figures: dict[str, Any]) -> str:
    """All figures as tables."""
    lines = ["| what | goal | reached |", "|---|---|---|"]
    for group, key, name, goal, more in GOALS:
        value = figures[group][key]
        met = value >= goal if more else value <= goal
        sign = "≥" if more else "≤"
        lines.append(f"| {name} | {sign} {goal:g} | {value:.3f}{'' if met else ' (missed)'} |")
    lines += ["", "| group | figure | value |", "|---|---|---|"]
    for group, values in figures.items():
        for key, value in values.items():
            shown = f"{value:.3f}" if isinstance(value, float) else str(value)
            lines.append(f"| {group} | {key} | {shown} |")
    return "\n".join(lines) + "\n"


def plot(everything: Sequence[Answer], figures: dict[str, Any], folder: Path) -> None:
    """delays.png and answers.png; needs matplotlib."""
    from matplotlib.figure import Figure  # type: ignore[import-not-found]

    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.add_subplot()
    axes.hist([a.delay for a in everything if a.delay is not None], bins=40, range=(-0.5, 2))
    axes.set(xlabel="response delay (s)", ylabel="answers")
    figure.savefig(folder / "delays.png", dpi=110)
    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.add_subplot()
    names = [name for name, values in figures.items() if _RIGHT in values]
    axes.barh(names, [figures[name][_RIGHT] for name in names])
    axes.set(xlabel="right reply heard", xlim=(0, 1))
    figure.savefig(folder / "answers.png", dpi=110)


def evaluate(model: Path, cache: Path) -> tuple[dict[str, Any], list[Answer]]:
    """All figures of a model's folder, and nano's answers."""
    moshi = moshi_mlx.load(model, codec="mlx")
    figures, everything = examine_answers(moshi, cache)
    figures["stillness"] = stillness(moshi, cache)
    figures["interruptions"] = interruptions(moshi, cache)
    figures["long turns"] = long_turns(moshi, cache)
    figures["codec"] = codec_figures(moshi, cache)
    return figures, everything


def main() -> None:
    parser = argparse.ArgumentParser(description="Examine a nano model.")
    parser.add_argument("model", type=Path, help="folder with config.json and its files")
    parser.add_argument("--cache", type=Path, default=Path("build/nano/speech"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--answers", type=Path, help="every answer, as lines of JSON")
    parser.add_argument("--plots", type=Path, help="folder for plots")
    args = parser.parse_args()
    figures, everything = evaluate(args.model, args.cache)
    print(markdown(figures))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    if args.markdown:
        args.markdown.write_text(markdown(figures), encoding="utf-8")
    if args.answers:
        rows = (
            {
                "asked": a.line.rendition.text,
                "voice": a.line.rendition.voice,
                "text": a.text,
                "heard": a.heard,
                "delay": a.delay,
                "right": a.right,
            }
            for a in everything
        )
        args.answers.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    if args.plots:
        args.plots.mkdir(parents=True, exist_ok=True)
        plot(everything, figures, args.plots)


if __name__ == "__main__":
    main()
