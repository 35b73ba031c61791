"""A checkpoint, opened: its files found, checked against each other, and read when asked.

Knows which files a model has and how they fit together: a folder, a weights file, a name of the
catalogue or the hub, an adapter and its base. Knows nothing of what a model is used for.
"""

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import mlx.core as mx

from . import catalog
from .adapter_formats import ADAPTER_FILES, ADAPTER_SETTINGS, is_adapter, scaling_of
from .arguments import path_of
from .arrays import Weights
from .bases import likely_base
from .codec import CodecName, MlxCodec, RustCodec, choose_codec
from .config import LmConfig, MimiConfig, ModelConfig
from .errors import ArgumentError, CheckpointError, ConfigError, HubError, counted
from .files import read_json, write_json
from .formats import other_weights
from .hub import (
    CODECS,
    TOKENIZERS,
    ModelFiles,
    canonical,
    local_path,
    resolve,
)
from .layouts import ADAPTER as ADAPTER_TENSORS
from .layouts import MIMI, detect_layout, require, whole_name
from .lm import Lm
from .mimi import Mimi
from .published import read_config, read_lora_scaling, read_mimi_config
from .safetensors import TensorInfo, check_files, read_header
from .text import SENTENCES, TextTokenizer
from .transformers_config import is_moshi, sampling_of
from .transformers_layout import CODEC
from .weights import check, fitting, load_lm, read_lm, shaped_like, used_weights
from .weights_mimi import load_mimi, mimi_files

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
ADAPTER = "lora.safetensors"
_MERGED = "consolidated"  # the folder of a whole fine-tune in one of moshi-finetune's checkpoints
_EXTRA_HEAD = re.compile(r"extra_heads\.\d+\.weight")
_PADDED = 128  # a model's tables of text tokens may be padded to a multiple of this


@dataclass(frozen=True)
class Checkpoint:
    """Made by `open_checkpoint`.

    name: as it was asked for.
    lora_scaling: what the adapter's part is multiplied by, if there is one.
    tensors: those of the weights files and the adapter, as the files name them.
    stored: what the files have, where `config` says less; see `generating`.
    """

    name: str
    files: ModelFiles
    config: ModelConfig
    mimi_config: MimiConfig
    text: TextTokenizer
    lora_scaling: float
    tensors: Mapping[str, TensorInfo]
    stored: LmConfig | None = None

    def generating(self, count: int) -> "Checkpoint":
        """The same without what only streams after the first `count` generated ones need.

        The same checkpoint where nothing can be left out.
        """
        lm, depth = self.config.lm.generating(count), self.config.lm.depth
        if lm is self.config.lm or depth is None or lm.depth is None:
            return self
        if set(lm.depth.weight_sets) != set(range(len(lm.depth.transformers))):
            return self  # its weight sets are used in another order
        raw = {**self.config.raw, "dep_q": count}
        if raw.get(schedule := "depformer_weights_per_step_schedule") is not None:
            raw[schedule] = raw[schedule][:count]
        if isinstance(widths := raw.get("depformer_dim_feedforward"), list):
            raw["depformer_dim_feedforward"] = widths[: len(lm.depth.transformers)]
        config = replace(self.config, lm=lm, raw=raw)
        return replace(self, config=config, stored=self.stored or self.config.lm)

    @property
    def where(self) -> str:
        """The weights file, for messages."""
        return str(self.files.weights[0])

    @property
    def folder(self) -> Path:
        """Where the weights are."""
        return self.files.weights[0].parent

    @property
    def nbytes(self) -> int:
        """Of all tensors."""
        return sum(info.nbytes for info in self.tensors.values())

    @cached_property
    def card(self) -> Path | None:
        """The model's own description, which may state its licence."""
        names = ("README.md", "MODEL_CARD.md", "SOURCE_CARD.md")
        return next((self.folder / n for n in names if (self.folder / n).is_file()), None)

    def weights(self, *, verify: bool = False) -> Weights:
        """The language model's tensors by the names of our modules, each read when it is used.

        A new dict each time: what was read through another is not kept by this one. `verify`
        reads what slices share, and compares.

        Raises:
            CheckpointError: an adapter cannot be merged, or slices differ.
        """
        weights, beside = read_lm(
            self.files.weights,
            self.stored or self.config.lm,
            lora=self.files.lora,
            lora_scaling=self.lora_scaling,
            verify=verify,
        )
        if beside:
            raise CheckpointError(
                f"{self.where}: is quantized, and an adapter can only be merged into full "
                "precision; give the original as --base"
            )
        return weights if self.stored is None else used_weights(weights, self.config.lm)

    def skeleton(self, *, verify: bool = False) -> Lm:
        """The language model without its values, checked against the files.

        Raises:
            CheckpointError: a tensor is missing, left over, misshapen or of a wrong type.
        """
        weights = self.weights(verify=verify)
        lm = shaped_like(weights, self.config.lm, self.config.quantization, self.where)
        check(lm, weights, self.where)
        return lm

    def fitting(self, generated: int) -> Weights:
        """What `load_lm` would read of the weights files, which are checked but not read yet.

        Raises:
            CheckpointError: as `load_lm`, but for the values and the adapter.
        """
        _, weights, _ = fitting(
            self.files.weights,
            self.stored or self.config.lm,
            quantization=self.config.quantization,
            generated=min(generated, self.config.lm.dep_q),
            verify=False,
        )
        return weights

    def load_lm(self, dtype: mx.Dtype | None = None, generated: int | None = None) -> Lm:
        """The language model, its adapter merged or beside it.

        Args:
            dtype: what to compute in: float32 on the CPU and bfloat16 on a GPU if None.
            generated: streams that will be generated; all if None.

        Raises:
            CheckpointError: something doesn't match; names the tensor and the file.
        """
        if self.stored is not None:
            own = self.config.lm.dep_q
            generated = own if generated is None else min(generated, own)
        return load_lm(
            self.files.weights,
            self.stored or self.config.lm,
            dtype=dtype,
            quantization=self.config.quantization,
            lora=self.files.lora,
            lora_scaling=self.lora_scaling,
            generated=generated,
        )

    def load_mimi(self, num_codebooks: int) -> Mimi:
        """The codec in MLX, with that many codebooks. Raises CheckpointError."""
        return load_mimi(self.files.mimi, num_codebooks, self.mimi_config)

    def choose_codec(self, name: CodecName, num_codebooks: int) -> MlxCodec | RustCodec:
        """The codec of a session; see `codec.choose_codec`."""
        return choose_codec(name, self.files.mimi, num_codebooks, self.mimi_config)


