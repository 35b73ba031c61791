"""A checkpoint of any layout, opened: its files checked, its tensors there to be read one by one.

Knows where the parts of a model are: a folder, a file, a name of the hub, an adapter and its base.
Knows nothing of quantizing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from moshi_mlx.config import ModelConfig, read_config, read_json, read_mimi_config
from moshi_mlx.errors import CheckpointError, HubError
from moshi_mlx.hub import ALIASES, BUNDLED, ModelFiles, resolve
from moshi_mlx.lm import Lm
from moshi_mlx.moshi import lora_scaling
from moshi_mlx.text import TextTokenizer
from moshi_mlx.weights import Weights, check, read_lm, shaped_like

from .reader import TensorInfo, check_files, read_header

_ADAPTER = "lora.safetensors"
_MERGED = "consolidated.safetensors"
_CONFIG = "config.json"
_PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")


@dataclass(frozen=True)
class Source:
    """An opened checkpoint; made by `open_source`.

    `tensors` are those of its weights files and its adapter, as the files name them.
    """

    name: str
    files: ModelFiles
    config: ModelConfig
    lora_scaling: float
    tensors: Mapping[str, TensorInfo]

    @property
    def where(self) -> str:
        return str(self.files.weights[0])

    @property
    def nbytes(self) -> int:
        """Of all tensors."""
        return sum(info.nbytes for info in self.tensors.values())

    @property
    def folder(self) -> Path:
        """Where the weights are."""
        return self.files.weights[0].parent

    def weights(self, *, verify: bool = False) -> Weights:
        """The language model's tensors by the names of our modules, each read when it is used.

        A new dict each time: what was read through another is not kept by this one. `verify`
        reads what slices share, and compares.
        """
        weights, beside = read_lm(
            self.files.weights, self.config.lm, lora=self.files.lora,
            lora_scaling=self.lora_scaling, verify=verify,
        )  # fmt: skip
        if beside:
            raise CheckpointError(
                f"{self.where}: is quantized, and an adapter can only be merged into full "
                "precision; give the original as --base"
            )
        return weights

    def skeleton(self, *, verify: bool = False) -> Lm:
        """The language model without its values, checked against the files.

        Raises:
            CheckpointError: a tensor is missing, left over, misshapen or of a wrong type.
        """
        weights = self.weights(verify=verify)
        lm = shaped_like(weights, self.config.lm, self.config.quantization, self.where)
        check(lm, weights, self.where)
        return lm


def open_source(
    name: str | Path, *, base: str | Path | None = None, offline: bool = False
) -> Source:
    """Finds a checkpoint's files and checks their headers.

    Args:
        name: what `moshi_mlx.load` takes, a weights file (its config.json and the rest beside it),
            or an adapter's file or folder.
        base: the model that an adapter is for; also where a fine-tune's codec and tokenizer come
            from, if it has none.
        offline: never use the network.

    Raises:
        HubError: something isn't there.
        CheckpointError: a file is broken, or doesn't match the others.
    """
    files = _find(name, base, offline)
    for path in (files.mimi, *files.weights):
        if path.suffix in _PICKLES:
            read_header(path)  # says what it is, unless it is safetensors by another name
    tensors = check_files([*files.weights, *([files.lora] if files.lora else [])])
    read_header(files.mimi)
    config = read_config(read_json(files.config) if files.config else None, str(files.config))
    read_mimi_config(
        read_json(files.mimi_config) if files.mimi_config else None, str(files.mimi_config)
    )
    tokens = TextTokenizer(files.tokenizer).vocab_size
    if tokens > config.lm.text_card:
        raise CheckpointError(
            f"{files.tokenizer}: has {tokens} tokens, the model knows {config.lm.text_card}: it is "
            "of another model"
        )
    scaling: Mapping[str, Any] = config.raw
    beside = files.lora.parent / _CONFIG if files.lora else None
    if beside is not None and beside.is_file():
        scaling = read_json(beside)
    return Source(str(name), files, config, lora_scaling(scaling, str(beside)), tensors)


def _find(name: str | Path, base: str | Path | None, offline: bool) -> ModelFiles:
    path = Path(name).expanduser()
    known = isinstance(name, str) and (name in BUNDLED or name in ALIASES)
    if not known and path.is_file():
        if any(".lora_A." in tensor for tensor in read_header(path)):
            return replace(_base_of(path, base, offline), lora=path)
        return _with_base(path.parent, path.name, base, offline)
    if not known and path.is_dir():
        config = path / _CONFIG
        fields = read_json(config) if config.is_file() else {}
        named = fields.get("moshi_name")
        weights = isinstance(named, str) and (path / named).is_file()
        if (
            (path / _ADAPTER).is_file()
            and not weights
            and not any(path.glob("model*.safetensors*"))
        ):
            return replace(_base_of(path, base, offline), lora=path / _ADAPTER)
        merged = not weights and (path / _MERGED).is_file()
        return _with_base(path, _MERGED if merged else None, base, offline)
    return resolve(name, offline=offline)


def _base_of(adapter: Path, base: str | Path | None, offline: bool) -> ModelFiles:
    if base is None:
        raise CheckpointError(f"{adapter}: is a LoRA adapter alone; name its base model (--base)")
    return resolve(base, offline=offline)


def _with_base(
    folder: Path, weights: str | None, base: str | Path | None, offline: bool
) -> ModelFiles:
    """A folder's model; its codec and tokenizer from the base, where it has none."""
    try:
        return resolve(folder, weights=weights, offline=offline)
    except HubError:
        found = folder / (weights or "model.safetensors")
        if base is None or not found.is_file():
            raise
    files = resolve(base, offline=offline)
    config = folder / _CONFIG
    own = config.is_file() and "dim" in read_json(config)
    return replace(files, weights=(found,), lora=None, config=config if own else files.config)
