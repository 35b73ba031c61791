"""Scores of the conversation bench, against cases made by hand."""

import math

import numpy as np
import pytest

from moshi_mlx.conversation_bench import Behaviour
from moshi_mlx.conversation_bench.figures import figures_markdown, figures_of, figures_svg, scored
from moshi_mlx.conversation_bench.scenes import Axis, Marks
from moshi_mlx.conversation_bench.scores import (
    Overlap,
    backchannels,
    behaviour,
    jensen_shannon,
    latency,
    response_latencies,
    said_sentences,
    speaks_on,
    stop_latencies,
    takes_over,
    timing_divergence,
)
from moshi_mlx.text import Word


def spoken(text: str, start: float = 0.0, each: float = 0.2) -> list[Word]:
    """Words of equal length, one after the other."""
    return [
        Word(word, start + each * i, start + each * (i + 1)) for i, word in enumerate(text.split())
    ]


@pytest.mark.parametrize(
    ("words", "taken"),
    [
        ([], False),
        (spoken("yes"), False),
        (spoken("one two three"), False),
        (spoken("one two three", each=0.33), False),
        (spoken("one two three four", each=0.1), True),  # more than three words
        (spoken("well", each=1.0), True),  # a second
        ([Word("a", 0.0, 0.1), Word("b", 0.9, 0.99)], False),
        ([Word("a", 0.0, 0.1), Word("b", 0.9, 1.0)], True),
    ],
)
def test_takeover(words: list[Word], taken: bool) -> None:
    assert takes_over(words) is taken


def test_latency_is_that_of_the_first_word_and_never_negative() -> None:
    assert latency(spoken("a b", 2.5), 2.0) == 0.5
    assert latency(spoken("a b", 1.5), 2.0) == 0.0
    assert latency([], 2.0) is None


def test_a_voice_is_a_backchannel_or_takes_over() -> None:
    words = [*spoken("mm hm", 1.0), *spoken("a b c", 4.0), *spoken("late", 8.0)]
    assert backchannels([(1.0, 1.4)], words) == ([(1.0, 1.4)], False)
    assert backchannels([(1.0, 1.4), (4.0, 4.6), (8.0, 8.2)], words) == ([(1.0, 1.4)], True)
    assert backchannels([(1.0, 2.0)], words) == ([], True)  # a second
    assert backchannels([(1.0, 1.99)], words) == ([(1.0, 1.99)], False)
    assert backchannels([(20.0, 23.5)], words) == ([], True)
    assert backchannels([], words) == ([], False)


def test_divergence_is_the_root_in_nats() -> None:
    assert jensen_shannon([1, 2, 3], [2, 4, 6]) == 0.0
    assert jensen_shannon([1, 0], [0, 1]) == pytest.approx(math.sqrt(math.log(2)))
    # By hand: p = (1/2, 1/2), q = (1, 0), m = (3/4, 1/4).
    by_hand = (0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25) + math.log(1 / 0.75)) / 2
    assert jensen_shannon([1, 1], [1, 0]) == pytest.approx(math.sqrt(by_hand))
    assert math.sqrt(by_hand) == pytest.approx(0.46450140)  # as SciPy has it


def test_divergence_of_times() -> None:
    assert timing_divergence([(0.1, 0.3)], 1.0, None) is None
    assert timing_divergence([], 1.0, [1.0, 1.0]) == 1.0
    # Bins 0 and 1 of 6: the same as people's, if these are given for six places.
    same = timing_divergence([(0.1, 0.3)], 1.0, [1, 1, 0, 0, 0, 0])
    assert same == pytest.approx(0.0, abs=1e-4)
    other = timing_divergence([(0.1, 0.3)], 1.0, [0, 0, 0, 0, 1, 1])
    assert other == pytest.approx(math.sqrt(math.log(2)), abs=1e-4)
    # People's timing is stretched to the bins: 0 … 1 over six places.
    counts, rising = np.array([1, 1, 0, 0, 0, 0]) + 1e-10, np.linspace(0, 1, 6)
    assert timing_divergence([(0.1, 0.3)], 1.0, [0, 1]) == jensen_shannon(counts, rising)


def test_both_speak_and_the_answer_to_it() -> None:
    user = [(1.0, 2.0), (2.5, 3.0), (6.0, 7.0)]  # the first pause is closed: 1 … 3
    model = [(0.0, 1.2), (1.6, 2.0), (7.5, 9.0)]  # 0 … 2
    assert stop_latencies(user, model) == [1.0]
    assert response_latencies(user, model) == [0.5]
    assert speaks_on(model, 1.0) == 1.0
    assert speaks_on(model, 3.0) is None
    # Two user's ends before a start: the nearer one counts.
    assert response_latencies([(0.0, 1.0), (2.0, 3.0)], [(3.25, 4.0)]) == [0.25]
    assert stop_latencies([(0.0, 5.0)], [(1.0, 2.0), (3.0, 6.0)]) == [1.0, 2.0]


