"""What is done with a checkpoint.

`load` opens one and hands it to the family of its `model_type`.
"""

from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import mlx.core as mx

from ..arguments import truth
from ..checkpoint import open_checkpoint
from ..codec import CodecName
from ..config import ModelConfig
from ..errors import ArgumentError
from ..text_models import open_text_model
from ..worker import on_good_thread
from .dialogue import Moshi
from .kinds import Kind, Verb, check_verb, kind_of, require_verb
from .loaded import LoadedModel
from .model import Model
from .persona import PersonaPlex
from .transcribe import Stt

if TYPE_CHECKING:
    from .complete import Helium

__all__ = [
    "Model",
    "Moshi",
    "PersonaPlex",
    "Stt",
    "Verb",
    "family_of",
    "generated_streams",
    "load",
    "require_verb",
]


@overload
def load(
    name: str | Path,
    *,
    verb: Literal["talk"],
    weights: str | None = ...,
    lora: str | Path | None = ...,
    base: str | Path | None = ...,
    codec: CodecName = ...,
    dtype: mx.Dtype | None = ...,
    offline: bool = ...,
) -> Moshi: ...
@overload
def load(
    name: str | Path,
    *,
    verb: Literal["transcribe"],
    weights: str | None = ...,
    lora: str | Path | None = ...,
    base: str | Path | None = ...,
    codec: CodecName = ...,
    dtype: mx.Dtype | None = ...,
    offline: bool = ...,
) -> Stt: ...
@overload
def load(  # type: ignore[overload-overlap]
    name: str | Path,
    *,
    verb: Literal["complete"],
    weights: str | None = ...,
    dtype: mx.Dtype | None = ...,
    offline: bool = ...,
) -> "Helium": ...
@overload
def load(
    name: str | Path,
    *,
    verb: Verb | None = ...,
    weights: str | None = ...,
    lora: str | Path | None = ...,
    base: str | Path | None = ...,
    codec: CodecName = ...,
    dtype: mx.Dtype | None = ...,
    offline: bool = ...,
) -> Model: ...
def load(
    name: str | Path,
    *,
    verb: Verb | None = None,
    weights: str | None = None,
    lora: str | Path | None = None,
    base: str | Path | None = None,
    codec: CodecName = "auto",
    dtype: mx.Dtype | None = None,
    offline: bool = False,
) -> LoadedModel:
    """Loads a model; what is not on this machine yet is fetched from the hub.

    Args:
        name: a bundled model ("nano"), a published name ("moshiko-q4"), a folder, a weights file,
            or a repository of the hub ("kyutai/moshiko-mlx-q4").
        verb: what the model is wanted for; one that cannot do it is refused before its weights are
            read. None takes any.
        weights: the weights file, where a folder or repository has several.
        lora: an adapter's file, or the folder that has its `lora.safetensors` and `config.json`;
            the model's own adapter, if it has one, then isn't used.
        base: what a fine-tune's codec and tokenizer are taken from, and what an adapter alone is
            put beside; None: a model of the catalogue of its shape, where one is needed.
        codec: what turns sound into codes: "mlx" is ours, "rust" is rustymimi, "auto" chooses.
        dtype: what to compute in: float32 on the CPU and bfloat16 on a GPU if None.
        offline: never use the network (as HF_HUB_OFFLINE=1).

    Returns:
        An object of the class of the model's family: a `Moshi` for a dialogue model. A text model,
        which has no codec, is no `Model`.

    Raises:
        HubError: the name leads to no files.
        VerbError: the model cannot do what is asked.
        CheckpointError: a file is broken or doesn't match the others.
        ArgumentError: a name or a path can be none, or the type none to compute in.
        TokenizerError: the tokenizer is missing or broken.
    """
    if not isinstance(name, str | PathLike):
        raise ArgumentError(f"name must be text or a path, is {name!r}")
    if dtype is not None and dtype not in (mx.float32, mx.bfloat16, mx.float16):
        raise ArgumentError(f"dtype must be float32, bfloat16 or float16, is {dtype}")
    offline = truth("offline", offline)
    if verb is not None:
        check_verb(name, verb)
    if (text := open_text_model(name, weights=weights, offline=offline)) is not None:
        if verb is not None:
            require_verb(verb, text.config, text.name)
        kind = kind_of(text.config, text.name)
        family: Any = _module_of(kind).FAMILY
        loaded: LoadedModel = on_good_thread(lambda: family(text, dtype))
        return loaded
    checkpoint = open_checkpoint(name, weights=weights, lora=lora, base=base, offline=offline)
    if verb is not None:
        require_verb(verb, checkpoint.config, checkpoint.name)
    kept = family_of(checkpoint.config, checkpoint.name)
    return on_good_thread(lambda: kept.from_checkpoint(checkpoint, codec=codec, dtype=dtype))


def generated_streams(config: ModelConfig, where: str = "config.json") -> int:
    """Audio streams that a model generates in use; those after them are given to it."""
    return family_of(config, where).generated_streams(config.lm)


def family_of(config: ModelConfig, where: str = "config.json") -> type[Model]:
    """The class of a model's family. Raises ConfigError if its `model_type` is unknown."""
    return _class_of(kind_of(config, where))


def _class_of(kind: Kind) -> type[Model]:
    """The class of a family; `Model` itself where only the language model can be used."""
    if kind.module is None:
        return Model
    family: type[Model] = _module_of(kind).FAMILY
    return family


def _module_of(kind: Kind) -> Any:
    return import_module(f".{kind.module}", __name__)
