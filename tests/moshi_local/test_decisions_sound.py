"""Limits and constants of the sound, each with its value: ring, drift, both sides, devices."""

from __future__ import annotations

import time
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest

from moshi_local.audio import portaudio
from moshi_local.audio.capture import Capture, Reference
from moshi_local.audio.counters import DeviceCounters
from moshi_local.audio.devices import DeviceInfo
from moshi_local.audio.drift import DriftControl
from moshi_local.audio.echo import EchoCanceller, needs_canceller
from moshi_local.audio.playout import Playout, shorten
from moshi_local.audio.portaudio import PortAudioDevice
from moshi_local.audio.resample import Resampler
from moshi_local.audio.ring import Ring
from moshi_local.options import EchoMode
from moshi_mlx.arrays import Pcm
from moshi_mlx.testing import FRAME_SIZE, SAMPLE_RATE

BLOCK = 480


def ramp(n: int, start: int = 0) -> Pcm:
    return np.arange(start, start + n, dtype=np.float32)


# ------------------------------------------------------------------------------------- ring


def test_a_ring_keeps_what_fits_and_counts_what_came() -> None:
    ring, out = Ring(4), np.full(6, -1, np.float32)
    ring.put(ramp(4))
    assert (len(ring), ring.written, ring.taken) == (4, 4, 0)
    assert ring.take(out[:2]) == 2
    ring.put(ramp(2, 4))
    assert ring.take(out) == 4
    assert out.tolist() == [2, 3, 4, 5, -1, -1]
    ring.put(ramp(7))
    assert ring.written == 4 + 2 + 7
    assert ring.keep_newest(4) == 3
    assert ring.take(out) == 4
    assert out[:4].tolist() == [3, 4, 5, 6]


def test_a_ring_skips_what_there_is_and_no_more() -> None:
    ring = Ring(8)
    ring.put(ramp(5))
    assert [ring.skip(n) for n in (-3, 0, 2, 9, 1)] == [0, 0, 2, 3, 0]
    assert (len(ring), ring.taken) == (0, 5)
    ring.put(ramp(3))
    assert ring.keep_newest(5) == 0
    assert len(ring) == 3


# -------------------------------------------------------------------------- rates and clocks


