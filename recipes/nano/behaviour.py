"""Nano's examination in conversation: hesitations, overlaps, given text, people, an open ear.

Knows scenes and what is to be heard in them; scores are those of the library's bench. Everything
runs through sessions, frame by frame. Knows nothing of reports. What is not installed is not
measured, and its figures say so.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moshi_mlx.activity import audible_spans
from moshi_mlx.conversation_bench import (
    Axis,
    Whisper,
    at_level,
    in_noise,
    in_room,
    on_telephone,
)
from moshi_mlx.conversation_bench.figures import figures_of, scored
from moshi_mlx.conversation_bench.running import SceneTalk, run_scenes
from moshi_mlx.conversation_bench.scenes import Cue, Marks, Scene, scene_seed
from moshi_mlx.conversation_bench.scores import said_sentences, takes_over
from moshi_mlx.events import TextSaid
from moshi_mlx.families import Moshi
from moshi_mlx.sounds import open_sound
from moshi_mlx.text import Word, join_words, plain_words

from . import script
from .codec_data import canonical_rendition
from .recognize import matching_words, spelt, word_error_rate
from .renditions import evaluation_lines, one_speaker, rng_for
from .speech import SAMPLE_RATE, Speech, augment, far_away, hesitant, speak
from .train_lm import expected_reply

NOT_MEASURED = "not measured"
_USER_LEVEL, _ASIDE_LEVEL = -25.0, -31.0  # dBFS
_LEAD = 0.6
_ANSWER_SECONDS = 5.6
_SAME_WORD_SECONDS = 1.0
_SAY_SECONDS = 20.0  # at most, for one reply

Disturbance = Callable[[np.ndarray, np.random.Generator], np.ndarray]

DISTURBANCES: Mapping[str, Disturbance] = {
    "room, RT60 0.35 s, DRR 3 dB": lambda pcm, rng: in_room(pcm, SAMPLE_RATE, 0.35, 3.0, rng),
    "noise, 15 dB": lambda pcm, rng: in_noise(pcm, SAMPLE_RATE, 15.0, rng),
    "noise, 10 dB": lambda pcm, rng: in_noise(pcm, SAMPLE_RATE, 10.0, rng),
    "telephone": lambda pcm, rng: on_telephone(pcm, SAMPLE_RATE),
}
"""What is done to a voice at -25 dBFS, by what it is called; the numbers are exact."""


def disturbed_by(disturb: Disturbance, pcm: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A user's side under one of these."""
    return disturb(at_level(pcm, SAMPLE_RATE, _USER_LEVEL), rng)


def _share(values: Sequence[bool]) -> float:
    return float(np.mean(values)) if values else float("nan")


def _voice(pcm: np.ndarray) -> list[tuple[float, float]]:
    spans = audible_spans(pcm, SAMPLE_RATE, window=0.01, pause=0.1)
    return [(start / SAMPLE_RATE, end / SAMPLE_RATE) for start, end in spans]


def _scene(axis: Axis, number: int, speech: Speech, text: str, cue: Cue | None = None) -> Scene:
    """A user's turn that begins after 0.6 s, with a little noise."""
    rng = rng_for(text, f"behaviour {axis} {number}")
    pcm = augment(np.pad(speech.pcm, (round(_LEAD * SAMPLE_RATE), 0)), rng, strength=0.3)
    end = _LEAD + speech.speech_end
    marks = Marks(axis, f"{number}", end, [(_LEAD, end)], context=text)
    return Scene(marks, pcm, cue, _ANSWER_SECONDS, scene_seed(0, axis, f"{number}"))


def _wholes(words: Sequence[Word]) -> list[str]:
    """The replies that were said to their end."""
    return [" ".join(s.words) for s in said_sentences(words, script.replies()) if s.whole]


def hesitations(moshi: Moshi, cache: Path, count: int) -> dict[str, Any]:
    """A pause of 0.4 to 1.5 s inside a question."""
    asked = [w.train_wordings[0] for w in script.INTENTS]
    texts = [text for text in asked if len(text.split()) >= 4][:count]
    lines = evaluation_lines(texts, True, salt="hesitation")

    def scenes() -> Iterator[Scene]:
        for number, line in enumerate(lines):
            text = line.rendition.text
            rng = rng_for(text, "hesitation")
            after = int(rng.integers(1, len(text.split()) - 1))
            speech = hesitant(speak(line.rendition, cache), [after], rng)
            yield _scene(Axis.PAUSE, number, speech, text)

    over, right = [], []
    for talk in run_scenes(moshi, scenes()):
        end = talk.marks.turn_end
        over.append(takes_over([word for word in talk.words if word.start < end]))
        wanted = " ".join(plain_words(expected_reply(talk.marks.context)))
        late = [word for word in talk.words if word.start >= end]
        right.append(wanted in _wholes(late))
    return {
        "takes over": _share(over),
        "right reply in the end": _share(right),
        "questions": len(over),
    }


