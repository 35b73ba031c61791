"""Scenes through a model, several side by side, frame by frame as in a live conversation.

Knows sessions and scenes; nothing of scores. At no time is there more than the scenes in progress.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from ..activity import SOUNDING, loudness
from ..arrays import Pcm
from ..families.dialogue import Moshi
from ..footprint import kv_bytes
from ..session import Session, step_sessions
from ..text import Word
from .scenes import Marks, Scene

MOST_SIDE_BY_SIDE = 8
_KEPT_BYTES = 1e9  # of keys and values of all conversations together
_PATIENCE = 4.0  # seconds that a cue waits for the model to speak
_FLOAT_BYTES = 2


@dataclass(frozen=True)
class SceneTalk:
    """A scene that was run.

    marks: with the times of what came while the model spoke.
    user, model: both sides, float32 [samples], equally long.
    words: the model's text stream.
    """

    marks: Marks
    user: Pcm
    model: Pcm
    words: list[Word]


def side_by_side(moshi: Moshi) -> int:
    """How many conversations at once: as many as keep to 1 GB of keys and values, 8 at most."""
    each = kv_bytes(moshi.lm.config.transformer, _FLOAT_BYTES, None)
    return max(1, min(MOST_SIDE_BY_SIDE, int(_KEPT_BYTES // max(each, 1))))


@dataclass
class _Running:
    """A scene in progress."""

    scene: Scene
    session: Session
    rate: int
    size: int
    user: list[Pcm] = field(default_factory=list)
    model: list[Pcm] = field(default_factory=list)
    words: list[Word] = field(default_factory=list)
    spoke: int | None = None  # the frame since which the model has been speaking
    cue_at: int | None = None  # its first sample
    in_time: bool = False

    @property
    def index(self) -> int:
        return len(self.user)

    @property
    def length(self) -> int | None:
        """Samples of the whole scene; None while the cue has not come."""
        tail = round(self.scene.after * self.rate)
        if self.scene.cue is None:
            return len(self.scene.user) + tail
        return None if self.cue_at is None else self.cue_at + len(self.scene.cue.pcm) + tail

    @property
    def over(self) -> bool:
        length = self.length
        return length is not None and self.index * self.size >= length

    def heard(self) -> Pcm:
        """The next frame of the user's side."""
        start = self.index * self.size
        frame = np.zeros(self.size, np.float32)
        _add(frame, self.scene.user, -start)
        if self.cue_at is not None and self.scene.cue is not None:
            _add(frame, self.scene.cue.pcm, self.cue_at - start)
        self.user.append(frame)
        return frame

    def said(self, pcm: Pcm, words: tuple[Word, ...]) -> None:
        """The model's answer to it."""
        self.model.append(pcm)
        self.words += words
        cue = self.scene.cue
        done = self.index * self.size / self.rate
        end = self.scene.marks.turn_end
        if cue is None or self.cue_at is not None or done < end:
            return
        sounds = loudness(pcm) > SOUNDING
        if sounds and self.spoke is None:
            self.spoke = self.index
        spoken = self.spoke is not None and (self.index - self.spoke) * self.size / self.rate
        if (spoken and spoken >= cue.after and sounds) or done >= end + _PATIENCE + cue.after:
            self.cue_at = max(self.index * self.size, len(self.scene.user))
            self.in_time = bool(sounds)

    def finish(self) -> SceneTalk:
        self.words += self.session.flush()
        self.session.close()
        length = self.length or 0
        marks = self.scene.marks
        if self.cue_at is not None and self.scene.cue is not None:
            span = (self.cue_at / self.rate, (self.cue_at + len(self.scene.cue.pcm)) / self.rate)
            marks = replace(marks, overlap=span, spoken=[*marks.spoken, span], in_time=self.in_time)
        user, model = (np.concatenate(x)[:length] for x in (self.user, self.model))
        seconds = length / self.rate
        words = [
            Word(w.text, w.start, min(w.end, seconds)) for w in self.words if w.start < seconds
        ]
        return SceneTalk(marks, user, model, words)


def _add(frame: Pcm, pcm: Pcm, at: int) -> None:
    """Adds sound to a frame, which begins `at` samples before or, if negative, in the sound."""
    begin, skip = max(at, 0), max(-at, 0)
    piece = pcm[skip : skip + max(0, len(frame) - begin)]
    frame[begin : begin + len(piece)] += piece


def run_scenes(
    moshi: Moshi,
    scenes: Iterator[Scene],
    *,
    at_once: int | None = None,
    kv_bits: int | None = None,
    on_frame: Callable[[float], None] | None = None,
) -> Iterator[SceneTalk]:
    """Runs scenes; those that are over are given in the order in which they end.

    Args:
        moshi: the model.
        scenes: each is taken when there is room for it; its seed is the conversation's.
        at_once: scenes side by side; None: see `side_by_side`.
        kv_bits: as `Moshi.session` takes it.
        on_frame: is told the seconds of sound that went through, each time.

    Raises:
        MoshiError: as `Moshi.session`.
    """
    room = at_once or side_by_side(moshi)
    running: list[_Running] = []
    try:
        while True:
            while len(running) < room and (scene := next(scenes, None)) is not None:
                session = moshi.session(seed=scene.seed, kv_bits=kv_bits)
                running.append(_Running(scene, session, moshi.sample_rate, moshi.frame_size))
            if not running:
                return
            sessions, heard = [r.session for r in running], [r.heard() for r in running]
            held = [False] * len(running)
            frames = moshi.worker.call(
                lambda sessions=sessions, heard=heard, held=held: step_sessions(  # type: ignore[misc]
                    sessions, heard, held
                )
            )
            for each, frame in zip(running, frames, strict=True):
                each.said(frame.pcm, frame.words)
            if on_frame is not None:
                on_frame(len(running) * moshi.frame_size / moshi.sample_rate)
            over = [each for each in running if each.over]
            running = [each for each in running if not each.over]
            for each in over:
                yield each.finish()
    finally:
        for each in running:
            each.session.close()
