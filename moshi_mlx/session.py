"""One conversation: PCM in, PCM and text out, a frame of 80 ms at a time.

Joins the codec, the generator and the text. Knows nothing of sound cards or files; the state of
a conversation is all here, so sessions on one model share nothing and a new one is like a fresh
process.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from .activity import Activity
from .arguments import callable_or_none, truth, whole
from .arrays import Codes, Pcm, Tokens
from .backend import on_gpu
from .codec import Codec, MlxCodec
from .config import LmConfig
from .errors import SessionError
from .events import Event, TextSaid, WordSpoken
from .frame_session import FrameSession
from .generate import Generator, step_together
from .saying import Saying
from .state import SavedState, damage_refused, joined
from .step import TextHook
from .text import TextTokenizer, Word, WordStream
from .worker import Worker


@dataclass(frozen=True)
class Timing:
    """Seconds that the parts of a step took.

    On a GPU with our codec, encoding and the model are only asked for, and all that is waited for
    is in `decode`: only the total says something there.
    """

    encode: float
    model: float
    decode: float

    @property
    def total(self) -> float:
        return self.encode + self.model + self.decode


@dataclass(frozen=True)
class Frame:
    """What a step gives.

    index: number of the frame, from 0.
    pcm: Moshi's voice, float32 [frame_size] in −1 … 1; zeros while nothing is out.
    text: this frame's piece of the inner monologue, often empty.
    words: the words that this frame finished, with their times in seconds.
    partial: the word that is not finished yet.
    speaking: Moshi sounds, pauses between words included.
    user_speaking: the other side does.
    tokens: int32 [1 + generated streams], text first; None while nothing is out.
    events: what happened, in order.
    timing: what it took.
    """

    index: int
    pcm: Pcm
    text: str
    words: tuple[Word, ...]
    partial: str
    speaking: bool
    user_speaking: bool
    tokens: Tokens | None
    events: tuple[Event, ...]
    timing: Timing


@dataclass(frozen=True)
class Opening:
    """What a conversation began with: a prompt.

    state: of the generator after it.
    frames: of the prompt.
    seconds: what it took.
    from_cache: it was not run, but kept from an earlier time.
    """

    state: SavedState
    frames: int
    seconds: float
    from_cache: bool


class Session(FrameSession[Frame]):
    """A conversation; made by `Moshi.session`. From any thread, one at a time, or by `stream`.

    The model's own thread makes the steps, so that one is whole whatever becomes of its caller.

    Args:
        codec: sound to codes and back.
        tokenizer: of the inner monologue.
        generator: fresh, and this session's alone.
        worker: the model's thread, which does all the work.
        state: a saved conversation to resume.
        hook: called with every frame, on the thread that made the step; a text that it returns is
            said. What takes longer than a moment belongs on a thread that calls `say`.
        opening: the prompt, after which the generator is: the beginning to which `reset` returns.
            None: there is none.

    Raises:
        SessionError: the state is of another model, or the codec cannot resume one.
    """

    def __init__(
        self,
        codec: Codec[Any],
        tokenizer: TextTokenizer,
        generator: Generator,
        worker: Worker,
        state: SavedState | None = None,
        hook: Callable[[Frame], str | None] | None = None,
        opening: Opening | None = None,
    ) -> None:
        callable_or_none("hook", hook)
        self._hook = hook
        super().__init__(codec, worker)
        self._tokenizer = tokenizer
        self._generator = generator
        self.opening = opening
        self._prompted = opening is not None
        self._one_go = on_gpu() and isinstance(codec, MlxCodec) and generator.guidance is None
        worker.call(self._begin if state is None else partial(self._restore, state))

    def _begin(self) -> None:
        self._codec_state = self._codec.init_state()
        self._words = word_stream(
            self._tokenizer, self._generator.lm.config, frame_rate=self.frame_rate
        )
        config = self._generator.lm.config
        self._saying = Saying(
            self._tokenizer, epad=config.text_end_padding_id, pad=config.text_padding_id
        )
        self._moshi = Activity("moshi", self.frame_rate)
        self._user = Activity("user", self.frame_rate)
        self._index = 0

    @property
    def frames(self) -> int:
        """Frames stepped since the beginning or the last reset."""
        return self._index

    def step(self, pcm: npt.ArrayLike, *, hold_text: bool = False) -> Frame:
        """Hears a frame and says one.

        Args:
            pcm: the other side's sound, [frame_size] at the codec's rate: floats in −1 … 1, or
                int16 or int32 samples, which are scaled to that. What is not a finite number is
                heard as silence; up to ±16 is clipped, and beyond that refused.
            hold_text: no word may come from this step: its text is padding, as in a pause.

        Ctrl-C meanwhile is raised when the step is made; its frame is lost, the next one is right.

        Raises:
            SessionError: the session is closed or being streamed, or the shape or type is wrong.
        """
        self._not_streaming("take its frames from there")
        return self._step(pcm, hold_text)

    def _step(self, pcm: npt.ArrayLike, hold_text: bool = False) -> Frame:
        self._check_open()
        heard, held = self._checked(pcm), truth("hold_text", hold_text)
        frame = self._do(lambda: self._stepped(heard, held))
        try:
            answer = None if self._hook is None else self._hook(frame)
        except StopIteration as error:  # which would end whatever waits for this frame
            raise SessionError("the hook has raised StopIteration") from error
        if answer is not None:
            self.say(answer)
        return frame

    def say(self, text: str) -> None:
        """Makes the model speak a text in its own voice, after what was asked for before.

        From any thread, at any time. It begins when the word on its way has been spoken, one word
        at a time at the model's own pace, and a `TextSaid` event tells its end. The model hears
        itself say it, and goes on from there. How well it sounds is the model's doing: foreign
        words and long numbers may be slurred. What was not said yet isn't part of `save`.

        Raises:
            SessionError: the session is closed.
            ArgumentError: it is no text, empty, or has characters that the tokenizer lacks.
        """
        self._check_open()
        self._saying.add(text)

    def hush(self) -> None:
        """Forgets what `say` was given and has not begun yet. From any thread."""
        self._saying.clear()

    def _stepped(self, heard: Pcm, hold_text: bool, codes: Codes | None = None) -> Frame:
        """A frame, heard as these codes [codebooks, 1] if they are given."""
        generator = self._generator
        text = generator.lm.config.text_padding_id if hold_text else None
        finished: list[str] = []
        on_text = None
        if self._saying.busy and not hold_text:
            on_text = partial(self._chosen, finished)
        one_go = self._one_go and not generator.prompted and on_text is None and codes is None
        if one_go:
            tokens, said, timing = self._answer_in_one_go(heard, text)
        else:
            tokens, said, timing = self._answer(heard, text, on_text, codes)
        return self._told(heard, tokens, said, timing, finished)

    def _told(
        self,
        heard: Pcm,
        tokens: Tokens | None,
        said: Pcm,
        timing: Timing,
        finished: Sequence[str] = (),
    ) -> Frame:
        """Ends a step: its frame, with the words and events in it."""
        index = self._index
        words = [] if tokens is None else self._words.step(int(tokens[0]), index)
        events: list[Event] = self._user.step(index, heard)
        events += self._moshi.step(index, said)
        events += [WordSpoken(word.end, word) for word in words]
        events += [TextSaid(index / self.frame_rate, text) for text in finished]
        self._index += 1
        return Frame(
            index=index,
            pcm=said,
            text="" if tokens is None else self._tokenizer.piece(int(tokens[0])),
            words=tuple(words),
            partial=self._words.partial,
            speaking=self._moshi.active,
            user_speaking=self._user.active,
            tokens=tokens,
            events=tuple(events),
            timing=timing,
        )

    def _chosen(self, finished: list[str], tokens: Tokens) -> Tokens:
        """What is written in place of the text that was drawn, [1]."""
        token, text = self._saying.choose(int(tokens[0]))
        if text is not None:
            finished.append(text)
        return np.array([token], np.int32)

    def _answer(
        self, heard: Pcm, text: int | None, on_text: TextHook | None, codes: Codes | None
    ) -> tuple[Tokens | None, Pcm, Timing]:
        """The frame's tokens and sound, part by part."""
        generator, codec, state = self._generator, self._codec, self._codec_state
        began = time.perf_counter()
        if codes is None:
            codes = codec.encode_step(heard, state)
        encoded = time.perf_counter()
        frame = generator.step(codes[: generator.given].T, text=text, on_text=on_text).frame
        tokens = None if frame is None else frame[0]
        modelled = time.perf_counter()
        if tokens is None or not generator.generated:
            said = self._silence.copy()
        else:
            said = codec.decode_step(tokens[1:, None], state)
        timing = Timing(encoded - began, modelled - encoded, time.perf_counter() - modelled)
        return tokens, said, timing

    def _answer_in_one_go(self, heard: Pcm, text: int | None) -> tuple[Tokens | None, Pcm, Timing]:
        """The same with one synchronisation instead of three: what a GPU waits for costs time."""
        generator, codec, state = self._generator, self._codec, self._codec_state
        assert isinstance(codec, MlxCodec)
        began = time.perf_counter()
        codes = codec.encode_later(heard, state)
        encoded = time.perf_counter()
        step = generator.begin(codes[: generator.given].T, text=text)
        modelled = time.perf_counter()
        said = mx.array(self._silence)
        if step.frame is not None and generator.generated:
            said = codec.decode_later(step.frame[0, 1:, None], state)
        mx.eval(said, step.codes, step.tokens, state.arrays())
        frame = step.finish().frame
        timing = Timing(encoded - began, modelled - encoded, time.perf_counter() - modelled)
        return None if frame is None else frame[0], np.array(said), timing

    @property
    def _joins(self) -> bool:
        """Whether its next step can be made beside those of others."""
        return type(self) is Session and not self._saying.busy and self._hook is None

    def flush(self) -> tuple[Word, ...]:
        """Finishes the last word, when nothing more will be stepped."""
        return tuple(self._words.flush())

    def reset(self) -> None:
        """Forgets the conversation: as a new session, with the same seed and prompt.

        Raises:
            SessionError: the session is closed or being streamed, or was resumed from the state of
                a conversation that began with a persona or a voice: a new one needs these.
        """
        self._not_streaming("it cannot be reset meanwhile")
        self._do(self._start_over)

    def _start_over(self) -> None:
        generator = self._generator
        if self.opening is not None:
            generator.restore(self.opening.state)
        elif self._prompted:
            raise SessionError(
                "this conversation was resumed, and its persona or voice is not in its state: make "
                "a new session with them instead of a reset"
            )
        else:
            generator.reset()
        self._begin()

    def save(self) -> SavedState:
        """The whole conversation as a value, to be resumed later: `Moshi.session(state=…)`.

        It is as large as the keys and values so far, and does not change when this session
        continues. `SavedState.save` writes it to a file.

        Raises:
            SessionError: the session is closed or being streamed, or its codec is rustymimi.
        """
        self._not_streaming("it cannot be saved meanwhile")
        return self._do(self._saved)

    def _saved(self) -> SavedState:
        parts = {
            "generator": self._generator.save(),
            "codec": self._codec.save_state(self._codec_state),
        }
        activity = {"moshi": self._moshi.save(), "user": self._user.save()}
        facts = {"words": self._words.save(), "index": self._index, "prompted": self._prompted}
        return joined(parts, **facts, **activity)

    @damage_refused()
    def _restore(self, state: SavedState) -> None:
        self._begin()
        self._generator.restore(state.part("generator"))
        self._index = whole("index", state.facts["index"], 0, self._generator.steps)
        self._prompted = truth("prompted", state.facts.get("prompted", False))
        self._codec_state = self._codec.restore_state(state.part("codec"))
        self._words.restore(state.facts["words"], self._index)
        self._moshi.restore(state.facts["moshi"], self._index)
        self._user.restore(state.facts["user"], self._index)

    def _hear(self, pcm: npt.ArrayLike) -> Frame:
        return self._step(pcm)

    def _let_go(self) -> None:
        del self._generator, self._codec_state


