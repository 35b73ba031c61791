"""Tensors of Hugging Face Transformers' Moshi and Mimi ↔ those of Kyutai's published files.

Pure functions from dict to dict, whose values stay unread until they are used. Transformers keeps
queries, keys and values apart, stacks what the codebooks have each, and orders the rows of queries
and keys by halves of a head where Kyutai has pairs. Knows names and shapes; nothing of files.
"""

import re
from collections.abc import Iterable
from typing import Any

import mlx.core as mx

from .arrays import Weights
from .config import LmConfig, MimiConfig, TransformerConfig
from .errors import CheckpointError

CODEC = "audio_encoder."
"""What the names of the codec's tensors begin with in a Moshi's files."""

_LAYER = r"(?P<stack>[\w.]*layers\.\d+)\."
_ATTENTION = re.compile(_LAYER + r"self_attn\.(?P<part>[qkv])_proj(?:\.linear)?\.weight")
_PARTS = "qkv"


def has_moshi(names: Iterable[str]) -> bool:
    """Whether tensors are a Moshi's in Transformers."""
    return "decoder.model.embed_tokens.weight" in names


def has_mimi(names: Iterable[str]) -> bool:
    """Whether tensors are a Mimi's in Transformers, alone or in a Moshi's files."""
    mark = "quantizer.semantic_residual_vector_quantizer."
    return any(name.removeprefix(CODEC).startswith(mark) for name in names)


# ------------------------------------------------------------------------- the language model

_LM_RENAMES = (
    (r"^decoder\.model\.embed_tokens\.", "text_emb."),
    (r"^embed_tokens\.", "emb."),
    (r"^decoder\.lm_head\.", "text_linear."),
    (r"^decoder\.model\.norm\.weight$", "out_norm.alpha"),
    (r"^decoder\.model\.layers\.", "transformer.layers."),
    (r"^depth_decoder\.text_embed_tokens\.", "depformer_text_emb."),
    (r"^depth_decoder\.embed_tokens\.", "depformer_emb."),
    (r"^depth_decoder\.layers\.", "depformer.layers."),
    (r"\.input_layernorm\.weight$", ".norm1.alpha"),
    (r"\.post_attention_layernorm\.weight$", ".norm2.alpha"),
    (r"\.self_attn\.o_proj(\.linear)?\.", ".self_attn.out_proj."),
    (r"^(transformer\..+)\.mlp\.fc1\.", r"\1.gating.linear_in."),
    (r"^(transformer\..+)\.mlp\.fc2\.", r"\1.gating.linear_out."),
)
_BY_CODEBOOK = (
    (r"depth_decoder\.input_projections\.weight", "depformer_in.{}.weight"),
    (r"depth_decoder\.lm_heads\.weight", "linears.{}.weight"),
    (r"depth_decoder\.(layers\.\d+)\.mlp\.fc1\.weight", r"depformer.\1.gating.{}.linear_in.weight"),
    (
        r"depth_decoder\.(layers\.\d+)\.mlp\.fc2\.weight",
        r"depformer.\1.gating.{}.linear_out.weight",
    ),
)  # fmt: skip
"""Tensors that Transformers stacks → Kyutai's, one for each codebook."""


def from_transformers(weights: Weights, config: LmConfig) -> Weights:
    """Transformers' names → Kyutai's PyTorch names; the codec's are left out.

    A tensor that is not understood keeps its name, so that strict loading names it.

    Raises:
        CheckpointError: a tensor is missing or misshapen; names it as the file does.
    """
    depth = config.depth
    sets = depth.num_slices if depth is not None else 0
    out: Weights = {}
    joined: dict[str, dict[str, tuple[str, mx.array]]] = {}
    for name, value in weights.items():
        if name.startswith(CODEC):
            continue
        if match := _ATTENTION.fullmatch(name):
            joined.setdefault(match["stack"], {})[match["part"]] = (name, value)
            continue
        stacked = next(((p, k) for p, k in _BY_CODEBOOK if re.fullmatch(p, name)), None)
        if stacked is not None:
            _check_axes(name, value, sets, 3)
            target = re.sub(*stacked, name)
            out |= {target.format(i): value[i] for i in range(sets)}
            continue
        renamed = _renamed(name, _LM_RENAMES)
        if renamed.endswith(".alpha"):
            value = value.reshape(1, 1, -1)
        elif renamed.startswith("depformer.") and renamed.endswith(".out_proj.weight"):
            _check_axes(name, value, sets, 3)
            value = value.reshape(-1, value.shape[-1])
        out[renamed] = value
    for stack, parts in joined.items():
        renamed = f"{_renamed(stack + '.', _LM_RENAMES)}self_attn.in_proj_weight"
        if stack.startswith("depth_decoder.") and depth is not None:
            rows = _joined(stack, parts, depth.transformers[0], sets)
            out[renamed] = mx.concatenate(rows, axis=1).reshape(-1, rows[0].shape[-1])
        else:
            out[renamed] = _with_pairs(
                _joined(stack, parts, config.transformer), config.transformer
            )
    return out


