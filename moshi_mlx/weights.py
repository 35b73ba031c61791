"""Weights: from files of any published layout to a model, strictly.

A file describes its own quantization: bits and group size follow from the shapes. Every mismatch
is an error that names the tensor and the file. Knows nothing of where files come from.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from .adapter_formats import published_names
from .arrays import Weights
from .backend import default_dtype, on_gpu
from .config import FLOAT_MODES, PUBLISHED_GROUPS, QUANTIZED_BITS, LmConfig
from .errors import CheckpointError, ConfigError, counted, listed
from .layouts import (
    ADAPTER,
    detect_layout,
    from_mlx,
    from_pytorch,
    module_name,
    require,
    whole_name,
)
from .lm import Lm
from .lora import adapter_pairs, attach
from .safetensors import read_safetensors
from .transformers_layout import from_transformers
from .trees import named_leaves, named_parameters

_FLOATS = (mx.float32, mx.float16, mx.bfloat16)
_GROUPS = (16, 32, 64, 128)


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


def load_lm(
    paths: str | Path | Sequence[str | Path],
    config: LmConfig,
    *,
    dtype: mx.Dtype | None = None,
    quantization: Mapping[str, Any] | None = None,
    lora: str | Path | None = None,
    lora_scaling: float = 2.0,
    generated: int | None = None,
) -> Lm:
    """A language model from files of any layout.

    Args:
        paths: the safetensors file, or the shards.
        config: what the files must match.
        dtype: the type to compute in; `default_dtype()` if None.
        quantization: the `quantization` block of config.json; only its modes are needed.
        lora: an adapter's file: merged into full-precision layers, kept beside quantized ones.
        lora_scaling: what the adapter's part is multiplied by.
        generated: streams that will be generated; what only others need is not loaded. None: all.

    Raises:
        CheckpointError: something doesn't match; names the tensor and the file.
    """
    lm, weights, beside = fitting(
        paths,
        config,
        quantization=quantization,
        lora=lora,
        lora_scaling=lora_scaling,
        generated=generated,
    )
    dtype = dtype or default_dtype()
    fill(lm, weights, _where(paths), dtype)
    beside = {name: value.astype(dtype) for name, value in beside.items()}
    attach(lm, beside, lora_scaling, str(lora))
    return lm


def fitting(
    paths: str | Path | Sequence[str | Path],
    config: LmConfig,
    *,
    quantization: Mapping[str, Any] | None = None,
    lora: str | Path | None = None,
    lora_scaling: float = 2.0,
    generated: int | None = None,
    verify: bool = True,
) -> tuple[Lm, Weights, Weights]:
    """A language model without its values, its weights, and what of an adapter stays beside them.

    Values are read when they are used. The arguments are those of `load_lm` and `read_lm`.

    Raises:
        CheckpointError: something doesn't match; names the tensor and the file.
    """
    where = _where(paths)
    weights, beside = read_lm(paths, config, lora=lora, lora_scaling=lora_scaling, verify=verify)
    if generated is not None:
        # What nobody needs must be there too: else the config is of another model.
        check(shaped_like(weights, config, quantization, where), weights, where)
        config = config.generating(generated)
        weights, beside = used_weights(weights, config), used_weights(beside, config)
    lm = shaped_like(weights, config, quantization, where)
    check(lm, weights, where)
    return lm, weights, beside


def used_weights(weights: Weights, config: LmConfig) -> Weights:
    """Of a model's weights by our names, those that `LmConfig.generating` has left.

    Projections of all weight sets may be one tensor in the file, which is read whole: what is used
    of it is copied, so that the rest is not kept in memory.
    """
    depth = config.depth
    if depth is None:
        return weights
    counts = {"transformers": len(depth.transformers), "linear_in": max(depth.inputs) + 1}

    def there(name: str) -> bool:
        root, _, rest = name.partition(".")
        part, _, rest = rest.partition(".")
        index = rest.partition(".")[0]
        if root != "depformer" or not index.isdecimal():
            return True
        return int(index) < counts.get(part, depth.num_slices)

    used = {name: value for name, value in weights.items() if there(name)}
    packed = re.compile(r"depformer\.transformers\.\d+\..+\.(in|out)_proj\.")
    if len(used) < len(weights):
        used |= {name: mx.contiguous(a) for name, a in used.items() if packed.match(name)}
    return used


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
    weights = read_safetensors(paths, whole_name)
    layout = detect_layout(weights, where)
    try:
        if layout == "mlx":
            weights = from_mlx(weights, config, verify=verify)
        else:
            if layout == "transformers":
                weights = from_transformers(weights, config)
            weights = from_pytorch(weights, config)
    except CheckpointError as error:
        raise CheckpointError(f"{where}: {error}") from error
    if lora is None:
        return weights, {}
    adapter, full = read_adapter(lora, config, verify=verify)
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
            f"{where}: has {counted(len(weights), 'tensor')}, the config says "
            f"{counted(max(layers), 'layer')}"
        )
    slices = [re.match(r"depformer\.(?:linear_out|slices)\.(\d+)\.", name) for name in weights]
    count = max((int(match[1]) + 1 for match in slices if match), default=0)
    if count and count != config.dep_q:
        raise CheckpointError(
            f"{where}: has {count} slices of the depth transformer, config.json's field 'dep_q' is "
            f"{config.dep_q}"
        )
    try:
        lm = Lm(config)
    except (OverflowError, ValueError) as error:  # what MLX says of sizes that there cannot be
        raise CheckpointError(f"{where}: the config's sizes are impossible: {error}") from error
    _quantize_like(lm, weights, _by_module(quantization or {}, config), where)
    return lm


def skeleton(config: LmConfig, bits: int = 16, dtype: mx.Dtype | None = None) -> Lm:
    """A language model with random values that nothing has computed yet.

    Its arrays have shapes and types before they have values, which is all that sizes need.

    Args:
        config: what it is.
        bits: 16: not quantized; 4 or 8: as the published models are.
        dtype: of the floats; `default_dtype()` if None.

    Raises:
        ConfigError: a layer's width is not a multiple of the group that these bits need.
    """
    lm = Lm(config)
    lm.set_dtype(dtype or default_dtype())
    group = PUBLISHED_GROUPS.get(bits)
    if group is None:
        return lm
    for name, weight in named_parameters(lm).items():
        if name.endswith(".weight") and weight.ndim == 2 and weight.shape[1] % group:
            layer = name.removesuffix(".weight")
            raise ConfigError(
                f"layer '{layer}' has {counted(weight.shape[1], 'input')}, and {bits} bits need a "
                f"multiple of {group}: change the width (`dim`, `hidden_scale`) or the bits"
            )
    nn.quantize(lm, group, bits)
    return lm


def _by_module(block: Mapping[str, Any], config: LmConfig) -> dict[str, Any]:
    """config.json's `quantization`: its layers by the names of our modules."""
    layers = {k: v for k, v in block.items() if isinstance(v, bool | Mapping)}
    others = {k: v for k, v in block.items() if k not in layers}
    return others | {module_name(k, config): v for k, v in layers.items()}


