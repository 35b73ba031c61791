"""Sounds side by side through a transcriber's generator, and what becomes of each of them.

`Hearing` keeps the alignment that the models were trained with; `Hearer` turns one sound's frames
into words, and notices when the model has to start afresh. Knows nothing of files and threads.
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from ..activity import SOUNDING, Activity, loudness
from ..arrays import Codes, Pcm
from ..config import LmConfig, SttConfig
from ..events import Event, WindowRefreshed, WordSpoken
from ..generate import Generator, Step
from ..text import TextTokenizer
from ..transcription import HeardWord
from .sound_clock import SoundClock
from .spelling import Spelling, SpellingRun
from .stall import StallRule, StallWatch
from .turns import TurnRule, TurnWatch
from .words_heard import Pauses, WordsHeard

_MOST_AGAIN = 60.0  # seconds of a sound that are kept to be heard again
_LEAD = 6  # quiet frames that are heard again in front of the first sound


@dataclass(frozen=True, slots=True)
class Fed:
    """A frame for the model.

    codes: int32 [n_q].
    moment: where in the sound it begins, in frames; below 0 before it.
    of_sound: it is a frame of the sound, not silence that was put in at this moment.
    pcm: float32 [frame_size], the same as sound; None: silence.
    """

    codes: Codes
    moment: float
    of_sound: bool = True
    pcm: Pcm | None = None


class Hearing:
    """A generator that has the text of frame t + 1 once it has heard frame t.

    That is how the models were trained. A generator's first step hears nothing; it is made, and
    what it writes is lost, before the first frame comes.

    Args:
        generator: fresh.
        spelling: what is shown to the model before it hears anything.
        patience: frames that its text lies behind the sound, for the spelling.
    """

    def __init__(
        self, generator: Generator, spelling: Spelling | None = None, patience: int = 0
    ) -> None:
        self._generator, self._spelling, self._patience = generator, spelling, patience
        self._heads = bool(generator.lm.config.extra_heads)
        self._open()

    @property
    def batch(self) -> int:
        """Sounds side by side."""
        return self._generator.batch

    def begin(self) -> None:
        """Forgets all that was heard."""
        self._generator.reset()
        self._open()

    def _open(self) -> None:
        self._generator.step(np.zeros((self.batch, self._generator.given), np.int32))
        self._run: SpellingRun | None = None
        shown = self._spelling
        if shown is None:
            return
        self._run = SpellingRun(shown, self._generator.lm.config, self.batch, self._patience)
        for codes, token in zip(shown.codes, shown.forced, strict=True):
            self.hear(np.broadcast_to(codes, (self.batch, len(codes))), token)

    def hear(self, codes: Codes, text: npt.ArrayLike | None = None) -> Step:
        """A frame of each sound.

        Args:
            codes: int32 [B, n_q].
            text: a token to write in place of the one that would be; −2 for none.
        """
        run = self._run
        if run is None:
            return self._generator.step(codes, text=text)
        step = self._generator.step(codes, text=text, allowed=run.allowed())
        run.take(step.written[:, 0])
        return step

    def told(self) -> npt.NDArray[np.bool_]:
        """For each sound, whether what the next frame brings is of it, not of a spelling."""
        if self._run is None:
            return np.ones(self.batch, np.bool_)
        over = self._run.over
        if over.all():
            self._run = None
        return over

    def pauses(self, step: Step) -> list[Pauses | None]:
        """By the pause heads, of each sound: how likely its speaker pauses; None without heads."""
        if not self._heads:
            return [None] * self.batch
        found = [head[:, 0] for head in self._generator.extra_heads(step.state)]
        return [tuple(row) for row in np.array(mx.stack(found, axis=1)).tolist()]


@dataclass(frozen=True)
class Said:
    """What a frame brought.

    words: that it finished.
    events: what happened, in order.
    """

    words: tuple[HeardWord, ...] = ()
    events: tuple[Event, ...] = ()


class Hearer:
    """One sound: what is to be heard of it, and what was written down.

    Args:
        tokenizer: of the text.
        lm: the model's configuration.
        stt: its times.
        frame_rate: frames per second.
        quiet: int32 [frames, n_q], the codes of the silence before a sound.
        stall: when to start afresh.
        turn: when a turn has ended.
    """

    def __init__(
        self,
        tokenizer: TextTokenizer,
        lm: LmConfig,
        stt: SttConfig,
        frame_rate: float,
        quiet: Codes,
        stall: StallRule,
        turn: TurnRule,
    ) -> None:
        self.waiting: deque[Fed] = deque()
        self.seconds = 0.0
        self.length = math.inf
        self.pauses: Pauses | None = None
        self._rate, self._quiet = frame_rate, quiet
        self._padding = lm.text_padding_id
        self._clock = SoundClock()
        self._words = WordsHeard(tokenizer, lm, stt, self._clock, frame_rate)
        context = lm.transformer.context or 0
        self._stall = StallWatch(stall, stt.audio_delay_seconds, frame_rate, context)
        self._turns = TurnWatch(turn, frame_rate)
        self._user = Activity("user", frame_rate)
        # Of the sound, since the last word's end.
        self._heard: deque[Fed] = deque(maxlen=math.ceil(_MOST_AGAIN * frame_rate))
        self._again = -math.inf  # up to where it was heard again, and nothing written since
        self._new = 0  # frames of the sound that were heard for the first time
        self._frame = 0

    @property
    def partial(self) -> str:
        """The text so far of the word that is not finished."""
        return self._words.partial

    @property
    def speaking(self) -> bool:
        """Whether the sound sounds, pauses between words included."""
        return self._user.active

    def take(self) -> Fed:
        """The next frame for the model, of those that wait."""
        fed = self.waiting.popleft()
        self._clock.hear(self._frame, fed.moment, fed.of_sound)
        return fed

    def heard(self, fed: Fed, token: int | None, pauses: Pauses | None) -> tuple[Said, bool]:
        """Takes what the model wrote when it had heard a frame; None if that is not of the sound.

        Returns:
            What that brought, and whether the model has to start afresh: see `renewed`.
        """
        until = min((fed.moment + fed.of_sound) / self._rate, self.length)
        self.seconds = max(self.seconds, until)
        frame, self._frame = self._frame, self._frame + 1
        if token is None:
            token = self._padding
        if self._words.writes(token):
            self._again = -math.inf
            self._stall.wrote()
        words = self._words.step(frame, token, pauses, self.seconds)
        events: list[Event] = []
        new = fed.of_sound and fed.moment >= self._new
        if new:
            self._new = math.floor(fed.moment) + 1
            if fed.pcm is not None:
                events += self._user.step(math.floor(fed.moment), fed.pcm)
        events += [WordSpoken(word.end, word) for word in words]
        for word in words:
            self._turns.word(word.start)
        if pauses is not None and new:
            events += self._turns.step(math.floor(fed.moment), pauses)
        # The sound's last frame may be longer than what is left of it.
        events = [replace(event, time=min(event.time, self.length)) for event in events]
        if new or pauses is None:
            self.pauses = pauses
        afresh = False
        if fed.of_sound and fed.moment > -1:
            self._heard.append(fed)
            self._forget()
            if new:  # what is heard again is heard to its end
                paused = not (self.speaking or self.partial)
                afresh = self._stall.step(_loud(fed), paused)
        return Said(tuple(words), tuple(events)), afresh

    def renewed(self) -> Said:
        """The model has started afresh: what it had not written down waits in front of the rest."""
        words = self._words.flush(self.seconds)
        self._forget()
        again = self._unwritten()
        self._heard.clear()
        if again:
            self._again = again[-1].moment
            before = again[0].moment - len(self._quiet)
            self.waiting.extendleft(reversed(again))
            self.waiting.extendleft(reversed(silence(self._quiet, before)))
        self._clock.begin()
        self._words.begin()
        self._stall.refreshed()
        refreshed = WindowRefreshed(self.seconds, len(again) / self._rate)
        events = [WordSpoken(word.end, word) for word in words]
        return Said(tuple(words), (*events, refreshed))

    def flush(self) -> tuple[HeardWord, ...]:
        """Finishes the word that is open, when all of it has been heard."""
        return tuple(self._words.flush(self.seconds))

    def _forget(self) -> None:
        """What was written down need not be heard again."""
        while self._heard and (self._heard[0].moment + 1) / self._rate <= self._words.last:
            self._heard.popleft()

    def _unwritten(self) -> list[Fed]:
        """What is to be heard again, but once: from shortly before the first sound in it."""
        left = [fed for fed in self._heard if fed.moment > self._again]
        first = next((i for i, fed in enumerate(left) if _loud(fed)), len(left))
        return left[max(0, first - _LEAD) :]


def _loud(fed: Fed) -> bool:
    return fed.pcm is not None and bool(loudness(fed.pcm) > SOUNDING)


def silence(codes: Codes, moment: float) -> list[Fed]:
    """Frames int32 [frames, n_q] before a sound, the first of which begins at `moment`."""
    return [Fed(frame, moment + i) for i, frame in enumerate(codes)]


def step_all(
    hearing: Hearing, listeners: Sequence[Hearer | None]
) -> list[tuple[Said, bool] | None]:
    """A step of all sounds; those without a frame that waits hear zeros, and nothing comes of it.

    Args:
        hearing: of as many sounds.
        listeners: of each; None for one that has ended.

    Returns:
        As `Hearer.heard`, of each sound that had a frame.
    """
    frames = [None if one is None or not one.waiting else one.take() for one in listeners]
    first = next(fed for fed in frames if fed is not None)
    none = np.zeros_like(first.codes)
    told = hearing.told()
    step = hearing.hear(np.stack([none if fed is None else fed.codes for fed in frames]))
    pauses = hearing.pauses(step)
    said: list[tuple[Said, bool] | None] = []
    for row, (one, fed) in enumerate(zip(listeners, frames, strict=True)):
        if one is None or fed is None:
            said.append(None)
        else:
            token = int(step.written[row, 0]) if told[row] else None
            said.append(one.heard(fed, token, pauses[row]))
    return said


def frames_of_delay(stt: SttConfig, frame_rate: float) -> int:
    """Whole frames that the text lies behind the sound, at least."""
    return math.ceil(stt.audio_delay_seconds * frame_rate)


def frames_of_prefix(stt: SttConfig, frame_rate: float) -> int:
    """Whole frames of silence before a sound, at least."""
    return math.ceil(stt.audio_silence_prefix_seconds * frame_rate)