def open_checkpoint(
    name: str | Path,
    *,
    weights: str | None = None,
    lora: str | Path | None = None,
    base: str | Path | None = None,
    offline: bool = False,
) -> Checkpoint:
    """Finds a checkpoint's files, and checks their headers and that they fit together.

    Args:
        name: a bundled model ("nano"), a published name ("moshiko-q4"), a folder, a weights file
            (its config.json and the rest beside it), an adapter's file or folder, or a repository
            of the hub ("kyutai/moshiko-mlx-q4", with "@revision" if wanted).
        weights: the weights file, where a folder or repository has several.
        lora: an adapter for the model: its file, or the folder that has its `lora.safetensors` and
            `config.json`. The model's own adapter, if it has one, then isn't used.
        base: the model that an adapter given as `name` is for; also where a fine-tune's codec and
            tokenizer come from, if it has none.
        offline: never use the network (as HF_HUB_OFFLINE=1).

    Raises:
        HubError: the name leads to no files.
        CheckpointError: a file is broken or doesn't match the others.
        TokenizerError: the tokenizer is missing or broken.
        ArgumentError: a name or a path can be none.
    """
    files = find_files(name, weights=weights, lora=lora, base=base, offline=offline)
    return read_headers(str(name), files)


def read_headers(name: str, files: ModelFiles) -> Checkpoint:
    """The second half of `open_checkpoint`: that these files are what they should be.

    Raises:
        CheckpointError, TokenizerError: as `open_checkpoint`.
    """
    config = config_of(files)
    text = TextTokenizer(files.tokenizer)
    if not config.lm.text_card - _PADDED < text.vocab_size <= config.lm.text_card:
        _needs_config(files, files.tokenizer)
        raise CheckpointError(
            f"{files.tokenizer}: has {counted(text.vocab_size, 'token')}, the model knows "
            f"{config.lm.text_card}: it is of another model"
        )
    mimi_config = read_mimi_config(
        read_json(files.mimi_config) if files.mimi_config else None, str(files.mimi_config)
    )
    if config.lm.card != mimi_config.quantizer.bins:
        _needs_config(files, files.mimi)
        raise CheckpointError(
            f"{files.mimi}: has codebooks of {mimi_config.quantizer.bins} entries, the model's "
            f"field 'card' is {config.lm.card}"
        )
    tensors = check_files(files.weights, whole_name)
    detect_layout(tensors, str(files.weights[0]))
    config = _with_its_heads(config, tensors)
    tensors = {name: info for name, info in tensors.items() if not name.startswith(CODEC)}
    if files.lora is not None:
        adapter = read_header(files.lora)
        require(ADAPTER_TENSORS, adapter, str(files.lora))
        tensors |= {name: info for name, info in adapter.items() if name not in tensors}
    require(MIMI, check_files(mimi_files(files.mimi)), str(files.mimi))
    return Checkpoint(name, files, config, mimi_config, text, _lora_scaling(files, config), tensors)


