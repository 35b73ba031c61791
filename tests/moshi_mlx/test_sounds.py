"""Sound files: headers that are wrong, ends that are missing, and every format that we can make."""

from __future__ import annotations

import io
import os
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from moshi_mlx import AudioFileError
from moshi_mlx import sounds as module
from moshi_mlx.sounds import check_is_file, open_sound

RATE = 24_000
SECOND = (0.5 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)).astype(np.float32)


def encoded(format: str = "WAV", subtype: str = "PCM_16", sound: np.ndarray = SECOND) -> bytearray:
    file = io.BytesIO()
    soundfile.write(file, sound, RATE, format=format, subtype=subtype)
    return bytearray(file.getvalue())


def wav(
    *,
    riff: int | None = None,
    data: int | None = None,
    chunks: bytes = b"",
    after: bytes = b"",
    rate: int = RATE,
    channels: int = 1,
) -> bytes:
    """A second of sound with the sizes that are said, and other chunks around its samples."""
    samples = (32767 * SECOND).astype("<i2").tobytes()
    form = struct.pack("<HHIIHH", 1, channels, rate, rate, 2 * channels & 0xFFFF, 16)
    body = b"WAVE" + chunk(b"fmt ", form) + chunks
    body += b"data" + struct.pack("<I", len(samples) if data is None else data) + samples + after
    return b"RIFF" + struct.pack("<I", len(body) if riff is None else riff) + body


def chunk(name: bytes, content: bytes, pad: bool = True) -> bytes:
    return name + struct.pack("<I", len(content)) + content + b"\0" * (pad and len(content) % 2)


def opened(tmp_path: Path, content: bytes | bytearray, name: str = "in.wav") -> module.Sound:
    (tmp_path / name).write_bytes(content)
    return open_sound(tmp_path / name)


# ------------------------------------------------------------------------------ WAV's sizes

NOTE = chunk(b"LIST", b"INFOISFT\x05\0\0\0Lavf\0")


@pytest.mark.parametrize(
    "sizes",
    [
        {"riff": 0, "data": 0},
        {"data": 0},
        {"riff": 36, "data": 0},
        {"riff": 0},
        {"riff": 12},
        {"riff": 0xFFFFFFFF, "data": 0xFFFFFFFF},
        {"data": 0xFFFFFFFF},
        {"data": 0xFFFFFFFF - 36},
        {"riff": 0x7FFFF024, "data": 0x7FFFF000},
        {"riff": 0x80000024, "data": 0x80000000},
        {"data": 0, "chunks": NOTE},
        {"chunks": NOTE, "after": NOTE},
        {"chunks": chunk(b"LIST", b"odd")},
        {"chunks": chunk(b"LIST", b"odd", pad=False)},
        {"chunks": chunk(b"LIST", b"data\x04\0\0\0abcd")},
        {"chunks": chunk(b"junk", bytes(101)) + NOTE, "data": 0, "riff": 0},
    ],
)
def test_a_wav_is_read_whatever_its_sizes_say(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, sizes: dict[str, Any]
) -> None:
    sound = opened(tmp_path, wav(**sizes))
    assert (sound.rate, sound.channels, sound.samples) == (RATE, 1, RATE)
    np.testing.assert_allclose(sound.read(RATE)[0], SECOND, atol=1e-4)
    assert not caplog.messages, "its length was not known, which is not a loss"


@pytest.mark.parametrize(
    ("format", "subtype"),
    [("WAVEX", "PCM_24"), ("RF64", "PCM_16"), ("WAV", "FLOAT"), ("WAV", "IMA_ADPCM")],
)
@pytest.mark.parametrize("missing", [False, True])
def test_kinds_of_wav(tmp_path: Path, format: str, subtype: str, missing: bool) -> None:
    content = encoded(format, subtype)
    if missing:
        at = content.index(b"ds64") + 16 if format == "RF64" else content.index(b"data") + 4
        content[at : at + 4] = bytes(4)
    sound = opened(tmp_path, content)
    assert sound.samples == pytest.approx(RATE, abs=600)
    settled = slice(100, RATE)
    np.testing.assert_allclose(sound.read(RATE)[0, settled], SECOND[settled], atol=0.05)


