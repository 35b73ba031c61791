"""What a quantization costs in conversation: models through the bench, the original first.

Knows the bench and names; nothing of quantizing.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import moshi_mlx
from moshi_mlx.conversation_bench import Bench, BenchOptions, Evaluation, figures_markdown
from moshi_mlx.errors import VerbError
from moshi_mlx.families import Moshi

_RATE = 24_000


class Behaviours:
    """The same scenes for several models.

    Args:
        scenes: of each axis.
        seed: of the scenes and conversations.

    Raises:
        MoshiError: nothing here can speak the scenes.
    """

    def __init__(self, scenes: int, seed: int) -> None:
        self._bench = Bench(BenchOptions(scenes=scenes, seed=seed), _RATE)

    def of(self, names: Sequence[str], say: Callable[[str], None]) -> list[Evaluation]:
        """Runs models one after the other; `say` is told which. Raises MoshiError."""
        found = []
        for name in names:
            say(f"{name} in {self._bench.count} conversations")
            model = moshi_mlx.load(name, verb="talk")
            if not isinstance(model, Moshi):
                raise VerbError(f"{name} holds no conversation: leave --conversation out")
            found.append(self._bench.run(model))
        return found


def behaviour_table(evaluations: Sequence[Evaluation]) -> str:
    """Markdown: the axes, and a column for each model."""
    return figures_markdown({Path(e.model).name: e.figures for e in evaluations})
