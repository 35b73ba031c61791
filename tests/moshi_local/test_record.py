"""Recordings: readable after every frame, true to time, and harmless when the disk is full."""

from __future__ import annotations

import datetime
import json
import os
import resource
import stat
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from benchmarks import kill_recordings
from moshi_local.events import Paused, RecordingStopped, ResetDone
from moshi_local.observers.dispatcher import Dispatcher
from moshi_local.observers.record import Recorder, recording_output
from moshi_local.observers.transcript import vtt_time
from moshi_local.observers.wav import WavWriter, to_pcm16
from moshi_mlx import MoshiError
from moshi_mlx.outputs import check_outputs
from moshi_mlx.testing import FRAME_SIZE, SAMPLE_RATE
from tests.fakes.frames import frame_done, spoken
from tests.limits import largest_file

NAME = "moshi-2026-11-22T22-45-10"
FRAME = FRAME_SIZE / SAMPLE_RATE


def now() -> datetime.datetime:
    zone = datetime.timezone(datetime.timedelta(hours=1))
    return datetime.datetime(2026, 11, 22, 22, 45, 10, tzinfo=zone)


def recorder(folder: Path, **options: Any) -> Recorder:
    given = {"sample_rate": SAMPLE_RATE, "frame_size": FRAME_SIZE, "model": "nano", "seed": 7}
    return Recorder(folder, now=now, **{**given, "format": "wav", **options})


def levels(path: Path) -> list[tuple[float, float]]:
    """Each frame's level, left and right; a frame must be constant."""
    sound, rate = soundfile.read(path, dtype="float32")
    assert rate == SAMPLE_RATE
    frames = sound.reshape(-1, FRAME_SIZE, 2)
    assert np.array_equal(frames, np.broadcast_to(frames[:, :1], frames.shape))
    return [(float(left), float(right)) for left, right in frames[:, 0]]


