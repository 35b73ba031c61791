"""Programs that measure. Not part of the wheel."""

import moshi_mlx  # noqa: F401  on Linux MLX is fast only if this comes first (`moshi_mlx.blas`)