@pytest.mark.parametrize(
    ("source", "target", "held"), [(48_000, 24_000, 24), (24_000, 48_000, 48), (44_100, 24_000, 24)]
)
def test_what_a_resampler_holds_back(source: int, target: int, held: int) -> None:
    resampler = Resampler(source, target)
    assert resampler.ratio == target / source
    assert resampler.delay == held / target
    first = resampler.process(np.zeros(source // 10, np.float32))
    assert len(first) <= held + target // 10
    assert len(first) > target // 10


def test_a_resampler_fills_exactly_and_keeps_the_rest() -> None:
    resampler, out = Resampler(24_000, 24_000), np.full(100, 9, np.float32)
    resampler.fill(np.zeros(10, np.float32), out)
    assert not out.any(), "what is not there yet is silence"
    total = 0
    for _ in range(20):
        resampler.fill(np.ones(100, np.float32), out)
        total += int((out > 0.5).sum())
    assert 1900 <= total < 2000
    stretched = [len(Resampler(24_000, 24_000).process(np.ones(24_000, np.float32), c)) for c in
                 (-0.01, 0.0, 0.01)]  # fmt: skip
    assert np.diff(stretched) == pytest.approx([240, 240], abs=5)


def test_drift_is_a_pi_controller_with_limits() -> None:
    control = DriftControl(20.0)
    assert control.update(0.01, 0.08) == pytest.approx(0.0004 / 20 + 0.0004 * 0.08 / 1600)
    assert control.drift == pytest.approx(0.0004 * 0.08 / 1600)
    level = 0.0004 + 0.04 * (0.01 - 0.0004)
    drift = (0.0004 + level) * 0.08 / 1600
    assert control.update(0.01, 0.08) == control.correction
    assert control.correction == pytest.approx(level / 20 + drift)
    whole = DriftControl(20.0)
    assert whole.update(0.01, 8.0) == pytest.approx(0.01 / 20 + 0.01 * 8 / 1600)
    assert [DriftControl(20.0).update(sign * 1e3, 2.0) for sign in (1, -1)] == [0.001, -0.001]
    full = DriftControl(20.0)
    full.update(1e6, 2.0)
    assert full.drift == 0.001


def test_each_flag_is_counted_for_itself() -> None:
    names = ("input_underflow", "input_overflow", "output_underflow", "output_overflow")
    counters = DeviceCounters()
    assert not any(asdict(counters).values())
    for times, name in enumerate(names, 1):
        for _ in range(times):
            counters.count(SimpleNamespace(**{n: n == name for n in names}))
    counters.count(None)
    assert [getattr(counters, f"{name}s") for name in names] == [1, 2, 3, 4]
    assert counters.xruns == 10


# ----------------------------------------------------------------------------- the microphone


class Microphone:
    """A `Capture` on clocks that are set by hand."""

    def __init__(self, device_rate: int = SAMPLE_RATE) -> None:
        self.now, self.wall = 1.0, 100.0
        self.rate = device_rate
        self.counters = DeviceCounters()
        self.side = Capture(
            sample_rate=SAMPLE_RATE,
            device_rate=device_rate,
            frame_size=FRAME_SIZE,
            counters=self.counters,
            clock=lambda: self.now,
            wall=lambda: self.wall,
        )
        self.heard = 0

    def hear(self, samples: int, block: int = BLOCK) -> None:
        """Blocks that come when their last sample has been heard."""
        for _ in range(samples // block):
            self.now += block / self.rate
            self.side.hear(ramp(block, self.heard), block / self.rate, None)
            self.heard += block

    def take(self) -> Pcm:
        frame = np.full(FRAME_SIZE, np.nan, np.float32)
        self.side.take(frame)
        return frame


def test_when_a_frame_was_heard_and_how_old_it_is() -> None:
    mic = Microphone()
    mic.hear(FRAME_SIZE + 2 * BLOCK)
    assert mic.side.waits == pytest.approx(0.12)
    mic.now += 0.03
    assert mic.side.waits == pytest.approx(0.15)
    assert mic.take().tolist() == ramp(FRAME_SIZE).tolist()
    assert mic.side.heard_at == pytest.approx(1.0)
    assert mic.side.level == FRAME_SIZE - 1
    assert mic.side.waits == pytest.approx(0.07)
    mic.hear(2 * BLOCK)
    mic.take()
    assert mic.side.heard_at == pytest.approx(1.11), "the card was late by 30 ms"
    assert mic.counters.callbacks == mic.side.calls == 8


def test_what_waits_beyond_a_frame() -> None:
    mic = Microphone()
    found = []
    for _ in range(9):
        mic.hear(BLOCK)
        found.append((mic.side.backlog, round(mic.side.lag, 3), mic.side.behind))
    assert found[2:5] == [(0, 0.0, False), (1, 0.0, True), (1, 0.02, True)]
    assert found[7:] == [(2, 0.08, True), (2, 0.1, True)]


@pytest.mark.parametrize(
    ("block", "extra", "behind"), [(480, 1, False), (480, 2, True), (320, 0, False)]
)
def test_more_than_a_blocks_phase_is_behind(block: int, extra: int, behind: bool) -> None:
    mic = Microphone()
    if block == 320:  # 480 samples wait then: one and a half blocks, and not more
        mic.hear(480)
    mic.hear(FRAME_SIZE + extra * block, block)
    mic.take()
    assert mic.side.behind is behind


def test_waiting_for_a_frame_says_whether_it_is_there() -> None:
    mic = Microphone()
    mic.hear(FRAME_SIZE - BLOCK)
    began = time.monotonic()
    assert not mic.side.wait(0.05)
    assert time.monotonic() - began >= 0.04
    mic.hear(BLOCK)
    assert mic.side.wait(0.0)
    mic.take()
    mic.hear(3 * BLOCK)
    assert not mic.side.wait(0.0), "the bell that rang is for the frame before"
    assert not mic.side.wait(0.0)


def test_a_backlog_is_dropped_in_whole_frames() -> None:
    mic = Microphone()
    mic.hear(3 * FRAME_SIZE + BLOCK)
    assert [mic.side.drop_all_but(n) for n in (4, 3)] == [0, 0]
    assert mic.side.drop_all_but(1) == 2 * FRAME_SIZE
    assert mic.counters.input_dropped_seconds == pytest.approx(0.16)
    assert mic.take()[0] == 2 * FRAME_SIZE
    assert mic.side.lag == 0.0


def test_the_longest_pause_is_by_the_clock_on_the_wall() -> None:
    mic = Microphone()
    for pause in (1.0, 7.0, 2.0):
        mic.wall += pause
        mic.hear(BLOCK)
    assert mic.side.longest_pause == 7.0
    assert mic.side.called_at == 110.0


def test_a_microphone_with_another_rate_gives_frames_at_ours() -> None:
    mic = Microphone(48_000)
    assert mic.side.frame_samples == 2 * FRAME_SIZE
    assert mic.side.delay == Resampler(48_000, SAMPLE_RATE).delay
    assert Microphone().side.delay == 0.0
    mic.hear(4 * FRAME_SIZE, 2 * BLOCK)
    first, second = mic.take(), mic.take()
    assert second[-1] - second[0] == pytest.approx(2 * (FRAME_SIZE - 1), rel=1e-3)
    assert np.isfinite(first).all()


# ---------------------------------------------------------------------------- the reference


def reference(one_clock: bool) -> Reference:
    return Reference(
        sample_rate=SAMPLE_RATE,
        device_rate=SAMPLE_RATE,
        frame_size=FRAME_SIZE,
        one_clock=one_clock,
    )


def test_what_the_reference_lacks_is_left_out_when_it_comes() -> None:
    side, frame = reference(one_clock=True), np.full(FRAME_SIZE, 9, np.float32)
    side.ring.put(ramp(1000, 1))
    side.take(frame, 0.0, 0.0)
    assert frame.tolist() == [*ramp(1000, 1), *[0.0] * 920]
    side.ring.put(ramp(920 + FRAME_SIZE, 1001))
    side.take(frame, 0.0, 0.0)
    assert frame.tolist() == ramp(FRAME_SIZE, 1 + FRAME_SIZE).tolist()
    side.ring.put(ramp(2 * FRAME_SIZE))
    side.skip(0.08)
    side.take(frame, 0.0, 0.0)
    assert frame[0] == FRAME_SIZE


@pytest.mark.parametrize(
    ("waiting", "since_block", "mic_waits", "skipped"),
    [(719, 0.0, 0.0, None), (720, 0.0, 0.0, 0), (721, 0.0, 0.0, 1), (3120, 0.0, 0.0, 2400),
     (480, 0.01, 0.0, 0), (960, 0.0, 0.01, 0), (479, 0.01, 0.0, None)],
)  # fmt: skip
def test_on_two_clocks_the_reference_is_30_ms_ahead(
    waiting: int, since_block: float, mic_waits: float, skipped: int | None
) -> None:
    side, frame = reference(one_clock=False), np.full(FRAME_SIZE, 9, np.float32)
    side.ring.put(np.ones(FRAME_SIZE + waiting, np.float32))
    side.take(frame, since_block, mic_waits + 1e-9 * (skipped is None))
    if skipped is None:
        assert not frame.any()
        assert side.ring.taken == 0
    else:
        assert frame.any()
        assert side.ring.taken == FRAME_SIZE + skipped


def test_the_reference_is_aligned_again_beyond_a_tenth_of_a_second() -> None:
    for seconds, aligned in ((0.09, False), (0.11, True)):
        side, frame = reference(one_clock=False), np.zeros(FRAME_SIZE, np.float32)
        side.ring.put(np.ones(FRAME_SIZE + 720, np.float32))
        side.take(frame, 0.0, 0.0)
        side.ring.put(np.ones(FRAME_SIZE + round(seconds * SAMPLE_RATE), np.float32))
        side.take(frame, 0.0, 0.0)
        left = len(side.ring)
        assert left == (720 if aligned else 720 + round(seconds * SAMPLE_RATE))


# ------------------------------------------------------------------------------- the speaker


class Speaker:
    """A `Playout` on a clock that is set by hand."""

    def __init__(self, **options: object) -> None:
        self.now = 0.0
        self.counters = DeviceCounters()
        known = {"sample_rate": SAMPLE_RATE, "device_rate": SAMPLE_RATE, "follow": False}
        self.side = Playout(
            frame_size=FRAME_SIZE,
            counters=self.counters,
            clock=lambda: self.now,
            **{**known, **options},  # type: ignore[arg-type]
        )

    def play(self, blocks: int, ahead: float = 0.0) -> Pcm:
        out = np.full(blocks * BLOCK, np.nan, np.float32)
        for at in range(0, len(out), BLOCK):
            self.side.play(out[at : at + BLOCK], ahead, None)
            self.now += BLOCK / SAMPLE_RATE
        return out

    def write(self, level: float = 1.0, early: float = 0.0, hurry: bool = False) -> None:
        self.now -= early
        self.side.write(np.full(FRAME_SIZE, level, np.float32), hurry=hurry)
        self.now += early


@pytest.mark.parametrize(
    ("level", "early", "dropped"),
    [(0.005, 0.009, 0.0), (0.005, 0.012, 0.012), (0.02, 0.012, 0.0), (0.02, 0.019, 0.0),
     (0.02, 0.022, 0.022)],
)  # fmt: skip
def test_frames_that_come_early_six_times_are_shortened(
    level: float, early: float, dropped: float
) -> None:
    """By as much, from 10 ms on where it is quiet, from 20 ms on where it is not."""
    speaker = Speaker()
    speaker.write(level)
    speaker.play(3)
    for _ in range(5):
        speaker.write(level, early)
        speaker.play(4)
        assert speaker.counters.output_dropped_seconds == 0.0
    speaker.write(level, early)
    assert speaker.counters.output_dropped_seconds == pytest.approx(dropped)
    speaker.play(4)
    speaker.write(level, early)
    assert speaker.counters.output_dropped_seconds == pytest.approx(dropped), "once"


def test_in_a_hurry_what_is_above_the_cushion_goes_at_once() -> None:
    speaker = Speaker()
    speaker.write()
    assert speaker.side.slack == pytest.approx(0.12)
    assert speaker.side.lag == 0.0
    speaker.write(hurry=True)
    assert speaker.counters.output_dropped_seconds == pytest.approx(0.075), "all but 5 ms"
    assert speaker.side.slack == pytest.approx(0.125)
    assert speaker.side.lag == pytest.approx(0.005)


def test_what_comes_when_240_ms_wait_is_left_out() -> None:
    speaker = Speaker()
    for slack, dropped in ((0.12, 0.0), (0.20, 0.0), (0.28, 0.0), (0.28, 0.08), (0.28, 0.16)):
        speaker.write()
        assert speaker.side.slack == pytest.approx(slack)
        assert speaker.counters.output_dropped_seconds == pytest.approx(dropped)


def test_when_a_frame_is_at_the_speaker() -> None:
    speaker = Speaker()
    speaker.write()
    assert speaker.side.played_at == pytest.approx(0.04)
    speaker.play(3, ahead=0.01)
    assert speaker.side.since_block == pytest.approx(0.02)
    speaker.write(-0.25)
    # Its block began at 40 ms and is heard 10 ms later; 80 ms of it and others were before.
    assert speaker.side.played_at == pytest.approx(0.04 + 0.01 + 0.08)
    assert speaker.side.level == 0.25
    assert speaker.side.calls == 3


def test_a_hole_is_counted_once_and_a_late_second_one_raises_nothing() -> None:
    speaker = Speaker()
    speaker.play(5)
    assert speaker.counters.gaps == 0, "nothing was promised yet"
    for pause, cushion, gaps in ((0.0, 0.04, 1), (601.0, 0.04, 2), (599.0, 0.08, 3)):
        speaker.now += pause
        speaker.side._starved_at += pause
        speaker.write()
        assert speaker.side.cushion == pytest.approx(cushion)
        speaker.play(10)
        assert speaker.counters.gaps == gaps


def test_several_callbacks_at_once_are_one_buffer() -> None:
    speaker = Speaker()
    speaker.now = 50.0
    speaker.write()
    out = np.zeros(BLOCK, np.float32)
    for late in (0.0, 0.004, 0.0):
        speaker.now += late
        speaker.side.play(out, 0.0, None)
    speaker.now += 1.0
    assert speaker.side.slack == pytest.approx(0.12 - 0.06 - 0.06), "all three are one"
    speaker = Speaker()
    speaker.write()
    speaker.side.play(out, 0.0, None)
    speaker.now += 0.006
    speaker.side.play(out, 0.0, None)
    speaker.now += 1.0
    assert speaker.side.slack == pytest.approx(0.12 - 0.04 - 0.02), "more than a quarter later"


def test_all_that_is_played_is_the_reference_too() -> None:
    ring = Ring(10_000)
    speaker = Speaker(played=ring)
    speaker.write()
    played = speaker.play(7)
    kept = np.zeros(7 * BLOCK, np.float32)
    assert ring.take(kept) == 7 * BLOCK
    assert kept.tolist() == played.tolist()
    assert played.tolist() == [0.0] * 960 + [1.0] * 1920 + [0.0] * 480


def test_a_speaker_on_our_clock_and_rate_has_no_delay() -> None:
    assert (Speaker().side.delay, Speaker().side.drift) == (0.0, 0.0)
    assert Speaker(device_rate=48_000).side.delay == Resampler(24_000, 48_000).delay
    assert Speaker(follow=True).side.delay == Resampler(24_000, 24_000).delay


def test_a_frame_is_shortened_in_its_middle() -> None:
    pcm = ramp(100)
    out = shorten(pcm, 20, 10)
    assert len(out) == 80
    assert out[:35].tolist() == pcm[:35].tolist()
    assert out[45:].tolist() == pcm[65:].tolist()
    assert out[35:45] == pytest.approx(np.linspace(35, 64, 10))


# ---------------------------------------------------------------------------------- echo


def test_the_echo_is_cancelled_but_with_headphones() -> None:
    answers = [(mode, needs_canceller(mode, name)) for name in ("AirPods", "Built-in Output")
               for mode in (EchoMode.on, EchoMode.off, EchoMode.auto)]  # fmt: skip
    assert [answer for _, answer in answers] == [True, False, False, True, False, True]


def test_what_a_canceller_adds_to_the_delay() -> None:
    def delay(**options: bool) -> float:
        return EchoCanceller(SAMPLE_RATE, FRAME_SIZE, **options).delay * SAMPLE_RATE

    assert delay() == pytest.approx(223)
    assert delay(noise_suppression=True) == pytest.approx(223 + 175)
    assert delay(cancel=False, noise_suppression=True) == pytest.approx(175)
    assert delay(cancel=False) == 0.0
    idle = EchoCanceller(SAMPLE_RATE, FRAME_SIZE, cancel=False)
    heard = ramp(FRAME_SIZE)
    assert idle.process(heard, heard) is heard
    with pytest.raises(ValueError, match="a frame of 481 samples is not whole blocks of 20 ms"):
        EchoCanceller(SAMPLE_RATE, 481)


# -------------------------------------------------------------------------------- PortAudio


@pytest.mark.parametrize(
    ("said", "taken"), [(0.03, 0.03), (1.99, 1.99), (0.0, 0.08), (-1.0, 0.08), (2.0, 0.08)]
)
def test_times_that_cannot_be_are_80_ms(said: float, taken: float) -> None:
    ages, aheads = [], []
    clock = SimpleNamespace(
        currentTime=5.0, inputBufferAdcTime=5.0 - said, outputBufferDacTime=5.0 + said
    )
    heard = np.ones((4, 1), np.float32)
    portaudio._Mixer(1)(heard, lambda pcm, age, flags: ages.append(age), clock, None)
    portaudio._Spreader(1)(heard, lambda pcm, ahead, flags: aheads.append(ahead), clock, None)
    assert ages == aheads == [pytest.approx(taken)]


@pytest.mark.parametrize(("channels", "expected"), [(1, 1.0), (2, 1.5), (3, 1.0)])
@pytest.mark.parametrize("size", [4, 5000])
def test_channels_that_are_heard_become_one(channels: int, expected: float, size: int) -> None:
    got: list[Pcm] = []
    clock = SimpleNamespace(currentTime=1.0, inputBufferAdcTime=0.9)
    heard = np.tile(np.arange(1, 1 + channels, dtype=np.float32), (size, 1))
    portaudio._Mixer(channels)(heard, lambda pcm, age, flags: got.append(pcm.copy()), clock, None)
    assert got[0].tolist() == [expected] * size


@pytest.mark.parametrize(("channels", "expected"), [(1, [7]), (2, [7, 7]), (4, [7, 7, 0, 0])])
@pytest.mark.parametrize("size", [4, 5000])
def test_one_channel_is_played_on_the_first_two(
    channels: int, expected: list[int], size: int
) -> None:
    played = np.full((size, channels), np.nan, np.float32)
    clock = SimpleNamespace(currentTime=1.0, outputBufferDacTime=1.1)

    def play(pcm: Pcm, ahead: float, flags: object) -> None:
        pcm[:] = 7

    portaudio._Spreader(channels)(played, play, clock, None)
    assert played.tolist() == [expected] * size


def test_the_rates_that_are_tried_and_in_which_order() -> None:
    devices = tuple(DeviceInfo(n, "", 1, 1, rate) for n, rate in enumerate((44_100, 0, 11_021)))
    assert list(PortAudioDevice()._rates(devices)) == [24_000, 44_100, 48_000, 16_000]
    assert list(PortAudioDevice(rate=8_000)._rates(devices)) == [8_000]
    assert list(PortAudioDevice(sample_rate=16_000)._rates(devices[:1])) == [16_000, 44_100, 48_000]


def test_a_call_that_does_not_return_is_busy() -> None:
    assert not portaudio.busy()
    with portaudio._in_portaudio():
        assert portaudio.busy()
        assert not portaudio.busy(5.0)
        time.sleep(0.01)
        assert portaudio.busy(0.01)
    assert not portaudio.busy()
