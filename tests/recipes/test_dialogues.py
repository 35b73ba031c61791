"""Nano's dialogues: who speaks when, and that everything follows from seed and step."""

from dataclasses import replace

import numpy as np
import pytest

from moshi_mlx.hub import bundled_folder
from recipes.nano import script
from recipes.nano.dialogues import (
    REPLY_DELAY,
    YIELD_DELAY,
    Corruption,
    DialogueMaker,
    Shares,
    _Scene,
)
from recipes.nano.tokens import EPAD, PAD, Bank, Noise, Reply, Utterance, text_stream

SILENCE, NOISE, USER, NANO = 1, 2, 3, 4  # what all codes of a block are
WORD = 100

STILL = Corruption(tempo=0.0)
SPARED = {"passed_over": 0.0, "unanswered": 0.0, "read": 0.0, "given": 0.0, "held": 0.0}
PLAIN = Shares(
    quiet_dialogue=0,
    silent_background=1,
    monologue=0,
    unknown=0,
    interruption=0,
    quick_turn=0,
    **SPARED,
)


def utterance(kind: str, text: str, frames: int = 6) -> Utterance:
    """Speech from frame 3 on, with three frames of silence around it."""
    codes = np.full((8, frames + 6), SILENCE, np.int16)
    codes[:, 3 : 3 + frames] = USER
    words = tuple((word, 3 + i) for i, word in enumerate(text.split()))
    return Utterance(kind, text, "flite:rms", codes, 3, 2 + frames, words, -80.0)


@pytest.fixture
def bank() -> Bank:
    """Codes that tell who speaks: replies of 20 frames, user's texts of 6."""
    bank = Bank(np.full(8, SILENCE))
    for text in script.replies():
        codes = np.full((8, 26), SILENCE, np.int16)
        codes[:, :20] = NANO
        stream = np.full(26, PAD, np.int16)
        stream[0] = WORD
        bank.replies[text] = Reply(text, codes, stream, 19)
    wordings = [w for intent in script.INTENTS for w in intent.train_wordings]
    sentences = [s for m in script.MONOLOGUES if not m.held_out for s in m.sentences]
    texts = {
        "wording": wordings,
        "unknown": script.OUT_OF_SCRIPT_TRAIN,
        "monologue": sentences,
        "aside": script.ASIDES_TRAIN,
    }
    for kind, those in texts.items():
        bank.utterances[kind] = {text: [utterance(kind, text)] for text in those}
    stream = np.array([PAD, EPAD, WORD, WORD, PAD, EPAD, WORD, PAD, PAD, PAD], np.int16)
    bank.read = [Reply("read", np.full((8, 10), NANO, np.int16), stream, 9)]
    bank.noises = [
        Noise("silence", -120.0, np.full((8, 50), SILENCE, np.int16)),
        Noise("white", -50.0, np.full((8, 50), NOISE, np.int16)),
    ]
    return bank


