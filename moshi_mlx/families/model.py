"""A loaded model of any family: language model, codec, tokenizer; and the verbs it refuses.

Knows nothing of what a family does; that is in the classes derived from `Model`.
"""

from functools import cached_property
from typing import Any, Self

import mlx.core as mx

from ..checkpoint import Checkpoint
from ..codec import CodecName, MlxCodec, RustCodec
from ..config import LmConfig, ModelConfig
from ..errors import VerbError
from ..generate import Generator
from ..hub import ModelFiles
from ..lm import Lm
from ..mimi import Mimi
from ..sampling import Sampling
from ..text import TextTokenizer
from ..worker import Worker
from .kinds import Verb, kind_of, require_verb


class Model:
    """A loaded model; made by `load`.

    As it is, it serves models of families that are not here yet: `lm.forward`, `codec` and `text`
    work, and the verbs are refused.
    """

    def __init__(self, checkpoint: Checkpoint, lm: Lm, codec: MlxCodec | RustCodec) -> None:
        self.checkpoint = checkpoint
        self.lm = lm
        self.codec = codec
        self.worker = Worker()

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
    def name(self) -> str:
        """As it was asked for."""
        return self.checkpoint.name

    @property
    def files(self) -> ModelFiles:
        """Where it was read from."""
        return self.checkpoint.files

    @property
    def config(self) -> ModelConfig:
        """What its config.json says."""
        return self.checkpoint.config

    @property
    def text(self) -> TextTokenizer:
        """Its tokenizer."""
        return self.checkpoint.text

    @property
    def verb(self) -> Verb:
        """What it can do."""
        return kind_of(self.config, self.name).verb

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

    @property
    def text_sampling(self) -> Sampling:
        """How the model's makers draw text."""
        defaults = self.config.sampling
        return Sampling(temperature=defaults.temp_text, top_k=defaults.top_k_text)

    @property
    def audio_sampling(self) -> Sampling:
        """How the model's makers draw codes."""
        defaults = self.config.sampling
        return Sampling(temperature=defaults.temp, top_k=defaults.top_k)

    def generator(self, *, text: Sampling | None, audio: Sampling | None, **rest: Any) -> Generator:
        """A generator of the model's streams, drawn its own way where None; on its thread."""
        return Generator(
            self.lm,
            text=self.text_sampling if text is None else text,
            audio=self.audio_sampling if audio is None else audio,
            generated=self.generated_streams(self.lm.config),
            **rest,
        )

    def session(self, *args: Any, **kwargs: Any) -> Any:
        """A conversation. Raises VerbError: this model cannot talk."""
        raise self._refusal("talk")

    def transcribe(self, *args: Any, **kwargs: Any) -> Any:
        """Speech to text. Raises VerbError: this model cannot do it."""
        raise self._refusal("transcribe")

    def speak(self, *args: Any, **kwargs: Any) -> Any:
        """Text to speech. Raises VerbError: this model cannot do it."""
        raise self._refusal("speak")

    def translate(self, *args: Any, **kwargs: Any) -> Any:
        """Speech to speech in another language. Raises VerbError: this model cannot do it."""
        raise self._refusal("translate")

    def complete(self, *args: Any, **kwargs: Any) -> Any:
        """Text after text. Raises VerbError: this model cannot do it."""
        raise self._refusal("complete")

    def _refusal(self, verb: Verb) -> VerbError:
        try:
            require_verb(verb, self.config, self.name)
        except VerbError as error:
            return error
        raise AssertionError(f"{type(self).__name__} can {verb}")
