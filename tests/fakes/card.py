"""Sound cards without hardware: one that a test calls by hand, one on simulated time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from moshi_local.audio.card import LiveAudio
from moshi_local.audio.portaudio import Flags, Hear, Play, StreamInfo
from moshi_local.options import EchoMode
from moshi_local.port import Read
from moshi_mlx import AudioDeviceError
from moshi_mlx.arrays import Pcm
from moshi_mlx.testing import FRAME_SIZE, SAMPLE_RATE

BLOCK = 480
BLOCK_SECONDS = 0.02
Times = NDArray[np.float64]
Sound = Callable[[Times], NDArray[np.floating]]
"""What is in the room at times [n] (seconds): samples [n]."""


class HandCard:
    """A card whose callbacks the test makes; it refuses the starts that it is told to."""

    def __init__(self, refusals: int = 0, **info: object) -> None:
        self.info = StreamInfo(
            **{
                "input_name": "hand microphone",
                "output_name": "hand speaker",
                "input_rate": SAMPLE_RATE,
                "output_rate": SAMPLE_RATE,
                "one_clock": True,
                **info,
            }  # type: ignore[arg-type]
        )
        self.refusals = refusals
        self.opens = self.stops = 0
        self.ended = False
        self.play: Play | None = None
        self.hear: Hear | None = None

    def open(self) -> StreamInfo:
        """Refuses `refusals` times after the first."""
        self.opens += 1
        if 1 < self.opens <= 1 + self.refusals:
            raise AudioDeviceError("it is gone")
        self.ended = False
        return self.info

    def start(self, play: Play, hear: Hear) -> None:
        """From now on the test may call."""
        self.play, self.hear = play, hear

    def stop(self) -> None:
        """Counts."""
        self.stops += 1

    def call(self, heard: Pcm, flags: Flags | None = None) -> Pcm:
        """What the speaker gets for `heard`, block by block."""
        played = np.full_like(heard, np.nan)
        assert self.play is not None and self.hear is not None
        for at in range(0, len(heard), BLOCK):
            self.play(played[at : at + BLOCK], 0.0, None)
            self.hear(heard[at : at + BLOCK], BLOCK / self.info.input_rate, flags)
        return played


@dataclass
class _Side:
    """One direction: blocks at the times of a clock that may be fast by `ppm`.

    The card's buffer is `buffer` seconds long: a callback has 20 ms of it, or all where that is
    less, and several come at once where it is more.
    """

    rate: int
    ppm: float
    started: float
    buffer: float
    block: int = field(init=False)
    burst: int = field(init=False)
    samples: int = 0

    def __post_init__(self) -> None:
        self.block = round(min(self.buffer, BLOCK_SECONDS) * self.rate)
        self.burst = max(1, round(self.buffer / BLOCK_SECONDS))
        self.true_rate = self.rate * (1 + 1e-6 * self.ppm)

    def times(self) -> Times:
        """Of the samples of the next block (seconds, float64)."""
        return self.started + (self.samples + np.arange(self.block)) / self.true_rate

    def due(self, late: bool) -> float:
        """When the next callback comes: a microphone's after its burst, a speaker's before."""
        bursts = self.samples // (self.burst * self.block) + late
        return self.started + bursts * self.burst * self.block / self.true_rate


class SimulatedCard:
    """A card on simulated time: `now` goes on with `advance`, and the callbacks come on their own
    clocks. `sound` is heard; what is played goes to `listener` with its times.

    `input_buffer` and `output_buffer` (seconds) are the card's own: callbacks of 20 ms come several
    at once where it is longer, as from CoreAudio.
    """

    def __init__(
        self,
        sound: Sound,
        listener: Callable[[Times, Pcm], None],
        *,
        input_ppm: float = 0.0,
        output_ppm: float = 0.0,
        input_rate: int = SAMPLE_RATE,
        output_rate: int = SAMPLE_RATE,
        one_clock: bool = False,
        input_buffer: float = BLOCK_SECONDS,
        output_buffer: float = BLOCK_SECONDS,
        input_name: str = "simulated microphone",
    ) -> None:
        self.now = 0.0
        self.asleep = 0.0
        """Added to the clock on the wall (seconds)."""
        self.ended = False
        self.held_back = 0.0
        """By this much what is heard is older: the system holds it back (seconds)."""
        self.broken = False
        """While it is, `open` is refused."""
        self.opens = 0
        self._sound, self._listener = sound, listener
        self._ppm = (input_ppm, output_ppm)
        self._buffers = (input_buffer, output_buffer)
        self.info = StreamInfo(input_name, "simulated speaker", input_rate, output_rate, one_clock)
        self._running = False

    def open(self) -> StreamInfo:
        """Succeeds unless it is broken."""
        if self.broken:
            raise AudioDeviceError("it is gone")
        self.opens += 1
        self.ended = False
        return self.info

    def start(self, play: Play, hear: Hear) -> None:
        """The output's clock starts 7 ms after the input's, if it is another one."""
        self._play, self._hear = play, hear
        self._input = _Side(self.info.input_rate, self._ppm[0], self.now, self._buffers[0])
        later = 0.0 if self.info.one_clock else 0.007
        start, buffer = self.now + later, self._buffers[1]
        self._output = _Side(self.info.output_rate, self._ppm[1], start, buffer)
        self._running = True

    def stop(self) -> None:
        """No more callbacks."""
        self._running = False

    def clock(self) -> float:
        """The monotonic clock (seconds)."""
        return self.now

    def wall(self) -> float:
        """The clock on the wall (seconds)."""
        return 1e9 + self.now + self.asleep

    def advance(self, until: float) -> None:
        """Let the time pass, with the callbacks that are due."""
        while self._running and not self.ended and min(self._due()) <= until:
            self.next_block()
        self.now = max(self.now, until)

    def next_block(self) -> None:
        """Let the time pass until a callback, or 20 ms where none comes."""
        if not self._running or self.ended:
            self.now += 0.02
            return
        hear, play = self._due()
        self.now = max(self.now, min(hear, play))
        if play <= hear:
            self._speak()
        if hear <= play:
            self._listen()

    def _due(self) -> tuple[float, float]:
        """When microphone and speaker call next."""
        hear = self._input.due(late=True)
        return hear, hear if self.info.one_clock else self._output.due(late=False)

    def _speak(self) -> None:
        side = self._output
        out = np.full(side.block, np.nan, np.float32)
        times = side.times()
        self._play(out, float(times[0] - side.due(late=False)), None)
        if self.info.one_clock:
            times += side.block / side.true_rate
        side.samples += side.block
        self._listener(times, out)

    def _listen(self) -> None:
        side = self._input
        times, end = side.times(), side.due(late=True)
        side.samples += side.block
        heard = self._sound(times).astype(np.float32)
        self._hear(heard, self.held_back + float(end - times[0]), None)


def simulated(card: SimulatedCard, **options: object) -> LiveAudio:
    """A port on the card's clocks, without echo cancellation if nothing else is said."""
    options = {"echo": EchoMode.off, **options}
    return LiveAudio(
        card,
        sample_rate=SAMPLE_RATE,
        frame_size=FRAME_SIZE,
        clock=card.clock,
        wall=card.wall,
        **options,  # type: ignore[arg-type]
    )


