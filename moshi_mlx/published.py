"""A published `config.json` → our dataclasses.

Knows the fields, their defaults and which of them change the model; a field that does and is not
understood is refused by name. Knows nothing of arrays, weights or the network.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Literal

from .config import (
    ConditionerConfig,
    DepthConfig,
    FuserConfig,
    Gating,
    LmConfig,
    LoraConfig,
    MimiConfig,
    ModelConfig,
    Norm,
    Positions,
    QuantizerConfig,
    SamplingDefaults,
    SeanetConfig,
    SttConfig,
    TransformerConfig,
    TtsConfig,
)
from .errors import ConfigError, shown
from .fields import MOST
from .fields import Fields as _Fields
from .transformers_config import is_mimi, is_moshi, kyutai_config, kyutai_mimi_config

V0_1: dict[str, Any] = {
    "dim": 4096,
    "text_card": 32_000,
    "existing_text_padding_id": 3,
    "n_q": 16,
    "dep_q": 8,
    "card": 2048,
    "num_heads": 32,
    "num_layers": 32,
    "hidden_scale": 4.125,
    "causal": True,
    "layer_scale": None,
    "context": 3000,
    "max_period": 10_000,
    "gating": "silu",
    "norm": "rms_norm_f32",
    "positional_embedding": "rope",
    "depformer_dim": 1024,
    "depformer_dim_feedforward": int(4.125 * 1024),
    "depformer_num_heads": 16,
    "depformer_num_layers": 6,
    "depformer_layer_scale": None,
    "depformer_multi_linear": True,
    "depformer_context": 8,
    "depformer_max_period": 10_000,
    "depformer_gating": "silu",
    "depformer_pos_emb": "none",
    "depformer_weights_per_step": True,
    "delays": [0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1],
}

PRESETS: dict[str, dict[str, Any]] = {"moshi": V0_1, "personaplex": {**V0_1, "dep_q": 16}}
"""Configurations of models whose config.json is missing or names no field of the model."""

# Stand in config.json beside the language model's fields and don't change it.
_BESIDE = {
    "moshi_name", "mimi_name", "mimi_config_name", "tokenizer_name", "lora_name", "model_type",
    "lm_gen_config", "tts_config", "stt_config", "model_id", "quantization", "lora", "lora_rank",
    "lora_scaling", "version", "base",
    # What Transformers writes into every config.json.
    "_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version",
}  # fmt: skip
# Fields of the published format that have no effect on what the model computes: the depth
# transformer sees all of its frame's positions whatever its context says.
_WITHOUT_EFFECT = {"depformer_context", "depformer_causal", "gradient_checkpointing", "betas"}
# Fields of which only one value is implemented.
_ONLY = {
    "causal": True,
    "norm_emb": False,
    "bias_proj": False,
    "quantize": False,
    "same_initial": False,
    "positional_scale": 1.0,
    "skip_self_attn": False,
    "cross_attention_pos_emb": False,
}


MOST_CONTEXT = 100_000
"""Positions, two hours of frames: nothing but memory limits it otherwise."""
MOST_DELAY = 10_000
"""Frames, 13 minutes."""
MOST_STT_SECONDS = 60.0
"""Of a speech-to-text model's delay, and of the silence before a sound."""
_MOST_OF_SEANET = 10_000
_MOST_AHEAD, _MOST_SPEAKERS = 100, 100


def _check_width(fields: _Fields, name: str, transformer: TransformerConfig) -> None:
    """Of the feed-forward part, by the field that it follows from."""
    width = transformer.feedforward
    if transformer.gating != "none":
        width = transformer.gated_hidden
    if not 0 < width <= MOST:
        raise fields.fail(name, f"gives a hidden layer of {width} for dim {transformer.dim}")


def _check_heads(fields: _Fields, name: str, transformer: TransformerConfig) -> None:
    if transformer.dim % transformer.num_heads:
        raise fields.fail(name, f"{transformer.num_heads} does not divide {transformer.dim}")
    if transformer.num_heads % transformer.kv_repeat:
        raise fields.fail(
            "kv_repeat", f"{transformer.kv_repeat} does not divide {transformer.num_heads} heads"
        )
    if "rope" in transformer.positions and transformer.head_dim % 2:
        raise fields.fail(name, f"gives heads of {transformer.head_dim}: rope needs an even number")


