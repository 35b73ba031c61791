"""Text that a model is made to say: token by token, and in a conversation of the bundled model."""

import threading
from itertools import pairwise

import numpy as np
import pytest

from moshi_mlx import ArgumentError, Frame, Moshi, SessionError, TextSaid, TextTokenizer, Word
from moshi_mlx.saying import Saying
from tests.moshi_mlx import test_session

moshi = test_session.moshi
question = test_session.question
EPAD, PAD = 0, 3


@pytest.fixture(scope="module")
def tokenizer(moshi: Moshi) -> TextTokenizer:
    return moshi.text


@pytest.fixture
def saying(tokenizer: TextTokenizer) -> Saying:
    return Saying(tokenizer, epad=EPAD, pad=PAD)


def written(saying: Saying, drawn: list[int]) -> list[int]:
    return [saying.choose(token)[0] for token in drawn]


def test_words_come_at_the_pace_of_speech(saying: Saying, tokenizer: TextTokenizer) -> None:
    """Though the model would begin the next word in every frame."""
    hello, moment = tokenizer.encode("Hello"), tokenizer.encode("moment.")
    saying.add("Hello moment.")
    found = written(saying, 16 * [EPAD])
    assert found[:5] == [EPAD, *hello, PAD, PAD]  # 5 letters take 4 frames
    assert found[5 : 6 + len(moment)] == [EPAD, *moment]


def test_a_model_that_rests_is_waited_for_and_then_not(
    saying: Saying, tokenizer: TextTokenizer
) -> None:
    """After 4 frames without a word of its own, and 4 beyond what a word takes."""
    saying.add("Hello you")
    found = written(saying, 20 * [PAD])
    starts = [t for t, token in enumerate(found) if token == EPAD]
    assert starts == [3, 3 + 1 + 4 + 4]
    assert found[4] == tokenizer.encode("Hello")[0]


def test_the_word_on_its_way_is_finished(saying: Saying, tokenizer: TextTokenizer) -> None:
    rest = tokenizer.encode("computer.")[1:]
    saying.add("you")
    found = written(saying, [*rest, *5 * [PAD]])
    assert found == [*rest, PAD, PAD, PAD, EPAD, tokenizer.encode("you")[0]]


def test_each_text_is_told_once_it_has_been_spoken(saying: Saying) -> None:
    saying.add("I live")
    saying.add("you")
    told = [saying.choose(EPAD)[1] for _ in range(30)]
    assert [text for text in told if text] == ["I live", "you"]
    assert not saying.busy
    assert saying.choose(77) == (77, None)


@pytest.mark.parametrize("text", ["", "  \n", 5, None, "a ☃", "\ud800"])
def test_what_cannot_be_said(saying: Saying, text: object) -> None:
    with pytest.raises(ArgumentError, match=r"text must|tokenizer cannot write"):
        saying.add(text)  # type: ignore[arg-type]
    assert not saying.busy


def run(moshi: Moshi, pcm: np.ndarray, at: int, text: str) -> list[Frame]:
    frames = []
    with moshi.session(seed=0) as session:
        for t, heard in enumerate(pcm):
            if t == at:
                thread = threading.Thread(target=session.say, args=[text])
                thread.start()
                thread.join()
            frames.append(session.step(heard))
    return frames


def spoken(frames: list[Frame]) -> list[Word]:
    return [word for frame in frames for word in frame.words]


@pytest.mark.gpu
def test_in_a_conversation(moshi: Moshi, question: np.ndarray) -> None:
    """Words in their order, sounding, none faster than people speak; before, nothing changes."""
    frames = run(moshi, np.concatenate([question, question[:30] * 0]), 50, "Good night. Sleep.")
    with moshi.session(seed=0) as session:
        for heard, mine in zip(question[:50], frames[:50], strict=True):
            np.testing.assert_array_equal(session.step(heard).pcm, mine.pcm)
    words = spoken(frames[50:])[:3]
    assert [word.text for word in words] == ["Good", "night.", "Sleep."]
    assert all(b.start - a.start >= 0.3 for a, b in pairwise(words))
    said = [event for frame in frames for event in frame.events if isinstance(event, TextSaid)]
    assert [event.text for event in said] == ["Good night. Sleep."]
    assert said[0].time >= words[-1].end - 0.08
    loud = [np.abs(frame.pcm).max() > 0.05 for frame in frames[50:]]
    assert sum(loud) > 8


def test_held_text_waits(moshi: Moshi) -> None:
    silence = np.zeros(1920, np.float32)
    with moshi.session(seed=0) as session:
        session.say("Hello")
        held = [session.step(silence, hold_text=True) for _ in range(8)]
        assert not any(frame.text for frame in held)
        assert "Hello" in "".join(session.step(silence).text for _ in range(8))


def test_hush_and_reset_forget(moshi: Moshi) -> None:
    silence = np.zeros(1920, np.float32)
    for forget in ("hush", "reset"):
        with moshi.session(seed=0) as session:
            session.say("Hello")
            getattr(session, forget)()
            assert not any(session.step(silence).text for _ in range(10))


def test_a_hook_is_asked_after_every_frame(moshi: Moshi) -> None:
    seen: list[int] = []

    def hook(frame: Frame) -> str | None:
        seen.append(frame.index)
        return "Hello" if frame.index == 2 else None

    with moshi.session(seed=0, hook=hook) as session:
        text = "".join(session.step(np.zeros(1920)).text for _ in range(14))
    assert seen == list(range(14))
    assert text == " Hello"
    with pytest.raises(SessionError, match="closed"):
        session.say("Hello")