def pass_through(
    card: SimulatedCard,
    port: LiveAudio,
    until: float,
    step: Callable[[float], float] = lambda now: 0.04,
    answer: Callable[[Pcm], Pcm] = lambda frame: frame,
) -> None:
    """Answer each frame, with itself if nothing else is said, `step(now)` seconds after it was
    read."""
    frame = np.zeros(FRAME_SIZE, np.float32)
    while card.now < until:
        if port.read(frame, 0.0) is Read.FRAME:
            card.advance(card.now + step(card.now))
            port.write(answer(frame))
        else:
            card.next_block()


class Pulses:
    """A short pulse once in `period` seconds, and the delay with which each is played."""

    WIDTH = 0.001
    LEAST = 0.1
    """A delay is taken to be from this to this and a period (seconds)."""

    def __init__(self, period: float = 0.5) -> None:
        self.period = period
        self.delays: list[tuple[float, float]] = []
        """(when it was heard, seconds until it was played)."""
        self._peak = (0.0, 0.0)

    def sound(self, times: Times) -> Times:
        """The pulses, in the middle of their periods."""
        away = (times % self.period) - self.period / 2
        return 0.5 * np.exp(-0.5 * (away / self.WIDTH) ** 2)

    def listen(self, times: Times, played: Pcm) -> None:
        """Find them again: each at its highest sample."""
        at = int(np.argmax(played))
        if played[at] > max(0.1, self._peak[1]):
            self._peak = (float(times[at]), float(played[at]))
        elif self._peak[1] and times[0] - self._peak[0] > 0.02:
            when = self._peak[0]
            heard = (np.floor((when - self.LEAST) / self.period - 0.5) + 0.5) * self.period
            self.delays.append((float(heard), when - float(heard)))
            self._peak = (0.0, 0.0)

    def between(self, start: float, end: float) -> list[float]:
        """The delays of what was heard from `start` to `end` (seconds)."""
        return [delay for heard, delay in self.delays if start <= heard < end]
