"""The sound card's two sides, the watch over it, and the port: without hardware and waiting."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from moshi_local import platform as system
from moshi_local.audio import card as live
from moshi_local.audio import playout
from moshi_local.audio.capture import INPUT_LIMIT_FRAMES, Reference
from moshi_local.audio.card import LiveAudio
from moshi_local.audio.counters import DeviceCounters
from moshi_local.audio.playout import Playout, shorten
from moshi_local.audio.portaudio import StreamInfo
from moshi_local.audio.resample import Resampler
from moshi_local.audio.ring import Ring
from moshi_local.events import DeviceLost, Event, Lag, MicrophoneDead, Notice, Opened, Resumed
from moshi_local.options import EchoMode
from moshi_local.port import Read
from moshi_mlx import AudioDeviceError
from moshi_mlx.testing import FRAME_RATE, FRAME_SIZE, SAMPLE_RATE
from tests.fakes.card import BLOCK, HandCard, Pulses, SimulatedCard, pass_through, simulated

CUSHION = round(playout.CUSHION_SECONDS * SAMPLE_RATE)
FRAME_SECONDS = 1 / FRAME_RATE


def frames(n: int, start: int = 0) -> np.ndarray:
    """n frames of samples that count up."""
    return np.arange(start, start + n * FRAME_SIZE, dtype=np.float32)


def read(port: LiveAudio) -> np.ndarray:
    frame = np.empty(FRAME_SIZE, np.float32)
    assert port.read(frame, 0.0) is Read.FRAME
    return frame


def by_hand(card: HandCard, **options) -> LiveAudio:
    """A port on a clock that stands still."""
    options = {"echo": EchoMode.off, "clock": lambda: 0.0, **options}
    return LiveAudio(card, sample_rate=SAMPLE_RATE, frame_size=FRAME_SIZE, **options)


def of_kind(events: list[Event], kind: type) -> list:
    return [event for event in events if isinstance(event, kind)]


class Underflow:
    """The flags of a callback that came too late to fill the speaker."""

    input_underflow = False
    input_overflow = False
    output_underflow = True
    output_overflow = False


# ------------------------------------------------------------------------------------- ring


def test_ring_gives_back_what_was_put_across_its_end() -> None:
    ring, out = Ring(10), np.zeros(7, np.float32)
    for start in range(0, 70, 7):
        ring.put(np.arange(start, start + 7, dtype=np.float32)[:5])
        assert ring.take(out) == 5
        assert out[:5].tolist() == list(range(start, start + 5))
    assert len(ring) == 0


def test_ring_drops_the_oldest() -> None:
    ring, out = Ring(8), np.zeros(4, np.float32)
    for start in (0, 4, 8):
        ring.put(np.arange(start, start + 4, dtype=np.float32))
    assert ring.keep_newest(4) == 8
    assert ring.take(out) == 4
    assert out.tolist() == [8, 9, 10, 11]
    assert ring.take(out) == 0


def test_ring_takes_a_block_longer_than_itself() -> None:
    ring, out = Ring(4), np.zeros(4, np.float32)
    ring.put(np.arange(11, dtype=np.float32))
    assert ring.keep_newest(2) == 9
    assert ring.take(out) == 2
    assert out[:2].tolist() == [9, 10]


# --------------------------------------------------------------------------------- resampling


@pytest.mark.parametrize("rate", [16_000, 44_100, 48_000])
def test_resampling_is_late_by_what_it_says(rate: int) -> None:
    resampler, n = Resampler(rate, SAMPLE_RATE), rate * FRAME_SIZE // SAMPLE_RATE
    sine = np.sin(2 * np.pi * 440 * np.arange(10 * n) / rate).astype(np.float32)
    out = np.zeros((10, FRAME_SIZE), np.float32)
    for i in range(10):
        resampler.fill(sine[i * n : (i + 1) * n], out[i])
    times = np.arange(10 * FRAME_SIZE) / SAMPLE_RATE - resampler.delay
    expected = np.sin(2 * np.pi * 440 * times)
    settled = slice(FRAME_SIZE, None)
    np.testing.assert_allclose(out.ravel()[settled], expected[settled], atol=1e-4)


# ------------------------------------------------------------------------------ the two sides


def test_sound_goes_through_unchanged_after_the_cushion() -> None:
    card = HandCard()
    with by_hand(card) as port:
        silent = card.call(frames(1))
        assert not silent.any()
        port.write(read(port))
        heard = card.call(frames(1, FRAME_SIZE))
        port.write(read(port))
        heard = np.concatenate([heard, card.call(frames(1))])
        levels = port.levels()
    assert not heard[:CUSHION].any()
    np.testing.assert_array_equal(heard[CUSHION:], frames(2)[: 2 * FRAME_SIZE - CUSHION])
    assert port.counters.gaps == 0
    assert port.counters.callbacks == 3 * FRAME_SIZE // BLOCK
    assert levels == (2 * FRAME_SIZE - 1, 2 * FRAME_SIZE - 1)
    assert card.stops == 1


def test_nothing_to_read_is_no_error() -> None:
    with by_hand(HandCard()) as port:
        assert port.read(np.empty(FRAME_SIZE, np.float32), 0.01) is Read.NOTHING


def test_a_frame_that_arrives_wakes_the_reader() -> None:
    card = HandCard()
    with by_hand(card) as port:
        timer = threading.Timer(0.05, card.call, [frames(1)])
        timer.start()
        began = time.monotonic()
        assert port.read(np.empty(FRAME_SIZE, np.float32), 5.0) is Read.FRAME
        assert time.monotonic() - began < 2.0
        timer.join()


def test_of_a_backlog_that_cannot_be_made_up_only_the_newest_frame_stays() -> None:
    card = HandCard()
    with by_hand(card) as port:
        card.call(frames(10))
        np.testing.assert_array_equal(read(port), frames(1, 9 * FRAME_SIZE))
        opened, lag = port.take_events(1.0)
        assert isinstance(opened, Opened)
        assert lag == Lag(time=1.0, input_dropped=9 / FRAME_RATE, output_dropped=0.0)
        assert port.take_events(2.0) == []


def test_a_fast_model_gets_more_of_the_backlog_in_order() -> None:
    card = HandCard()
    with by_hand(card) as port:
        card.call(frames(1))
        port.write(read(port))
        card.call(frames(50))
        got = np.concatenate([read(port) for _ in range(INPUT_LIMIT_FRAMES)])
        assert port.read(np.empty(FRAME_SIZE, np.float32), 0.0) is Read.NOTHING
    np.testing.assert_array_equal(got, frames(50)[-len(got) :])


def test_flags_are_counted() -> None:
    card = HandCard()
    with by_hand(card) as port:
        card.call(np.zeros(3 * BLOCK, np.float32), Underflow())
    assert port.statistics()["output_underflows"] == 3
    assert port.statistics()["xruns"] == 3


def test_frames_are_shortened_without_a_jump() -> None:
    ramp = np.linspace(0, 1, 1000, dtype=np.float32)
    for n in (1, 500, 900):
        out = shorten(ramp, n, 100)
        assert len(out) == 1000 - n
        assert (out[0], out[-1]) == (0, 1)
        assert np.abs(np.diff(out)).max() < 0.012


class Speaker:
    """A `Playout` on a clock that is set by hand, its frames full of ones."""

    def __init__(self, **options) -> None:
        self.now = 0.0
        self.counters = DeviceCounters()
        self.side = Playout(
            sample_rate=SAMPLE_RATE,
            device_rate=SAMPLE_RATE,
            frame_size=FRAME_SIZE,
            follow=False,
            counters=self.counters,
            clock=lambda: self.now,
            **options,
        )

    def write(self, level: float = 1.0, hurry: bool = False) -> None:
        self.side.write(np.full(FRAME_SIZE, level, np.float32), hurry=hurry)

    def play(self, seconds: float) -> np.ndarray:
        out = np.full(round(seconds * SAMPLE_RATE), np.nan, np.float32)
        for at in range(0, len(out), BLOCK):
            self.side.play(out[at : at + BLOCK], 0.0, None)
            self.now += BLOCK / SAMPLE_RATE
        return out


def test_a_second_gap_raises_the_cushion_and_a_calm_minute_lowers_it() -> None:
    speaker = Speaker()
    for n, cushion in enumerate((0.04, 0.04, 0.08, 0.12, 0.16, 0.16)):
        speaker.write()
        assert speaker.side.cushion == pytest.approx(cushion)
        played = speaker.play(cushion + FRAME_SECONDS + 0.1)
        # A block that is over when the frame comes is not counted.
        silence = round((cushion + (0.02 if n else 0.0)) * SAMPLE_RATE)
        assert not played[:silence].any()
        assert played[silence : silence + FRAME_SIZE].all()
        assert not played[silence + FRAME_SIZE :].any()
    assert speaker.counters.gaps == 6
    cushions = []
    for _ in range(9 * 750):
        speaker.write(level=0.0)
        speaker.play(FRAME_SECONDS)
        cushions.append(round(speaker.side.cushion, 2))
    assert sorted(set(cushions)) == [0.02, 0.04, 0.06, 0.08, 0.1, 0.12, 0.14, 0.16]
    assert cushions[-1] == 0.02
    assert cushions[740] == 0.16
    assert speaker.counters.gaps == 6
    speaker.write(0.0)
    assert speaker.side.slack == pytest.approx(0.02 + FRAME_SECONDS, abs=0.002)


def test_stalls_that_no_cushion_covers_leave_it_as_it_was() -> None:
    speaker = Speaker()
    for _ in range(4):
        speaker.write()
        assert speaker.side.cushion == 0.04
        speaker.play(2.0)
    assert speaker.counters.gaps == 4


def test_a_cushion_that_is_needed_stays() -> None:
    """Once a second a frame is so late that 15 ms are left."""
    speaker = Speaker()
    speaker.write()
    for n in range(3 * 750):
        late = 0.02 * (n % 12 == 0) - 0.02 * (n % 12 == 1)
        speaker.play(FRAME_SECONDS + late)
        speaker.write(0.0)
    assert speaker.side.cushion == playout.CUSHION_SECONDS
    assert speaker.counters.gaps == 0


@pytest.mark.parametrize("hurry", [False, True])
def test_what_waits_is_bounded(hurry: bool) -> None:
    speaker = Speaker()
    for _ in range(30):
        speaker.write(hurry=hurry)
    assert speaker.side.slack <= playout.LIMIT_SECONDS + FRAME_SECONDS
    total = 30 * FRAME_SECONDS + playout.CUSHION_SECONDS
    left = total - speaker.counters.output_dropped_seconds
    assert speaker.side.slack == pytest.approx(left, abs=0.001)


# --------------------------------------------------------------------------- in simulated time


@pytest.mark.parametrize("one_clock", [True, False])
@pytest.mark.parametrize("loud", [True, False])
@pytest.mark.parametrize(("stall", "step"), [(0.15, 0.04), (0.5, 0.04), (2.0, 0.04), (2.0, 0.065)])
def test_a_second_after_a_stall_all_is_as_before(
    one_clock: bool, loud: bool, stall: float, step: float
) -> None:
    """`stall` seconds without an answer; a model that needs `step` seconds for a frame."""
    pulses = Pulses(0.2)

    def sound(times: np.ndarray) -> np.ndarray:
        hum = 0.05 * np.sin(2 * np.pi * 440 * times) if loud else 0.0
        return pulses.sound(times) + hum

    card = SimulatedCard(sound, pulses.listen, one_clock=one_clock)
    stalls = [stall]

    def work(now: float) -> float:
        return stalls.pop() if now > 4.0 and stalls else step

    with simulated(card) as port:
        pass_through(card, port, 9.0, work)
        lags = of_kind(port.take_events(0.0), Lag)
        lag = port.lag()
    before = np.median(pulses.between(1.0, 3.8))
    after = np.array(pulses.between(4.0 + stall + 0.08 + 1.0 - before, 8.5))
    assert len(after) > 5
    np.testing.assert_allclose(after, before, atol=0.025)
    assert port.counters.gaps == 1
    assert lag < 0.03
    lost = sum(event.input_dropped + event.output_dropped for event in lags)
    assert lost == pytest.approx(stall, abs=0.1)


@pytest.mark.parametrize(("ppm", "rates"), [(100, (24_000, 24_000)), (-100, (44_100, 48_000))])
def test_two_clocks_that_differ_keep_the_delay(ppm: float, rates: tuple[int, int]) -> None:
    """`python -m benchmarks.drift` does this for an hour."""
    pulses, rng = Pulses(), np.random.default_rng(0)
    card = SimulatedCard(
        pulses.sound,
        pulses.listen,
        input_ppm=ppm,
        output_ppm=-ppm,
        input_rate=rates[0],
        output_rate=rates[1],
    )
    with simulated(card) as port:
        pass_through(card, port, 140.0, lambda now: 0.04 + 0.01 * rng.uniform(-1, 1))
        found = port.statistics()
    first, last = np.mean(pulses.between(50, 60)), np.mean(pulses.between(130, 139))
    lower_cushion = 0.001 * found["cushion_ms"] - playout.CUSHION_SECONDS
    assert last - first == pytest.approx(lower_cushion, abs=0.01)
    assert found["gaps"] == 0
    assert found["drift_ppm"] == pytest.approx(-2 * ppm, abs=100)
    assert np.ptp(pulses.between(60, 139)) < 0.04


@pytest.mark.parametrize("one_clock", [True, False])
@pytest.mark.parametrize("rate", [16_000, 24_000, 44_100, 48_000])
def test_the_delay_that_is_reported_is_the_real_one(one_clock: bool, rate: int) -> None:
    pulses = Pulses()
    card = SimulatedCard(
        pulses.sound, pulses.listen, input_rate=rate, output_rate=rate, one_clock=one_clock
    )
    with simulated(card) as port:
        pass_through(card, port, 12.0)
        reported = port.delay()
    assert reported is not None
    assert reported == pytest.approx(np.mean(pulses.between(9, 11)), abs=0.004)
    least = FRAME_SECONDS + 0.04 + playout.CUSHION_SECONDS
    assert least <= reported <= least + 0.03


@pytest.mark.parametrize(("buffers", "ppm"), [((10, 40), 60), ((40, 80), -60), ((80, 10), 60)])
def test_the_cards_buffers_may_have_any_length(buffers: tuple[int, int], ppm: float) -> None:
    """As CoreAudio's of 10 to 80 ms: no hole, and the clocks' difference found."""
    card = SimulatedCard(
        lambda times: 0.1 * np.sin(2000 * times),
        lambda times, pcm: None,
        input_ppm=ppm,
        output_ppm=-ppm,
        input_buffer=0.001 * buffers[0],
        output_buffer=0.001 * buffers[1],
    )
    random = np.random.default_rng(0)
    with simulated(card) as port:
        pass_through(card, port, 900.0, lambda now: 0.055 + abs(random.normal(0, 0.004)))
        found = port.statistics()
    assert found["gaps"] == 0
    assert found["drift_ppm"] == pytest.approx(-2 * ppm, abs=5)


@pytest.mark.parametrize("ppm", [0, 100])
def test_the_reference_stays_beside_the_echo(ppm: float) -> None:
    """What was played is, at the canceller, where it was in time: within 5 ms after a minute."""
    now = 0.0
    reference = Reference(
        sample_rate=SAMPLE_RATE, device_rate=SAMPLE_RATE, frame_size=FRAME_SIZE, one_clock=False
    )
    played, rate = 0, SAMPLE_RATE * (1 + 1e-6 * ppm)
    frame, places = np.zeros(FRAME_SIZE, np.float32), []
    for n in range(1, 1000):
        now = n * FRAME_SECONDS
        while (played + BLOCK) / rate <= now + 0.007:
            reference.ring.put(((played + np.arange(BLOCK)) / rate).astype(np.float32))
            played += BLOCK
        reference.take(frame, now + 0.007 - played / rate, 0.0)
        places.append(now - frame[-1])
    assert np.ptp(places[20:]) < 0.005


# ------------------------------------------------------------------- sleep, silence, and loss


def test_a_machine_that_slept_goes_on_with_what_is_heard_now() -> None:
    pulses = Pulses()
    card = SimulatedCard(pulses.sound, pulses.listen)
    with simulated(card) as port:
        pass_through(card, port, 3.0)
        port.take_events(0.0)
        card.asleep += 60.0  # the monotonic clock of Linux and macOS stands meanwhile
        pass_through(card, port, 6.0)
        (slept,) = of_kind(port.take_events(6.0), Resumed)
    assert slept.slept == pytest.approx(60.0, abs=0.1)
    assert port.counters.restarts == 0


def test_a_program_that_was_stopped_drops_its_backlog() -> None:
    """SIGSTOP: all clocks go on; the card wrote over its buffers."""
    card, now = HandCard(), [0.0]
    with by_hand(card, clock=lambda: now[0], wall=lambda: now[0]) as port:
        card.call(frames(1))
        read(port)
        now[0] += 20.0
        card.call(frames(4))
        np.testing.assert_array_equal(read(port), frames(1, 3 * FRAME_SIZE))
        events = port.take_events(0.0)
    assert of_kind(events, Resumed) == [Resumed(0.0, 20.0)]
    assert not of_kind(events, DeviceLost)


def test_a_dead_microphone_is_told_once_a_spell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "MACOS", True)
    monkeypatch.setattr(system, "microphone_permission", lambda: "authorized")
    card = SimulatedCard(
        lambda times: np.where((times > 10) & (times < 11), 0.1, 0.0), lambda times, pcm: None
    )
    told = []
    with simulated(card) as port:
        for second in range(1, 50):
            pass_through(card, port, float(second))
            told += [(second, e) for e in of_kind(port.take_events(0.0), MicrophoneDead)]
    assert [second for second, _ in told] == [4, 42], "a microphone that gave sound has 30 s"
    assert "System Settings, Privacy & Security, Microphone" in told[0][1].advice


def settle(card: SimulatedCard, port: LiveAudio, until: float) -> None:
    """As `pass_through`, but the other threads of the port need no simulated time."""
    while card.now < until:
        pass_through(card, port, card.now + 0.02)
        for thread in (port._helper, port._default._thread if port._default else None):
            if thread is not None:
                thread.join(5.0)


def test_a_microphone_that_is_allowed_later_is_opened_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On macOS it gives zeros until it is opened after the user has allowed it."""
    monkeypatch.setattr(system, "MACOS", True)
    monkeypatch.setattr(system, "microphone_permission", lambda: "denied")
    allowed_at = 12.0
    begun = 0.0

    class Card(SimulatedCard):
        def open(self) -> StreamInfo:
            nonlocal begun
            begun = self.now
            return super().open()

    def sound(times: np.ndarray) -> np.ndarray:
        return np.full(len(times), 0.1 if begun > allowed_at else 0.0)

    card = Card(sound, lambda times, pcm: None)
    events: list[Event] = []
    with simulated(card) as port:
        while card.now < 30.0:
            settle(card, port, card.now + 0.5)
            events += port.take_events(card.now)
    assert [type(e) for e in events if not isinstance(e, Lag)] == [Opened, MicrophoneDead, Opened]
    assert card.opens == 4, "at 0, 5, 10 and 15 s, and not when it is heard"
    assert port.levels()[0] > 0.0


