"""A checkpoint that speaks: what it answers to codes or to a recording.

Runs the whole model, so it must fit into memory. Knows nothing of quantizing.
"""

from pathlib import Path

import mlx.core as mx
import numpy as np

from moshi_mlx.arrays import Codes
from moshi_mlx.checkpoint import Checkpoint
from moshi_mlx.errors import AudioFileError
from moshi_mlx.families import generated_streams
from moshi_mlx.generate import Generator
from moshi_mlx.sampling import Sampling
from moshi_mlx.sounds import open_sound

_MOST_SECONDS = 60


class Speaker:
    """A loaded checkpoint, its adapter in it; `kv_bits` as `Generator` takes it."""

    def __init__(self, source: Checkpoint, kv_bits: int | None = None) -> None:
        config = source.config
        self.own = generated_streams(config)
        self.given = config.lm.n_q - self.own
        self.mimi = source.load_mimi(max(self.own, self.given))
        self.sample_rate = self.mimi.config.sample_rate
        self._lm = source.load_lm()
        self._kv_bits = kv_bits
        how = config.sampling
        self._text = Sampling(temperature=how.temp_text, top_k=how.top_k_text)
        self._audio = Sampling(temperature=how.temp, top_k=how.top_k)

    def answer(self, user: Codes, seed: int = 0) -> Codes:
        """Text and own codes [N, 1 + own, T − 1], to the other side's codes [N, given, T]."""
        generator = Generator(
            self._lm, batch=len(user), text=self._text, audio=self._audio, seed=seed,
            generated=self.own, kv_bits=self._kv_bits,
        )  # fmt: skip
        frames = [generator.step(user[:, :, t]).frame for t in range(user.shape[2])]
        said = [frame for frame in frames if frame is not None]
        return np.stack(said, axis=2)[:, : 1 + self.own].astype(np.int32)

    def hear(self, recording: Path, seed: int = 0) -> Codes:
        """The dialogue with a recording, its first minute: all tokens [1, 1 + n_q, T].

        Raises:
            AudioFileError: the recording cannot be read, is silent or too short, or the model
                doesn't speak.
        """
        if not self.own:
            raise AudioFileError("a model that doesn't speak answers nothing: give tokens (.npz)")
        mono = open_sound(recording).read(self.sample_rate, _MOST_SECONDS).mean(axis=0)
        if not mono.any():
            raise AudioFileError(f"{recording}: is silent: there is nothing to answer")
        frame = self.mimi.config.frame_size
        least = (1 + 2 * max(self._lm.config.delays)) * frame  # brings a token of each codebook
        if len(mono) < least:
            raise AudioFileError(
                f"{recording}: is too short to be answered: {len(mono) / self.sample_rate:.2f} s; "
                f"give at least {least / self.sample_rate:.2f} s"
            )
        mono = np.pad(mono, (0, -len(mono) % frame))
        user = np.array(self.mimi.encode(mx.array(mono[None, None])))[:, : self.given]
        said = self.answer(user, seed)
        return np.concatenate([said, user[:, :, : said.shape[2]]], axis=1).astype(np.int32)
