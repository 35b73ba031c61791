"""Manifests, words and recordings as editors, aligners and converters leave them."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from moshi_mlx.errors import AudioFileError, ConfigError, MoshiError
from moshi_mlx.text import Word
from moshi_mlx.training.data import (
    DataConfig,
    DataError,
    Recording,
    Recordings,
    TokenCache,
    read_alignment,
    read_manifest,
    read_words,
)
from tests.limits import largest_file
from tests.training.test_data import RATE, Letters, Loudness, make_recording, model_config

LINE = '{"path": "%s", "duration": 2.0}'


def data_of(folder: Path, *sounds: Path, **settings: Any) -> Recordings:
    """Recordings of these files."""
    config = DataConfig(duration_sec=1.6, **settings)
    codec: Any = Loudness()
    (folder / "codec").write_text("weights")
    cache = TokenCache(folder / "tokens", codec, folder / "codec", config)
    recordings = [Recording(sound, 2.0) for sound in sounds]
    return Recordings(recordings, cache, Letters(), model_config(), config)


def manifest(folder: Path, content: str | bytes) -> Path:
    path = folder / "train.jsonl"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# ----------------------------------------------------------------------------- manifests


@pytest.mark.parametrize("letter", ["\u2028", "\x85", "é", " "])
def test_lines_end_at_line_feeds_alone(letter: str, tmp_path: Path) -> None:
    text = LINE % f"a{letter}b.wav" + "\r\n\n" + LINE % "/c.wav"
    if not letter.isprintable():
        text = text.replace("\x85", "\\u0085")  # in the JSON, but no name of a file
    for mark in ("", "\N{BOM}"):
        path = manifest(tmp_path, mark + text)
        if letter == "\x85":
            with pytest.raises(DataError, match="line 1: 'path' must be a sound file"):
                read_manifest(path)
        else:
            found = [recording.path for recording in read_manifest(path)]
            assert found == [tmp_path / f"a{letter}b.wav", Path("/c.wav")]
    other = LINE[:-1] % "a.wav" + f', "said": "x{letter}y"}}'
    assert read_manifest(manifest(tmp_path, other))[0].path == tmp_path / "a.wav"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ((LINE % "a.wav").encode("utf-16"), r"train\.jsonl: is UTF-16; save it as UTF-8"),
        ((LINE % "a.wav").encode("utf-16-be"), r"train\.jsonl: is UTF-16"),
        ((LINE % "a.wav").encode("utf-32"), r"train\.jsonl: is UTF-32"),
        ((LINE % "a" + "\n" + LINE % "é").encode("latin-1"), "Latin-1 .*byte 0xe9 in line 2"),
        (b"", "lists no recordings"),
        (b" \r\n\n", "lists no recordings"),
        (b"null", "line 1 is not"),
        (b"[" * 5000, "line 1 is not"),
        (b'\n{"path": "a.wav"}', "line 2 is not"),
        (b'{"path": null, "duration": 1}', "'path' must be a sound file; is null"),
        (b'{"path": " ", "duration": 1}', "'path' must be a sound file; is ' '"),
        (b'{"path": "a\\u0000", "duration": 1}', r"'path' must be a sound file; is 'a\\x00'"),
        (b'{"path": "a", "duration": NaN}', "'duration' must be seconds, above 0; is nan"),
        (b'{"path": "a", "duration": Infinity}', "above 0; is inf"),
        (b'{"path": "a", "duration": -1}', "above 0; is -1"),
        (b'{"path": "a", "duration": null}', "above 0; is null"),
        (b'{"path": "a", "duration": true}', "above 0; is true"),
        (b'{"path": "a", "duration": 1, "rehearse": "no"}', "'rehearse' must be .*; is 'no'"),
    ],
    ids=range(18),
)
def test_what_is_wrong_in_a_manifest_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read_manifest(manifest(tmp_path, content))
    assert len(str(caught.value)) < 250


def test_a_recording_that_is_listed_twice(tmp_path: Path) -> None:
    sound = make_recording(tmp_path, "one")
    data = data_of(tmp_path, sound, sound)
    assert data.notes == ["lines that list a recording again, which then counts again: 1"]
    assert data.num_batches == 2


# --------------------------------------------------------------------------------- words


def words(folder: Path, *entries: Any) -> Path:
    path = folder / "one.json"
    path.write_text(json.dumps({"alignments": entries}), encoding="utf-8-sig")
    return path


@pytest.mark.parametrize(
    "times",
    [
        [None, None],
        None,
        [0.5, None],
        [math.nan, math.nan],
        [0.5, math.inf],
        [-math.inf, 0.5],
        [0.6, 0.5],
        ["0.5", "0.6"],
        [True, True],
        [0.5, 10**400],
    ],
)
def test_words_without_times_are_left_out(times: Any, tmp_path: Path) -> None:
    path = words(tmp_path, ["in", [0.1, 0.2], "SPEAKER_MAIN"], ["2016,", times, "SPEAKER_MAIN"])
    assert read_words(path) == [Word("in", 0.1, 0.2)]
    assert read_alignment(path).left_out == ["'2016,'"]


def test_words_that_are_none_are_left_out(tmp_path: Path) -> None:
    entries = [[word, [0.1, 0.1], "SPEAKER_MAIN"] for word in (None, "\ud800", " ", " a\u2028")]
    path = words(tmp_path, *entries)
    assert read_words(path) == [Word("a", 0.1, 0.1)]
    assert read_alignment(path).left_out == ["null", "'\\ud800'"]


@pytest.mark.parametrize(
    "entry",
    [
        None,
        "abc",
        ["a", [0.1, 0.2]],
        ["a", 0.1, "SPEAKER_MAIN"],
        ["a", [0.1], "SPEAKER_MAIN"],
        [5, [0.1, 0.2], "SPEAKER_MAIN"],
        {"word": "a", "start": 0.1, "end": 0.2},
    ],
)
def test_another_format_is_named(entry: Any, tmp_path: Path) -> None:
    path = words(tmp_path, ["in", [0.1, 0.2], "SPEAKER_MAIN"], entry)
    with pytest.raises(DataError, match=r"one\.json: entry 2 is not as in .*alignments"):
        read_words(path)


@pytest.mark.parametrize("text", ["", "null", "[]", "{}", '{"alignments": 3}', "[" * 5000])
def test_what_has_no_alignments_is_named(text: str, tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"one\.json is not as in"):
        read_words(path)
    path.write_text('{"alignments": []}', encoding="utf-16")
    with pytest.raises(DataError, match=r"one\.json: is UTF-16"):
        read_words(path)


def test_what_is_left_out_is_said_once(tmp_path: Path) -> None:
    sound = make_recording(tmp_path, "one")  # 25 frames of 80 ms
    word = ["ab", [1.0, 1.2], "SPEAKER_MAIN"]
    lost = [["x", [None, None], "SPEAKER_MAIN"], ["y", None, "SPEAKER_MAIN"]]
    late = [["in ms", [1000.0, 1200.0], "SPEAKER_MAIN"], ["z", [-0.1, 0.1], "SPEAKER_MAIN"]]
    path = words(tmp_path, word, *lost, *late)
    assert data_of(tmp_path, sound).notes == [
        f"words left out that have no usable times or no text: 2, the first {path}: 'x'",
        "words left out that start outside of their recordings (times are in seconds): 2, the "
        f"first {path}: 'z'",
    ]
    words(tmp_path, *lost, *late)
    with pytest.raises(DataError, match=r"2, the first .*: 'x'; .*no word is left to learn from"):
        data_of(tmp_path, sound)
    words(tmp_path)
    assert data_of(tmp_path, sound).notes == []


def test_other_speakers(tmp_path: Path) -> None:
    sound = make_recording(tmp_path, "one")
    words(tmp_path, ["a", [0.1, 0.2], "SPEAKER_01"], ["b", [None, None], None])
    (note,) = data_of(tmp_path, sound).notes
    assert note == "no word is marked 'SPEAKER_MAIN', only 'SPEAKER_01', null: Moshi learns no text"
    words(tmp_path, ["a", [0.1, 0.2], "SPEAKER_01"], ["b", [0.1, 0.2], "SPEAKER_MAIN"])
    assert data_of(tmp_path, sound).notes == []


# ---------------------------------------------------------------------------- recordings


@pytest.mark.parametrize(
    ("sound", "message"),
    [
        (np.zeros((0, 2)), "is empty"),
        (np.zeros((1919, 2)), "has 1919 samples at 24000 Hz, less than a frame"),
        (np.zeros((4000, 1)), r"has 1 channel\(s\)"),
        (np.zeros((4000, 3)), r"has 3 channel\(s\)"),
        (np.full((4000, 2), np.nan), "has a sample at 0.000 s that is not a finite"),
        (
            np.where(np.arange(8000) == 7999, np.inf, 0).reshape(4000, 2),
            "has a sample at 0.167 s that is not a finite",
        ),
    ],
)
def test_what_is_no_recording_is_named(sound: np.ndarray, message: str, tmp_path: Path) -> None:
    path = make_recording(tmp_path, "one")
    soundfile.write(path, sound, RATE, subtype="FLOAT")
    with pytest.raises(AudioFileError, match=rf"one\.wav:? {message}"):
        data_of(tmp_path, path)
    assert not (tmp_path / "tokens").exists()


def test_numbers_are_checked_without_a_file_too(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data: batch_size: must be .* is 0"):
        data_of(tmp_path, batch_size=0)


def test_missing_recordings_are_named_first(tmp_path: Path) -> None:
    path = make_recording(tmp_path, "one")
    with pytest.raises(AudioFileError, match=r"two\.wav: there is no such file"):
        data_of(tmp_path, path, tmp_path / "two.wav")
    assert not (tmp_path / "tokens").exists()  # before an hour of encoding


# -------------------------------------------------------------------------------- tokens


def cache_of(folder: Path) -> Path:
    (found,) = (folder / "tokens").iterdir()
    return found


@pytest.mark.parametrize("content", ["cut", b"", b"junk", "shape", "type", "negative"])
def test_damaged_tokens_are_made_again(content: str | bytes, tmp_path: Path) -> None:
    sound = make_recording(tmp_path, "one")
    plain = data_of(tmp_path, sound).batch(0).codes
    path = cache_of(tmp_path)
    right = path.read_bytes()
    codes = np.zeros((2, 4, 25), np.int16)
    other = {"shape": codes[:, :3], "type": codes.astype(float), "negative": codes - 5}
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "cut":
        path.write_bytes(right[: len(right) // 2])
    else:
        np.savez_compressed(path, codes=other[content])
    again = data_of(tmp_path, sound)
    assert again.notes == ["damaged files of tokens, made again: 1"]
    assert np.array_equal(again.batch(0).codes, plain)
    assert data_of(tmp_path, sound).notes == []


def test_a_full_disk_leaves_no_tokens(tmp_path: Path) -> None:
    sound = make_recording(tmp_path, "one")
    with largest_file(100), pytest.raises(MoshiError, match=r"\.npz: cannot be .*too large"):
        data_of(tmp_path, sound)
    assert list((tmp_path / "tokens").iterdir()) == []