def _read_depth(fields: _Fields, main: TransformerConfig, scale: float, dep_q: int) -> DepthConfig:
    """The `depformer_*` fields; what is missing is inherited from the temporal transformer."""
    dim = fields.whole("depformer_dim", 256)
    base = TransformerConfig(
        dim=dim,
        num_heads=fields.whole("depformer_num_heads", main.num_heads),
        num_layers=fields.whole("depformer_num_layers", main.num_layers),
        feedforward=0,
        context=None,
        kv_repeat=fields.whole("depformer_kv_repeat", main.kv_repeat),
        max_period=fields.number("depformer_max_period", main.max_period),
        positions=fields.choice("depformer_pos_emb", Positions, "sin"),
        norm=main.norm,
        gating=fields.choice("depformer_gating", Gating, main.gating),
        layer_scale=fields.optional(
            "depformer_layer_scale", 1.0 if main.layer_scale else None, fields.number
        ) is not None,
    )  # fmt: skip
    _check_heads(fields, "depformer_num_heads", base)
    per_step = fields.flag("depformer_weights_per_step", False)
    multi_linear = fields.flag("depformer_multi_linear", False)
    norm = fields.optional("depformer_norm", None, lambda n, d: fields.choice(n, Norm, d))
    low_rank = fields.optional("depformer_low_rank_embeddings", None, fields.whole)
    schedule: tuple[int, ...] = tuple(range(dep_q))
    if fields.left.get("depformer_weights_per_step_schedule") is not None:
        schedule = fields.ints("depformer_weights_per_step_schedule", dep_q)
        if dep_q and set(schedule) != set(range(max(schedule) + 1)):
            raise fields.fail(
                "depformer_weights_per_step_schedule",
                f"must use every weight set from 0 to its largest, is {list(schedule)}",
            )
    fields.left.pop("depformer_weights_per_step_schedule", None)
    weight_sets = schedule if per_step else (0,) * dep_q
    inputs = schedule if multi_linear else (0,) * dep_q
    if per_step and base.gating == "none":
        raise fields.fail("depformer_gating", "must not be 'none' with weights per step")
    num_sets = max(weight_sets, default=0) + 1
    feedforward = fields.take("depformer_dim_feedforward", None)
    if feedforward is None:
        feedforward = int(scale * dim)
    widths = feedforward if isinstance(feedforward, list) else [feedforward] * num_sets
    if len(widths) != num_sets or not all(type(width) is int for width in widths):
        raise fields.fail(
            "depformer_dim_feedforward",
            f"must be a width or one for each of {num_sets} weight sets, is {shown(feedforward)}",
        )
    transformers = tuple(replace(base, feedforward=width) for width in widths)
    for transformer in transformers:
        _check_width(fields, "depformer_dim_feedforward", transformer)
    return DepthConfig(
        num_slices=dep_q,
        transformers=transformers,
        weight_sets=weight_sets,
        inputs=inputs,
        low_rank_embeddings=low_rank,
        norm=norm,
    )


def _read_conditioners(fields: _Fields) -> dict[str, ConditionerConfig]:
    conditioners = {}
    table = fields.table("conditioners")
    for name in list(table.left):
        entry = table.table(name)
        kind = entry.choice("type", Literal["lut", "tensor"])
        inner = entry.table(kind)
        values = None
        if kind == "lut":
            if inner.left.get("possible_values") is not None:
                values = inner.strings("possible_values")
            inner.take("possible_values", None)
            inner.choice("tokenizer", Literal["noop"], "noop")
            inner.take("init_scale", None)
        conditioners[name] = ConditionerConfig(
            kind=kind,
            dim=inner.whole("dim"),
            n_bins=inner.whole("n_bins") if kind == "lut" else 0,
            possible_values=values,
            force_linear=inner.flag("force_linear", True),
            learn_padding=inner.flag("learn_padding", True),
        )
        inner.take("pad_empty", None)
        if inner.flag("output_bias", False):
            raise inner.fail("output_bias", "true is not implemented")
        inner.finish()
        entry.finish()
    return conditioners


