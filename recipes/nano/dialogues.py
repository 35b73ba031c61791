"""Full-duplex dialogues, put together on the fly from blocks of Mimi tokens.

A dialogue is 17 rows of codes: nano's text and voice, and the user's side. Nano answers 0.4 s after
the user's last frame of speech, falls silent 0.6 s after it is interrupted, murmurs in the pauses
of long turns and says nothing in silence and noise. It goes on while the user murmurs, talks to
others, or others talk in the next room, and it doesn't answer these. Some texts are given, and its
voice follows them. Knows tokens only: nothing of sound or models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from . import script
from .tokens import CARD, CODEBOOKS, EPAD, FAR, PAD, Bank, Noise, Reply, Utterance

REPLY_DELAY = 5
"""Frames from the user's last one to nano's first one."""

BACKCHANNEL_DELAY = 3
YIELD_DELAY = 7
"""Frames from the beginning of an interruption to nano's silence: by then it can be told from what
isn't meant for nano."""

_OWN, _USER = slice(1, 1 + CODEBOOKS), slice(1 + CODEBOOKS, 1 + 2 * CODEBOOKS)
# Words that change nothing before or after any wording.
_BEGINNINGS = ("please ",)
_ENDINGS = (" please", " moshi", " today", " now")
_WORD_FRAMES = 3
"""Frames after a word's end by which nano is to know it."""


@dataclass(frozen=True)
class Shares:
    """How often things happen; shares of dialogues, of turns or of replies."""

    quiet_dialogue: float = 0.08
    silent_background: float = 0.3
    monologue: float = 0.07
    unknown: float = 0.13
    interruption: float = 0.24
    stop: float = 0.55  # of interruptions
    quick_turn: float = 0.2
    long_pause: float = 0.07
    splice: float = 0.3  # of unknown sentences
    mixed_wording: float = 0.1  # of wordings: begins like one, ends like another of the intent
    dressed_wording: float = 0.12  # of wordings: "please" before or "moshi" after it, and the like
    passed_over: float = 0.3  # of replies: a murmur, an aside or a far voice meanwhile
    unanswered: float = 0.12  # of turns: the same while nano is silent
    read: float = 0.07  # of turns: nano reads a sentence that is given
    given: float = 0.05  # of replies: another one's text is given
    held: float = 0.03  # of replies: none is given


@dataclass(frozen=True)
class Corruption:
    """What is done to the tokens that the model reads, never to those it is to say."""

    coarse_only: float = 0.5  # of dialogues: the user's finer codebooks missing from some level on
    user_random: float = 0.03
    own_random: float = 0.02
    user_missing: float = 0.02  # of frames
    tempo: float = 0.06  # of frames of an utterance: left out, and as many doubled


@dataclass
class Dialogue:
    """`codes` int32 [17, frames]; `speaking` bool [frames]; `heard` int32 [frames], the user's word
    that just ended (0: none for a while, −1: not decided); `given` bool [frames], where the text is
    not nano's choice."""

    codes: np.ndarray
    speaking: np.ndarray
    heard: np.ndarray
    given: np.ndarray


def user_words() -> list[str]:
    """All words of the user's that training can contain, sorted."""
    wordings = [w for intent in script.INTENTS for w in intent.train_wordings]
    told = [s for m in script.MONOLOGUES if not m.held_out for s in m.sentences]
    others = [*script.OUT_OF_SCRIPT_TRAIN, *script.MURMURS, *script.ASIDES_TRAIN]
    texts = [*wordings, *told, *others]
    return sorted({word for text in texts for word in text.split()})