def to_transformers(weights: Weights, config: LmConfig) -> Weights:
    """Kyutai's PyTorch names as `layouts.to_pytorch` gives them → Transformers' names."""
    depth = config.depth
    sets = depth.num_slices if depth is not None else 0
    out: Weights = {}

    def stacked(pattern: str) -> mx.array:
        return mx.stack([weights[pattern.format(i)] for i in range(sets)])

    attention = r"\.(layers\.\d+)\.self_attn\."
    for name, value in weights.items():
        if match := re.fullmatch(rf"transformer{attention}in_projs\.0\.weight", name):
            for part, rows in zip(_PARTS, _with_halves(value, config.transformer), strict=True):
                out[f"decoder.model.{match[1]}.self_attn.{part}_proj.linear.weight"] = rows
        elif match := re.fullmatch(rf"depformer{attention}in_projs\.0\.weight", name):
            assert depth is not None
            own = stacked(f"depformer.{match[1]}.self_attn.in_projs.{{}}.weight")
            for part, rows in zip(_PARTS, _rows(own, depth.transformers[0]), strict=True):
                out[f"depth_decoder.{match[1]}.self_attn.{part}_proj.linear.weight"] = rows
        elif match := re.fullmatch(rf"depformer{attention}out_projs\.0\.weight", name):
            own = stacked(f"depformer.{match[1]}.self_attn.out_projs.{{}}.weight")
            out[f"depth_decoder.{match[1]}.self_attn.o_proj.linear.weight"] = own
        elif match := re.fullmatch(_GATING, name):
            pattern = f"depformer.{match[1]}.gating.{{}}.linear_{match[2]}.weight"
            fc = "fc1" if match[2] == "in" else "fc2"
            own = stacked(pattern) if sets > 1 else value[None]
            out[f"depth_decoder.{match[1]}.mlp.{fc}.weight"] = own
        elif name == "depformer_in.0.weight":
            out["depth_decoder.input_projections.weight"] = stacked("depformer_in.{}.weight")
        elif name == "linears.0.weight":
            out["depth_decoder.lm_heads.weight"] = stacked("linears.{}.weight")
        elif not re.match(_STACKED, name):
            kept = value.reshape(-1) if name.endswith(".alpha") else value
            out[_renamed(name, _LM_INVERSE)] = kept
    return out


_GATING = r"depformer\.(layers\.\d+)\.gating(?:\.0)?\.linear_(in|out)\.weight"
_STACKED = r"linears\.|depformer_in\.|depformer\.layers\.\d+\.(gating|self_attn)\."
_LM_INVERSE = (
    (r"^text_emb\.", "decoder.model.embed_tokens."),
    (r"^emb\.", "embed_tokens."),
    (r"^text_linear\.", "decoder.lm_head."),
    (r"^out_norm\.alpha$", "decoder.model.norm.weight"),
    (r"^transformer\.layers\.", "decoder.model.layers."),
    (r"^depformer_text_emb\.", "depth_decoder.text_embed_tokens."),
    (r"^depformer_emb\.", "depth_decoder.embed_tokens."),
    (r"^depformer\.layers\.", "depth_decoder.layers."),
    (r"\.norm1\.alpha$", ".input_layernorm.weight"),
    (r"\.norm2\.alpha$", ".post_attention_layernorm.weight"),
    (r"\.self_attn\.out_projs\.0\.", ".self_attn.o_proj.linear."),
    (r"\.gating\.linear_in\.", ".mlp.fc1."),
    (r"\.gating\.linear_out\.", ".mlp.fc2."),
)


