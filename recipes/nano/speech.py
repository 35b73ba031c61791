"""Synthetic speech for nano: renditions with word and phone times, and noise.

Knows the synthesizers and signal processing; nothing of nano's dialogues, tokens or models.
Audio is mono float32 at 24 kHz. Flite is called as the program `flite`, festival as `festival` that
takes commands through a pipe; espeak-ng through its shared library, because only that reports when
each word and phone starts. Kokoro (`ears`) and SVOX Pico, which is for the evaluation only, through
the package `ttspico`, report neither.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
import hashlib
import io
import itertools
import json
import os
import re
import select
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import soundfile
import soxr

from moshi_mlx.conversation_bench.acoustics import convolved, in_eight_bits
from moshi_mlx.distributions import needs_extra
from moshi_mlx.errors import MoshiError

from . import ears

SAMPLE_RATE = 24_000
SPEECH_RMS = 0.08
"""Root mean square of every rendition over its loud samples."""

NANO_VOICE = "flite:slt"
"""Nano's own voice; as a user it has other pitches and vocal tract lengths."""

TRAIN_USER_VOICES = (
    "flite:rms", "flite:awb", "flite:slt", "flite:kal16", "flite:kal",
    "espeak:en-us", "espeak:en-us+m1", "espeak:en-us+m3", "espeak:en-us+m4", "espeak:en-us+m7",
    "espeak:en-us+f2", "espeak:en-us+f4", "espeak:en-us+klatt2", "espeak:en-us-nyc",
    "espeak:en-us-nyc+f3", "espeak:en", "espeak:en+f1", "espeak:en+m2",
    "espeak:en-gb-x-rp", "espeak:en-gb-x-rp+f3", "espeak:en-gb-x-gbcwmd", "espeak:en-029",
    "festival:kal_diphone", "festival:ked_diphone", "festival:cmu_us_slt_arctic_hts",
)  # fmt: skip
UNHEARD_USER_VOICES = (
    "espeak:en-gb-scotland", "espeak:en-gb-scotland+f5",
    "espeak:en-gb-x-gbclan", "espeak:en-us+m6", "espeak:en-us+f5",
)  # fmt: skip
"""User voices of the evaluation only."""

KOKORO_VOICES = tuple(f"kokoro:{name}" for name in ears.KOKORO_TRAIN_VOICES)
UNHEARD_KOKORO_VOICES = tuple(f"kokoro:{name}" for name in ears.KOKORO_UNHEARD_VOICES)
"""A neural engine's: ten voices for training, four for the evaluation only."""

UNHEARD_ENGINE_VOICES = ("pico:en-US", "pico:en-GB")
"""User voices of the evaluation only, of an engine that neither codec nor model ever heard."""

PHONES = (
    "pau", "aa", "ae", "ah", "ao", "aw", "ax", "ay", "b", "ch", "d", "dh", "eh", "er", "ey", "f",
    "g", "hh", "ih", "iy", "jh", "k", "l", "m", "n", "ng", "ow", "oy", "p", "r", "s", "sh", "t",
    "th", "uh", "uw", "v", "w", "y", "z", "zh",
)  # fmt: skip
"""Flite's phones; "pau" is silence."""

UNKNOWN_PHONE = "?"
"""Some phone, where an engine does not tell which."""

_IPA_PHONES = {
    "ɑ": "aa", "ɒ": "aa", "ɑə": "aa", "aa": "aa", "æ": "ae", "a": "ae", "ʌ": "ah", "ɔ": "ao",
    "ɔə": "ao", "oə": "ao", "aʊ": "aw", "æʊ": "aw", "ʌʉ": "aw", "ə": "ax", "ɐ": "ax", "aɪ": "ay",
    "aɪə": "ay", "aɪɚ": "ay", "əɪ": "ay", "ɛ": "eh", "e": "eh", "ɛə": "eh", "eə": "eh", "ɜ": "er",
    "ɚ": "er", "eɪ": "ey", "ɪ": "ih", "ᵻ": "ih", "ɪə": "ih", "i": "iy", "iə": "iy", "oʊ": "ow",
    "əʊ": "ow", "o": "ow", "ɔɪ": "oy", "ʊ": "uh", "ʊə": "uh", "u": "uw", "ʉ": "uw", "əl": "l",
    "tʃ": "ch", "dʒ": "jh", "ð": "dh", "θ": "th", "ɡ": "g", "h": "hh", "ŋ": "ng", "ɹ": "r",
    "ʃ": "sh", "ʒ": "zh", "j": "y", "ʍ": "w", "ɾ": "t", "t̪": "th", "ʔ": "t",
    **{p: p for p in ("b", "d", "f", "k", "l", "m", "n", "p", "r", "s", "t", "v", "w", "z")},
}  # fmt: skip

