"""Captions: what the user says in a conversation, both sides in files, and talk's frames first."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import soundfile
from rich.console import Console

import moshi_mlx
from benchmarks import kill_recordings
from moshi_local.assembly import load_model
from moshi_local.captions import WAITING_SECONDS, Captions, LiveCaptions, Slack
from moshi_local.cli import main
from moshi_local.events import (
    CaptionsBehind,
    CaptionsLost,
    Event,
    FrameDone,
    Notice,
    ResetDone,
    SilentFrame,
    WordHeard,
)
from moshi_local.listening import Listening
from moshi_local.machine.doctor import _together
from moshi_local.machine.verdict import Together, Verdict
from moshi_local.observers.record import Recorder
from moshi_local.options import ModelSource
from moshi_local.terminal.lines import Transcript
from moshi_local.terminal.screen import ScreenState
from moshi_mlx import ArgumentError, Frame, MoshiError, Stt, Timing, TurnEnded, VerbError, Word
from moshi_mlx.arrays import Pcm
from moshi_mlx.footprint import Needs
from moshi_mlx.hub import bundled_folder
from moshi_mlx.testing import FRAME_RATE, FRAME_SIZE, SAMPLE_RATE, FakeSession
from tests import rig
from tests.fakes.frames import frame_done, spoken
from tests.fixtures import make_stt
from tests.moshi_local.test_doctor import MAC

QUESTION = bundled_folder("nano") / "question.wav"
FRAME = 1 / FRAME_RATE
QUIET = np.zeros(FRAME_SIZE, np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_stt.write(tmp_path_factory.mktemp("models") / "stt")


def heard(text: str, start: float, end: float) -> WordHeard:
    return WordHeard(end, Word(text, start, end))


class Writer:
    """Writes a word for each frame, named by its level, LATE frames after it was heard."""

    LATE = 2

    def __init__(self) -> None:
        self.seconds = 0.0
        self.error: Exception | None = None
        self.resets = 0
        self._levels: list[float] = []
        self._written = 0

    def _words(self, until: int) -> tuple[Word, ...]:
        first, self._written = self._written, max(self._written, until)
        return tuple(
            Word(f"{self._levels[i]:.0f}", i * FRAME, (i + 1) * FRAME)
            for i in range(first, self._written)
        )

    def step(self, pcm: Pcm, *, hold_text: bool = False) -> SilentFrame:
        if self.error is not None:
            raise self.error
        time.sleep(self.seconds)
        self._levels.append(float(pcm[0]))
        words = self._words(len(self._levels) - self.LATE)
        events = tuple(WordHeard(word.end, word) for word in words)
        timing = Timing(0.0, self.seconds, 0.0)
        return SilentFrame(
            len(self._levels) - 1, QUIET, "", words, "", False, False, None, events, timing
        )

    def flush(self) -> tuple[Word, ...]:
        return self._words(len(self._levels))

    def reset(self) -> None:
        self._levels.clear()
        self._written = 0
        self.resets += 1


# ------------------------------------------------------------------------------ from file to file


def test_a_file_conversation_has_both_sides(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The user's words are those of a transcription; what Moshi says stays as it is without."""
    source, out = tmp_path / "in.wav", tmp_path / "out.wav"
    pcm, rate = soundfile.read(QUESTION, dtype="float32")
    assert rate == SAMPLE_RATE
    pcm = pcm[: 30 * FRAME_SIZE]
    soundfile.write(source, pcm, rate, "FLOAT")
    command = ["run", str(source), str(out), "--codec", "mlx", "--json", "--tail", "0.4"]
    assert main(command) == 0
    alone, sound = json.loads(capsys.readouterr().out), out.read_bytes()
    assert main([*command, "--captions", str(folder)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["words"], out.read_bytes()) == (alone["words"], sound)
    assert {*found} - {*alone} == {"captions", "heard"}
    assert found["captions"] == str(folder)
    pcm = np.pad(pcm, (0, found["frames"] * FRAME_SIZE - len(pcm)))
    model = moshi_mlx.load(folder, verb="transcribe", codec="mlx")
    with model.session() as session:
        words = [word for f in pcm.reshape(-1, FRAME_SIZE) for word in session.step(f).words]
        words += session.flush()
    wanted = [(w.text, round(w.start, 3), round(w.end, 3)) for w in words]
    assert [(w["text"], w["start"], w["end"]) for w in found["heard"]["words"]] == wanted
    assert found["heard"]["text"] == " ".join(text for text, _, _ in wanted)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nano", "nano is a dialogue model: it can talk, but not transcribe; "),
        ("nothing", "There is no model 'nothing'."),
        ("EMPTY", "config.json"),
    ],
)
def test_a_model_that_cannot_write_them_is_refused_at_once(
    name: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    given = str(tmp_path / "empty") if name == "EMPTY" else name
    assert main(["run", str(QUESTION), str(tmp_path / "o.wav"), "--captions", given]) == 2
    captured = capsys.readouterr().err
    assert message in captured
    assert len(captured.splitlines()) == 1, "before anything is loaded"


# --------------------------------------------------------------------------------------- the clock


def test_times_follow_frames_that_were_left_out() -> None:
    told: list[Event] = []
    captions = Captions(Writer(), frame_rate=FRAME_RATE, tell=told.append)
    for n in (0, 1, 2, 10, 11, 12):
        captions.hear(n, np.full(FRAME_SIZE, n, np.float32))
    captions.finish()
    starts = {e.word.text: e.word.start for e in told if isinstance(e, WordHeard)}
    assert starts == pytest.approx({str(n): n * FRAME for n in (0, 1, 2, 10, 11, 12)})


def test_a_reset_finishes_what_was_said_before_it() -> None:
    told: list[Event] = []
    captions = Captions(Writer(), frame_rate=FRAME_RATE, tell=told.append)
    for n in range(4):
        captions.hear(n, np.full(FRAME_SIZE, n, np.float32))
    captions.count_from(4)
    captions.start_over()
    captions.hear(4, np.full(FRAME_SIZE, 4, np.float32))
    captions.finish()
    words = [event.word for event in told if isinstance(event, WordHeard)]
    assert [word.text for word in words] == ["0", "1", "2", "3", "4"]
    starts = [0.0, FRAME, -2 * FRAME, -FRAME, 0.0]
    assert [word.start for word in words] == pytest.approx(starts)
    assert [word.start for word in captions.words] == pytest.approx([n * FRAME for n in range(5)])


# --------------------------------------------------------------------------------- talk comes first


class Clock:
    """Seconds that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_there_is_time_between_two_steps_and_while_the_model_rests() -> None:
    clock = Clock()
    slack = Slack(FakeSession(), FRAME, clock)
    assert slack.wait(1.0, 0.0), "before the first frame"
    slack.step(QUIET)
    assert slack.wait(FRAME - 0.001, 0.0)
    clock.now += 0.05
    assert slack.wait(0.029, 0.0)
    assert not slack.wait(0.031, 0.0), "the next frame would wait for it"
    clock.now += 0.05
    assert not slack.wait(0.001, 0.0), "it may come at any moment"
    clock.now += 0.15
    assert slack.wait(1.0, 0.0), "it does not come"


def test_there_is_none_during_a_step() -> None:
    inside, go_on = threading.Event(), threading.Event()

    class Slow(FakeSession):
        def step(self, pcm: Pcm, *, hold_text: bool = False) -> Frame:
            inside.set()
            go_on.wait(10)
            return super().step(pcm)

    slack = Slack(Slow(), 10.0)
    thread = threading.Thread(target=slack.step, args=[QUIET])
    thread.start()
    assert inside.wait(10)
    assert not slack.wait(0.0, 0.01)
    go_on.set()
    assert slack.wait(0.0, 10)
    thread.join()


class Talk:
    """A conversation's frames to captions, and what is told of them."""

    def __init__(self, writer: Writer, free: bool = True) -> None:
        self.told: list[Event] = []
        self.clock = Clock()
        slack = Slack(FakeSession(), FRAME, self.clock)
        if not free:
            slack.step(QUIET)
            self.clock.now += FRAME + 0.01
        self.captions = LiveCaptions(
            writer, slack, frame_rate=FRAME_RATE, listeners=[self.told.append]
        )
        self._index = 0

    def say(self, *levels: float) -> None:
        for level in levels:
            self.captions(frame_done(self._index, level))
            self._index += 1

    def reset(self) -> None:
        self.captions(ResetDone(0.0))
        self._index = 0

    def words(self) -> list[str]:
        return [event.word.text for event in self.told if isinstance(event, WordHeard)]


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_words_come_while_it_runs_and_the_last_ones_at_the_end() -> None:
    talk = Talk(Writer())
    with talk.captions:
        talk.say(*range(6))
        eventually(lambda: talk.words() == ["0", "1", "2", "3"])
        talk.reset()
        talk.say(6, 7, 8)
        eventually(lambda: talk.words() == [str(n) for n in range(7)])
    assert talk.words() == [str(n) for n in range(9)]
    starts = [word.start for word in talk.captions.words]
    assert starts == pytest.approx([n * FRAME for n in range(9)]), "of the run, without a break"
    told = [event.word.start for event in talk.told if isinstance(event, WordHeard)]
    assert told[:4] == pytest.approx([0, FRAME, 2 * FRAME, 3 * FRAME])
    assert told[4:6] == pytest.approx([-2 * FRAME, -FRAME]), "said before the reset"
    assert told[6:] == pytest.approx([0, FRAME, 2 * FRAME])
    assert talk.captions.lost_seconds == 0.0


def test_too_much_that_waits_is_told_once_and_the_oldest_is_left_out() -> None:
    """The conversation's model never rests; at the end there is time for what still waits."""
    writer = Writer()
    talk = Talk(writer, free=False)
    most = round(WAITING_SECONDS * FRAME_RATE)
    with talk.captions:
        talk.say(*range(most + 1))
        talk.reset()
        talk.say(*range(1000, 1000 + most))
        assert talk.words() == []
    (behind,) = (event for event in talk.told if isinstance(event, CaptionsBehind))
    assert behind.seconds == pytest.approx(2.0, abs=0.1)
    lost = [event.seconds for event in talk.told if isinstance(event, CaptionsLost)]
    assert lost == pytest.approx([WAITING_SECONDS / 2] * 3, abs=0.1)
    assert talk.captions.lost_seconds == pytest.approx(sum(lost))
    assert writer.resets == 1, "a new beginning is not left out"
    assert talk.words()[-1] == str(1000 + most - 1), "the newest"
    assert len(talk.words()) == 2 * most + 1 - round(sum(lost) * FRAME_RATE)
    starts = [word.start for word in talk.captions.words]
    assert starts == sorted(starts)
    assert starts[-1] == pytest.approx(2 * most * FRAME)


def test_a_failure_ends_the_captions_and_not_the_conversation() -> None:
    writer = Writer()
    talk = Talk(writer)
    with talk.captions:
        talk.say(0, 1, 2)
        eventually(lambda: talk.words() == ["0"])
        writer.error = RuntimeError("no more memory")
        talk.say(3, 4)
        eventually(lambda: talk.captions.problem is not None)
        talk.say(5)
    notices = [event.text for event in talk.told if isinstance(event, Notice)]
    assert notices == ["there are no more captions: RuntimeError: no more memory"]


def test_a_session_as_the_loop_steps_it(folder: Path) -> None:
    """Words as events, a silent voice, and the pause heads of each frame."""
    model = moshi_mlx.load(folder, verb="transcribe", codec="mlx")
    rng = np.random.default_rng(0)
    with Listening(model.session(), FRAME_SIZE) as listening:
        frames = [
            listening.step(rng.normal(0, 0.1, FRAME_SIZE).astype(np.float32)) for _ in range(12)
        ]
        last = listening.flush()
    assert not any(frame.pcm.any() or frame.speaking for frame in frames)
    assert frames[-1].user_speaking
    assert all(frame.pauses is not None and len(frame.pauses) == 4 for frame in frames)
    told = [e.word for frame in frames for e in frame.events if isinstance(e, WordHeard)]
    assert told == [word for frame in frames for word in frame.words]
    assert told
    assert last


def test_short_steps_write_the_same(tmp_path: Path) -> None:
    """Of a model that hears a second of silence first: 14 frames wait when the sound begins."""
    delay = {"audio_delay_seconds": 0.5, "audio_silence_prefix_seconds": 1.0}
    model = moshi_mlx.load(make_stt.write(tmp_path / "stt", stt_config=delay), verb="transcribe")
    assert isinstance(model, Stt)
    sound = np.random.default_rng(0).normal(0, 0.1, (30, FRAME_SIZE)).astype(np.float32)

    def words(catch_up: int) -> list[tuple[Word, ...]]:
        with model.session(catch_up=catch_up) as session:
            return [*(session.step(pcm).words for pcm in sound), session.flush()]

    short, long = words(2), words(8)
    assert [*chain(*short)] == [*chain(*long)]
    first = [next(i for i, found in enumerate(each) if found) for each in (short, long)]
    assert first[0] > first[1]
    with pytest.raises(ArgumentError, match="catch_up must be a whole number from 2 to 1000"):
        model.session(catch_up=1)


# ----------------------------------------------------------------------------- where they are seen


def test_both_sides_in_the_files_of_a_recording(tmp_path: Path) -> None:
    """Subtitles are in the order of the speech, though the user's words come later than Moshi's."""
    with Recorder(
        tmp_path,
        sample_rate=SAMPLE_RATE,
        frame_size=FRAME_SIZE,
        model="nano",
        seed=7,
        format="wav",
        captions="stt",
    ) as record:
        for index in range(100):
            record(frame_done(index))
        record(spoken("Hello!", 2.0, 2.4))
        record(heard("Hi", 0.5, 0.9))
        record(heard("there.", 1.0, 1.4))
        record(spoken("Yes?", 6.0, 6.4))
        record(heard("Well", 4.0, 4.4))
        record(ResetDone(7.0))
        record(heard("late", -2 * FRAME, -FRAME))
    (json_file,), (vtt,) = tmp_path.glob("*.json"), tmp_path.glob("*.vtt")
    found = json.loads(json_file.read_text())
    assert found["captions"] == "stt"
    said = [(word["speaker"], word["text"]) for word in found["words"]]
    assert said[:3] == [("moshi", "Hello!"), ("user", "Hi"), ("user", "there.")]
    lines = [line for line in vtt.read_text().splitlines() if line.startswith("<v ")]
    assert lines == [
        "<v You>Hi there.</v>",
        "<v Moshi>Hello!</v>",
        "<v You>Well</v>",
        "<v Moshi>Yes?</v>",
        "<v You>late</v>",
    ]
    starts = [start for start, _, _ in kill_recordings.cues(vtt)]
    assert starts == sorted(starts)
    assert starts[-1] == "00:00:07.840", "8 s were recorded before the reset"


def test_plain_lines_of_both_sides() -> None:
    file = io.StringIO()
    transcript = Transcript(Console(file=file), sides=True)
    events = [
        heard("Hi", 0.5, 0.9),
        heard("there.", 1.0, 1.4),
        TurnEnded(2.0),
        heard("So?", 2.0, 2.2),
        spoken("Hello", 2.1, 2.2),
        spoken("you!", 2.3, 2.4),
    ]
    for event in events:
        transcript(event)
    transcript.end_line()
    assert file.getvalue().splitlines() == [
        "0:00.5  you: Hi there.",
        "0:02.0  you: So?",
        "0:02.1  moshi: Hello you!",
    ]


def test_the_screen_has_a_line_of_each_side() -> None:
    """A phrase grows where it stands, also when the other side has begun one below it."""
    screen = ScreenState(name="nano", budget=0.08, sides=True)
    for event in (
        spoken("Hello", 1.0, 1.2),
        heard("Hi", 1.1, 1.3),
        spoken("you!", 1.4, 1.6),
        heard("Moshi.", 1.5, 1.7),
        CaptionsLost(9.0, 5.0),
    ):
        screen(event)
    rows = ["".join(s.text for s in row).rstrip() for row in screen.rows(90, 24)]
    assert screen.lines() == ["0:01.0  moshi: Hello you!", "0:01.1  you: Hi Moshi."]
    assert [row for row in rows if row.startswith("0:0")] == [
        "0:01.0   moshi: Hello you!",
        "0:01.1   you: Hi Moshi.",
    ]
    assert any("5 s without captions" in row for row in rows)


def test_a_screen_that_listens_has_no_speaker() -> None:
    screen = ScreenState(name="stt", budget=0.08, listens=True)
    screen(heard("Hi", 1.0, 1.3))
    frame = frame_done(20)
    screen(FrameDone(1.6, frame.frame, frame.heard))
    rows = "\n".join("".join(s.text for s in row) for row in screen.rows(90, 24))
    assert "0:01.0   Hi hi" in rows, "the user's unfinished word"
    assert "moshi " not in rows.replace("moshi-local", "")
    assert "mouth to ear" not in rows


def test_whether_a_machine_holds_both() -> None:
    def verdict(name: str, p95: float | None, gigabytes: int) -> Verdict:
        frame_ms = None if p95 is None else {"p50": 10.0, "p95": p95}
        return Verdict(name, Needs(gigabytes * 10**9, 0, 0), 8 * 10**9, frame_ms)

    def line(talks: tuple[float | None, int], captions: tuple[float | None, int]) -> str:
        return Together(verdict("a", *talks), verdict("b", *captions)).line

    assert line((50, 4), (20, 3)) == "a with captions by b: yes, p95 50 + 20 ms of 80 ms"
    assert line((50, 4), (40, 3)) == "a with captions by b: no, p95 50 + 40 ms of 80 ms"
    assert "no, they need 9.6 GB of memory and 8.0 GB can be used" in line((50, 4), (20, 5))
    assert "b was not measured, since it is not on this machine" in line((50, 4), (None, 3))
    assert Together(verdict("a", 50, 4), verdict("b", None, 3)).holds is None


def test_doctor_measures_the_captions(folder: Path) -> None:
    talks = Verdict("nano", Needs(10**9, 0, 0), 8 * 10**9, {"p50": 1.0, "p95": 2.0})
    found = _together(talks, str(folder), MAC, frames=2)
    assert found.captions.frame_ms is not None
    assert 0 < found.captions.frame_ms["p95"] < 1000
    assert found.fits is True
    with pytest.raises(VerbError, match="it can talk, but not transcribe"):
        _together(talks, "nano", MAC, frames=2)
    assert _together(talks, "stt-1b", MAC, frames=2).holds is None


# -------------------------------------------------------------------------------------------- live


@pytest.mark.device
def test_live_with_a_recording(
    card: rig.VirtualCard, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from benchmarks.live import talk

    options = ["--captions", str(folder), "--record", str(tmp_path / "kept"), "--codec", "mlx"]
    events = tmp_path / "events.jsonl"
    run = talk(card, 6.0, *options, "--events", str(events))
    assert run.exit_code == 0, run.errors
    said = [word["text"] for word in run.summary["heard"]["words"]]
    assert said
    lines = [json.loads(line) for line in events.read_text().splitlines()]
    assert [line["word"]["text"] for line in lines if line["event"] == "WordHeard"] == said
    (kept,) = (tmp_path / "kept").glob("*.json")
    found = json.loads(kept.read_text())
    assert [w["text"] for w in found["words"] if w["speaker"] == "user"] == said
    assert "<v You>" in kept.with_suffix(".vtt").read_text()


@pytest.fixture
def card(tmp_path_factory: pytest.TempPathFactory) -> Iterator[rig.VirtualCard]:
    with rig.VirtualCard.start(tmp_path_factory.mktemp("rig") / "card") as running:
        yield running


def test_a_gpu_keeps_both_in_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int | None] = []
    monkeypatch.setattr(moshi_mlx, "prepare_gpu", asked.append)
    source, notes = ModelSource(str(folder)), Console(file=io.StringIO())
    _, alone = load_model(source, notes, verb="transcribe")
    assert alone.needs is not None
    talks = Verdict("nano", Needs(10**9, 0, 0), 8 * 10**9)
    load_model(source, notes, verb="transcribe", beside=talks)
    load_model(source, notes, verb="transcribe", beside=Verdict("a/b", None, 8 * 10**9))
    assert talks.needs is not None
    assert asked == [alone.needs.total, alone.needs.total + talks.needs.total, None]


def test_both_must_fit_in_memory() -> None:
    from moshi_local.machine.verdict import check_together

    talks = Verdict("nano", Needs(7 * 10**9, 0, 0), 8 * 10**9)
    with pytest.raises(MoshiError, match=r"nano needs 7.3 GB and stt-1b .* leave out --captions"):
        check_together(talks, "stt-1b")
    check_together(talks, "stt-1b", force=True)
