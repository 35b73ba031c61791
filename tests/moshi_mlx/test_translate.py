"""Translation: the reference's numbers, whole runs, their ends, and what is refused."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import soundfile

import moshi_mlx
from moshi_mlx import ArgumentError, MoshiError, Sampling, SessionError, Speech, VerbError, catalog
from moshi_mlx.families import translate
from moshi_mlx.families.translate import END, Hibiki, Run, pieces
from moshi_mlx.files import read_json, write_json
from moshi_mlx.generate import Generator
from moshi_mlx.guidance import Guidance
from tests import conformance
from tests.fixtures import make_hibiki

CASES = Path(__file__).parents[1] / "fixtures" / "hibiki"
GREEDY = Sampling(temperature=0)
FRAMES = 12
RATE = 24_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_hibiki.write(tmp_path_factory.mktemp("models") / "hibiki")


@pytest.fixture(scope="module")
def hibiki(folder: Path) -> Hibiki:
    model = moshi_mlx.load(folder, verb="translate", codec="mlx")
    assert isinstance(model, Hibiki)
    return model


@pytest.fixture(scope="module")
def zero(tmp_path_factory: pytest.TempPathFactory) -> Hibiki:
    folder = make_hibiki.write(tmp_path_factory.mktemp("models") / "zero", zero=True)
    model = moshi_mlx.load(folder, codec="mlx")
    assert isinstance(model, Hibiki)
    return model


@pytest.fixture(scope="module")
def source() -> np.ndarray:
    """A bit more than FRAMES − 1 frames of noise."""
    noise = np.random.default_rng(0).normal(0, 0.1, FRAMES * 1920 - 1000)
    return noise.astype(np.float32)


@pytest.fixture(scope="module")
def speech(hibiki: Hibiki, source: np.ndarray) -> Speech:
    return hibiki.translate(source)


def frames_of(pcm: np.ndarray) -> np.ndarray:
    return np.pad(pcm, (0, -len(pcm) % 1920)).reshape(-1, 1920)


# -------------------------------------------------------------------------- the reference


@pytest.mark.parametrize("case", ["hibiki", "hibiki-zero"])
def test_reference_numbers(case: str) -> None:
    """Frames, guidance and whole file runs."""
    result = conformance.run_case(CASES / case)
    assert conformance.passes(result), result
    named = {"stream.audio_logits", "zero.tokens" if "zero" in case else "file_cfg.tokens"}
    assert named <= result.keys()


def test_an_eos_is_read_as_padding_quantized_or_not(hibiki: Hibiki) -> None:
    for bits in (None, 8, 4):
        lm = make_hibiki.random_lm(make_hibiki.config_of(False, dim=64), ends=False)
        if bits is not None:
            nn.quantize(lm, 32, bits, class_predicate=lambda path, _: path == "text_emb")
        rows = lm.text_emb(mx.array([END, 3, 1]))
        assert not mx.array_equal(rows[0], rows[1])
        Hibiki.amend(lm)
        amended = lm.text_emb(mx.array([END, 3, 1]))
        assert mx.array_equal(amended, rows[mx.array([1, 1, 2])])
    table = hibiki.lm.text_emb.weight
    assert mx.array_equal(table[END], table[3])
    stored = mx.load(str(hibiki.files.weights[0]))
    assert isinstance(stored, dict)
    assert not mx.array_equal(stored["text_emb.weight"][END], stored["text_emb.weight"][3])


def test_guidance_moves_away_from_conditions(hibiki: Hibiki) -> None:
    """Not from none; equal halves leave all as it is."""
    heard = np.zeros((1, 4), np.int32)

    def logits(null: Any, coefficient: float = 3.0) -> np.ndarray:
        guidance = Guidance(coefficient)
        generator = Generator(
            hibiki.lm,
            text=GREEDY,
            audio=GREEDY,
            conditions=[{"description": "good"}],
            guidance=guidance,
            null_conditions=null,
        )
        return np.array(guidance.guided(generator.step(heard).text_logits))

    same = logits([{"description": "good"}])
    np.testing.assert_allclose(same, logits([{"description": "bad"}], 1.0), atol=1e-4)
    assert np.abs(same - logits([{"description": "bad"}])).max() > 0.01
    assert np.abs(logits(None) - logits([{"description": "bad"}])).max() > 0.01
    with pytest.raises(ArgumentError, match="null_conditions are for guidance"):
        Generator(hibiki.lm, text=GREEDY, audio=GREEDY, null_conditions=[{}])
    with pytest.raises(ArgumentError, match="null_conditions must be 1 mappings, are 2"):
        logits([{}, {}])


# ------------------------------------------------------------------------------ whole runs


def test_a_translation_goes_on_after_its_source_until_its_end(
    hibiki: Hibiki, source: np.ndarray, speech: Speech
) -> None:
    """The remainder of the source is heard, no EOS before its end counts, and the tail is whole."""
    with hibiki.session() as session:
        live = [session.step(frame) for frame in frames_of(source)]
        live += session.end()
    assert [frame.tokens is None for frame in live[:3]] == [True, False, False]
    said = [frame for frame in live if frame.tokens is not None]
    text = [int(frame.tokens[0]) for frame in said if frame.tokens is not None]
    assert text[-1] == END
    assert END in text[:FRAMES], "too early"
    assert len(text) > FRAMES
    np.testing.assert_allclose(speech.pcm, np.concatenate([frame.pcm for frame in said]), atol=1e-5)
    assert speech.seconds == pytest.approx(len(text) / 12.5)
    assert speech.sample_rate == RATE
    late = 1 / 12.5  # a live frame comes one later than it stands in the file
    words = [word for frame in live for word in frame.words] + [*session.flush()]
    assert [word.text for word in words] == [word.text for word in speech.words]
    assert words[0].start == pytest.approx(speech.words[0].start + late)


def test_the_same_seed_gives_the_same_and_guidance_another(
    hibiki: Hibiki, source: np.ndarray, speech: Speech
) -> None:
    again = hibiki.translate(source.astype(np.float64), seed=0, cfg=1)
    assert again.text == speech.text
    np.testing.assert_array_equal(again.pcm, speech.pcm)
    others: list[dict[str, Any]] = [{"seed": 1}, {"cfg": 3.0}, {"quality": "very_bad"}]
    for other in others:
        assert hibiki.translate(source, **other).text != speech.text


def test_a_file_of_any_rate(hibiki: Hibiki, source: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "in.wav"
    soundfile.write(path, np.column_stack([source, source]), RATE, "FLOAT")
    told: list[float] = []
    speech = hibiki.translate(path, text=GREEDY, audio=GREEDY, progress=told.append)
    assert told == sorted(told)
    assert told[-1] == pytest.approx(len(source) / RATE)
    wanted = hibiki.translate(source, text=GREEDY, audio=GREEDY)
    np.testing.assert_array_equal(speech.pcm, wanted.pcm)
    soundfile.write(path, source[::3], RATE // 3)
    assert hibiki.translate(str(path)).seconds > len(source) / RATE


def test_without_an_end_it_is_cut_and_told(
    zero: Hibiki, source: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    """The run is bounded; so is a live one."""
    speech = zero.translate(source, tail_seconds=1.0)
    assert FRAMES / 12.5 <= speech.seconds <= (FRAMES + 13) / 12.5
    assert "did not end within 1 s after its source" in caplog.text
    with zero.session() as session:
        first = session.step(source[:1920])
        assert first.tokens is not None, "silent frames came before the first"
        last = [*session.end(0.4)]
    assert len(last) == 6
    assert END not in [int(frame.tokens[0]) for frame in last if frame.tokens is not None]


def test_the_best_of_several_ended_and_is_the_likeliest(hibiki: Hibiki, source: np.ndarray) -> None:
    run = Run(hibiki._generator("very_good", 1.0, batch=3, text=None, audio=None), scored=True)
    run._frames = [np.full((3, 5), 3, np.int32)] * 4
    run._scores = [np.array(row, np.float32) for row in ([-1, -4, 0], [-1, -1, 0], [-9, 0, 0])]
    run._ends = np.array([1, 2, -1])
    assert run.best() == 0
    run._ends = np.array([2, 2, -1])
    assert run.best() == 1
    run._ends = np.array([-1, -1, -1])
    assert run.best() == 2
    one, two = (hibiki.translate(source, best_of=n, seed=3) for n in (3, 3))
    assert one.text == two.text
    assert hibiki.translate(source, best_of=2, cfg=3.0).words


def test_scores_are_log_probabilities_of_what_is_said(hibiki: Hibiki, source: np.ndarray) -> None:
    """Those of teacher forcing, for the tokens that come out."""
    generator = hibiki._generator("very_good", 1.0, batch=2, text=Sampling(top_k=5), audio=GREEDY)
    run = Run(generator, scored=True)
    heard = np.random.default_rng(1).integers(0, 512, (FRAMES, 4)).astype(np.int32)
    for codes in heard:
        run.hear(codes)
    given = np.repeat(heard[:-1].T[None], 2, axis=0)  # output and source stand side by side
    codes = np.concatenate([run.tokens, given], axis=1)
    conditions = hibiki.lm.condition_provider([{"description": "very_good"}] * 2)
    logits = hibiki.lm.forward(codes, conditions).text_logits[:, 0]
    chosen = mx.take_along_axis(logits, mx.array(run.tokens[:, 0, :, None]), axis=-1)[..., 0]
    wanted = np.array(chosen - mx.logsumexp(logits, axis=-1))
    ours = np.stack(run._scores, axis=1)[:, : wanted.shape[1]]
    np.testing.assert_allclose(ours, wanted, atol=1e-3)


# ----------------------------------------------------------------------------- long sound


def noise(*seconds: float) -> np.ndarray:
    """Sound and pauses, in turn, as long as these; at 1000 Hz."""
    rng = np.random.default_rng(0)
    parts = [rng.normal(0, 0.1 * (i % 2 == 0), round(1000 * s)) for i, s in enumerate(seconds)]
    return np.concatenate(parts).astype(np.float32)


def test_long_sound_is_split_at_its_longest_late_pause() -> None:
    assert pieces(noise(3), 1000, 3.0) == [(0, 3000)]
    # The longest pause lies in the first half, and counts only where there is no other.
    pcm = noise(1, 1, 2, 0.4, 1, 0.6, 2)
    assert pieces(pcm, 1000, 6.0) == [(0, 5400), (6000, 8000)]
    assert pieces(noise(1, 1, 5), 1000, 5.0) == [(0, 1000), (2000, 7000)]
    assert pieces(noise(7), 1000, 3.0) == [(0, 3000), (3000, 6000), (6000, 7000)]
    assert pieces(noise(2, 9), 1000, 3.0) == [(0, 2000)]
    assert pieces(noise(0, 9, 2), 1000, 3.0) == [(9000, 11000)]
    assert pieces(np.zeros(4000, np.float32), 1000, 3.0) == [(0, 3000), (3000, 4000)]


def test_pieces_are_joined_with_their_pauses(
    hibiki: Hibiki, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(translate, "LONGEST_SECONDS", 1.0)
    rng = np.random.default_rng(0)
    one, two = (rng.normal(0, 0.1, n).astype(np.float32) for n in (19_200, 12_000))
    for pause in (9600, 48_000):
        caplog.clear()
        whole = hibiki.translate(np.concatenate([one, np.zeros(pause, np.float32), two]))
        assert "at most 1 s" in caplog.text
        assert f"2 pieces, which begin at {(19_200 + pause) / RATE:.1f} s" in caplog.text
        first, second = hibiki.translate(one), hibiki.translate(two)
        begin = len(first.pcm) + pause  # the pause stays, after the first one's tail
        np.testing.assert_array_equal(whole.pcm[: len(first.pcm)], first.pcm)
        assert not whole.pcm[len(first.pcm) : begin].any()
        np.testing.assert_array_equal(whole.pcm[begin:], second.pcm)
        moved = [word.start + begin / RATE for word in second.words]
        assert [word.start for word in whole.words[len(first.words) :]] == pytest.approx(moved)


# ------------------------------------------------------------------------ sessions, refusals


def test_a_translation_is_resumed_after_its_end_was_told(
    hibiki: Hibiki, source: np.ndarray
) -> None:
    with hibiki.session() as session:
        for frame in frames_of(source)[:4]:
            session.step(frame)
        ending = session.end()
        next(ending)
        state = session.save()
        wanted = [frame.tokens for frame in ending]
    with hibiki.session(state=state) as resumed:
        silence = np.zeros(1920, np.float32)
        ours = [resumed.step(silence).tokens for _ in wanted]
    assert wanted
    np.testing.assert_array_equal(ours, wanted)


def test_a_reset_translation_is_a_new_one(hibiki: Hibiki, source: np.ndarray) -> None:
    frames = frames_of(source)[:5]
    with hibiki.session(cfg=2.0) as session:
        first = [session.step(frame).pcm for frame in frames]
        session.reset()
        np.testing.assert_array_equal(first, [session.step(frame).pcm for frame in frames])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"source": np.zeros(0, np.float32)}, r"samples \[n\], is \[0\]"),
        ({"source": np.zeros((2, 5), np.float32)}, r"samples \[n\], is \[2, 5\]"),
        ({"source": np.full(9, np.nan)}, "source must be finite"),
        ({"source": __file__}, "cannot read .*test_translate.py as sound"),
        ({"source": "no/such.wav"}, "there is no file no/such.wav"),
        ({"quality": "fine"}, "quality must be one of very_bad, .*, very_good, is 'fine'"),
        ({"quality": None}, "quality must be one of .*, is None"),
        ({"cfg": float("nan")}, "cfg must be from 0 to 100, is nan"),
        ({"best_of": 0}, "best_of must be a whole number from 1 to 64, is 0"),
        ({"tail_seconds": -1}, "tail_seconds must be from 0 to 3600, is -1"),
        ({"seed": -1}, "seed must be"),
        ({"kv_bits": 3}, "8 or 4 bits, not 3"),
    ],
)
def test_refused(hibiki: Hibiki, arguments: dict[str, Any], message: str) -> None:
    options = {"source": np.zeros(1920, np.float32), **arguments}
    with pytest.raises((MoshiError, ValueError), match=message):
        hibiki.translate(options.pop("source"), **options)


def test_a_model_without_ratings_takes_none(zero: Hibiki) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"quality": "good"}, "quality is 'good'"), ({"cfg": 3}, "cfg is 3")
    ]  # fmt: skip
    for options, said in wrong:
        with pytest.raises(ArgumentError, match=f"{said}, but .* was trained without ratings"):
            zero.session(**options)


def test_other_verbs_and_files_of_other_models(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(VerbError, match="a speech translation model: it can translate, but not ta"):
        moshi_mlx.load(folder, verb="talk")
    other = tmp_path / "other"
    other.mkdir()
    for path in folder.iterdir():
        (other / path.name).symlink_to(path.resolve())
    config = read_json(folder / "config.json")
    (other / "config.json").unlink()
    write_json(other / "config.json", {**config, "card": 2048})
    with pytest.raises(MoshiError, match="field 'card' is 2048"):
        moshi_mlx.load(other)
    with pytest.raises(VerbError, match="nano is a dialogue model: it can talk, but not translate"):
        moshi_mlx.load("nano", verb="translate")


def test_the_catalogue_has_them() -> None:
    found = catalog.find("hibiki")
    assert found is not None
    assert (found.name, found.repository) == ("hibiki-1b", "kyutai/hibiki-1b-mlx-bf16")
    zero = catalog.find("hibiki-zero")
    assert zero is not None
    assert set(zero.languages) == {"fr", "es", "pt", "de", "en"}
    every = [name for e in catalog.ENTRIES for name in (e.name, *e.aliases)]
    assert len(set(every)) == len(every)


def test_after_the_end_nothing_more_is_heard(hibiki: Hibiki) -> None:
    silence = np.zeros(hibiki.frame_size, np.float32)
    with hibiki.session() as session:
        session.step(silence)
        left = session.end(1.0)
        next(left)
        for more in (lambda: session.step(silence), lambda: next(session.end())):
            with pytest.raises(SessionError, match="the source has ended"):
                more()
        list(left)
        session.reset()
        assert session.step(silence).index == 0
    with pytest.raises(SessionError, match="is closed"):
        next(session.end())
