"""What a model answers, as an independent recognizer hears it (pocketsphinx, optional).

The other side's codes of the evaluation dialogues go in, the model answers in its own way of
sampling, and each stretch of its speech is recognized. Knows nothing of quantizing.
"""

from collections.abc import Sequence

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from moshi_mlx.activity import audible_spans
from moshi_mlx.arrays import Codes
from moshi_mlx.checkpoint import Checkpoint

from .listening import recognize, transcribe
from .speaker import Speaker

_WINDOW_SECONDS = 0.02
_PAUSE_SECONDS = 0.48  # a longer pause ends a reply
_MARGIN_SECONDS = 0.06


class Replies:
    """Lets models answer the other side of dialogues [N, 1 + n_q, T]."""

    def __init__(self, codes: Codes) -> None:
        self._codes = codes

    def of(
        self, source: Checkpoint, kv_bits: int | None = None, *, sentences: Sequence[str] = ()
    ) -> list[tuple[str, ...]]:
        """What is heard in each dialogue, reply by reply.

        Args:
            source: the model that answers.
            kv_bits: of its keys and values.
            sentences: what it can say; others are not heard then.
        """
        speaker = Speaker(source, kv_bits)
        tokens = speaker.answer(self._codes[:, 1 + speaker.own :])
        said = np.array(speaker.mimi.decode(mx.array(tokens[:, 1:])))[:, 0]
        return [self._heard(pcm, speaker.sample_rate, sentences) for pcm in said]

    def _heard(
        self, pcm: npt.NDArray[np.float32], rate: int, sentences: Sequence[str]
    ) -> tuple[str, ...]:
        margin = int(_MARGIN_SECONDS * rate)
        heard = []
        for start, end in audible_spans(pcm, rate, window=_WINDOW_SECONDS, pause=_PAUSE_SECONDS):
            part = pcm[max(0, start - margin) : end + margin]
            heard.append(
                (recognize(part, rate, sentences) if sentences else transcribe(part, rate)) or "?"
            )
        return tuple(heard)