def step_sessions(
    sessions: Sequence[Session], pcms: Sequence[npt.ArrayLike], hold_text: Sequence[bool]
) -> list[Frame]:
    """A step of several conversations with a model, at the price of little more than one.

    What each says is what it would say alone, but for the rounding of sums. One that is being told
    what to say, or has a hook, is stepped alone. On the model's thread.

    Args:
        sessions: each one once.
        pcms: for each what `Session.step` takes.
        hold_text: likewise.

    Raises:
        SessionError, ArgumentError: as `Session.step`.
    """
    together = [i for i, session in enumerate(sessions) if session._joins]
    frames: dict[int, Frame] = {}
    for i in set(range(len(sessions))) - set(together if len(together) > 1 else ()):
        frames[i] = sessions[i].step(pcms[i], hold_text=hold_text[i])
    if len(together) > 1:
        members = [sessions[i] for i in together]
        heard = [sessions[i]._checked(pcms[i]) for i in together]
        held = [hold_text[i] for i in together]
        with ExitStack() as stack:
            for member in members:
                member._not_streaming("take its frames from there")
                stack.enter_context(member._turn.held())
                member._check_open()
            frames |= dict(zip(together, _stepped_together(members, heard, held), strict=True))
    return [frames[i] for i in range(len(sessions))]