_FLITE_MEAN_F0 = {"rms": 105.0, "awb": 135.0, "kal16": 105.0, "kal": 95.0, "slt": 167.0}
_LEAD_SECONDS = 0.04
_TAIL_SECONDS = 0.08


@dataclass(frozen=True)
class Rendition:
    """How one text is spoken; equal renditions give equal audio.

    `stretch` multiplies durations, `pitch` the mean fundamental frequency; `warp` resamples: above
    1 the voice is faster and higher, formants included. `lexicon` pairs words with what the
    synthesizer is given in their place, in lower case.
    """

    text: str
    voice: str
    stretch: float = 1.0
    pitch: float = 1.0
    warp: float = 1.0
    lexicon: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Span:
    """A word or a phone with its start and end in seconds."""

    label: str
    start: float
    end: float


@dataclass(frozen=True)
class Speech:
    """Audio [samples] float32 at 24 kHz with the times of its words and phones."""

    pcm: np.ndarray
    words: tuple[Span, ...]
    phones: tuple[Span, ...]

    @property
    def speech_end(self) -> float:
        """End of the last phone in seconds."""
        return max((p.end for p in self.phones if p.label != "pau"), default=0.0)


def bare_word(word: str) -> str:
    """`word` in lower case without punctuation."""
    return re.sub(r"[^a-z0-9'-]", "", word.lower())


def _spoken_text(rendition: Rendition) -> str:
    lexicon = dict(rendition.lexicon)
    pattern = re.compile(r"[A-Za-z0-9'-]+")
    return pattern.sub(lambda m: lexicon.get(m[0].lower(), m[0]), rendition.text)


def _one_after_the_other(ends: Iterable[Sequence[str]]) -> list[Span]:
    """Spans from their labels and ends, as synthesizers print them."""
    spans: list[Span] = []
    for label, end in ends:
        spans.append(Span(label, spans[-1].end if spans else 0.0, float(end)))
    return spans


# ---------------------------------------------------------------------------------------- flite


def _run_flite(text: str, voice: str, *options: str, wav: str = "none") -> str:
    command = ["flite", "-voice", voice, *options, "-t", text, "-o", wav]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _count_phones(word: str) -> int:
    """Phones of a word spoken alone; in a sentence flite nearly always uses as many."""
    return max(1, len(spelt_in_phones(word)))


def _flite(rendition: Rendition, name: str) -> tuple[np.ndarray, int, list[Span], list[Span]]:
    options = ["--setf", f"duration_stretch={rendition.stretch}"]
    if rendition.pitch != 1.0:
        mean = _FLITE_MEAN_F0[name] * rendition.pitch
        options += ["--setf", f"int_f0_target_mean={mean:.1f}"]
    with tempfile.TemporaryDirectory() as folder:
        wav = Path(folder) / "speech.wav"
        out = _run_flite(_spoken_text(rendition), name, *options, "-psdur", wav=str(wav))
        samples, sample_rate = soundfile.read(wav)
    phones = _one_after_the_other(item.split(":") for item in out.split())
    return samples, sample_rate, phones, _words_from_phones(rendition, phones)


@functools.cache
def spelt_in_phones(text: str) -> tuple[str, ...]:
    """The phones of a text as an American says it, silence left out."""
    return tuple(p for p in _run_flite(text, "kal", "-ps").split() if p != "pau")


def _phone_counts(rendition: Rendition) -> list[int]:
    """About how many phones each word has."""
    lexicon = dict(rendition.lexicon)
    bare = (bare_word(word) for word in rendition.text.split())
    return [sum(_count_phones(part) for part in lexicon.get(w, w).split()) for w in bare]


def _words_from_phones(rendition: Rendition, phones: list[Span]) -> list[Span]:
    """Word times when a synthesizer tells phone times only: phones are dealt out by their count."""
    counts = _phone_counts(rendition)
    spoken = [p for p in phones if p.label != "pau"]
    ends = np.cumsum(counts) * len(spoken) / sum(counts)
    starts = np.concatenate([[0], ends[:-1]])
    last = len(spoken) - 1
    return [
        Span(w, spoken[min(round(a), last)].start, spoken[min(max(round(b) - 1, 0), last)].end)
        for w, a, b in zip(rendition.text.split(), starts, ends, strict=True)
    ]


