"""Mimi's weights: from the published file to our modules, strictly.

The rename is a pure function from dict to dict. Knows nothing of where files come from.
"""

import re
from pathlib import Path

import mlx.core as mx

from . import transformers_config
from .arguments import path_of, whole
from .arrays import Weights
from .backend import on_gpu
from .config import MimiConfig
from .conv import pack_conv, pack_conv_transpose
from .errors import CheckpointError, counted
from .files import read_json
from .layouts import MIMI, require
from .mimi import Mimi
from .published import read_mimi_config
from .safetensors import check_files, read_index, read_safetensors
from .threads import mlx_work
from .transformers_layout import CODEC, has_mimi, mimi_from_transformers
from .vq import codebook
from .weights import check, check_finite, fill

_WEIGHTS, _INDEX, _CONFIG = "model.safetensors", ".index.json", "config.json"  # of Transformers
_CODEBOOK = re.compile(r"quantizer\.rvq_(first|rest)\.vq\.layers\.(\d+)\._codebook\.(\w+)")
# What training wrote before the tensors got their present names.
_LEGACY = {
    "inited": "_initialized",
    "cluster_size": "cluster_usage",
    "embed_avg": "embedding_sum",
    "embed_sum": "embedding_sum",
}
_RENAMES = (
    (r"_transformer\.transformer\.", "_transformer."),
    (r"\.in_proj_weight$", ".in_proj.weight"),
    (r"\.(in|out)_projs\.0\.weight$", r".\1_proj.weight"),
    (r"(\.conv|\.convtr)+\.(weight|bias)$", r".\2"),
    (r"\.block\.1\.", ".conv."),
    (r"\.block\.3\.", ".linear."),
    (r"^quantizer\.rvq_first\.", "quantizer.semantic."),
    (r"^quantizer\.rvq_rest\.", "quantizer.acoustic."),
)


def from_published(weights: Weights, config: MimiConfig, num_codebooks: int) -> Weights:
    """Published names and layouts → those of `Mimi(config, num_codebooks)`.

    Codebooks become their entries; those after `num_codebooks` are left out. A tensor that is not
    understood keeps its name, so that strict loading names it.

    Raises:
        CheckpointError: half of a codebook is missing or misshapen.
    """
    out: Weights = {}
    codebooks: dict[tuple[str, int], Weights] = {}
    for name, value in weights.items():
        if match := _CODEBOOK.fullmatch(name):
            part = _LEGACY.get(match[3], match[3])
            codebooks.setdefault((match[1], int(match[2])), {})[part] = value
            continue
        if num_codebooks == 1 and name.startswith("quantizer.rvq_rest."):
            continue
        renamed = name
        for pattern, ours in _RENAMES:
            renamed = re.sub(pattern, ours, renamed)
        out[renamed] = _pack(name, value, config)
    sides = {"first": ("semantic", 1), "rest": ("acoustic", num_codebooks - 1)}
    for side, (ours, count) in sides.items():
        if count:
            entries = mx.stack([_entries(codebooks, side, i, config) for i in range(count)])
            # In memory by columns: the search for the nearest entry reads all, a sum but one row.
            by_columns = mx.contiguous(entries.swapaxes(1, 2)).swapaxes(1, 2)
            out[f"quantizer.{ours}.embedding"] = by_columns
            out[f"quantizer.{ours}.half_square"] = entries.square().sum(axis=-1) / 2
    return out


def _pack(name: str, value: mx.array, config: MimiConfig) -> mx.array:
    """A convolution's weights, PyTorch's layout → ours; 1 × 1 convolutions are linear layers."""
    if ".convtr." in name and value.ndim == 1:
        return mx.tile(value, _upsampling(name, config))
    if value.ndim != 3:
        return value
    if re.search(r"(\.block\.3|\.shortcut)\.conv\.conv\.|_proj\.weight$", name):
        return value[:, :, 0] if value.shape[2] == 1 else value
    if ".convtr." in name:
        stride = _upsampling(name, config)
        # Packing would hide a wrong number of taps from the check of shapes.
        if value.shape[2] != 2 * stride:
            return value
        return pack_conv_transpose(value, stride, depthwise=name.startswith("upsample."))
    return pack_conv(value)


def _upsampling(name: str, config: MimiConfig) -> int:
    """The stride of a transposed convolution, by its published name; 0 if it isn't in its place.

    The decoder: a convolution, then for each ratio ELU, the upsampling one and residual blocks.
    """
    if name.startswith("upsample."):
        return config.stride
    index = int(name.split(".")[2]) if re.match(r"decoder\.model\.\d+\.", name) else 0
    seanet = config.decoding.seanet
    stage, rest = divmod(index - 2, seanet.n_residual_layers + 2)
    return seanet.ratios[stage] if not rest and 0 <= stage < len(seanet.ratios) else 0


def _entries(
    codebooks: dict[tuple[str, int], Weights], side: str, i: int, config: MimiConfig
) -> mx.array:
    """A codebook's entries from what training stored."""
    parts = codebooks.get((side, i), {})
    bins, dim = config.quantizer.bins, config.quantizer.dimension
    for part, shape in {"embedding_sum": (bins, dim), "cluster_usage": (bins,)}.items():
        name = f"quantizer.rvq_{side}.vq.layers.{i}._codebook.{part}"
        if part not in parts:
            raise CheckpointError(f"tensor '{name}' is missing")
        if parts[part].shape != shape:
            raise CheckpointError(
                f"tensor '{name}' is {parts[part].shape}, the config says {shape}"
            )
    return codebook(parts["embedding_sum"], parts["cluster_usage"])


