"""Names of tensors: the published layouts ↔ our modules, as pure functions from dict to dict.

Knows names and shapes; nothing of files, quantization or values.
"""

import re
from collections.abc import Iterable
from typing import Any

import mlx.core as mx

from . import adapter_formats, transformers_layout
from .arrays import Weights
from .config import LmConfig
from .errors import CheckpointError, listed

LANGUAGE_MODEL, MIMI, ADAPTER = "a Moshi language model", "a Mimi codec", "a LoRA adapter"
_FOREIGN = "a model of Hugging Face Transformers"
# What tensors belong to, by a name that only they have, and how to fix it where that is known.
# Those of another program come first: they may stand among ours.
_OTHERS = (
    (
        r"\.weight\.(absmax|nested_absmax|quant_map|nested_quant_map|quant_state\.\w+)$|\.SCB$",
        "quantized by bitsandbytes",
        "give the original: moshi-quantize makes it small",
    ),
    (
        r"\.(qweight|qzeros)$",
        "quantized by GPTQ or AWQ",
        "give the original: moshi-quantize makes it small",
    ),
    (
        # Moshi's and Mimi's are read: see `transformers_layout`.
        r"self_attn\.[qkv]_proj\.",
        _FOREIGN,
        "give one in Kyutai's format, as kyutai/moshiko-pytorch-bf16 is",
    ),
)
_ADVICE = {
    LANGUAGE_MODEL: "",
    MIMI: "; give it as the Mimi file",
    ADAPTER: "; give it beside its base model",
}


def require(wanted: str, names: Iterable[str], where: str) -> None:
    """That tensors are those of `LANGUAGE_MODEL`, `MIMI` or `ADAPTER`.

    Raises:
        CheckpointError: says what they are instead.
    """
    names = set(names)
    moshi, mimi = transformers_layout.has_moshi(names), transformers_layout.has_mimi(names)
    transformers = moshi or mimi
    for pattern, what, advice in _OTHERS:
        known = what == _FOREIGN and transformers
        if not known and any(re.search(pattern, name) for name in names):
            raise CheckpointError(f"{where}: is {what}, not {wanted}; {advice}")
    if any(name.startswith("quantizer.rvq_first.") for name in names):
        found = MIMI
    elif transformers:  # a Moshi's files may have both
        found = MIMI if mimi and (wanted == MIMI or not moshi) else LANGUAGE_MODEL
    elif "text_emb.weight" in names and names & {"out_norm.weight", "out_norm.alpha"}:
        found = LANGUAGE_MODEL
    elif adapter_formats.is_adapter(names):
        found = ADAPTER
    else:
        some = listed(sorted(names)) or "no tensors"
        raise CheckpointError(f"{where}: is not {wanted} (it has {some})")
    if found != wanted:
        raise CheckpointError(f"{where}: is {found}, not {wanted}{_ADVICE[found]}")


_SPLIT = {"temporal.safetensors": "transformer.", "depformer.safetensors": "depformer."}
"""Files of a model in parts → what its layers' names begin with in a whole file."""


def whole_name(file: str, name: str) -> str:
    """A tensor's name in a file of a model in parts → its PyTorch name; others stay as they are.

    That layout is soniqo/speech-swift's, read from its converter and its loader: no published file
    has been tried. `temporal`, `depformer` and `embeddings` have PyTorch's names and shapes, layers
    without what the files differ in; scales and biases of a packed `in_proj_weight` are called
    `in_proj_scales` and `in_proj_biases`.
    """
    start = _SPLIT.get(file)
    if start is not None and name.startswith("layers."):
        name = re.sub(r"\.(in|out)_proj_(weight|scales|biases)$", r".\1_proj.\2", start + name)
    return name


def detect_layout(weights: Iterable[str], where: str) -> str:
    """`mlx`, `pytorch` or `transformers`.

    Raises:
        CheckpointError: the tensors are not those of a Moshi language model.
    """
    names = set(weights)
    require(LANGUAGE_MODEL, names, where)
    if transformers_layout.has_moshi(names):
        return "transformers"
    # PyTorch's layer norm is named as MLX's norms are: the embeddings tell the two apart.
    pytorch = "out_norm.alpha" in names or any(n.startswith("emb.") for n in names)
    return "pytorch" if pytorch else "mlx"


def from_mlx(weights: Weights, config: LmConfig, *, verify: bool = True) -> Weights:
    """MLX names → the names of our modules: depth slices become slices and weight sets.

    `verify`: read what slices share, and compare.
    """
    out: Weights = {}
    for name, value in weights.items():
        target = module_name(name, config)
        if target not in out:
            out[target] = value
        elif verify and not mx.array_equal(out[target], value).item():
            raise CheckpointError(
                f"tensor '{name}' differs from the one of another slice, but the config's "
                "depformer_weights_per_step_schedule says that they share their weights"
            )
    return out


def module_name(name: str, config: LmConfig) -> str:
    """A tensor's or a layer's MLX name → its name in our modules."""
    depth = config.depth
    match = re.fullmatch(r"depformer\.slices\.(\d+)\.(\w+)(\..+)?", name)
    if depth is None or match is None or int(match[1]) >= depth.num_slices:
        return name
    k, part, rest = int(match[1]), match[2], match[3] or ""
    if part == "emb":
        return f"depformer.embs.{k}{rest}"
    if part == "linear_out":
        return f"depformer.linear_out.{k}{rest}"
    if part == "norm":
        return f"depformer.norms.{k}{rest}"
    if part == "linear_in":
        return f"depformer.linear_in.{depth.inputs[k]}{rest}"
    return f"depformer.transformers.{depth.weight_sets[k]}{rest}"