# ----------------------------------------------------------------------------------- the codec

_MIMI_RENAMES = (
    (r"^(encoder|decoder)\.layers\.(\d+)\.(block\.\d+\.)?(shortcut\.)?conv\.",
     r"\1.model.\2.\3\4conv.conv."),
    (r"^downsample\.conv\.", "downsample.conv.conv.conv."),
    (r"^upsample\.conv\.", "upsample.convtr.convtr.convtr."),
    (r"^(encoder|decoder)_transformer\.layers\.", r"\1_transformer.transformer.layers."),
    (r"\.self_attn\.o_proj\.", ".self_attn.out_proj."),
    (r"\.mlp\.fc1\.", ".linear1."),
    (r"\.mlp\.fc2\.", ".linear2."),
    (r"\.input_layernorm\.", ".norm1."),
    (r"\.post_attention_layernorm\.", ".norm2."),
    (r"\.self_attn_layer_scale\.", ".layer_scale_1."),
    (r"\.mlp_layer_scale\.", ".layer_scale_2."),
    (r"^quantizer\.semantic_residual_vector_quantizer\.", "quantizer.rvq_first."),
    (r"^quantizer\.acoustic_residual_vector_quantizer\.", "quantizer.rvq_rest."),
    (r"^(quantizer\.rvq_\w+)\.layers\.(\d+)\.codebook\.", r"\1.vq.layers.\2._codebook."),
    (r"\._codebook\.embed_sum$", "._codebook.embedding_sum"),
    (r"\._codebook\.initialized$", "._codebook._initialized"),
)  # fmt: skip


def mimi_from_transformers(weights: Weights, config: MimiConfig) -> Weights:
    """Transformers' names, with or without `CODEC` before them → Kyutai's; others are left out.

    Raises:
        CheckpointError: as `from_transformers`.
    """
    if any(name.startswith(CODEC) for name in weights):
        weights = {n.removeprefix(CODEC): v for n, v in weights.items() if n.startswith(CODEC)}
    upsampling = _upsampling(config)
    out: Weights = {}
    joined: dict[str, dict[str, tuple[str, mx.array]]] = {}
    for name, value in weights.items():
        if match := _ATTENTION.fullmatch(name):
            joined.setdefault(match["stack"], {})[match["part"]] = (name, value)
            continue
        renamed = _renamed(name, _MIMI_RENAMES)
        if re.match(rf"decoder\.model\.({upsampling})\.conv\.", renamed):
            renamed = renamed.replace(".conv.conv.", ".convtr.convtr.")
        out[renamed] = value
    for stack, parts in joined.items():
        name = f"{_renamed(stack + '.', _MIMI_RENAMES)}self_attn.in_proj_weight"
        transformer = config.transformer
        out[name] = _with_pairs(_joined(stack, parts, transformer), transformer)
    return out


_MIMI_INVERSE = (
    (r"^(encoder|decoder)\.model\.(\d+)\.(block\.\d+\.)?(shortcut\.)?(conv|convtr)\.\5\.",
     r"\1.layers.\2.\3\4conv."),
    (r"^downsample\.conv\.conv\.conv\.", "downsample.conv."),
    (r"^upsample\.convtr\.convtr\.convtr\.", "upsample.conv."),
    (r"^(encoder|decoder)_transformer\.transformer\.layers\.", r"\1_transformer.layers."),
    (r"\.self_attn\.out_proj(s\.0)?\.", ".self_attn.o_proj."),
    (r"\.linear1\.", ".mlp.fc1."),
    (r"\.linear2\.", ".mlp.fc2."),
    (r"\.norm1\.", ".input_layernorm."),
    (r"\.norm2\.", ".post_attention_layernorm."),
    (r"\.layer_scale_1\.", ".self_attn_layer_scale."),
    (r"\.layer_scale_2\.", ".mlp_layer_scale."),
    (r"^quantizer\.rvq_first\.", "quantizer.semantic_residual_vector_quantizer."),
    (r"^quantizer\.rvq_rest\.", "quantizer.acoustic_residual_vector_quantizer."),
    (r"\.vq\.layers\.(\d+)\._codebook\.", r".layers.\1.codebook."),
    (r"\.codebook\.(embedding_sum|embed_avg)$", ".codebook.embed_sum"),
    (r"\.codebook\.cluster_size$", ".codebook.cluster_usage"),
    (r"\.codebook\.(_initialized|inited)$", ".codebook.initialized"),
)  # fmt: skip