# ------------------------------------------------------------------------------------- festival

_FESTIVAL_MEAN_F0 = 105.0  # of its two diphone voices


class _Festival:
    """A running festival; one sentence at a time."""

    _PATIENCE = 60  # seconds: after an error in a command it waits for more

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._process = subprocess.Popen(
            ["festival", "--pipe"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def synthesize(self, text: str, settings: Iterable[str]) -> tuple[np.ndarray, int, list[Span]]:
        """Samples, their rate, phones. The settings are Scheme expressions, the voice first."""
        wav, labels = (Path(self._folder.name) / name for name in ("speech.wav", "phones"))
        plain = text.replace("\\", "").replace('"', "")
        commands = [
            *settings,
            f'(set! utterance (utt.synth (Utterance Text "{plain}")))',
            f"(utt.save.wave utterance {json.dumps(str(wav))} 'riff)",
            f"(utt.save.segs utterance {json.dumps(str(labels))})",
            '(format t "done\\n")',
            "(fflush nil)",
        ]
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write("\n".join(commands) + "\n")
        self._process.stdin.flush()
        answered, _, _ = select.select([self._process.stdout], [], [], self._PATIENCE)
        if not answered or self._process.stdout.readline() != "done\n":
            raise MoshiError(f"festival cannot speak {text!r} ({settings})")
        samples, sample_rate = soundfile.read(wav)
        lines = labels.read_text().splitlines()[1:]  # the first one is "#"
        phones = _one_after_the_other(line.split()[::-2] for line in lines)
        return samples, sample_rate, phones


@functools.cache
def _festival_process(process: int) -> _Festival:
    return _Festival()


def _festival(rendition: Rendition, name: str) -> tuple[np.ndarray, int, list[Span], list[Span]]:
    """Its HTS voice has one pitch; the warp changes that too."""
    if name.endswith("_hts"):
        rate = f'(append {name}::hts_engine_params \'(("-r" {1 / rendition.stretch:.3f})))'
        manner = [f"(set! hts_engine_params {rate})"]
    else:
        mean = f"(target_f0_mean {_FESTIVAL_MEAN_F0 * rendition.pitch:.1f}) (target_f0_std 14)"
        manner = [
            f"(Parameter.set 'Duration_Stretch {rendition.stretch})",
            f"(set! int_lr_params '({mean} (model_f0_mean 170) (model_f0_std 34)))",
        ]
    samples, sample_rate, phones = _festival_process(os.getpid()).synthesize(
        _spoken_text(rendition), [f"(voice_{name})", *manner]
    )
    return samples, sample_rate, phones, _words_from_phones(rendition, phones)


# ------------------------------------------------------------------------------------ espeak-ng


class _EspeakId(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _EspeakEvent(ctypes.Structure):
    """`espeak_EVENT` of espeak-ng's speak_lib.h."""

    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _EspeakId),
    ]


_EspeakCallback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_EspeakEvent)
)
_EVENT_END, _EVENT_WORD, _EVENT_PHONEME = 0, 1, 7
_ESPEAK_RATE, _ESPEAK_PITCH = 1, 3  # parameters of espeak_SetParameter
_WORDS_PER_MINUTE = 155


class _Espeak:
    """The espeak-ng library, which is one global synthesizer per process."""

    def __init__(self) -> None:
        name = ctypes.util.find_library("espeak-ng")
        if name is None:
            raise OSError("espeak-ng's shared library is not installed")
        self._library = ctypes.CDLL(name)
        synchronous, phoneme_events_as_ipa = 2, 3
        self.sample_rate = self._library.espeak_Initialize(
            synchronous, 0, None, phoneme_events_as_ipa
        )
        self._samples: list[np.ndarray] = []
        self._events: list[tuple[int, int, int, str]] = []
        self._callback = _EspeakCallback(self._receive)  # kept alive for the library
        self._library.espeak_SetSynthCallback(self._callback)

    def _receive(self, samples, count: int, events) -> int:
        if samples and count:
            self._samples.append(np.ctypeslib.as_array(samples, (count,)).copy())
        i = 0
        while (event := events[i]).type != _EVENT_END:
            if event.type == _EVENT_PHONEME:
                ipa = event.id.string.decode("utf-8", "ignore")
                self._events.append((_EVENT_PHONEME, event.sample, 0, ipa))
            elif event.type == _EVENT_WORD:
                self._events.append((_EVENT_WORD, event.sample, event.text_position, ""))
            i += 1
        return 0

    def synthesize(
        self, text: str, voice: str, words_per_minute: int, pitch: int
    ) -> tuple[np.ndarray, list[tuple[int, int, int, str]]]:
        """Samples [n] int16 and events (type, sample, text position, IPA)."""
        self._samples, self._events = [], []
        if self._library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise ValueError(f"espeak-ng has no voice {voice!r}")
        self._library.espeak_SetParameter(_ESPEAK_RATE, words_per_minute, 0)
        self._library.espeak_SetParameter(_ESPEAK_PITCH, pitch, 0)
        data, utf8 = text.encode(), 1
        self._library.espeak_Synth(data, len(data) + 1, 0, 0, 0, utf8, None, None)
        return np.concatenate(self._samples), self._events


