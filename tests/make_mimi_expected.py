"""Makes `data/mimi/expected_{nano,small}.safetensors`: what the PyTorch reference does.

    python tests/make_mimi_expected.py

Run it anew, in an environment with the reference implementation (moshi 0.2.13), when nano's Mimi
changes. The reference runs over the whole signal at once, every position seeing exactly its
context; there are more frames than the transformers see (50 and 3). `small` is a random Mimi with
what the published one has not: dilated residual blocks, several of them, learned shortcuts. Its
weights, `small.safetensors`, are drawn as in `make_mimi.py`.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from make_mimi import draw
from safetensors.numpy import save_file

NANO = Path(__file__).parent.parent / "moshi_mlx" / "models" / "nano"
DATA = Path(__file__).parent / "data" / "mimi"
FRAMES = 60
PCM_FRAMES = [0, 1, 12, 24, 49, 50, 51, 59]


def signal(samples: int) -> npt.NDArray[np.float32]:
    """Something voiced that changes: a gliding tone with overtones, and some noise."""
    time = np.arange(samples) / 24_000
    phase = 2 * np.pi * (120 * time + 20 * np.sin(2 * np.pi * 0.7 * time))
    tone = sum(np.sin(k * phase) / k for k in range(1, 12))
    loud = 0.15 * (1 + np.sin(2 * np.pi * 1.3 * time))
    noise = np.random.default_rng(0).standard_normal(samples)
    return (loud * tone + 0.01 * noise).astype(np.float32)


def run(weights: Path, config: Path, expected: Path) -> None:
    import torch
    from safetensors.torch import load_file

    from moshi_mlx.training.nano import codec

    fields: dict[str, Any] = json.loads(config.read_text())
    mimi = codec.build(fields).eval()
    mimi.load_state_dict({name: value.float() for name, value in load_file(weights).items()})
    mimi.set_num_codebooks(fields["quantizer"]["n_q"])
    with torch.no_grad():
        pcm = torch.from_numpy(signal(FRAMES * mimi.frame_size))
        codes = mimi.encode(pcm[None, None])
        out = mimi.decode(codes)[0, 0].numpy().reshape(FRAMES, -1)
    numbers = {
        "codes": codes[0].numpy().astype(np.int32),
        "pcm_out": np.ascontiguousarray(out[PCM_FRAMES]),
        "pcm_out_frames": np.array(PCM_FRAMES, np.int32),
    }
    save_file(numbers, expected)


def draw_small() -> None:
    from moshi.models import loaders

    rng = np.random.default_rng(0)
    shapes = loaders.get_mimi(None, json.loads((DATA / "small.json").read_text())).state_dict()
    drawn = {name: draw(name, list(value.shape), rng) for name, value in shapes.items()}
    save_file(drawn, DATA / "small.safetensors")


def main() -> None:
    draw_small()
    run(DATA / "small.safetensors", DATA / "small.json", DATA / "expected_small.safetensors")
    run(NANO / "mimi.safetensors", NANO / "mimi_config.json", DATA / "expected_nano.safetensors")


if __name__ == "__main__":
    main()
