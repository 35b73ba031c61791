"""What a session of any family is: frames in, one step each, on the model's thread.

Knows who may step when, how a session is streamed and closed, and what a frame of sound must be.
Knows nothing of what a step does.
"""

from abc import abstractmethod
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from .arguments import samples
from .arrays import Pcm
from .closing import Closing
from .codec import Codec
from .errors import ArgumentError, SessionError
from .stream import FrameStream, Source
from .threads import Exclusive
from .worker import Worker

H = TypeVar("H")
T = TypeVar("T")


class FrameSession(Closing, Generic[H]):
    """From any thread, one call at a time, or by `stream`.

    The model's own thread makes the steps, so that one is whole whatever becomes of its caller.

    Args:
        codec: sound to codes and back.
        worker: the model's thread, which does all the work.
    """

    def __init__(self, codec: Codec[Any], worker: Worker) -> None:
        self._codec = codec
        self._worker = worker
        self._turn = Exclusive("session")
        self._closed = self._gone = False
        self._streaming = False
        self.frame_rate = codec.sample_rate / codec.frame_size
        self._silence = np.zeros(codec.frame_size, dtype=np.float32)

    @abstractmethod
    def _hear(self, pcm: npt.ArrayLike) -> H:
        """A step of `stream`."""

    @abstractmethod
    def _let_go(self) -> None:
        """Frees the state, on the model's thread, when the session is closed."""

    def stream(self, source: Source) -> FrameStream[H]:
        """Steps through the frames of `source`, on the one thread that does MLX's work.

        Safe in an event loop and beside other sessions of the model; ends with the source. One
        stream at a time per session. A frame whose caller is cancelled comes next.

        Raises:
            SessionError: as `step`, by the first frame.
        """

        def begin() -> None:
            if self._streaming:
                raise SessionError("this session is being streamed already")
            self._streaming = True

        def end() -> None:
            self._streaming = False

        return FrameStream(
            source, begin, lambda pcm: self._worker.submit(partial(self._hear, pcm)), end
        )

    def close(self) -> None:
        """Lets go of the state, after a step on its way; it cannot be used again.

        From anywhere, a signal's handler included: it waits for nothing.
        """
        if not self._closed:
            self._closed = True
            with suppress(SessionError):  # the thread has ended, or is not in this forked child
                self._worker.submit(self._end)

    def _end(self) -> None:
        self._gone = True
        self._let_go()

    def _do(self, work: Callable[[], T]) -> T:
        """Work on the model's thread, while no other call of this session does any."""

        def done() -> T:
            if self._gone:
                raise _closed()
            return work()

        with self._turn.held():
            self._check_open()
            return self._worker.call(done)

    def _check_open(self) -> None:
        if self._closed:
            raise _closed()

    def _not_streaming(self, otherwise: str) -> None:
        if self._streaming:
            raise SessionError(f"this session is being streamed: {otherwise}")

    def _checked(self, pcm: npt.ArrayLike) -> Pcm:
        try:
            heard = samples(pcm)
        except ArgumentError as error:
            raise SessionError(f"a frame is refused: {error}") from None
        if heard.shape != (self._codec.frame_size,):
            raise SessionError(
                f"a frame is {self._codec.frame_size} samples, this has shape {heard.shape}"
            )
        return np.clip(np.nan_to_num(heard, posinf=0.0, neginf=0.0), -1.0, 1.0)


def _closed() -> SessionError:
    return SessionError("this session is closed: make a new one")