def _stepped_together(members: list[Session], heard: list[Pcm], held: list[bool]) -> list[Frame]:
    began = time.perf_counter()
    codec = members[0]._codec
    generators = [member._generator for member in members]
    states = [member._codec_state for member in members]
    if isinstance(codec, MlxCodec):
        later = [codec.encode_later(pcm, state) for pcm, state in zip(heard, states, strict=True)]
        mx.eval(later)
        codes = [np.array(each) for each in later]
    else:
        codes = [codec.encode_step(pcm, state) for pcm, state in zip(heard, states, strict=True)]
    encoded = time.perf_counter()
    padding = generators[0].lm.config.text_padding_id
    given = [own[: one.given].T for own, one in zip(codes, generators, strict=True)]
    steps = step_together(generators, given, [padding if hold else None for hold in held])
    modelled = time.perf_counter()
    tokens = [None if step.frame is None else step.frame[0] for step in steps]
    said: list[Pcm] = []
    for own, state, member in zip(tokens, states, members, strict=True):
        if own is None or not member._generator.generated:
            said.append(member._silence.copy())
        else:
            said.append(codec.decode_step(own[1:, None], state))
    timing = Timing(encoded - began, modelled - encoded, time.perf_counter() - modelled)
    rows = zip(members, heard, tokens, said, strict=True)
    return [member._told(pcm, own, sound, timing) for member, pcm, own, sound in rows]


def word_stream(tokenizer: TextTokenizer, config: LmConfig, frame_rate: float) -> WordStream:
    """For the text of a model of that configuration."""
    return WordStream(
        tokenizer,
        epad=config.text_end_padding_id,
        pad=config.text_padding_id,
        frame_rate=frame_rate,
    )
