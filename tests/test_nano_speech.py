"""Voices that the evaluation alone uses."""

import builtins
import shutil
from typing import Any

import numpy as np
import pytest

from moshi_mlx.errors import MoshiError
from moshi_mlx.training.nano.speech import (
    SAMPLE_RATE,
    UNHEARD_ENGINE_VOICES,
    Rendition,
    Speech,
    synthesize,
)


def spoken(voice: str, stretch: float = 1, pitch: float = 1, warp: float = 1) -> Speech:
    pytest.importorskip("ttspico")
    if shutil.which("flite") is None:
        pytest.skip("words are dealt out by flite's phones")
    return synthesize(Rendition("what is the capital of france", voice, stretch, pitch, warp))


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


def test_without_pico_the_error_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **options: Any) -> Any:
        if name == "ttspico":
            raise ImportError(name)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MoshiError, match="ttspico"):
        synthesize(Rendition("hello", "pico:en-US"))
