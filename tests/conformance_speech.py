"""What the cases of text-to-speech models have: runs, traces of the machine, scripts."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from moshi_mlx import Sampling, load
from moshi_mlx.arrays import Tokens
from moshi_mlx.conditions import Masked
from moshi_mlx.errors import ArgumentError
from moshi_mlx.families.speak import SpeakSettings, Tts
from moshi_mlx.files import read_json
from moshi_mlx.generate import Generator, Step
from moshi_mlx.speech_machine import Entry, SpeechMachine
from moshi_mlx.speech_script import ScriptReader
from moshi_mlx.text import TextTokenizer
from moshi_mlx.voices import Voice

GREEDY = Sampling(temperature=0)
STEPS_PER_SECOND = 12.5


class Recorded(Generator):
    """A generator that keeps what it reads, draws and writes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.reads: list[Tokens] = []
        self.logged: list[Tokens] = []
        self.logits: list[npt.NDArray[np.float32]] = []
        self.frames: list[Tokens | None] = []
        super().__init__(*args, **kwargs)
        made.append(self)

    def _reads(self, *args: Any) -> Tokens:
        found = super()._reads(*args)
        self.reads.append(found)
        return found

    def step(self, *args: Any, **kwargs: Any) -> Step:
        hook = kwargs.pop("on_text")

        def on_text(drawn: Tokens) -> Tokens:
            forced: Tokens = hook(drawn)
            self.logged.append(np.stack([drawn, forced], axis=1))
            return forced

        step = super().step(*args, on_text=on_text, **kwargs)
        self.frames.append(step.frame)
        self.logits.append(np.array(step.text_logits))
        return step


made: list[Recorded] = []


def load_model(folder: Path) -> Tts:
    """The case's model in float32."""
    model = load(folder, verb="speak", dtype=mx.float32, codec="mlx")
    assert isinstance(model, Tts)
    return model


def settings_of(run: Mapping[str, Any], dep_q: int) -> SpeakSettings:
    """Of a run; in the makers' spelling of pauses alone."""
    return SpeakSettings(
        max_padding=run["max_padding"],
        initial_padding=run["initial_padding"],
        final_padding=run["final_padding"],
        padding_between=run["padding_between"],
        padding_bonus=run["padding_bonus"],
        codebooks=None if run["n_q"] == dep_q else run["n_q"],
        guided_text=not run["cfg_is_no_text"],
        guided_prefix=not run["cfg_is_no_prefix"],
        without_cfg=run["cfg_condition"] is None,
        exact=True,
    )


def run_speech(folder: Path, expected: Mapping[str, Any]) -> dict[str, float]:
    """All runs of a case: tokens and times as counts of those that differ, else the difference."""
    facts = read_json(folder / "runs.json")
    model = load_model(folder)
    result = conditions(model, facts["forward"], expected)
    for run in facts["runs"]:
        result |= one_run(model, run, expected)
    return result


def conditions(
    model: Tts, names: Mapping[str, Any], expected: Mapping[str, Any]
) -> dict[str, float]:
    """The teacher-forced pass and its conditions, where the model has some."""
    lm, given = model.lm, None
    if lm.config.conditioners:
        values = [
            {
                "speaker_wavs": Masked(
                    mx.array(expected[f"forward.speaker_wavs.{b}"]),
                    mx.array(expected[f"forward.speaker_mask.{b}"]),
                )
            }
            | {name: names[name][b] for name in ("control", "cfg")}
            for b in (0, 1)
        ]
        given = lm.condition_provider(values)
    output = lm.forward(mx.array(expected["forward.codes"]), given)
    masks = np.array(output.masks)
    result = {
        "forward.mask": float((masks[:, 1:] != expected["forward.mask"]).sum()),
        "forward.text_mask": float((masks[:, :1] != expected["forward.text_mask"]).sum()),
    }
    for name, ours in (("text_logits", output.text_logits), ("logits", output.audio_logits)):
        there = expected["forward.text_mask" if name == "text_logits" else "forward.mask"]
        off = np.abs(np.array(ours) - expected[f"forward.{name}"])
        result[f"forward.{name}"] = float(np.where(there[..., None], off, 0).max())
    for name in ("sum", "cross") if given is not None else ():
        off = np.abs(np.array(getattr(given, name)) - expected[f"forward.condition_{name}"])
        # Held to 1e-5, where `passes` allows logits 1e-3.
        result[f"forward.condition_{name} logits"] = 100 * float(off.max())
    return result


