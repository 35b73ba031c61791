"""Conditions: what a conversation is told once, before it begins.

A conditioner turns a name or a tensor into a sequence of vectors; the fuser adds them to the
temporal transformer's input or hands them to its cross-attention.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from .config import ConditionerConfig, FuserConfig
from .errors import ConfigError
from .transformer import sinusoids


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

    def __call__(self, values: Sequence[str | mx.array | None]) -> mx.array:
        """One value per conversation → [B, S, dim].

        Names (or None) for a table, float [S, dim of the conditioner] (or None) for a tensor.
        """
        present = mx.array([[[float(value is not None)]] for value in values])
        x = self._look_up(values) if self._config.kind == "lut" else self._gather(values)
        if self._projected:
            x = self.output_proj(x)
        x = x * present
        if self._config.learn_padding:
            x = x + self.learnt_padding * (1 - present)
        return x

    def _look_up(self, values: Sequence[str | mx.array | None]) -> mx.array:
        known = self._config.possible_values
        if known is None:
            raise ConfigError(
                f"conditioner '{self._name}' lists no possible_values: names can't be looked up"
            )
        rows = []
        for value in values:
            if value is not None and value not in known:
                raise ConfigError(
                    f"conditioner '{self._name}' knows {', '.join(known)}; not {value!r}"
                )
            rows.append([self._config.n_bins if value is None else known.index(str(value))])
        embedded: mx.array = self.embed(mx.array(rows))
        return embedded

    def _gather(self, values: Sequence[str | mx.array | None]) -> mx.array:
        given = [value for value in values if isinstance(value, mx.array)]
        if any(isinstance(value, str) for value in values):
            raise ConfigError(f"conditioner '{self._name}' takes a tensor, not a name")
        shape = given[0].shape if given else (1, self._config.dim)
        if any(value.shape != shape for value in given) or shape[-1] != self._config.dim:
            raise ConfigError(
                f"conditioner '{self._name}' takes tensors [S, {self._config.dim}] of one shape"
            )
        zero = mx.zeros(shape)
        return mx.stack([v if isinstance(v, mx.array) else zero for v in values])


class ConditionProvider(nn.Module):
    """All conditioners of a model, by name, and the fuser."""

    def __init__(
        self, conditioners: Mapping[str, ConditionerConfig], fuser: FuserConfig | None, dim: int
    ) -> None:
        super().__init__()
        self._fuser = fuser or FuserConfig()
        self.conditioners = {name: Conditioner(name, c, dim) for name, c in conditioners.items()}

    def __call__(self, values: Sequence[Mapping[str, str | mx.array | None]]) -> Conditions:
        """One mapping from conditioner to value per conversation; what is missing is absent.

        Raises:
            ConfigError: a name is not a conditioner's or not among its values.
        """
        for name in {name for value in values for name in value} - set(self.conditioners):
            raise ConfigError(
                f"there is no conditioner '{name}': there are {', '.join(self.conditioners)}"
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
