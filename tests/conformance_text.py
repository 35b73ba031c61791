"""Text models against the reference: logits of whole sequences, and greedy continuations."""

from pathlib import Path

import mlx.core as mx
import numpy as np

from moshi_mlx import load
from moshi_mlx.families.loaded import LoadedModel
from moshi_mlx.sampling import Sampling

GREEDY = Sampling(temperature=0)
NOTHING = np.zeros((2, 0), np.int32)


def run_text(folder: Path) -> dict[str, float]:
    """Every weights file of a case: the largest difference, or how many tokens are wrong."""
    loaded = mx.load(str(folder / "expected.safetensors"))
    assert isinstance(loaded, dict)
    expected = {name: np.array(array) for name, array in loaded.items()}
    result: dict[str, float] = {}
    for path in sorted(folder.glob("*.safetensors")):
        if path.name == "expected.safetensors":
            continue
        model = load(path, verb="complete", dtype=mx.float32)
        quantized = "q4_logits" in expected
        theirs = expected["q4_logits" if quantized else "logits"]
        result[f"{path.stem}.logits"] = float(
            np.abs(logits(model, expected["tokens"]) - theirs).max()
        )
        if not quantized:
            wanted = expected["greedy"][0]
            found = continued(model, wanted[:9], len(wanted) - 9)
            result[f"{path.stem}.greedy"] = float((found != wanted[9:]).sum())
    return result


def logits(model: LoadedModel, tokens: np.ndarray) -> np.ndarray:
    """Of every position, [B, T, vocabulary]: all but the last in one pass."""

    def work() -> np.ndarray:
        generator = model.generator(text=GREEDY, audio=GREEDY, batch=len(tokens))
        before = np.array(generator.prefill(tokens[:, None]))
        last = np.array(generator.step(NOTHING[: len(tokens)]).text_logits)
        return np.concatenate([before, last[:, None]], axis=1)

    return model.worker.call(work)


def continued(model: LoadedModel, prompt: np.ndarray, count: int) -> np.ndarray:
    """Greedy tokens after a prompt."""

    def work() -> np.ndarray:
        generator = model.generator(text=GREEDY, audio=GREEDY)
        generator.prefill(prompt[None, None])
        return np.array([generator.step(NOTHING[:1]).written[0, 0] for _ in range(count)])

    return model.worker.call(work)
