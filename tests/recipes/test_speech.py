"""Synthesizers: that they keep to a rendition, and what is made of their voices in training."""

import builtins
import ctypes.util
import shutil
from typing import Any

import numpy as np
import pytest

from moshi_mlx.errors import MoshiError
from recipes.nano.speech import (
    PHONES,
    SAMPLE_RATE,
    TRAIN_USER_VOICES,
    UNHEARD_ENGINE_VOICES,
    UNKNOWN_PHONE,
    Rendition,
    Span,
    Speech,
    coloured,
    decibels,
    disturbed,
    far_away,
    hesitant,
    loud_rms,
    reverberant,
    swayed,
    synthesize,
    telephone,
    through_opus,
)


def spoken(voice: str, stretch: float = 1, pitch: float = 1, warp: float = 1) -> Speech:
    pytest.importorskip("ttspico")
    if shutil.which("flite") is None:
        pytest.skip("words are dealt out by flite's phones")
    return synthesize(Rendition("what is the capital of france", voice, stretch, pitch, warp))


def test_a_word_of_one_phone_that_has_no_name_here() -> None:
    if ctypes.util.find_library("espeak-ng") is None:
        pytest.skip("needs espeak-ng")
    speech = synthesize(Rendition("oh", "espeak:en-gb-x-gbcwmd"))
    assert [phone.label for phone in speech.phones if phone.label != "pau"] == [UNKNOWN_PHONE]
    assert [word.label for word in speech.words] == ["oh"]
    assert 0.1 < speech.speech_end < len(speech.pcm) / SAMPLE_RATE


@pytest.mark.parametrize("voice", UNHEARD_ENGINE_VOICES)
def test_pico_speaks_with_little_silence_around(voice: str) -> None:
    speech = spoken(voice)
    assert [word.label for word in speech.words] == ["what", "is", "the", "capital", "of", "france"]
    seconds = len(speech.pcm) / SAMPLE_RATE
    assert 1 < speech.speech_end < seconds < speech.speech_end + 0.1
    loud = np.flatnonzero(np.abs(speech.pcm) > 0.02) / SAMPLE_RATE
    assert loud[0] < 0.2
    assert speech.speech_end - 0.25 < loud[-1] < speech.speech_end + 0.01
    assert speech.words[0].start < 0.05
    assert speech.words[-1].end == pytest.approx(speech.speech_end)


def test_pico_keeps_to_the_rendition() -> None:
    voice = UNHEARD_ENGINE_VOICES[0]
    plain = spoken(voice)
    np.testing.assert_array_equal(plain.pcm, spoken(voice).pcm)
    slow = spoken(voice, stretch=1.25)
    assert slow.speech_end == pytest.approx(1.25 * plain.speech_end, rel=0.08)
    assert spoken(voice, warp=1.1).speech_end == pytest.approx(plain.speech_end / 1.1, rel=0.05)
    high = spoken(voice, pitch=1.2)
    assert high.speech_end == pytest.approx(plain.speech_end, rel=0.05)
    assert frequency(high) == pytest.approx(1.2 * frequency(plain), rel=0.08)


def frequency(speech: Speech) -> float:
    """Median fundamental frequency in Hz of what is voiced."""
    found = []
    for start in range(0, len(speech.pcm) - 1200, 480):
        window = speech.pcm[start : start + 1200]
        echo = np.correlate(window, window, "full")[1199:]
        period = 80 + int(np.argmax(echo[80:300]))
        if echo[0] > 6 and echo[period] > 0.6 * echo[0]:
            found.append(SAMPLE_RATE / period)
    return float(np.median(found))


FESTIVAL_VOICES = [v for v in TRAIN_USER_VOICES if v.startswith("festival:")]


@pytest.mark.parametrize("voice", FESTIVAL_VOICES)
def test_festival_keeps_to_the_rendition(voice: str) -> None:
    if shutil.which("festival") is None or shutil.which("flite") is None:
        pytest.skip("needs festival, and flite for its phones")

    def speak(stretch: float = 1, pitch: float = 1, warp: float = 1) -> Speech:
        text = "what is the capital of france"
        return synthesize(Rendition(text, voice, stretch, pitch, warp))

    plain = speak()
    assert [word.label for word in plain.words] == ["what", "is", "the", "capital", "of", "france"]
    assert {phone.label for phone in plain.phones} <= set(PHONES)
    np.testing.assert_array_equal(plain.pcm, speak().pcm)
    assert speak(stretch=1.25).speech_end == pytest.approx(1.25 * plain.speech_end, rel=0.08)
    assert speak(warp=1.1).speech_end == pytest.approx(plain.speech_end / 1.1, rel=0.05)
    if not voice.endswith("_hts"):  # it has one pitch
        assert frequency(speak(pitch=1.2)) == pytest.approx(1.2 * frequency(plain), rel=0.08)


