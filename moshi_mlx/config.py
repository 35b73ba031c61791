"""What a model is made of, as frozen dataclasses. Knows no files and no arrays.

`published` reads them from a `config.json`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Positions = Literal["rope", "rope_concat", "sin", "sin_rope", "none"]
Norm = Literal["rms_norm", "rms_norm_f32", "layer_norm", "layer_norm_f32"]
Gating = Literal[
    "none", "silu", "gelu", "relu", "sigmoid", "tanh", "elu", "leaky_relu", "mish", "softsign",
    "identity",
]  # fmt: skip

ZERO_TOKEN = -1  # "no token here": its embedding is zero
UNGENERATED_TOKEN = -2  # nothing has been generated here yet
PUBLISHED_GROUPS = {4: 32, 8: 64}  # bits of the published quantizations → group size
QUANTIZED_BITS = (2, 3, 4, 5, 6, 8)  # that MLX can quantize to
FLOAT_MODES: dict[str, tuple[int, int]] = {
    "mxfp4": (4, 32), "mxfp8": (8, 32), "nvfp4": (4, 16),
}  # fmt: skip
"""Floating-point quantizations → bits and group: the OCP Microscaling formats, and NVIDIA's."""


@dataclass(frozen=True)
class TransformerConfig:
    """One causal transformer: the temporal one, a weight set of the depth one, or one of Mimi's.

    `context` is the number of positions a query sees, itself included; None sees everything.
    `feedforward` is the width the published files name; a gated layer's hidden width follows from
    it (`gated_hidden`).
    """

    dim: int
    num_heads: int
    num_layers: int
    feedforward: int
    context: int | None
    kv_repeat: int = 1
    max_period: float = 10_000.0
    positions: Positions = "rope"
    norm: Norm = "rms_norm_f32"
    gating: Gating = "silu"
    layer_scale: bool = False
    cross_attention: bool = False

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads

    @property
    def num_kv_heads(self) -> int:
        return self.num_heads // self.kv_repeat

    @property
    def gated_hidden(self) -> int:
        """Width of the gated hidden layer: two thirds of `feedforward`, 21/8 of dim at 4 × dim."""
        if self.feedforward == 4 * self.dim:
            return 21 * self.dim // 8
        return 2 * self.feedforward // 3


@dataclass(frozen=True)
class DepthConfig:
    """The depth transformer: `num_slices` inner positions, one per generated codebook.

    `weight_sets[k]` is the weight set that slice k uses, `inputs[k]` the input projection.
    `transformers[s]` describes weight set s (their feed-forward widths may differ).
    """

    num_slices: int
    transformers: tuple[TransformerConfig, ...]
    weight_sets: tuple[int, ...]
    inputs: tuple[int, ...]
    low_rank_embeddings: int | None = None
    norm: Norm | None = None

    @property
    def dim(self) -> int:
        return self.transformers[0].dim


@dataclass(frozen=True)
class ConditionerConfig:
    """A conditioner: `lut` looks a name up in a table, `tensor` projects a given tensor."""

    kind: Literal["lut", "tensor"]
    dim: int
    n_bins: int = 0
    possible_values: tuple[str, ...] | None = None
    force_linear: bool = True
    learn_padding: bool = True


@dataclass(frozen=True)
class FuserConfig:
    """How conditions reach the temporal transformer: added to its input, or cross-attended."""

    sum: tuple[str, ...] = ()
    cross: tuple[str, ...] = ()
    cross_positions: bool = False
    cross_positions_scale: float = 1.0


@dataclass(frozen=True)
class LmConfig:
    """The language model over one text stream and `n_q` audio streams.

    `delays` has 1 + n_q entries, text first: row k of the codes is delayed by `delays[k]` frames.
    The first `dep_q` audio streams are generated, the others are given (the other speaker).
    `beginning` is the token that text models read first.
    """

    transformer: TransformerConfig
    depth: DepthConfig | None
    text_card: int
    text_card_out: int
    card: int
    n_q: int
    dep_q: int
    delays: tuple[int, ...]
    text_padding_id: int = 3
    text_end_padding_id: int = 0
    extra_heads: int = 0
    extra_heads_dim: int = 6
    demux_second_text_stream: bool = False
    conditioners: Mapping[str, ConditionerConfig] = field(default_factory=dict)
    fuser: FuserConfig | None = None
    beginning: int | None = None

    @property
    def text_rows(self) -> int:
        """Of the table of text tokens: an initial one comes last, unless `beginning` is it."""
        return self.text_card + (self.beginning is None)

    @property
    def text_limit(self) -> int:
        """Text tokens are below this; with two streams in one token, the multiplexed ones."""
        rows = self.text_card + 1
        return rows * (rows + 1) if self.demux_second_text_stream else self.text_card

    def generating(self, count: int) -> "LmConfig":
        """The same model without the slices of the depth transformer after the first `count`."""
        depth = self.depth
        if depth is None or not 0 < count < depth.num_slices:
            return self
        weight_sets, inputs = depth.weight_sets[:count], depth.inputs[:count]
        transformers = depth.transformers[: max(weight_sets) + 1]
        depth = replace(
            depth,
            num_slices=count,
            transformers=transformers,
            weight_sets=weight_sets,
            inputs=inputs,
        )
        return replace(self, depth=depth, dep_q=count)

    @property
    def text_initial_token(self) -> int:
        return self.text_card if self.beginning is None else self.beginning

    @property
    def initial_token(self) -> int:
        return self.card

    @property
    def initial_tokens(self) -> tuple[int, ...]:
        """What every stream reads before its first token, text first."""
        return (self.text_initial_token, *(self.initial_token,) * self.n_q)