def test_a_wav_beyond_4_gigabytes_keeps_its_length() -> None:
    form = struct.pack("<HHIIHH", 1, 1, RATE, 2 * RATE, 2, 16)
    layout = module._Wav(form, 0, None, 5 << 30)
    header = layout.header()
    found = module._wav_layout(io.BytesIO(header), len(header) + (5 << 30))
    assert found == module._Wav(form, len(header), 5 << 30, 5 << 30)
    part = module._Part(header, io.BytesIO(), 0, 5 << 30)
    assert soundfile.SoundFile(part).frames == 5 << 29


@pytest.mark.parametrize(
    "content",
    [b"", wav()[:44], wav(data=0)[:44], wav(data=0)[:44] + NOTE],
    ids=["nothing", "header", "header of nothing", "header and notes"],
)
def test_a_file_without_samples_is_empty(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(AudioFileError, match=r"in\.wav is empty: it has no samples"):
        opened(tmp_path, content)


def test_one_sample_is_enough(tmp_path: Path) -> None:
    sound = opened(tmp_path, encoded(sound=SECOND[1:2]))
    assert (sound.samples, sound.read(RATE).shape) == (1, (1, 1))


# ----------------------------------------------------------------------------- what is missing


@pytest.mark.parametrize(
    ("format", "subtype", "tolerance"),
    [
        ("WAV", "PCM_16", 0.01),
        ("WAVEX", "PCM_24", 0.01),
        ("RF64", "PCM_16", 0.01),
        ("AIFF", "PCM_16", 0.01),
        ("W64", "PCM_16", 0.01),
        ("AU", "PCM_16", 0.01),
        ("MP3", "MPEG_LAYER_III", 0.2),
        ("FLAC", "PCM_16", 0.2),
    ],
)
def test_what_a_cut_file_lacks_is_told(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    format: str,
    subtype: str,
    tolerance: float,
) -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 4 * RATE)
    content = encoded(format, subtype, noise)
    whole = opened(tmp_path, content)
    assert (whole.samples, whole.missing, caplog.messages) == (4 * RATE, 0.0, [])
    sound = opened(tmp_path, content[: len(content) // 4])
    assert sound.seconds == pytest.approx(1.0, abs=tolerance)
    assert sound.seconds + sound.missing == pytest.approx(4.0, abs=0.01)
    assert sound.read(RATE).shape == (1, sound.samples)
    (line,) = caplog.messages
    assert line == (
        f"{tmp_path / 'in.wav'} ends after {sound.seconds:.2f} s: "
        f"{sound.missing:.2f} s that its header promises are missing"
    )


def test_a_file_that_is_damaged_in_the_middle_is_refused(tmp_path: Path) -> None:
    content = encoded("FLAC", sound=np.random.default_rng(0).uniform(-0.5, 0.5, RATE))
    middle = len(content) // 2
    content[middle : middle + 50] = bytes(50)
    with pytest.raises(AudioFileError, match=r"in\.wav is damaged at 0\.[345]\d s: "):
        opened(tmp_path, content)


# --------------------------------------------------------------------------------- headers


@pytest.mark.parametrize("rate", [0, 1, 3_999, 768_001, 10_000_000, 2**32 - 1])
def test_a_rate_that_cannot_be_is_refused(tmp_path: Path, rate: int) -> None:
    with pytest.raises(
        AudioFileError,
        match=rf"in\.wav: its header says a sample rate of {rate} Hz, .* 4000 to 768000 Hz",
    ):
        opened(tmp_path, wav(rate=rate))


@pytest.mark.parametrize("channels", [0, 65, 1000, 65_535])
def test_a_number_of_channels_that_cannot_be_is_refused(tmp_path: Path, channels: int) -> None:
    with pytest.raises(
        AudioFileError,
        match=rf"in\.wav: its header says a number of channels of {channels}, .* 1 to 64",
    ):
        opened(tmp_path, wav(channels=channels))


def test_the_limits_of_rate_and_channels_are_taken(tmp_path: Path) -> None:
    assert opened(tmp_path, wav(rate=4_000)).seconds == 6.0
    assert opened(tmp_path, wav(rate=768_000)).samples == RATE
    assert opened(tmp_path, wav(channels=64)).samples == RATE // 64


def test_an_aiff_with_a_wrong_rate_is_refused(tmp_path: Path) -> None:
    content = io.BytesIO()
    soundfile.write(content, SECOND, 1, format="AIFF")
    with pytest.raises(AudioFileError, match=r"says a sample rate of 1 Hz"):
        opened(tmp_path, content.getvalue())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_sample_that_is_no_number_is_found_at_once(tmp_path: Path, bad: float) -> None:
    sound = np.zeros((8 * RATE, 2), np.float32)
    sound[7 * RATE, 1] = bad
    with pytest.raises(AudioFileError, match=r"in\.wav has a sample at 7\.000 s that is not a fin"):
        opened(tmp_path, encoded(subtype="FLOAT", sound=sound))


# ------------------------------------------------------------------------------ what is no sound


def test_samples_of_another_scale_are_found_at_once(tmp_path: Path) -> None:
    """16-bit samples in floats; what is only too loud is sound."""
    assert opened(tmp_path, encoded(subtype="FLOAT", sound=31 * SECOND)).samples == RATE
    with pytest.raises(AudioFileError, match=r"in\.wav has a sample at .* of \d+.*: floats must"):
        opened(tmp_path, encoded(subtype="FLOAT", sound=2**15 * SECOND))


def test_what_has_no_end_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.wav")
    for path in (tmp_path / "pipe.wav", Path(os.devnull), Path("/dev/zero")):
        with pytest.raises(AudioFileError, match="is not a file but a pipe or a device"):
            check_is_file(path)
    with pytest.raises(AudioFileError, match="is not a file but a folder"):
        check_is_file(tmp_path)
    with pytest.raises(AudioFileError, match=r"there is no file .*none\.wav"):
        check_is_file(tmp_path / "none.wav")


@pytest.mark.parametrize("name", ["in.wav", "in.raw", "in.m4a"])
@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("Sätze, no sound\n".encode() * 99, "it is a text file$"),
        (bytes(5000), "it is filled with zeros"),
        (bytes(range(256)) * 9, ".*not recognised"),
    ],
)
def test_what_is_no_sound_is_one_error(
    tmp_path: Path, name: str, content: bytes, what: str
) -> None:
    with pytest.raises(AudioFileError, match=rf"cannot read .*{name} as sound: {what}"):
        opened(tmp_path, content, name)