@pytest.mark.parametrize("mac_os", [False, True])
def test_a_silent_one_that_is_allowed_or_elsewhere_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, mac_os: bool
) -> None:
    """It may have a switch, or what it comes from may be digital silence."""
    monkeypatch.setattr(system, "MACOS", mac_os)
    monkeypatch.setattr(system, "microphone_permission", lambda: "authorized")
    card = SimulatedCard(lambda times: 0.0 * times, lambda times, pcm: None)
    with simulated(card) as port:
        settle(card, port, 12.0)
    assert card.opens == 1


@pytest.mark.parametrize(("held_back", "opens"), [(0.15, 1), (0.25, 2)])
def test_sound_that_the_system_holds_back_is_left_behind(held_back: float, opens: int) -> None:
    card = SimulatedCard(lambda times: np.full(len(times), 0.1), lambda times, pcm: None)
    with simulated(card) as port:
        pass_through(card, port, 5.0)
        card.held_back = held_back
        pass_through(card, port, 6.0)
        assert card.opens == 1, "it may pass"
        for _ in range(200):
            pass_through(card, port, card.now + 0.02)
            if card.opens > 1:
                break
        lost = of_kind(port.take_events(0.0), DeviceLost)
    assert card.opens == opens
    assert [e.reason[:24] for e in lost] == ["the sound system holds b"][: opens - 1]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "REOPEN_SECONDS", 0.01)


