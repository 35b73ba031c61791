"""The live conversation, put together: model, sound card, loop, screen, keys, recording.

Knows every part and decides nothing that a part can decide. What is told to the reader or written
to a disk goes through a `Dispatcher`, so that the loop never waits for it.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from moshi_mlx import Model, MoshiError, Session, WordSpoken
from moshi_mlx.families import Verb
from moshi_mlx.outputs import Output, check_outputs

from . import platform as system
from .assembly import (
    CaptionModel,
    check_captions,
    consoles,
    heard_as_dict,
    inputs_of,
    load_captions,
    load_model,
    open_session,
    open_transcription,
    print_json,
)
from .audio.card import LiveAudio
from .audio.devices import choose_device, choose_devices
from .audio.portaudio import PortAudioDevice, ask_for_microphone
from .audio.quiet import quiet_libraries
from .conversation import Conversation, Stepper
from .events import Listener, Notice, WordHeard
from .listening import Listening
from .loop import StopFlag, run_loop, stop_on_signals
from .machine.verdict import Verdict, late_warning
from .observers.dispatcher import Dispatcher
from .observers.event_log import STDOUT, EventLog
from .observers.record import Recorder, recording_output
from .observers.trace import Trace
from .options import (
    Keeping,
    ModelSource,
    PersonaFlags,
    SamplingFlags,
    SoundFlags,
    TranscriptionFlags,
    TranslationFlags,
)
from .report import LoopReport, warm_up
from .role import Role, role_for
from .terminal.keys import Keys, give_back_on_stop
from .terminal.lines import Transcript, print_report
from .terminal.screen import Screen, ScreenState, can_draw

if TYPE_CHECKING:  # imported where they are asked for
    from .captions import LiveCaptions, Slack

__all__ = ["ChatOptions", "chat"]

GREETING_SECONDS = 30.0
"""So long --no-greeting keeps Moshi from speaking first."""
WARM_UP_FRAMES = 12
RECORDER_EVENTS = 1000
"""What may wait for a slow disk: about a minute."""

WRITTEN = (
    "An AI on this machine writes down what it hears. It may be wrong. Nothing that you say leaves "
    "this machine, and nothing is kept unless you ask for it."
)
HONESTY = (
    "This is an AI voice, running on this machine. It may be wrong. Nothing that you say leaves "
    "this machine, and nothing is kept unless you ask for it."
)


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """What a live conversation is asked for; `seconds` ends it by itself.

    kv_bits: as `Moshi.session` takes it.
    translation: translate live, in place of a talk.
    transcription: write down what is said, in place of a talk.
    captions: the name of a model that writes down what the user says in a talk.
    """

    model: ModelSource
    seed: int | None = None
    sampling: SamplingFlags = field(default_factory=SamplingFlags)
    sound: SoundFlags = field(default_factory=SoundFlags)
    keeping: Keeping = field(default_factory=Keeping)
    persona: PersonaFlags = field(default_factory=PersonaFlags)
    kv_bits: int | None = None
    push_to_talk: bool = False
    greeting: bool = True
    loop_guard: bool = True
    seconds: float | None = None
    plain: bool = False
    as_json: bool = False
    translation: TranslationFlags | None = None
    transcription: TranscriptionFlags | None = None
    captions: str | None = None

    @property
    def speaks(self) -> bool:
        """Whether there is a voice to be heard."""
        return self.transcription is None

    @property
    def verb(self) -> Verb:
        """What the model is to do."""
        if self.transcription is not None:
            return "transcribe"
        return "talk" if self.translation is None else "translate"


def chat(options: ChatOptions) -> LoopReport:
    """The conversation; ends by the key q, Ctrl-C, SIGTERM or after `options.seconds`."""
    keeping = options.keeping
    words, notes = consoles(options.as_json or keeping.events == STDOUT)
    seed = secrets.randbits(31) if options.seed is None else options.seed
    # What can fail at once, before a model is loaded or fetched.
    outputs = _outputs(keeping)
    check_outputs(outputs, inputs_of(options.model, options.persona))
    role = role_for(options.persona, options.model.name, options.kv_bits)
    check_captions(options.captions)
    if options.speaks:
        choose_devices(options.sound.input, options.sound.output)
    else:
        choose_device("input", options.sound.input)
    notes.print(HONESTY if options.speaks else WRITTEN, markup=False, soft_wrap=True)
    captioner: CaptionModel | None = None
    with ask_for_microphone(options.sound.input):
        moshi, verdict = load_model(options.model, notes, options.kv_bits, options.verb)
        if options.captions is not None:
            captioner = load_captions(options.captions, notes, moshi, verdict, options.model.force)
    with ExitStack() as stack:
        for output in outputs:
            if output.kind == "folder":  # other files may be asked for in it
                stack.enter_context(output.made())
        hints = [*stack.enter_context(system.keep_awake_and_fast())]
        prefer = system.prefer_this_thread
        hints += filter(None, {prefer(), moshi.worker.call(prefer)})  # for sound, for the model
        session = _session(options, seed, moshi, verdict, role, notes)
        stack.callback(session.close)
        # Before the signals: MLX compiles through C's `system`, which ignores Ctrl-C meanwhile.
        times = warm_up(session, moshi.frame_size, WARM_UP_FRAMES)
        hints += filter(None, (verdict.advice, late_warning(verdict.model, times)))
        live = _Live(options, verdict.model, seed, moshi, hints)
        if captioner is not None:
            writing = stack.enter_context(captioner.open_session())
            step_seconds = warm_up(writing, moshi.frame_size, WARM_UP_FRAMES)
            live.captioned = _Captioned(captioner.verdict.model, writing, step_seconds)
        report = live.run(session, words, notes)
    print_report(notes, report, 1 / moshi.frame_rate)
    if live.captions is not None and live.captions.lost_seconds:
        notes.print(f"{live.captions.lost_seconds:.0f} s of what you said have no captions")
    recorder = live.recorder
    if recorder is not None and recorder.seconds:
        only = "" if recorder.problem is None else f", {recorder.seconds:.1f} s"
        notes.print(f"recorded {recorder.path}{only}", markup=False, soft_wrap=True)
    if options.as_json:
        extra = {"model": verdict.model, "codec": moshi.codec.name, "seed": seed}
        print_json(report, {**extra, **role.as_dict(), **live.facts()})
    if recorder is not None and recorder.problem is not None:
        much = "not all" if recorder.seconds else "nothing"
        live.problems.append(f"{much} was recorded: {recorder.problem}")
    if live.captions is not None and live.captions.problem is not None:
        live.problems.append(live.captions.problem)
    if live.problems:
        raise MoshiError("; ".join(live.problems))
    return report


def _session(
    options: ChatOptions, seed: int, moshi: Model, verdict: Verdict, role: Role, notes: Console
) -> Session | Listening:
    """What is stepped: a conversation, a translation, or a transcription."""
    bits, sampling = verdict.kv_bits, options.sampling
    if options.transcription is not None:
        return open_transcription(moshi, bits, options.transcription)
    return open_session(moshi, seed, sampling, bits, options.translation, role, notes)


@dataclass(frozen=True, slots=True)
class _Captioned:
    """What writes down the user's words, by a model of that name; its first steps took so long."""

    model: str
    session: Listening
    step_seconds: Sequence[float]


