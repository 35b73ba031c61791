"""Checks the folders of one model in two layouts, Kyutai's and Transformers', against their case.

A case has `kyutai/` and `transformers/`, a whole model each or a codec alone, and
`expected.safetensors`.
"""

import json
from pathlib import Path

import mlx.core as mx
import numpy as np

from moshi_mlx.checkpoint import Checkpoint, open_checkpoint
from moshi_mlx.files import read_json
from moshi_mlx.published import read_mimi_config
from moshi_mlx.text import TextTokenizer
from moshi_mlx.weights_mimi import load_mimi

SIDES = ("kyutai", "transformers")


def is_case(folder: Path) -> bool:
    return all((folder / side).is_dir() for side in SIDES)


def run_case(folder: Path) -> dict[str, float]:
    """Largest difference per quantity; tokens and codes as counts of those that differ."""
    loaded = mx.load(str(folder / "expected.safetensors"))
    assert isinstance(loaded, dict)
    result: dict[str, float] = {}
    for side in SIDES:
        found: dict[str, float] = {}
        if "forward.codes" in loaded:
            checkpoint = open_checkpoint(folder / side)
            found |= _run_model(checkpoint, loaded)
            found |= _run_tokenizer(checkpoint.text, folder / "tokenizer_cases.json")
        found |= _run_codec(folder / side, loaded)
        result |= {f"{side}.{name}": value for name, value in found.items()}
    return result


def _run_model(checkpoint: Checkpoint, expected: dict[str, mx.array]) -> dict[str, float]:
    lm = checkpoint.load_lm(mx.float32)
    output = lm.forward(expected["forward.codes"])
    found = {}
    for name, ours, masks in (
        ("text_logits", output.text_logits, output.masks[:, :1]),
        ("logits", output.audio_logits, output.masks[:, 1:]),
    ):
        off = mx.where(masks[..., None], ours - expected[f"forward.{name}"], 0)
        found[name] = float(np.abs(np.array(off)).max())
    return found


def _run_tokenizer(tokenizer: TextTokenizer, cases: Path) -> dict[str, float]:
    listed = json.loads(cases.read_text(encoding="utf-8"))
    return {"text": float(sum(tokenizer.encode(c["text"]) != c["sentencepiece"] for c in listed))}


def _run_codec(folder: Path, expected: dict[str, mx.array]) -> dict[str, float]:
    """Sound to codes, frame by frame as in a conversation, and the reference's codes to sound."""
    codes = np.array(expected["mimi.codes"])
    if (folder / "mimi.safetensors").exists():
        config = read_mimi_config(read_json(folder / "mimi_config.json"))
        mimi = load_mimi(folder / "mimi.safetensors", len(codes), config)
    else:
        mimi = load_mimi(folder, len(codes))
    ours = np.array(mimi.encode(expected["mimi.pcm_in"][None, None]))[0]
    sound = np.array(mimi.decode(expected["mimi.codes"][None]))[0, 0]
    off = np.abs(sound - np.array(expected["mimi.pcm_out"])).max()
    return {"codes": float((ours != codes).sum()), "sound": float(off)}