def reopened(port: LiveAudio) -> list[Event]:
    """The events until the helper has opened the card again."""
    events: list[Event] = []
    frame = np.zeros(FRAME_SIZE, np.float32)
    deadline = time.monotonic() + 10
    while not of_kind(events, Opened) and time.monotonic() < deadline:
        port.read(frame, 0.02)
        events += port.take_events(0.0)
    return events


@pytest.mark.usefixtures("impatient")
def test_a_card_that_is_gone_is_tried_until_it_is_back() -> None:
    pulses = Pulses()
    card = SimulatedCard(pulses.sound, pulses.listen)
    frame = np.zeros(FRAME_SIZE, np.float32)
    with simulated(card) as port:
        pass_through(card, port, 2.0)
        port.take_events(0.0)
        card.ended = card.broken = True
        began = time.monotonic()
        for _ in range(12):
            assert port.read(frame, 0.02) is Read.NOTHING
            port.write(frame)
        assert time.monotonic() - began < 2.0, "the loop is never held up"
        assert [type(e) for e in port.take_events(0.0)] == [DeviceLost]
        assert port.levels() == (0.0, 0.0)
        card.broken = False
        assert [type(e) for e in reopened(port)] == [Opened]
        pass_through(card, port, 5.0)
    assert port.counters.restarts == 1
    assert len(pulses.between(3.0, 4.5)) == 3


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("before", "patience", "reason"),
    [
        (0.0, system.first_callback_seconds(), "did not start"),
        (1.0, live.CALLBACK_SECONDS, "stopped"),
    ],
)
def test_a_stream_that_does_not_call_is_opened_again(
    before: float, patience: float, reason: str
) -> None:
    card, now = HandCard(), [0.0]
    frame = np.zeros(FRAME_SIZE, np.float32)
    with by_hand(card, clock=lambda: now[0]) as port:
        if before:
            card.call(frames(1))
        port.read(frame, 0.0)
        now[0] += patience - 0.1
        port.read(frame, 0.0)
        assert not of_kind(port.take_events(0.0), DeviceLost)
        now[0] += 0.2
        assert port.read(frame, 0.0) is Read.NOTHING
        lost, _ = reopened(port)
    assert isinstance(lost, DeviceLost)
    assert reason in lost.reason
    assert card.opens == 2


