"""Classifier-free guidance: a batch of conversations and the same ones without their conditions.

The language model runs over a doubled batch: first the conversations, then their null halves, which
read the same tokens. Knows logits; nothing of how they are made.
"""

from dataclasses import dataclass

import mlx.core as mx

from .arguments import real, truth


@dataclass(frozen=True)
class Guidance:
    """How far to move from the null half's logits to the conversation's and beyond.

    coefficient: 1 is the conversation alone (Ho and Salimans 2022, arXiv 2207.12598).
    text: guide the text too; else it is drawn from the conversation's own logits, and the null
        half reads no text after its first step.
    """

    coefficient: float
    text: bool = True

    def __post_init__(self) -> None:
        real("coefficient", self.coefficient, -1000, 1000)
        truth("text", self.text)

    def guided(self, logits: mx.array) -> mx.array:
        """Logits of the doubled batch [2B, ...] → those to draw from [B, ...]."""
        own, null = mx.split(logits, 2)
        return null + (own - null) * self.coefficient

    def guided_text(self, logits: mx.array) -> mx.array:
        """The same for the text."""
        return self.guided(logits) if self.text else mx.split(logits, 2)[0]