def mimi_to_transformers(weights: Weights, config: MimiConfig) -> Weights:
    """Kyutai's names of a codec → Transformers', without `CODEC` before them."""
    out: Weights = {}
    for name, value in weights.items():
        match = re.fullmatch(
            r"(\w+_transformer)\.transformer\.(layers\.\d+)\.self_attn\.in_proj(?:_|s\.0\.)weight",
            name,
        )
        if match is None:
            out[_renamed(name, _MIMI_INVERSE)] = value
            continue
        parts = _with_halves(value, config.transformer)
        out |= {
            f"{match[1]}.{match[2]}.self_attn.{part}_proj.weight": rows
            for part, rows in zip(_PARTS, parts, strict=True)
        }
    return out


def _upsampling(config: MimiConfig) -> str:
    """Numbers of the decoder's layers that make the signal longer, as alternatives of a pattern."""
    each = config.seanet.n_residual_layers + 2
    return "|".join(str(2 + each * stage) for stage in range(len(config.seanet.ratios)))


# ------------------------------------------------------------------------------------- shared


def _renamed(name: str, renames: Iterable[tuple[str, str]]) -> str:
    for pattern, other in renames:
        name = re.sub(pattern, other, name)
    return name


def _check_axes(name: str, value: mx.array, sets: int, axes: int) -> None:
    if value.ndim != axes or value.shape[0] != sets:
        raise CheckpointError(
            f"tensor '{name}' is {value.shape}, the config says one for each of {sets} codebooks"
        )


def _sizes(transformer: TransformerConfig) -> dict[str, int]:
    """Heads of the queries, the keys and the values."""
    shared = transformer.num_kv_heads
    return {"q": transformer.num_heads, "k": shared, "v": shared}


def _joined(
    stack: str,
    parts: dict[str, tuple[str, mx.array]],
    transformer: TransformerConfig,
    sets: int | None = None,
) -> list[mx.array]:
    """Queries, keys and values of a layer, [rows, dim] each, [sets, rows, dim] with sets."""
    found: list[mx.array] = []
    for part, heads in _sizes(transformer).items():
        if part not in parts:
            raise CheckpointError(f"tensor '{stack}.self_attn.{part}_proj.weight' is missing")
        name, value = parts[part]
        shape: tuple[Any, ...] = (heads * transformer.head_dim, transformer.dim)
        shape = shape if sets is None else (sets, *shape)
        if value.shape != shape:
            raise CheckpointError(f"tensor '{name}' is {value.shape}, the config says {shape}")
        found.append(value)
    return found


def _with_pairs(parts: list[mx.array], transformer: TransformerConfig) -> mx.array:
    """Queries, keys and values with rows by halves → all of them, queries' and keys' by pairs."""
    half, dim = transformer.head_dim // 2, transformer.dim
    *turned, values = parts
    pairs = [rows.reshape(-1, 2, half, dim).swapaxes(1, 2).reshape(-1, dim) for rows in turned]
    return mx.concatenate([*pairs, values])


def _rows(value: mx.array, transformer: TransformerConfig) -> list[mx.array]:
    """All rows, [..., rows, dim] → those of queries, keys and values."""
    queries, keys, _ = (heads * transformer.head_dim for heads in _sizes(transformer).values())
    ends = queries, queries + keys
    return [value[..., : ends[0], :], value[..., ends[0] : ends[1], :], value[..., ends[1] :, :]]


def _with_halves(value: mx.array, transformer: TransformerConfig) -> list[mx.array]:
    """The inverse of `_with_pairs`."""
    half, dim = transformer.head_dim // 2, transformer.dim
    *turned, values = _rows(value, transformer)
    halves = [rows.reshape(-1, half, 2, dim).swapaxes(1, 2).reshape(-1, dim) for rows in turned]
    return [*halves, values]
