"""Speech translation models: Hibiki and Hibiki-Zero, which speak while they listen.

They read the source as a dialogue model reads its user. A frame of `card` on all source codebooks
tells them that the input has ended; then they hear silence until their own end, the text token EOS.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from ..activity import SOUNDING, audible_spans
from ..arguments import finite, real, samples, whole
from ..arrays import Codes, Pcm, Tokens
from ..conditions import Condition
from ..config import LmConfig
from ..errors import ArgumentError, SessionError, shown
from ..generate import Generator
from ..guidance import Guidance
from ..lm import Lm
from ..sampling import Sampling
from ..session import Frame, Session, word_stream
from ..sounds import open_sound
from ..speech import Speech
from ..state import SavedState, state_from
from ..text import Word
from .model import Model

END = 2
"""EOS, the text token with which a translation ends."""
LONGEST_SECONDS = 120.0
"""What the models were trained for; longer sound is translated in pieces."""
LONGEST_TAIL = 60.0
"""Of silence that a model may hear after its input, if it does not end by itself."""

_CONDITION, _GOOD, _BAD = "description", "very_good", "very_bad"
_MOST_AT_ONCE = 64
_WINDOW, _LEAST_PAUSE = 0.05, 0.3  # seconds
_LAST_SOUND = 2.0  # seconds that the last word may sound, where there is no EOS
_DECODED_AT_ONCE = 25

_log = logging.getLogger("moshi_mlx")


class Run:
    """A source through a generator, frame by frame, and what each conversation of it says.

    Args:
        generator: fresh.
        silence: int32 [given], codes of a silent frame, for a model that `begins_with_silence`.
        scored: keep how likely the text was.
    """

    def __init__(
        self, generator: Generator, silence: Codes | None = None, scored: bool = False
    ) -> None:
        self._generator, self._silence, self._scored = generator, silence, scored
        self._eos_counts = self._zero = begins_with_silence(generator.lm.config)
        self._frames: list[Tokens] = []
        self._scores: list[npt.NDArray[np.float32]] = []
        self._ends = np.full(generator.batch, -1)  # frame of the EOS that counts; −1: none yet

    @property
    def done(self) -> bool:
        """Every conversation has ended."""
        return bool((self._ends >= 0).all())

    def length(self, row: int) -> int | None:
        """Frames that a conversation's translation has; None if it has not ended.

        Its EOS is the last of them, but with Hibiki-Zero the first after them.
        """
        end = int(self._ends[row])
        return None if end < 0 else end if self._zero else end + 1

    @property
    def tokens(self) -> Tokens:
        """All that was said: int32 [B, 1 + generated, frames], text first."""
        return np.stack(self._frames, axis=2)

    def hear(self, codes: Codes) -> None:
        """A frame: int32 [given] or [B, given]."""
        if not self._generator.steps:
            for opening in _opening(self._generator.lm.config, codes, self._silence):
                self._step(opening)
        self._step(codes)

    def end(self) -> None:
        """The input has ended: from this step on, an EOS is one."""
        self._eos_counts = True
        self.hear(end_of_input(self._generator))

    def _step(self, codes: Codes) -> None:
        generator = self._generator
        step = generator.step(np.broadcast_to(codes, (generator.batch, generator.given)))
        if self._scored:
            logits = step.text_logits
            if generator.guidance is not None:
                logits = generator.guidance.guided_text(logits)
            said = mx.array(step.written[:, :1])
            chosen = mx.take_along_axis(logits, said, axis=-1)[:, 0]
            self._scores.append(np.array(chosen - mx.logsumexp(logits, axis=-1)))
        if step.frame is not None:
            self._frames.append(step.frame)
            if self._eos_counts:
                now = (step.frame[:, 0] == END) & (self._ends < 0)
                self._ends[now] = len(self._frames) - 1

    def best(self) -> int:
        """The conversation whose text was the likeliest, by the mean of its log-probabilities.

        Those that have not ended come last.
        """
        if not self._scored:
            return 0
        late = self._generator.lm.config.delays[0]  # the text of frame t was drawn in step t + late
        scores = np.stack(self._scores)[late:]

        def rank(row: int) -> tuple[bool, float]:
            end = int(self._ends[row])
            frames = len(self._frames) if end < 0 else end + 1
            return end >= 0, float(scores[:frames, row].mean())

        return max(range(len(self._ends)), key=rank)


class TranslationSession(Session):
    """A live translation; made by `Hibiki.session`. Frames and events are those of `Session`."""

    _ended = False

    def end(self, seconds: float = LONGEST_TAIL) -> Iterator[Frame]:
        """The source has ended: yields the frames that are still to come.

        They are made as they are asked for. After the first one, nothing more can be heard before
        a reset.

        Args:
            seconds: how many of them at most, should the model not end by itself.

        Raises:
            SessionError: as `step`.
            ArgumentError: `seconds` is out of range.
        """
        most = _tail_frames("seconds", seconds, self.frame_rate)
        return self._ending(most)

    def _ending(self, most: int) -> Iterator[Frame]:
        self._check_listening()
        codes: Codes | None = self._do(lambda: end_of_input(self._generator)[:, None])
        self._ended = True
        for _ in range(1 + most):
            self._not_streaming("end it there first")
            frame: Frame = self._do(partial(self._stepped, self._silence, False, codes))
            yield frame
            if frame.tokens is not None and int(frame.tokens[0]) == END:
                return
            codes = None

    def _step(self, pcm: npt.ArrayLike, hold_text: bool = False) -> Frame:
        self._check_listening()
        return super()._step(pcm, hold_text)

    def _check_listening(self) -> None:
        self._check_open()
        if self._ended:
            raise SessionError("the source has ended: reset this session, or make a new one")

    def _start_over(self) -> None:
        super()._start_over()
        self._ended = False

    def _stepped(self, heard: Pcm, hold_text: bool, codes: Codes | None = None) -> Frame:
        if not self._index and codes is None:
            generator, silence = self._generator, None
            if begins_with_silence(generator.lm.config):
                silence = self._codec.encode_step(self._silence, self._codec_state)
            codes = self._codec.encode_step(heard, self._codec_state)
            for opening in _opening(generator.lm.config, codes, silence):
                generator.step(opening[: generator.given].T)
        return super()._stepped(heard, hold_text, codes)


class Hibiki(Model):
    """A loaded speech translation model; made by `load`."""

    @classmethod
    def amend(cls, lm: Lm) -> None:
        """An EOS that was drawn too early reads as padding in the next step: the model goes on."""
        table, pad = lm.text_emb, lm.config.text_padding_id
        for name in ("weight", "scales", "biases"):
            rows = table.get(name)
            if rows is not None:
                rows[END] = rows[pad]
                mx.eval(rows)

    def session(
        self,
        *,
        seed: int = 0,
        text: Sampling | None = None,
        audio: Sampling | None = None,
        quality: str = _GOOD,
        cfg: float = 1.0,
        kv_bits: int | None = None,
        state: SavedState | str | Path | None = None,
    ) -> TranslationSession:
        """A live translation, or a saved one that is resumed: source in, target out.

        Args:
            seed: the same seed and sound give the same translation.
            text: how text is drawn; the model's own way if None.
            audio: how codes are drawn; the model's own way if None.
            quality: as `translate` has it.
            cfg: as `translate` has it.
            kv_bits: quantize keys and values to 8 or 4 bits; None: as they are computed.
            state: what `Session.save` gave, or the file it was written to; it keeps its seed.

        Raises:
            SessionError: the state is of another model, or the codec is rustymimi.
            CheckpointError: the state's file is missing or broken.
            ArgumentError: an argument has an impossible value.
        """
        resumed = state_from(state)
        make = partial(self._generator, quality, cfg, seed=seed, kv_bits=kv_bits)
        generator = self.worker.call(lambda: make(text=text, audio=audio))
        return TranslationSession(self.codec, self.text, generator, self.worker, resumed)

    def translate(
        self,
        source: str | Path | npt.ArrayLike,
        *,
        quality: str = _GOOD,
        cfg: float = 1.0,
        best_of: int = 1,
        seed: int = 0,
        tail_seconds: float = LONGEST_TAIL,
        text: Sampling | None = None,
        audio: Sampling | None = None,
        kv_bits: int | None = None,
        progress: Callable[[float], None] | None = None,
    ) -> Speech:
        """Translates a recording. Times are those of the recording, plus the model's own lag.

        Sound of more than LONGEST_SECONDS is split at pauses, and the pieces are translated one
        after the other; the log says where.

        Args:
            source: a sound file of any format, or float or integer samples [n] at `sample_rate`.
            quality: of the translation, as the training data were rated; a model without ratings
                takes the default alone.
            cfg: how far to move from a translation of the worst quality; 1 is not at all, 3 is
                usual. More likeness to the voice, more risk for the content, twice the work.
            best_of: translations to make side by side. The one with the highest mean
                log-probability of its text is taken, those that did not end last.
            seed: the same seed and sound give the same translation.
            tail_seconds: that a translation may go on after its source, if it does not end.
            text: how text is drawn; the model's own way if None.
            audio: how codes are drawn; the model's own way if None.
            kv_bits: quantize keys and values to 8 or 4 bits; None: as they are computed.
            progress: is told how many seconds of the source have been heard.

        Raises:
            AudioFileError: the source is not a sound file, or is empty or damaged.
            ArgumentError: an argument has an impossible value, or there is no sound.
        """
        best_of = whole("best_of", best_of, 1, _MOST_AT_ONCE)
        tail = _tail_frames("tail_seconds", tail_seconds, self.frame_rate)
        make = partial(self._generator, quality, cfg, seed=seed, kv_bits=kv_bits)
        generator = self.worker.call(lambda: make(text=text, audio=audio, batch=best_of))
        pcm, rate = _sound(source, self.sample_rate), self.sample_rate
        parts = pieces(pcm, rate, LONGEST_SECONDS)
        if len(parts) > 1:
            cuts = ", ".join(f"{start / rate:.1f} s" for start, _ in parts[1:])
            _log.warning(
                "these models were trained for at most %.0f s: the sound of %.0f s is translated "
                "in %d pieces, which begin at %s",
                LONGEST_SECONDS, len(pcm) / rate, len(parts), cuts,
            )  # fmt: skip
        joined: list[Pcm] = []
        words: list[Word] = []
        said = before = 0
        for start, end in parts:
            self.worker.call(generator.reset)
            piece = self._piece(generator, pcm[start:end], tail, start, progress)
            # Pauses stay, and who was faster waits for the source.
            begin = max(start, said + start - before) if joined else start
            joined += [np.zeros(begin - said, np.float32), piece.pcm]
            words += [
                Word(word.text, word.start + begin / rate, word.end + begin / rate)
                for word in piece.words
            ]
            said, before = begin + len(piece.pcm), end
        return Speech(np.concatenate(joined), tuple(words), rate)

    def _generator(self, quality: str, cfg: float, *, batch: int = 1, **rest: Any) -> Generator:
        """For translations of that quality; on the model's thread."""
        real("cfg", cfg, 0, 100)
        guidance = None if cfg == 1 else Guidance(float(cfg))
        conditions: list[Mapping[str, Condition]] | None = None
        negatives = None
        rated = self.lm.config.conditioners.get(_CONDITION)
        if rated is not None:
            known = rated.possible_values or ()
            if quality not in known:
                raise ArgumentError(
                    f"quality must be one of {', '.join(known)}, is {shown(quality)}"
                )
            conditions = [{_CONDITION: quality}] * batch
            negatives = None if guidance is None else [{_CONDITION: _BAD}] * batch
        elif quality != _GOOD or guidance is not None:
            wrong = f"cfg is {cfg:g}" if quality == _GOOD else f"quality is {shown(quality)}"
            raise ArgumentError(
                f"{wrong}, but {self.name} was trained without ratings of quality: leave it out"
            )
        return self.generator(
            batch=batch,
            conditions=conditions,
            guidance=guidance,
            null_conditions=negatives,
            **rest,
        )

    def _piece(
        self,
        generator: Generator,
        pcm: Pcm,
        tail: int,
        start: int,
        progress: Callable[[float], None] | None,
    ) -> Speech:
        """One piece, translated by a fresh generator; `start` is its first sample's number."""
        codec, size, given = self.codec, self.frame_size, generator.given
        state: Any = self.worker.call(codec.init_state)
        silence = np.zeros(size, np.float32)

        def encoded(frame: Pcm) -> Codes:
            return codec.encode_step(frame, state)[:given, 0]

        quiet = None
        if begins_with_silence(self.lm.config):
            quiet = self.worker.call(lambda: encoded(silence))
        run = Run(generator, quiet, scored=generator.batch > 1)

        def hear(frame: Pcm) -> None:
            self.worker.call(lambda: run.hear(encoded(frame)))

        frames = np.pad(pcm, (0, -len(pcm) % size)).reshape(-1, size)
        for i, frame in enumerate(frames):
            hear(frame)
            if progress is not None:
                progress((start + min((i + 1) * size, len(pcm))) / self.sample_rate)
        self.worker.call(run.end)
        for _ in range(tail):
            if run.done:
                break
            hear(silence)
        row = run.best()
        tokens, length = run.tokens[row], run.length(row)
        if length is None:
            length = self._length_without_end(tokens[0], tail)
        elif length < len(frames) and quiet is not None:
            early = (len(frames) - length) / self.frame_rate
            _log.warning("the translation ended %.1f s before its source did", early)
        return self._spoken(tokens[:, :length], state)

    def _length_without_end(self, text: Tokens, tail: int) -> int:
        """Frames up to the last word and what may sound of it."""
        _log.warning(
            "the translation did not end within %.0f s after its source: it is cut after its last "
            "word",
            tail / self.frame_rate,
        )
        spoken = np.flatnonzero(text != self.lm.config.text_padding_id)
        last = int(spoken[-1]) + 1 if len(spoken) else 1
        return min(len(text), last + round(_LAST_SOUND * self.frame_rate))

    def _spoken(self, tokens: Tokens, state: Any) -> Speech:
        """Sound and words of int32 [1 + generated, frames]."""
        length = tokens.shape[1]
        stream = word_stream(self.text, self.lm.config, frame_rate=self.frame_rate)
        words = [word for token in tokens[0] for word in stream.step(int(token))]
        words += stream.flush()
        cuts = [*range(0, length, _DECODED_AT_ONCE), length]
        sound = [
            self.worker.call(partial(self.codec.decode_step, tokens[1:, a:b], state))
            for a, b in pairwise(cuts)
        ]
        pcm = np.concatenate([np.zeros(0, np.float32), *sound])
        return Speech(pcm, tuple(words), self.sample_rate)


