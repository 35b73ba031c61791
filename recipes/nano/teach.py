"""The worked example of fine-tuning: recordings that teach nano a new answer, and a check of it.

    python -m recipes.nano.teach data --out build/teach \\
        --answer "My favorite color is green." --ask "what is your favorite color" \\
        --ask "which color do you like best" --ask "tell me your favorite color"
    moshi-train build/teach/run.yaml
    python -m recipes.nano.teach check --out build/teach

What it writes is what any data set looks like: stereo sound, Moshi left and the user right, the
times of Moshi's words beside it, a manifest, and the run's YAML file. Beside the new question there
are questions that nano knows, to rehearse: it is held to what it says to them now, so that it
doesn't forget. Needs flite and espeak-ng.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import mlx.core as mx
import numpy as np
import soundfile
from rich.console import Console
from rich.progress import track

import moshi_mlx
from moshi_mlx.families import Moshi
from moshi_mlx.generate import Generator
from moshi_mlx.text import Word
from moshi_mlx.training.data import write_manifest, write_words

from . import script
from .codec_data import FRAME_SIZE, canonical_rendition
from .renditions import rng_for
from .speech import (
    SAMPLE_RATE,
    TRAIN_USER_VOICES,
    UNHEARD_USER_VOICES,
    Rendition,
    Speech,
    augment,
    speak,
    vary,
)

_VOICES = tuple(v for v in TRAIN_USER_VOICES if not v.startswith("festival:"))
"""An example should not need a third synthesizer."""

SECONDS = 9.6
"""Length of a recording: room for two questions and their answers."""

_LEAD, _DELAY, _GAP = 4, 5, 8
"""Frames before the first question, from a question's last to its answer, and after an answer."""

T = TypeVar("T")

_CHECK_FRAMES = 75
_PER_WORDING = 40
_REHEARSED, _UNKNOWN = 8, 60

RUN = """\
# What this file may say: moshi-train --fields
model: {model}
run_dir: run
data:
  train: train.jsonl
  duration_sec: {seconds}
  batch_size: 8
  coarse_only: 0.5
  level_db: null  # the recordings are as loud as they should be
lora: {{rank: 8, scaling: 2.0}}
max_steps: {steps}
log_every: 20
checkpoint_every: 100
loss:  # as nano was trained
  semantic_weight: 3
  acoustic_weight: 1
  text_padding_weight: 0.15
  text_end_padding_weight: 1.0
  depth_keep: 0.4
optim: {{name: adamw, lr: 2e-3, weight_decay: 0.0, warmup_steps: 20, schedule: linear}}
"""


@dataclass(frozen=True)
class Exchange:
    """A question, as it is spoken, and the answer."""

    question: Rendition
    answer: str


def asked(text: str, voices: Sequence[str], count: int, salt: str) -> list[Rendition]:
    """Renditions of a question by one voice after another."""
    rng = rng_for(text, salt)
    order = rng.permutation(len(voices))
    return [vary(text, voices[order[i % len(voices)]], rng) for i in range(count)]


def exchanges(questions: Sequence[str], answer: str) -> tuple[list[Exchange], list[Exchange]]:
    """The new ones, and those to rehearse."""
    new = [
        Exchange(rendition, answer)
        for text in questions
        for rendition in asked(text, _VOICES, _PER_WORDING, "teach")
    ]
    known = []
    for intent in script.INTENTS:
        wordings = intent.train_wordings
        texts = [wordings[i % len(wordings)] for i in range(_REHEARSED)]
        for i, text in enumerate(texts):
            (rendition,) = asked(text, _VOICES, 1, f"rehearse {i}")
            known.append(Exchange(rendition, intent.reply))
    for text in script.OUT_OF_SCRIPT_TRAIN[:_UNKNOWN]:
        (rendition,) = asked(text, _VOICES, 1, "rehearse")
        known.append(Exchange(rendition, script.NOT_UNDERSTOOD))
    return new, known


def recording(
    parts: Sequence[Exchange], cache: Path, rng: np.random.Generator
) -> tuple[np.ndarray, list[Word]]:
    """Both sides [2, samples] and Moshi's words; its answers begin on the frame grid."""
    length = round(SECONDS * SAMPLE_RATE)
    sides = np.zeros((2, 4 * length), np.float32)
    words: list[Word] = []
    frame = _LEAD + int(rng.integers(40 if len(parts) == 1 else 8))
    for part in parts:
        question = speak(part.question, cache)
        start = frame * FRAME_SIZE + int(rng.integers(FRAME_SIZE))
        _put(sides[1], question, start)
        end = start + round(question.speech_end * SAMPLE_RATE)
        answer = speak(canonical_rendition(part.answer), cache)
        frame = end // FRAME_SIZE + _DELAY
        _put(sides[0], answer, frame * FRAME_SIZE)
        offset = frame * FRAME_SIZE / SAMPLE_RATE
        words += [Word(w.label, offset + w.start, offset + w.end) for w in answer.words]
        frame += -(-len(answer.pcm) // FRAME_SIZE) + _GAP + int(rng.integers(12))
    sides = sides[:, :length]
    sides[1] = augment(sides[1], rng)
    return sides, [word for word in words if word.end < SECONDS]


def _put(side: np.ndarray, speech: Speech, start: int) -> None:
    side[start : start + len(speech.pcm)] += speech.pcm[: max(0, len(side) - start)]


def _progress(items: Sequence[T], what: str) -> Iterable[T]:
    """The items, with a bar on stderr where that is a terminal, else with a line."""
    return track(items, what, len(items), console=Console(stderr=True))


def make_data(
    out: Path, questions: Sequence[str], answer: str, model: str, steps: int
) -> list[Path]:
    """Writes recordings, manifest and YAML file; returns the recordings."""
    out.mkdir(parents=True, exist_ok=True)
    new, known = exchanges(questions, answer)
    rng = np.random.default_rng(0)
    order = [known[i] for i in rng.permutation(len(known))]
    parts: list[Sequence[Exchange]] = [[exchange] for exchange in new]
    parts += zip(order[::2], order[1::2], strict=False)
    paths = []
    for number, spoken in enumerate(_progress(parts, "recordings")):
        sides, words = recording(spoken, out / "speech", rng)
        path = out / "recordings" / f"{number:04}.wav"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, sides.T, SAMPLE_RATE, subtype="FLOAT")
        write_words(path.with_suffix(".json"), words)
        paths.append(path)
    write_manifest(out / "train.jsonl", paths[: len(new)], rehearse=paths[len(new) :])
    run = RUN.format(model=model, seconds=SECONDS, steps=steps)
    (out / "run.yaml").write_text(run, encoding="utf-8")
    lesson = {"questions": list(questions), "answer": answer, "model": model}
    (out / "lesson.json").write_text(json.dumps(lesson, indent=1) + "\n", encoding="utf-8")
    return paths


