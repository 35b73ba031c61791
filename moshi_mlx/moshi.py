"""A whole model, loaded: language model, codec, tokenizer; and the sessions made from it."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import mlx.core as mx

from .codec import CodecName, MlxCodec, RustCodec, choose_codec
from .config import LoraConfig, MimiConfig, ModelConfig, read_config, read_json, read_mimi_config
from .errors import CheckpointError, ConfigError
from .generate import Generator
from .hub import ModelFiles, resolve
from .lm import Lm
from .mimi import Mimi
from .sampling import Sampling
from .session import Session
from .text import TextTokenizer
from .weights import load_lm
from .weights_mimi import load_mimi
from .worker import Worker


class Moshi:
    """A loaded model; made by `load`. Its sessions share the weights and nothing else."""

    def __init__(
        self,
        files: ModelFiles,
        config: ModelConfig,
        mimi_config: MimiConfig,
        lm: Lm,
        codec: MlxCodec | RustCodec,
        text: TextTokenizer,
    ) -> None:
        self.files = files
        self.config = config
        self.lm = lm
        self.codec = codec
        self.text = text
        self._mimi_config = mimi_config
        self._worker = Worker()

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
        return load_mimi(self.files.mimi, self.codec.num_codebooks, self._mimi_config)

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

    def session(
        self,
        *,
        seed: int = 0,
        text: Sampling | None = None,
        audio: Sampling | None = None,
        conditions: Mapping[str, str | mx.array | None] | None = None,
        kv_bits: int | None = None,
    ) -> Session:
        """A new conversation.

        Args:
            seed: the same seed and sound give the same conversation.
            text: how text is drawn; the model's own way if None.
            audio: how codes are drawn; the model's own way if None.
            conditions: of a model with conditioners: name to value.
            kv_bits: what the model keeps of the conversation in 8 or 4 bits a number, so that a
                long one takes less memory; None: as it is computed.

        Raises:
            ConfigError: a condition is not one of the model's.
            ValueError: `kv_bits` is neither 8 nor 4.
        """
        text, audio = text or self.text_sampling, audio or self.audio_sampling

        def make_generator() -> Generator:
            return Generator(
                self.lm,
                text=text,
                audio=audio,
                seed=seed,
                conditions=None if conditions is None else [conditions],
                generated=own_streams(self.config),
                kv_bits=kv_bits,
            )

        return Session(self.codec, self.text, make_generator, self._worker)


def own_streams(config: ModelConfig) -> int:
    """Audio streams to generate in a conversation.

    A model that can generate all streams still hears the other side: it generates its own half.
    """
    lm = config.lm
    return lm.dep_q if lm.dep_q < lm.n_q else lm.n_q // 2


def load(
    name: str | Path,
    *,
    weights: str | None = None,
    lora: str | Path | None = None,
    codec: CodecName = "auto",
    dtype: mx.Dtype | None = None,
    offline: bool = False,
) -> Moshi:
    """Loads a model; what is not on this machine yet is fetched from the hub.

    Args:
        name: a bundled model ("nano"), a folder, a hub repository ("kyutai/moshiko-mlx-q4"), or
            an alias ("moshiko-q4").
        weights: the weights file, where a folder or repository has several.
        lora: an adapter's file, or the folder that has its `lora.safetensors` and `config.json`;
            the model's own adapter, if it has one, then isn't used.
        codec: what turns sound into codes: "mlx" is ours, "rust" is rustymimi, "auto" chooses.
        dtype: what to compute in: float32 on the CPU and bfloat16 on a GPU if None.
        offline: never use the network (as HF_HUB_OFFLINE=1).

    Raises:
        HubError: the name leads to no files.
        CheckpointError: a file is broken or doesn't match the others.
        TokenizerError: the tokenizer is missing or broken.
    """
    files = resolve(name, weights=weights, offline=offline)
    config = read_config(read_json(files.config) if files.config else None, str(files.config))
    text = TextTokenizer(files.tokenizer)
    if text.vocab_size > config.lm.text_card:
        raise CheckpointError(
            f"{files.tokenizer}: has {text.vocab_size} tokens, the model knows "
            f"{config.lm.text_card}: it is of another model"
        )
    mimi_config = read_mimi_config(
        read_json(files.mimi_config) if files.mimi_config else None, str(files.mimi_config)
    )
    if config.lm.card != mimi_config.quantizer.bins:
        raise CheckpointError(
            f"{files.mimi}: has codebooks of {mimi_config.quantizer.bins} entries, the model's "
            f"field 'card' is {config.lm.card}"
        )
    own = own_streams(config)
    chosen = choose_codec(codec, files.mimi, max(own, config.lm.n_q - own), mimi_config)
    adapter, scaling = _adapter(lora, files, config)
    lm = load_lm(
        files.weights,
        config.lm,
        dtype=dtype,
        quantization=config.quantization,
        lora=adapter,
        lora_scaling=scaling,
    )
    return Moshi(files, config, mimi_config, lm, chosen, text)


def _adapter(
    lora: str | Path | None, files: ModelFiles, config: ModelConfig
) -> tuple[Path | None, float]:
    """The adapter's file, if there is one, and its scaling from the config.json beside it."""
    if lora is None:
        return files.lora, lora_scaling(config.raw, str(files.config))
    path = Path(lora).expanduser()
    if path.is_dir():
        path = path / "lora.safetensors"
    beside = path.parent / "config.json"
    return path, lora_scaling(read_json(beside) if beside.is_file() else {}, str(beside))


def lora_scaling(raw: Mapping[str, object], where: str) -> float:
    """The field `lora_scaling` of a config.json, or the published default.

    Raises:
        ConfigError: it is not a number above 0.
    """
    value = raw.get("lora_scaling", LoraConfig().scaling)
    if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
        raise ConfigError(f"{where}: field 'lora_scaling' must be above 0, is {value!r}")
    return float(value)
