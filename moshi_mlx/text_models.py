"""Text models whose layers are those of the temporal transformer: their files, as Helium has them.

They have no codec and no streams of sound. Their configuration is that of Hugging Face
Transformers; their tensors have Transformers' names, or MLX's as Kyutai publishes them. Knows
nothing of what a text model is used for.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from . import catalog
from .arrays import Weights
from .backend import default_dtype
from .config import LmConfig, ModelConfig, SamplingDefaults, TransformerConfig
from .errors import CheckpointError, ConfigError, HubError, shown
from .fields import Fields
from .files import read_json
from .hub import (
    canonical,
    fetching_to,
    file_of_repository,
    files_of_repository,
    is_folder_name,
    local_path,
    missing_shard,
)
from .lm import Lm
from .published import MOST_CONTEXT
from .safetensors import read_header, read_safetensors
from .text import TextTokenizer
from .weights import check, fill, shaped_like

MODEL_TYPE = "helium"
_CONFIG = "config.json"
EPS = 1e-8
"""Of its RMS norms, as `rms_norm_f32` has it."""

_PUBLISHED: dict[str, Any] = {
    "model_type": MODEL_TYPE,
    "hidden_size": 2560,
    "intermediate_size": 7040,
    "num_hidden_layers": 24,
    "num_attention_heads": 20,
    "num_key_value_heads": 20,
    "vocab_size": 48_000,
    "rope_theta": 100_000.0,
    "max_position_embeddings": 4096,
    "bos_token_id": 1,
}
"""Of helium-1-preview-2b, whose MLX files have no config.json."""
_WITHOUT_EFFECT = {
    "architectures", "model_type", "torch_dtype", "dtype", "transformers_version", "use_cache",
    "initializer_range", "attention_dropout", "eos_token_id", "pad_token_id", "_name_or_path",
    "pretraining_tp", "base",
}  # fmt: skip
_ONLY = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
    "rope_scaling": None,
}
_TOKENIZERS = ("tokenizer.model", "tokenizer_spm_48k_multi6_2.model", "tokenizer.json")
_WEIGHTS = ("model.safetensors", "consolidated.safetensors")
_SAMPLING = SamplingDefaults(temp_text=0.8, top_k_text=0)
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)\.weight")
_RENAMED = {
    "self_attn.o_proj": "self_attn.out_proj",
    "mlp.down_proj": "gating.linear_out",
    "input_layernorm": "norm1",
    "post_attention_layernorm": "norm2",
}
_JOINED = {
    "self_attn.in_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "gating.linear_in": ("mlp.gate_proj", "mlp.up_proj"),
}
_TOP = {"model.embed_tokens": "text_emb", "model.norm": "out_norm", "lm_head": "text_linear"}


@dataclass(frozen=True)
class TextCheckpoint:
    """Made by `open_text_model`.

    name: as it was asked for.
    weights: one file, or shards.
    """

    name: str
    weights: tuple[Path, ...]
    config: ModelConfig
    text: TextTokenizer

    @property
    def folder(self) -> Path:
        """Where the weights are."""
        return self.weights[0].parent

    def load_lm(self, dtype: mx.Dtype | None = None) -> Lm:
        """The language model; a type is chosen if None.

        Raises:
            CheckpointError: a tensor is missing, left over, misshapen, or not finite.
        """
        where, config = str(self.weights[0]), self.config.lm
        weights = read_safetensors(self.weights)
        if is_transformers(weights):
            weights = joined_names(weights)
        lm = shaped_like(weights, config, None, where)
        check(lm, weights, where)
        fill(lm, weights, where, dtype or default_dtype())
        return lm


def open_text_model(
    name: str | Path, *, weights: str | None = None, offline: bool = False
) -> TextCheckpoint | None:
    """Finds a text model's files, and fetches those that are not here yet.

    Args:
        name: of the catalogue, a folder, a weights file, or a repository of the hub.
        weights: the weights file, where there are several.
        offline: never use the network.

    Returns:
        None where it is a model of another kind, or none.

    Raises:
        HubError: a file is missing.
        ConfigError, CheckpointError, TokenizerError: a file is broken.
    """
    text = canonical(name)
    entry = catalog.find(text) if isinstance(name, str) else None
    if entry is not None:
        if entry.family != MODEL_TYPE or entry.repository is None:
            return None
        source = _Repository(entry.repository, offline)
        return _opened(text, source, weights or entry.weights)
    path = local_path(text)
    if path.is_file() and path.suffix == ".safetensors":
        return _opened(text, _Folder(path.parent), path.name) if _is_text(path) else None
    if path.is_dir():
        folder = _Folder(path)
        return _opened(text, folder, weights) if is_text_config(folder.config()) else None
    if isinstance(name, Path) or is_folder_name(text) or not re.fullmatch(r"[\w.-]+/[\w.-]+", text):
        return None
    repository = _Repository(text, offline)
    return _opened(text, repository, weights) if is_text_config(repository.config()) else None


def is_text_config(data: Mapping[str, Any] | None) -> bool:
    """Whether a parsed config.json is of such a model."""
    return data is not None and data.get("model_type") == MODEL_TYPE


def read_text_config(data: Mapping[str, Any], where: str) -> ModelConfig:
    """A config.json of Transformers → ours.

    Raises:
        ConfigError: a field is missing, has a value that is not implemented, or is not understood.
    """
    fields = Fields(data, where)
    for name in _WITHOUT_EFFECT:
        fields.take(name, None)
    for name, only in _ONLY.items():
        if (value := fields.take(name, only)) != only:
            raise fields.fail(name, f"must be {only!r}, is {shown(value)}: not implemented")
    if abs(fields.number("rms_norm_eps", EPS) - EPS) > EPS / 10:
        raise fields.fail("rms_norm_eps", f"must be {EPS}: not implemented")
    dim, heads = fields.whole("hidden_size"), fields.whole("num_attention_heads")
    kv_heads = fields.whole("num_key_value_heads", heads)
    hidden, vocabulary = fields.whole("intermediate_size"), fields.whole("vocab_size")
    if dim % heads or heads % kv_heads:
        raise fields.fail("num_attention_heads", f"{heads} does not fit {dim} and {kv_heads}")
    if fields.whole("head_dim", dim // heads) != dim // heads:
        raise fields.fail("head_dim", f"must be {dim // heads}: not implemented")
    rope = fields.take("rope_parameters", None)
    theta = rope.get("rope_theta") if isinstance(rope, Mapping) else None
    transformer = TransformerConfig(
        dim=dim,
        num_heads=heads,
        num_layers=fields.whole("num_hidden_layers"),
        feedforward=-(-3 * hidden // 2),
        context=fields.whole("max_position_embeddings", 4096, most=MOST_CONTEXT),
        kv_repeat=heads // kv_heads,
        max_period=fields.number("rope_theta", 10_000.0 if theta is None else theta),
    )
    if transformer.gated_hidden != hidden:
        raise fields.fail("intermediate_size", f"{hidden} cannot be expressed for {dim}")
    beginning = fields.whole("bos_token_id", 1, least=0, most=vocabulary - 1)
    fields.finish()
    lm = LmConfig(
        transformer=transformer,
        depth=None,
        text_card=vocabulary,
        text_card_out=vocabulary,
        card=1,
        n_q=0,
        dep_q=0,
        delays=(0,),
        beginning=beginning,
    )
    return ModelConfig(lm=lm, model_type=MODEL_TYPE, sampling=_SAMPLING, raw=dict(data))


def is_transformers(names: Iterable[str]) -> bool:
    """Whether tensors are a text model's, by Transformers' names."""
    return "model.embed_tokens.weight" in names


def joined_names(weights: Weights) -> Weights:
    """Transformers' names → those of our modules; what is not understood keeps its name.

    Raises:
        CheckpointError: a part of what is one tensor here is missing.
    """
    out: Weights = {}
    parts: dict[str, dict[str, mx.array]] = {}
    for name, value in weights.items():
        top = _TOP.get(name.removesuffix(".weight"))
        match = _LAYER.fullmatch(name)
        if top is not None:
            out[f"{top}.weight"] = value
        elif match is None:
            out[name] = value
        elif match[2] in _RENAMED:
            out[f"transformer.layers.{match[1]}.{_RENAMED[match[2]]}.weight"] = value
        else:
            whole = next((w for w, of in _JOINED.items() if match[2] in of), None)
            if whole is None:
                out[name] = value
            else:
                target = f"transformer.layers.{match[1]}.{whole}.weight"
                parts.setdefault(target, {})[match[2]] = value
    for target, found in parts.items():
        wanted = next(of for whole, of in _JOINED.items() if target.endswith(f"{whole}.weight"))
        missing = next((part for part in wanted if part not in found), None)
        if missing is not None:
            layer = target.split(".")[2]
            raise CheckpointError(f"tensor 'model.layers.{layer}.{missing}.weight' is missing")
        out[target] = mx.concatenate([found[part] for part in wanted])
    return out


# ---------------------------------------------------------------------------------- its files


class _Folder:
    """Files of a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.where = f"the folder {folder}"

    def names(self) -> list[str]:
        return sorted(path.name for path in self._folder.iterdir())

    def get(self, name: str) -> Path:
        return self._folder / name

    def fetching(self, name: str) -> str:
        return fetching_to(self._folder, name)

    def config(self) -> dict[str, Any] | None:
        path = self._folder / _CONFIG
        return read_json(path) if path.is_file() else None