def _outputs(keeping: Keeping) -> list[Output]:
    """What is written of a conversation."""
    found = []
    if keeping.record is not None:
        found.append(recording_output(keeping.record))
    if keeping.events not in (None, STDOUT):
        found.append(Output(Path(keeping.events), "the events", kind="stream"))
    if keeping.trace is not None:
        found.append(Output(keeping.trace, "the trace"))
    return found


class _Live:
    """The parts around one run of the loop."""

    def __init__(
        self, options: ChatOptions, model: str, seed: int, moshi: Model, hints: Sequence[str]
    ) -> None:
        self._options, self._model, self._seed = options, model, seed
        self._moshi, self._hints = moshi, hints
        self.recorder: Recorder | None = None
        self.captioned: _Captioned | None = None
        self.captions: LiveCaptions | None = None
        self.problems: list[str] = []  # with files, to be told at the end

    def run(self, session: Session | Listening, words: Console, notes: Console) -> LoopReport:
        """Until the conversation's end; closes what it has opened in the right order."""
        options, moshi = self._options, self._moshi
        rate, frame_size = moshi.sample_rate, moshi.frame_size
        stepped: Stepper = session
        if self.captioned is not None:
            from .captions import Slack

            stepped = slack = Slack(session, 1 / moshi.frame_rate)
        conversation = Conversation(
            stepped,
            frame_rate=moshi.frame_rate,
            push_to_talk=options.push_to_talk,
            greeting_held=0.0 if options.greeting else GREETING_SECONDS,
            guard=options.loop_guard,
            told=WordSpoken if options.speaks else WordHeard,
        )
        sound = options.sound
        device = PortAudioDevice(
            sound.input,
            sound.output,
            rate,
            rate=sound.rate,
            speaker=options.speaks,
            refresh=True,
        )
        port = LiveAudio(
            device,
            sample_rate=rate,
            frame_size=frame_size,
            echo=sound.echo,
            noise_suppression=sound.noise_suppression,
            default_changed=_default_changed(sound, options.speaks),
        )
        # The terminal and the recording first: the card may take seconds to stop.
        with stop_on_signals() as stop, ExitStack() as card, ExitStack() as stack:
            stack.enter_context(system.quick_switches())
            keys = self._keys(conversation, stop)
            stack.enter_context(keys)
            if options.push_to_talk and not keys.active:
                raise MoshiError(
                    "--push-to-talk needs a terminal, since the space bar opens the microphone"
                )
            card.enter_context(port)  # a card that does not open is told on the plain terminal
            reader = self._reader(stack, words, port, keys)
            listeners: list[Listener] = [*self._keepers(stack, reader), reader]
            for text in self._hints:
                reader(Notice(0.0, text))
            if self.captioned is not None:
                listeners.append(stack.enter_context(self._captions(slack, listeners)))
            stack.enter_context(quiet_libraries())  # PortAudio also writes when a card is lost
            return run_loop(
                conversation,
                port,
                frame_size=frame_size,
                frame_rate=moshi.frame_rate,
                listeners=listeners,
                stop=lambda: bool(stop),
                at_once=lambda: stop.again,
                seconds=options.seconds,
            )

    def _captions(self, slack: Slack, listeners: Sequence[Listener]) -> LiveCaptions:
        """What the user says, for those who may be told from any thread."""
        from .captions import LiveCaptions

        assert self.captioned is not None
        self.captions = LiveCaptions(
            self.captioned.session,
            slack,
            frame_rate=self._moshi.frame_rate,
            listeners=[each for each in listeners if isinstance(each, Dispatcher)],
            step_seconds=self.captioned.step_seconds,
        )
        return self.captions

    def facts(self) -> dict[str, object]:
        """Of the captions, for the summary."""
        if self.captions is None or self.captioned is None:
            return {}
        lost = round(self.captions.lost_seconds, 3)
        return heard_as_dict(self.captioned.model, self.captions.words) | {"captions_lost": lost}

    def _keys(self, conversation: Conversation, stop: StopFlag) -> Keys:
        actions = {"m": conversation.toggle_mute, "r": conversation.ask_reset, "q": stop.ask}
        return Keys(actions, conversation.talk)

    def _reader(self, stack: ExitStack, words: Console, port: LiveAudio, keys: Keys) -> Dispatcher:
        """What the user sees: a screen, or plain lines where there is no terminal for one."""
        if self._options.plain or not can_draw(words):
            transcript = Transcript(words, sides=self.captioned is not None)
            stack.callback(transcript.end_line)
            stack.enter_context(give_back_on_stop(keys))
            return stack.enter_context(Dispatcher([transcript]))
        record = self._options.keeping.record
        state = ScreenState(
            name=self._model,
            budget=1 / self._moshi.frame_rate,
            recording=None if record is None else str(record),
            push_to_talk=self._options.push_to_talk,
            keys=keys.active,
            sides=self.captioned is not None,
            listens=not self._options.speaks,
        )
        screen = stack.enter_context(Screen(words, state, port.levels))
        stack.enter_context(give_back_on_stop(keys, screen))
        return stack.enter_context(Dispatcher([screen]))

    def _keepers(self, stack: ExitStack, reader: Dispatcher) -> list[Listener]:
        """Recording, events and trace, as far as they are asked for."""
        keeping, moshi = self._options.keeping, self._moshi
        listeners: list[Listener] = []
        if keeping.trace is not None:
            trace = Trace(keeping.trace)
            stack.callback(self._close, trace)
            listeners.append(trace)
        if keeping.record is not None:
            self.recorder = stack.enter_context(
                Recorder(
                    keeping.record,
                    sample_rate=moshi.sample_rate,
                    frame_size=moshi.frame_size,
                    model=self._model,
                    seed=self._seed,
                    format=keeping.record_format,
                    captions=None if self.captioned is None else self.captioned.model,
                    on_stopped=reader,
                )
            )
            recorder = Dispatcher([self.recorder], capacity=RECORDER_EVENTS)
            listeners.append(stack.enter_context(recorder))
        if keeping.events is not None:
            event_log = stack.enter_context(EventLog(keeping.events))

            def failed(_: Listener, error: Exception) -> None:
                reason = getattr(error, "strerror", None) or error
                problem = f"events are no longer written to {keeping.events}: {reason}"
                self.problems.append(problem)
                reader(Notice(0.0, problem))

            listeners.append(stack.enter_context(Dispatcher([event_log], on_failure=failed)))
        return listeners

    def _close(self, trace: Trace) -> None:
        try:
            trace.close()
        except MoshiError as error:
            self.problems.append(str(error))


def _default_changed(sound: SoundFlags, speaks: bool = True) -> Callable[[], bool] | None:
    """Whether a default device that is in use is another than at the last call.

    None where all that are in use were named, or the system cannot tell.
    """

    def defaults() -> tuple[int, ...] | None:
        now = system.default_devices()
        used = (sound.input is None, speaks and sound.output is None)
        return now and tuple(compress(now, used))

    last = defaults()
    if not last:
        return None

    def changed() -> bool:
        nonlocal last
        before, last = last, defaults() or last
        return last != before

    return changed