def one_run(
    model: Tts, run: Mapping[str, Any], expected: Mapping[str, npt.NDArray[Any]]
) -> dict[str, float]:
    """A run through `speak_batch`; what it speaks, through `speak` too."""
    name, items = run["name"], len(run["script"])
    settings = settings_of(run, model.lm.config.dep_q)
    cfg = run["cfg_condition"]
    if "cfg" not in model.lm.config.conditioners:
        cfg = run["cfg_coef"]
    voices: list[Any] = [None] * items
    if "prefixes" in run:
        voices = [f"{voice}.wav" for voice in run["prefixes"]]
    elif "voices" in run:
        voices = [None if v == ["none"] else [f"{n}.wav" for n in v] for v in run["voices"]]
    speaking = {"cfg": cfg, "settings": settings, "text": GREEDY, "audio": GREEDY}
    made.clear()
    with patch("moshi_mlx.families.speak.Generator", Recorded):
        speeches = model.speak_batch(run["script"], voices=voices, **speaking)
    (generator,) = made
    result = {
        f"{name}.{what}": value
        for what, value in (
            ("steps", float(generator.steps != run["steps"])),
            ("delay_steps", float(model.delay_steps != run["delay_steps"])),
            ("inputs", wrong(np.stack(generator.reads, axis=2), expected[f"{name}.inputs"])),
        )
    }
    before = run["steps"] - len(generator.logged)  # in one block, for a prefix
    logged = np.stack(generator.logged, axis=1)
    result[f"{name}.logged"] = wrong(logged, expected[f"{name}.logged"][:, before:])
    frames = [frame for frame in generator.frames if frame is not None]
    theirs = expected[f"{name}.frames"]
    ours = np.stack(frames, axis=2)[:, : theirs.shape[1]]
    result[f"{name}.frames"] = wrong(ours, theirs[:, :, theirs.shape[2] - ours.shape[2] :])
    if f"{name}.text_logits" in expected:
        logits = np.stack(generator.logits, axis=1)
        off = logits - expected[f"{name}.text_logits"][:, before:]
        result[f"{name}.text_logits"] = float(np.abs(off).max())
    for b, speech in enumerate(speeches):
        result |= item(model, run, b, speech, voices[b], expected)
    single = run["script"][0], voices[0]
    spoken = model.speak(single[0], voice=single[1], **speaking)
    chunks = list(spoken)
    pcm = np.concatenate([chunk.pcm for chunk in chunks])
    # In a batch, the steps of longer scripts complete the last frames of shorter ones too.
    result[f"{name}.streamed logits"] = float(np.abs(pcm - speeches[0].pcm[: len(pcm)]).max())
    if f"{name}.pcm" not in expected or "prefixes" in run:
        return result
    sides = [chunk.sides or (chunk.pcm,) for chunk in chunks]
    for side, part in enumerate(("pcm", "pcm_other")):
        if f"{name}.{part}" in expected:
            theirs = expected[f"{name}.{part}"][0]
            ours = np.concatenate([each[side] for each in sides])[: len(theirs)]
            clipped = np.clip(theirs, -1, 1) if len(sides[0]) == 1 else theirs
            result[f"{name}.{part} logits"] = float(np.abs(ours - clipped).max())
    return result