@dataclass(frozen=True)
class SeanetConfig:
    """SEANet encoder and decoder: strided convolutions with residual blocks, all causal."""

    channels: int = 1
    dimension: int = 512
    n_filters: int = 64
    n_residual_layers: int = 1
    ratios: tuple[int, ...] = (8, 6, 5, 4)
    kernel_size: int = 7
    residual_kernel_size: int = 3
    last_kernel_size: int = 3
    dilation_base: int = 2
    compress: int = 2
    true_skip: bool = True

    @property
    def hop(self) -> int:
        """Samples per position of the encoder's output."""
        return math.prod(self.ratios)


@dataclass(frozen=True)
class QuantizerConfig:
    """Split residual vector quantizer: one semantic codebook, the others acoustic."""

    dimension: int = 256
    n_q: int = 32
    bins: int = 2048
    input_dimension: int = 512
    output_dimension: int = 512


@dataclass(frozen=True)
class MimiConfig:
    """The codec: `sample_rate` Hz PCM to `frame_rate` frames of codes per second and back."""

    sample_rate: int = 24_000
    channels: int = 1
    frame_rate: float = 12.5
    seanet: SeanetConfig = SeanetConfig()
    quantizer: QuantizerConfig = QuantizerConfig()
    transformer: TransformerConfig = TransformerConfig(
        dim=512, num_heads=8, num_layers=8, feedforward=2048, context=250,
        norm="layer_norm", gating="none", layer_scale=True,
    )  # fmt: skip
    decoder: "MimiConfig | None" = None
    """The decoder's half where that is of another size; the published one mirrors the encoder."""

    @property
    def decoding(self) -> "MimiConfig":
        """What the decoder's half is made by."""
        return self.decoder or self

    @property
    def frame_size(self) -> int:
        """Samples per frame."""
        return round(self.sample_rate / self.frame_rate)

    @property
    def stride(self) -> int:
        """Transformer positions per frame."""
        return self.frame_size // self.seanet.hop


@dataclass(frozen=True)
class SamplingDefaults:
    """`lm_gen_config`: how the model's makers sample from it."""

    temp: float = 0.8
    temp_text: float = 0.7
    top_k: int = 250
    top_k_text: int = 25


@dataclass(frozen=True, slots=True)
class SttConfig:
    """`stt_config`: how a speech-to-text model's text lies behind its sound.

    audio_delay_seconds: that the text comes after the sound.
    audio_silence_prefix_seconds: of silence that the model hears before a sound.
    """

    audio_delay_seconds: float
    audio_silence_prefix_seconds: float = 0.0


@dataclass(frozen=True)
class TtsConfig:
    """`tts_config`: how a text-to-speech model writes.

    audio_delay: seconds by which the sound is behind the text.
    second_stream_ahead: words by which the second text stream is ahead; 0: there is none.
    multistream: the second speaker has the second half of the codebooks.
    max_speakers: voices that the model can be given.
    """

    audio_delay: float
    second_stream_ahead: int = 0
    multistream: bool = False
    max_speakers: int = 5


@dataclass(frozen=True)
class LoraConfig:
    """`lora_rank` and `lora_scaling` of a low-rank adapter: W + scaling · B·A."""

    rank: int = 128
    scaling: float = 2.0


@dataclass(frozen=True)
class ModelConfig:
    """A whole `config.json`: the language model, and what stands beside it in the file."""

    lm: LmConfig
    model_type: str = "moshi"
    sampling: SamplingDefaults = SamplingDefaults()
    lora: LoraConfig | None = None
    stt: SttConfig | None = None
    tts: TtsConfig | None = None
    quantization: Mapping[str, Any] | None = None
    raw: Mapping[str, Any] = field(default_factory=dict)
