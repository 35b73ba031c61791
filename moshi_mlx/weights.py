"""Weights: from files of any published layout to a model, strictly.

Renames are pure functions from dict to dict, one per layout. A file describes its own
quantization: bits and group size follow from the shapes. Every mismatch is an error that names
the tensor and the file. Knows nothing of where files come from.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from safetensors import SafetensorError, safe_open

from .config import LmConfig
from .errors import CheckpointError
from .lm import Lm
from .lora import adapter_pairs, attach

Weights = dict[str, mx.array]

_FLOATS = (mx.float32, mx.float16, mx.bfloat16)
_BITS = (2, 3, 4, 5, 6, 8)
_GROUPS = (16, 32, 64, 128)
_FLOAT_MODES = {(4, 32): "mxfp4", (8, 32): "mxfp8", (4, 16): "nvfp4"}  # by bits and group


def read_safetensors(paths: str | Path | Sequence[str | Path]) -> Weights:
    """All tensors of one or several safetensors files, lazily.

    Raises:
        CheckpointError: a file is missing, truncated or not safetensors, or two files share a
            tensor.
    """
    weights: Weights = {}
    for path in [paths] if isinstance(paths, str | Path) else paths:
        path = Path(path)
        if not path.is_file():
            raise CheckpointError(f"{path}: there is no such file")
        try:
            with safe_open(path, framework="np"):
                pass  # checks the header, and that the file is as long as it says
            tensors = mx.load(str(path), format="safetensors")
        except (SafetensorError, RuntimeError, ValueError, OSError) as error:
            raise CheckpointError(
                f"{path}: is truncated or not a safetensors file ({error}); copy or download it "
                "again"
            ) from error
        assert isinstance(tensors, dict)
        if shared := weights.keys() & tensors.keys():
            raise CheckpointError(f"{path}: tensor '{min(shared)}' is in another file too")
        weights.update(tensors)
    return weights


def detect_layout(weights: Iterable[str], where: str) -> str:
    """`mlx` or `pytorch`.

    Raises:
        CheckpointError: the tensors are not those of a Moshi language model.
    """
    names = set(weights)
    if "text_emb.weight" in names and names & {"out_norm.weight", "out_norm.alpha"}:
        # PyTorch's layer norm is named as MLX's norms are: the embeddings tell the two apart.
        pytorch = "out_norm.alpha" in names or any(n.startswith("emb.") for n in names)
        return "pytorch" if pytorch else "mlx"
    if any(name.startswith("quantizer.rvq_first") for name in names):
        raise CheckpointError(
            f"{where}: is a Mimi codec, not a Moshi language model; give it as the Mimi file"
        )
    if any(".lora_A." in name for name in names):
        raise CheckpointError(f"{where}: is a LoRA adapter; give it beside its base model")
    some = ", ".join(sorted(names)[:3]) or "no tensors"
    raise CheckpointError(f"{where}: is not a Moshi language model (it has {some}, …)")


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


def merge_lora(weights: Weights, adapter: Weights, scaling: float, where: str) -> Weights:
    """Full-precision weights of our names plus an adapter of the same: W + scaling · B·A.

    Raises:
        CheckpointError: the adapter doesn't fit the weights.
    """
    out = dict(weights)
    for path, (a, b) in adapter_pairs(adapter, where).items():
        target = f"{path}.weight"
        if target not in out:
            raise CheckpointError(f"{where}: there is no layer '{path}' to adapt in the base")
        w = out[target]
        if w.dtype not in _FLOATS or (b.shape[0], a.shape[1]) != w.shape:
            raise CheckpointError(
                f"{where}: the adapter of '{path}' doesn't fit the base's {w.shape} {w.dtype}"
            )
        product = b.astype(mx.float32) @ a.astype(mx.float32)
        out[target] = (w.astype(mx.float32) + scaling * product).astype(w.dtype)
    return out


def default_dtype() -> mx.Dtype:
    """The type to compute in: bfloat16 on a GPU, float32 on the CPU, where it is faster."""
    return mx.bfloat16 if mx.default_device() == mx.Device(mx.gpu) else mx.float32


def load_lm(
    paths: str | Path | Sequence[str | Path],
    config: LmConfig,
    *,
    dtype: mx.Dtype | None = None,
    quantization: Mapping[str, Any] | None = None,
    lora: str | Path | None = None,
    lora_scaling: float = 2.0,
) -> Lm:
    """A language model from files of any layout.

    Args:
        paths: the safetensors file, or the shards.
        config: what the files must match.
        dtype: the type to compute in; `default_dtype()` if None.
        quantization: the `quantization` block of config.json; only its modes are needed.
        lora: an adapter's file: merged into full-precision layers, kept beside quantized ones.
        lora_scaling: what the adapter's part is multiplied by.

    Raises:
        CheckpointError: something doesn't match; names the tensor and the file.
    """
    where = _where(paths)
    weights, beside = read_lm(paths, config, lora=lora, lora_scaling=lora_scaling)
    dtype = dtype or default_dtype()
    lm = shaped_like(weights, config, quantization, where)
    fill(lm, weights, where, dtype)
    beside = {name: value.astype(dtype) for name, value in beside.items()}
    attach(lm, beside, lora_scaling, str(lora))
    return lm


def read_lm(
    paths: str | Path | Sequence[str | Path],
    config: LmConfig,
    *,
    lora: str | Path | None = None,
    lora_scaling: float = 2.0,
    verify: bool = True,
) -> tuple[Weights, Weights]:
    """The weights from files of any layout by the names of our modules, lazily, and an adapter's.

    The adapter is merged into full-precision layers; what is left of it is for quantized ones.

    Raises:
        CheckpointError: the files are not of a language model, or the adapter doesn't fit.
    """
    where = _where(paths)
    weights = read_safetensors(paths)
    layout = detect_layout(weights, where)
    try:
        if layout == "mlx":
            weights = from_mlx(weights, config, verify=verify)
        else:
            weights = from_pytorch(weights, config)
    except CheckpointError as error:
        raise CheckpointError(f"{where}: {error}") from error
    if lora is None:
        return weights, {}
    adapter, full = read_adapter(lora, config)
    weights = _replaced(weights, full, str(lora))
    quantized = {name: name.split(".lora_")[0] + ".scales" in weights for name in adapter}
    merged = {name: value for name, value in adapter.items() if not quantized[name]}
    beside = {name: value for name, value in adapter.items() if quantized[name]}
    return merge_lora(weights, merged, lora_scaling, str(lora)), beside


def shaped_like(
    weights: Weights, config: LmConfig, quantization: Mapping[str, Any] | None, where: str
) -> Lm:
    """A language model of the config, quantized where the weights are; its values are not theirs.

    Raises:
        CheckpointError: a layer's quantization makes no sense, or the block says another.
    """
    depth = config.depth
    layers = [config.transformer.num_layers, config.extra_heads]
    layers += [depth.transformers[0].num_layers] if depth is not None else []
    if max(layers) > len(weights):  # each has a tensor: such a model is not even begun
        raise CheckpointError(
            f"{where}: has {len(weights)} tensors, the config says {max(layers)} layers"
        )
    try:
        lm = Lm(config)
    except (OverflowError, ValueError) as error:  # what MLX says of sizes that there cannot be
        raise CheckpointError(f"{where}: the config's sizes are impossible: {error}") from error
    _quantize_like(lm, weights, _by_module(quantization or {}, config), where)
    return lm


def _by_module(block: Mapping[str, Any], config: LmConfig) -> dict[str, Any]:
    """config.json's `quantization`: its layers by the names of our modules."""
    layers = {k: v for k, v in block.items() if isinstance(v, bool | Mapping)}
    others = {k: v for k, v in block.items() if k not in layers}
    return others | {module_name(k, config): v for k, v in layers.items()}


