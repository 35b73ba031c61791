"""Text-to-speech cases against the reference: scripts, machines, conditions and whole runs."""

import json
from collections import deque
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import mlx.core as mx
import numpy as np

from moshi_mlx import ArgumentError, load
from moshi_mlx.arrays import Tokens
from moshi_mlx.families.speak import Pacing, Tts
from moshi_mlx.families.speaker_voices import TENSOR
from moshi_mlx.families.speech_machine import SpeechMachine
from moshi_mlx.families.speech_run import SpeechRun
from moshi_mlx.families.speech_script import ScriptEntry, ScriptReader, entries_of
from moshi_mlx.files import read_json
from moshi_mlx.generate import Generator, Step
from moshi_mlx.sampling import Sampling
from moshi_mlx.sounds import open_sound
from moshi_mlx.text import TextTokenizer
from moshi_mlx.voices import Voice

PADDING = 3
FRAMES = 6  # of sound that are compared


class Recorded(Generator):
    """A generator that keeps what it reads and draws."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.reads: list[Tokens] = []
        self.drawn: list[Tokens] = []
        super().__init__(*args, **kwargs)

    def _reads(self, *args: Any) -> Tokens:
        self.reads.append(super()._reads(*args))
        return self.reads[-1]

    def step(self, *args: Any, **kwargs: Any) -> Step:
        hook = kwargs.pop("on_text")

        def on_text(drawn: Tokens) -> Tokens:
            self.drawn.append(drawn)
            chosen: Tokens = hook(drawn)
            return chosen

        return super().step(*args, on_text=on_text, **kwargs)


def entry(given: dict[str, Any]) -> ScriptEntry:
    return ScriptEntry(given["text"], tuple(given["tokens"]), given["padding"])


def run_machines(traces: list[dict[str, Any]]) -> dict[str, float]:
    """Rows and results of all traces that differ."""
    wrong = 0
    for trace in traces:
        machine = SpeechMachine(
            trace["card"],
            trace["second_stream_ahead"],
            trace["max_padding"],
            trace["initial_padding"],
            entries=deque(map(entry, trace["entries"])),
        )
        for step, row in enumerate(trace["rows"]):
            before = len(machine.begun)
            token = machine.step(row[0], step)
            counts = len(machine.main), len(machine.second), len(machine.entries)
            popped = len(machine.begun) - before
            wrong += [row[0], token, popped, machine.may, machine.must, *counts] != row
        words = [[begun.text, begun.step] for begun in machine.begun if begun.text]
        wrong += machine.end_step != trace["end_step"]
        wrong += [begun.step for begun in machine.begun] != trace["consumption_times"]
        wrong += words != trace["transcript"]
    return {"machines": float(wrong)}


def run_scripts(groups: list[dict[str, Any]], folder: Path) -> dict[str, float]:
    """Scripts whose entries differ, read at once or letter by letter, or that should be refused."""
    wrong = 0
    for group in groups:
        encode = TextTokenizer(folder / f"tokenizer-{group['tokenizer']}.model").encode
        for case in group["cases"]:
            reader, slow = (
                ScriptReader(
                    encode,
                    frame_rate=12.5,
                    padding_between=case["padding_between"],
                    speakers=case["multi_speaker"],
                    exact=True,
                )
                for _ in range(2)
            )
            try:
                found = entries_of(reader, case["script"])
            except ArgumentError:
                wrong += "fails" not in case
                continue
            letters: list[ScriptEntry] = []
            for i, turn in enumerate(case["script"]):
                slow.turn(i % 2)
                for letter in turn:
                    letters += slow.read(letter)
                letters += slow.end()
            wrong += "fails" in case or found != [*map(entry, case["entries"])] or found != letters
    return {"scripts": float(wrong)}


def run_speech_file(path: Path) -> dict[str, float]:
    """Of `machine.json` or `scripts.json`."""
    cases = json.loads(path.read_text(encoding="utf-8"))
    return run_machines(cases) if "rows" in cases[0] else run_scripts(cases, path.parent)


def run_speech(folder: Path) -> dict[str, float]:
    """All quantities of a case, with the largest difference or how many tokens are wrong."""
    model = load(folder, verb="speak", codec="mlx", dtype=mx.float32)
    assert isinstance(model, Tts)
    loaded = mx.load(str(folder / "expected.safetensors"))
    assert isinstance(loaded, dict)
    expected = {name: np.array(array) for name, array in loaded.items()}
    about = read_json(folder / "runs.json")
    result = run_conditions(model, expected, about["forward"])
    for run in about["runs"]:
        result |= run_one(model, run, expected, folder)
    return result


def run_conditions(
    model: Tts, expected: dict[str, np.ndarray], given: dict[str, Any]
) -> dict[str, float]:
    """The teacher-forced pass, with its conditions."""
    from moshi_mlx.conditions import Condition, Masked
    from tests.conformance import run_forward

    values: list[dict[str, Condition]] = []
    for row in range(2):
        each: dict[str, Condition] = {name: names[row] for name, names in given.items()}
        if f"forward.speaker_wavs.{row}" in expected:
            wavs = mx.array(expected[f"forward.speaker_wavs.{row}"])
            mask = mx.array(expected[f"forward.speaker_mask.{row}"])
            each[TENSOR] = Masked(wavs, mask)
        values.append(each)
    conditions = None
    result: dict[str, float] = {}
    if model.lm.config.conditioners:
        conditions = model.lm.condition_provider(values)
        for name, ours in (("sum", conditions.sum), ("cross", conditions.cross)):
            theirs = expected[f"forward.condition_{name}"]
            result[f"forward.condition_{name}"] = float(np.abs(np.array(ours) - theirs).max())
    return result | run_forward(model.lm, expected, values if conditions else None)


def run_one(
    model: Tts, run: dict[str, Any], expected: dict[str, np.ndarray], folder: Path
) -> dict[str, float]:
    """One run: a line of numbers."""
    name, scripts = run["name"], run["script"]
    pacing = Pacing(
        run["max_padding"], run["initial_padding"], run["final_padding"], run["padding_between"]
    )
    made = [model.machine(pacing, exact=True) for _ in scripts]
    wrong = 0
    for (machine, reader), script, entries in zip(made, scripts, run["entries"], strict=True):
        machine.add(entries_of(reader, script))
        wrong += [*machine.entries] != [*map(entry, entries)]
    machines = [machine for machine, _ in made]
    voices = voices_of(model, run, folder)
    greedy = Sampling(temperature=0)
    text = Sampling(temperature=0, bonus=(PADDING, run["padding_bonus"]))
    factor = run["cfg_condition"] if model.takes_voice_files else run["cfg_coef"]
    with patch("moshi_mlx.families.speak.Generator", Recorded):
        ours = model.worker.call(
            lambda: model.run(
                machines,
                voices,
                cfg=factor,
                guide_text=not run["cfg_is_no_text"],
                guide_prefix=not run["cfg_is_no_prefix"],
                text=text,
                audio=greedy,
                pacing=pacing,
                codebooks=run["n_q"],
            )
        )
    return compared(model, ours, run, expected, wrong, name)


def voices_of(model: Tts, run: dict[str, Any], folder: Path) -> list[list[Any]]:
    """Of each text."""
    if "prefixes" in run:
        return [[spoken(model, folder / "voices" / f"{name}.wav")] for name in run["prefixes"]]
    return [
        [None if name == "none" else model.voice(name) for name in names] for names in run["voices"]
    ]


def spoken(model: Tts, path: Path) -> Voice:
    """A recording as it is, without what makes a voice of one's own good."""
    pcm = open_sound(path).read(model.sample_rate).mean(axis=0)
    pcm = np.pad(pcm, (0, -len(pcm) % model.frame_size))

    def codes() -> np.ndarray:
        return np.array(model.mimi.encode(mx.array(pcm[None, None])))[0]

    return Voice(path.stem, codes=model.worker.call(codes)[: model.lm.config.n_q])