def answers(moshi: Moshi, questions: Sequence[Rendition], cache: Path) -> list[str]:
    """What the text stream says to questions, each in a separate conversation, greedily."""
    pcm = np.zeros((len(questions), 1, _CHECK_FRAMES * FRAME_SIZE), np.float32)
    for row, question in enumerate(questions):
        rng = rng_for(question.text, f"check {question.voice}")
        spoken = speak(question, cache).pcm
        pcm[row, 0, 6 * FRAME_SIZE :][: len(spoken)] = spoken[: (_CHECK_FRAMES - 6) * FRAME_SIZE]
        pcm[row, 0] = augment(pcm[row, 0], rng, strength=0.6)
    codes = np.array(moshi.mimi.encode(mx.array(pcm)))
    generator = Generator(
        moshi.lm, batch=len(questions), text=moshi.text_sampling, audio=moshi.audio_sampling
    )
    frames = [generator.step(codes[:, :, t]).frame for t in range(_CHECK_FRAMES)]
    steps = [frame[:, 0] for frame in frames if frame is not None]
    padding = {moshi.config.lm.text_padding_id, moshi.config.lm.text_end_padding_id}
    rows = np.stack(steps, axis=1)
    return [moshi.text.decode([int(t) for t in row if t >= 0 and t not in padding]) for row in rows]


def check(out: Path) -> dict[str, float]:
    """Shares of right answers, on renditions never trained on, before and after the lesson."""
    lesson = json.loads((out / "lesson.json").read_text(encoding="utf-8"))
    known = {w: i.reply for i in script.INTENTS for w in i.train_wordings[:2]}
    cache = out / "speech"
    groups: dict[str, list[tuple[Rendition, str]]] = {
        "new answer": [
            (rendition, lesson["answer"])
            for text in lesson["questions"]
            for rendition in asked(text, _VOICES, 8, "check")
        ],
        "new answer, unheard voices": [
            (rendition, lesson["answer"])
            for text in lesson["questions"]
            for rendition in asked(text, UNHEARD_USER_VOICES, 6, "check")
        ],
        "other answers": [
            (asked(text, _VOICES, 1, "check")[0], reply) for text, reply in known.items()
        ],
    }
    figures: dict[str, float] = {}
    adapters = {"before": None, "after": out / "run" / "adapter"}
    said: dict[str, list[str]] = {}
    for when, adapter in adapters.items():
        moshi = moshi_mlx.load(lesson["model"], lora=adapter, verb="talk")
        for name, items in groups.items():
            print(f"{when}, {name}: {len(items)} questions …", file=sys.stderr)
            found = answers(moshi, [rendition for rendition, _ in items], cache)
            right = [text == reply for text, (_, reply) in zip(found, items, strict=True)]
            figures[f"{name}, {when}"] = float(np.mean(right))
            if name == "other answers":
                said[when] = found
    right = [
        a == reply for a, (_, reply) in zip(said["before"], groups["other answers"], strict=True)
    ]
    stayed = [after == b for b, after, ok in zip(*said.values(), right, strict=True) if ok]
    figures["of those right before, still right"] = float(np.mean(stayed))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description="Teach nano a new answer.")
    commands = parser.add_subparsers(dest="command", required=True)
    data = commands.add_parser("data", help="write recordings, manifest and run.yaml")
    data.add_argument("--ask", action="append", required=True, help="the question, a wording each")
    data.add_argument("--answer", required=True, help="what nano is to say")
    data.add_argument("--model", default="nano")
    data.add_argument("--steps", type=int, default=600)
    checking = commands.add_parser("check", help="what nano says, before and after")
    for command in (data, checking):
        command.add_argument("--out", type=Path, default=Path("build/teach"))
    given = parser.parse_args()
    if given.command == "check":
        for name, value in check(given.out).items():
            print(f"{name}: {100 * value:.0f} %")
        return
    paths = make_data(given.out, given.ask, given.answer, given.model, given.steps)
    print(f"{len(paths)} recordings, {given.out / 'run.yaml'}")


if __name__ == "__main__":
    main()