def to_mlx(weights: Weights, config: LmConfig) -> Weights:
    """The names of our modules → MLX names, the inverse of `from_mlx`."""
    depth = config.depth
    out: Weights = {}
    for name, value in weights.items():
        match = re.fullmatch(r"depformer\.(\w+)\.(\d+)\.(.+)", name)
        if depth is None or match is None:
            out[name] = value
            continue
        part, i, rest = match[1], int(match[2]), match[3]
        if part == "embs":
            out[f"depformer.slices.{i}.emb.{rest}"] = value
        elif part == "linear_out":
            out[f"depformer.slices.{i}.linear_out.{rest}"] = value
        elif part == "norms":
            out[f"depformer.slices.{i}.norm.{rest}"] = value
        else:
            sets = depth.inputs if part == "linear_in" else depth.weight_sets
            kind = "linear_in" if part == "linear_in" else "transformer"
            for k in [k for k, used in enumerate(sets) if used == i]:
                out[f"depformer.slices.{k}.{kind}.{rest}"] = value
    return out


def from_pytorch(weights: Weights, config: LmConfig) -> Weights:
    """PyTorch names, packed or `in_projs.{i}`, → the names of our modules."""
    depth = config.depth
    num_sets = len(depth.transformers) if depth is not None else 0
    out: Weights = {}
    for name, value in weights.items():
        if name.endswith(".alpha"):
            name, value = name.removesuffix("alpha") + "weight", value.reshape(-1)
        # Newer files name every weight set; with a single one the number falls away.
        name = re.sub(r"\.in_proj_weight$", ".in_proj.weight", name)
        name = re.sub(r"\.(in|out)_projs\.(\d+)\.", r".\1_proj.\2.", name)
        if not name.startswith("depformer"):
            name = re.sub(r"\.(in|out)_proj\.0\.", r".\1_proj.", name)
            name = re.sub(r"^emb\.", "audio_embs.", name)
            name = re.sub(r"^linears\.", "depformer.linear_out.", name)
            out[name] = value
            continue
        if match := re.fullmatch(r"depformer_in\.(\d+)\.(.+)", name):
            out[f"depformer.linear_in.{match[1]}.{match[2]}"] = value
        elif match := re.fullmatch(r"depformer_text_emb\.(.+)", name):
            out[f"depformer.embs.0.{match[1]}"] = value
        elif match := re.fullmatch(r"depformer_emb\.(\d+)\.(.+)", name):
            out[f"depformer.embs.{int(match[1]) + 1}.{match[2]}"] = value
        elif match := re.fullmatch(r"depformer_norms\.(.+)", name):
            out[f"depformer.norms.{match[1]}"] = value
        elif match := re.fullmatch(r"depformer\.(layers\.\d+\..+)", name):
            out.update(_depth_layer(match[1], value, num_sets))
        else:
            out[name] = value
    return out


def _depth_layer(name: str, value: mx.array, num_sets: int) -> Weights:
    """One tensor of a depth layer → that of each weight set."""
    if match := re.fullmatch(r"(.+\.(?:in|out)_proj)\.(\d+)\.(.+)", name):
        return {f"depformer.transformers.{match[2]}.{match[1]}.{match[3]}": value}
    if match := re.fullmatch(r"(.+)\.gating\.(\d+)\.(.+)", name):
        return {f"depformer.transformers.{match[2]}.{match[1]}.gating.{match[3]}": value}
    parts: Any = [value] * num_sets
    if re.search(r"\.(in|out)_proj\.", name) and num_sets and value.shape[0] % num_sets == 0:
        parts = mx.split(value, num_sets, axis=0)  # rows of all weight sets, stacked
    return {f"depformer.transformers.{i}.{name}": part for i, part in enumerate(parts)}


def to_pytorch(weights: Weights, config: LmConfig) -> Weights:
    """Full-precision names of our modules → PyTorch names (`in_projs.{i}`), adapters' too.

    The depth transformer's norms, one set in PyTorch, are those of the first weight set.
    """
    depth = config.depth
    num_sets = len(depth.transformers) if depth is not None else 0
    out: Weights = {}
    for name, value in weights.items():
        copy = re.fullmatch(r"depformer\.transformers\.(\d+)\.layers\.\d+\.(norm|layer_sc).+", name)
        if copy and int(copy[1]):
            continue
        root_mean_square = f"{name.removesuffix('weight')}bias" not in weights
        if root_mean_square and re.search(r"(^|\.)(out_norm|norm\d|norms\.\d+)\.weight$", name):
            name, value = name.removesuffix("weight") + "alpha", value.reshape(1, 1, -1)
        name = re.sub(r"^audio_embs\.", "emb.", name)
        name = re.sub(r"^depformer\.linear_in\.", "depformer_in.", name)
        name = re.sub(r"^depformer\.linear_out\.", "linears.", name)
        name = re.sub(r"^depformer\.norms\.", "depformer_norms.", name)
        name = re.sub(r"^depformer\.embs\.0\.", "depformer_text_emb.", name)
        name = re.sub(
            r"^depformer\.embs\.(\d+)\.", lambda m: f"depformer_emb.{int(m[1]) - 1}.", name
        )
        if match := re.fullmatch(r"depformer\.transformers\.(\d+)\.(layers\..+)", name):
            name = re.sub(r"\.(in|out)_proj\.", rf".\1_projs.{match[1]}.", f"depformer.{match[2]}")
            if num_sets > 1:
                name = name.replace(".gating.", f".gating.{match[1]}.")
        else:
            name = re.sub(r"\.(in|out)_proj\.", r".\1_projs.0.", name)
        out[name] = value
    return out
