"""What the cases of translation models have besides: guidance, file runs, audio logits."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from moshi_mlx.config import UNGENERATED_TOKEN
from moshi_mlx.families.translate import Run
from moshi_mlx.files import read_json
from moshi_mlx.generate import Generator, Step
from moshi_mlx.guidance import Guidance
from moshi_mlx.lm import Lm
from moshi_mlx.sampling import Sampling

GREEDY = Sampling(temperature=0)
GUIDANCE = Guidance(3.0)
NEGATIVE = {"description": "very_bad"}
TAIL_FRAMES = 200


def generator_of(lm: Lm, given: Any, batch: int, guidance: Guidance | None) -> Generator:
    return Generator(
        lm,
        batch=batch,
        text=GREEDY,
        audio=GREEDY,
        conditions=None if given is None else [given] * batch,
        guidance=guidance,
        null_conditions=None if guidance is None else [NEGATIVE] * batch,
    )


def audio_logits(lm: Lm, step: Step, guidance: Guidance | None) -> np.ndarray:
    """The depth transformer's logits [B, dep_q, card] after the tokens that it chose."""
    tokens = mx.array(step.written[:, : lm.config.dep_q])
    if guidance is None:
        return np.array(lm.depformer.forward(step.state, tokens))
    return np.array(
        guidance.guided(lm.depformer.forward(step.state, mx.concatenate([tokens, tokens])))
    )


def run_frames(
    lm: Lm, expected: dict[str, np.ndarray], given: Any, name: str, guidance: Guidance | None
) -> dict[str, float]:
    """The same frames, one per step, as `NAME.*` has them."""
    codes = expected["stream.user_codes"]
    generator = generator_of(lm, given, 1, guidance)
    text, audio, tokens = [], [], []
    for t in range(codes.shape[2]):
        step = generator.step(codes[:, :, t])
        logits = step.text_logits
        text.append(np.array(logits if guidance is None else guidance.guided_text(logits)))
        audio.append(audio_logits(lm, step, guidance))
        nothing = np.full_like(step.written, UNGENERATED_TOKEN)
        tokens.append(nothing if step.frame is None else step.frame)

    def off(part: str, ours: list[np.ndarray], axis: int) -> float:
        return float(np.abs(np.stack(ours, axis) - expected[f"{name}.{part}"]).max())

    return {
        f"{name}.text_logits": off("text_logits", text, 1),
        f"{name}.audio_logits": off("audio_logits", audio, 1),
        f"{name}.tokens": float((np.stack(tokens, 2) != expected[f"{name}.tokens"]).sum()),
    }


def run_file(
    lm: Lm, expected: dict[str, np.ndarray], given: Any, name: str, lengths: list[int]
) -> dict[str, float]:
    """Whole runs in a batch, as a file is translated."""
    guidance = GUIDANCE if name == "file_cfg" else None
    silence = expected["silence"][0, :, 0]
    codes = expected["zero.codes" if name == "zero" else "file.codes"]
    theirs = expected[f"{name}.tokens"]
    run = Run(generator_of(lm, given, len(codes), guidance), silence if name == "zero" else None)
    for t in range(codes.shape[2]):
        run.hear(codes[:, :, t])
    if name != "zero":
        run.end()
        for _ in range(TAIL_FRAMES):
            if run.done:
                break
            run.hear(silence)
    ours = run.tokens
    same = ours.shape == theirs.shape
    return {
        f"{name}.tokens": float((ours != theirs).sum()) if same else np.inf,
        f"{name}.lengths": float([run.length(row) for row in range(len(codes))] != lengths),
    }


def run_translation(
    lm: Lm, expected: dict[str, np.ndarray], given: Any, folder: Path
) -> dict[str, float]:
    """All of these quantities that are expected, with the largest difference or tokens wrong."""
    result: dict[str, float] = {}
    for name, guidance in (("stream", None), ("cfg", GUIDANCE)):
        if f"{name}.audio_logits" in expected:
            result |= run_frames(lm, expected, given, name, guidance)
    for name, key in (
        ("file", "file.lengths"),
        ("file_cfg", "file_cfg.lengths"),
        ("zero", "lengths"),
    ):
        if f"{name}.tokens" in expected:
            lengths = read_json(folder / "facts.json")[key]
            result |= run_file(lm, expected, given, name, lengths)
    return result