def read_adapter(
    path: str | Path, config: LmConfig, *, verify: bool = True
) -> tuple[Weights, Weights]:
    """An adapter's file, with our names: its low-rank tensors, and tensors trained in full.

    Names may be PyTorch's (as published), MLX's or ours, in PEFT's or mlx-lm's form too. `verify`:
    read them, and refuse NaN and infinity.

    Raises:
        CheckpointError: the file is broken or has no adapter.
    """
    tensors = read_safetensors(path)
    require(ADAPTER, tensors, str(path))
    if verify:
        for name, value in tensors.items():
            check_finite(value, name, str(path))
    weights = from_pytorch(published_names(tensors), config)
    weights = {module_name(name, config): value for name, value in weights.items()}
    adapter = {name: value for name, value in weights.items() if ".lora_" in name}
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


def _where(paths: str | Path | Sequence[str | Path]) -> str:
    if isinstance(paths, str | Path):
        return str(paths)
    return str(paths[0]) + (f" (and {len(paths) - 1} more)" if len(paths) > 1 else "")


def _quantize_like(
    model: nn.Module, weights: Weights, block: Mapping[str, Any], where: str
) -> None:
    """Makes those layers quantized that are so in the file, with bits and group from the shapes."""
    settings: dict[str, dict[str, Any]] = {}
    plain: list[str] = []
    for path, module in named_leaves(model).items():
        if not hasattr(module, "to_quantized"):
            continue
        scales = weights.get(f"{path}.scales")
        if scales is None:
            plain.append(path)
            continue
        packed = weights.get(f"{path}.weight")
        if packed is None:
            raise CheckpointError(f"{where}: tensor '{path}.weight' is missing")
        settings[path] = _quantization(path, module.weight.shape, packed, scales, block, where)
    _check_plain(plain, block, not settings, where)
    if settings:
        nn.quantize(model, class_predicate=lambda path, _: settings.get(path, False))


