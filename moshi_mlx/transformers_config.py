"""Configurations of Hugging Face Transformers' Moshi and Mimi ↔ the published fields of Kyutai's.

Knows the fields of both, their defaults, and what one can say and the other cannot. Knows nothing
of tensors or of files.
"""

import math
from collections.abc import Mapping
from typing import Any

from .config import LmConfig, MimiConfig, SamplingDefaults, TransformerConfig
from .errors import ConfigError, shown
from .fields import Fields

MOSHI, MIMI = "MoshiForConditionalGeneration", "MimiModel"
"""Names of the classes."""

_MOST_CODEBOOKS = 1000
_CODEC_BLOCKS = ("audio_encoder_config", "audio_encoder")  # the second in the oldest files
_DEPTH_BLOCK = "depth_decoder_config"
_RMS_EPS = 1e-8  # of rms_norm_f32


def is_moshi(data: Mapping[str, Any]) -> bool:
    """Whether a parsed config.json is of a Moshi in Transformers."""
    if "dim" in data:
        return False
    if MOSHI in _architectures(data):
        return True
    marks = ("hidden_size", _DEPTH_BLOCK, "audio_encoder_config")
    return data.get("model_type") == "moshi" and any(name in data for name in marks)


def is_mimi(data: Mapping[str, Any]) -> bool:
    """Whether a parsed config.json is of a Mimi alone in Transformers."""
    return MIMI in _architectures(data) or data.get("model_type") == "mimi"


def _architectures(data: Mapping[str, Any]) -> list[Any]:
    named = data.get("architectures")
    return named if isinstance(named, list) else []


# -------------------------------------------------------------------------------------- reading


