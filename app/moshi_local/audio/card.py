"""The sound card as an `AudioPort`: frames from the microphone, frames to the speaker, for hours.

Joins the two sides, the echo canceller, and a watch over the stream: a card that is lost, asleep
or dumb is noticed, told as an event, and opened again. Knows nothing of models. `read` and
`write` belong to one thread and never wait long; reopening has its own thread.
"""

from __future__ import annotations

import math
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace

import numpy as np

from moshi_mlx import AudioDeviceError
from moshi_mlx.arrays import Pcm

from ..events import DeviceLost, Event, Lag, MicrophoneDead, Notice, Opened, Resumed
from ..options import EchoMode
from ..platform import (
    bluetooth,
    first_callback_seconds,
    microphone_advice,
    reopen_for_permission,
)
from ..port import Read
from .capture import INPUT_LIMIT_FRAMES, Capture, Reference
from .counters import DeviceCounters
from .echo import EchoCanceller, needs_canceller
from .playout import Playout
from .portaudio import SoundDevice, StreamInfo

__all__ = ["LiveAudio"]

CALLBACK_SECONDS = 1.0
REOPEN_SECONDS = 0.5
"""Between two attempts to open a lost card."""
SILENT_STARTS = 5
"""A card that has never called is given up after this many starts; a Bluetooth headset never is,
since it may be on its way from another computer."""
NO_SOUND_SECONDS = 10.0
"""After this long without a card it is told why."""
CATCH_UP_SECONDS = 0.6
"""A backlog that takes longer to work off is dropped: with what the speaker's side needs then,
all is as before within a second."""
SLEEP_SECONDS = 5.0
DEAD_SECONDS = 3.0
"""Of nothing but zeros, before a microphone that has never given sound is called dead."""
MUTED_SECONDS = 30.0
"""And one that has: its own switch may be off, or what it comes from may be digital silence."""
PERMISSION_SECONDS = 5.0
"""Between two openings of a microphone that the user may have allowed meanwhile."""
DEFAULT_POLL_SECONDS = 1.0
SETTLE_SECONDS = 3.0
"""So long after an opening another default device is ignored: a Bluetooth headset that begins a
call comes and goes."""
PILED_UP_SECONDS = 0.2
"""More delay than this, lasting, is not ours: the sound system itself keeps what came in while the
program was held up, and does not give it back. PulseAudio does so (15 xruns in ten minutes on an
overloaded machine made 1.5 s); only a new stream is free of it."""
LAG_SECONDS = 0.04
"""Less than this is left out of the output without a word."""
STEPS_KEPT = 15
DELAYS_KEPT = 13


