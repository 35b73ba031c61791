"""Whose sound goes into which streams, for models that could generate both sides."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moshi_mlx.training.data import DataConfig, Recording, Recordings, TokenCache
from tests.training.test_data import Letters, Loudness, make_recording, model_config


@pytest.mark.parametrize("dep_q", [4, 8])
def test_the_models_side_is_its_half_of_the_streams(dep_q: int, tmp_path: Path) -> None:
    """Its sound is 0.4 loud in frames 13 to 16, the user's 0.1 in frames 0 to 4."""
    config = DataConfig(duration_sec=1.6, batch_size=1, level_db=None)
    codec: Any = Loudness()
    (tmp_path / "codec").write_text("weights")
    cache = TokenCache(tmp_path / "tokens", codec, tmp_path / "codec", config)
    recordings = [Recording(make_recording(tmp_path, "one"), 2.0)]
    model = model_config(dep_q=dep_q)
    data = Recordings(recordings, cache, Letters(), model, config, shuffle=False)
    codes = data.batch(0).codes[0]
    for side, frames in ((codes[1:5], slice(13, 17)), (codes[5:9], slice(0, 5))):
        loud = np.zeros(20, bool)
        loud[frames] = True
        for codebook, stream in enumerate(side):
            assert (stream // 1000 == codebook).all()
            assert (stream[loud] % 1000 > 0).all()
        assert (side[0][~loud] == 0).sum() >= 11  # all but a frame that a sound ends in
