"""What nano is trained on and what it is examined on have nothing in common."""

import numpy as np

from recipes.nano import script
from recipes.nano.codec_data import corpus
from recipes.nano.evaluate import answer_groups, audible_seconds
from recipes.nano.renditions import training_lines
from recipes.nano.speech import (
    KOKORO_VOICES,
    SAMPLE_RATE,
    TRAIN_USER_VOICES,
    UNHEARD_ENGINE_VOICES,
    UNHEARD_KOKORO_VOICES,
    UNHEARD_USER_VOICES,
)
from recipes.nano.train_lm import expected_reply


def test_held_out_texts_and_voices_are_never_trained_on() -> None:
    lines = training_lines()
    texts = {line.rendition.text for line in lines}
    voices = {*TRAIN_USER_VOICES, *KOKORO_VOICES}
    assert {line.rendition.voice for line in lines} == voices
    assert not voices & {*UNHEARD_USER_VOICES, *UNHEARD_KOKORO_VOICES, *UNHEARD_ENGINE_VOICES}
    held_out = {w for intent in script.INTENTS for w in intent.held_out_wordings}
    assert not texts & held_out
    assert not texts & {*script.OUT_OF_SCRIPT_HELD_OUT, *script.ASIDES_HELD_OUT}
    told = {s for m in script.MONOLOGUES if m.held_out for s in m.sentences[1:-1]}
    assert not texts & told


def test_the_codec_never_hears_the_engine_of_the_examination() -> None:
    engines = {item.rendition.voice.split(":")[0] for item in corpus()}
    assert not engines & {voice.split(":")[0] for voice in UNHEARD_ENGINE_VOICES}


def test_every_training_text_has_many_renditions() -> None:
    lines = training_lines()
    assert len({line.rendition for line in lines}) == len(lines)
    wordings = {w for intent in script.INTENTS for w in intent.train_wordings}
    for text in wordings:
        voices = {line.rendition.voice for line in lines if line.rendition.text == text}
        assert len(voices) >= 10


def test_the_first_lines_have_all_texts() -> None:
    lines = training_lines()
    texts = {line.rendition.text for line in lines}
    first = lines[: 2 * len(texts)]
    assert {line.rendition.text for line in first[: len(texts)]} == texts
    neural = [line for line in first if line.rendition.voice in KOKORO_VOICES]
    assert len(neural) == len(texts), "and a neural voice says each of them once"
    engines = {line.rendition.voice.split(":")[0] for line in first}
    assert engines == {"flite", "festival", "espeak", "kokoro"}


def test_examination_uses_other_renditions() -> None:
    trained = {line.rendition for line in training_lines()}
    groups = answer_groups()
    assert not trained & {line.rendition for lines in groups.values() for line in lines}
    for name, voices in (
        ("unheard voices", UNHEARD_USER_VOICES),
        ("unheard engine (Pico)", UNHEARD_ENGINE_VOICES),
    ):
        assert {line.rendition.voice for line in groups[name]} == set(voices)


def test_expected_replies_are_those_of_the_script() -> None:
    assert expected_reply("hello there") == "Hello! How can I help you?"
    assert expected_reply("is this seat taken") == script.NOT_UNDERSTOOD


def test_audible_spans_join_over_short_pauses() -> None:
    pcm = np.zeros(3 * SAMPLE_RATE, np.float32)
    for start, end in ((0.5, 0.8), (0.9, 1.0), (2.0, 2.5)):
        pcm[round(start * SAMPLE_RATE) : round(end * SAMPLE_RATE)] = 0.1
    assert audible_seconds(pcm) == [(0.5, 1.0), (2.0, 2.5)]
    assert audible_seconds(pcm, pause=0.05) == [(0.5, 0.8), (0.9, 1.0), (2.0, 2.5)]
    assert audible_seconds(0 * pcm) == []
