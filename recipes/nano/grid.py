"""Speech at another tempo, word by word: every word begins with a frame of the codec.

Knows sound and word times; nothing of codes or models. A small model has few words to learn if a
word is always cut into frames in the same way.
"""

from __future__ import annotations

import numpy as np

from .codec_data import FRAME_SIZE
from .speech import SAMPLE_RATE, Span, Speech

_HOP, _WINDOW = 360, 720  # samples between windows, and of one
_REACH = 150  # samples a window may move to fit: more than half a period of a low voice


def stretched(pcm: np.ndarray, there: np.ndarray, here: np.ndarray) -> np.ndarray:
    """`pcm` at another tempo between each pair of knots, its pitch kept.

    WSOLA (Verhelst and Roelands 1993): windows are taken where the map says, moved to where they
    go on best from the window before.

    Args:
        pcm: float32 [samples].
        there: the knots' samples in `pcm`, rising, the first 0.
        here: where they go, rising, the first 0 and the last the length of the result.

    Returns float32 [here[-1]].
    """
    length = int(here[-1])
    margin = _REACH + _WINDOW
    source = np.pad(pcm.astype(np.float64), (margin, 2 * margin))
    fade = np.hanning(_WINDOW + 1)[:-1]
    out = np.zeros(length + 2 * _WINDOW)
    weight = np.zeros_like(out)
    at = None
    for begin in range(0, length + _HOP, _HOP):
        wanted = margin + round(float(np.interp(begin, here, there))) - _WINDOW // 2
        if at is not None:
            natural = source[at + _HOP : at + _HOP + _WINDOW]
            near = source[wanted - _REACH : wanted + _REACH + _WINDOW]
            energy = np.convolve(near**2, np.ones(_WINDOW), "valid") + 1e-6
            fit = np.correlate(near, natural, "valid") / np.sqrt(energy)
            wanted += int(fit.argmax()) - _REACH
        at = min(max(wanted, 0), len(source) - _HOP - _WINDOW)
        out[begin : begin + _WINDOW] += fade * source[at : at + _WINDOW]
        weight[begin : begin + _WINDOW] += fade
    half = _WINDOW // 2
    whole = out[half : half + length] / np.maximum(weight[half : half + length], 1e-3)
    return whole.astype(np.float32)


def on_grid(speech: Speech, least: int = 2, longest: int = 9, longest_last: int = 9) -> Speech:
    """The same words, each of `least` to `longest` whole frames; the first begins in frame 1.

    A pause after a word counts to that word. The last word's end is a frame's end too.
    """
    starts = [word.start for word in speech.words]
    end = max(speech.speech_end, starts[-1] + 0.05)
    lengths = np.diff([*starts, end])
    most = np.array([*[longest] * (len(starts) - 1), longest_last])
    frames = np.clip(np.round(lengths * SAMPLE_RATE / FRAME_SIZE).astype(int), least, most)
    edges = 1 + np.concatenate([[0], np.cumsum(frames)])
    lead = FRAME_SIZE - round(starts[0] * SAMPLE_RATE)
    pcm = np.pad(speech.pcm, (max(0, lead), 0))[max(0, -lead) :]
    moved = lead / SAMPLE_RATE
    tail = len(pcm) - round((end + moved) * SAMPLE_RATE)
    there = np.array([0, *(round((s + moved) * SAMPLE_RATE) for s in [*starts, end]), len(pcm)])
    here = np.array([0, *(edges * FRAME_SIZE), edges[-1] * FRAME_SIZE + max(1, tail)])
    words = tuple(
        Span(word.label, a * FRAME_SIZE / SAMPLE_RATE, b * FRAME_SIZE / SAMPLE_RATE)
        for word, a, b in zip(speech.words, edges[:-1], edges[1:], strict=True)
    )
    return Speech(stretched(pcm, there, here), words, ())