def compared(
    model: Tts,
    ours: SpeechRun,
    run: dict[str, Any],
    expected: dict[str, np.ndarray],
    wrong: int,
    name: str,
) -> dict[str, float]:
    machines = ours.machines
    written: list[list[int]] = []
    frames, logits = [], []
    while not ours.done:
        step = model.worker.call(ours.step)
        written.append(step.written[:, 0].tolist())
        logits.append(np.array(step.text_logits))
        if step.frame is not None:
            frames.append(step.frame)
    wrong += ours.steps != run["steps"]
    wrong += [machine.end_step for machine in machines] != run["end_steps"]
    begun = [[begun.step for begun in machine.begun] for machine in machines]
    wrong += begun != run["consumption_times"]
    words = [[[b.text, b.step] for b in machine.begun if b.text] for machine in machines]
    wrong += words != run["transcripts"]
    logged = expected[f"{name}.logged"]
    skipped = logged.shape[1] - len(written)
    forced = np.array(written).T
    theirs = expected[f"{name}.frames"]
    found = np.stack(frames, axis=2)
    generator: Any = ours._generator
    drawn = np.stack(generator.drawn, axis=1)
    reads, inputs = np.stack(generator.reads, axis=2), expected[f"{name}.inputs"]
    if ours.unused:
        there = [k for k in range(reads.shape[1]) if k - 1 not in ours.unused]
        reads, inputs = reads[:, there], inputs[:, there]
    same = reads.shape == inputs.shape
    result = {
        f"{name}.facts": float(wrong),
        f"{name}.forced": float((forced != logged[:, skipped:, 1]).sum()),
        f"{name}.drawn": float((drawn != logged[:, skipped:, 0]).sum()),
        f"{name}.inputs": float((reads != inputs).sum()) if same else np.inf,
    }
    theirs = theirs[:, :, theirs.shape[2] - found.shape[2] :]
    if ours.unused:  # their streams are drawn, ours are not
        kept = [k for k in range(found.shape[1]) if k - 1 not in ours.unused]
        found, theirs = found[:, kept], theirs[:, kept]
    same = found.shape == theirs.shape
    result[f"{name}.frames"] = float((found != theirs).sum()) if same else np.inf
    for part, side in (("pcm", 0), ("pcm_other", 1)):
        if f"{name}.{part}" in expected:
            whole = expected[f"{name}.frames"][0, 1:, ours.delay : ours.delay + FRAMES]
            codes = np.split(whole, 2)[side] if model.tts.multistream else whole
            sound = model.worker.call(partial(decoded, model, codes))
            result[f"{name}.{part}"] = float(np.abs(sound - expected[f"{name}.{part}"][0]).max())
    if f"{name}.text_logits" in expected:
        wanted = expected[f"{name}.text_logits"][:, skipped:]
        result[f"{name}.text_logits"] = float(np.abs(np.stack(logits, axis=1) - wanted).max())
    return result


def decoded(model: Tts, codes: np.ndarray) -> np.ndarray:
    """Sound of frames, one after the other."""
    codec: Any = model.codec
    state = codec.init_state()
    return np.concatenate([codec.decode_step(frame[:, None], state) for frame in codes.T])