def item(
    model: Tts, run: Mapping[str, Any], b: int, speech: Any, voice: Any, expected: Mapping[str, Any]
) -> dict[str, float]:
    """What is expected of one script of a run."""
    name = f"{run['name']}.{b}"
    rate, prefix = model.frame_rate, 0
    result: dict[str, float] = {}
    if f"{run['name']}.prefix.{b}" in expected:
        found = model.voice(voice)
        assert isinstance(found, Voice)
        assert found.codes is not None
        theirs = expected[f"{run['name']}.prefix.{b}"][1:]
        prefix = theirs.shape[1]
        result[f"{name}.prefix"] = wrong(found.codes[:, :-2], theirs)
        if f"{run['name']}.pcm" in expected:
            pcm = expected[f"{run['name']}.pcm"][b]
            frames = len(pcm) // model.frame_size
            codec = model.codec
            ours = model.worker.call(
                lambda: codec.decode_step(theirs[:, :frames], codec.init_state())
            )
            result[f"{name}.pcm logits"] = float(np.abs(ours - pcm).max())
    entries = [
        {"text": e.text, "tokens": list(e.tokens), "padding": e.padding}
        for e in model.entries(run["script"][b], settings_of(run, model.lm.config.dep_q))
    ]
    result[f"{name}.entries"] = float(entries != run["entries"][b])
    steps = [round(word.start * rate) + prefix for word in speech.words]
    words = [[word.text, step] for word, step in zip(speech.words, steps, strict=True) if word.text]
    result[f"{name}.times"] = float(steps != run["consumption_times"][b])
    result[f"{name}.words"] = float(words != run["transcripts"][b])
    most = run["end_steps"][b] + run["final_padding"] - prefix
    there = run["steps"] - max(model.lm.config.delays) - run["delay_steps"] - prefix
    result[f"{name}.length"] = float(len(speech.pcm) != min(most, there) * model.frame_size)
    return result


def wrong(ours: npt.NDArray[Any], theirs: npt.NDArray[Any]) -> float:
    """How many tokens differ."""
    return float((ours != theirs).sum()) if ours.shape == theirs.shape else np.inf


def run_traces(cases: Any) -> dict[str, float]:
    """Traces of the machine alone: how many of them differ."""
    bad = 0
    for case in cases:
        machine = SpeechMachine(
            text_card=case["card"] - 1,
            ahead=case["second_stream_ahead"],
            max_padding=case["max_padding"],
            initial_padding=case["initial_padding"],
        )
        machine.add(Entry(e["text"], tuple(e["tokens"]), e["padding"]) for e in case["entries"])
        machine.complete()
        rows = []
        for step, (drawn, *_) in enumerate(case["rows"]):
            before = len(machine.taken)
            forced = machine.step(drawn, step)
            rows.append([drawn, forced, len(machine.taken) - before, *machine.state])
        taken = machine.taken
        bad += (
            rows != case["rows"]
            or machine.end_step != case["end_step"]
            or [each.step for each in taken] != case["consumption_times"]
            or [[t.entry.text, t.step] for t in taken if t.entry.tokens] != case["transcript"]
        )
    return {f"{len(cases)} traces": float(bad)}


def run_scripts(folder: Path, groups: Any) -> dict[str, float]:
    """Scripts in the makers' spelling: how many give other entries."""
    bad = count = 0
    for group in groups:
        tokenizer = TextTokenizer(folder / f"tokenizer-{group['tokenizer']}.model")
        for case in group["cases"]:
            reader = ScriptReader(
                tokenizer.encode,
                speaker_tokens=case["multi_speaker"],
                padding_between=case["padding_between"],
                frame_rate=STEPS_PER_SECOND,
                exact=True,
            )
            count += 1
            try:
                found = reader.turns(case["script"])
            except ArgumentError:
                bad += "fails" not in case
                continue
            entries = [
                {"text": e.text, "tokens": list(e.tokens), "padding": e.padding} for e in found
            ]
            bad += entries != case.get("entries")
    return {f"{count} scripts": float(bad)}


def run_file(path: Path) -> dict[str, float]:
    """`machine.json` or `scripts.json`."""
    cases = json.loads(path.read_text(encoding="utf-8"))
    return run_traces(cases) if "rows" in cases[0] else run_scripts(path.parent, cases)