def _with_scales_in_weights(weights: Weights) -> Weights:
    """A layer's scale of what it adds, by channel, in the rows of the matrix that makes it."""
    out = dict(weights)
    for name in weights:
        if match := re.fullmatch(r"(.+)\.layer_scale_([12])\.scale", name):
            target = f"{match[1]}.{'self_attn.out_proj' if match[2] == '1' else 'linear2'}.weight"
            # In float32: a product of two bfloat16 would be rounded once more.
            out[target] = out.pop(name).astype(mx.float32)[:, None] * out[target]
    return out


def _shaped(config: MimiConfig, num_codebooks: int, tensors: int, where: str) -> Mimi:
    """A codec of the config without its values; `tensors` is how many the file has."""
    if whole("num_codebooks", num_codebooks, 1) > config.quantizer.n_q:
        raise CheckpointError(
            f"{where}: has {counted(config.quantizer.n_q, 'codebook')}, and the model needs "
            f"{num_codebooks}: it is of another model"
        )
    sides = (config, config.decoding)
    layers = [side.transformer.num_layers for side in sides]
    layers += [side.seanet.n_residual_layers for side in sides]
    if max(layers) > tensors:  # each has a tensor: such a model is not even begun
        raise CheckpointError(
            f"{where}: has {counted(tensors, 'tensor')}, the config says "
            f"{counted(max(layers), 'layer')}"
        )
    try:
        return Mimi(config, num_codebooks)
    except (OverflowError, ValueError, ZeroDivisionError) as error:
        raise CheckpointError(f"{where}: the config's sizes are impossible: {error}") from error


def mimi_files(path: Path) -> list[Path]:
    """The files of a codec: one, or the shards that an index names. Raises ConfigError."""
    if not path.name.endswith(_INDEX):
        return [path]
    table = read_index(path)
    own = {file for name, file in table.items() if name.startswith(CODEC)}
    return [path.parent / file for file in sorted(own or set(table.values()))]


def read_mimi(path: Path, config: MimiConfig) -> Weights:
    """A codec's tensors by Kyutai's names, from files of any layout; each read when it is used.

    Raises:
        CheckpointError, ConfigError: as `load_mimi`.
    """
    weights = read_safetensors(mimi_files(path))
    require(MIMI, weights, str(path))
    if not has_mimi(weights):
        return weights
    try:
        return mimi_from_transformers(weights, config)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def check_mimi(path: str | Path) -> None:
    """That a file is a Mimi and all its values are finite, for who reads it in another way.

    Raises:
        CheckpointError: as `load_mimi`.
    """
    weights = read_safetensors(mimi_files(Path(path)))
    require(MIMI, weights, str(path))
    if any(name.startswith(CODEC) for name in weights):  # the others are a language model's
        weights = {name: value for name, value in weights.items() if name.startswith(CODEC)}
    while weights:
        name, value = weights.popitem()
        check_finite(value, name, str(path))


def _file_of(path: Path) -> Path:
    """In a folder, its one file, or its index."""
    if not path.is_dir():
        return path
    names = (_WEIGHTS, _WEIGHTS + _INDEX)
    found = next((path / name for name in names if (path / name).is_file()), None)
    if found is None:
        raise CheckpointError(f"{path}: has no {_WEIGHTS}; give the codec's file")
    return found


def _config_beside(path: Path) -> MimiConfig:
    beside = path.parent / _CONFIG
    if beside.is_file() and path.is_file() and has_mimi(check_files(mimi_files(path))):
        data = read_json(beside)
        if transformers_config.is_moshi(data) or transformers_config.is_mimi(data):
            return read_mimi_config(data, str(beside))
    return MimiConfig()


@mlx_work
def load_mimi(path: str | Path, num_codebooks: int = 8, config: MimiConfig | None = None) -> Mimi:
    """The codec from a safetensors file, in Kyutai's naming or Transformers'.

    It computes in float32; on a GPU its decoder in float16, which halves what it reads.

    Args:
        path: the file, as `tokenizer-e351c8d8-checkpoint125.safetensors`; the index of several
            files; or a folder of Transformers that has a Mimi, alone or in a Moshi.
        num_codebooks: how many codebooks to use; the file may have more.
        config: the architecture; None: what a config.json of Transformers beside the file says,
            or the published one.

    Raises:
        ArgumentError: what is given is not a path, or not a number of codebooks.
        CheckpointError: the file is broken, is not a Mimi, or doesn't match the config; names the
            tensor and the file.
        ConfigError: the config.json or the index makes no sense.
    """
    path = _file_of(path_of("path", path))
    config = config or _config_beside(path)
    weights = read_mimi(path, config)
    mimi = _shaped(config, num_codebooks, len(weights), str(path))
    check_mimi(path)  # by the file's names; a codebook's entries can be finite where it is not
    try:
        weights = from_published(weights, config, num_codebooks)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    check(mimi, weights, str(path))
    mimi.drop_scales()
    fill(mimi, _with_scales_in_weights(weights), str(path), mx.float32)
    if on_gpu():
        # The encoder's codes would not stay as they are: `python -m benchmarks.codec_types`.
        mimi.set_types(encoder=mx.float32, decoder=mx.float16)
    mx.eval(mimi.parameters())
    return mimi