FIXED = ["The moon is very far away.", "Sorry, I did not understand.", "Okay.", "Mm-hm."]
OVERLAP = Overlap((1.0, 1.5), "stop", "how far is the moon")


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (spoken("The moon is very far away.", 0.4), Behaviour.RESUME),
        ([*spoken("The moon is very far away.", 0.4), *spoken("Mm-hm.", 3)], Behaviour.RESUME),
        (spoken("The moon is", 0.4), Behaviour.UNKNOWN),
        ([], Behaviour.UNKNOWN),
        ([*spoken("The moon is", 0.4), *spoken("Okay.", 2)], Behaviour.RESPOND),
        ([*spoken("The moon is", 0.4), *spoken("banana split", 2)], Behaviour.UNKNOWN),
        ([*spoken("The moon", 0.4), *spoken(FIXED[1], 2)], Behaviour.UNCERTAIN),
        ([*spoken(FIXED[0], 0.0, 0.1), *spoken(FIXED[1], 2)], Behaviour.UNCERTAIN),
    ],
)
def test_behaviour_of_a_model_with_fixed_sentences(words: list[Word], what: Behaviour) -> None:
    assert behaviour(words, [], OVERLAP, FIXED) is what


OPEN = Overlap((1.0, 1.5), "what about elephants", "tell me about the moon")


@pytest.mark.parametrize(
    ("words", "voice", "what"),
    [
        (spoken("it circles the planet and it is far away", 0.0, 0.3), [(0, 2.7)], "RESUME"),
        (
            [*spoken("it is far", 0.2), *spoken("Elephants are big", 2)],
            [(0.2, 1.2), (2, 3)],
            "RESPOND",
        ),
        (
            [*spoken("it is far", 0.2), *spoken("so the moon is far", 2)],
            [(0.2, 1.2), (2, 3)],
            "RESUME",
        ),
        (
            [*spoken("it is far", 0.2), *spoken("Sorry, can you repeat that?", 2)],
            [(0.2, 1.2), (2, 3)],
            "UNCERTAIN",
        ),
        (
            [*spoken("it is far", 0.2), *spoken("banana split", 2)],
            [(0.2, 1.2), (2, 3)],
            "UNKNOWN",
        ),
        (spoken("it is far", 0.2), [(0.2, 1.2)], "UNKNOWN"),
    ],
)
def test_behaviour_by_the_plain_rule(
    words: list[Word], voice: list[tuple[float, float]], what: str
) -> None:
    assert behaviour(words, voice, OPEN) == what


def test_words_are_dealt_out_to_sentences() -> None:
    said = said_sentences(spoken("The moon Okay. what The"), FIXED)
    assert [(s.words, s.whole, s.known) for s in said] == [
        (("the", "moon"), False, True),
        (("okay",), True, True),
        (("what",), False, False),
        (("the",), False, True),
    ]
    assert [s.start for s in said] == pytest.approx([0.0, 0.4, 0.6, 0.8])


def test_scores_of_scenes() -> None:
    words = spoken("one two three four", 2.3)
    pause = scored(Marks(Axis.PAUSE, "0", 2.2), words, [], 8.0)
    assert pause["takeover"] is False
    assert pause["answers"] is True
    late = scored(Marks(Axis.PAUSE, "1", 3.2), words, [], 3.2)
    assert late["takeover"] is True
    assert "answers" not in late  # the recording ends with the turn
    turn = scored(Marks(Axis.TURN, "0", 2.0), words, [(2.4, 3.1)], 8.0)
    assert turn["takeover"] is True
    assert turn["latency"] == pytest.approx(0.3)
    assert turn["sound_latency"] == pytest.approx(0.4)
    none = scored(Marks(Axis.TURN, "1", 2.0), [], [], 8.0)
    assert none["takeover"] is False
    marks = Marks(
        Axis.INTERRUPTION, "0", 1.0, [(0.0, 1.0), (2.0, 2.5)], overlap=(2.0, 2.5), in_time=True
    )
    talk = [*spoken("The moon is", 1.4), *spoken("Okay. Okay. Okay. Okay.", 3.0)]
    cut = scored(marks, talk, [(1.4, 2.2), (3.0, 3.8)], 8.0, FIXED)
    assert cut["behaviour"] == "RESPOND"
    assert cut["takeover"] is True
    assert cut["latency"] == pytest.approx(0.5)
    assert cut["stop_time"] == pytest.approx(0.2)
    assert cut["stop_latencies"] == pytest.approx([0.2])
    assert cut["response_latencies"] == pytest.approx([0.4, 0.5])
    silent = scored(
        Marks(Axis.OTHERS, "0", 1.0, overlap=(5.0, 5.5), in_time=False), [], [], 8.0, FIXED
    )
    assert silent["left_out"]
    assert "behaviour" not in silent

    figures = figures_of([pause, late, turn, none, cut, silent])
    assert figures[Axis.PAUSE] == {"takeover": 0.5, "answers": 1.0, "scenes": 2}
    assert figures[Axis.TURN]["takeover"] == 0.5
    assert figures[Axis.TURN]["latency"] == pytest.approx(0.3)  # of those with a takeover
    assert figures[Axis.INTERRUPTION]["stopped"] == 1.0
    assert figures[Axis.INTERRUPTION]["response_latency"] == pytest.approx(0.45)
    assert figures[Axis.OTHERS] == {"scenes": 1, "left_out": 1}
    table = figures_markdown({"a": figures, "b": {}})
    assert "| pause handling | takes over in a pause | ↓ | 0.500 | – |" in table
    assert "1, 1 left out" in table
    picture = figures_svg({"a & b": figures})
    assert "a &amp; b" in picture
    assert picture.count("<rect") > 10