class DialogueMaker:
    """Endless dialogues. The same seed and step give the same batch, whatever came before.

    Args:
        bank: the tokens.
        batch, frames: dialogues a step, and their length.
        seed: of all random choices.
    """

    def __init__(
        self,
        bank: Bank,
        batch: int,
        frames: int,
        seed: int = 0,
        shares: Shares | None = None,
        corruption: Corruption | None = None,
    ) -> None:
        self.bank = bank
        self.batch_size, self.frames, self.seed = batch, frames, seed
        self.shares, self.corruption = shares or Shares(), corruption or Corruption()
        wordings = bank.utterances.get("wording", {})
        self._wordings = {
            intent.name: [wordings[w] for w in intent.train_wordings if w in wordings]
            for intent in script.INTENTS
        }
        flat = [(text, us) for text, us in wordings.items()]
        self._beginnings = [us for text, us in flat if text.startswith(_BEGINNINGS)]
        self._endings = [us for text, us in flat if text.endswith(_ENDINGS)]
        self._intents = [intent for intent in script.INTENTS if self._wordings[intent.name]]
        sentences = bank.utterances.get("monologue", {})
        self._monologues = [
            [sentences[s] for s in m.sentences]
            for m in script.MONOLOGUES
            if not m.held_out and all(s in sentences for s in m.sentences)
        ]
        middles = {s for m in script.MONOLOGUES for s in m.sentences[1:-1]}
        self._unknown = [
            *bank.utterances.get("unknown", {}).values(),
            *(u for s, u in sentences.items() if s in middles),
        ]
        self._passed_over = {
            kind: list(bank.utterances.get(kind, {}).values()) for kind in ("murmur", "aside", FAR)
        }
        self.reserved = {w for intent in script.INTENTS for w in intent.held_out_wordings}
        self.words = {word: i + 1 for i, word in enumerate(user_words())}
        """Number of every word that a user says, from 1."""

    def dialogues(self, step: int) -> list[Dialogue]:
        """The dialogues of a step."""
        rng = np.random.default_rng([self.seed, step])
        return [_Scene(self, rng).play() for _ in range(self.batch_size)]

    def corrupted(self, codes: np.ndarray, step: int) -> np.ndarray:
        """What the model reads of codes [B, 17, T]: some tokens random, some missing (−1)."""
        c, rng = self.corruption, np.random.default_rng([self.seed, step, 1])
        inputs = codes.copy()
        for rows, share in ((_OWN, c.own_random), (_USER, c.user_random)):
            part = inputs[:, rows]
            chosen = rng.uniform(size=part.shape) < share
            part[chosen] = rng.integers(0, CARD, int(chosen.sum()))
        missing = rng.uniform(size=(len(codes), codes.shape[2])) < c.user_missing
        inputs[:, _USER][np.broadcast_to(missing[:, None], inputs[:, _USER].shape)] = -1
        for i in np.flatnonzero(rng.uniform(size=len(codes)) < c.coarse_only):
            inputs[i, 1 + CODEBOOKS + int(rng.integers(1, CODEBOOKS)) :] = -1
        return inputs