@pytest.mark.parametrize("side", ["play", "hear"])
def test_one_side_that_falls_silent_is_enough(side: str) -> None:
    card, now = HandCard(one_clock=False), [0.0]
    block, frame = np.zeros(BLOCK, np.float32), np.zeros(FRAME_SIZE, np.float32)
    with by_hand(card, clock=lambda: now[0]) as port:
        card.call(frames(1))
        port.read(frame, 0.0)
        for _ in range(60):
            now[0] += 0.02
            getattr(card, side)(block, 0.0, None)
            port.read(frame, 0.0)
        assert len(of_kind(port.take_events(0.0), DeviceLost)) == 1


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("refusals", [0, 100])
def test_a_card_that_never_makes_a_sound_is_an_error(refusals: int) -> None:
    card, now = HandCard(refusals), [0.0]
    frame = np.zeros(FRAME_SIZE, np.float32)

    def wait_for_ever() -> None:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            now[0] += 1.0
            port.read(frame, 0.01)

    with (
        by_hand(card, clock=lambda: now[0]) as port,
        pytest.raises(AudioDeviceError, match=r"hand microphone.*5 times"),
    ):
        wait_for_ever()
    assert card.opens == live.SILENT_STARTS


def test_a_first_start_that_fails_is_an_error_at_once() -> None:
    card = SimulatedCard(lambda times: 0 * times, lambda times, pcm: None)
    card.broken = True
    with pytest.raises(AudioDeviceError, match="it is gone"), simulated(card):
        pass


