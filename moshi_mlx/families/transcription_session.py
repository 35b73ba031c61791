"""Live transcription: sound in, words out, a frame at a time. Knows nothing of sound cards."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from ..arrays import Codes, Pcm
from ..codec import Codec
from ..config import SttConfig
from ..events import Event
from ..frame_session import FrameSession
from ..session import Timing
from ..transcription import HeardWord
from ..worker import Worker
from .hearing import Fed, Hearer, Hearing, Said, frames_of_delay, step_all

CATCH_UP = 8
"""Frames that wait which one step takes at most, so that it stays short while the model hears a
stretch again."""


@dataclass(frozen=True)
class HeardFrame:
    """What a step gives.

    index: number of the frame, from 0.
    words: that this frame finished, with their times in seconds of the sound.
    partial: the word that is not finished yet.
    pauses: by each of the model's pause heads, how likely the speaker pauses now; None of a model
        without these heads.
    speaking: the sound sounds, pauses between words included.
    events: what happened, in order.
    timing: what it took.
    """

    index: int
    words: tuple[HeardWord, ...]
    partial: str
    pauses: tuple[float, ...] | None
    speaking: bool
    events: tuple[Event, ...]
    timing: Timing


class TranscriptionSession(FrameSession[HeardFrame]):
    """A live transcription; made by `Stt.session`. From any thread, one at a time, or by `stream`.

    Args:
        codec: sound to codes.
        worker: the model's thread.
        stt: the model's times.
        hearing: of one sound, fresh.
        listener: makes a fresh one, which may have frames that wait in front of the sound.
        catch_up: frames that wait which one step takes at most.
    """

    def __init__(
        self,
        codec: Codec[Any],
        worker: Worker,
        stt: SttConfig,
        hearing: Hearing,
        listener: Callable[[], Hearer],
        catch_up: int = CATCH_UP,
    ) -> None:
        super().__init__(codec, worker)
        self._delay = frames_of_delay(stt, self.frame_rate)
        self._hearing, self._make = hearing, listener
        self._catch_up = catch_up
        worker.call(self._begin)

    def _begin(self) -> None:
        self._codec_state = self._codec.init_state()
        self._listener = self._make()
        self._index = 0

    @property
    def frames(self) -> int:
        """Frames stepped since the beginning or the last reset."""
        return self._index

    @property
    def delay_seconds(self) -> float:
        """That a word comes after its sound, at least."""
        return self._delay / self.frame_rate

    def step(self, pcm: npt.ArrayLike) -> HeardFrame:
        """Hears a frame.

        Args:
            pcm: sound, [frame_size] at the codec's rate: floats in −1 … 1, or int16 or int32
                samples, which are scaled to that. What is not a finite number is heard as silence;
                up to ±16 is clipped, and beyond that refused.

        Raises:
            SessionError: the session is closed or being streamed, or the shape or type is wrong.
        """
        self._not_streaming("take its frames from there")
        return self._hear(pcm)

    def _hear(self, pcm: npt.ArrayLike) -> HeardFrame:
        self._check_open()
        heard = self._checked(pcm)
        return self._do(lambda: self._stepped(heard))

    def _stepped(self, pcm: Pcm) -> HeardFrame:
        began = time.perf_counter()
        codes = self._encoded(pcm)
        encoded = time.perf_counter()
        index, listener = self._index, self._listener
        self._index += 1
        listener.waiting.append(Fed(codes, float(index), pcm=pcm))
        said = self._advance(self._catch_up)
        return HeardFrame(
            index=index,
            words=said.words,
            partial=listener.partial,
            pauses=listener.pauses,
            speaking=listener.speaking,
            events=said.events,
            timing=Timing(encoded - began, time.perf_counter() - encoded, 0.0),
        )

    def _encoded(self, pcm: Pcm) -> Codes:
        codes: Codes = self._codec.encode_step(pcm, self._codec_state)
        return codes[:, 0]

    def _advance(self, most: float = math.inf) -> Said:
        """Takes frames that wait."""
        words: list[HeardWord] = []
        events: list[Event] = []
        listener = self._listener
        while listener.waiting and most > 0:
            most -= 1
            (result,) = step_all(self._hearing, [listener])
            assert result is not None
            said, afresh = result
            words += said.words
            events += said.events
            if afresh:
                self._hearing.begin()
                said = listener.renewed()
                words += said.words
                events += said.events
        return Said(tuple(words), tuple(events))

    def flush(self) -> tuple[HeardWord, ...]:
        """The words of all that was heard, at once: the model hears the silence they wait for.

        That is the delay and a frame, as fast as the machine can. Sound may follow: the silence is
        not counted, but the model has heard it as a pause.

        Raises:
            SessionError: the session is closed or being streamed.
        """
        self._not_streaming("it cannot be flushed meanwhile")
        return self._do(self._flushed)

    def _flushed(self) -> tuple[HeardWord, ...]:
        listener = self._listener
        words = list(self._advance().words)
        for _ in range(self._delay + 1):
            codes = self._encoded(self._silence)
            listener.waiting.append(Fed(codes, float(self._index), of_sound=False))
        words += self._advance().words
        return (*words, *listener.flush())

    def reset(self) -> None:
        """Forgets what was heard: as a new session.

        Raises:
            SessionError: the session is closed or being streamed.
        """
        self._not_streaming("it cannot be reset meanwhile")
        self._do(self._start_over)

    def _start_over(self) -> None:
        self._hearing.begin()
        self._begin()

    def _let_go(self) -> None:
        del self._hearing, self._codec_state, self._listener
