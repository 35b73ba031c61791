"""Models that write down and speak for a server, loaded beside the one that talks, or alone.

All of them work on one thread, where the model that talks goes first.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
from rich.console import Console

from moshi_mlx import Model, Stt, catalog
from moshi_mlx.families.speak import Tts
from moshi_mlx.voices import Voice
from moshi_mlx.worker import Worker

from .assembly import CaptionModel, check_captions, load_captions, load_model
from .machine.verdict import Verdict, both, check_together
from .observers.transcript import phrases, subtitles_as_srt, subtitles_as_vtt
from .options import ModelSource
from .role import consent_of, one_short_line, own_voices
from .server.services import (
    DEFAULT_VOICE,
    Services,
    SpeechService,
    TranscriptionService,
)
from .speaking import one_channel, speech_tags
from .speech_encoders import ENCODED_FORMATS, speech_encoder

__all__ = ["Loaded", "ServiceOptions", "check_services", "loaded_services"]

_THREADS = 8
_WARM_UP_FRAMES = 3
_ALONE, _BESIDE = 12, 1
"""Frames of a recording that a job takes, alone and beside a model that talks."""


@dataclass(frozen=True, slots=True)
class ServiceOptions:
    """What a server is to do beside talking; None: not that.

    stt: the model that transcribes for clients.
    tts: the model that speaks their texts.
    captions: the model that writes down what users of conversations say.
    voices: of `tts`; the first one speaks where a client asks for none.
    seed: of speech; None: each time another one.
    force: load what does not fit in memory.
    """

    stt: str | None = None
    tts: str | None = None
    captions: str | None = None
    voices: tuple[str, ...] = ()
    seed: int | None = None
    force: bool = False


@dataclass(frozen=True, slots=True)
class Loaded:
    """What came of the options."""

    services: Services
    captions: CaptionModel | None


def check_services(options: ServiceOptions) -> None:
    """Refuses what cannot be, before anything is loaded. Raises MoshiError."""
    check_captions(options.captions)
    check_captions(options.stt)


@contextmanager
def loaded_services(
    options: ServiceOptions, notes: Console, talks: tuple[Model, Verdict] | None
) -> Iterator[Loaded]:
    """Loads the models, and lets them go.

    Args:
        options: which ones.
        notes: where to say what is done.
        talks: the model that talks, if there is one.

    Raises:
        MoshiError: one cannot do it, does not fit, or cannot be loaded.
    """
    first = Worker() if talks is None else talks[0].worker
    verdict = None if talks is None else talks[1]
    with ThreadPoolExecutor(_THREADS, "moshi-local services") as executor:
        loading = _Loading(notes, first, verdict, options.force)
        captions = None
        if options.captions is not None and talks is not None:
            assert verdict is not None
            captions = load_captions(options.captions, notes, talks[0], verdict, options.force)
            loading.add(captions.model, captions.verdict)
        transcriber = speaker = None
        if options.stt is not None:
            shared = captions if options.stt == options.captions else None
            at_once = _ALONE if talks is None else _BESIDE
            transcriber = _transcriber(options.stt, loading, executor, shared, at_once)
        if options.tts is not None:
            speaker = _speaker(options, loading, executor)
        yield Loaded(Services(transcriber, speaker), captions)
        executor.shutdown(wait=False, cancel_futures=True)
    if talks is None:
        first.close()


class _Loading:
    """Models that are loaded one after the other, as long as there is memory."""

    def __init__(self, notes: Console, first: Worker, verdict: Verdict | None, force: bool) -> None:
        self.notes = notes
        self._first, self._verdict, self._force = first, verdict, force

    def load(self, name: str, verb: Any, option: str) -> tuple[Model, Verdict]:
        """Raises MoshiError."""
        if self._verdict is not None:
            check_together(self._verdict, name, force=self._force, option=option)
        source = ModelSource(name, force=self._force)
        model, verdict = load_model(source, self.notes, verb=verb, beside=self._verdict)
        self.add(model, verdict)
        return model, verdict

    def add(self, model: Model, verdict: Verdict) -> None:
        """One that was loaded works on the common thread."""
        model.work_after(self._first)
        self._verdict = verdict if self._verdict is None else both(self._verdict, verdict)


def _transcriber(
    name: str,
    loading: _Loading,
    executor: ThreadPoolExecutor,
    shared: CaptionModel | None,
    at_once: int,
) -> TranscriptionService:
    if shared is None:
        model, verdict = loading.load(name, "transcribe", "--stt")
    else:
        model, verdict = shared.model, shared.verdict
    stt = cast(Stt, model)
    with stt.session(kv_bits=verdict.kv_bits) as session:
        for _ in range(_WARM_UP_FRAMES):
            session.step(np.zeros(stt.frame_size, np.float32))
    second = np.zeros(stt.sample_rate, np.float32)
    for _ in stt.transcribing([second], kv_bits=verdict.kv_bits, at_once=at_once):
        pass
    return TranscriptionService(
        stt,
        executor,
        lambda kind, words: {"srt": subtitles_as_srt, "vtt": subtitles_as_vtt}[kind](words),
        phrases,
        verdict.kv_bits,
        _languages(name),
        at_once,
    )


def _speaker(
    options: ServiceOptions, loading: _Loading, executor: ThreadPoolExecutor
) -> SpeechService:
    assert options.tts is not None
    model, verdict = loading.load(options.tts, "speak", "--tts")
    tts = cast(Tts, model)
    voices = _voices(tts, options.voices, loading.notes)
    with tts.speak("one", voice=voices[DEFAULT_VOICE], voices_folder=own_voices()) as stream:
        for _ in range(_WARM_UP_FRAMES):
            next(stream, None)
    tags = partial(speech_tags, tts.name)
    return SpeechService(
        tts,
        executor,
        voices,
        lambda format: speech_encoder(format, tts.sample_rate, tags()),
        ENCODED_FORMATS,
        one_channel,
        lambda: secrets.randbits(31) if options.seed is None else options.seed,
        own_voices(),
        verdict.kv_bits,
        _languages(options.tts),
    )


def _voices(tts: Tts, wanted: tuple[str, ...], notes: Console) -> dict[str, Any]:
    """Those that clients may ask for. Raises MoshiError."""
    asked = {name: tts.voice(name, folder=own_voices()) for name in wanted}
    for name, voice in asked.items():
        if isinstance(voice, Voice):
            line = f"voice {one_short_line(name)}{consent_of(voice)}"
            notes.print(line, markup=False, soft_wrap=True)
    here = {name: name for name in tts.voices(own_voices())}
    usual = next(iter(asked.values()), None)
    return {DEFAULT_VOICE: usual, **here, **asked}


def _languages(name: str) -> tuple[str, ...]:
    entry = catalog.entry_of(name)
    return ("en",) if entry is None else entry.languages