def test_another_default_device_is_followed() -> None:
    asked: list[float] = []

    def changed() -> bool:
        asked.append(card.now)
        return len(asked) == 3

    pulses = Pulses()
    card = SimulatedCard(pulses.sound, pulses.listen)
    with simulated(card, default_changed=changed) as port:
        settle(card, port, 5.3)
        (lost,) = of_kind(port.take_events(0.0), DeviceLost)
        settle(card, port, 7.9)
    assert asked[:3] == pytest.approx([3.0, 4.0, 5.0], abs=0.2), "not while the card settles"
    assert len(asked) == 3, "nor after it was opened again"
    assert "default device has changed" in lost.reason
    assert card.opens == 2


def test_a_system_that_takes_its_time_to_name_the_default_holds_nothing_up() -> None:
    """CoreAudio may hold a lock while devices change."""
    answer = threading.Event()

    def changed() -> bool:
        answer.wait(30.0)
        return True

    card = SimulatedCard(lambda times: 0.1 + 0.0 * times, lambda times, pcm: None)
    with simulated(card, default_changed=changed) as port:
        began = time.monotonic()
        pass_through(card, port, 8.0)
        assert time.monotonic() - began < 5.0
        assert not of_kind(port.take_events(0.0), DeviceLost)
        answer.set()
        settle(card, port, 8.2)
        assert len(of_kind(port.take_events(0.0), DeviceLost)) == 1


