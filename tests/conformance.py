"""Checks case folders against the reference's numbers: `python tests/conformance.py CASE…`.

A case folder holds `config.json`, one weights file and `expected.safetensors`; `machine.json` and
`scripts.json` of speech models are cases too, and a folder of cases stands for all of them. Prints
a line a case; exits with 1 if any failed.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import mlx.core as mx
import numpy as np

if not __package__:  # as a script: its folder has a moshi_mlx too, of tests
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from moshi_mlx.conditions import Condition
from moshi_mlx.config import UNGENERATED_TOKEN
from moshi_mlx.errors import MoshiError
from moshi_mlx.families import family_of, generated_streams
from moshi_mlx.families.prompts import make_prompt
from moshi_mlx.files import read_json
from moshi_mlx.generate import Generator
from moshi_mlx.lm import Lm
from moshi_mlx.published import read_config
from moshi_mlx.sampling import Sampling
from moshi_mlx.voices import Voice, load_voice
from moshi_mlx.weights import load_lm
from tests import conformance_transformers
from tests.conformance_speech import run_speech, run_speech_file
from tests.conformance_stt import run_stt
from tests.conformance_text import run_text
from tests.conformance_translation import run_translation

TOLERANCE = 1e-3
EXACT_TOLERANCE = 1e-5
GREEDY = Sampling(temperature=0)
Given = dict[str, Condition]


def load_case(folder: Path) -> tuple[Lm, dict[str, np.ndarray], Given | None]:
    """The model in float32, what is expected of it, and the conditions given, if any."""
    weights = sorted(folder.glob("model*.safetensors"))
    if len(weights) != 1:
        raise MoshiError(f"{folder}: needs one model*.safetensors, has {len(weights)}")
    config = read_config(read_json(folder / "config.json"), str(folder / "config.json"))
    lm = load_lm(weights, config.lm, dtype=mx.float32, quantization=config.quantization)
    family_of(config).amend(lm)
    expected = mx.load(str(folder / "expected.safetensors"))
    assert isinstance(expected, dict)
    conditions = folder / "conditions.json"
    given = read_json(conditions) if conditions.exists() else None
    return lm, {name: np.array(value) for name, value in expected.items()}, given


def difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    if ours.shape != theirs.shape:
        return float("inf")
    return float(np.abs(ours - theirs).max(initial=0.0))


def run_forward(
    lm: Lm, expected: dict[str, np.ndarray], given: Given | Sequence[Given] | None
) -> dict[str, float]:
    """Largest difference per tensor; masks count as 0 or 1. Conditions: of all, or of each."""
    codes = expected["forward.codes"]
    values = [given] * len(codes) if isinstance(given, dict) else given
    conditions = None if values is None else lm.condition_provider(values)
    output = lm.forward(mx.array(codes), conditions)
    masks = np.array(output.masks)
    text_mask, mask = masks[:, :1], masks[:, 1:]
    found = {
        "text_logits": np.array(output.text_logits),
        "logits": np.array(output.audio_logits),
        "text_mask": text_mask,
        "mask": mask,
    }
    result = {}
    for name, ours in found.items():
        theirs = expected.get(f"forward.{name}")
        if theirs is None:
            continue
        if theirs.dtype == np.bool_:
            result[f"forward.{name}"] = difference(ours.astype(float), theirs.astype(float))
        else:
            valid = text_mask if name == "text_logits" else mask
            zero = np.where(valid[..., None], ours, 0)
            theirs = np.where(valid[..., None], theirs, 0)
            result[f"forward.{name}"] = difference(zero, theirs)
    return result


def run_stream(lm: Lm, expected: dict[str, np.ndarray], given: Given | None) -> dict[str, float]:
    """Largest difference per tensor; tokens as counts of those that differ."""
    codes = expected["stream.user_codes"]
    batch = codes.shape[0]
    conditions = None if given is None else [given] * batch
    generator = Generator(lm, batch=batch, text=GREEDY, audio=GREEDY, conditions=conditions)
    logits, tokens, heads = [], [], []
    for t in range(codes.shape[2]):
        step = generator.step(codes[:, :, t])
        logits.append(np.array(step.text_logits))
        nothing = np.full_like(step.written, UNGENERATED_TOKEN)
        tokens.append(nothing if step.frame is None else step.frame)
        heads.append([np.array(head) for head in generator.extra_heads(step.state)])
    theirs = expected["stream.text_logits"]  # may end before the codes do
    result = {"stream.text_logits": difference(np.stack(logits, 1)[:, : theirs.shape[1]], theirs)}
    if "stream.tokens" in expected:
        ours = np.stack(tokens, 2)
        same_shape = ours.shape == expected["stream.tokens"].shape
        wrong = (ours != expected["stream.tokens"]).sum() if same_shape else np.inf
        result["stream.tokens"] = float(wrong)
    if "stream.extra_heads" in expected:
        theirs = expected["stream.extra_heads"]
        ours = np.stack([np.stack(head, 0) for head in heads], 2)  # [heads, B, T, dim]
        result["stream.extra_heads"] = difference(ours, theirs)
    return result


def audio_logits(lm: Lm, state: mx.array, tokens: np.ndarray) -> np.ndarray:
    """Logits [N, generated, card] of the codebooks of steps, after the tokens that they wrote.

    Args:
        lm: the model, which generates as many codebooks as there are tokens.
        state: float [N, dim], `Step.state` of all of them.
        tokens: int32 [N, 1 + generated], `Step.written`.
    """
    return np.array(lm.depformer.forward(state, mx.array(tokens[:, :-1])))


def run_personaplex(folder: Path, expected: dict[str, np.ndarray]) -> dict[str, float]:
    """Largest difference per tensor, for each way to give the voice."""
    (weights,) = folder.glob("model*.safetensors")
    config = read_config(read_json(folder / "config.json"))
    own = generated_streams(config)
    lm = load_lm(weights, config.lm, dtype=mx.float32, generated=own)
    spoken = Voice("codes", codes=expected["voice.codes"][0])
    read = expected["voice.embeddings"].reshape(-1, lm.config.transformer.dim)
    voices = [spoken, Voice("embeddings", embeddings=read, cache=expected["voice.cache"][0])]
    if (folder / "voice.pt").exists():
        voices.append(replace(load_voice(folder / "voice.pt"), name="pt"))
    with TemporaryDirectory() as written:
        path = Path(written) / "voice.safetensors"
        voices[-1].save(path, consent="a random model")
        voices.append(replace(load_voice(path), name="saved"))
    result: dict[str, float] = {}
    quiet = int(expected["silence_frames"][0])
    for voice in voices:
        text = expected["text.tokens"]
        prompt = make_prompt(lm.config, text=text, voice=voice, silent_frames=quiet)
        generator = Generator(lm, text=GREEDY, audio=GREEDY, generated=own)
        prompt_logits = np.array(generator.prefill(*prompt))
        heard = [prompt.after, *expected["user.codes"].transpose(2, 0, 1)]
        steps = [generator.step(codes) for codes in heard[:-1]]
        states = mx.concatenate([step.state for step in steps])
        sound = audio_logits(lm, states, np.concatenate([step.written for step in steps]))
        tokens = [step.frame for step in steps if step.frame is not None]
        wanted = np.split(expected["text_logits"], [int(expected["prompt_steps"][0])], axis=1)
        logits = np.stack([np.array(step.text_logits) for step in steps], 1)
        ours = np.stack(tokens, 2)
        wrong = (ours != expected["tokens"][:, : 1 + own]).sum()
        result |= {
            f"{voice.name}.prompt_logits": difference(prompt_logits, wanted[0]),
            f"{voice.name}.text_logits": difference(logits, wanted[1]),
            f"{voice.name}.audio_logits": difference(sound[None], expected["audio_logits"]),
            f"{voice.name}.tokens": float(wrong),
        }
    return result


def run_case(folder: Path) -> dict[str, float]:
    """Every quantity that the case's expectations name, with its largest difference."""
    if folder.is_file():
        return run_speech_file(folder)
    if (folder / "runs.json").exists():
        return run_speech(folder)
    if conformance_transformers.is_case(folder):
        return conformance_transformers.run_case(folder)
    if read_json(folder / "config.json").get("model_type") == "helium":
        return run_text(folder)
    lm, expected, given = load_case(folder)
    result: dict[str, float] = {}
    if "forward.codes" in expected:
        result |= run_forward(lm, expected, given)
    if "stream.user_codes" in expected and "stream.audio_logits" not in expected:
        result |= run_stream(lm, expected, given)
    if "voice.codes" in expected:
        result |= run_personaplex(folder, expected)
    if read_json(folder / "config.json").get("model_type") == "stt":
        result |= run_stt(lm, expected, folder)
    else:
        result |= run_translation(lm, expected, given, folder)
    if not result:
        raise MoshiError(f"{folder}: expected.safetensors holds nothing to compare")
    return result


