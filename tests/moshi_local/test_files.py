"""Sound files behind the loop: rates, channels, both sides, and every way it can go wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from moshi_local.audio.files import FileAudio, check_sound_files
from moshi_local.loop import run_loop
from moshi_local.report import LoopReport
from moshi_mlx import ArgumentError, AudioFileError, MoshiError
from moshi_mlx.testing import FRAME_RATE, FRAME_SIZE, SAMPLE_RATE, FakeSession


def tone(seconds: float, rate: int = SAMPLE_RATE) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate)


def echo(source: Path, target: Path, stop_at: int | None = None, **options) -> LoopReport:
    """`source` to `target` through a model that says back what it hears."""
    session = FakeSession()
    port = FileAudio(source, target, sample_rate=SAMPLE_RATE, frame_size=FRAME_SIZE, **options)
    with port:
        return run_loop(
            session,
            port,
            frame_size=FRAME_SIZE,
            frame_rate=FRAME_RATE,
            stop=lambda: len(session.heard) == stop_at,
        )


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".WAV"])
@pytest.mark.parametrize("rate", [8000, 16_000, 24_000, 44_100, 48_000])
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_any_rate_and_channels(tmp_path: Path, suffix: str, rate: int, channels: int) -> None:
    source, target = tmp_path / "in.wav", tmp_path / f"out{suffix}"
    soundfile.write(source, np.column_stack([tone(3.3, rate)] * channels), rate)
    report = echo(source, target)
    said, said_rate = soundfile.read(target)
    assert said_rate == SAMPLE_RATE
    assert report.frames == 42  # 3.3 s are 41.25 frames
    assert said.shape == (42 * FRAME_SIZE,)
    middle = slice(SAMPLE_RATE // 10, 3 * SAMPLE_RATE)
    np.testing.assert_allclose(said[middle], tone(3.3)[middle], atol=0.003)
    assert not said[round(3.31 * SAMPLE_RATE) :].any()


def test_tail_is_silence_after_the_input(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "in.wav", tone(0.16), SAMPLE_RATE)
    report = echo(tmp_path / "in.wav", tmp_path / "out.wav", tail=1.0)
    said, _ = soundfile.read(tmp_path / "out.wav")
    assert report.frames == 2 + 13
    assert said[: 2 * FRAME_SIZE].any()
    assert not said[2 * FRAME_SIZE :].any()


def test_stereo_has_the_user_left_and_the_model_right(tmp_path: Path) -> None:
    left_only = np.column_stack([tone(1.0), np.zeros(SAMPLE_RATE)])
    soundfile.write(tmp_path / "in.wav", left_only, SAMPLE_RATE, subtype="FLOAT")
    echo(tmp_path / "in.wav", tmp_path / "out.wav", stereo=True)
    both, _ = soundfile.read(tmp_path / "out.wav")
    np.testing.assert_allclose(both[:SAMPLE_RATE, 0], tone(1.0) / 2, atol=1e-4)
    np.testing.assert_array_equal(both[:, 0], both[:, 1])


def test_a_stopped_run_leaves_nothing(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "in.wav", tone(1.0), SAMPLE_RATE)
    assert echo(tmp_path / "in.wav", tmp_path / "out.wav", stop_at=5).frames == 5
    assert [p.name for p in tmp_path.iterdir()] == ["in.wav"]


def test_a_run_that_fails_keeps_the_old_output(tmp_path: Path) -> None:
    sound = tone(3.0)
    sound[2 * SAMPLE_RATE] = np.nan
    soundfile.write(tmp_path / "in.wav", sound, SAMPLE_RATE, subtype="FLOAT")
    (tmp_path / "out.wav").write_bytes(b"old")
    with pytest.raises(AudioFileError, match=r"in\.wav.*at 2\.000 s.*not a finite number"):
        echo(tmp_path / "in.wav", tmp_path / "out.wav")
    assert (tmp_path / "out.wav").read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 2


def test_a_header_without_lengths(tmp_path: Path) -> None:
    """As a recorder leaves it that was killed: what follows is read, as with lengths of -1."""
    source, target = tmp_path / "in.wav", tmp_path / "out.wav"
    soundfile.write(source, tone(0.5), SAMPLE_RATE)
    sound, _ = soundfile.read(source)
    for length in (bytes(4), b"\xff" * 4):
        content = bytearray(source.read_bytes())
        data = content.index(b"data")
        content[4:8] = content[data + 4 : data + 8] = length
        source.write_bytes(content)
        echo(source, target)
        assert np.array_equal(soundfile.read(target)[0][: len(sound)], sound)


def test_what_is_wrong_is_said_before_anything_is_done(tmp_path: Path) -> None:
    good, text, empty = tmp_path / "in.wav", tmp_path / "text.wav", tmp_path / "empty.wav"
    soundfile.write(good, tone(0.1), SAMPLE_RATE)
    soundfile.write(empty, np.zeros(0), SAMPLE_RATE)
    text.write_text("not a sound")
    out = tmp_path / "out.wav"
    cases = [
        (tmp_path / "none.wav", out, "there is no file .*none.wav"),
        (tmp_path, out, "is not a file"),
        (text, out, "cannot read .*text.wav as sound"),
        (empty, out, "empty.wav is empty"),
        (good, tmp_path / "no" / "out.wav", "the answer .*out.wav: there is no folder .*no$"),
        (good, good, "same file"),
        (good, tmp_path / "x" / ".." / "in.wav", "no folder|same file"),
        (good, tmp_path / "out.mp3", "must end in .wav or .flac"),
    ]
    for source, target, message in cases:
        with pytest.raises(MoshiError, match=message):
            check_sound_files(source, target)
    link = tmp_path / "link.wav"
    link.symlink_to(good)
    with pytest.raises(MoshiError, match="same file"):
        check_sound_files(good, link)


def test_what_is_there_of_a_truncated_flac_is_heard(tmp_path: Path) -> None:
    source = tmp_path / "in.flac"
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 100_000)
    soundfile.write(source, noise, SAMPLE_RATE)
    source.write_bytes(source.read_bytes()[:60_000])
    echo(source, tmp_path / "out.wav")
    said, _ = soundfile.read(tmp_path / "out.wav")
    assert 25_000 < len(said) < 35_000
    np.testing.assert_allclose(said[:25_000], noise[:25_000], atol=1e-4)


def test_a_recording_is_read_to_its_end_before_there_is_a_model(tmp_path: Path) -> None:
    """And not a second time before the conversation."""
    sound = tone(3.0)
    sound[-1] = np.inf
    soundfile.write(tmp_path / "in.wav", sound, SAMPLE_RATE, subtype="FLOAT")
    with pytest.raises(AudioFileError, match=r"in\.wav has a sample at 3\.000 s that is not a fin"):
        check_sound_files(tmp_path / "in.wav", tmp_path / "out.wav")
    sound[-1] = 0.0
    soundfile.write(tmp_path / "in.wav", sound, SAMPLE_RATE, subtype="FLOAT")
    examined = check_sound_files(tmp_path / "in.wav", tmp_path / "out.wav")
    (tmp_path / "in.wav").unlink()
    port = FileAudio(examined, tmp_path / "out.wav", sample_rate=SAMPLE_RATE, frame_size=FRAME_SIZE)
    assert port.frames == 38


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"tail": -1}, "tail must be from 0 to 86400, is -1"),
        ({"tail": float("nan")}, "tail must be .* is nan"),
        ({"tail": "x"}, "tail must be .* is 'x'"),
        ({"frame_size": 0}, "frame_size must be a whole number .* is 0"),
        ({"frame_size": 1920.5}, "frame_size must be"),
        ({"sample_rate": 0}, "sample_rate must be"),
        ({"source": 5}, "source must be text or a path, is 5"),
        ({"target": None}, "target must be text or a path, is None"),
    ],
)
def test_numbers_and_paths_are_checked(tmp_path: Path, given: dict[str, Any], says: str) -> None:
    soundfile.write(tmp_path / "in.wav", tone(0.1), SAMPLE_RATE)
    good: dict[str, Any] = {
        "source": str(tmp_path / "in.wav"), "target": str(tmp_path / "out.wav"),
        "sample_rate": SAMPLE_RATE, "frame_size": FRAME_SIZE,
    }  # fmt: skip
    with pytest.raises(ArgumentError, match=says):
        FileAudio(**{**good, **given})
    assert FileAudio(**good).frames == 2


def test_only_whole_frames_of_numbers_are_written(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "in.wav", tone(0.08), SAMPLE_RATE)
    frame = tone(0.08).astype(np.float32)
    broken = np.where(np.arange(FRAME_SIZE) == 7, np.nan, frame)
    port = FileAudio(
        tmp_path / "in.wav", tmp_path / "out.wav", sample_rate=SAMPLE_RATE, frame_size=FRAME_SIZE
    )
    with port:
        port.read(np.empty(FRAME_SIZE, np.float32), 0.0)
        for wrong, says in (
            (frame[:5], r"pcm must be \[1920\], is \[5\]"),
            (np.stack([frame] * 2), "pcm must be"),
            (broken, "pcm must be finite, number 7 is nan"),
            (frame * 2**15, "floats in −1 … 1, this one up to"),
            (None, "sound has floats"),
        ):
            with pytest.raises(ArgumentError, match=says):
                port.write(wrong)  # type: ignore[arg-type]
        port.write(frame)
    said, _ = soundfile.read(tmp_path / "out.wav")
    np.testing.assert_allclose(said, frame, atol=1e-4)
