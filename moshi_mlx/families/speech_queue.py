"""A queue of texts for one model: each is spoken when those before it are done.

Knows order and cancelling. Knows nothing of how a text is spoken.
"""

import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any

import numpy as np

from ..closing import Closing
from ..errors import SessionError
from ..speech import Speech
from .speech_stream import SpeechStream, SpokenChunk


class SpeechRequest:
    """A text in a queue; an iterator of its speech, as it is made.

    Args:
        make: begins the speech.
    """

    def __init__(self, make: Callable[[], SpeechStream]) -> None:
        self._make: Callable[[], SpeechStream] | None = make
        self._chunks: SimpleQueue[SpokenChunk | BaseException | None] = SimpleQueue()
        self._cancelled = threading.Event()
        self._ended: BaseException | bool | None = False
        self.sample_rate = 0
        """Samples per second, once it is spoken."""

    def cancel(self) -> None:
        """It is not spoken, or not to its end. May be called again, from anywhere."""
        self._cancelled.set()

    def __iter__(self) -> Iterator[SpokenChunk]:
        return self

    def __next__(self) -> SpokenChunk:
        """The next piece; waits for it.

        Raises:
            SessionError: the request was cancelled.
            MoshiError: as `Tts.speak`, and as its stream.
        """
        found = self._chunks.get() if self._ended is False else self._ended
        if isinstance(found, SpokenChunk):
            return found
        assert not isinstance(found, bool)
        self._ended = found
        if found is not None:
            raise found
        raise StopIteration

    def all(self) -> Speech:
        """All that is left, as one. Raises as each piece does."""
        chunks = [*self]
        sound = [chunk.pcm for chunk in chunks] or [np.zeros(0, np.float32)]
        words = tuple(word for chunk in chunks for word in chunk.words)
        return Speech(np.concatenate(sound), words, self.sample_rate)

    def _speak(self) -> None:
        """On the queue's thread."""
        make, self._make = self._make, None
        end: BaseException | None = None
        try:
            if make is not None and not self._cancelled.is_set():
                with make() as stream:
                    self.sample_rate = stream.sample_rate
                    for chunk in stream:
                        if self._cancelled.is_set():
                            break
                        self._chunks.put(chunk)
            if self._cancelled.is_set():
                end = SessionError("this request was cancelled")
        except BaseException as error:
            end = error
        self._chunks.put(end)


class SpeechQueue(Closing):
    """Texts that are spoken in the order in which they were given; made by `Tts.queue`.

    Args:
        speak: begins to speak a text: `Tts.speak`.
    """

    def __init__(self, speak: Callable[..., SpeechStream]) -> None:
        self._speak = speak
        self._requests: SimpleQueue[SpeechRequest | None] = SimpleQueue()
        self._closed = False
        self._waiting: list[SpeechRequest] = []
        self._thread = threading.Thread(target=self._work, name="moshi-local speech", daemon=True)
        self._thread.start()

    def submit(self, script: Any, **options: Any) -> SpeechRequest:
        """Queues a text. From any thread.

        Args:
            script: as `Tts.speak` has it.
            options: its other arguments, by name.

        Raises:
            SessionError: the queue is closed.
        """
        if self._closed:
            raise SessionError("the queue is closed: make a new one")
        request = SpeechRequest(lambda: self._speak(script, **options))
        self._waiting.append(request)
        self._requests.put(request)
        return request

    def close(self) -> None:
        """Cancels what has not been spoken, and ends the thread. May be called again."""
        self._closed = True
        for request in [*self._waiting]:
            request.cancel()
        self._requests.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _work(self) -> None:
        while (request := self._requests.get()) is not None:
            request._speak()
            self._waiting.remove(request)