def overlaps(moshi: Moshi, cache: Path, count: int) -> dict[str, dict[str, Any]]:
    """What nano does when something sounds while it speaks."""
    long = [i for i in script.INTENTS if len(i.reply.split()) >= 6]
    groups = {
        "user backchannel": (Axis.USER_BACKCHANNEL, script.MURMURS),
        "talk to others": (Axis.OTHERS, script.ASIDES_HELD_OUT),
        "background voice": (Axis.BACKGROUND, script.OUT_OF_SCRIPT_HELD_OUT),
        "real interruption": (Axis.INTERRUPTION, script.find_intent("stop").held_out_wordings),
    }
    found: dict[str, dict[str, Any]] = {}
    for name, (axis, said) in groups.items():

        def scenes(axis: Axis = axis, said: Sequence[str] = said) -> Iterator[Scene]:
            for number in range(count):
                question = long[number % len(long)].train_wordings[0]
                texts = [question, said[number % len(said)]]
                asked, other = (speak(r, cache) for r in one_speaker(texts, number, f"{axis}"))
                rng = rng_for(texts[1], f"overlap {axis} {number}")
                pcm = at_level(other.pcm, SAMPLE_RATE, _USER_LEVEL)
                if axis is Axis.OTHERS:
                    pcm = at_level(other.pcm, SAMPLE_RATE, _ASIDE_LEVEL)
                if axis is Axis.BACKGROUND:
                    pcm = far_away(other.pcm, rng)
                cue = Cue(pcm, float(rng.uniform(0.3, 0.8)))
                yield _scene(axis, number, asked, question, cue)

        scores = [_scored(talk) for talk in run_scenes(moshi, scenes())]
        figures = figures_of(scores)[axis]
        found[name] = {
            "goes on": figures.get("RESUME", float("nan")),
            "stops within 1 s": figures.get("stopped", float("nan")),
            "answers it": figures.get("RESPOND", float("nan")),
            "does not understand": figures.get("UNCERTAIN", float("nan")),
            "scenes": len(scores) - int(figures.get("left_out", 0)),
        }
        if axis is not Axis.INTERRUPTION:
            found[name]["stops within 1 s"] = "–"
    return found


def _scored(talk: SceneTalk) -> dict[str, Any]:
    seconds = len(talk.model) / SAMPLE_RATE
    return scored(talk.marks, talk.words, _voice(talk.model), seconds, script.replies())