def _check_plain(plain: Sequence[str], block: Mapping[str, Any], all_are: bool, where: str) -> None:
    """That config.json's `quantization` doesn't say of layers without scales that they have them.

    A layer that it does not name may be plain, but not all of them.
    """
    of_all = all_are and any(not isinstance(said, bool | Mapping) for said in block.values())
    said = [path for path in plain if block.get(path, of_all) is not False]
    if said:
        raise CheckpointError(
            f"{where}: tensor '{said[0]}.weight' is not quantized, config.json's field "
            "'quantization' says it is: delete what it says, or give the quantized file"
        )


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
    if rest or left or bits not in QUANTIZED_BITS or group not in _GROUPS:
        raise CheckpointError(
            f"{fail} {packed.shape} with scales {scales.shape} is not a quantization of {shape}: "
            "the file doesn't match its config"
        )
    # Scales of the floating-point modes are bytes, and each mode has its own bits and group.
    bytewise = scales.dtype == mx.uint8
    modes = {kind: mode for mode, kind in FLOAT_MODES.items()}
    mode = modes.get((bits, group), "unknown") if bytewise else "affine"
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
        CheckpointError: a tensor is missing, left over, misshapen, of a wrong type, or has values
            that are not finite.
    """
    check(model, weights, where)
    matrices = {f"{p}.weight" for p, m in named_leaves(model).items() if isinstance(m, nn.Linear)}
    filled: list[tuple[str, mx.array]] = []
    broken: list[mx.array] = []
    for name in list(weights):
        value = weights.pop(name)
        floats = value.dtype in _FLOATS
        # float16 may overflow where the file's own type does not.
        broken.append(_not_finite(value.astype(dtype) if floats and dtype == mx.float16 else value))
        laid_out = _laid_out(value, dtype, name in matrices) if floats else value
        filled.append((name, laid_out))
        # Without references from here, what was converted is freed before the next is read.
        del value, laid_out
    model.load_weights(filled)
    for (name, array), bad in zip(filled, broken, strict=True):
        mx.eval(array, bad)
        if bad.item():
            raise _infinite(name, where)


# For each type: signed and unsigned integers of its size, and infinity's bits as such, with a
# positive and a negative sign. NaN is beyond infinity.
_INFINITY = {
    mx.bfloat16: (mx.int16, 0x7F80, mx.uint16, 0xFF80),
    mx.float16: (mx.int16, 0x7C00, mx.uint16, 0xFC00),
    mx.float32: (mx.int32, 0x7F80_0000, mx.uint32, 0xFF80_0000),
}


def check_finite(value: mx.array, name: str, where: str) -> None:
    """Refuses NaN and infinity.

    Raises:
        CheckpointError: names the tensor.
    """
    if _not_finite(value).item():
        raise _infinite(name, where)


def _infinite(name: str, where: str) -> CheckpointError:
    return CheckpointError(
        f"{where}: tensor '{name}' has values that are not finite (NaN or infinity)"
    )


def _not_finite(value: mx.array) -> mx.array:
    """Whether a tensor has NaN or infinity, not yet computed: two maxima of its bits as integers.

    That reads the tensor twice in the type it is stored in, and makes no copy.
    """
    if not value.size or value.dtype not in _INFINITY:
        bytewise = value.size and value.dtype == mx.uint8  # scales; 255 is NaN in all such modes
        return value.max() == 255 if bytewise else mx.array(False)
    signed, positive, unsigned, negative = _INFINITY[value.dtype]
    highest, lowest = value.view(signed).max(), value.view(unsigned).max()
    return (highest >= positive) | (lowest >= negative)


def _laid_out(value: mx.array, dtype: mx.Dtype, matrix: bool) -> mx.array:
    """The tensor in another type, and a linear layer's matrix by columns where that is faster.

    On the CPU, the BLAS copies a float32 matrix at every use; by columns, in half of the time.
    """
    value = value.astype(dtype)
    by_columns = matrix and dtype == mx.float32 and not on_gpu()
    return mx.contiguous(value.T).T if by_columns else value


def check(model: nn.Module, weights: Weights, where: str) -> None:
    """That the weights are the model's, without reading them.

    Raises:
        CheckpointError: a tensor is missing, left over, misshapen, or of a wrong type.
    """
    expected = named_parameters(model)
    missing = sorted(expected.keys() - weights.keys())
    extra = sorted(weights.keys() - expected.keys())
    if missing:
        also = f"; {counted(len(extra), 'tensor')} that the config doesn't know" if extra else ""
        raise CheckpointError(
            f"{where}: {counted(len(missing), 'tensor')} missing: {listed(missing)}{also}"
        )
    if extra:
        unknown = counted(len(extra), "tensor")
        raise CheckpointError(f"{where}: {unknown} that the config doesn't know: {listed(extra)}")
    if misfits := [m for n, like in expected.items() if (m := _misfit(n, weights[n], like))]:
        more = f" and {len(misfits) - 1} more don't fit" if len(misfits) > 1 else ""
        raise CheckpointError(f"{where}: {misfits[0]}{more}")


def _misfit(name: str, value: mx.array, like: mx.array) -> str | None:
    """What is wrong with a tensor that should be like another."""
    if value.shape != like.shape:
        return f"tensor '{name}' is {value.shape}, the config says {like.shape}"
    floats = like.dtype in _FLOATS
    if value.dtype in _FLOATS if floats else value.dtype == like.dtype:
        return None
    return f"tensor '{name}' is {value.dtype}, not {'floating-point' if floats else like.dtype}"