class LiveAudio:
    """Frames from a microphone and to a speaker: an `AudioPort` over a `SoundDevice`.

    sample_rate (Hz) and frame_size (samples) are the model's. echo says when to cancel the echo.
    A device without a speaker makes none, and what is written is not played.
    default_changed is asked once per second, on another thread, whether the system's own devices
    are others now; if so, the card is opened again. clock and wall give seconds; tests put others
    there.

    Entering it opens the card: AudioDeviceError. After that, a lost card is reopened, however
    often that takes, unless it never made a sound.
    """

    def __init__(
        self,
        device: SoundDevice,
        *,
        sample_rate: int,
        frame_size: int,
        echo: EchoMode = EchoMode.auto,
        noise_suppression: bool = False,
        default_changed: Callable[[], bool] | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._device = device
        self._rate, self._frame_size = sample_rate, frame_size
        self._frame_seconds = frame_size / sample_rate
        self._echo, self._noise_suppression = echo, noise_suppression
        self._default = None if default_changed is None else _Question(default_changed)
        self._default_asked = clock()
        self._clock, self._wall = clock, wall
        self.counters = DeviceCounters()
        self._line: _Line | None = None
        self._closing = threading.Event()
        self._reopened = threading.Event()
        self._new_line: _Line | None = None
        self._helper: threading.Thread | None = None
        self._opened_at = self._lost_at = clock()
        self._trouble = ""
        self._trouble_told = False
        self._starts = 1
        self._failure: AudioDeviceError | None = None
        self._ever_called = False
        self._steps: deque[float] = deque(maxlen=STEPS_KEPT)
        self._given_at = 0.0
        self._dead_seconds, self._dead_told, self._ever_heard = 0.0, False, False
        self._asking_again = self._permission_may_come = False
        self._reported = (0.0, 0.0)
        self._delays: deque[float] = deque(maxlen=DELAYS_KEPT)
        self._events: list[Event] = []

    def __enter__(self) -> LiveAudio:
        self._line = self._open()
        self._greet(self._line)
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        if self._helper is not None:
            self._helper.join(CALLBACK_SECONDS)
            if self._helper.is_alive():
                return  # PortAudio is stuck; a second thread in it would not help.
        self._device.stop()

    # ------------------------------------------------------------------------ the port

    def read(self, frame: Pcm, timeout: float) -> Read:
        """Fill `frame` with the next frame heard; NOTHING when none came in `timeout` seconds."""
        line = self._line
        if line is None:
            self._reopened.wait(timeout)
            line = self._take_new_line()
            if line is None:
                self._notice_no_sound()
                return Read.NOTHING
            timeout = 0.0
        ready = line.capture.wait(timeout)
        self._notice_sleep(line)
        self._watch(line)
        if self._line is None or not ready:
            return Read.NOTHING
        line.drop_backlog(1 + self._frames_to_catch_up())
        line.read(frame)
        self._notice_dead_microphone(line)
        self._given_at = self._clock()
        return Read.FRAME

    def write(self, pcm: Pcm) -> None:
        """Queue the answer to the frame read last; never waits."""
        self._steps.append(self._clock() - self._given_at)
        line = self._line
        if line is None:
            return
        if not line.speaks:
            return
        line.write(pcm)
        delay = line.delay()
        self._delays.append(delay)
        line.others_delay.append(delay - line.playout.cushion)
        line.least_delay = min(line.least_delay, line.others_delay[-1])

    def take_events(self, now: float) -> list[Event]:
        """What happened since the last call; `now` is on the session's clock (seconds)."""
        counters, behind = self.counters, self._line is not None and self._line.capture.behind
        dropped = (counters.input_dropped_seconds, counters.output_dropped_seconds)
        lost = [after - before for after, before in zip(dropped, self._reported, strict=True)]
        if (lost[0] > 0.0 or lost[1] > LAG_SECONDS) and not behind:
            self.counters.lags += 1
            self._events.append(Lag(now, lost[0], lost[1]))
            self._reported = dropped
        events, self._events = self._events, []
        return [replace(event, time=now) for event in events]

    def statistics(self) -> dict[str, float | int]:
        """The counters, and how things are now: times in seconds or, where named so, ms."""
        found: dict[str, float | int] = {
            **asdict(self.counters),
            "xruns": self.counters.xruns,
            "lag_ms": round(1000 * self.lag(), 1),
        }
        if (delay := self.delay()) is not None:
            found["delay_ms"] = round(1000 * delay, 1)
        if (line := self._line) is not None:
            found["input_rate"] = line.info.input_rate
            if line.speaks:
                found["cushion_ms"] = round(1000 * line.playout.cushion)
                found["drift_ppm"] = round(1e6 * line.playout.drift, 1)
                found["output_rate"] = line.info.output_rate
            found["echo_cancelled"] = int(line.reference is not None)
        return found

    def delay(self) -> float | None:
        """From mouth to ear (seconds): from when the first sample of a frame is at the
        microphone until the first of its answer is at the speaker, by PortAudio's times; the
        median of the last second. None before the first answer."""
        return statistics.median(self._delays) if self._delays else None

    def lag(self) -> float:
        """Sound that waits to be heard or played, beyond what must (seconds)."""
        line = self._line
        if line is None:
            return 0.0
        return line.capture.lag + (line.playout.lag if line.speaks else 0.0)

    def levels(self) -> tuple[float, float]:
        """The peaks of the last frame heard, before the echo is cancelled, and of the last one
        to be played, 0 to 1; from any thread."""
        line = self._line
        return (line.capture.level, line.playout.level) if line is not None else (0.0, 0.0)

    # ------------------------------------------------------------------ catching up

    def _frames_to_catch_up(self) -> int:
        """How many frames that wait can be worked off soon, beside those that come meanwhile."""
        step = max(statistics.median(self._steps), 1e-3) if self._steps else self._frame_seconds
        spare = CATCH_UP_SECONDS * (1.0 / step - 1.0 / self._frame_seconds)
        return max(0, min(int(spare), INPUT_LIMIT_FRAMES - 1))

    def _notice_sleep(self, line: _Line) -> None:
        """After sleep of the machine or the program, resume with what is heard now."""
        capture, now = line.capture, self._wall()
        slept = max(capture.longest_pause, now - capture.called_at)
        if slept < SLEEP_SECONDS or not capture.calls:
            return
        capture.longest_pause, capture.called_at = 0.0, now
        line.drop_backlog(1)
        line.wake(self._clock())
        self._events.append(Resumed(0.0, slept))

    def _notice_dead_microphone(self, line: _Line) -> None:
        """Tell once when there is nothing but zeros: a system that forbids listening gives them.

        Where the user may allow it meanwhile, open the card again and again, without a word.
        """
        if line.capture.level > 0.0:
            if self._asking_again:
                self._tell_opened(line)
            self._dead_seconds, self._dead_told, self._ever_heard = 0.0, False, True
            self._asking_again = False
            return
        self._dead_seconds += self._frame_seconds
        slow = first_callback_seconds() if bluetooth(line.info.input_name) else 0.0
        patience = MUTED_SECONDS if self._ever_heard else max(DEAD_SECONDS, slow)
        if self._dead_seconds >= patience and not self._dead_told:
            self._dead_told = True
            self._events.append(MicrophoneDead(0.0, microphone_advice()))
        may_help = self._permission_may_come and not self._ever_heard
        if may_help and self._dead_seconds >= max(patience, PERMISSION_SECONDS):
            self._asking_again = True
            self._reopen_soon()

    def _notice_no_sound(self) -> None:
        """Tell once when the card stays lost: nothing else would say that no attempt succeeds."""
        if self._trouble_told or self._clock() - self._lost_at < NO_SOUND_SECONDS:
            return
        self._trouble_told = True
        reason = self._trouble or "the sound system does not answer: quit and start again"
        self._events.append(Notice(0.0, f"still no sound: {reason}"))

    # -------------------------------------------------------------- the watch over the card

    def _open(self) -> _Line:
        """Open and start the card; raises AudioDeviceError."""
        self._permission_may_come = reopen_for_permission()
        info = self._device.open()
        line = _Line(
            info,
            sample_rate=self._rate,
            frame_size=self._frame_size,
            cancel=bool(info.output_name) and needs_canceller(self._echo, info.output_name),
            noise_suppression=self._noise_suppression,
            counters=self.counters,
            clock=self._clock,
            wall=self._wall,
        )
        self._device.start(line.playout.play, line.capture.hear)
        return line

    def _greet(self, line: _Line) -> None:
        self._opened_at = self._clock()
        line.wake(self._opened_at)
        self._delays.clear()
        self._dead_seconds = 0.0
        if self._default is not None:
            self._default.take()  # whatever it was, it is what has been opened now
        if not self._asking_again:
            self._dead_told = False
            self._tell_opened(line)

    def _tell_opened(self, line: _Line) -> None:
        info = line.info
        self._events.append(
            Opened(
                0.0,
                info.input_name,
                info.output_name,
                info.input_rate,
                info.output_rate,
                line.reference is not None,
            )
        )

    def _watch(self, line: _Line) -> None:
        """Give the card up for lost when it ended, does not call, or is no longer the default."""
        now = self._clock()
        started = line.check_calls(now)
        self._ever_called |= started
        if self._device.ended:
            return self._lose("a sound device, or the sound system, is gone")
        if line.silent_for(now) > (CALLBACK_SECONDS if started else first_callback_seconds()):
            return self._lose(
                "the sound devices stopped" if started else "the sound devices did not start"
            )
        if len(line.others_delay) == DELAYS_KEPT:
            surplus = min(line.others_delay) - line.least_delay
            if surplus > PILED_UP_SECONDS:
                return self._lose(f"the sound system holds back {1000 * surplus:.0f} ms")
        if self._default is not None and now - self._opened_at > SETTLE_SECONDS:
            if self._default.take():
                return self._lose("the system's default device has changed")
            if now - self._default_asked > DEFAULT_POLL_SECONDS:
                self._default_asked = now
                self._default.ask()
        return None

    def _lose(self, reason: str) -> None:
        """Begin to open the card again, and tell it. AudioDeviceError if it never made a sound."""
        assert self._line is not None
        if self._is_dumb(self._line.info):
            raise _dumb(self._line.info, "it never called back")
        self._asking_again = False
        self._events.append(DeviceLost(0.0, reason))
        self._reopen_soon()

    def _is_dumb(self, info: StreamInfo) -> bool:
        """Whether the card has had its chances to make a sound."""
        patient = bluetooth(info.input_name) or bluetooth(info.output_name)
        return not (self._ever_called or patient) and self._starts >= SILENT_STARTS

    def _reopen_soon(self) -> None:
        """Open the card again, on the helper's thread."""
        assert self._line is not None
        info, self._line = self._line.info, None
        self.counters.restarts += 1
        self._lost_at, self._trouble, self._trouble_told = self._clock(), "", False
        self._reopened.clear()
        self._helper = threading.Thread(
            target=self._reopen, args=[info], name="reopen sound", daemon=True
        )
        self._helper.start()

    def _reopen(self, info: StreamInfo) -> None:
        """The helper's thread: PortAudio may take its time. Tries until it works."""
        while not self._closing.is_set():
            self._starts += 1
            self._device.stop()
            try:
                self._new_line = self._open()
            except AudioDeviceError as error:
                self._trouble = str(error)
                if self._is_dumb(info):
                    self._failure = _dumb(info, str(error))
                    break
                self._closing.wait(REOPEN_SECONDS)
            else:
                break
        self._reopened.set()

    def _take_new_line(self) -> _Line | None:
        """The card that the helper has opened, if it has."""
        if not self._reopened.is_set():
            return None
        if self._failure is not None:
            raise self._failure
        self._line, self._new_line = self._new_line, None
        assert self._line is not None
        self._greet(self._line)
        return self._line


class _Question:
    """A question with yes for an answer, asked on another thread: the system may hold a lock for
    as long as its devices change."""

    def __init__(self, question: Callable[[], bool]) -> None:
        self._question = question
        self._thread: threading.Thread | None = None
        self._yes = False

    def ask(self) -> None:
        """Begin to ask, unless it is being asked."""
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._run, name="ask for devices", daemon=True)
            self._thread.start()

    def take(self) -> bool:
        """Whether the answer was yes since the last call."""
        yes, self._yes = self._yes, False
        return yes

    def _run(self) -> None:
        with suppress(Exception):  # then there is no answer
            self._yes = self._question() or self._yes