def test_a_headset_that_needs_seconds_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """On macOS; AirPods have taken 6 s, and at each opening they begin again."""
    monkeypatch.setattr(system, "MACOS", True)
    card, now = HandCard(input_name="AirPods"), [0.0]
    frame = np.zeros(FRAME_SIZE, np.float32)
    with by_hand(card, clock=lambda: now[0]) as port:
        for _ in range(10):
            now[0] += 0.5
            port.read(frame, 0.0)
        card.call(frames(1))
        assert port.read(frame, 0.0) is Read.FRAME
        assert not of_kind(port.take_events(0.0), DeviceLost)
    assert card.opens == 1


def test_a_headset_that_begins_with_silence_is_not_called_dead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(system, "MACOS", True)
    card = SimulatedCard(
        lambda times: np.where(times > 6.0, 0.1, 0.0),
        lambda times, pcm: None,
        input_name="AirPods",
    )
    with simulated(card) as port:
        settle(card, port, 9.0)
        events = port.take_events(0.0)
    assert not of_kind(events, MicrophoneDead)
    assert card.opens == 1


@pytest.mark.usefixtures("impatient")
def test_a_bluetooth_headset_is_not_given_up() -> None:
    card, now = HandCard(output_name="Anna's AirPods Pro"), [0.0]
    frame = np.zeros(FRAME_SIZE, np.float32)
    with by_hand(card, clock=lambda: now[0]) as port:
        deadline = time.monotonic() + 10
        while card.opens < 3 * live.SILENT_STARTS and time.monotonic() < deadline:
            now[0] += 1.0
            port.read(frame, 0.01)
    assert card.opens >= 3 * live.SILENT_STARTS