def spans(active: np.ndarray) -> list[tuple[int, int]]:
    """(first, last) of every run of true values."""
    edges = np.flatnonzero(np.diff(np.pad(active.astype(int), 1)))
    return [(a, b - 1) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def test_nano_answers_at_once_and_never_unasked(bank: Bank) -> None:
    maker = DialogueMaker(bank, 8, 120, shares=PLAIN, corruption=STILL)
    for dialogue in maker.dialogues(0):
        user = spans(dialogue.codes[9] == USER)
        nano = spans(dialogue.codes[1] == NANO)
        assert user
        answered = [(last, first) for (_, last), (first, _) in zip(user, nano, strict=False)]
        assert all(first - last == REPLY_DELAY for last, first in answered)
        assert len(user) - len(nano) in (0, 1)  # the last answer may lie beyond the end
        assert (dialogue.codes[1:9][:, ~dialogue.speaking] == SILENCE).all()


def test_nano_yields_to_an_interruption(bank: Bank) -> None:
    shares = Shares(
        quiet_dialogue=0,
        monologue=0,
        unknown=0,
        interruption=1,
        silent_background=1,
        stop=1,
        **SPARED,
    )
    maker = DialogueMaker(bank, 8, 120, shares=shares, corruption=STILL)
    cut = 0
    for dialogue in maker.dialogues(1):
        user, nano = spans(dialogue.codes[9] == USER), spans(dialogue.codes[1] == NANO)
        for first, last in nano:
            inside = [onset for onset, _ in user if first < onset <= last]
            assert all(last < onset + YIELD_DELAY for onset in inside)
            cut += bool(inside)
    assert cut > 8


def test_quiet_dialogues_stay_quiet(bank: Bank) -> None:
    maker = DialogueMaker(bank, 4, 90, shares=Shares(quiet_dialogue=1, silent_background=0))
    for dialogue in maker.dialogues(0):
        assert not dialogue.speaking.any()
        assert (dialogue.codes[0] == PAD).all()
        assert (dialogue.codes[1:9] == SILENCE).all()


def test_murmurs_leave_the_turn(bank: Bank) -> None:
    maker = DialogueMaker(bank, 4, 150, shares=Shares(quiet_dialogue=0, monologue=1))
    murmur = bank.replies[script.BACKCHANNEL]
    assert any(
        (dialogue.codes[0, first] == murmur.text_tokens[0])
        for dialogue in maker.dialogues(0)
        for first, _ in spans(dialogue.speaking)
    )


def test_what_is_not_meant_for_nano_is_passed_over(bank: Bank) -> None:
    shares = replace(PLAIN, passed_over=1, unanswered=0.4)
    replies = {
        len(spans(d.speaking)) for d in DialogueMaker(bank, 8, 40, shares=shares).dialogues(0)
    }
    assert replies == {0, 1}, "some dialogues have nothing but asides"
    covered = 0
    for dialogue in DialogueMaker(bank, 8, 200, shares=shares, corruption=STILL).dialogues(1):
        user, nano = spans(dialogue.codes[9] == USER), spans(dialogue.codes[1] == NANO)
        for first, last in nano:
            covered += any(first < onset <= last for onset, _ in user)
            assert last - first == 19 or last == 199, "the whole reply"
        assert len(nano) <= len(user) / 2 + 1, "an aside for every reply, and none is answered"
    assert covered > 20


def test_a_text_that_is_read_is_given_but_when_words_end_is_not(bank: Bank) -> None:
    shares = replace(PLAIN, read=1)
    maker = DialogueMaker(bank, 1, 60, shares=shares, corruption=STILL)
    (dialogue,) = maker.dialogues(0)
    at = spans(dialogue.speaking)[0][0]
    assert dialogue.codes[0, at : at + 10].tolist() == bank.read[0].text_tokens.tolist()
    given = dialogue.given[at - 1 : at + 10]
    assert given.tolist() == [True, True, True, True, True, False, False, True, False, False, False]
    assert not (dialogue.codes[9] == USER).any(), "nobody has asked"


@pytest.mark.parametrize("frames", range(60, 75))
def test_a_given_text_may_begin_after_the_end(bank: Bank, frames: int) -> None:
    maker = DialogueMaker(bank, 8, frames, shares=Shares(quiet_dialogue=0, given=1))
    for step in range(4):
        assert all(d.given.shape == (frames,) for d in maker.dialogues(step))


def test_a_text_that_is_held_silences_nano(bank: Bank) -> None:
    shares = replace(PLAIN, held=1)
    for dialogue in DialogueMaker(bank, 4, 60, shares=shares, corruption=STILL).dialogues(0):
        assert not dialogue.speaking.any()
        (_, end), *_ = spans(dialogue.codes[9] == USER)
        assert dialogue.given[end + 1 : end + REPLY_DELAY + 10].all(), "it is not nano's choice"


def test_the_same_seed_and_step_give_the_same_batch(bank: Bank) -> None:
    first, again = (DialogueMaker(bank, 2, 100, seed=5) for _ in range(2))
    first.dialogues(0)
    for one, other in zip(first.dialogues(3), again.dialogues(3), strict=True):
        assert (one.codes == other.codes).all()
        assert (one.heard == other.heard).all()
    codes = np.stack([d.codes for d in first.dialogues(3)])
    assert (first.corrupted(codes, 3) == again.corrupted(codes, 3)).all()
    assert (codes[0] != first.dialogues(4)[0].codes).any()


def test_corruption_spares_the_text_and_marks_missing_codes(bank: Bank) -> None:
    maker = DialogueMaker(bank, 8, 100)
    codes = np.stack([d.codes for d in maker.dialogues(0)])
    inputs = maker.corrupted(codes, 0)
    assert (inputs[:, 0] == codes[:, 0]).all()
    assert (inputs[:, 1:9] >= 0).all()
    assert inputs[:, 9:].min() == -1
    assert (inputs[:, 9] == -1).mean() < 0.1


def test_heard_words_follow_their_speech(bank: Bank) -> None:
    maker = DialogueMaker(bank, 4, 100, shares=PLAIN, corruption=STILL)
    numbers = set(maker.words.values())
    for dialogue in maker.dialogues(0):
        words = np.flatnonzero(dialogue.heard > 0)
        assert len(words)
        assert set(dialogue.heard[words]) <= numbers
        assert (dialogue.codes[9, words - 1] == USER).any()


def test_text_stream_pads_between_words() -> None:
    pieces = {"one": [10], "two": [20, 21], "three": [30]}
    stream = text_stream([("one", 1), ("two", 3), ("three", 4)], 9, pieces.__getitem__)
    assert stream.tolist() == [EPAD, 10, EPAD, 20, 21, 30, PAD, PAD, PAD]


def test_changed_wordings_are_never_held_out_ones(
    bank: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    user_says = _Scene._user_says

    def listen(scene: _Scene, spoken: Utterance, onset: int) -> int:
        said.append(spoken.text)
        return user_says(scene, spoken, onset)

    monkeypatch.setattr(_Scene, "_user_says", listen)
    shares = replace(PLAIN, mixed_wording=0.5, dressed_wording=1.0)
    maker = DialogueMaker(bank, 16, 300, shares=shares)
    for step in range(12):
        maker.dialogues(step)
    wordings = {w for intent in script.INTENTS for w in intent.train_wordings}
    assert sum(text not in wordings for text in said) > 100, "many were changed"
    assert not maker.reserved & set(said)


def test_what_nano_can_say_comes_with_it() -> None:
    """Its folder lists it, for recognizers with a closed grammar."""
    listed = (bundled_folder("nano") / "sentences.txt").read_text(encoding="utf-8")
    assert tuple(listed.splitlines()) == script.replies()