def passes(result: dict[str, float]) -> bool:
    def allowed(name: str) -> float:
        if "condition" in name:
            return EXACT_TOLERANCE
        return TOLERANCE if any(part in name for part in ("logits", "heads", "pcm", "sound")) else 0

    return all(value <= allowed(name) for name, value in result.items())


def cases_of(path: Path) -> list[Path]:
    """The cases in a folder of cases, else the path itself."""
    found = [p.parent for p in path.glob("*/expected.safetensors")]
    found += [p.parent for p in path.glob("*/runs.json") if p.parent not in found]
    found += [path / name for name in ("machine.json", "scripts.json") if (path / name).is_file()]
    return sorted(found) or [path]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="+", type=Path, metavar="CASE")
    args = parser.parse_args()
    passed = failed = 0
    for folder in (case for path in args.cases for case in cases_of(path)):
        try:
            result = run_case(folder)
        except (MoshiError, OSError, RuntimeError, KeyError, ValueError) as error:
            failed += 1
            print(f"FAIL {folder.name}: {error}")
            continue
        good = passes(result)
        passed, failed = passed + good, failed + (not good)
        numbers = ", ".join(f"{name} {value:.2g}" for name, value in result.items())
        print(f"{'pass' if good else 'FAIL'} {folder.name}: {numbers}")
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
