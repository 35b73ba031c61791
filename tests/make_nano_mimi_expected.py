"""Makes `data/mimi/expected_nano.safetensors`: what the PyTorch reference does with nano's Mimi.

    python tests/make_nano_mimi_expected.py

Run it anew, in an environment with the reference implementation (moshi 0.2.13), when
nano's Mimi changes. The reference runs over the whole signal at once, every position seeing
exactly its context; the 40 frames are more than the 25 that nano's transformers see.
"""

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

NANO = Path(__file__).parent.parent / "moshi_mlx" / "models" / "nano"
EXPECTED = Path(__file__).parent / "data" / "mimi" / "expected_nano.safetensors"
FRAMES = 40
PCM_FRAMES = [0, 1, 12, 24, 25, 26, 39]


def signal(samples: int) -> npt.NDArray[np.float32]:
    """Something voiced that changes: a gliding tone with overtones, and some noise."""
    time = np.arange(samples) / 24_000
    phase = 2 * np.pi * (120 * time + 20 * np.sin(2 * np.pi * 0.7 * time))
    tone = sum(np.sin(k * phase) / k for k in range(1, 12))
    loud = 0.15 * (1 + np.sin(2 * np.pi * 1.3 * time))
    noise = np.random.default_rng(0).standard_normal(samples)
    return (loud * tone + 0.01 * noise).astype(np.float32)


def main() -> None:
    import torch
    from moshi.models import loaders

    config = json.loads((NANO / "mimi_config.json").read_text())
    mimi = loaders.get_mimi(
        NANO / "mimi.safetensors", config, num_codebooks=config["quantizer"]["n_q"]
    )
    with torch.no_grad():
        pcm = torch.from_numpy(signal(FRAMES * mimi.frame_size))
        codes = mimi.encode(pcm[None, None])
        out = mimi.decode(codes)[0, 0].numpy().reshape(FRAMES, -1)
    save_file(
        {
            "codes": codes[0].numpy().astype(np.int32),
            "pcm_out": np.ascontiguousarray(out[PCM_FRAMES]),
            "pcm_out_frames": np.array(PCM_FRAMES, np.int32),
        },
        EXPECTED,
    )


if __name__ == "__main__":
    main()