@pytest.mark.usefixtures("impatient")
def test_no_sound_for_long_is_told_once_with_its_reason() -> None:
    card, now = HandCard(refusals=10**6), [0.0]
    frame = np.zeros(FRAME_SIZE, np.float32)
    notices: list[Notice] = []
    with by_hand(card, clock=lambda: now[0]) as port:
        card.call(frames(1))
        port.read(frame, 0.0)
        card.ended = True
        for _ in range(40):
            port.read(frame, 0.01)
            now[0] += 1.0
            notices += of_kind(port.take_events(0.0), Notice)
    assert [notice.text for notice in notices] == ["still no sound: it is gone"]


def test_a_sound_system_that_hangs_is_told() -> None:
    card, now, hung = HandCard(), [0.0], threading.Event()
    card.stop = lambda: bool(hung.wait(20.0))  # type: ignore[assignment,method-assign]
    frame = np.zeros(FRAME_SIZE, np.float32)
    notices: list[Notice] = []
    with by_hand(card, clock=lambda: now[0]) as port:
        card.call(frames(1))
        card.ended = True
        for _ in range(30):
            port.read(frame, 0.001)
            now[0] += 1.0
            notices += of_kind(port.take_events(0.0), Notice)
        hung.set()
    (notice,) = notices
    assert notice.text == "still no sound: the sound system does not answer: quit and start again"


def test_the_report_has_what_a_reader_wants() -> None:
    pulses = Pulses()
    card = SimulatedCard(pulses.sound, pulses.listen, input_rate=48_000)
    with simulated(card) as port:
        assert "delay_ms" not in port.statistics()
        pass_through(card, port, 3.0)
        found = port.statistics()
    assert found["delay_ms"] == pytest.approx(185, abs=20)
    assert (found["cushion_ms"], found["gaps"], found["restarts"]) == (40, 0, 0)
    assert (found["input_rate"], found["output_rate"]) == (48_000, 24_000)
    assert found["echo_cancelled"] == 0
    assert found["lag_ms"] < 20


def test_a_rate_that_makes_no_whole_frames_is_one_clear_error() -> None:
    with pytest.raises(AudioDeviceError, match="11111 Hz"), by_hand(HandCard(input_rate=11_111)):
        pass