def read_adapter(path: str | Path, config: LmConfig) -> tuple[Weights, Weights]:
    """An adapter's file, with our names: its low-rank tensors, and tensors trained in full.

    Names may be PyTorch's (as published) or ours.

    Raises:
        CheckpointError: the file is broken or has no adapter.
    """
    weights = from_pytorch(read_safetensors(path), config)
    adapter = {name: value for name, value in weights.items() if ".lora_" in name}
    if not adapter:
        raise CheckpointError(f"{path}: has no LoRA adapter (no tensor is called ….lora_A.weight)")
    return adapter, {name: value for name, value in weights.items() if name not in adapter}


def _replaced(weights: Weights, full: Weights, where: str) -> Weights:
    """The base's weights with those that were trained in full beside an adapter."""
    for name, value in full.items():
        base = weights.get(name)
        if base is None or base.dtype not in _FLOATS or base.shape != value.shape:
            found = "nothing" if base is None else f"{base.shape} {base.dtype}"
            raise CheckpointError(
                f"{where}: tensor '{name}' {value.shape} is to replace {found} in the base"
            )
    return weights | full


def named_parameters(model: nn.Module) -> Weights:
    """A model's tensors by name."""
    flat: Any = tree_flatten(model.parameters())
    return dict(flat)


def named_leaves(model: nn.Module) -> dict[str, Any]:
    """A model's modules that have no further modules inside, by name."""
    flat: Any = tree_flatten(model.leaf_modules(), is_leaf=nn.Module.is_module)
    return dict(flat)


def _where(paths: str | Path | Sequence[str | Path]) -> str:
    if isinstance(paths, str | Path):
        return str(paths)
    return str(paths[0]) + (f" (and {len(paths) - 1} more)" if len(paths) > 1 else "")