def load(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# -------------------------------------------------------------------------------- the sound


def test_pcm16() -> None:
    sound = np.array([0.0, 0.5, -1.0, 1.0, 7.0, -7.0, np.nan, np.inf, 100.4 / 32768], np.float32)
    expected = [0, 16384, -32768, 32767, 32767, -32768, 0, 0, 100]
    assert to_pcm16(sound).tolist() == expected


@pytest.mark.parametrize("tag", ["", "odd", "even", "ü"])
def test_a_wav_is_whole_after_every_piece(tmp_path: Path, tag: str) -> None:
    path = tmp_path / "a.wav"
    sound = np.arange(-12, 12, dtype=np.int16).reshape(-1, 2)
    with WavWriter(path, sample_rate=8000, channels=2, tags={"ICMT": tag}) as wav:
        for n in range(0, 12, 3):
            wav.append(sound[n : n + 3])
            read, rate = soundfile.read(path, dtype="int16")
            assert rate == 8000
            assert read.tolist() == sound[: n + 3].tolist()
    with soundfile.SoundFile(path) as file:
        assert file.comment == tag
        assert file.subtype == "PCM_16"
    with pytest.raises(FileExistsError):
        WavWriter(path, sample_rate=8000, channels=2, tags={})


@pytest.mark.parametrize("rest", [1, 2, 3, 4001])
def test_a_piece_that_was_cut_by_a_kill_does_no_harm(tmp_path: Path, rest: int) -> None:
    path = tmp_path / "a.wav"
    rng = np.random.default_rng(0)
    sound = rng.integers(-(2**15), 2**15, (1000, 2)).astype(np.int16)
    with WavWriter(path, sample_rate=8000, channels=2, tags={"ICMT": "x"}) as wav:
        wav.append(sound)
    with path.open("ab") as file:  # sound that the header does not count yet
        file.write(rng.bytes(rest))
    assert soundfile.read(path, dtype="int16")[0].tolist() == sound.tolist()


# ------------------------------------------------------------------------------ a recording


@pytest.mark.parametrize("kind", ["wav", "flac"])
def test_sides_tag_names_and_privacy(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "new" / "folder"
    with recorder(folder, format=kind) as record:
        assert record.path == folder / f"{NAME}.wav"
        record(frame_done(0, user=0.25, moshi=-0.5))
        record(frame_done(1, user=0.5, moshi=-1.0))
        assert levels(record.path) == [(0.25, -0.5), (0.5, -1.0)]
    assert record.path == folder / f"{NAME}.{kind}"
    assert record.problem is None
    assert names(folder) == {f"{NAME}.{end}" for end in (kind, "json", "vtt")}
    assert levels(record.path) == [(0.25, -0.5), (0.5, -1.0)]
    with soundfile.SoundFile(record.path) as file:
        assert file.format == kind.upper()
        assert file.comment.startswith("right channel: synthetic speech by Moshi (nano)")
    for path in folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    facts = load(folder / f"{NAME}.json")
    assert facts["sound"] == [{"file": record.path.name, "start": 0.0}]
    assert (facts["seconds"], facts["finished"], facts["problem"]) == (0.16, True, None)
    assert (facts["model"], facts["seed"]) == ("nano", 7)
    assert facts["started"] == "2026-11-22T22:45:10+01:00"
    assert "synthetic" in facts["note"]


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    for suffix in ("wav", "flac", "json", "vtt"):
        folder = tmp_path / suffix
        folder.mkdir()
        (folder / f"{NAME}.{suffix}").write_text("mine")
        for again in (2, 3):
            with recorder(folder, format="flac") as record:
                record(frame_done(0))
            assert record.path.name == f"{NAME}_{again}.flac"
        assert (folder / f"{NAME}.{suffix}").read_text() == "mine"
        assert len(names(folder)) == 7


def test_without_a_frame_nothing_is_left(tmp_path: Path) -> None:
    with recorder(tmp_path) as record:
        record(Paused(0.0, paused=True))
    assert names(tmp_path) == set()


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(MoshiError, match="it is not a folder"):
        check_outputs([recording_output(file)])
    with pytest.raises(MoshiError, match="Not a directory"), recorder(file / "inside"):
        pass
    assert names(tmp_path) == {"file"}


def test_times_are_those_of_the_file(tmp_path: Path) -> None:
    """A reset starts the session's clock again; lost frames are silence."""
    with recorder(tmp_path) as record:
        for n in range(10):
            record(frame_done(n, user=0.1))
        record(spoken("one", 0.4, 0.8))
        record(ResetDone(0.8))
        for n in (0, 1, 4):  # 2 and 3 are lost
            record(frame_done(n, user=0.2))
        record(spoken("two", 0.16, 0.32))
        record(frame_done(2, user=0.3))  # its ResetDone is lost too, and two frames
        record(spoken("three", 0.08, 0.16))
    frames = [round(10 * left) for left, _ in levels(record.path)]
    assert frames == [1] * 10 + [2, 2, 0, 0, 2] + [0, 0, 3]
    facts = load(tmp_path / f"{NAME}.json")
    assert [(w["text"], w["start"], w["end"]) for w in facts["words"]] == [
        ("one", 0.4, 0.8),
        ("two", 0.96, 1.12),
        ("three", 1.28, 1.36),
    ]
    assert [(e["event"], e["time"]) for e in facts["events"]] == [
        ("ResetDone", 0.8),
        ("FramesMissing", 0.96),
        ("FramesMissing", 1.2),
    ]
    assert facts["events"][1]["seconds"] == 0.16


def test_a_recorder_that_comes_late_begins_at_once(tmp_path: Path) -> None:
    with recorder(tmp_path) as record:
        for n in (1000, 1001):
            record(frame_done(n))
        record(spoken("word", 80.0, 80.08))
    assert record.seconds == 0.16
    assert load(tmp_path / f"{NAME}.json")["words"][0]["start"] == 0.0


def test_subtitles_phrase_by_phrase(tmp_path: Path) -> None:
    with recorder(tmp_path) as record:
        vtt = tmp_path / f"{NAME}.vtt"
        assert kill_recordings.cues(vtt) == []
        record(spoken("a", 0.0, 0.4))
        record(spoken("<b> & -->", 0.5, 0.9))
        assert kill_recordings.cues(vtt) == []
        record(spoken("c", 1.95, 2.0))  # a second later: a new phrase
        first = ("00:00:00.000", "00:00:00.900", "a &lt;b&gt; &amp; --&gt;")
        assert kill_recordings.cues(vtt) == [first]
        for n in range(49):  # 3.92 s: not two seconds of silence yet
            record(frame_done(n))
        assert len(kill_recordings.cues(vtt)) == 1
        record(frame_done(49))
        assert len(kill_recordings.cues(vtt)) == 2
        for n in range(8):
            record(spoken(str(n), 10.0 + n, 11.0 + n))
    texts = [text for _, _, text in kill_recordings.cues(vtt)]
    assert texts[1:] == ["c", "0 1 2 3 4 5", "6 7"]
    assert vtt_time(3723.0045) == "01:02:03.004"


def test_the_transcript_is_saved_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / f"{NAME}.json"
    with recorder(tmp_path) as record:
        assert load(path)["words"] == []
        record(spoken("word", 0.0, 0.4))
        for n in range(63):  # 5.04 s
            record(frame_done(n))
        saved = load(path)
        assert ([w["text"] for w in saved["words"]], saved["finished"]) == (["word"], False)
        record(spoken("rest", 5.0, 5.04))
        assert len(load(path)["words"]) == 1
        record(Paused(5.04, paused=True))  # no frame will come
        assert len(load(path)["words"]) == 2


@pytest.mark.parametrize("kind", ["wav", "flac"])
def test_past_the_limit_of_riff_a_second_file(tmp_path: Path, kind: str) -> None:
    limit = 3 * 4 * FRAME_SIZE + 1000  # three frames and the header
    with recorder(tmp_path, format=kind, max_bytes=limit) as record:
        for n in range(7):
            record(frame_done(n, user=n / 8))
        parts = [tmp_path / f"{NAME}{part}.wav" for part in ("", "-2", "-3")]
        sides = [levels(part) for part in parts]
        assert [len(side) for side in sides] == [3, 3, 1]
        assert [left for side in sides for left, _ in side] == [n / 8 for n in range(7)]
    sound = load(tmp_path / f"{NAME}.json")["sound"]
    if kind == "wav":
        starts = [0.0, 0.24, 0.48]
        assert sound == [
            {"file": part.name, "start": start} for part, start in zip(parts, starts, strict=True)
        ]
    else:
        assert [left for left, _ in levels(record.path)] == [n / 8 for n in range(7)]
        assert names(tmp_path) == {f"{NAME}.{end}" for end in ("flac", "json", "vtt")}


# --------------------------------------------------------------------------------- trouble


@contextmanager
def small_disk(folder: Path, way: str, size: int) -> Iterator[None]:
    """`folder` is a disk of `size` bytes; or files may not be larger ("limit")."""
    folder.mkdir()
    if way == "limit":
        with largest_file(size):
            yield
        return
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a small disk")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("way", ["mount", "limit"])
def test_a_full_disk_stops_the_recording_and_nothing_else(tmp_path: Path, way: str) -> None:
    size, folder = 204_800, tmp_path / "small"
    told: list[RecordingStopped] = []
    with small_disk(folder, way, size):
        with recorder(folder, format="flac", on_stopped=told.append) as record:
            for n in range(40):
                record(frame_done(n, user=n / 64))
            assert len(told) == 1
        assert len(told) == 1
        assert f"{NAME}.wav ends here" in told[0].reason
        assert record.problem == told[0].reason
        assert record.path == folder / f"{NAME}.wav"
        sound, _ = soundfile.read(record.path)
        whole = len(sound) // FRAME_SIZE
        # The disk is full but for a page or two of the other files, and all of it can be read.
        on_disk = record.path.stat().st_size
        assert size - on_disk < 5 * 4096
        assert on_disk - 4 * len(sound) < 1000  # the header
        assert [x * 64 for x in sound[: whole * FRAME_SIZE : FRAME_SIZE, 0]] == list(range(whole))
        assert told[0].time == pytest.approx((whole + 1) * FRAME)
        facts = load(folder / f"{NAME}.json")
        assert facts["finished"] is False
        assert kill_recordings.cues(folder / f"{NAME}.vtt") == []


def test_flac_that_does_not_fit_leaves_the_wav(tmp_path: Path) -> None:
    told: list[RecordingStopped] = []
    rng = np.random.default_rng(0)
    with recorder(tmp_path, format="flac", on_stopped=told.append) as record:
        for n in range(10):
            done = frame_done(n)
            done.heard[:] = rng.uniform(-1, 1, FRAME_SIZE)
            record(done)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
        try:
            record.close()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [event.reason for event in told] == [record.problem]
    assert "was not made FLAC" in told[0].reason
    assert names(tmp_path) == {f"{NAME}.{end}" for end in ("wav", "json", "vtt")}
    assert soundfile.info(tmp_path / f"{NAME}.wav").frames == 10 * FRAME_SIZE
    assert load(tmp_path / f"{NAME}.json")["sound"][0]["file"] == f"{NAME}.wav"


def test_ctrl_c_does_not_wait_for_flac(tmp_path: Path) -> None:
    record = recorder(tmp_path, format="flac").__enter__()
    record(frame_done(0))
    record.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert names(tmp_path) == {f"{NAME}.{end}" for end in ("wav", "json", "vtt")}


def test_close_does_not_wait_for_a_disk_that_hangs(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("moshi_local.observers.record.DISK_SECONDS", 0.1)
    with recorder(tmp_path) as record:
        record(frame_done(0))
        entered, answers = threading.Event(), threading.Event()

        def hang(sound: Any) -> None:
            entered.set()
            answers.wait()

        monkeypatch.setattr(record._wav, "append", hang)
        dispatcher = Dispatcher([record])
        dispatcher(frame_done(1))
        assert entered.wait(5)
        dispatcher.close(timeout=0.1)
    assert record.problem == "the disk does not answer"
    assert len(levels(record.path)) == 1
    answers.set()
    dispatcher._thread.join(5)


def test_killed_at_any_moment(tmp_path: Path) -> None:
    reports = kill_recordings.kill_fakes(tmp_path, times=2, longest=0.6, speed=4.0)
    assert [report.faults for report in reports] == [[], []]
    assert any(report.seconds > 1.0 for report in reports)
