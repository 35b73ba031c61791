"""Adapters of other programs: PEFT's and mlx-lm's names and settings → those of moshi-finetune.

Pure functions from dict to dict. Knows nothing of files and of layers.
"""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import mlx.core as mx

from .arrays import Weights
from .errors import ConfigError, shown
from .fields import Fields

ADAPTER_FILES = ("lora.safetensors", "adapter_model.safetensors", "adapters.safetensors")
"""moshi-finetune's, PEFT's and mlx-lm's."""
ADAPTER_SETTINGS = "adapter_config.json"
"""PEFT's and mlx-lm's, beside the file."""

_PEFT = "base_model.model."
_PARTNERS = re.compile(r"\.lora_([AB])(\.default)?\.weight$")
_MLX_LM = re.compile(r"\.lora_([ab])$")


def is_adapter(names: Iterable[str]) -> bool:
    """Whether tensors are an adapter's, of any of these programs."""
    return any(".lora_A." in name or _MLX_LM.search(name) for name in names)


def published_names(tensors: Weights) -> Weights:
    """Names of any of them → `….lora_A.weight` [rank, in] and `….lora_B.weight` [out, rank]."""
    out: Weights = {}
    for name, value in tensors.items():
        name = name.removeprefix(_PEFT)
        if (match := _MLX_LM.search(name)) is not None and value.ndim == 2:
            out[f"{name[: match.start()]}.lora_{match[1].upper()}.weight"] = mx.transpose(value)
        else:
            out[_PARTNERS.sub(r".lora_\1.weight", name)] = value
    return out


def scaling_of(settings: Mapping[str, Any], where: str) -> float:
    """What the adapter's part is multiplied by, by an adapter_config.json.

    Raises:
        ConfigError: it is of another method than LoRA, or a field makes no sense.
    """
    fields = Fields(settings, where)
    return _of_peft(fields) if "peft_type" in settings else _of_mlx_lm(fields)


def _of_peft(fields: Fields) -> float:
    kind = fields.take("peft_type")
    if kind != "LORA":
        raise fields.fail("peft_type", f"must be 'LORA', is {shown(kind)}: not implemented")
    for name, only in {"use_dora": False, "fan_in_fan_out": False, "bias": "none"}.items():
        if (value := fields.take(name, only)) != only:
            raise fields.fail(name, f"must be {only!r}, is {shown(value)}: not implemented")
    for name in ("rank_pattern", "alpha_pattern"):
        if fields.take(name, None):
            raise fields.fail(name, "is not implemented: give all layers one")
    rank = fields.whole("r", 8)
    alpha = fields.number("lora_alpha", 8)
    return alpha / (math.sqrt(rank) if fields.take("use_rslora", False) else rank)


def _of_mlx_lm(fields: Fields) -> float:
    kind = fields.take("fine_tune_type", "lora")
    if kind != "lora":
        raise fields.fail("fine_tune_type", f"must be 'lora', is {shown(kind)}: not implemented")
    if "lora_parameters" not in fields.left:
        raise ConfigError(
            f"{fields.where}: is neither PEFT's, with 'peft_type', nor mlx-lm's, with "
            "'lora_parameters'"
        )
    return fields.table("lora_parameters").number("scale", 20.0)