def given_text(
    moshi: Moshi, cache: Path, count: int, whisper: Whisper | None
) -> dict[str, dict[str, Any]]:
    """Whether the sound follows the text: none where text is held, and what `say` was given."""
    size = moshi.frame_size
    texts = [i.train_wordings[0] for i in script.INTENTS][:count]
    quiet = []
    for line in evaluation_lines(texts, True, salt="held"):
        pcm = np.pad(speak(line.rendition, cache).pcm, (0, int(_ANSWER_SECONDS * SAMPLE_RATE)))
        with moshi.session() as session:
            frames = [
                session.step(piece, hold_text=True)
                for piece in pcm[: len(pcm) // size * size].reshape(-1, size)
            ]
        sounds = _voice(np.concatenate([frame.pcm for frame in frames]))
        seconds = int(len(pcm) / SAMPLE_RATE)
        quiet += [not any(a < s + 1 and b > s for a, b in sounds) for s in range(seconds)]
    held = {"quiet seconds": _share(quiet), "seconds": len(quiet)}
    wanted, right = 0, 0
    replies = [r for r in script.replies() if len(r.split()) > 2][:count]
    for text in replies if whisper is not None else ():
        said = _said_aloud(moshi, text)
        assert whisper is not None
        heard = spelt(whisper.hear(said, SAMPLE_RATE)).split()
        words = spelt(text).split()
        wanted, right = wanted + len(words), right + len(matching_words(words, heard))
    share: Any = right / wanted if wanted else NOT_MEASURED
    return {"text held": held, "text forced": {"words heard right": share, "texts": len(replies)}}


def _said_aloud(moshi: Moshi, text: str) -> np.ndarray:
    """The sound of a text that `say` was given, and of a second after it."""
    silence = np.zeros(moshi.frame_size, np.float32)
    frames, left = [], round(_SAY_SECONDS * moshi.frame_rate)
    with moshi.session() as session:
        session.say(text)
        while left:
            frames.append(session.step(silence))
            done = any(isinstance(event, TextSaid) for event in frames[-1].events)
            left = round(moshi.frame_rate) if done else left - 1
    return np.concatenate([frame.pcm for frame in frames])


def own_voice(moshi: Moshi, cache: Path, count: int, whisper: Whisper | None) -> dict[str, Any]:
    """What Whisper makes of nano's replies, against its text stream; and of flite's originals."""
    names = ("word error", "word error, originals", "word starts, mean s off", "word starts, bias")
    if whisper is None:
        return {**dict.fromkeys(names, NOT_MEASURED), "replies": 0}
    lines = evaluation_lines(
        [i.train_wordings[0] for i in script.INTENTS][:count], True, salt="ear"
    )

    def scenes() -> Iterator[Scene]:
        for number, line in enumerate(lines):
            text = line.rendition.text
            yield _scene(Axis.TURN, number, speak(line.rendition, cache), text)

    pairs, originals, late = [], [], []
    for talk in run_scenes(moshi, scenes()):
        text = join_words(word.text for word in talk.words)
        if not text:
            continue
        heard = whisper.words(talk.model, SAMPLE_RATE)
        pairs.append((spelt(text), spelt(join_words(word.text for word in heard))))
        late += _starts_off(talk.words, heard)
        reply = canonical_rendition(expected_reply(talk.marks.context))
        original = whisper.hear(speak(reply, cache).pcm, SAMPLE_RATE)
        originals.append((spelt(reply.text), spelt(original)))
    return {
        names[0]: word_error_rate(pairs),
        names[1]: word_error_rate(originals),
        names[2]: float(np.mean(np.abs(late))),
        names[3]: float(np.mean(late)),
        "replies": len(pairs),
    }


def _starts_off(said: Sequence[Word], heard: Sequence[Word]) -> list[float]:
    """Seconds by which words that were heard begin after the text stream has them."""
    ours, theirs = ([" ".join(plain_words(w.text)) for w in words] for words in (said, heard))
    off = [heard[b].start - said[a].start for a, b in matching_words(ours, theirs)]
    return [seconds for seconds in off if abs(seconds) <= _SAME_WORD_SECONDS]


def people(moshi: Moshi, folder: Path | None, count: int) -> dict[str, Any]:
    """What nano says to a person whose sentences aren't in its script.

    Args:
        moshi: nano.
        folder: of recordings in G.722; those whose name's CRC-32 is even are taken.
        count: at most.
    """
    names = ("not understood or silent", "wrong answer")
    files = [] if folder is None else sorted(folder.rglob("*.g722"))
    chosen = [p for p in files if zlib.crc32(p.name.encode()) % 2 == 0][:count]
    if not chosen:
        return {**dict.fromkeys(names, NOT_MEASURED), "prompts": 0}

    def scenes() -> Iterator[Scene]:
        for number, path in enumerate(chosen):
            pcm = open_sound(path).read(SAMPLE_RATE).mean(axis=0)
            pcm = np.pad(at_level(pcm, SAMPLE_RATE, _USER_LEVEL), (round(_LEAD * SAMPLE_RATE), 0))
            marks = Marks(Axis.TURN, f"{number}", len(pcm) / SAMPLE_RATE)
            yield Scene(marks, pcm, None, _ANSWER_SECONDS, scene_seed(0, Axis.TURN, f"{number}"))

    fine = {" ".join(plain_words(t)) for t in (script.NOT_UNDERSTOOD, script.BACKCHANNEL)}
    right = []
    for talk in run_scenes(moshi, scenes()):
        said = [" ".join(s.words) for s in said_sentences(talk.words, script.replies())]
        right.append(set(said) <= fine)
    return {
        names[0]: _share(right),
        names[1]: 1 - _share(right),
        "prompts": len(right),
    }
