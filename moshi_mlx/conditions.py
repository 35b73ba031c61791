"""Conditions: what a conversation is told once, before it begins.

A conditioner turns a name or a tensor into a sequence of vectors; the fuser adds them to the
temporal transformer's input or hands them to its cross-attention.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from .config import ConditionerConfig, FuserConfig
from .errors import ConfigError, shown
from .transformer import sinusoids


@dataclass(frozen=True)
class Masked:
    """A tensor of which some positions are absent, such as slots without a voice.

    values: float [S, dim of the conditioner].
    mask: bool [S], False where a position is absent.
    """

    values: mx.array
    mask: mx.array


Condition = str | mx.array | Masked | None
"""A conditioner's value: a name for a table, a tensor, or absent."""


@dataclass(frozen=True)
class Conditions:
    """What reaches the temporal transformer: `sum` [B, 1, dim] and `cross` [B, S, dim]."""

    sum: mx.array | None = None
    cross: mx.array | None = None


class Conditioner(nn.Module):
    """One conditioner; absent or masked entries become its learnt padding (zero without)."""

    def __init__(self, name: str, config: ConditionerConfig, dim: int) -> None:
        super().__init__()
        self._name = name
        self._config = config
        self._projected = config.force_linear or config.dim != dim
        if config.kind == "lut":
            self.embed = nn.Embedding(config.n_bins + 1, config.dim)
        if self._projected:
            self.output_proj = nn.Linear(config.dim, dim, bias=False)
        if config.learn_padding:
            self.learnt_padding = mx.zeros((1, 1, dim))

    def __call__(self, values: Sequence[Condition]) -> mx.array:
        """One value per conversation → [B, S, dim].

        Names (or None) for a table; for a tensor float [S, dim of the conditioner], whole or
        `Masked` (or None). Shorter ones are filled up with absent positions to the longest.
        """
        if self._config.kind == "lut":
            x = self._look_up(values)
            present = mx.array([[[float(value is not None)]] for value in values])
        else:
            x, present = self._gather(values)
        if self._projected:
            x = self.output_proj(x)
        x = x * present
        if self._config.learn_padding:
            x = x + self.learnt_padding * (1 - present)
        return x

    def _look_up(self, values: Sequence[Condition]) -> mx.array:
        known = self._config.possible_values
        if known is None:
            raise ConfigError(
                f"conditioner '{self._name}' lists no possible_values: names can't be looked up"
            )
        rows = []
        for value in values:
            if value is not None and (not isinstance(value, str) or value not in known):
                raise ConfigError(
                    f"conditioner '{self._name}' knows {', '.join(known)}; not {shown(value)}"
                )
            rows.append([self._config.n_bins if value is None else known.index(str(value))])
        embedded: mx.array = self.embed(mx.array(rows))
        return embedded

    def _gather(self, values: Sequence[Condition]) -> tuple[mx.array, mx.array]:
        """Tensors [B, S, dim of the conditioner] and what is present of them [B, S, 1]."""
        rows: list[Masked] = []
        for value in values:
            if isinstance(value, str):
                raise ConfigError(f"conditioner '{self._name}' takes a tensor, not a name")
            if value is None:
                value = mx.zeros((0, self._config.dim))
            if isinstance(value, mx.array):
                value = Masked(value, mx.ones(value.shape[:1], dtype=mx.bool_))
            arrays = isinstance(value, Masked) and (value.values, value.mask)
            if not arrays or not all(isinstance(array, mx.array) for array in arrays):
                raise ConfigError(
                    f"conditioner '{self._name}' takes an mx.array or a Masked of them, "
                    f"not {shown(value)}"
                )
            good = value.values.ndim == 2 and value.values.shape[1] == self._config.dim
            if not good or value.mask.shape != value.values.shape[:1]:
                raise ConfigError(
                    f"conditioner '{self._name}' takes tensors [S, {self._config.dim}] with masks "
                    f"[S], not {list(value.values.shape)} with {list(value.mask.shape)}"
                )
            if not mx.isfinite(value.values).all().item():
                raise ConfigError(f"conditioner '{self._name}' takes finite numbers")
            rows.append(value)
        length = max(1, *(len(row.mask) for row in rows))
        padded = [mx.pad(row.values, [(0, length - len(row.mask)), (0, 0)]) for row in rows]
        masks = [mx.pad(row.mask, (0, length - len(row.mask))) for row in rows]
        return mx.stack(padded), mx.stack(masks)[..., None].astype(mx.float32)


class ConditionProvider(nn.Module):
    """All conditioners of a model, by name, and the fuser."""

    def __init__(
        self, conditioners: Mapping[str, ConditionerConfig], fuser: FuserConfig | None, dim: int
    ) -> None:
        super().__init__()
        self._fuser = fuser or FuserConfig()
        self.conditioners = {name: Conditioner(name, c, dim) for name, c in conditioners.items()}

    def __call__(self, values: Sequence[Mapping[str, Condition]]) -> Conditions:
        """One mapping from conditioner to value per conversation; what is missing is absent.

        Raises:
            ConfigError: a name is not a conditioner's or not among its values.
        """
        for name in {name for value in values for name in value} - set(self.conditioners):
            raise ConfigError(
                f"there is no conditioner '{name}'; known are {', '.join(self.conditioners)}"
            )
        given = {
            name: conditioner([value.get(name) for value in values])
            for name, conditioner in self.conditioners.items()
        }
        fuser = self._fuser
        total = cross = None
        for name in fuser.sum:
            total = given[name] if total is None else total + given[name]
        if fuser.cross:
            cross = mx.concatenate([given[name] for name in fuser.cross], axis=1)
            if fuser.cross_positions:
                positions = sinusoids(0, cross.shape[1], cross.shape[2], 10_000.0)
                cross = cross + fuser.cross_positions_scale * positions
        return Conditions(total, cross)