class _Scene:
    """One dialogue in the making."""

    def __init__(self, maker: DialogueMaker, rng: np.random.Generator) -> None:
        self.maker, self.rng, self.shares = maker, rng, maker.shares
        self.bank, self.length = maker.bank, maker.frames
        self.background = self._pick_background()
        self.codes = np.empty((1 + 2 * CODEBOOKS, self.length), np.int32)
        self.codes[0] = PAD
        self.codes[_OWN] = self.bank.silence[:, None]
        self._fill_background()
        self.speaking = np.zeros(self.length, np.bool_)
        self.heard = np.zeros(self.length, np.int32)
        self.given = np.zeros(self.length, np.bool_)

    # -------------------------------------------------------------------------------- random picks

    def _happens(self, share: float) -> bool:
        return bool(self.rng.uniform() < share)

    def _pick_background(self) -> Noise:
        noises = self.bank.noises
        if self._happens(self.shares.silent_background):
            noises = [n for n in noises if n.kind == "silence"] or noises
        return noises[self.rng.integers(len(noises))]

    def _fill_background(self) -> None:
        """The background from its beginning, then pieces of it from random places."""
        codes, at = self.background.codes, 0
        while at < self.length:
            start = int(self.rng.integers(codes.shape[1] // 2)) if at else 0
            piece = codes[:, start : start + self.length - at]
            self.codes[_USER, at : at + piece.shape[1]] = piece
            at += piece.shape[1]

    def _pick(self, renditions: Sequence[Utterance], voice: str | None = None) -> Utterance:
        """A rendition as noisy as the background; by this voice if there is one."""
        same = [u for u in renditions if u.voice == voice]
        pool = same or renditions
        few = [pool[int(self.rng.integers(len(pool)))] for _ in range(3)]
        best = min(few, key=lambda u: abs(u.level - self.background.level))
        return self._at_another_tempo(best)

    def _at_another_tempo(self, utterance: Utterance) -> Utterance:
        """Leaves some frames out and doubles others."""
        share = self.maker.corruption.tempo
        frames = utterance.codes.shape[1]
        times = 1 + self.rng.choice([-1, 0, 1], frames, p=[share, 1 - 2 * share, share])
        times[utterance.onset] = times[utterance.end] = 1
        place = np.cumsum(times) - 1  # of every old frame
        return Utterance(
            utterance.kind,
            utterance.text,
            utterance.voice,
            np.repeat(utterance.codes, times, axis=1),
            int(place[utterance.onset]),
            int(place[utterance.end]),
            tuple((w, int(place[min(f, frames - 1)])) for w, f in utterance.words),
            utterance.level,
        )

    def _pick_wording(self, intent: script.Intent) -> Utterance:
        wordings = self.maker._wordings[intent.name]
        first = self._pick(wordings[self.rng.integers(len(wordings))])
        changed = self._changed_wording(first, wordings)
        # What is held out for evaluation must not come about here either.
        return first if changed.text in self.maker.reserved else changed

    def _changed_wording(
        self, first: Utterance, wordings: Sequence[Sequence[Utterance]]
    ) -> Utterance:
        if self._happens(self.shares.mixed_wording):
            return _spliced(first, self._pick_from(wordings, first.voice))
        if not self._happens(self.shares.dressed_wording):
            return first
        beginnings, endings = self.maker._beginnings, self.maker._endings
        if beginnings and self._happens(0.5):
            return _joined(self._pick_from(beginnings, first.voice), 1, first, 0)
        if endings:
            last = self._pick_from(endings, first.voice)
            return _joined(first, len(first.words), last, len(last.words) - 1)
        return first

    def _pick_from(self, texts: Sequence[Sequence[Utterance]], voice: str) -> Utterance:
        return self._pick(texts[int(self.rng.integers(len(texts)))], voice)

    def _pick_unknown(self) -> Utterance:
        texts = self.maker._unknown
        first = self._pick(texts[self.rng.integers(len(texts))])
        if not self._happens(self.shares.splice):
            return first
        return _spliced(first, self._pick(texts[self.rng.integers(len(texts))]))

    def _pick_turn(self) -> tuple[Utterance, Reply]:
        """Something that the user says, and nano's answer."""
        intents = self.maker._intents
        if self.maker._unknown and self._happens(self.shares.unknown):
            return self._pick_unknown(), self.bank.replies[script.NOT_UNDERSTOOD]
        intent = intents[self.rng.integers(len(intents))]
        return self._pick_wording(intent), self.bank.replies[intent.reply]

    def _pick_interruption(self) -> tuple[Utterance, Reply]:
        stop = script.find_intent(script.STOP_INTENT)
        if stop in self.maker._intents and self._happens(self.shares.stop):
            return self._pick_wording(stop), self.bank.replies[stop.reply]
        return self._pick_turn()

    # ------------------------------------------------------------------------------- writing

    def _user_says(self, utterance: Utterance, onset: int) -> int:
        """The user's speech begins in frame `onset`; returns its last frame."""
        start = onset - utterance.onset
        skip = max(0, -start)
        piece = utterance.codes[:, skip : max(skip, self.length - start)]
        at = start + skip
        self.codes[_USER, at : at + piece.shape[1]] = piece
        end = start + utterance.end
        self.heard[max(0, onset) : end + 1 + _WORD_FRAMES] = -1
        for word, last in utterance.words if utterance.kind != FAR else ():
            number = self.maker.words[word]
            self.heard[max(0, start + last + 1) : max(0, start + last + 1 + _WORD_FRAMES)] = number
        return end

    def _nano_says(self, reply: Reply, at: int, until: int | None = None) -> int:
        """Nano's reply from frame `at`, cut off before frame `until`; returns its last frame."""
        stop = min(at + reply.codes.shape[1], self.length, until if until is not None else 2**30)
        count = max(0, stop - at)
        self.codes[_OWN, at:stop] = reply.codes[:, :count]
        self.codes[0, at:stop] = reply.text_tokens[:count]
        last = min(at + reply.end, stop - 1)
        self.speaking[at : last + 1] = True
        return last

    def _nano_reads(self, reply: Reply, at: int) -> int:
        """The same, but the words are given: nano chooses no more than when each of them ends."""
        last = self._nano_says(reply, at)
        row = self.codes[0, at : at + len(reply.text_tokens)]
        words = (row != PAD) & (row != EPAD)
        self.given[at : at + len(row)] = words
        if words.any():
            self.given[at : at + int(np.argmax(words))] = True
        self.given[max(0, at - 1) : at] = True
        return last

    def _answered(self, end: int, reply: Reply) -> int:
        """Nano answers a turn that ended in frame `end`, perhaps interrupted; its last frame."""
        at = end + REPLY_DELAY
        if at >= self.length:
            return at
        if self._happens(self.shares.held):
            last = min(at + int(self.rng.integers(20, 50)), self.length - 1)
            self.given[at - REPLY_DELAY : last + 1] = True
            return last
        if self._happens(self.shares.given):
            others = list(self.bank.replies.values())
            other = others[int(self.rng.integers(len(others)))]
            return self._nano_reads(other, at + int(self.rng.integers(-2, 8)))
        if not self._happens(self.shares.interruption):
            last = self._nano_says(reply, at)
            if self._happens(self.shares.passed_over) and reply.end > 3:
                onset = at + int(self.rng.integers(1, reply.end))
                return max(last, self._passes_over(onset))
            return last
        onset = at + int(self.rng.integers(2, max(3, reply.end - 3)))
        self._nano_says(reply, at, onset + YIELD_DELAY)
        utterance, answer = self._pick_interruption()
        end = self._user_says(utterance, onset) if onset < self.length else onset
        return self._answered(end, answer)

    def _passes_over(self, onset: int) -> int:
        """The user says something that is not for nano, from frame `onset`; its last frame."""
        kinds = [k for k, texts in self.maker._passed_over.items() if texts]
        if not kinds or onset >= self.length:
            return onset
        texts = self.maker._passed_over[kinds[int(self.rng.integers(len(kinds)))]]
        utterance = self._pick(texts[int(self.rng.integers(len(texts)))])
        return self._user_says(utterance, onset)

    def _turn(self, at: int) -> int:
        """What begins in frame `at`; its last frame."""
        if self.maker._monologues and self._happens(self.shares.monologue):
            return self._monologue(at)
        if self._happens(self.shares.unanswered):
            return self._passes_over(at)
        if self.bank.read and self._happens(self.shares.read):
            return self._nano_reads(self.bank.read[int(self.rng.integers(len(self.bank.read)))], at)
        utterance, reply = self._pick_turn()
        return self._answered(self._user_says(utterance, at), reply)

    def _monologue(self, onset: int) -> int:
        """A long turn with a murmur in every pause but the last; returns nano's last frame."""
        monologues = self.maker._monologues
        sentences = monologues[self.rng.integers(len(monologues))]
        voice = sentences[0][self.rng.integers(len(sentences[0]))].voice
        end = onset
        for number, renditions in enumerate(sentences):
            if onset >= self.length:
                return onset
            end = self._user_says(self._pick(renditions, voice), onset)
            if number < len(sentences) - 1:
                murmur = self.bank.replies[script.BACKCHANNEL]
                self._nano_says(murmur, end + BACKCHANNEL_DELAY)
                onset = end + int(self.rng.integers(8, 14))
        return self._answered(end, self.bank.replies[script.MONOLOGUE_REPLY])

    def _gap(self) -> int:
        """Frames from nano's last one to the user's first one."""
        if self._happens(self.shares.quick_turn):
            return int(self.rng.integers(1, 5))
        if self._happens(self.shares.long_pause):
            return int(self.rng.integers(30, 90))
        return int(self.rng.integers(4, 16))

    def play(self) -> Dialogue:
        """Turn after turn until the dialogue is full."""
        at = int(self.rng.integers(2, 30))
        if self._happens(self.shares.quiet_dialogue):
            at = self.length
        while at < self.length - 12:
            at = self._turn(at) + self._gap()
        return Dialogue(self.codes, self.speaking, self.heard, self.given)


def _spliced(first: Utterance, second: Utterance) -> Utterance:
    """The first half of one utterance's words and the second half of another's."""
    if len(second.words) < 2:
        return first
    return _joined(first, (len(first.words) + 1) // 2, second, len(second.words) // 2)


def _joined(first: Utterance, count: int, second: Utterance, begin: int) -> Utterance:
    """The first `count` words of one utterance, then another's from word `begin` on."""
    cut = first.words[count - 1][1] + 1
    start = second.words[begin - 1][1] + 1 if begin else second.onset
    words = [w for w, _ in first.words[:count]] + [w for w, _ in second.words[begin:]]
    return Utterance(
        first.kind,
        " ".join(words),
        first.voice,
        np.concatenate([first.codes[:, :cut], second.codes[:, start:]], axis=1),
        first.onset,
        cut + second.end - start,
        (*first.words[:count], *((w, cut + f - start) for w, f in second.words[begin:])),
        first.level,
    )
