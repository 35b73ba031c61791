"""Speech on the codec's grid: where its words begin, and that its pitch stays."""

import numpy as np
import pytest

from recipes.nano.codec_data import FRAME_SIZE
from recipes.nano.grid import on_grid, stretched
from recipes.nano.speech import SAMPLE_RATE, Span, Speech


def tone(seconds: float, frequency: float = 200.0) -> np.ndarray:
    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    return (0.5 * np.sin(2 * np.pi * frequency * time)).astype(np.float32)


@pytest.mark.parametrize("factor", [0.7, 1.0, 1.6])
def test_another_tempo_has_the_same_pitch_and_loudness(factor: float) -> None:
    pcm = tone(1.0)
    length = round(len(pcm) * factor)
    out = stretched(pcm, np.array([0, len(pcm)]), np.array([0, length]))
    assert out.shape == (length,) and out.dtype == np.float32
    inner = out[2400:-2400]
    spectrum = np.abs(np.fft.rfft(inner * np.hanning(len(inner))))
    assert spectrum.argmax() * SAMPLE_RATE / len(inner) == pytest.approx(200, abs=3)
    assert np.sqrt(np.mean(inner**2)) == pytest.approx(0.5 / np.sqrt(2), rel=0.05)


def test_words_get_whole_frames() -> None:
    """Three words of 50, 400 and 1,500 ms; the second's pause counts to it."""
    pcm = np.concatenate([np.zeros(960, np.float32), tone(2.1), np.zeros(1920, np.float32)])
    words = (Span("a", 0.04, 0.09), Span("long", 0.09, 0.45), Span("story.", 0.64, 2.14))
    phones = (Span("x", 0.04, 2.14),)
    speech = on_grid(Speech(pcm, words, phones), longest=9, longest_last=7)
    frames = [(round(w.start * 12.5, 6), round(w.end * 12.5, 6)) for w in speech.words]
    assert frames == [(1, 3), (3, 10), (10, 17)]
    assert [w.label for w in speech.words] == ["a", "long", "story."]
    loud = np.flatnonzero(np.abs(speech.pcm) > 0.1) / FRAME_SIZE
    assert loud[0] == pytest.approx(1, abs=0.1) and loud[-1] == pytest.approx(17, abs=0.3)