def _read_fuser(fields: _Fields, conditioners: Mapping[str, ConditionerConfig]) -> FuserConfig:
    table = fields.table("fuser")
    if table.take("prepend", []):
        raise table.fail("prepend", "is not implemented: only sum and cross are")
    fuser = FuserConfig(
        sum=table.strings("sum"),
        cross=table.strings("cross"),
        cross_positions=table.flag("cross_attention_pos_emb", False),
        cross_positions_scale=table.number("cross_attention_pos_emb_scale", 1.0),
    )
    table.finish()
    for name in (*fuser.sum, *fuser.cross):
        if name not in conditioners:
            raise fields.fail("fuser", f"names '{name}', which is not among the conditioners")
    return fuser


def _check_fused(fields: _Fields, lm: LmConfig) -> None:
    """A condition that nothing takes would be lost without a word."""
    taken = () if lm.fuser is None else (*lm.fuser.sum, *lm.fuser.cross)
    for name in lm.conditioners:
        if name not in taken:
            raise fields.fail(
                "fuser", f"must name the conditioner {shown(name)} in 'sum' or in 'cross'"
            )


def _read_lm(fields: _Fields) -> LmConfig:
    for name, only in _ONLY.items():
        value = fields.take(name, only)
        if value != only:
            raise fields.fail(name, f"must be {only!r}, is {shown(value)}: not implemented")
    for name in _WITHOUT_EFFECT:
        fields.take(name, None)
    scale = fields.number("hidden_scale", 4.0)
    dim = fields.whole("dim")
    main = TransformerConfig(
        dim=dim,
        num_heads=fields.whole("num_heads"),
        num_layers=fields.whole("num_layers"),
        feedforward=int(scale * dim),
        context=fields.whole("context", most=MOST_CONTEXT),
        kv_repeat=fields.whole("kv_repeat", 1),
        max_period=fields.number("max_period", 10_000.0),
        positions=fields.choice("positional_embedding", Positions, "sin"),
        norm=fields.choice("norm", Norm, "layer_norm"),
        gating=fields.choice("gating", Gating, "none"),
        layer_scale=fields.optional("layer_scale", None, fields.number) is not None,
        cross_attention=fields.flag("cross_attention", False),
    )
    _check_heads(fields, "num_heads", main)
    _check_width(fields, "hidden_scale", main)
    n_q, dep_q = fields.whole("n_q", least=0), fields.whole("dep_q", least=0)
    if dep_q > n_q:
        raise fields.fail("dep_q", f"{dep_q} is more than the {n_q} audio streams of n_q")
    # First: dep_q then is no more than what the file has.
    delays = fields.ints("delays", 1 + n_q, most=MOST_DELAY)
    depth = _read_depth(fields, main, scale, dep_q)
    text_card = fields.whole("text_card")
    token = partial(fields.whole, least=0, most=text_card)
    conditioners = {} if fields.none("conditioners") else _read_conditioners(fields)
    fuser = None if fields.none("fuser") else _read_fuser(fields, conditioners)
    demux = fields.flag("demux_second_text_stream", False)
    lm = LmConfig(
        transformer=main,
        depth=depth if dep_q else None,
        text_card=text_card,
        text_card_out=fields.optional("text_card_out", text_card, fields.whole) or text_card,
        card=fields.whole("card"),
        n_q=n_q,
        dep_q=dep_q,
        delays=delays,
        text_padding_id=token("existing_text_padding_id", 3),
        text_end_padding_id=token("existing_text_end_padding_id", 0),
        extra_heads=fields.whole("extra_heads_num_heads", 0, least=0),
        extra_heads_dim=fields.whole("extra_heads_dim", 6),
        demux_second_text_stream=fields.flag("demux_second_stream", demux),
        conditioners=conditioners,
        fuser=fuser,
    )
    _check_fused(fields, lm)
    return lm


