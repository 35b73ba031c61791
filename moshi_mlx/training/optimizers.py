"""Optimizers and schedules: Muon on the matrices, AdamW on the rest, learning rates by progress.

Knows names of parameters and shapes. Knows nothing of losses or files.
"""

import math
import re
from dataclasses import dataclass
from typing import Annotated, Literal

import mlx.core as mx
import mlx.optimizers as optim

from ..trees import Tree
from .fields import STEPS, Range, Share

# Tables, heads and adapters are not the hidden matrices that Muon is for.
_NOT_HIDDEN = re.compile(
    r"(^|\.)(text_emb|audio_embs|embs|text_linear|extra_heads|condition_provider|lora_[AB])\.|"
    r"^depformer\.linear_out\."
)


@dataclass(frozen=True)
class OptimConfig:
    """How to update the weights.

    name: "adamw", or "muon" for the hidden matrices with AdamW for the rest.
    lr: AdamW's learning rate.
    muon_lr: Muon's learning rate.
    betas: AdamW's decay rates of the means of the gradients and of their squares.
    eps: AdamW's, in the denominator.
    weight_decay: of both, decoupled from the gradient.
    momentum: Muon's.
    max_norm: gradients are scaled down to this norm over all weights; 0 doesn't clip.
    warmup_steps: steps over which the learning rate rises linearly.
    schedule: how the learning rate falls: constant, linear or cosine.
    decay_start: share of the run, in steps or in time, after which it falls.
    final: what is left of it at the end, as a share.
    """

    name: Literal["adamw", "muon"] = "adamw"
    lr: Annotated[float, Range(0, 1, above=True)] = 2e-6
    muon_lr: Annotated[float, Range(0, 1, above=True)] = 3e-3
    betas: Annotated[tuple[float, float], Range(0, 1, below=True)] = (0.9, 0.95)
    eps: Annotated[float, Range(0, 1, above=True)] = 1e-8
    weight_decay: Annotated[float, Range(0, 1)] = 0.1
    momentum: Annotated[float, Range(0, 1, below=True)] = 0.95
    max_norm: Annotated[float, Range(0, 1_000_000)] = 1.0
    warmup_steps: Annotated[int, Range(0, STEPS, "steps")] = 40
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    decay_start: Share = 0.0
    final: Share = 0.03


class Muon(optim.Optimizer):
    """Momentum made orthogonal by Newton–Schulz (Jordan 2024), of the size of an AdamW update.

    As in the Moonlight report (arXiv 2502.16982, equation 4), updates are scaled by
    0.2 · √(larger side), which makes their root mean square 0.2 whatever the shape, and weight
    decay is decoupled; MLX's own Muon scales by √(rows / columns) and adds the decay to the
    gradient.
    """

    def __init__(
        self, learning_rate: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__()
        self._maybe_schedule("learning_rate", learning_rate)
        self.momentum = momentum
        self.weight_decay = weight_decay

    def init_single(self, parameter: mx.array, state: dict[str, mx.array]) -> None:
        state["v"] = mx.zeros_like(parameter)

    def apply_single(
        self, gradient: mx.array, parameter: mx.array, state: dict[str, mx.array]
    ) -> mx.array:
        rest = 1.0 - self.momentum
        state["v"] = v = self.momentum * state["v"] + rest * gradient
        update = orthogonalized(rest * gradient + self.momentum * v)
        lr = self.learning_rate.astype(parameter.dtype)
        size = 0.2 * math.sqrt(max(parameter.shape[-2:]))
        updated: mx.array = (1.0 - lr * self.weight_decay) * parameter - lr * size * update
        return updated


def orthogonalized(x: mx.array, steps: int = 5) -> mx.array:
    """A matrix with the singular vectors of `x` and singular values of about 1 (0.7 … 1.2).

    `x` may be a stack of matrices [n, rows, columns].

    The quintic Newton–Schulz iteration of Muon with its coefficients, y ← (a + b·G + c·G²)·y for
    the Gram matrix G = y·yᵀ. As all of these commute, they are multiplied up on the Gram matrix's
    small side, and y is multiplied once.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = x.shape[-2] > x.shape[-1]
    norm = mx.linalg.norm(x) if x.ndim == 2 else mx.linalg.norm(x, axis=[-2, -1], keepdims=True)
    y = x / (norm + 1e-8)
    turned = y.swapaxes(-1, -2)
    gram = turned @ y if tall else y @ turned
    diagonal = a * mx.eye(gram.shape[-1], dtype=x.dtype)
    product = diagonal
    for step in range(steps):
        factor = mx.addmm(b * gram + diagonal, gram, gram, alpha=c)
        product = factor @ product if step else factor
        if step + 1 < steps:
            gram = factor @ gram @ factor
    return y @ product if tall else product @ y


def is_hidden_matrix(path: str, parameter: mx.array) -> bool:
    """Whether Muon is for this parameter: a matrix between hidden states, or a stack of such."""
    return parameter.ndim in (2, 3) and _NOT_HIDDEN.search(path) is None


class Optimizers:
    """The optimizers of a run, with their base learning rates.

    Args:
        config: which, and how.
        parameters: the tree of what is trained.
    """

    def __init__(self, config: OptimConfig, parameters: Tree) -> None:
        self.config = config
        adamw = optim.AdamW(
            config.lr, list(config.betas), config.eps, config.weight_decay, bias_correction=True
        )
        self._parts: list[tuple[optim.Optimizer, float]] = [(adamw, config.lr)]
        self._all: optim.Optimizer = adamw
        if config.name == "muon":
            muon = Muon(config.muon_lr, config.momentum, config.weight_decay)
            self._parts.insert(0, (muon, config.muon_lr))
            self._all = optim.MultiOptimizer([muon, adamw], [is_hidden_matrix])
        self._all.init(parameters)

    @property
    def state(self) -> list[dict[str, object]]:
        """The state of each, to read, to evaluate and to save; trees of arrays."""
        return [part.state for part, _ in self._parts]

    def load(self, state: list[dict[str, object]]) -> None:
        """Takes back a `state`."""
        for (part, _), saved in zip(self._parts, state, strict=True):
            part.state.update(saved)

    def set_factor(self, factor: float) -> None:
        """Learning rates become `factor` times those of the configuration."""
        for part, lr in self._parts:
            part.learning_rate = mx.array(lr * factor, mx.float32)

    def apply(self, parameters: Tree, gradients: Tree) -> Tree:
        """The updated parameters; the gradients are clipped first."""
        if self.config.max_norm > 0:
            gradients, _ = optim.clip_grad_norm(gradients, self.config.max_norm)
        updated: Tree = self._all.apply_gradients(gradients, parameters)
        return updated


def schedule_factor(config: OptimConfig, step: int, progress: float) -> float:
    """What the learning rate is multiplied by, in 0 … 1.

    Args:
        config: warm-up and decay.
        step: steps done.
        progress: share of the run that is done, 0 … 1.
    """
    warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
    late = (progress - config.decay_start) / max(1e-9, 1.0 - config.decay_start)
    late = min(1.0, max(0.0, late))
    fall = {
        "constant": 1.0,
        "linear": 1.0 - late,
        "cosine": 0.5 * (1.0 + math.cos(math.pi * late)),
    }[config.schedule]
    return warm * (config.final + (1.0 - config.final) * fall)
