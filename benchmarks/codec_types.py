"""What Mimi keeps of its codes and of its sound in smaller types, against float32.

    python -m benchmarks.codec_types

On nano's codec and its question: of all codes the share that stays, and how far the decoder's
error lies below its sound.
"""

import mlx.core as mx
import numpy as np
import soundfile

import moshi_mlx
from moshi_mlx import Mimi
from moshi_mlx.hub import bundled_folder

TYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}


def mimi(dtype: mx.Dtype) -> Mimi:
    """Nano's, all of it but the quantizer in this type."""
    found: Mimi = moshi_mlx.load("nano", codec="mlx").mimi
    found.set_types(dtype, dtype)
    return found


def main() -> None:
    """A line a type."""
    pcm, _ = soundfile.read(bundled_folder("nano") / "question.wav", dtype="float32")
    exact = mimi(mx.float32)
    whole = len(pcm) // exact.frame_size * exact.frame_size
    heard = mx.array(pcm[:whole])[None, None]
    codes = exact.encode(heard)
    said = np.array(exact.decode(codes))
    for name, dtype in TYPES.items():
        other = mimi(dtype)
        same = np.array(other.encode(heard) == codes)
        error = np.array(other.decode(codes)) - said
        below = 10 * np.log10((said**2).sum() / max((error**2).sum(), 1e-30))
        books = " ".join(f"{share:.3f}" for share in same.mean(axis=(0, 2)))
        print(
            f"{name}: {100 * same.mean():.1f} % of the codes stay (by codebook {books}), "
            f"the decoder's error is {below:.0f} dB below its sound"
        )


if __name__ == "__main__":
    main()