class _Repository:
    """Files of a repository of the hub."""

    def __init__(self, repository: str, offline: bool) -> None:
        self.where, self._offline = repository, offline

    def names(self) -> list[str]:
        return files_of_repository(self.where, offline=self._offline)

    def get(self, name: str) -> Path:
        return file_of_repository(self.where, name, offline=self._offline)

    def fetching(self, name: str) -> str:
        return f"Fetch it: `hf download {self.where} {name}`."

    def config(self) -> dict[str, Any] | None:
        return read_json(self.get(_CONFIG)) if _CONFIG in self.names() else None


def _is_text(path: Path) -> bool:
    """Whether a weights file is a text model's: no table of sound, no other parts."""
    names = read_header(path).keys()
    if is_transformers(names):
        beside = path.parent / _CONFIG
        return beside.is_file() and is_text_config(read_json(beside))
    sound = any(name.startswith(("audio_embs.", "emb.", "depformer")) for name in names)
    return {"text_emb.weight", "text_linear.weight", "out_norm.weight"} <= names and not sound


def _opened(name: str, source: _Folder | _Repository, weights: str | None) -> TextCheckpoint:
    there, data = source.names(), source.config()
    tokenizer = next((file for file in _TOKENIZERS if file in there), None)
    if tokenizer is None:
        raise HubError(
            f"There is no tokenizer in {source.where}: none of {', '.join(_TOKENIZERS)}."
        )
    files = _weights(source, there, weights)
    if data is not None and not is_text_config(data):
        raise ConfigError(f"{source.get(_CONFIG)}: is of another kind of model than {files[0]}")
    config = read_text_config(_PUBLISHED if data is None else data, str(source.get(_CONFIG)))
    paths = tuple(source.get(file) for file in files)
    text = TextTokenizer(source.get(tokenizer))
    if text.vocab_size > config.lm.text_card:
        raise CheckpointError(
            f"{text.path}: has {text.vocab_size} tokens, the model knows {config.lm.text_card}: it "
            "is of another model"
        )
    return TextCheckpoint(name, paths, config, text)


def _weights(source: _Folder | _Repository, there: list[str], asked: str | None) -> list[str]:
    """Names of the weights files."""
    if asked is not None:
        if asked not in there:
            raise HubError(f"There is no {asked} in {source.where}.")
        return [asked]
    for name in _WEIGHTS:
        if name in there:
            return [name]
        if (index := f"{name}.index.json") in there:
            table = read_json(source.get(index)).get("weight_map")
            if not isinstance(table, dict) or not table:
                raise ConfigError(f"{source.get(index)}: has no weight_map. Fetch it again.")
            shards = sorted({str(file) for file in table.values()})
            if missing := next((shard for shard in shards if shard not in there), None):
                raise HubError(
                    missing_shard(source.where, missing, index, source.fetching(missing))
                )
            return shards
    found = [name for name in there if name.endswith(".safetensors")]
    if len(found) != 1:
        what = f"several weights files: {', '.join(found)}" if found else "no weights"
        raise HubError(f"There are {what} in {source.where}: give the file itself.")
    return found