def _read_sampling(fields: _Fields) -> SamplingDefaults:
    """`lm_gen_config`; how the makers sample, never what the model computes, so extras pass."""
    if fields.none("lm_gen_config"):
        return SamplingDefaults()
    table = fields.table("lm_gen_config")
    values: dict[str, Any] = {}
    if "text_temp" in table.left and "temp_text" not in table.left:  # as speaking models spell it
        table.left["temp_text"] = table.take("text_temp")
    for name in SamplingDefaults.__dataclass_fields__:
        if name not in table.left:
            continue
        whole = name.startswith("top_k")
        value = table.whole(name, least=0) if whole else table.take(name)
        good = isinstance(value, int | float) and not isinstance(value, bool)
        if not good or not (math.isfinite(value) and value >= 0):
            raise table.fail(name, f"must be a number from 0, is {shown(value)}")
        values[name] = value
    return SamplingDefaults(**values)


def _read_stt(fields: _Fields) -> SttConfig | None:
    """`stt_config`: both are times, which may be 0."""
    if fields.none("stt_config"):
        return None
    table = fields.table("stt_config")
    seconds: dict[str, float] = {}
    for name, default in (
        ("audio_delay_seconds", ...),
        ("audio_silence_prefix_seconds", 0.0),
    ):
        value = table.take(name, default)
        good = isinstance(value, int | float) and not isinstance(value, bool)
        if not good or not 0 <= value <= MOST_STT_SECONDS:
            problem = f"must be seconds from 0 to {MOST_STT_SECONDS:g}, is {shown(value)}"
            raise table.fail(name, problem)
        seconds[name] = float(value)
    table.finish()
    return SttConfig(**seconds)


def _read_tts(fields: _Fields) -> TtsConfig | None:
    """`tts_config`."""
    if fields.none("tts_config"):
        return None
    table = fields.table("tts_config")
    config = TtsConfig(
        audio_delay=table.number("audio_delay", most=MOST_DELAY),
        second_stream_ahead=table.whole("second_stream_ahead", 0, least=0, most=_MOST_AHEAD),
        multistream=table.flag("multistream", False),
        max_speakers=table.whole("max_speakers", 5, most=_MOST_SPEAKERS),
    )
    table.finish()
    return config


def read_lora_scaling(data: Mapping[str, Any], where: str) -> float:
    """What an adapter's part is multiplied by, by its config.json. Raises ConfigError."""
    return _Fields(data, where).number("lora_scaling", LoraConfig().scaling)


def refuse_other_formats(data: Mapping[str, Any], where: str) -> None:
    """A config.json of a model, or of an adapter, in another program's format.

    Raises:
        ConfigError: names the program.
    """
    if is_mimi(data):
        raise ConfigError(f"{where}: is the configuration of a Mimi codec alone, not of a model")
    names = ("hidden_size", "audio_encoder_config")
    if "dim" not in data and not is_moshi(data) and any(name in data for name in names):
        raise ConfigError(
            f"{where}: is a configuration of Hugging Face Transformers; give a model in Kyutai's "
            "format, as kyutai/moshiko-pytorch-bf16 is"
        )
    if "peft_type" in data:
        raise ConfigError(
            f"{where}: is a configuration of PEFT; an adapter must be of moshi-train or "
            "moshi-finetune"
        )


