"""Scores of one scene: takeover, backchannels, latencies, and the behaviour after an overlap.

The definitions are those of Full-Duplex-Bench (arXiv 2503.04721) and its version 1.5 (2507.23159).
Knows words and spans with their times in seconds; nothing of sound or models.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from ..text import Word, plain_words

Span = tuple[float, float]
"""Start and end in seconds."""

TURN_SECONDS, TURN_WORDS = 1.0, 3
"""An answer that is shorter than this and has no more words than this takes no turn."""
LONGEST_MURMUR = 3.0
"""A backchannel is never longer."""
BACKCHANNEL_WORDS = 2
"""And has no more words."""
BIN_SECONDS = 0.2
USER_PAUSE, MODEL_PAUSE = 0.6, 0.5
"""Seconds of quiet that are no end of the user's speech, and of the model's."""
_EPSILON = 1e-10  # in every bin, as the published bench has it


class Behaviour(StrEnum):
    """What a model does after an overlap: addresses it, goes on, asks to repeat, or neither."""

    RESPOND = "RESPOND"
    RESUME = "RESUME"
    UNCERTAIN = "UNCERTAIN"
    UNKNOWN = "UNKNOWN"


def takes_over(words: Sequence[Word]) -> bool:
    """Whether words are a turn: not if none, or under 1 s in all and 3 or fewer."""
    if not words:
        return False
    seconds = words[-1].end - words[0].start
    return not (seconds < TURN_SECONDS and len(words) <= TURN_WORDS)


def latency(words: Sequence[Word], end: float) -> float | None:
    """Seconds from `end` to the first word, a negative one as 0; None without words."""
    return max(0.0, words[0].start - end) if words else None


def joined_spans(spans: Iterable[Span], pause: float) -> list[Span]:
    """Spans in order, those whose distance is `pause` seconds or less as one."""
    out: list[Span] = []
    for start, end in sorted(spans):
        if out and start - out[-1][1] <= pause:
            out[-1] = (out[-1][0], max(out[-1][1], end))
        else:
            out.append((start, end))
    return out


# ------------------------------------------------------------------------------- backchannels


def words_in(words: Iterable[Word], span: Span) -> list[Word]:
    """Those that overlap a span."""
    return [word for word in words if word.start <= span[1] and word.end > span[0]]


def backchannels(voice: Sequence[Span], words: Sequence[Word]) -> tuple[list[Span], bool]:
    """Those of a model's stretches of voice that leave the user the turn, and whether one doesn't.

    A takeover ends the sample: what comes after it isn't looked at.

    Args:
        voice: the stretches.
        words: with their times.
    """
    found: list[Span] = []
    for span in voice:
        seconds, count = span[1] - span[0], len(words_in(words, span))
        if seconds > LONGEST_MURMUR or seconds >= TURN_SECONDS or count > BACKCHANNEL_WORDS:
            return found, True
        found.append(span)
    return found, False


def timing_divergence(
    spans: Sequence[Span], seconds: float, people: Sequence[float] | None
) -> float | None:
    """Jensen-Shannon distance (natural logarithm, its root) to when people murmur, 0 … 0.833.

    Args:
        spans: of the backchannels. Without any, the answer is 1.
        seconds: of the sample, which has a bin for every 0.2 s begun.
        people: how likely a murmur is, at evenly spaced times of the sample; None: not known.

    Returns:
        None where people's timing isn't known.
    """
    if people is None:
        return None
    if not spans:
        return 1.0
    counts = np.zeros(int(seconds / BIN_SECONDS) + 1)
    for start, end in spans:
        counts[int(start / BIN_SECONDS) : int(end / BIN_SECONDS) + 1] += 1
    places = np.linspace(0, 1, len(counts))
    theirs = np.interp(places, np.linspace(0, 1, len(people)), people)
    return jensen_shannon(counts + _EPSILON, theirs)


def jensen_shannon(p: npt.ArrayLike, q: npt.ArrayLike) -> float:
    """Root of the Jensen-Shannon divergence of two histograms, in nats, each scaled to sum 1."""
    a, b = (np.asarray(x, np.float64) / np.sum(x) for x in (p, q))
    middle = (a + b) / 2

    def relative(x: npt.NDArray[np.float64]) -> float:
        some = x > 0
        return float(np.sum(x[some] * np.log(x[some] / middle[some])))

    return float(np.sqrt(max(0.0, (relative(a) + relative(b)) / 2)))


# -------------------------------------------------------------------------------------- overlaps


def stop_latencies(user: Iterable[Span], model: Iterable[Span]) -> list[float]:
    """How long both speak: the seconds of each stretch.

    The published bench takes the shortest of those with the same end; with the pauses of both
    sides closed, no two have.
    """
    ours, theirs = joined_spans(user, USER_PAUSE), joined_spans(model, MODEL_PAUSE)
    both = [(max(a[0], b[0]), min(a[1], b[1])) for a in ours for b in theirs]
    return [end - start for start, end in both if end > start]


def response_latencies(user: Iterable[Span], model: Iterable[Span]) -> list[float]:
    """From a user's end to the model's next start in seconds, the shortest for each start."""
    shortest: dict[float, float] = {}
    starts = [start for start, _ in joined_spans(model, MODEL_PAUSE)]
    for _, end in joined_spans(user, USER_PAUSE):
        later = [start for start in starts if start >= end]
        if later:
            shortest[later[0]] = min(later[0] - end, shortest.get(later[0], np.inf))
    return list(shortest.values())


def speaks_on(model: Iterable[Span], onset: float) -> float | None:
    """Seconds from an onset to the end of what the model was saying; None if it was silent."""
    for start, end in joined_spans(model, MODEL_PAUSE):
        if start <= onset < end:
            return end - onset
    return None


# -------------------------------------------------------------------------------------- behaviour

_ASKS = re.compile(
    r"\b(sorry|pardon|excuse me)\b.*\b(understand|hear|catch|get|repeat|again|say)\b"
    r"|\b(did|do|could|can)( not|n't) (quite )?(understand|hear|catch|get)\b"
    r"|\b(say|repeat) (that|it)( again)?\b|\bcome again\b|\bwhat did you say\b|\bpardon\b"
)
_MURMURS = frozenset(plain_words("mm hm hmm mmhm mhm uhhuh uh huh"))
_COMMON = frozenset(
    plain_words(
        """
        a about all am an and any are as at be been but by can could did do does for from get go got
        had has have he hello her hey hi him his how i i'm if in is it it's its just know let like
        me my no not now of oh okay on one or our out please really right say she so some tell thank
        thanks that that's the their them then there these they think this to too uh um up us very
        was we well were what when where which who why will with would yeah yes you your
        """
    )
)
"""Words that are in any conversation."""


@dataclass(frozen=True)
class Overlap:
    """What sounded while the model spoke.

    span: its start and end in seconds.
    text: what was said, as far as it is known.
    context: what the model was answering.
    """

    span: Span
    text: str = ""
    context: str = ""


def behaviour(
    words: Sequence[Word],
    voice: Sequence[Span],
    overlap: Overlap,
    sentences: Sequence[str] = (),
) -> Behaviour:
    """What a model did after an overlap, read off its words.

    Where all that it can say is known, by its sentences: what began after the overlap's start is a
    response, or a request to repeat if it reads so; if nothing did, it has gone on where the
    sentence in progress came to its end, and done neither where that was cut off.

    Elsewhere by a plain rule, on what it says first after the overlap, in the stretch of voice that
    lasts half a second beyond it, or else in the next one. It asks to repeat, or shares an uncommon
    word with the overlap (RESPOND), or with what it said before and was asked (RESUME); else it
    has gone on if it did not stop.

    Args:
        words: the model's, in order.
        voice: when it sounds.
        overlap: what came in between.
        sentences: everything that it can say; empty: that is not known.
    """
    if sentences:
        return _fixed_behaviour(words, overlap, sentences)
    start, end = overlap.span
    spans = joined_spans(voice, MODEL_PAUSE)
    before = _uncommon(word.text for word in words if word.start < start)
    on = next((s for s in spans if s[0] <= start and s[1] > end + MODEL_PAUSE), None)
    if on is not None:
        after = [word for word in words if end <= word.start <= on[1]]
    else:
        new = next((s for s in spans if s[0] > start), None)
        if new is None:
            return Behaviour.UNKNOWN
        after = [word for word in words_in(words, new) if word.start > start]
    text = " ".join(word.text for word in after)
    theirs = _uncommon([overlap.text]) - _uncommon([overlap.context]) - before
    if asks_to_repeat(text):
        return Behaviour.UNCERTAIN
    if _uncommon([text]) & theirs:
        return Behaviour.RESPOND
    if _uncommon([text]) & (before | _uncommon([overlap.context])) or on is not None:
        return Behaviour.RESUME
    return Behaviour.UNKNOWN


def asks_to_repeat(text: str) -> bool:
    """Whether a text says that the speaker was not understood."""
    return _ASKS.search(text.lower()) is not None


def _uncommon(texts: Iterable[str]) -> set[str]:
    return set(plain_words(" ".join(texts))) - _COMMON


@dataclass(frozen=True)
class SaidSentence:
    """A sentence as far as it was said.

    start: in seconds.
    words: plain ones.
    whole: it came to its end.
    known: these words begin a sentence that the speaker has.
    """

    start: float
    words: tuple[str, ...]
    whole: bool
    known: bool


def _fixed_behaviour(
    words: Sequence[Word], overlap: Overlap, sentences: Sequence[str]
) -> Behaviour:
    """Of a model that can say `sentences` alone."""
    said = [s for s in said_sentences(words, sentences) if not _MURMURS.issuperset(s.words)]
    last = [s for s in said if s.start < overlap.span[0]]
    for sentence in said[len(last) :]:
        if sentence.known and (sentence.whole or len(sentence.words) > 1):
            asks = asks_to_repeat(" ".join(sentence.words))
            return Behaviour.UNCERTAIN if asks else Behaviour.RESPOND
    on = bool(last) and last[-1].whole and len(last) == len(said)
    return Behaviour.RESUME if on else Behaviour.UNKNOWN


def said_sentences(words: Iterable[Word], sentences: Iterable[str]) -> list[SaidSentence]:
    """Words dealt out to the sentences that they begin; a word that goes on with none is alone."""
    known = [tuple(plain_words(sentence)) for sentence in sentences]
    wholes = set(known)
    begins = {sentence[:n] for sentence in known for n in range(1, len(sentence) + 1)}
    out: list[SaidSentence] = []
    for word in words:
        for plain in plain_words(word.text):
            start, going = (out[-1].start, (*out[-1].words, plain)) if out else (0.0, ())
            if going in begins:
                out[-1] = SaidSentence(start, going, going in wholes, True)
            else:
                alone = (plain,)
                out.append(SaidSentence(word.start, alone, alone in wholes, alone in begins))
    return out