@functools.cache
def _espeak_library(process: int) -> _Espeak:
    return _Espeak()


def _phone_of_ipa(ipa: str) -> str | None:
    """Flite's phone for one of espeak-ng's IPA symbols; "pau" for silence, None if unknown."""
    plain = ipa.replace("ː", "").replace(":", "")
    if not plain:
        return "pau"
    if plain[-1] == "ɹ" and len(plain) > 1:
        plain = plain[:-1]
    return _IPA_PHONES.get(plain)


def _espeak(rendition: Rendition, name: str) -> tuple[np.ndarray, int, list[Span], list[Span]]:
    espeak = _espeak_library(os.getpid())
    rate = round(_WORDS_PER_MINUTE / rendition.stretch)
    pitch = int(np.clip(50 + 60 * np.log2(rendition.pitch), 0, 99))
    samples, events = espeak.synthesize(_spoken_text(rendition), name, rate, pitch)
    total = len(samples) / espeak.sample_rate

    def spans(marks: list[tuple[float, str]]) -> list[Span]:
        ends = [start for start, _ in marks[1:]] + [total]
        return [Span(label, a, b) for (a, label), b in zip(marks, ends, strict=True)]

    phones: list[tuple[float, str]] = []
    words: list[tuple[float, str]] = []
    spoken = _spoken_text(rendition)
    for kind, sample, position, ipa in events:
        time = sample / espeak.sample_rate
        if kind == _EVENT_PHONEME:
            phones.append((time, _phone_of_ipa(ipa) or UNKNOWN_PHONE))
        elif position > 0:
            words.append((time, spoken[position - 1 :].split()[0]))
    phone_spans = spans(phones)
    if [w for _, w in words] != rendition.text.split():
        # Numbers, function words said as one, or a lexicon entry: fall back on phone counts.
        return (
            samples / 32768.0,
            espeak.sample_rate,
            phone_spans,
            _words_from_phones(rendition, phone_spans),
        )
    speech_end = max((p.end for p in phone_spans if p.label != "pau"), default=total)
    word_spans = [Span(w.label, w.start, min(w.end, speech_end)) for w in spans(words)]
    return samples / 32768.0, espeak.sample_rate, phone_spans, word_spans


# ----------------------------------------------------------------------------- Kokoro and Pico

_PICO_RATE = 16_000
_PICO_VOLUME = 50  # of 100, which clips


