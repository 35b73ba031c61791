"""The picture of a conversation: valid SVG, sound where it sounds, words where they begin."""

import re
import xml.etree.ElementTree as ET

import numpy as np

from moshi_local.observers.picture import MARGIN, WIDTH_PER_SECOND, conversation_svg
from moshi_mlx import Word

RATE = 24_000


def test_waveforms_and_words() -> None:
    user = np.zeros(2 * RATE, np.float32)
    user[: RATE // 2] = np.sin(np.arange(RATE // 2) / 10)
    moshi = np.zeros(3 * RATE, np.float32)
    svg = conversation_svg(user, moshi, [Word("<&>", 1.5, 2.0)], RATE)
    root = ET.fromstring(svg)
    texts = [element.text for element in root.iter() if element.tag.endswith("text")]
    assert {"user", "Moshi", "<&>", "0 s", "3 s"} <= set(texts)
    paths = [e.get("d") or "" for e in root.iter() if e.tag.endswith("path") and e.get("stroke")]
    drawn = [[float(x) for x in re.findall(r"M([\d.]+)", path)] for path in paths]
    assert drawn[1] == []  # silence is not drawn
    assert min(drawn[0]) >= MARGIN
    assert max(drawn[0]) <= MARGIN + 0.5 * WIDTH_PER_SECOND + 2
    assert f"translate({MARGIN + 1.5 * WIDTH_PER_SECOND:.1f} " in svg
