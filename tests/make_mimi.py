"""A random Mimi of the published size (385 MB): the values mean nothing, the arithmetic shows.

    python tests/make_mimi.py OUT.safetensors [--seed 0]

The scales keep a signal alive through every layer. The numbers expected of seed 0 are in
`data/mimi/expected_seed0.safetensors` (from the PyTorch reference, over the whole signal at once);
the order of `data/mimi/keys.json` and the draws below decide the values, so neither may change.
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

KEYS = Path(__file__).parent / "data" / "mimi" / "keys.json"


def draw(name: str, shape: list[int], rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """One tensor, float32, of a scale that suits its role."""
    leaf = name.rpartition(".")[2]
    normed = name.endswith((".norm1.weight", ".norm2.weight"))
    if leaf == "_initialized":
        return np.ones(shape, np.float32)
    if leaf == "cluster_usage":
        return rng.uniform(0.5, 5.5, shape).astype(np.float32)
    if "layer_scale" in name:
        return rng.uniform(0.0, 0.3, shape).astype(np.float32)
    value = rng.standard_normal(shape)
    if leaf == "embedding_sum":
        pass
    elif normed:
        value = 1 + 0.1 * value
    elif leaf == "bias":
        value = 0.02 * value
    elif "convtr" in name:
        # Every output sample has two taps per input channel; of a depthwise one, two in all.
        value = value / np.sqrt(2 * shape[0] if shape[1] > 1 else 2)
    else:
        value = value / np.sqrt(math.prod(shape[1:]))
    return value.astype(np.float32)


def tensors(seed: int = 0) -> dict[str, npt.NDArray[np.float32]]:
    """The whole checkpoint, by published names."""
    rng = np.random.default_rng(seed)
    keys = json.loads(KEYS.read_text())
    return {name: draw(name, shape, rng) for name, shape in keys.items()}


def write(path: Path, seed: int = 0) -> Path:
    save_file(tensors(seed), path)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a random Mimi of the published size.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    write(args.out, args.seed)


if __name__ == "__main__":
    main()