@pytest.mark.parametrize(
    ("system", "command"),
    [
        ("darwin", "afconvert -f WAVE -d LEI16 '{0}/my memo.m4a' '{0}/my memo.new.wav'"),
        ("linux", "ffmpeg -i '{0}/my memo.m4a' '{0}/my memo.new.wav'"),
    ],
)
def test_without_av_the_way_out_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system: str, command: str
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.setattr(sys, "platform", system)
    with pytest.raises(AudioFileError) as caught:
        opened(tmp_path, b"\0\0\0\x1cftypM4A \0\0\0\0" + bytes(100), "my memo.m4a")
    assert command.format(tmp_path) in str(caught.value)
    assert "`pip install 'moshi-local[media]'`" in str(caught.value)


# ------------------------------------------------------------------------------------ FFmpeg


def media(tmp_path: Path, codec: str, format: str, channels: int = 1) -> bytearray:
    """Four seconds of a tone, at 48 kHz; what is in an mp4 comes first in it."""
    av = pytest.importorskip("av")
    file = tmp_path / "media"
    options = {"movflags": "faststart"} if format == "mp4" else {}
    layout = {1: "mono", 2: "stereo"}[channels]
    with av.open(file, "w", format=format, options=options) as container:
        stream = container.add_stream(codec, rate=48_000, layout=layout)
        sound = 0.5 * np.sin(2 * np.pi * 440 * np.arange(4 * 48_000) / 48_000)
        frame = av.AudioFrame.from_ndarray(
            np.stack([sound.astype(np.float32)] * channels), "fltp", layout
        )
        frame.sample_rate, frame.pts = 48_000, 0
        size = stream.codec_context.frame_size or 1024
        resampler = av.AudioResampler(stream.format, layout, 48_000, frame_size=size)
        for part in (*resampler.resample(frame), *resampler.resample(None)):
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return bytearray(file.read_bytes())