class _Line:
    """One opening of the card: both sides, and the canceller between them.

    `speaks`: it has a speaker; without one, `playout` is never called.
    """

    def __init__(
        self,
        info: StreamInfo,
        *,
        sample_rate: int,
        frame_size: int,
        cancel: bool,
        noise_suppression: bool,
        counters: DeviceCounters,
        clock: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        for name, rate in (
            (info.input_name, info.input_rate),
            (info.output_name, info.output_rate),
        ):
            if frame_size * rate % sample_rate:
                raise AudioDeviceError(
                    f'"{name}" runs at {rate} Hz, where a frame is not a whole number of samples; '
                    "use a common rate, such as 48000"
                )
        self.info = info
        self.speaks = bool(info.output_name)
        self.others_delay: deque[float] = deque(maxlen=DELAYS_KEPT)
        """From mouth to ear without our cushion, of the last second."""
        self.least_delay = math.inf
        self.reference: Reference | None = None
        self._canceller: EchoCanceller | None = None
        if cancel or noise_suppression:
            self._canceller = EchoCanceller(
                sample_rate, frame_size, cancel=cancel, noise_suppression=noise_suppression
            )
        if cancel:
            self.reference = Reference(
                sample_rate=sample_rate,
                device_rate=info.output_rate,
                frame_size=frame_size,
                one_clock=info.one_clock,
            )
        self.capture = Capture(
            sample_rate=sample_rate,
            device_rate=info.input_rate,
            frame_size=frame_size,
            counters=counters,
            clock=clock,
            wall=wall,
        )
        self.playout = Playout(
            sample_rate=sample_rate,
            device_rate=info.output_rate,
            frame_size=frame_size,
            follow=not info.one_clock,
            counters=counters,
            clock=clock,
            played=self.reference.ring if self.reference else None,
        )
        self._input_rate = info.input_rate
        self._played = np.zeros(frame_size, np.float32)
        self._calls = [0, 0]
        self._called_at = [clock()] * 2

    def read(self, frame: Pcm) -> None:
        """The oldest frame that waits, without echo."""
        self.capture.take(frame)
        if self.reference is not None:
            self.reference.take(self._played, self.playout.since_block, self.capture.waits)
        if self._canceller is not None:
            frame[:] = self._canceller.process(frame, self._played)

    def write(self, pcm: Pcm) -> None:
        """A frame to be played."""
        self.playout.write(pcm, hurry=self.capture.behind)

    def drop_backlog(self, frames: int) -> None:
        """Keep the newest `frames` that were heard."""
        gone = self.capture.drop_all_but(frames)
        if self.reference is not None:
            self.reference.skip(gone / self._input_rate)

    def delay(self) -> float:
        """From the first sample of the frame read last, at the microphone, to the first of the
        frame written last, at the speaker (seconds)."""
        through = self.playout.played_at - self.capture.heard_at
        canceller = self._canceller.delay if self._canceller else 0.0
        return through + self.capture.delay + self.playout.delay + canceller

    def wake(self, now: float) -> None:
        """Both sides are as if they had called just now."""
        self._called_at = [now, now]

    def check_calls(self, now: float) -> bool:
        """Note which sides have called; True if both ever have."""
        heard, played = self.capture.calls, self.playout.calls
        for side, calls in enumerate((heard, played) if self.speaks else (heard,)):
            if calls != self._calls[side]:
                self._calls[side], self._called_at[side] = calls, now
        return all(self._calls) if self.speaks else bool(self._calls[0])

    def silent_for(self, now: float) -> float:
        """How long a side has not called (seconds)."""
        return now - min(self._called_at if self.speaks else self._called_at[:1])


def _dumb(info: StreamInfo, reason: str) -> AudioDeviceError:
    names = {"input": info.input_name, "output": info.output_name}
    what = " with ".join(f'{kind} "{name}"' for kind, name in names.items() if name)
    return AudioDeviceError(
        f"{what} was opened {SILENT_STARTS} times and delivers no sound: {reason}"
    )
