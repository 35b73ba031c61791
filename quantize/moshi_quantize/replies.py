"""What a model answers, heard by somebody else: pocketsphinx (an optional package).

The other side's codes of the evaluation dialogues go in, the model answers in its own way of
sampling, and each stretch of its speech is recognized. Knows nothing of quantizing.
"""

import importlib.util

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from moshi_mlx.activity import audible_spans
from moshi_mlx.arrays import Codes
from moshi_mlx.checkpoint import Checkpoint

from .speaker import Speaker

_WINDOW_SECONDS = 0.02
_PAUSE_SECONDS = 0.48  # a longer pause ends a reply
_MARGIN_SECONDS = 0.06
_NANO_TEXT_CARD = 512


def can_listen() -> bool:
    """Whether the recognizer is installed."""
    return importlib.util.find_spec("pocketsphinx") is not None


class Replies:
    """Lets models answer the other side of dialogues [N, 1 + n_q, T]."""

    def __init__(self, codes: Codes) -> None:
        self._codes = codes

    def of(self, source: Checkpoint, kv_bits: int | None = None) -> list[tuple[str, ...]]:
        """What is heard in each dialogue, reply by reply."""
        speaker = Speaker(source, kv_bits)
        tokens = speaker.answer(self._codes[:, 1 + speaker.own :])
        said = np.array(speaker.mimi.decode(mx.array(tokens[:, 1:])))[:, 0]
        # Nano says whole sentences that are known: a closed grammar hears these best.
        closed = source.config.lm.text_card == _NANO_TEXT_CARD
        return [self._heard(pcm, speaker.sample_rate, closed) for pcm in said]

    def _heard(self, pcm: npt.NDArray[np.float32], rate: int, closed: bool) -> tuple[str, ...]:
        from recipes.nano.recognize import recognize, transcribe

        margin = int(_MARGIN_SECONDS * rate)
        heard = []
        for start, end in audible_spans(pcm, rate, window=_WINDOW_SECONDS, pause=_PAUSE_SECONDS):
            part = pcm[max(0, start - margin) : end + margin]
            heard.append((recognize(part, rate) if closed else transcribe(part, rate)) or "?")
        return tuple(heard)