FAMILY = Hibiki


def begins_with_silence(config: LmConfig) -> bool:
    """Hibiki-Zero's way, told from Hibiki's by its having no conditioner.

    `max(delays)` silent frames come first, and every EOS is one. Of the others, the first frame is
    given twice, and an EOS before the end of the input is passed over.
    """
    return not config.conditioners


def end_of_input(generator: Generator) -> Codes:
    """The frame that says so: int32 [given]."""
    return np.full(generator.given, generator.lm.config.card, np.int32)


def _opening(config: LmConfig, first: Codes, silence: Codes | None) -> list[Codes]:
    """The frames in front of the first one; what these steps put out, if anything, is dropped."""
    if not begins_with_silence(config):
        return [first]
    assert silence is not None
    return [silence] * max(config.delays)


def pieces(pcm: Pcm, rate: int, longest: float) -> list[tuple[int, int]]:
    """Splits a recording at its pauses.

    Args:
        pcm: float32 [samples].
        rate: samples per second.
        longest: seconds of a piece at most. Each is cut at the longest pause of its second half,
            else of its first; without any pause, where it must be.

    Returns:
        (start, end) of each piece, in samples; between them lie the pauses.
    """
    most = int(longest * rate)
    if len(pcm) <= most:
        return [(0, len(pcm))]
    spans = audible_spans(pcm, rate, window=_WINDOW, pause=_LEAST_PAUSE, threshold=SOUNDING)
    pauses = [(a, b) for (_, a), (b, _) in pairwise([*spans, (len(pcm), 0)])]
    start = spans[0][0] if spans else 0
    found: list[tuple[int, int]] = []
    while len(pcm) - start > most:
        there = [(a, b) for a, b in pauses if start < a <= start + most]
        late = [(a, b) for a, b in there if a - start > most // 2]
        must = (start + most, start + most)
        a, b = max(late or there, key=lambda pause: pause[1] - pause[0], default=must)
        found.append((start, a))
        start = b
    return [*found, (start, len(pcm))] if start < len(pcm) else found


def _tail_frames(name: str, seconds: float, frame_rate: float) -> int:
    return round(real(name, seconds, 0, 3600) * frame_rate)


def _sound(source: str | Path | npt.ArrayLike, rate: int) -> Pcm:
    """Of a file or samples: float32 [n] at `rate`."""
    if isinstance(source, str | Path):
        found = open_sound(Path(source)).read(rate).mean(axis=0)
    else:
        found = samples(source)
        if found.ndim != 1 or not found.size:
            raise ArgumentError(f"source must be a file or samples [n], is {list(found.shape)}")
        finite("source", found)
    clipped: Pcm = np.clip(found, -1.0, 1.0)
    return clipped