def _needs_config(files: ModelFiles, file: Path) -> None:
    """Raises ConfigError where the model has no config.json and needs one, as that file shows."""
    if files.config is None and catalog.find(files.name) is None:
        raise ConfigError(
            f"There is no {CONFIG} in {files.weights[0].parent}, and {file.name} is not that of a "
            "model without one: put it there, or fetch the model again as a whole"
        )


def _with_its_heads(config: ModelConfig, tensors: Mapping[str, TensorInfo]) -> ModelConfig:
    """The files say whether there are extra heads: some repositories of a model leave them out."""
    heads = [info for name, info in tensors.items() if _EXTRA_HEAD.fullmatch(name)]
    if bool(heads) == bool(config.lm.extra_heads):
        return config
    width = heads[0].shape[0] if heads and heads[0].shape else config.lm.extra_heads_dim
    lm = replace(config.lm, extra_heads=len(heads), extra_heads_dim=width)
    names = {"extra_heads_num_heads": len(heads), "extra_heads_dim": width}
    return replace(config, lm=lm, raw={**config.raw, **names})


def config_of(files: ModelFiles) -> ModelConfig:
    """What the model's config.json says; without one, what the catalogue says of its name.

    Raises:
        ConfigError: as `read_config`.
    """
    entry = catalog.find(files.name)
    preset = entry.preset if entry is not None else None
    data = read_json(files.config) if files.config else None
    if files.generation is not None and data is not None:
        generation = sampling_of(read_json(files.generation), str(files.generation))
        data = {**data, "lm_gen_config": generation}
    return read_config(data, str(files.config), preset or "moshi")


def find_files(
    name: str | Path,
    *,
    weights: str | None = None,
    lora: str | Path | None = None,
    base: str | Path | None = None,
    offline: bool = False,
) -> ModelFiles:
    """The files of what `open_checkpoint` takes, which has the arguments.

    Raises:
        HubError: the name leads to no files.
        CheckpointError: a file that leads to the others is broken.
        ArgumentError: a name or a path can be none.
    """
    if weights is not None and (not isinstance(weights, str) or not weights):
        raise ArgumentError(f"weights must be the name of a file, is {weights!r}")
    for what, given in (("lora", lora), ("base", base)):
        if given is not None:
            path_of(what, given)
    try:
        files = _find(name, weights, base, offline, own_adapter=lora is None)
        if lora is not None:
            files = replace(files, lora=_adapter(local_path(lora)))
    except OSError as error:  # a folder that may not be looked into
        reason = error.strerror or str(error)
        raise HubError(f"{error.filename or name}: cannot be read: {reason}") from error
    return files


def _adapter(path: Path) -> Path:
    file = _adapter_in(path) or path / ADAPTER if path.is_dir() else path
    if not file.exists():
        if path.is_dir() and (others := other_weights(f.name for f in path.iterdir())):
            raise HubError(
                f"The folder {path} has no adapter that can be read: {others}. Save it as "
                "safetensors with the program that made it."
            )
        raise HubError(
            f"There is no file or folder {path}: give an adapter's file, or the folder that has it."
            if file == path
            else f"The folder {path} has no {ADAPTER}: give an adapter's file, or its folder."
        )
    return file


def _adapter_in(folder: Path) -> Path | None:
    """Of any program."""
    return next((folder / name for name in ADAPTER_FILES if (folder / name).is_file()), None)


def _find(
    name: str | Path,
    weights: str | None,
    base: str | Path | None,
    offline: bool,
    own_adapter: bool,
) -> ModelFiles:
    text = canonical(name)
    path = local_path(text)
    known = isinstance(name, str) and catalog.find(text) is not None
    if not known and path.is_file():
        if path.suffix == ".json":
            raise HubError(f"{path} is a file; give the folder that it is in, {path.parent}.")
        if is_adapter(read_header(path)):
            return replace(_base_of(path, base, offline), lora=path)
        return _with_base(path.parent, path.name, base, offline, own_adapter)
    if not known and path.is_dir() and weights is None:
        config, inner = path / CONFIG, path / _MERGED
        if not config.is_file() and (inner / CONFIG).is_file():
            path, config = inner, inner / CONFIG
        fields = read_json(config) if config.is_file() else {}
        named = fields.get("moshi_name")
        has_weights = isinstance(named, str) and (path / named).is_file()
        has_weights |= any(path.glob("model*.safetensors*"))
        has_weights |= (path / f"{_MERGED}.safetensors").is_file()
        adapter = _adapter_in(path)
        if adapter is not None and not has_weights:
            return replace(_base_of(adapter, base, offline), lora=adapter)
        return _with_base(path, None, base, offline, own_adapter)
    given = name if isinstance(name, Path) else text
    return resolve(given, weights=weights, offline=offline, own_adapter=own_adapter)


