"""Speech-to-text models, which write while they listen, half a second or more behind.

They hear a silence first, as `stt_config` says, then the sound, and silence again until the text of
all of it has come. Makes sessions and transcripts; what is in them is in the parts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from ..arguments import callable_or_none, real, whole
from ..arrays import Codes, Pcm
from ..codec import Codec
from ..config import LmConfig, SttConfig
from ..errors import ArgumentError, ConfigError, shown
from ..events import Event, WordSpoken
from ..sampling import Sampling
from ..transcription import HeardWord, Transcription
from .hearing import (
    Fed,
    Hearer,
    Hearing,
    Said,
    frames_of_delay,
    frames_of_prefix,
    silence,
    step_all,
)
from .model import Model
from .sound_frames import SoundFrames, SoundSource
from .spelling import AFTER, Spelling, frames_for, tokens_of, with_recording, without_recording
from .stall import StallRule
from .transcription_session import CATCH_UP, TranscriptionSession
from .turns import TurnRule

_AFTER = 1.0  # seconds of silence after a sound, beyond the delay
_LONGEST_CATCH_UP = 1000
_AT_ONCE = 12  # frames that are encoded together
_MOST_AT_ONCE = 64  # sounds, or frames

_log = logging.getLogger("moshi_mlx")


@dataclass(frozen=True)
class Passage:
    """What came of about a second of a sound; made by `Stt.transcribing`.

    source: number of the sound among those that were given, from 0.
    words: that were finished, with their times in seconds of the sound.
    partial: the word that is not finished yet.
    events: what happened, in order.
    seconds: of the sound that have been heard.
    ended: this was the sound's last passage.
    """

    source: int
    words: tuple[HeardWord, ...]
    partial: str
    events: tuple[Event, ...]
    seconds: float
    ended: bool


class _Sound:
    """A sound on its way through the model."""

    def __init__(
        self, number: int, sound: SoundFrames, listener: Hearer, codec: Codec[Any], at_once: int
    ) -> None:
        self.listener = listener
        self.frames = sound.read(at_once)
        self.begun = False
        self._number, self._sound, self._codec = number, sound, codec
        self._state: Any = None
        self._next = -sound.before / codec.frame_size
        self._said = Said()

    def encode(self, pcm: Pcm) -> None:
        """Lets frames [n, frame_size] wait for the model; on its thread."""
        if not self.begun:
            self.begun, self._state = True, self._codec.init_state()
        if self._sound.seconds is not None:
            self.listener.length = self._sound.seconds
        codes = self._codec.encode_step(pcm.reshape(-1), self._state)
        for frame, heard in zip(codes.T, pcm, strict=True):
            self.listener.waiting.append(Fed(frame, self._next, pcm=heard))
            self._next += 1

    def take(self, said: Said) -> None:
        """What a frame brought, for the next passage."""
        self._said = Said(self._said.words + said.words, self._said.events + said.events)

    def passage(self) -> Passage:
        """What came since the last one."""
        return self._passage(ended=False)

    def last(self) -> Passage:
        """The end: with the word that was still open."""
        words = self.listener.flush()
        self.take(Said(words, tuple(WordSpoken(word.end, word) for word in words)))
        return self._passage(ended=True)

    def _passage(self, ended: bool) -> Passage:
        said, self._said = self._said, Said()
        one = self.listener
        return Passage(self._number, said.words, one.partial, said.events, one.seconds, ended)


class Stt(Model):
    """A loaded speech-to-text model; made by `load`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.config.stt is None:
            raise ConfigError(
                f"{self.files.config}: field 'stt_config' is missing, which says how far the text "
                "lies behind the sound; take the config.json that the model's makers published"
            )
        self.stt: SttConfig = self.config.stt
        heads = f"{self.heads} pause heads" if self.heads else "no pause heads: turns are not told"
        _log.info("%s has %s", self.name, heads)

    @classmethod
    def generated_streams(cls, config: LmConfig) -> int:
        """None: it hears all of them."""
        return 0

    @property
    def heads(self) -> int:
        """Pause heads, which tell how likely the speaker pauses; 0 where the files have none."""
        return self.lm.config.extra_heads

    @property
    def delay_seconds(self) -> float:
        """That the text lies behind the sound."""
        return self.stt.audio_delay_seconds

    @overload
    def transcribe(
        self,
        source: list[SoundSource],
        *,
        progress: Callable[[float], None] | None = ...,
        **how: Any,
    ) -> list[Transcription]: ...
    @overload
    def transcribe(
        self,
        source: str | Path | npt.NDArray[Any] | Iterator[npt.ArrayLike],
        *,
        progress: Callable[[float], None] | None = ...,
        **how: Any,
    ) -> Transcription: ...
    def transcribe(
        self, source: Any, *, progress: Callable[[float], None] | None = None, **how: Any
    ) -> Transcription | list[Transcription]:
        """Writes down what is said in a sound, or in several side by side.

        Args:
            source: a sound file of any format, float or integer samples [n] at `sample_rate`, or an
                iterator of such samples; or a list of these. A long file is read as it is needed.
            progress: is told how many seconds have been heard, of all sounds together.
            how: as `transcribing` has it.

        Returns:
            What was said, with the times of the words; a list for a list, in its order. A sound's
            transcript is the same alone and beside others.

        Raises:
            AudioFileError: a source is not a sound file, or is empty or damaged.
            ArgumentError: an argument has an impossible value, or there is no sound.
        """
        callable_or_none("progress", progress)
        several = isinstance(source, list)
        sources = source if several else [source]
        words: list[list[HeardWord]] = [[] for _ in sources]
        seconds = [0.0] * len(sources)
        for passage in self.transcribing(sources, **how):
            words[passage.source] += passage.words
            seconds[passage.source] = passage.seconds
            if progress is not None:
                progress(sum(seconds))
        found = [Transcription(tuple(w), s) for w, s in zip(words, seconds, strict=True)]
        return found if several else found[0]

    def transcribing(
        self,
        sources: Sequence[SoundSource],
        *,
        spell: str | None = None,
        spell_sound: SoundSource | None = None,
        seed: int = 0,
        text: Sampling | None = None,
        kv_bits: int | None = None,
        stall_seconds: float | None = 3.0,
        refresh_at: float | None = None,
        threshold: float = 0.5,
        hold: float = 0.0,
        at_once: int = _AT_ONCE,
    ) -> Iterator[Passage]:
        """The same, passage by passage, each as soon as it has been heard.

        Args:
            sources: a list as `transcribe` takes it.
            spell: words whose spelling the model is shown first; see `docs/transcribe-library.md`.
            spell_sound: a recording of these words, as `sources` has one; without it they are
                written for the model over silence, and whether that helps was never measured.
            seed: of the model's random numbers, if it draws any.
            text: how text is drawn; the model's own way if None, which is the likeliest.
            kv_bits: quantize keys and values to 8 or 4 bits; None: as they are computed.
            stall_seconds: of sound without text after which the model starts afresh in the next
                pause, and hears again what it has not written down; None: never.
            refresh_at: the share of its window, 0.1 … 1, from which it starts afresh in a pause
                even if nothing is wrong; None: never. No reference does this.
            threshold: that the probability of a pause must exceed for a turn to have ended.
            hold: seconds that it must stay so.
            at_once: frames of each passage, 1 … 64. Fewer make shorter jobs for the model's thread,
                and the same words.

        Yields:
            Passages of each sound in order, about a second each; those of several sounds mixed.

        Raises:
            AudioFileError, ArgumentError: as `transcribe`, some of them before the first passage.
        """
        if isinstance(sources, str | Path) or not isinstance(sources, Sequence):
            raise ArgumentError(f"sources must be a list of sounds, is {shown(sources)}")
        if not 1 <= len(sources) <= _MOST_AT_ONCE:
            raise ArgumentError(
                f"sources must be 1 to {_MOST_AT_ONCE} sounds at once, are {len(sources)}"
            )
        listener = self._listeners(stall_seconds, refresh_at, threshold, hold)
        spelling = self._spelling(spell, spell_sound)
        make = partial(self._hearing, spelling=spelling, seed=seed, text=text, kv_bits=kv_bits)
        read = [self._frames(source, i, len(sources)) for i, source in enumerate(sources)]
        most = whole("at_once", at_once, 1, _MOST_AT_ONCE)
        sounds = [_Sound(i, each, listener(), self.codec, most) for i, each in enumerate(read)]
        hearing = self.worker.call(lambda: make(batch=len(sounds)))
        return self._passages(sounds, hearing, make)

    def session(
        self,
        *,
        spell: str | None = None,
        spell_sound: SoundSource | None = None,
        seed: int = 0,
        text: Sampling | None = None,
        kv_bits: int | None = None,
        stall_seconds: float | None = 3.0,
        refresh_at: float | None = None,
        threshold: float = 0.5,
        hold: float = 0.0,
        catch_up: int = CATCH_UP,
    ) -> TranscriptionSession:
        """A live transcription: sound in, words out.

        The other arguments are those of `transcribing`.

        Args:
            catch_up: frames that one step takes at most, where several wait: at the beginning, and
                when the model hears a stretch again. Fewer make shorter steps, and later words.

        Raises:
            ArgumentError: an argument has an impossible value.
        """
        listener = self._listeners(stall_seconds, refresh_at, threshold, hold)

        def fresh() -> Hearer:
            one = listener()
            one.waiting.extend(silence(self._quiet, -float(len(self._quiet))))
            return one

        spelling = self._spelling(spell, spell_sound)
        make = partial(self._hearing, spelling=spelling, seed=seed, text=text, kv_bits=kv_bits)
        hearing = self.worker.call(lambda: make(batch=1))
        most = whole("catch_up", catch_up, 2, _LONGEST_CATCH_UP)
        return TranscriptionSession(self.codec, self.worker, self.stt, hearing, fresh, most)

    def _hearing(self, *, batch: int, spelling: Spelling | None, **rest: Any) -> Hearing:
        generator = self.generator(audio=None, batch=batch, **rest)
        return Hearing(generator, spelling, frames_of_delay(self.stt, self.frame_rate))

    def _spelling(self, spell: Any, sound: Any) -> Spelling | None:
        """What the model is shown, with checked arguments."""
        if spell is None:
            if sound is not None:
                raise ArgumentError("spell_sound is a recording of the words of spell: give both")
            return None
        words = tokens_of("spell", spell, self.text)
        if sound is None:
            quiet = np.zeros(frames_for(words) * self.frame_size, np.float32)
            return without_recording(words, self._encoded([quiet]), self.lm.config)
        size = self.frame_size
        read = SoundFrames(
            sound,
            "spell_sound",
            rate=self.sample_rate,
            frame_size=size,
            before=0,
            after=(AFTER + 1) * size - 1,
        )
        pcm = [block.reshape(-1) for block in read.read(_AT_ONCE)]
        return with_recording(self.text.encode(" ".join(spell.split())), self._encoded(pcm))

    def _encoded(self, blocks: list[Pcm]) -> Codes:
        """The codes int32 [frames, n_q] of a sound, by a codec that has heard nothing before."""

        def encoded() -> Codes:
            state: Any = self.codec.init_state()
            return np.concatenate([self.codec.encode_step(b, state).T for b in blocks])

        return self.worker.call(encoded)

    def _listeners(
        self, stall_seconds: Any, refresh_at: Any, threshold: Any, hold: Any
    ) -> Callable[[], Hearer]:
        """What makes them, with checked arguments."""
        if stall_seconds is not None:
            stall_seconds = real("stall_seconds", stall_seconds, 0.5, 3600)
        if refresh_at is not None:
            refresh_at = real("refresh_at", refresh_at, 0.1, 1)
        stall = StallRule(stall_seconds, used=refresh_at)
        turn = TurnRule(real("threshold", threshold, 0, 1), real("hold", hold, 0, 60))
        return lambda: Hearer(
            self.text, self.lm.config, self.stt, self.frame_rate, self._quiet, stall, turn
        )

    def _frames(self, source: Any, number: int, of: int) -> SoundFrames:
        """A source's frames, with the silence around it."""
        rate, stt = self.sample_rate, self.stt
        return SoundFrames(
            source,
            "source" if of == 1 else f"source {number}",
            rate=rate,
            frame_size=self.frame_size,
            before=int(stt.audio_silence_prefix_seconds * rate),
            after=int((stt.audio_delay_seconds + _AFTER) * rate),
        )

    @cached_property
    def _quiet(self) -> Codes:
        """int32 [frames, n_q]: the silence before a sound, as a new codec hears it."""
        count = frames_of_prefix(self.stt, self.frame_rate)
        if not count:
            return np.zeros((0, self.lm.config.n_q), np.int32)
        return self._encoded([np.zeros(count * self.frame_size, np.float32)])

    def _passages(
        self,
        sounds: list[_Sound],
        hearing: Hearing,
        make: Callable[..., Hearing],
    ) -> Iterator[Passage]:
        groups: list[tuple[Hearing, list[_Sound | None]]] = [(hearing, [*sounds])]

        def alone(sound: _Sound) -> None:
            """The model starts afresh with this sound, and those beside it go on without."""
            for hearing, row in groups:
                if sound not in row:
                    continue
                if len(row) == 1:
                    hearing.begin()
                else:
                    row[row.index(sound)] = None
                    groups.append((make(batch=1), [sound]))
                break
            sound.take(sound.listener.renewed())

        def advance() -> None:
            """Every sound hears frames, until one of them has no more that wait."""
            while all(one is None or one.listener.waiting for _, row in groups for one in row):
                for hearing, row in list(groups):
                    if not any(row):
                        continue
                    listeners = [None if one is None else one.listener for one in row]
                    for one, result in zip(row, step_all(hearing, listeners), strict=True):
                        if one is not None and result is not None:
                            one.take(result[0])
                            if result[1]:
                                alone(one)

        while groups:
            for _, row in groups:
                for i, one in enumerate(row):
                    if one is None or one.listener.waiting:
                        continue
                    if one.begun:
                        yield one.passage()
                    pcm = next(one.frames, None)
                    if pcm is None:
                        row[i] = None
                        yield one.last()
                    else:
                        self.worker.call(partial(one.encode, pcm))
            groups = [(hearing, row) for hearing, row in groups if any(row)]
            if groups:
                self.worker.call(advance)


FAMILY = Stt