def kyutai_config(data: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A Moshi's config.json of Transformers → Kyutai's fields.

    `lm_gen_config`, which `sampling_of` makes, stays as it is. Fields that have no effect on what
    the model computes are left out, as Transformers leaves out what it does not know.

    Raises:
        ConfigError: a field has a value that is not implemented, or makes no sense.
    """
    fields = Fields(data, where)
    named = _architectures(data)
    if named and MOSHI not in named:
        raise fields.fail("architectures", f"must be ['{MOSHI}'], is {shown(named)}")
    _refuse_quantized(fields)
    main = _decoder(fields, 4096, 32, 32, 22528)
    dim = main["dim"]
    codebooks = fields.whole("num_codebooks", 8, most=_MOST_CODEBOOKS)
    codec = _codec_block(fields)
    card = fields.optional("audio_vocab_size", None, fields.whole)
    card = codec.whole("codebook_size", 2048) if card is None else card
    text_card = fields.whole("vocab_size", 32_000)
    depth_fields = _depth_fields(fields)
    depth = _decoder(depth_fields, 1024, 16, 6, 5632)
    repeated = {
        "vocab_size": text_card,
        "audio_vocab_size": card,
        "input_size": dim,
        "num_codebooks": codebooks,
    }
    for name, value in repeated.items():
        if depth_fields.take(name, None) not in (None, value):
            raise depth_fields.fail(name, f"must be the whole model's, {value}")
    delays = [0, *[1] * (codebooks - 1)]
    kyutai = {
        "dim": dim,
        "text_card": text_card,
        "existing_text_padding_id": 3,
        "n_q": 2 * codebooks,
        "dep_q": codebooks,
        "card": card,
        "num_heads": main["num_heads"],
        "num_layers": main["num_layers"],
        "hidden_scale": _scale(main["feedforward"], dim),
        "causal": True,
        "layer_scale": None,
        "context": fields.optional("sliding_window", 3000, fields.whole) or 3000,
        "max_period": _max_period(fields),
        "gating": main["gating"],
        "norm": "rms_norm_f32",
        "positional_embedding": "rope",
        "kv_repeat": main["kv_repeat"],
        "depformer_kv_repeat": depth["kv_repeat"],
        "depformer_dim": depth["dim"],
        "depformer_dim_feedforward": depth["feedforward"],
        "depformer_num_heads": depth["num_heads"],
        "depformer_num_layers": depth["num_layers"],
        "depformer_layer_scale": None,
        "depformer_multi_linear": True,
        "depformer_context": codebooks,
        "depformer_max_period": 10_000,
        "depformer_gating": depth["gating"],
        "depformer_pos_emb": "none",
        "depformer_weights_per_step": True,
        "delays": [0, *delays, *delays],
        "model_type": "moshi",
    }
    return kyutai | {name: data[name] for name in ("lm_gen_config",) if name in data}


def _refuse_quantized(fields: Fields) -> None:
    block = fields.take("quantization_config", None)
    if block is not None:
        by = block.get("quant_method") if isinstance(block, Mapping) else block
        raise fields.fail(
            "quantization_config",
            f"says that it is quantized by {shown(by)}: give the original, and moshi-quantize "
            "makes it small",
        )


def _decoder(fields: Fields, dim: int, heads: int, layers: int, feedforward: int) -> dict[str, Any]:
    """What both of a model's transformers say; the numbers are the defaults."""
    dim = fields.whole("hidden_size", dim)
    num_heads, kv_repeat = _heads(fields, dim, heads)
    gating = fields.take("hidden_act", "silu")
    if gating != "silu":
        raise fields.fail("hidden_act", f"must be 'silu', is {shown(gating)}: not implemented")
    eps = fields.number("rms_norm_eps", _RMS_EPS)
    if not math.isclose(eps, _RMS_EPS):
        raise fields.fail("rms_norm_eps", f"must be {_RMS_EPS:g}, is {eps:g}: not implemented")
    return {
        "dim": dim,
        "num_heads": num_heads,
        "kv_repeat": kv_repeat,
        "num_layers": fields.whole("num_hidden_layers", layers),
        "feedforward": _feedforward(fields, feedforward, dim),
        "gating": gating,
    }


def _heads(fields: Fields, dim: int, default: int) -> tuple[int, int]:
    """The number of heads, and how many of them share their keys and values."""
    heads = fields.whole("num_attention_heads", default)
    shared = fields.optional("num_key_value_heads", None, fields.whole) or heads
    width = fields.optional("head_dim", None, fields.whole) or dim // heads
    if heads * width != dim:
        field = "num_attention_heads" if dim % heads else "head_dim"
        raise fields.fail(field, f"does not fit: {heads} heads of {width} are not {dim}")
    if heads % shared:
        raise fields.fail("num_key_value_heads", f"{shared} does not divide {heads} heads")
    return heads, heads // shared


def _feedforward(fields: Fields, default: int, dim: int) -> int:
    """The published width that gives as many hidden units as `ffn_dim` has rows for."""
    rows = fields.whole("ffn_dim", default, least=2)
    hidden, rest = divmod(rows, 2)
    if rest:
        raise fields.fail("ffn_dim", f"must be even, is {rows}")
    width = feedforward_of(hidden, dim)
    if width is None:
        raise fields.fail("ffn_dim", f"{rows} cannot be said in Kyutai's format for width {dim}")
    return width


def feedforward_of(hidden: int, dim: int) -> int | None:
    """The `dim_feedforward` of a gated layer with that many hidden units; None if there is none."""
    least = (3 * hidden + 1) // 2
    widths = (width for width in (least, least + 1) if _gated(width, dim) == hidden)
    return next(widths, None)


def _gated(width: int, dim: int) -> int:
    return TransformerConfig(dim, 1, 1, width, None).gated_hidden


def _scale(width: int, dim: int) -> float:
    """`hidden_scale`: what gives the width again when it is multiplied and cut."""
    scale = width / dim
    while int(scale * dim) < width:
        scale = math.nextafter(scale, math.inf)
    return scale


def _max_period(fields: Fields) -> float:
    """Of the rotary positions: in their own block since Transformers 5."""
    if fields.take("rope_scaling", None) is not None:
        raise fields.fail("rope_scaling", "must be null: not implemented")
    theta = fields.optional("rope_theta", 10_000.0, fields.number) or 10_000.0
    if fields.none("rope_parameters"):
        return float(theta)
    block = fields.table("rope_parameters")
    kind = block.take("rope_type", "default")
    if kind != "default":
        raise block.fail("rope_type", f"must be 'default', is {shown(kind)}: not implemented")
    return block.number("rope_theta", theta)


def _depth_fields(fields: Fields) -> Fields:
    """The depth transformer's: a block, or in the oldest files fields that begin with `depth_`."""
    if not fields.none(_DEPTH_BLOCK):
        return fields.table(_DEPTH_BLOCK)
    flat = {n: v for n, v in fields.left.items() if n.startswith("depth_")}
    return _Prefixed({n.removeprefix("depth_"): v for n, v in flat.items()}, fields.where)


class _Prefixed(Fields):
    """Fields whose names begin with `depth_`, which messages say."""

    def fail(self, name: str, problem: str) -> ConfigError:
        return super().fail(f"depth_{name}", problem)


def _codec_block(fields: Fields) -> Fields:
    name = next((name for name in _CODEC_BLOCKS if fields.left.get(name) is not None), None)
    return Fields({}, fields.where) if name is None else fields.table(name)


def sampling_of(data: Mapping[str, Any], where: str) -> dict[str, Any]:
    """generation_config.json → Kyutai's `lm_gen_config`.

    Raises:
        ConfigError: a field makes no sense.
    """
    names = SamplingDefaults()
    text = Fields(data, where)
    sampling: dict[str, Any] = {}
    for fields, temperature, top_k in (
        (text, "temp_text", "top_k_text"),
        (None if text.none(_DEPTH_BLOCK) else text.table(_DEPTH_BLOCK), "temp", "top_k"),
    ):
        if fields is None:
            continue
        # The published files call the text's `temp`.
        usual, read = getattr(names, temperature), _temperature(fields)
        slip = fields.optional("temp", usual, read)
        found = fields.optional("temperature", usual if slip is None else slip, read)
        sampling[temperature] = usual if found is None else found
        sampling[top_k] = fields.optional("top_k", getattr(names, top_k), fields.whole)
        if sampling[top_k] is None:
            del sampling[top_k]
        if fields.optional("do_sample", True, fields.flag) is False:
            sampling[temperature] = 0.0
    return sampling


def _temperature(fields: Fields) -> Any:
    """A reader of a number from 0."""

    def read(name: str, default: float) -> float:
        value = fields.take(name, default)
        good = isinstance(value, int | float) and not isinstance(value, bool)
        if not good or not 0 <= value <= 1e9:
            raise fields.fail(name, f"must be a number from 0, is {shown(value)}")
        return float(value)

    return read


_MIMI_ONLY: dict[str, Any] = {
    "audio_channels": 1,
    "pad_mode": "constant",
    "use_causal_conv": True,
    "num_semantic_quantizers": 1,
    "attention_bias": False,
    "hidden_act": "gelu",
    "norm_eps": 1e-5,
}
"""Fields of Mimi of which only one value is implemented."""


def kyutai_mimi_config(data: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Mimi's config.json of Transformers, or a Moshi's that has it inside → Kyutai's fields.

    Raises:
        ConfigError: as `kyutai_config`.
    """
    fields = _codec_block(Fields(data, where)) if is_moshi(data) else Fields(data, where)
    _refuse_quantized(fields)
    for name, only in _MIMI_ONLY.items():
        if (value := fields.take(name, only)) != only:
            raise fields.fail(name, f"must be {only!r}, is {shown(value)}: not implemented")
    dim = fields.whole("hidden_size", 512)
    heads, kv_repeat = _heads(fields, dim, 8)
    ratios = list(fields.ints("upsampling_ratios", least=1, most=10_000)) if (
        "upsampling_ratios" in fields.left
    ) else [8, 6, 5, 4]  # fmt: skip
    if not ratios:
        raise fields.fail("upsampling_ratios", "must have an entry")
    rate = fields.whole("sampling_rate", 24_000)
    inner = fields.optional("vector_quantization_hidden_dimension", 256, fields.whole)
    same = {"codebook_dim": inner, "upsample_groups": dim}
    for name, value in same.items():
        if fields.take(name, None) not in (None, value):
            raise fields.fail(name, f"must be {value} here: not implemented")
    computed = rate / (2 * math.prod(ratios))
    frame_rate = fields.optional("_frame_rate", computed, fields.number) or computed
    frame_rate = fields.optional("frame_rate", frame_rate, fields.number) or frame_rate
    return {
        "sample_rate": rate,
        "channels": 1,
        "frame_rate": frame_rate,
        "seanet": {
            "channels": 1,
            "dimension": dim,
            "causal": True,
            "n_filters": fields.whole("num_filters", 64),
            "n_residual_layers": fields.whole("num_residual_layers", 1),
            "activation": "ELU",
            "compress": fields.whole("compress", 2),
            "dilation_base": fields.whole("dilation_growth_rate", 2),
            "disable_norm_outer_blocks": 0,
            "kernel_size": fields.whole("kernel_size", 7),
            "residual_kernel_size": fields.whole("residual_kernel_size", 3),
            "last_kernel_size": fields.whole("last_kernel_size", 3),
            "norm": "none",
            "pad_mode": "constant",
            "ratios": ratios,
            "true_skip": not fields.flag("use_conv_shortcut", False),
        },
        "quantizer": {
            "dimension": inner,
            "n_q": fields.whole("num_quantizers", 32, most=_MOST_CODEBOOKS),
            "bins": fields.whole("codebook_size", 2048),
            "input_dimension": dim,
            "output_dimension": dim,
        },
        "transformer": {
            "d_model": dim,
            "num_heads": heads,
            "num_layers": fields.whole("num_hidden_layers", 8),
            "causal": True,
            "layer_scale": fields.number("layer_scale_initial_scale", 0.01),
            "context": fields.optional("sliding_window", 250, fields.whole) or 250,
            "conv_layout": True,
            "max_period": _max_period(fields),
            "gating": "none",
            "norm": "layer_norm",
            "positional_embedding": "rope",
            "dim_feedforward": fields.whole("intermediate_size", 2048),
            "input_dimension": dim,
            "output_dimensions": [dim],
            **({"kv_repeat": kv_repeat} if kv_repeat > 1 else {}),
        },
    }


# -------------------------------------------------------------------------------------- writing


def transformers_config(lm: LmConfig, mimi: MimiConfig, dtype: str, where: str) -> dict[str, Any]:
    """A model's configuration → config.json of Transformers' Moshi, the inverse of `kyutai_config`.

    Args:
        lm: the language model's.
        mimi: the codec's.
        dtype: of the language model, as "bfloat16".
        where: what to call the model in messages.

    Raises:
        ConfigError: Transformers has no such model; names the first field that it cannot say.
    """
    main, depth, codebooks = lm.transformer, lm.depth, lm.dep_q
    delays = (0, *(1,) * (codebooks - 1))
    sets = depth.transformers if depth is not None else ()
    checks = {
        "dep_q": depth is not None and lm.n_q == 2 * codebooks,
        "delays": lm.delays == (0, *delays, *delays),
        "existing_text_padding_id": (lm.text_padding_id, lm.text_end_padding_id) == (3, 0),
        "text_card_out": lm.text_card_out == lm.text_card,
        "extra_heads_num_heads": not lm.extra_heads,
        "demux_second_stream": not lm.demux_second_text_stream,
        "conditioners": not lm.conditioners and lm.fuser is None and not main.cross_attention,
        "positional_embedding": main.positions == "rope",
        "norm": main.norm == "rms_norm_f32",
        "gating": main.gating == "silu",
        "layer_scale": not main.layer_scale,
        "depformer_weights_per_step": depth is not None
        and depth.weight_sets == depth.inputs == tuple(range(codebooks)),
        "depformer_low_rank_embeddings": depth is None or depth.low_rank_embeddings is None,
        "depformer_norm": depth is None or depth.norm is None,
        "depformer_dim_feedforward": len(set(sets)) <= 1,
        "depformer_pos_emb": all(each.positions == "none" for each in sets),
        "depformer_gating": all(each.gating == "silu" for each in sets),
        "depformer_layer_scale": not any(each.layer_scale for each in sets),
    }
    _refuse_inexpressible(checks, where)
    slices = _written_decoder(sets[0])
    return {
        "architectures": [MOSHI],
        "model_type": "moshi",
        **_written_decoder(main),
        "sliding_window": main.context,
        "max_position_embeddings": main.context,
        "rope_theta": main.max_period,
        "rope_parameters": {"rope_theta": main.max_period, "rope_type": "default"},
        "vocab_size": lm.text_card,
        "audio_vocab_size": lm.card,
        "num_codebooks": codebooks,
        "tie_word_embeddings": False,
        "dtype": dtype,
        "torch_dtype": dtype,
        "depth_decoder_config": {
            "model_type": "moshi_depth",
            **slices,
            "input_size": main.dim,
            "vocab_size": lm.text_card,
            "audio_vocab_size": lm.card,
            "num_codebooks": codebooks,
            "max_position_embeddings": codebooks + 1,
            "sliding_window": codebooks,
            "tie_word_embeddings": False,
        },
        "audio_encoder_config": transformers_mimi_config(mimi, where),
    }


def _written_decoder(transformer: TransformerConfig) -> dict[str, Any]:
    return {
        "hidden_size": transformer.dim,
        "num_hidden_layers": transformer.num_layers,
        "num_attention_heads": transformer.num_heads,
        "num_key_value_heads": transformer.num_kv_heads,
        "head_dim": transformer.head_dim,
        "ffn_dim": 2 * transformer.gated_hidden,
        "hidden_act": "silu",
        "rms_norm_eps": _RMS_EPS,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
    }


def _refuse_inexpressible(checks: Mapping[str, bool], where: str) -> None:
    for name, good in checks.items():
        if not good:
            raise ConfigError(
                f"{where}: field '{name}' has a value that Transformers' layout cannot say: "
                "choose the layout kyutai or mlx"
            )


def transformers_mimi_config(mimi: MimiConfig, where: str) -> dict[str, Any]:
    """A codec's configuration → config.json of Transformers' Mimi.

    Raises:
        ConfigError: as `transformers_config`.
    """
    seanet, quantizer, inside = mimi.seanet, mimi.quantizer, mimi.transformer
    checks = {
        "decoder": mimi.decoder is None,
        "transformer.norm": inside.norm == "layer_norm",
        "transformer.gating": inside.gating == "none",
        "transformer.positional_embedding": inside.positions == "rope",
        "transformer.layer_scale": inside.layer_scale,
        "quantizer.input_dimension": quantizer.input_dimension == seanet.dimension,
        "quantizer.output_dimension": quantizer.output_dimension == seanet.dimension,
        "frame_rate": mimi.stride == 2,
        "transformer.d_model": inside.dim == seanet.dimension,
    }
    _refuse_inexpressible(checks, where)
    return {
        "architectures": [MIMI],
        "model_type": "mimi",
        "sampling_rate": mimi.sample_rate,
        "audio_channels": 1,
        "frame_rate": mimi.frame_rate,
        "hidden_size": seanet.dimension,
        "num_filters": seanet.n_filters,
        "num_residual_layers": seanet.n_residual_layers,
        "upsampling_ratios": list(seanet.ratios),
        "kernel_size": seanet.kernel_size,
        "last_kernel_size": seanet.last_kernel_size,
        "residual_kernel_size": seanet.residual_kernel_size,
        "dilation_growth_rate": seanet.dilation_base,
        "compress": seanet.compress,
        "pad_mode": "constant",
        "use_causal_conv": True,
        "use_conv_shortcut": not seanet.true_skip,
        "trim_right_ratio": 1.0,
        "codebook_size": quantizer.bins,
        "codebook_dim": quantizer.dimension,
        "vector_quantization_hidden_dimension": quantizer.dimension,
        "num_quantizers": quantizer.n_q,
        "num_semantic_quantizers": 1,
        "num_hidden_layers": inside.num_layers,
        "num_attention_heads": inside.num_heads,
        "num_key_value_heads": inside.num_kv_heads,
        "head_dim": inside.head_dim,
        "intermediate_size": inside.feedforward,
        "hidden_act": "gelu",
        "norm_eps": 1e-5,
        "sliding_window": inside.context,
        "max_position_embeddings": 8000,
        "rope_theta": inside.max_period,
        "rope_parameters": {"rope_theta": inside.max_period, "rope_type": "default"},
        "layer_scale_initial_scale": 0.01,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "upsample_groups": seanet.dimension,
        "initializer_range": 0.02,
        "use_cache": False,
        "use_streaming": False,
    }


def generation_config(lm: LmConfig, sampling: SamplingDefaults) -> dict[str, Any]:
    """How the model's makers sample → generation_config.json, the inverse of `sampling_of`."""
    return {
        "bos_token_id": lm.text_initial_token,
        "pad_token_id": lm.text_initial_token,
        **_written_sampling(sampling.temp_text, sampling.top_k_text),
        "cache_implementation": "sliding_window",
        "depth_decoder_config": {
            **_written_sampling(sampling.temp, sampling.top_k),
            "min_length": lm.dep_q + 1,
            "max_length": lm.dep_q + 1,
            "cache_implementation": "sliding_window",
        },
    }


def _written_sampling(temperature: float, top_k: int) -> dict[str, Any]:
    if not temperature:
        return {"do_sample": False}
    return {"do_sample": True, "temperature": temperature, "top_k": top_k}


def preprocessor_config(mimi: MimiConfig) -> dict[str, Any]:
    """preprocessor_config.json: the sound that the codec takes."""
    return {
        "chunk_length_s": None,
        "feature_extractor_type": "EncodecFeatureExtractor",
        "feature_size": 1,
        "overlap": None,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": True,
        "sampling_rate": mimi.sample_rate,
    }