def _quantize_like(
    model: nn.Module, weights: Weights, block: Mapping[str, Any], where: str
) -> None:
    """Makes those layers quantized that are so in the file, with bits and group from the shapes."""
    settings: dict[str, dict[str, Any]] = {}
    for path, module in named_leaves(model).items():
        scales = weights.get(f"{path}.scales")
        if scales is None or not hasattr(module, "to_quantized"):
            continue
        packed = weights.get(f"{path}.weight")
        if packed is None:
            raise CheckpointError(f"{where}: tensor '{path}.weight' is missing")
        settings[path] = _quantization(path, module.weight.shape, packed, scales, block, where)
    if settings:
        nn.quantize(model, class_predicate=lambda path, _: settings.get(path, False))


def _quantization(
    path: str,
    shape: tuple[int, ...],
    packed: mx.array,
    scales: mx.array,
    block: Mapping[str, Any],
    where: str,
) -> dict[str, Any]:
    override = block.get(path)
    if override is False:
        raise CheckpointError(
            f"{where}: tensor '{path}.weight' is quantized, config.json says it isn't"
        )
    override = override if isinstance(override, Mapping) else {}
    said_mode = override.get("mode", block.get("mode"))
    inputs = shape[-1]
    fail = f"{where}: tensor '{path}.weight'"
    if packed.dtype != mx.uint32 or packed.ndim != 2 or scales.ndim != 2 or not scales.shape[1]:
        raise CheckpointError(
            f"{fail} has scales, but is {packed.dtype} {packed.shape}, not packed uint32"
        )
    bits, rest = divmod(32 * packed.shape[1], inputs)
    group, left = divmod(inputs, scales.shape[1])
    if rest or left or bits not in _BITS or group not in _GROUPS:
        raise CheckpointError(
            f"{fail} {packed.shape} with scales {scales.shape} is no quantization of {shape}: the "
            "file doesn't match its config"
        )
    # Scales of the floating-point modes are bytes, and each mode has bits and a group of its own.
    bytewise = scales.dtype == mx.uint8
    mode = _FLOAT_MODES.get((bits, group), "unknown") if bytewise else "affine"
    said = {**override, "mode": said_mode}
    for name, found in {"bits": bits, "group_size": group, "mode": mode}.items():
        if said.get(name) not in (None, found):
            raise CheckpointError(f"{fail} has {name} {found}, config.json says {said[name]}")
    if mode == "unknown":
        raise CheckpointError(f"{fail} has {bits} bits in groups of {group}: no mode has these")
    return {"bits": bits, "group_size": group, "mode": mode}


def fill(model: nn.Module, weights: Weights, where: str, dtype: mx.Dtype) -> None:
    """Puts the weights into the model, every tensor checked, and evaluates them one by one.

    Args:
        model: its parameters say which tensors there must be, and their shapes.
        weights: tensors by the names of the model's modules.
        where: the file, for messages.
        dtype: what floating-point tensors become.

    Raises:
        CheckpointError: a tensor is missing, left over, misshapen, or of a wrong type.
    """
    check(model, weights, where)
    matrices = {f"{p}.weight" for p, m in named_leaves(model).items() if isinstance(m, nn.Linear)}
    filled = [
        (name, _laid_out(value, dtype, name in matrices) if value.dtype in _FLOATS else value)
        for name, value in weights.items()
    ]
    # Without references from here, a tensor that was converted is freed before the next is read.
    weights.clear()
    model.load_weights(filled)
    for _, value in filled:
        mx.eval(value)


def _laid_out(value: mx.array, dtype: mx.Dtype, matrix: bool) -> mx.array:
    """The tensor in another type, and a linear layer's matrix by columns where that is faster.

    On the CPU, the BLAS copies a float32 matrix at every use; by columns, in half of the time.
    """
    value = value.astype(dtype)
    by_columns = matrix and dtype == mx.float32 and mx.default_device().type == mx.cpu
    return mx.contiguous(value.T).T if by_columns else value


def check(model: nn.Module, weights: Weights, where: str) -> None:
    """That the weights are the model's, without reading them.

    Raises:
        CheckpointError: a tensor is missing, left over, misshapen, or of a wrong type.
    """
    expected = named_parameters(model)
    if missing := sorted(expected.keys() - weights.keys()):
        raise CheckpointError(_listing(f"{where}: tensors missing", missing))
    if extra := sorted(weights.keys() - expected.keys()):
        raise CheckpointError(_listing(f"{where}: tensors that the config doesn't know", extra))
    for name, like in expected.items():
        value = weights[name]
        if value.shape != like.shape:
            raise CheckpointError(
                f"{where}: tensor '{name}' is {value.shape}, the config says {like.shape}"
            )
        if like.dtype in _FLOATS:
            if value.dtype not in _FLOATS:
                raise CheckpointError(
                    f"{where}: tensor '{name}' is {value.dtype}, not floating-point"
                )
        elif value.dtype != like.dtype:
            raise CheckpointError(f"{where}: tensor '{name}' is {value.dtype}, not {like.dtype}")


def _listing(what: str, names: Sequence[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{what}: {', '.join(repr(name) for name in names[:most])}{more}"