def _sounding(samples: np.ndarray, sample_rate: int) -> tuple[float, float]:
    """First and last second of what is less than 40 dB below the loudest 10 ms of a recording."""
    window = sample_rate // 100
    power = np.mean(samples[: len(samples) // window * window].reshape(-1, window) ** 2, 1)
    loud = np.flatnonzero(power > decibels(-40) ** 2 * power.max())
    return float(loud[0]) / 100, float(loud[-1] + 1) / 100


def _timed(
    rendition: Rendition, samples: np.ndarray, sample_rate: int
) -> tuple[np.ndarray, int, list[Span], list[Span]]:
    """Of an engine that tells no times: phones of equal length, as long as there is sound."""
    start, end = _sounding(samples, sample_rate)
    edges = np.linspace(start, end, sum(_phone_counts(rendition)) + 1).tolist()
    phones = [Span(UNKNOWN_PHONE, a, b) for a, b in itertools.pairwise(edges)]
    words = _words_from_phones(rendition, phones)
    total = len(samples) / sample_rate
    spans = [Span("pau", 0, start), *phones, Span("pau", end, total)]
    return samples, sample_rate, spans, words


def _kokoro(rendition: Rendition, name: str) -> tuple[np.ndarray, int, list[Span], list[Span]]:
    """Its voices have one pitch each; the warp changes that."""
    engine = ears.kokoro(os.getpid())
    samples = engine.speak(_spoken_text(rendition), name, 1 / rendition.stretch)
    return _timed(rendition, samples, ears.KOKORO_RATE)


def _pico(rendition: Rendition, name: str) -> tuple[np.ndarray, int, list[Span], list[Span]]:
    with needs_extra("nano", "voices of Pico need ttspico"):
        from ttspico import TtsEngine
    engine = TtsEngine(name)  # a new one each time: another text before would change the sound
    engine.rate = round(np.clip(100 / rendition.stretch, 20, 500))
    engine.pitch = round(np.clip(100 * rendition.pitch, 50, 200))
    engine.volume = _PICO_VOLUME
    samples = np.frombuffer(engine.speak(_spoken_text(rendition)), np.int16) / 32768.0
    return _timed(rendition, samples, _PICO_RATE)


# -------------------------------------------------------------------------------------- renditions


def synthesize(rendition: Rendition) -> Speech:
    """Speaks one rendition: 40 ms of silence before the first phone, 80 ms after the last."""
    engine, _, name = rendition.voice.partition(":")
    speak = {
        "flite": _flite,
        "festival": _festival,
        "espeak": _espeak,
        "kokoro": _kokoro,
        "pico": _pico,
    }[engine]
    raw, sample_rate, phones, words = speak(rendition, name)
    pcm = soxr.resample(raw, sample_rate * rendition.warp, SAMPLE_RATE)
    scale = 1 / rendition.warp  # seconds there to seconds here
    spoken = [p for p in phones if p.label != "pau"]
    start = max(0.0, spoken[0].start * scale - _LEAD_SECONDS)
    end = spoken[-1].end * scale + _TAIL_SECONDS
    pcm = np.pad(pcm, (0, int(_TAIL_SECONDS * SAMPLE_RATE)))  # espeak-ng ends with the last phone
    pcm = pcm[int(start * SAMPLE_RATE) : int(end * SAMPLE_RATE)]
    pcm = pcm * (SPEECH_RMS / loud_rms(pcm))

    def shifted(spans: list[Span]) -> tuple[Span, ...]:
        moved = (Span(s.label, s.start * scale - start, s.end * scale - start) for s in spans)
        return tuple(Span(s.label, max(0.0, s.start), s.end) for s in moved if s.end > 0)

    return Speech(np.clip(pcm, -0.99, 0.99).astype(np.float32), shifted(words), shifted(phones))


def loud_rms(pcm: np.ndarray) -> float:
    """Root mean square over the samples above 1/50 of the peak: silence does not count."""
    loud = pcm[np.abs(pcm) > np.abs(pcm).max() / 50]
    return float(np.sqrt(np.mean(loud**2))) if len(loud) else 1e-4


def _cache_file(rendition: Rendition, cache: Path) -> Path:
    key = hashlib.sha1(repr(rendition).encode()).hexdigest()[:20]
    return cache / key[:2] / f"{key}.npz"


def speak(rendition: Rendition, cache: Path) -> Speech:
    """`synthesize`, kept on disk under `cache` (16-bit samples, JSON times)."""
    file = _cache_file(rendition, cache)
    if not file.exists():
        speech = synthesize(rendition)
        times = [[(s.label, s.start, s.end) for s in t] for t in (speech.words, speech.phones)]
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(f".{os.getpid()}.npz")
        samples = np.round(speech.pcm * 32767).astype(np.int16)
        np.savez(partial, pcm=samples, times=np.array(json.dumps(times)))
        partial.replace(file)
    with np.load(file) as stored:
        words, phones = ([Span(*s) for s in spans] for spans in json.loads(str(stored["times"])))
        return Speech(stored["pcm"].astype(np.float32) / 32767, tuple(words), tuple(phones))


def speak_all(renditions: Iterable[Rendition], cache: Path, processes: int = 1) -> Iterator[Speech]:
    """`speak` for many renditions, in order, with several processes."""
    job = functools.partial(speak, cache=cache)
    if processes == 1:
        yield from map(job, renditions)
        return
    with get_context("spawn").Pool(processes) as pool:
        yield from pool.imap(job, renditions, chunksize=16)


def vary(
    text: str,
    voice: str,
    rng: np.random.Generator,
    lexicon: Mapping[str, str] | None = None,
    strength: float = 1.0,
    ranges: tuple[float, float, float] = (0.22, 0.22, 0.11),
) -> Rendition:
    """A random rendition of `text`.

    Its stretch, pitch and warp lie within exp(±range · strength), evenly in the logarithm.
    """
    stretch, pitch, warp = np.exp(rng.uniform(-1, 1, 3) * strength * np.array(ranges))
    return Rendition(
        text,
        voice,
        round(float(stretch), 2),
        round(float(pitch), 2),
        round(float(warp), 3),
        tuple((lexicon or {}).items()),
    )


# ------------------------------------------------------------------------- augmentation (user side)


def decibels(value: float) -> float:
    """The amplitude factor of `value` dB."""
    return 10.0 ** (value / 20)


def _frequencies(samples: int) -> np.ndarray:
    return np.fft.rfftfreq(samples, 1 / SAMPLE_RATE)


def _shape(pcm: np.ndarray, gains: np.ndarray) -> np.ndarray:
    """`pcm` with its spectrum multiplied by `gains` [len(pcm) // 2 + 1]."""
    return np.fft.irfft(np.fft.rfft(pcm) * gains, len(pcm))


def _high_pass(frequencies: np.ndarray, corner: float, order: int = 1) -> np.ndarray:
    """Butterworth's gains."""
    return 1 / np.sqrt(1 + (corner / np.maximum(frequencies, 1e-3)) ** (2 * order))


def _low_pass(frequencies: np.ndarray, corner: float, order: int = 1) -> np.ndarray:
    return 1 / np.sqrt(1 + (frequencies / corner) ** (2 * order))


def noise(kind: str, samples: int, rng: np.random.Generator) -> np.ndarray:
    """Noise [samples] float32 of rms 1.

    "white", "pink" (-3 dB an octave above 20 Hz), "hum" (mains and some hiss), "babble" (the band
    of speech, swelling four times a second) or "music" (chords that fade and a bass).
    """
    white = rng.standard_normal(samples)
    frequencies = _frequencies(samples)
    if kind == "white":
        shaped = white
    elif kind == "pink":
        shaped = _shape(white, 1 / np.sqrt(np.maximum(frequencies, 20)))
    elif kind == "hum":
        time = np.arange(samples) / SAMPLE_RATE
        base = rng.choice([50.0, 60.0, 100.0, 120.0])
        shaped = 0.1 * white
        for k in range(1, 6):
            wave = np.sin(2 * np.pi * (base * k * time + rng.uniform()))
            shaped = shaped + rng.uniform(0.1, 1) / k * wave
    elif kind == "babble":
        band = _high_pass(frequencies, 200, 2) * _low_pass(frequencies, 2500, 2)
        swell = np.abs(_shape(rng.standard_normal(samples), _low_pass(frequencies, 4, 2)))
        shaped = _shape(white, band) * (0.3 + swell / (swell.mean() + 1e-9))
    elif kind == "music":
        shaped = _music(samples, rng)
    else:
        raise ValueError(f"unknown noise {kind!r}")
    return (shaped / (np.sqrt(np.mean(shaped**2)) + 1e-9)).astype(np.float32)


NOISE_KINDS = ("white", "pink", "hum", "babble")


def _music(samples: int, rng: np.random.Generator) -> np.ndarray:
    """Chords of a major or minor scale at 60-140 beats a minute, with overtones, and a bass."""
    out = np.zeros(samples)
    scale = np.array([0, 2, 4, 5, 7, 9, 11] if rng.uniform() < 0.5 else [0, 2, 3, 5, 7, 8, 10])
    root = 110 * 2 ** (rng.integers(12) / 12)
    beat = int(60 / rng.uniform(60, 140) * SAMPLE_RATE)
    brightness, fade = rng.uniform(0.3, 0.8), rng.uniform(1, 6)
    for at in range(0, samples, beat):
        time = np.arange(min(2 * beat, samples - at)) / SAMPLE_RATE
        degree = int(rng.integers(7))
        for step, octave in ((0, 0), (0, 1), (2, 1), (4, 1), (int(rng.integers(7)), 2)):
            note = scale[(degree + step) % 7] + 12 * ((degree + step) // 7 + octave)
            for overtone in range(1, 6):
                wave = np.sin(2 * np.pi * (root * 2 ** (note / 12) * overtone * time))
                loudness = brightness**overtone * np.exp(-fade * time)
                out[at : at + len(time)] += wave * loudness * np.minimum(1, time * 50)
    return out


def room(pcm: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A light room: the direct sound and 50-250 ms of decaying reflections 8-20 dB below it."""
    return reverberant(pcm, rng.uniform(0.05, 0.25), -rng.uniform(-20, -8), rng)


def reverberant(
    pcm: np.ndarray, seconds: float, direct_db: float, rng: np.random.Generator
) -> np.ndarray:
    """A room: reflections that decay by 60 dB in `seconds`, the direct sound `direct_db` above."""
    tail = rng.standard_normal(int(seconds * SAMPLE_RATE))
    tail *= np.exp(-6.9 * np.arange(len(tail)) / len(tail))
    tail[: int(rng.uniform(0.002, 0.012) * SAMPLE_RATE)] = 0  # before the first reflection
    tail *= decibels(-direct_db) / np.sqrt(np.sum(tail**2))
    tail[0] = 1.0
    return convolved(pcm, tail.astype(np.float32))


def telephone(pcm: np.ndarray) -> np.ndarray:
    """300 to 3400 Hz in eight bits, by G.711's law with μ = 255."""
    frequencies = _frequencies(len(pcm))
    gains = _high_pass(frequencies, 300, 3) * _low_pass(frequencies, 3400, 6)
    return in_eight_bits(_shape(pcm, gains))


def through_opus(pcm: np.ndarray, level: float) -> np.ndarray:
    """Encoded to Opus and decoded; `level` from 0, 256 kbit/s, to 1, 6 kbit/s."""
    file = io.BytesIO()
    soundfile.write(file, pcm, SAMPLE_RATE, format="OGG", subtype="OPUS", compression_level=level)
    file.seek(0)
    heard = soundfile.read(file, dtype="float32")[0][: len(pcm)]
    return np.pad(heard, (0, len(pcm) - len(heard)))


def band_limit(pcm: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A microphone: high-pass at 60-300 Hz, low-pass at 3.4-9 kHz."""
    frequencies = _frequencies(len(pcm))
    high = _high_pass(frequencies, rng.uniform(60, 300))
    return _shape(pcm, high * _low_pass(frequencies, rng.uniform(3400, 9000), 2)).astype(np.float32)


def swayed(speech: Speech, rng: np.random.Generator, range_: float = 0.16) -> Speech:
    """The same words at a tempo that wanders within exp(±`range_`), and the pitch with it.

    What an engine's rules make of durations and intonation is so much alike in all its voices that
    a listener would learn it by heart.
    """
    length = len(speech.pcm)
    steps = max(2, round(length / SAMPLE_RATE * rng.uniform(1.5, 5)) + 1)
    rates = np.exp(rng.uniform(-range_, range_, steps))
    times = np.linspace(0, length, steps)
    fine = np.arange(0, length + 1, 240)
    there = np.concatenate([[0], np.cumsum(np.diff(fine) * np.interp(fine[1:], times, rates))])
    where = np.interp(np.arange(int(there[-1])), there, fine)
    pcm = np.interp(where, np.arange(length), speech.pcm).astype(np.float32)

    def moved(spans: tuple[Span, ...]) -> tuple[Span, ...]:
        def at(time: float) -> float:
            return float(np.interp(time * SAMPLE_RATE, fine, there)) / SAMPLE_RATE

        return tuple(Span(s.label, at(s.start), at(s.end)) for s in spans)

    return Speech(pcm, moved(speech.words), moved(speech.phones))


def coloured(pcm: np.ndarray, rng: np.random.Generator, range_db: float = 9.0) -> np.ndarray:
    """Another timbre: the spectrum rises and falls smoothly over ten bands by up to `range_db`."""
    frequencies = np.maximum(_frequencies(len(pcm)), 50)
    knots = np.linspace(np.log(80), np.log(9000), 10)
    gains = np.interp(np.log(frequencies), knots, rng.uniform(-range_db, range_db, len(knots)))
    shaped = _shape(pcm, decibels(1.0) ** gains)
    return (shaped * (loud_rms(pcm) / loud_rms(shaped))).astype(np.float32)


def sometimes_strange(
    speech: Speech, rng: np.random.Generator, swayed_share: float, coloured_share: float
) -> Speech:
    """Becomes a voice such as no engine has, by tempo and by timbre, in these shares of cases."""
    if rng.uniform() < swayed_share:
        speech = swayed(speech, rng)
    if rng.uniform() < coloured_share:
        speech = replace(speech, pcm=coloured(speech.pcm, rng))
    return speech


def augment(
    pcm: np.ndarray,
    rng: np.random.Generator,
    strength: float = 1.0,
    gain_db: float | None = None,
) -> np.ndarray:
    """The user's side as a microphone might deliver it; same length, float32, within ±1.

    Gain `gain_db`, or -12..+5 dB at random; at `strength` 1 a room in 35 % and a narrower band in
    30 % of cases; always noise, -85..-42 dBFS.
    """
    out = pcm * decibels(rng.uniform(-12, 5) if gain_db is None else gain_db)
    if rng.uniform() < 0.35 * strength:
        out = room(out, rng)
    if rng.uniform() < 0.30 * strength:
        out = band_limit(out, rng)
    level = decibels(rng.uniform(-85, -85 + 43 * strength))
    out = out + level * noise(str(rng.choice(NOISE_KINDS)), len(out), rng)
    return np.clip(out, -0.99, 0.99).astype(np.float32)


_LOUDEST_NOISE, _LEAST_RATIO = -30.0, 2.0  # dBFS; dB of the speech over the noise
_LEVELS, _FAR_LEVELS = (-35.0, -12.0), (-52.0, -38.0)  # dBFS of the speech


def speech_level(rng: np.random.Generator) -> float:
    """How loud somebody may be, in dBFS."""
    return rng.uniform(*_LEVELS) if rng.uniform() < 0.5 else rng.uniform(-27, -17)


def disturbed(pcm: np.ndarray, rng: np.random.Generator, level: float | None = None) -> np.ndarray:
    """The user's side through a house: like `augment`, but for some in all that can go wrong there.

    Speech at `level`, else at -35..-12 dBFS; a room (RT60 0.15-0.7 s, direct to reverberant
    -3..15 dB) in 45 % of cases, a telephone in 10 %, another microphone in 20 %, Opus in 10 %;
    noise or music up to -30 dBFS, at least 2 dB below the speech.
    """
    if level is None:
        level = speech_level(rng)
    out = pcm * (decibels(level) / SPEECH_RMS)
    if rng.uniform() < 0.45:
        out = reverberant(out, rng.uniform(0.15, 0.7), rng.uniform(-3, 15), rng)
    kinds = (*NOISE_KINDS, "music")
    quiet = rng.uniform() < 0.5
    floor = rng.uniform(-85, -45) if quiet else level - rng.uniform(_LEAST_RATIO, 25)
    floor = min(floor, _LOUDEST_NOISE, level - _LEAST_RATIO)
    out = out + decibels(floor) * noise(str(rng.choice(kinds)), len(out), rng)
    return through_line(out, rng)


def through_line(pcm: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What may lie between a microphone and the model; within ±1."""
    out, way = np.clip(pcm, -0.99, 0.99), rng.uniform()
    if way < 0.1:
        out = telephone(out)
    elif way < 0.3:
        out = band_limit(out, rng)
    elif way < 0.4:
        out = through_opus(out, rng.uniform(0.9, 1.0))
    return np.clip(out, -0.99, 0.99).astype(np.float32)


def far_away(pcm: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A voice in the next room: faint, dull, and more reflections than direct sound."""
    level = rng.uniform(*_FAR_LEVELS)
    out = reverberant(pcm, rng.uniform(0.3, 0.9), rng.uniform(-12, -3), rng)
    out = _shape(out, _low_pass(_frequencies(len(out)), rng.uniform(1500, 4000)))
    out = out * (decibels(level) / loud_rms(out))
    floor = decibels(min(level - 6, rng.uniform(-85, -55)))
    return (out + floor * noise(str(rng.choice(NOISE_KINDS)), len(out), rng)).astype(np.float32)


def hesitant(speech: Speech, after: Sequence[int], rng: np.random.Generator) -> Speech:
    """The same words with a pause of 0.4-1.5 s after some of them, by their number from 0."""
    pcm, begin = [], 0
    ends = {speech.words[i].end: rng.uniform(0.4, 1.5) for i in after}

    def moved(span: Span) -> Span:
        late = sum(pause for end, pause in ends.items() if span.start >= end - 1e-6)
        return Span(span.label, span.start + late, span.end + late)

    for end, pause in sorted(ends.items()):
        stop = int(end * SAMPLE_RATE)
        piece = speech.pcm[begin:stop].copy()
        fade = min(len(piece), SAMPLE_RATE // 100)
        if fade:
            piece[-fade:] *= np.linspace(1, 0, fade)
        pcm += [piece, np.zeros(int(pause * SAMPLE_RATE), np.float32)]
        begin = stop
    pcm.append(speech.pcm[begin:])
    return Speech(
        np.concatenate(pcm), tuple(map(moved, speech.words)), tuple(map(moved, speech.phones))
    )