def _base_of(adapter: Path, base: str | Path | None, offline: bool) -> ModelFiles:
    beside = adapter.parent / CONFIG
    if base is None and beside.is_file() and _has_shape(read_json(beside)):
        base = likely_base(beside)
    if base is None:
        raise CheckpointError(
            f"{adapter}: is a LoRA adapter alone; give its base as the model and this as the "
            "adapter (moshi-local --model BASE --lora ADAPTER, moshi-quantize ADAPTER --base BASE)"
        )
    return find_files(base, offline=offline)


def _has_shape(fields: dict[str, Any]) -> bool:
    """Whether a config.json describes a model itself, not only where one is."""
    return "dim" in fields or is_moshi(fields)


def _with_base(
    folder: Path, weights: str | None, base: str | Path | None, offline: bool, own_adapter: bool
) -> ModelFiles:
    """A folder's model; its codec and tokenizer from the base, where it lacks them."""
    try:
        return resolve(folder, weights=weights, offline=offline, own_adapter=own_adapter)
    except HubError:
        names = (weights,) if weights else (WEIGHTS, f"{_MERGED}.safetensors")
        found = next((folder / n for n in names if (folder / n).is_file()), None)
        config = folder / CONFIG
        if base is None and found is not None and found.name.startswith(_MERGED):
            base = likely_base(config)  # another folder that lacks a file is damaged
        if base is None or found is None:
            raise
    files = resolve(base, offline=offline, companions=True)
    fields = read_json(config) if config.is_file() else {}
    own = _has_shape(fields)
    beside = {"tokenizer": TOKENIZERS, "mimi": CODECS}
    kept: dict[str, Any] = {}
    for what, usual in beside.items():
        named = fields.get(f"{what}_name")
        file = next((n for n in (named, *usual) if n and (folder / str(n)).is_file()), None)
        if file is not None:
            kept[what] = folder / str(file)
    if "mimi" in kept:
        named = fields.get("mimi_config_name")
        kept["mimi_config"] = folder / str(named) if named else None
    config_file = config if own else files.config
    return replace(files, weights=(found,), lora=None, config=config_file, **kept)


def _lora_scaling(files: ModelFiles, config: ModelConfig) -> float:
    """The field `lora_scaling` of the config.json beside an adapter, or the published default."""
    raw, where = config.raw, str(files.config)
    if files.lora is not None and files.lora.name in ADAPTER_FILES[1:]:
        settings = files.lora.parent / ADAPTER_SETTINGS
        if settings.is_file():
            return scaling_of(read_json(settings), str(settings))
    beside = files.lora.parent / CONFIG if files.lora else None
    if beside is not None and beside.is_file():
        raw, where = read_json(beside), str(beside)
    return read_lora_scaling(raw, where)


def write_companions(
    folder: Path,
    raw: Mapping[str, Any],
    *,
    mimi: Path,
    tokenizer: Path,
    mimi_config: Path | None,
    link_mimi: bool = False,
    reserved: tuple[str, ...] = (),
) -> None:
    """All of a model's folder but its weights, which go into `WEIGHTS` there.

    Args:
        folder: the folder; it exists.
        raw: what config.json says; the names of files are set here.
        mimi: the codec, which is copied, as the tokenizer and the codec's configuration are.
        tokenizer: the SentencePiece model; the list of sentences beside it is copied too.
        mimi_config: the codec's configuration, if it is not the published one.
        link_mimi: link the codec instead of copying it.
        reserved: names that the caller writes itself.

    Raises:
        OSError: a file cannot be copied or written.
    """
    config = {k: v for k, v in raw.items() if k != "base" and not k.startswith("lora")}
    config["moshi_name"] = WEIGHTS
    others = {"mimi": mimi, "tokenizer": tokenizer}
    if mimi_config is not None:
        others["mimi_config"] = mimi_config
    for what, path in others.items():
        name = path.name
        if name in (WEIGHTS, CONFIG, *reserved):
            name = f"{what}{path.suffix}"
        config[f"{what}_name"] = name
        if link_mimi and what == "mimi":
            (folder / name).symlink_to(path.resolve())
        else:
            shutil.copyfile(path, folder / name)
    sentences = tokenizer.with_name(SENTENCES)
    if sentences.is_file():
        shutil.copyfile(sentences, folder / SENTENCES)
    write_json(folder / CONFIG, config)