@pytest.mark.parametrize(
    ("codec", "format"),
    [("aac", "ipod"), ("alac", "ipod"), ("aac", "mp4"), ("aac", "adts"), ("libopus", "webm")],
)
@pytest.mark.parametrize("channels", [1, 2])
def test_what_a_telephone_records_is_read(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    codec: str,
    format: str,
    channels: int,
) -> None:
    sound = opened(tmp_path, media(tmp_path, codec, format, channels), "memo.m4a")
    assert (sound.rate, sound.channels) == (48_000, channels)
    assert sound.seconds == pytest.approx(4.0, abs=0.06)
    assert not caplog.messages
    heard = sound.read(48_000)[:, 48_000 : 2 * 48_000]
    spectrum = np.abs(np.fft.rfft(heard))
    assert spectrum.argmax(axis=1).tolist() == [440] * channels
    assert np.sqrt((heard**2).mean()) == pytest.approx(0.5 / np.sqrt(2), rel=0.05)


def test_a_cut_film_is_read_to_its_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = media(tmp_path, "aac", "mp4")
    sound = opened(tmp_path, content[: len(content) // 2])
    assert 1.5 < sound.seconds < 2.5
    assert sound.seconds + sound.missing == pytest.approx(4.0, abs=0.01)
    assert "are missing" in caplog.text


def test_a_film_that_is_damaged_in_the_middle_is_refused(tmp_path: Path) -> None:
    content = media(tmp_path, "aac", "mp4")
    middle = len(content) // 2
    content[middle : middle + 400] = b"\xff" * 400
    with pytest.raises(AudioFileError, match=r"in\.wav is damaged at [12]\.\d\d s: "):
        opened(tmp_path, content)


def test_with_both_libraries_both_reasons_are_told(tmp_path: Path) -> None:
    pytest.importorskip("av")
    with pytest.raises(AudioFileError, match=r"libsndfile says: Format .*; FFmpeg says: Invalid"):
        opened(tmp_path, bytes(range(256)) * 9)


def test_a_list_of_addresses_is_no_sound(tmp_path: Path) -> None:
    """FFmpeg would fetch them."""
    pytest.importorskip("av")
    (tmp_path / "other.wav").write_bytes(wav())
    lists = ["#EXTM3U\n#EXTINF:1,\n{}\n#EXT-X-ENDLIST\n", "ffconcat version 1.0\nfile '{}'\n"]
    for text in lists:
        with pytest.raises(AudioFileError, match="cannot read"):
            opened(tmp_path, text.format("other.wav").encode(), "list.m3u8")


def test_only_the_first_seconds_are_read_where_asked(tmp_path: Path) -> None:
    sound = opened(tmp_path, encoded(sound=np.tile(SECOND, 10)))
    assert sound.read(RATE, 4.5).shape == (1, 4.5 * RATE)
    assert sound.read(RATE, 99.0).shape == (1, 10 * RATE)
    assert sound.read(12_000, 4.5).shape == (1, 4.5 * 12_000)