def tone() -> Speech:
    """Half a second of 400 Hz, then of 800 Hz, each a word."""
    time = np.arange(SAMPLE_RATE // 2) / SAMPLE_RATE
    pcm = np.concatenate([np.sin(2 * np.pi * f * time) for f in (400, 800)]).astype(np.float32)
    words = (Span("low", 0.0, 0.5), Span("high", 0.5, 1.0))
    return Speech(0.1 * pcm, words, words)


def test_swayed_speech_keeps_its_words_where_they_sound() -> None:
    for seed in range(5):
        speech = swayed(tone(), np.random.default_rng(seed))
        low, high = speech.words
        assert (low.label, high.label) == ("low", "high")
        assert low.start == 0
        assert high.end == pytest.approx(len(speech.pcm) / SAMPLE_RATE, abs=0.002)
        assert np.exp(-0.17) < high.end < np.exp(0.17)
        for word, pitch in ((low, 400), (high, 800)):
            sound = speech.pcm[round(word.start * SAMPLE_RATE) : round(word.end * SAMPLE_RATE)]
            crossings = np.count_nonzero(np.diff(np.signbit(sound))) / 2
            assert crossings == pytest.approx(pitch / 2, abs=3)  # as many periods as before


def test_coloured_speech_is_as_loud_and_another() -> None:
    rng = np.random.default_rng(0)
    pcm = (0.1 * rng.standard_normal(SAMPLE_RATE)).astype(np.float32)
    other = coloured(pcm, rng)
    assert loud_rms(other) == pytest.approx(loud_rms(pcm), rel=0.02)
    before, after = (np.abs(np.fft.rfft(x)) ** 2 for x in (pcm, other))
    bands = [slice(a, 2 * a) for a in (125, 250, 500, 1000, 2000, 4000)]
    change = np.array([10 * np.log10(after[b].sum() / before[b].sum()) for b in bands])
    assert 2 < np.ptp(change) < 18


def test_without_pico_the_error_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **options: Any) -> Any:
        if name == "ttspico":
            raise ImportError(name)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MoshiError, match="ttspico"):
        synthesize(Rendition("hello", "pico:en-US"))


def test_a_room_has_the_time_and_the_distance_that_were_asked_for() -> None:
    impulse = np.zeros(2 * SAMPLE_RATE, np.float32)
    impulse[0] = 1
    heard = reverberant(impulse, 0.5, 3.0, np.random.default_rng(0))
    direct, tail = heard[0] ** 2, heard[1:].astype(np.float64) ** 2
    assert 10 * np.log10(direct / tail.sum()) == pytest.approx(3.0, abs=0.01)
    left = 10 * np.log10(tail[::-1].cumsum()[::-1] + 1e-20)  # Schroeder's curve
    at = [np.argmax(left < left[0] - fall) / SAMPLE_RATE for fall in (5, 25)]
    assert 3 * (at[1] - at[0]) == pytest.approx(0.5, abs=0.05)


def test_a_telephone_has_its_band() -> None:
    time = np.arange(SAMPLE_RATE) / SAMPLE_RATE

    def loss(frequency: float) -> float:
        tone = (0.3 * np.sin(2 * np.pi * frequency * time)).astype(np.float32)
        return float(20 * np.log10(loud_rms(telephone(tone)) / loud_rms(tone)))

    assert abs(loss(1000)) < 0.5
    assert loss(100) < -20
    assert loss(6000) < -20


def test_opus_keeps_length_and_place() -> None:
    tone = np.zeros(SAMPLE_RATE, np.float32)
    tone[12_000:14_000] = 0.3 * np.sin(np.arange(2000) / 5)
    heard = through_opus(tone, 0.9)
    assert heard.shape == tone.shape
    assert np.corrcoef(heard, tone)[0, 1] > 0.9


def test_a_hesitant_speaker_says_the_same_words_later() -> None:
    pcm = np.full(SAMPLE_RATE, 0.1, np.float32)
    words = (Span("a", 0.0, 0.4), Span("b", 0.4, 0.7), Span("c", 0.7, 1.0))
    late = hesitant(Speech(pcm, words, words), [1], np.random.default_rng(1))
    pause = len(late.pcm) / SAMPLE_RATE - 1
    assert 0.4 <= pause <= 1.5
    assert [w.start for w in late.words] == pytest.approx([0.0, 0.4, 0.7 + pause], abs=1e-4)
    assert late.words == late.phones
    silent = late.pcm[int(0.7 * SAMPLE_RATE) : int((0.7 + pause) * SAMPLE_RATE)]
    assert not silent.any()


def test_a_voice_in_the_next_room_is_fainter_than_any_user() -> None:
    rng = np.random.default_rng(2)
    pcm = np.zeros(3 * SAMPLE_RATE, np.float32)
    pcm[SAMPLE_RATE : 2 * SAMPLE_RATE] = 0.08 * rng.standard_normal(SAMPLE_RATE)

    def level(heard: np.ndarray) -> float:
        return float(np.sqrt(np.mean(heard[SAMPLE_RATE : 2 * SAMPLE_RATE] ** 2)))

    near = [level(disturbed(pcm, rng)) for _ in range(40)]
    far = [level(far_away(pcm, rng)) for _ in range(40)]
    assert decibels(-38) < min(near)
    assert max(near) < decibels(-8)
    assert max(far) < decibels(-34)
    assert max(far) < np.median(near)
