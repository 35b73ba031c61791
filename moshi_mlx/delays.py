"""The delay pattern: how the streams of a frame are spread over the model's positions.

Row k of the codes is delayed by `delays[k]` frames. Teacher-forced, whole blocks are shifted
there and back; in a conversation a ring of positions holds the tokens on the host. Position 0 and
the positions up to a row's delay read that row's initial token.
"""

from collections.abc import Sequence

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from .arrays import Tokens
from .config import UNGENERATED_TOKEN
from .errors import ArgumentError


def delayed(codes: mx.array, delays: Sequence[int], initial: Sequence[int]) -> mx.array:
    """Codes [B, K, T] → [B, K, 1 + T]: an initial token, then every row shifted by its delay."""
    batch, _, length = codes.shape
    rows = []
    for k, (delay, token) in enumerate(zip(delays, initial, strict=True)):
        start = min(1 + delay, 1 + length)
        lead = mx.full((batch, start), token, dtype=codes.dtype)
        rows.append(mx.concatenate([lead, codes[:, k, : length + 1 - start]], axis=1))
    return mx.stack(rows, axis=1)


def delayed_on_host(codes: Tokens, delays: Sequence[int], initial: Sequence[int]) -> Tokens:
    """`delayed` in NumPy, for batches that are made while the GPU computes."""
    batch, streams, length = codes.shape
    out = np.empty((batch, streams, 1 + length), dtype=codes.dtype)
    for k, (delay, token) in enumerate(zip(delays, initial, strict=True)):
        start = min(1 + delay, 1 + length)
        out[:, k, :start] = token
        out[:, k, start:] = codes[:, k, : length + 1 - start]
    return out


def undelayed(logits: mx.array, delays: Sequence[int]) -> tuple[mx.array, mx.array]:
    """Moves logits [B, K, T, V] back by the delays: entry t of a row predicts its code t.

    Returns the logits, zero where they fall off the end, and a mask [1, K, T] of what is there.
    """
    length = logits.shape[2]
    rows, masks = [], []
    for k, delay in enumerate(delays):
        kept = logits[:, k, min(delay, length) :]
        rows.append(mx.pad(kept, [(0, 0), (0, length - kept.shape[1]), (0, 0)]))
        masks.append(mx.arange(length) < length - delay)
    return mx.stack(rows, axis=1), mx.stack(masks)[None]


class TokenRing:
    """The tokens of the last few positions, int32 [batch, streams, max delay + 2], on the host.

    At step s a frame of the other side is written at position s + delay, the model reads position
    s of every stream, and what it generates is written at position s + 1.

    Args:
        delays: of all streams, text first.
        initial: every stream's initial token.
        batch: conversations side by side.
    """

    def __init__(self, delays: Sequence[int], initial: Sequence[int], batch: int = 1) -> None:
        self.delays = np.asarray(delays)
        self.initial = np.asarray(initial, dtype=np.int32)
        self._max_delay = int(self.delays.max())
        self._size = self._max_delay + 2
        self._rows = np.arange(len(self.delays))
        self.step = 0
        self.tokens: Tokens = np.full(
            (batch, len(self.delays), self._size), UNGENERATED_TOKEN, np.int32
        )

    def check(self, step: int, given: int, tokens: Tokens) -> None:
        """That tokens may be those of this ring after `step` steps, the last `given` streams given.

        Raises:
            ArgumentError: a position has none though it must have been written.
        """
        # Each step writes one position of every stream, from the first that it heard or said on.
        heard = self._rows >= len(self._rows) - given
        first = np.where(heard, self.delays, 1)
        since = (np.arange(self._size) - first[:, None]) % self._size
        if ((tokens == UNGENERATED_TOKEN) & (since < step)).any():
            raise ArgumentError(f"ring lacks tokens of the last of {step} frames")

    def hear(self, codes: Tokens) -> None:
        """Writes this step's frame of the last streams: [batch, streams given]."""
        if codes.shape[1] == 0:
            return
        rows = self._rows[-codes.shape[1] :]
        self.tokens[:, rows, (self.step + self.delays[rows]) % self._size] = codes

    def read(self) -> Tokens:
        """What the model reads in this step: [batch, streams]."""
        now = self.tokens[:, :, self.step % self._size]
        return np.where(self.step <= self.delays, self.initial, now)

    def reads_now(self, streams: int) -> npt.NDArray[np.bool_]:
        """Of the last `streams`, those of which this step reads the frame that it hears."""
        now: npt.NDArray[np.bool_] = (self.delays[-streams:] == 0) & (self.step > 0)
        return now

    def says_now(self, streams: int) -> npt.NDArray[np.bool_]:
        """Of the first `streams`, those of which this step's tokens are in the frame it ends."""
        last: npt.NDArray[np.bool_] = self.delays[:streams] == self._max_delay
        return last

    def frame_after(self, streams: int) -> Tokens | None:
        """What `say` will return, as far as it is known: [batch, streams]."""
        if self.step < self._max_delay:
            return None
        return self._frame(self.step + 1, streams)

    def say(self, tokens: Tokens) -> Tokens | None:
        """Writes what this step generated, [batch, first streams], and ends the step.

        Returns the newest frame that is complete in all these streams; None while there is none:
        the first `max(delays)` steps.
        """
        count = tokens.shape[1]
        self.step += 1
        self.tokens[:, :count, self.step % self._size] = tokens
        return None if self.step <= self._max_delay else self._frame(self.step, count)

    def _frame(self, step: int, streams: int) -> Tokens:
        """The newest frame whose last token is of position `step`."""
        rows = self._rows[:streams]
        return self.tokens[:, rows, (step - self._max_delay + self.delays[rows]) % self._size]
