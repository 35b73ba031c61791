"""Names for the arrays that pass between modules."""

import mlx.core as mx
import numpy as np
import numpy.typing as npt

Pcm = npt.NDArray[np.float32]
"""Sound, float32 [samples], −1 … 1."""
Codes = npt.NDArray[np.int32]
"""Codes of a codec, int32 [codebooks, frames]."""
Tokens = npt.NDArray[np.int32]
"""Tokens of a frame, text first, int32 [..., 1 + streams]."""
Weights = dict[str, mx.array]
"""Tensors by name."""
