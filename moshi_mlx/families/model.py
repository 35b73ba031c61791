"""A loaded model that has to do with sound: language model, codec, tokenizer.

Knows nothing of what a family does; that is in the classes derived from `Model`.
"""

from functools import cached_property
from typing import Any, Self

import mlx.core as mx

from ..checkpoint import Checkpoint
from ..codec import CodecName, MlxCodec, RustCodec
from ..config import LmConfig, ModelConfig
from ..generate import Generator
from ..hub import ModelFiles
from ..lm import Lm
from ..mimi import Mimi
from ..sampling import Sampling
from .loaded import LoadedModel


class Model(LoadedModel):
    """A loaded model; made by `load`.

    As it is, it serves models of families that are not here yet: `lm.forward`, `codec` and `text`
    work, and the verbs are refused.
    """

    def __init__(self, checkpoint: Checkpoint, lm: Lm, codec: MlxCodec | RustCodec) -> None:
        super().__init__(checkpoint.name, checkpoint.config, checkpoint.text, lm)
        self.checkpoint = checkpoint
        self.codec = codec

    @classmethod
    def from_checkpoint(
        cls, checkpoint: Checkpoint, *, codec: CodecName = "auto", dtype: mx.Dtype | None = None
    ) -> Self:
        """Reads the weights; the arguments are those of `load`."""
        config = checkpoint.config.lm
        own = cls.generated_streams(config)
        checkpoint.fitting(own)  # what doesn't fit shows before anything is read
        chosen = checkpoint.choose_codec(codec, cls.codebooks(checkpoint.config))
        lm = checkpoint.load_lm(dtype, own)
        cls.amend(lm)
        return cls(checkpoint, lm, chosen)

    @classmethod
    def codebooks(cls, config: ModelConfig) -> int:
        """Of the codec, as the model needs them."""
        own = cls.generated_streams(config.lm)
        return max(own, config.lm.n_q - own)

    @classmethod
    def amend(cls, lm: Lm) -> None:
        """What the family changes in the values that were read; nothing."""

    @classmethod
    def generated_streams(cls, config: LmConfig) -> int:
        """Audio streams that the model generates in use; those after them are given to it."""
        return config.dep_q

    @property
    def files(self) -> ModelFiles:
        """Where it was read from."""
        return self.checkpoint.files

    @property
    def sample_rate(self) -> int:
        """Samples per second."""
        return self.codec.sample_rate

    @property
    def frame_size(self) -> int:
        """Samples per frame."""
        return self.codec.frame_size

    @property
    def frame_rate(self) -> float:
        """Frames per second."""
        return self.sample_rate / self.frame_size

    @cached_property
    def mimi(self) -> Mimi:
        """The codec in MLX, loaded at first use where sessions run on another."""
        if isinstance(self.codec, MlxCodec):
            return self.codec.mimi
        return self.checkpoint.load_mimi(self.codec.num_codebooks)

    def generator(self, *, text: Sampling | None, audio: Sampling | None, **rest: Any) -> Generator:
        """As `LoadedModel.generator`, of the streams that the model generates in use."""
        given = {"generated": self.generated_streams(self.lm.config), **rest}
        return super().generator(text=text, audio=audio, **given)
