"""Text models: Helium, which goes on from a text. It was not trained to follow instructions."""

import codecs
from collections.abc import Iterator, Sequence

import mlx.core as mx
import numpy as np

from ..arguments import whole
from ..closing import Closing
from ..errors import ArgumentError, SessionError, shown
from ..sampling import Sampling
from ..text_models import TextCheckpoint
from .loaded import LoadedModel

END_OF_TEXT = 2
"""EOS, the token with which a text ends."""
_SAMPLING = Sampling(temperature=0.8, top_k=0, top_p=0.95)
_NONE = Sampling(temperature=0)
_MOST_TOKENS = 1_000_000
_BLOCK = 512  # tokens of the prompt that are read at once: attention takes room for all pairs


class Completion(Closing):
    """What follows a prompt; made by `Helium.complete`. An iterator of pieces of text.

    Nothing is made before it is asked for.

    tokens: how many have been drawn.
    finish_reason: "stop" at the model's end or a stop string, "length" at the most tokens; None
        while it goes on.
    """

    def __init__(
        self,
        model: "Helium",
        prompt: str,
        max_tokens: int,
        stop: Sequence[str],
        text: Sampling,
        seed: int,
        kv_bits: int | None,
    ) -> None:
        self._model, self._most, self._stop = model, max_tokens, stop
        self._prompt = [*model.text.encode(prompt)]
        self._read = 0  # tokens of it
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._generator = model.worker.call(
            lambda: model.generator(text=text, audio=_NONE, seed=seed, kv_bits=kv_bits)
        )
        self._held = ""  # may be the beginning of a stop string
        self._closed = False
        self._fresh = not prompt  # SentencePiece puts a space in front of a text
        self.tokens = 0
        self.finish_reason: str | None = None

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        """The next piece, never empty.

        Raises:
            SessionError: it is closed.
        """
        if self._closed:
            raise SessionError("this completion is closed: ask for it again")
        while self._read < len(self._prompt):
            self._model.worker.call(self._read_on)
        while self.finish_reason is None:
            piece = self._taken(self._model.worker.call(self._step))
            if piece:
                return piece
        raise StopIteration

    @property
    def text(self) -> str:
        """All that is left, as one."""
        return "".join(self)

    def close(self) -> None:
        """Lets go of it. May be called again."""
        self._closed = True

    def _read_on(self) -> None:
        """The next block of the prompt."""
        # The model's own beginning stands in place of the first.
        block = [END_OF_TEXT, *self._prompt][self._read : self._read + _BLOCK + 1]
        self._generator.prefill(np.array(block, np.int32)[None, None])
        self._read = self._generator.steps

    def _step(self) -> int:
        """The next token."""
        step = self._generator.step(np.zeros((1, 0), np.int32))
        return int(step.written[0, 0])

    def _taken(self, token: int) -> str:
        """What may be told once a token has been drawn."""
        self.tokens += 1
        ended = token == END_OF_TEXT
        data = b"" if ended else self._model.text.piece_bytes(token)
        text = self._decoder.decode(data, final=ended)
        if self._fresh and text:
            text, self._fresh = text.removeprefix(" "), False
        self._held += text
        found = [at for stop in self._stop if (at := self._held.find(stop)) >= 0]
        if found:
            self._held, self.finish_reason = self._held[: min(found)], "stop"
        elif ended:
            self.finish_reason = "stop"
        elif self.tokens >= self._most:
            self.finish_reason = "length"
            self._held += self._decoder.decode(b"", final=True)
        keep = 0 if self.finish_reason else self._kept()
        told, self._held = (
            self._held[: len(self._held) - keep],
            self._held[len(self._held) - keep :],
        )
        return told

    def _kept(self) -> int:
        """Characters at the end that a stop string may begin with."""
        longest = max(map(len, self._stop), default=1) - 1
        sizes = range(min(longest, len(self._held)), 0, -1)
        ends = ((n, self._held[len(self._held) - n :]) for n in sizes)
        return next((n for n, end in ends if any(s.startswith(end) for s in self._stop)), 0)


class Helium(LoadedModel):
    """A loaded text model; made by `load`."""

    def __init__(self, checkpoint: TextCheckpoint, dtype: mx.Dtype | None = None) -> None:
        lm = checkpoint.load_lm(dtype)
        super().__init__(checkpoint.name, checkpoint.config, checkpoint.text, lm)
        self.checkpoint = checkpoint

    @property
    def text_sampling(self) -> Sampling:
        """How the model's makers draw text."""
        return _SAMPLING

    def complete(
        self,
        prompt: str,
        *,
        max_tokens: int = 100,
        stop: Sequence[str] = (),
        text: Sampling | None = None,
        seed: int = 0,
        kv_bits: int | None = None,
    ) -> Completion:
        """Goes on from a text, which is read in one pass.

        Args:
            prompt: the text; empty: from nothing.
            max_tokens: to draw at most.
            stop: texts at which it ends; they are not told.
            text: how tokens are drawn; the makers' way if None.
            seed: the same seed and prompt give the same text.
            kv_bits: quantize keys and values to 8 or 4 bits; None: as they are computed.

        Raises:
            ArgumentError: an argument has an impossible value.
        """
        stops = [stop] if isinstance(stop, str) else [*stop]
        if not all(isinstance(each, str) and each for each in stops):
            raise ArgumentError(f"stop must be texts, none of them empty, is {shown(stop)}")
        most = whole("max_tokens", max_tokens, 1, _MOST_TOKENS)
        how = self.text_sampling if text is None else text
        return Completion(self, prompt, most, stops, how, seed, kv_bits)


FAMILY = Helium
