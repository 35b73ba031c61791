"""From recordings to batches: the text stream by hand, files there and back, mixes, the cache."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from moshi_mlx.config import ModelConfig
from moshi_mlx.errors import AudioFileError
from moshi_mlx.published import read_config
from moshi_mlx.text import Word
from moshi_mlx.training.data import (
    DataConfig,
    DataError,
    Recording,
    Recordings,
    TokenCache,
    inner_monologue,
    read_manifest,
    read_stereo,
    read_words,
    spoken_frames,
    write_manifest,
    write_words,
)
from moshi_mlx.training.mixing import (
    Clip,
    MixConfig,
    UserSide,
    conversation,
    late_by,
    levelled,
    speech_level,
    varied,
)

RATE = 24_000
FRAME = 1920
PAD, EPAD = 3, 0


class Letters:
    """A tokenizer with a token per letter: a is 10."""

    def encode(self, text: str) -> list[int]:
        return [10 + ord(letter) - ord("a") for letter in text]


class Loudness:
    """A codec whose codes say how loud a frame is, and which codebook they are of."""

    sample_rate, frame_size, num_codebooks = RATE, FRAME, 4

    def __init__(self) -> None:
        self.frames = 0

    def init_state(self) -> list[int]:
        return []

    def encode_step(self, pcm: np.ndarray, state: list[int]) -> np.ndarray:
        loud = np.sqrt(np.square(pcm.reshape(-1, FRAME)).mean(axis=1))
        self.frames += len(loud)
        return (np.round(100 * loud)[None] + 1000 * np.arange(4)[:, None]).astype(np.int32)

    def decode_step(self, codes: np.ndarray, state: list[int]) -> np.ndarray:
        raise AssertionError("nothing is decoded here")


def tone(seconds: float, amplitude: float = 0.2) -> np.ndarray:
    t = np.arange(round(seconds * RATE)) / RATE
    return (amplitude * np.sin(2 * np.pi * 220 * t)).astype(np.float32)


def model_config(**changes: Any) -> ModelConfig:
    raw = {
        "dim": 16, "text_card": 64, "n_q": 8, "dep_q": 4, "card": 2048, "num_heads": 2,
        "num_layers": 1, "hidden_scale": 4.125, "depformer_dim": 16, "depformer_num_heads": 2,
        "existing_text_padding_id": PAD, "delays": [0, 0, 1, 1, 1, 0, 1, 1, 1],
        "depformer_num_layers": 1, "depformer_weights_per_step": True, "context": 32,
        "depformer_multi_linear": True, "depformer_pos_emb": "none", "gating": "silu",
        "positional_embedding": "rope", "layer_scale": None, "norm": "rms_norm_f32",
    }  # fmt: skip
    return read_config(raw | changes, "config.json")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        # A word in frame 2 (0.16 s), EPAD before it.
        ([Word("ab", 0.16, 0.3)], [PAD, EPAD, 10, 11, PAD, PAD, PAD, PAD]),
        # In the first frame nothing is before it.
        ([Word("a", 0.05, 0.1)], [10, PAD, PAD, PAD, PAD, PAD, PAD, PAD]),
        # The second word starts while the first is not through: no EPAD, and one frame late.
        ([Word("abc", 0.0, 0.1), Word("d", 0.16, 0.3)], [10, 11, 12, 13, PAD, PAD, PAD, PAD]),
        # Right after it: no room for EPAD. With a frame between: EPAD in it.
        ([Word("ab", 0.0, 0.1), Word("c", 0.16, 0.2)], [10, 11, 12, PAD, PAD, PAD, PAD, PAD]),
        ([Word("a", 0.0, 0.1), Word("c", 0.16, 0.2)], [10, EPAD, 12, PAD, PAD, PAD, PAD, PAD]),
        # What doesn't fit falls off the end; what starts outside is left out; order is by time.
        (
            [Word("bcd", 0.48, 0.6), Word("z", 0.64, 0.7), Word("y", -0.1, 0.1)],
            [PAD, PAD, PAD, PAD, PAD, EPAD, 11, 12],
        ),
        ([], [PAD] * 8),
    ],
)
def test_inner_monologue_by_hand(words: list[Word], expected: list[int]) -> None:
    assert inner_monologue(words, 8, Letters(), pad=PAD, epad=EPAD).tolist() == expected


def test_spoken_frames_by_hand() -> None:
    found = spoken_frames([Word("a", 0.4, 0.56)], 12, margin=2)
    assert np.flatnonzero(found).tolist() == [3, 4, 5, 6, 7, 8]


def make_recording(folder: Path, name: str, seconds: float = 2.0) -> Path:
    own, user = np.zeros((2, round(seconds * RATE)), np.float32)
    own[RATE : RATE + FRAME * 5] = tone(0.4)
    user[: FRAME * 5] = tone(0.4, 0.1)
    path = folder / f"{name}.wav"
    soundfile.write(path, np.stack([own, user], axis=1), RATE, subtype="FLOAT")
    write_words(path.with_suffix(".json"), [Word("ab", 1.0, 1.2), Word("c", 1.3, 1.4)])
    return path


def test_files_there_and_back(tmp_path: Path) -> None:
    sounds = [make_recording(tmp_path, "one"), make_recording(tmp_path, "two", 3.0)]
    manifest = tmp_path / "train.jsonl"
    write_manifest(manifest, sounds)
    assert json.loads(manifest.read_text().splitlines()[1]) == {"path": "two.wav", "duration": 3.0}
    recordings = read_manifest(manifest)
    assert recordings == [Recording(sounds[0], 2.0), Recording(sounds[1], 3.0)]
    assert read_words(recordings[0].words_path) == [Word("ab", 1.0, 1.2), Word("c", 1.3, 1.4)]
    written = json.loads((tmp_path / "one.json").read_text())
    assert written["alignments"][0] == ["ab", [1.0, 1.2], "SPEAKER_MAIN"]
    assert read_words(recordings[0].words_path, "SPEAKER_OTHER") == []
    assert read_stereo(sounds[0], 12_000).shape == (2, 24_000)


def test_broken_files_are_named(tmp_path: Path) -> None:
    manifest, words = tmp_path / "a.jsonl", tmp_path / "a.json"
    with pytest.raises(DataError, match=r"a\.jsonl"):
        read_manifest(manifest)
    manifest.write_text('{"path": "a.wav", "duration": 1}\n{"path": "b.wav"}\n')
    with pytest.raises(DataError, match="line 2"):
        read_manifest(manifest)
    manifest.write_text("\n")
    with pytest.raises(DataError, match="no recordings"):
        read_manifest(manifest)
    with pytest.raises(DataError, match=r"a\.json"):
        read_words(words)
    words.write_text('{"alignments": [["a", 1.0]]}')
    with pytest.raises(DataError, match="alignments"):
        read_words(words)
    soundfile.write(tmp_path / "mono.wav", tone(0.1), RATE)
    with pytest.raises(AudioFileError, match="1 channel"):
        read_stereo(tmp_path / "mono.wav", RATE)
    (tmp_path / "no.wav").write_text("no")
    with pytest.raises(AudioFileError, match=r"no\.wav"):
        read_stereo(tmp_path / "no.wav", RATE)


def test_batches(tmp_path: Path) -> None:
    """Recordings of 25 and 38 frames, in sequences of 20."""
    sounds = [make_recording(tmp_path, "one"), make_recording(tmp_path, "two", 3.0)]
    config = DataConfig(duration_sec=1.6, batch_size=2, level_db=None, seed=3)
    codec: Any = Loudness()
    codec_file = tmp_path / "codec"
    codec_file.write_text("weights")
    cache = TokenCache(tmp_path / "tokens", codec, codec_file, config)
    recordings = [Recording(sound, 0.0) for sound in sounds]
    data = Recordings(recordings, cache, Letters(), model_config(), config, shuffle=False)
    assert data.num_batches == 2
    batch, rest = data.batch(0), data.batch(1)
    assert batch.codes.shape == (2, 9, 20)
    text = [PAD] * 20
    text[11:14] = [EPAD, 10, 11]
    text[15:17] = [EPAD, 12]
    assert batch.codes[0, 0].tolist() == text
    loud, soft = round(100 * 0.2 / 2**0.5), round(100 * 0.1 / 2**0.5)
    assert batch.codes[0, 1, 13:17].tolist() == [loud] * 4  # Moshi's side
    assert batch.codes[0, 5, :6].tolist() == [soft] * 5 + [0]  # the user's
    assert batch.codes[0, 8, 6] == 3000
    assert batch.speaking is not None
    assert np.flatnonzero(batch.speaking[0]).tolist() == list(range(10, 20))
    # 25 frames give one sequence, the rest is short; 38 give two; then it begins anew.
    assert (batch.codes[1] != -1).all()
    assert (rest.codes[0, :, :18] != -1).all()
    assert (rest.codes[0, :, 18:] == -1).all()
    assert np.array_equal(rest.codes[1], batch.codes[0])

    frames = codec.frames
    shuffled = [Recordings(recordings, cache, Letters(), model_config(), config) for _ in range(2)]
    assert codec.frames == frames  # everything came from the cache
    rounds = [np.concatenate([d.batch(i).codes for i in range(6)]) for d in shuffled]
    assert np.array_equal(rounds[0], rounds[1])
    plain = {c.tobytes() for c in (*batch.codes, *rest.codes)}
    for epoch in range(4):
        assert {c.tobytes() for c in rounds[0][3 * epoch : 3 * epoch + 3]} == plain


def test_recordings_to_rehearse(tmp_path: Path) -> None:
    new, known = make_recording(tmp_path, "new"), make_recording(tmp_path, "known")
    manifest = tmp_path / "train.jsonl"
    write_manifest(manifest, [new], rehearse=[known])
    recordings = read_manifest(manifest)
    assert [recording.rehearse for recording in recordings] == [False, True]
    config = DataConfig(duration_sec=1.6, batch_size=2)
    codec: Any = Loudness()
    (tmp_path / "codec").write_text("weights")
    cache = TokenCache(tmp_path / "tokens", codec, tmp_path / "codec", config)
    data = Recordings(recordings, cache, Letters(), model_config(), config, shuffle=False)
    assert data.rehearses
    assert data.batch(0).extra[0].tolist() == [False, True]


def test_coarse_only(tmp_path: Path) -> None:
    config = DataConfig(duration_sec=1.6, batch_size=8, coarse_only=0.5)
    codec: Any = Loudness()
    codec_file = tmp_path / "codec"
    codec_file.write_text("weights")
    cache = TokenCache(tmp_path / "tokens", codec, codec_file, config)
    recordings = [Recording(make_recording(tmp_path, "one"), 2.0)]
    batch = Recordings(recordings, cache, Letters(), model_config(), config).batch(0)
    assert batch.inputs is not None
    assert np.array_equal(batch.inputs[:, :6], batch.codes[:, :6])  # up to the user's first
    left_out = (batch.inputs == -1).all(axis=2).sum(axis=1)
    assert set(left_out.tolist()) <= {0, 1, 2, 3}
    assert 0 < (left_out > 0).sum() < 8


def test_the_cache_tells_what_differs(tmp_path: Path) -> None:
    sound = make_recording(tmp_path, "one")
    recording = Recording(sound, 2.0)
    codec_file = tmp_path / "codec"
    codec_file.write_text("weights")
    codec: Any = Loudness()

    def codes(variant: int = 0, **settings: Any) -> np.ndarray:
        config = DataConfig(**settings)
        return TokenCache(tmp_path / "tokens", codec, codec_file, config).codes(recording, variant)

    plain = codes(level_db=None)
    assert not np.array_equal(codes(level_db=-10.0), plain)
    louder = codes(1, level_db=None, user=UserSide(gain_db=(12.0, 12.0), echo_share=1.0))
    assert np.array_equal(louder[0], plain[0])  # Moshi's side is left as it is
    assert (louder[1, 0, :5] > plain[1, 0, :5]).all()
    made = codec.frames
    assert np.array_equal(codes(level_db=None), plain)
    assert codec.frames == made
    make_recording(tmp_path, "one", 1.6)
    assert codes(level_db=None).shape[2] == 20


def test_levels() -> None:
    sound = np.concatenate([np.zeros(RATE, np.float32), tone(1.0, 0.1)])
    assert speech_level(sound, RATE) == pytest.approx(20 * np.log10(0.1 / 2**0.5), abs=0.05)
    assert speech_level(levelled(sound, -30.0, RATE), RATE) == pytest.approx(-30.0, abs=0.05)
    assert np.abs(levelled(sound, 0.0, RATE)).max() == pytest.approx(0.99, abs=1e-4)
    silence = np.zeros(RATE, np.float32)
    assert levelled(silence, -20.0, RATE) is silence


def test_the_users_side_is_varied_by_hand() -> None:
    rng = np.random.default_rng(0)
    own, user = tone(1.0, 0.4), np.zeros(RATE, np.float32)
    echo = UserSide((0.0, 0.0), (-200.0, -200.0), (-20.0, -20.0), (0.5, 0.5), 1.0)
    np.testing.assert_allclose(
        varied(user, own, echo, RATE, rng), 0.1 * late_by(own, RATE // 2, RATE), atol=1e-6
    )
    noise = UserSide((0.0, 0.0), (-40.0, -40.0), echo_share=0.0)
    assert np.std(varied(user, own, noise, RATE, rng)) == pytest.approx(0.01, rel=0.02)


def test_conversations_from_single_speakers() -> None:
    clips = [Clip(tone(0.5), (Word("a", 0.1, 0.2),)), Clip(tone(0.25)), Clip(tone(0.5))]
    turns = [(False, clips[1]), (True, clips[0]), (False, clips[2])]
    rng = np.random.default_rng(0)
    steady = MixConfig(pause=(0.4, 0.4), overlap_share=0.0, lead=1.0, tail=1.0)
    found = conversation(turns, steady, RATE, rng)
    # 1 s, 0.25 s of the user, 0.4 s, 0.5 s of Moshi, 0.4 s, 0.5 s of the user, 1 s.
    assert found.pcm.shape == (2, round(4.05 * RATE))
    (word,) = found.words
    assert word.text == "a"
    assert [word.start, word.end] == pytest.approx([1.75, 1.85])
    own, user = np.abs(found.pcm) > 0
    assert np.flatnonzero(own)[0] == pytest.approx(1.65 * RATE, abs=2)
    assert np.flatnonzero(user)[0] == pytest.approx(1.0 * RATE, abs=2)
    crossing = MixConfig(overlap_share=1.0, overlap=(0.1, 0.1))
    found = conversation(turns, crossing, RATE, rng)
    assert (np.abs(found.pcm).min(axis=0) > 0).sum() == pytest.approx(0.2 * RATE, rel=0.05)
