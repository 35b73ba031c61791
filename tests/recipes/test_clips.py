"""Sequences of the small transcriber and the small voice, made of clips by hand."""

import time
from pathlib import Path

import numpy as np
import pytest

from moshi_mlx.text import TextTokenizer
from moshi_mlx.training.losses import LossConfig, prepare
from recipes.nano import clips as clips_module
from recipes.nano import stt, tts
from recipes.nano.clips import (
    CARD,
    CODEBOOKS,
    Clip,
    Take,
    coded,
    encode,
    load_shards,
    make_shards,
    record_shards,
)
from recipes.nano.codec_data import FRAME_SIZE
from recipes.nano.sentences import EPAD, PAD, train_tokenizer


def clip(words: str, starts: tuple[float, ...], end: float, frames: int) -> Clip:
    codes = np.arange(frames, dtype=np.int16) + 10 * np.arange(CODEBOOKS, dtype=np.int16)[:, None]
    return Clip(codes, tuple(words.split()), starts, end, "flite:slt")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    return TextTokenizer(train_tokenizer(tmp_path_factory.mktemp("tokenizer")))


def made(number: int) -> list[Clip]:
    return [clip("hello", (1.5,), 4.25, 6 + number), clip("good night", (1.0, 3.0), 6.0, 9)]


def test_shards_come_back_and_are_made_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="prepare"):
        load_shards(tmp_path)
    make_shards(made, tmp_path, [0], 1)
    file = tmp_path / "0000.npz"
    time = file.stat().st_mtime_ns
    make_shards(made, tmp_path, [0, 1], 1)
    assert file.stat().st_mtime_ns == time
    for found, wanted in zip(load_shards(tmp_path), [*made(0), *made(1)], strict=True):
        assert np.array_equal(found.codes, wanted.codes)
        assert (found.words, found.starts, found.end, found.voice) == (
            wanted.words, wanted.starts, wanted.end, wanted.voice
        )  # fmt: skip


def test_side_by_side_codes_are_those_of_one_alone() -> None:
    rng = np.random.default_rng(0)
    recordings = [
        (0.1 * rng.standard_normal(FRAME_SIZE * frames + 100)).astype(np.float32)
        for frames in (5, 2)
    ]
    both = encode(recordings)
    assert [c.shape for c in both] == [(CODEBOOKS, 5), (CODEBOOKS, 2)]
    assert np.array_equal(both[1], encode(recordings[1:])[0])


def test_codes_do_not_depend_on_how_many_are_encoded_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(1)
    recordings = [
        (0.1 * rng.standard_normal(FRAME_SIZE * frames)).astype(np.float32) for frames in (3, 7, 4)
    ]
    few = encode(recordings)
    monkeypatch.setattr(clips_module, "on_gpu", lambda: True)
    for one, other in zip(few, encode(recordings), strict=True):
        assert np.array_equal(one, other)


def take(number: int) -> list[Take]:
    rng = np.random.default_rng(number)
    pcm = (0.1 * rng.standard_normal(8 * FRAME_SIZE)).astype(np.float32)
    return [Take(clip("hello", (1.5,), 4.25, 6), pcm, 2)]


def test_shards_are_recorded_by_others_until_the_time_is_over(tmp_path: Path) -> None:
    record_shards(take, tmp_path, [4, 5, 6], 2, time.monotonic() + 60)
    for found, number in zip(load_shards(tmp_path), (4, 5, 6), strict=True):
        (wanted,) = coded(take(number))
        assert found.frames == 6 and np.array_equal(found.codes, wanted.codes)
    record_shards(take, tmp_path, [7], 1, time.monotonic())
    assert not (tmp_path / "0007.npz").exists()


def test_a_transcript_comes_after_its_words(tokenizer: TextTokenizer) -> None:
    clips = [clip("hello you", (2.2, 6.6), 9.5, 12), clip("good night", (14.0, 15.0), 20.0, 30)]
    heard = stt.sequence(clips, 40, tokenizer)
    assert np.array_equal(heard.codes[1:, :12], clips[0].codes)
    assert np.array_equal(heard.codes[1:, 12:], clips[1].codes[:, :28])
    text = heard.codes[0]
    hello, you, good, night = (tokenizer.encode(w)[0] for w in ["hello", "you", "good", "night"])
    # good and night begin in frames that follow each other: no room for another EPAD.
    assert {i: t for i, t in enumerate(text) if t != PAD} == {
        9: EPAD, 10: hello, 14: EPAD, 15: you, 33: EPAD, 34: good, 35: night
    }  # fmt: skip
    # From frame 9.5 to 26 nobody speaks: 1.3 s.
    at = heard.pauses[:, 0].tolist()
    assert at[:3] == [-1] * 3 and at[3:11] == [0] * 8
    assert at[11:26] == [1] * 15 and at[26:33] == [0] * 7
    assert np.array_equal(heard.pauses[11:26, 1], [1] * 15)
    assert not heard.pauses[11:26, 2:].any()
    # The second clip's pause lasts to its end at least, 0.8 s.
    assert heard.pauses[34].tolist() == [1, 0, 0, 0]


def test_a_script_comes_before_its_sound(tokenizer: TextTokenizer) -> None:
    clips = [clip("hello you.", (1.0, 4.0), 7, 16), clip("hello", (1.0,), 6, 15)]
    quiet = np.full(CODEBOOKS, 77)
    said = tts.sequence(clips, quiet, 50, tokenizer)
    text, sound = said.codes[0], said.codes[1:]
    hello, you, stop = tokenizer.encode("hello you.")
    assert {i: t for i, t in enumerate(text.tolist()) if t not in (PAD, -1)} == {
        2: EPAD, 3: hello, 5: EPAD, 6: you, 7: stop, 12: EPAD, 13: hello, 21: EPAD
    }  # fmt: skip
    assert (text[29:] == -1).all() and (text[:29] >= 0).all()
    assert (sound[:, : tts.DELAY] == -1).all() and (sound[:, 8:10] == 77).all()
    assert np.array_equal(sound[:, 10:20], clips[0].codes[:, :10])
    assert np.array_equal(sound[:, 20:35], clips[1].codes[:, :15])
    assert (sound[:, 35:] == -1).all()
    assert np.array_equal(said.speaking, sound[0] >= 0)


def test_batches_follow_from_the_seed_and_fit_the_models(tokenizer: TextTokenizer) -> None:
    clips = [clip("hello you", (2.2, 6.6), 9.5, 40), clip("good night.", (1.0, 5.0), 9.0, 18)]
    datasets = (
        (stt.Transcripts(clips, tokenizer, 1), stt.lm_config(), LossConfig()),
        (
            tts.Scripts(clips, np.zeros(CODEBOOKS, np.int32), tokenizer, 1),
            tts.lm_config(),
            LossConfig(text_word_weight=0, depth_keep=0.5),
        ),
    )
    for dataset, config, loss in datasets:
        batch = dataset.batch(3)
        again = dataset.batch(3)
        assert np.array_equal(batch.codes, again.codes)
        other = dataset.batch(4)
        assert batch.inputs is not None and again.inputs is not None and other.inputs is not None
        assert np.array_equal(batch.inputs, again.inputs)
        assert not np.array_equal(batch.inputs, other.inputs)
        assert batch.codes.shape[1] == 1 + CODEBOOKS and batch.codes[:, 1:].max() < CARD
        prepared, counts = prepare(batch, config, loss, np.random.default_rng(0))
        assert prepared.audio.shape[1] == config.dep_q and counts[0] > 0
