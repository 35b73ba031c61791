"""What is decided about a conversation from outside the model: closed microphone, rest, new
beginning, held greeting, broken loops.

Stands between the sound and the session. Knows nothing of sound cards, keys and screens. All
decisions are made on the loop's thread, in frames of the session's clock, never in wall time;
other threads only set what they want. That clock stands while the model rests.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, runtime_checkable

from moshi_mlx import Event, Frame, SpeechStarted, Word, WordSpoken
from moshi_mlx.arguments import real
from moshi_mlx.arrays import Pcm

from .events import GreetingHeld, LoopBroken, MicrophoneClosed, Notice, Paused, ResetDone

__all__ = ["Conversation", "LoopGuard", "Stepper"]

REST_SECONDS = 3.0
"""So long the microphone has been closed and Moshi silent when the model begins to rest."""
HOLD_SECONDS = 1.5
"""So long Moshi is kept from new words when it says the same again and again."""
LAST_WORDS = "finishing the last words; stop again to end at once"
LONGEST_PHRASE = 12
"""Words of the longest phrase whose repetition is noticed."""
_LONGEST_HELD = 86_400.0
_FRAME_RATES = 0.01, 1000.0


class Stepper(Protocol):
    """The part of `moshi_mlx.Session` that a conversation needs."""

    def step(self, pcm: Pcm, *, hold_text: bool = False) -> Frame:
        """Hear float32 [frame_size], say float32 [frame_size]; with `hold_text` no new word."""

    def flush(self) -> tuple[Word, ...]:
        """The words that were still open."""

    def reset(self) -> None:
        """Back to the state of a fresh session."""


@runtime_checkable
class Ending(Protocol):
    """A session that has something to say after its input."""

    def end(self) -> Iterator[Frame]:
        """The frames that are still to come."""


class LoopGuard:
    """Notices a phrase that is said again and again. Case and punctuation don't count.

    A phrase of one word must come six times in a row ("no, no, no, no!" is how people speak),
    one of 2 to LONGEST_PHRASE words four times.
    """

    def __init__(self) -> None:
        most = max(n * needed(n) for n in range(1, LONGEST_PHRASE + 1))
        self._words: deque[tuple[str, str]] = deque(maxlen=most)

    def add(self, word: str) -> tuple[str, int] | None:
        """Takes the next word; gives the phrase and how often it came once that is too often."""
        plain = "".join(c for c in word.casefold() if c.isalnum())
        if not plain:
            return None
        self._words.append((plain, word))
        said = [plain for plain, _ in self._words]
        for n in range(1, LONGEST_PHRASE + 1):
            times = needed(n)
            if len(said) >= n * times and said[-n * times :] == said[-n:] * times:
                phrase = " ".join(word for _, word in list(self._words)[-n:])
                self.clear()
                return phrase, times
        return None

    def clear(self) -> None:
        """Forget what was said until now."""
        self._words.clear()


def needed(words: int) -> int:
    """How often in a row a phrase of `words` words must come to be a loop."""
    return 6 if words == 1 else 4


class Conversation:
    """A session and what the user wants of it. `step` belongs to one thread, the loop's.

    Args:
        session: what hears and speaks.
        frame_rate: frames per second.
        push_to_talk: the microphone is open only while `talk(True)` holds.
        greeting_held: Moshi says nothing before the user has spoken, or this many seconds have
            passed; 0 lets it begin by itself.
        guard: whether loops are broken.
        told: makes the event of a word that was still open at the end, of its end (seconds) and it.

    Raises:
        ArgumentError: a number is none, or out of range.
    """

    def __init__(
        self,
        session: Stepper,
        *,
        frame_rate: float,
        push_to_talk: bool = False,
        greeting_held: float = 0.0,
        guard: bool = True,
        told: Callable[[float, Word], Event] = WordSpoken,
    ) -> None:
        real("greeting_held", greeting_held, 0, _LONGEST_HELD)
        real("frame_rate", frame_rate, *_FRAME_RATES)
        self.push_to_talk = push_to_talk
        self._session = session
        self._frame_rate = frame_rate
        self._greeting_frames = math.ceil(greeting_held * frame_rate)
        self._guard = LoopGuard() if guard else None
        self._told = told
        self._events: list[Event] = []
        # Set by other threads; each is one assignment.
        self._muted = False
        self._talking = False
        self._reset_asked = False
        self._hush_asked = False
        # Of the loop's thread.
        self._closed = False
        self._ending: Iterator[Frame] | None = None
        self._begin()

    def _begin(self) -> None:
        self._frames = 0
        self._paused = False
        self._quiet = 0  # frames since the microphone is closed and Moshi silent
        self._hold_until = 0  # the first frame that may have a new word again
        self._greeting = False
        self._hushed = False
        if self._guard:
            self._guard.clear()

    # ------------------------------------------------------------------- from any thread

    @property
    def muted(self) -> bool:
        """Whether the user wants the microphone closed, whatever else."""
        return self._muted

    def mute(self, muted: bool) -> None:
        """Close the microphone, or no longer."""
        self._muted = muted

    def toggle_mute(self) -> None:
        """Close the microphone if it is not muted, else no longer. For one thread."""
        self._muted = not self._muted

    def talk(self, talking: bool) -> None:
        """With push-to-talk: the user holds the key, or has let it go."""
        self._talking = talking

    def ask_reset(self) -> None:
        """Start over at the next frame."""
        self._reset_asked = True

    def hush(self) -> None:
        """Let Moshi say no new word until it is silent: another has the floor."""
        self._hush_asked = True

    # --------------------------------------------------------------- on the loop's thread

    @property
    def seconds(self) -> float:
        """The session's clock: seconds stepped since the beginning or the last reset."""
        return self._frames / self._frame_rate

    @property
    def paused(self) -> bool:
        """Whether the model rests."""
        return self._paused

    def step(self, pcm: Pcm) -> Frame | None:
        """Hear float32 [frame_size] and say a frame, or None while the model rests.

        A closed microphone silences `pcm` in place: the caller then knows what was heard.
        """
        if self._ending is not None:
            return self._last(pcm)
        hold = self.begin_step(pcm)
        if hold is None:
            return None
        frame = self._session.step(pcm, hold_text=hold)
        self.end_step(frame)
        return frame

    @property
    def ending(self) -> bool:
        """Its input has ended: `step` gives its last frames, and cannot be taken apart."""
        return self._ending is not None

    def begin_step(self, pcm: Pcm) -> bool | None:
        """The first half of `step`: whether the session may say no new word; None: it rests."""
        if self._reset_asked:
            self._reset()
        self._open_or_close()
        if self._closed:
            pcm.fill(0.0)
        self._rest_or_go_on()
        if self._paused:
            return None
        greets = self._greeting_frames > 0 and not self._frames
        if self._hush_asked:
            self._hush_asked, self._hushed = False, True
        return greets or self._greeting or self._hushed or self._frames < self._hold_until

    def end_step(self, frame: Frame) -> None:
        """The other half: what the session said."""
        if self._greeting_frames > 0 and not self._frames:
            self._greeting = True
            self._events.append(GreetingHeld(0.0, held=True))
        self._frames += 1
        self._events += frame.events
        self._after(frame)

    def end(self) -> bool:
        """The input has ended. Whether frames are still to come: `step` gives them, then None."""
        if not isinstance(self._session, Ending):
            return False
        if self._paused:
            self._paused = False
            self._events.append(Paused(self.seconds, paused=False))
        self._ending = self._session.end()
        self._events.append(Notice(self.seconds, LAST_WORDS))
        return True

    def _last(self, pcm: Pcm) -> Frame | None:
        """One of the frames after the end of the input, of which nothing is heard."""
        assert self._ending is not None
        pcm.fill(0.0)
        frame = next(self._ending, None)
        if frame is not None:
            self._frames += 1
            self._events += frame.events
        return frame

    def take_events(self) -> Sequence[Event]:
        """What happened since the last call, that of the frames included, in order."""
        events, self._events = self._events, []
        return events

    def finish(self) -> None:
        """Nothing more will be stepped: the word that is still open becomes an event."""
        self._events += [self._told(word.end, word) for word in self._session.flush()]

    def _reset(self) -> None:
        self._reset_asked = False
        self.finish()
        if self._paused:
            self._events.append(Paused(self.seconds, paused=False))
        self._events.append(ResetDone(self.seconds))
        self._session.reset()
        self._begin()

    def _open_or_close(self) -> None:
        closed = self._muted or (self.push_to_talk and not self._talking)
        if closed != self._closed:
            self._closed = closed
            self._events.append(MicrophoneClosed(self.seconds, closed=closed))

    def _rest_or_go_on(self) -> None:
        rests = self._closed and self._quiet >= REST_SECONDS * self._frame_rate
        if rests != self._paused:
            self._paused = rests
            self._events.append(Paused(self.seconds, paused=rests))

    def _after(self, frame: Frame) -> None:
        """What follows from a frame, for those after it."""
        self._quiet = self._quiet + 1 if self._closed and not frame.speaking else 0
        self._hushed = self._hushed and frame.speaking
        if self._greeting and (frame.user_speaking or self._frames >= self._greeting_frames):
            self._greeting = False
            self._events.append(GreetingHeld(self.seconds, held=False))
        if self._guard:
            self._watch(self._guard, frame)

    def _watch(self, guard: LoopGuard, frame: Frame) -> None:
        for event in frame.events:
            if isinstance(event, SpeechStarted) and event.side == "user":
                guard.clear()
            elif isinstance(event, WordSpoken) and (loop := guard.add(event.word.text)):
                phrase, times = loop
                self._hold_until = self._frames + math.ceil(HOLD_SECONDS * self._frame_rate)
                self._events.append(LoopBroken(self.seconds, phrase, times))