def _joined(data: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The config.json of a model in parts (see `layouts.whole_name`) → Kyutai's fields.

    Its depth transformer's `dim_feedforward` is the width of the gated layer, and `n_q` counts the
    streams of one side.
    """
    fields = _Fields(data, where)
    model = dict(V0_1)
    temporal, depth = fields.table("temporal"), fields.table("depformer")
    for name in ("dim", "num_layers", "num_heads", "hidden_scale", "context", "max_period"):
        model[name] = temporal.take(name, model[name])
    for name in ("card", "text_card"):
        model[name] = temporal.take(name, model[name])
        if (other := depth.take(name, model[name])) != model[name]:
            raise depth.fail(name, f"must be that of temporal, {model[name]}, is {shown(other)}")
    for name in ("dim", "num_layers", "num_heads", "weights_per_step", "multi_linear", "context"):
        model[f"depformer_{name}"] = depth.take(name, model[f"depformer_{name}"])
    model["n_q"] = 2 * temporal.whole("n_q", 8, most=MOST // 2)
    model["dep_q"] = depth.take("num_steps", 16)
    gated = depth.whole("dim_feedforward", 2816, most=MOST // 2)
    model["depformer_dim_feedforward"] = (3 * gated + 1) // 2
    model["delays"] = fields.take("delays", model["delays"])
    temporal.finish()
    depth.finish()
    if "sampling" in fields.left:
        sampling = fields.table("sampling")
        theirs = ("audio_temp", "text_temp", "audio_top_k", "text_top_k")
        names = dict(zip(theirs, SamplingDefaults.__dataclass_fields__, strict=True))
        model["lm_gen_config"] = {names[n]: v for n, v in sampling.left.items() if n in names}
    if "quantization" in fields.left:
        block = fields.table("quantization").left
        model["quantization"] = {n: v for n, v in block.items() if n in ("bits", "group_size")}
    for name in ("mimi", "voices", "base_model"):
        fields.take(name, None)
    return model | fields.left


def read_config(
    data: Mapping[str, Any] | None = None, where: str = "config.json", preset: str = "moshi"
) -> ModelConfig:
    """Reads a published `config.json`, already parsed; Transformers' of a Moshi too.

    Args:
        data: the parsed file; None or no model fields stand for the preset.
        where: what to call it in messages, best its path.
        preset: a name in `PRESETS` for a file without a `model_type` there: Moshi v0.1.

    Raises:
        ConfigError: a field is missing, has a value that makes no sense, or is not understood.
    """
    raw = dict(data or {})
    refuse_other_formats(raw, where)
    if is_moshi(raw):
        raw = kyutai_config(raw, where)
    if "temporal" in raw and "depformer" in raw:
        raw = _joined(raw, where)
    beside = {name: value for name, value in raw.items() if name in _BESIDE}
    model = {name: value for name, value in raw.items() if name not in _BESIDE}
    if not model and beside.get("model_type") in tuple(PRESETS):
        preset = str(beside["model_type"])
    fields = _Fields(model or PRESETS[preset], where)
    lm = _read_lm(fields)
    fields.finish()
    around = _Fields(beside, where)
    lora = None
    if around.flag("lora", False) or beside.get("lora_name"):
        lora = LoraConfig(around.whole("lora_rank", 128), around.number("lora_scaling", 2.0))
    quantization = beside.get("quantization")
    if quantization is not None and not isinstance(quantization, dict):
        raise around.fail("quantization", f"must be an object, is {shown(quantization)}")
    model_type = around.take("model_type", "moshi" if model else preset)
    if not isinstance(model_type, str):
        raise around.fail("model_type", f"must be a string, is {shown(model_type)}")
    return ModelConfig(
        lm=lm,
        model_type=model_type,
        sampling=_read_sampling(around),
        lora=lora,
        stt=_read_stt(around),
        tts=_read_tts(around),
        quantization=quantization,
        raw=raw if model else {**PRESETS[preset], **raw},
    )


def _read_seanet(fields: _Fields) -> SeanetConfig:
    for name, only in {"causal": True, "activation": "ELU", "norm": "none"}.items():
        if (value := fields.take(name, only)) != only:
            raise fields.fail(name, f"must be {only!r}, is {shown(value)}: not implemented")
    if (mode := fields.take("pad_mode", "constant")) != "constant":
        raise fields.fail("pad_mode", f"must be 'constant', is {shown(mode)}: not implemented")
    fields.take("disable_norm_outer_blocks", 0)
    base = SeanetConfig()
    config = SeanetConfig(
        ratios=fields.ints("ratios", least=1, most=_MOST_OF_SEANET),
        true_skip=fields.flag("true_skip", True),
        **{
            name: fields.whole(name, getattr(base, name), most=_MOST_OF_SEANET)
            for name in base.__dataclass_fields__
            if name not in ("ratios", "true_skip")
        },
    )
    fields.finish()
    return config


def _read_quantizer(fields: _Fields) -> QuantizerConfig:
    base = QuantizerConfig()
    config = QuantizerConfig(
        **{name: fields.whole(name, getattr(base, name)) for name in vars(base)}
    )
    fields.finish()
    return config


def _read_mimi_transformer(fields: _Fields) -> TransformerConfig:
    dim = fields.whole("d_model")
    config = TransformerConfig(
        dim=dim,
        num_heads=fields.whole("num_heads"),
        num_layers=fields.whole("num_layers"),
        feedforward=fields.whole("dim_feedforward", 2048),
        context=fields.whole("context", most=MOST_CONTEXT),
        kv_repeat=fields.whole("kv_repeat", 1),
        max_period=fields.number("max_period", 10_000.0),
        positions=fields.choice("positional_embedding", Positions, "rope"),
        norm=fields.choice("norm", Norm, "layer_norm"),
        gating=fields.choice("gating", Gating, "none"),
        layer_scale=fields.optional("layer_scale", None, fields.number) is not None,
    )
    _check_heads(fields, "num_heads", config)
    _check_width(fields, "dim_feedforward", config)
    if not fields.flag("causal", True):
        raise fields.fail("causal", "must be true: not implemented")
    fields.take("conv_layout", True)
    for name, sizes in {"input_dimension": dim, "output_dimensions": [dim]}.items():
        if (value := fields.take(name, sizes)) != sizes:
            raise fields.fail(name, f"must be {sizes}, is {shown(value)}: not implemented")
    fields.finish()
    return config


def _read_decoder(data: Mapping[str, Any], encoder: MimiConfig, fields: _Fields) -> MimiConfig:
    """The block `decoder`: fields of `seanet` and `transformer` that are other there."""
    other = fields.table("decoder")
    names = ("seanet", "transformer")
    blocks = {name: other.table(name).left if name in other.left else {} for name in names}
    other.finish()
    merged = {name: {**data[name], **block} for name, block in blocks.items()}
    both = _Fields(merged, f"{fields.where}, decoder")
    decoder = replace(
        encoder,
        seanet=_read_seanet(both.table("seanet")),
        transformer=_read_mimi_transformer(both.table("transformer")),
    )
    for name, ours, theirs in (
        ("seanet.ratios", decoder.seanet.ratios, encoder.seanet.ratios),
        ("seanet.dimension", decoder.seanet.dimension, encoder.seanet.dimension),
        ("transformer.d_model", decoder.transformer.dim, encoder.transformer.dim),
    ):
        if ours != theirs:
            raise other.fail(name, f"must be {theirs} as in the encoder, is {ours}")
    return decoder


def read_mimi_config(data: Mapping[str, Any] | None = None, where: str = "config") -> MimiConfig:
    """Reads a Mimi configuration in the published format (already parsed); None: as published.

    Raises:
        ConfigError: as `read_config`.
    """
    if not data:
        return MimiConfig()
    if is_moshi(data) or is_mimi(data):
        data = kyutai_mimi_config(data, where)
    fields = _Fields(data, where)
    config = MimiConfig(
        sample_rate=fields.whole("sample_rate"),
        channels=fields.whole("channels"),
        frame_rate=fields.number("frame_rate"),
        seanet=_read_seanet(fields.table("seanet")),
        quantizer=_read_quantizer(fields.table("quantizer")),
        transformer=_read_mimi_transformer(fields.table("transformer")),
    )
    if "decoder" in data:
        config = replace(config, decoder=_read_decoder(data, config, fields))
    fields.finish()
    if config.channels != 1 or config.seanet.channels != 1:
        raise fields.fail("channels", "must be 1: not implemented")
    samples = config.sample_rate / config.frame_rate
    if not samples.is_integer() or config.frame_size % config.seanet.hop:
        raise fields.fail(
            "frame_rate",
            f"{config.frame_rate} at {config.sample_rate} Hz is not a whole number of the "
            f"encoder's {config.seanet.hop}-sample steps",
        )
    return config
