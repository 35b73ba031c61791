"""Recordings to learn from: their files, the inner monologue, cached tokens, batches.

The format is that of Kyutai's moshi-finetune: stereo sound, left Moshi and right the user; beside
`a.wav` an `a.json` with the words, `{"alignments": [["hello", [0.4, 0.7], "SPEAKER_MAIN"], …]}`,
times in seconds, Moshi's words marked SPEAKER_MAIN; and a manifest of JSON lines,
`{"path": "a.wav", "duration": 12.3}`, paths relative to it. `"rehearse": true` in such a line is
our own: the recording is for remembering (`lora.rehearsing_objective`). Knows nothing of the
trainer.
"""

import hashlib
import io
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Protocol

import numpy as np
import numpy.typing as npt

from ..arrays import Pcm, Tokens
from ..codec import Codec
from ..config import ZERO_TOKEN, ModelConfig
from ..errors import AudioFileError, MoshiError, counted
from ..families import generated_streams
from ..files import replace_file
from ..sounds import check_is_file, open_sound
from ..text import Word
from .fields import Range, Share, brief, check_fields
from .folder import digest, named_errors
from .losses import Batch
from .mixing import UserSide, levelled, varied
from .texts import is_plain, read_text

MAIN_SPEAKER = "SPEAKER_MAIN"

# Frames that the codec takes at a time.
_BLOCK = 50


class DataError(MoshiError):
    """A manifest or the words of a recording cannot be used."""


class Encoder(Protocol):
    """A tokenizer of text, as `TextTokenizer`."""

    def encode(self, text: str) -> list[int]:
        """Token ids, the first with the word boundary."""


@dataclass(frozen=True)
class Recording:
    """A line of a manifest: a sound file, its length in seconds, whether it is to be rehearsed."""

    path: Path
    duration: float
    rehearse: bool = False

    @property
    def words_path(self) -> Path:
        """The JSON file beside it."""
        return self.path.with_suffix(".json")


def read_manifest(path: Path) -> list[Recording]:
    """The recordings that a manifest lists.

    Raises:
        DataError: it is not there, not UTF-8, empty, or a line is not as it should be.
    """
    # Lines end at LF alone: a name may have U+2028 or NEL, at which splitlines() splits too.
    lines = read_text(path, DataError).split("\n")
    recordings = [
        _listed(line, path.parent, f"{path}: line {number}")
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    if not recordings:
        raise DataError(f"{path}: lists no recordings")
    return recordings


def _listed(line: str, folder: Path, where: str) -> Recording:
    try:
        entry = json.loads(line)
        name, duration = entry["path"], entry["duration"]
        rehearse = entry.get("rehearse", False)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f'{where} is not {{"path": "a.wav", "duration": seconds}}') from error
    if not isinstance(name, str) or not is_plain(name):
        raise DataError(f"{where}: 'path' must be a sound file; is {brief(name)}")
    if not _is_time(duration) or duration <= 0:
        raise DataError(f"{where}: 'duration' must be seconds, above 0; is {brief(duration)}")
    if not isinstance(rehearse, bool):
        raise DataError(f"{where}: 'rehearse' must be true or false; is {brief(rehearse)}")
    return Recording(folder / name, float(duration), rehearse)


def _is_time(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e9  # NaN is not


def write_manifest(path: Path, sounds: Iterable[Path], rehearse: Iterable[Path] = ()) -> None:
    """Lists sound files in a manifest, their paths relative to it where they are below it."""
    lines = []
    for sound, again in [*((s, False) for s in sounds), *((s, True) for s in rehearse)]:
        below = sound.is_relative_to(path.parent)
        name = (sound.relative_to(path.parent) if below else sound.resolve()).as_posix()
        entry = {"path": name, "duration": open_sound(sound).seconds}
        lines.append(json.dumps(entry | ({"rehearse": True} if again else {})))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Alignment:
    """What a JSON file of words has of one speaker.

    words: with their times, in order of time.
    left_out: words without usable times, and times without a word, each as the file has it.
    others: the labels of other speakers.
    """

    words: list[Word]
    left_out: list[str]
    others: set[str]


def read_alignment(path: Path, speaker: str = MAIN_SPEAKER) -> Alignment:
    """One speaker's words.

    An aligner leaves times out that it cannot find (null, NaN): such words are left out, as are
    those that end before they start and those that are null.

    Raises:
        DataError: the file is not there, not UTF-8, or not as it should be.
    """
    text = read_text(path, DataError)
    found = Alignment([], [], set())
    where = str(path)
    try:
        for number, entry in enumerate(json.loads(text)["alignments"], 1):
            where = f"{path}: entry {number}"
            _take_entry(found, entry, speaker)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f'{where} is not as in {{"alignments": [["word", [start, end], "{MAIN_SPEAKER}"], …]}}'
        ) from error
    found.words.sort(key=lambda word: word.start)
    return found


def _take_entry(found: Alignment, entry: Any, speaker: str) -> None:
    if not isinstance(entry, list):
        raise TypeError("an entry is a list")
    word, times, who = entry
    if word is not None and not isinstance(word, str):
        raise TypeError("a word is a text")
    if who != speaker:
        found.others.add(brief(who))
    elif word is None or not _is_span(times) or not _is_unicode(word):
        found.left_out.append(brief(word))
    elif word.strip():
        found.words.append(Word(word.strip(), float(times[0]), float(times[1])))


def _is_span(times: Any) -> bool:
    """Whether these are seconds, from and to. Raises ValueError: they are not two."""
    if times is None:
        return False
    start, end = times
    return _is_time(start) and _is_time(end) and start <= end


def _is_unicode(word: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in word)


def read_words(path: Path, speaker: str = MAIN_SPEAKER) -> list[Word]:
    """The words of `read_alignment`."""
    return read_alignment(path, speaker).words


def write_words(path: Path, words: Iterable[Word], speaker: str = MAIN_SPEAKER) -> None:
    """Writes words in the format of `read_words`."""
    entries = [[word.text, [word.start, word.end], speaker] for word in words]
    text = json.dumps({"alignments": entries}, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def inner_monologue(
    words: Iterable[Word],
    num_frames: int,
    tokenizer: Encoder,
    *,
    frame_rate: float = 12.5,
    pad: int = 3,
    epad: int = 0,
) -> Tokens:
    """The text stream of words with times, int32 [num_frames].

    A word's pieces stand from the frame in which it starts, one per frame; where the word before is
    not through yet, as soon as it is. All other frames have PAD, the one before a word EPAD if it
    is free (Moshi paper, arXiv 2410.00037, section 3.4.4). Words that start outside are left out.
    """
    stream = np.full(num_frames, pad, dtype=np.int32)
    free = 0
    for word in sorted(words, key=lambda word: word.start):
        start = math.floor(word.start * frame_rate + 1e-6)
        if not 0 <= start < num_frames:
            continue
        start = max(start, free)
        pieces = tokenizer.encode(word.text)[: max(0, num_frames - start)]
        if not pieces:
            continue
        if start > free:
            stream[start - 1] = epad
        stream[start : start + len(pieces)] = pieces
        free = start + len(pieces)
    return stream


def spoken_frames(
    words: Iterable[Word], num_frames: int, frame_rate: float = 12.5, margin: int = 2
) -> npt.NDArray[np.bool_]:
    """Frames in which words sound, bool [num_frames], `margin` frames around them included."""
    spoken = np.zeros(num_frames, dtype=np.bool_)
    for word in words:
        first = math.floor(word.start * frame_rate) - margin
        spoken[max(0, first) : max(0, math.ceil(word.end * frame_rate - 1e-6) + margin)] = True
    return spoken


def read_stereo(path: Path, sample_rate: int) -> Pcm:
    """Both sides of a recording, float32 [2, samples] at `sample_rate`.

    Raises:
        AudioFileError: the file cannot be read, doesn't have two channels, or has NaN.
    """
    sound = read_sound(path, sample_rate)
    if sound.shape[0] != 2:
        raise AudioFileError(
            f"{path}: has {sound.shape[0]} channel(s); a recording has Moshi left and the user "
            "right (moshi_mlx.training.mixing makes such ones from single speakers)"
        )
    return sound


def read_sound(path: Path, sample_rate: int) -> Pcm:
    """A sound file, float32 [channels, samples] at `sample_rate`.

    Raises:
        AudioFileError: it cannot be read.
    """
    return open_sound(path).read(sample_rate)


@dataclass(frozen=True)
class DataConfig:
    """How recordings become batches.

    duration_sec: length of a sequence; a recording gives as many as fit, and a last one filled up
        with −1, which isn't scored, if a quarter of it or more is left.
    batch_size: sequences per batch.
    seed: of the order and of the variations.
    level_db: loudness that both sides are brought to, RMS in dBFS of what sounds; null leaves it.
    variants: encodings per recording; the first is as recorded, the others vary the user's side.
    user: how they vary it.
    coarse_only: share of the sequences in which the model reads the user's codebooks only up to one
        at random: it learns to listen to the coarse ones.
    """

    duration_sec: Annotated[float, Range(0.08, 3600, "s")] = 10.0
    batch_size: Annotated[int, Range(1, 10_000)] = 1
    seed: Annotated[int, Range(0, 2**32 - 1)] = 0
    level_db: Annotated[float | None, Range(-100, 0, "dBFS")] = -23.0
    variants: Annotated[int, Range(1, 1000)] = 1
    user: UserSide = field(default_factory=UserSide)
    coarse_only: Share = 0.0


class TokenCache:
    """Mimi's codes of recordings on disk, so that each is encoded once.

    Args:
        folder: where they are kept, one file each; may be deleted at any time.
        codec: turns sound into codes.
        codec_file: what tells codecs apart, the weights' file.
        config: what is done to the sound before.

    `damaged` counts files that were not whole; they are made again.
    """

    def __init__(
        self, folder: Path, codec: Codec[Any], codec_file: Path, config: DataConfig
    ) -> None:
        self.damaged = 0
        self._folder = folder
        self._codec = codec
        self._config = config
        self._name = f"{codec_file.name} {digest(codec_file)} {codec.num_codebooks}"

    def codes(self, recording: Recording, variant: int) -> Tokens:
        """int32 [2, codebooks, frames]: Moshi's side and the user's.

        Raises:
            AudioFileError: the recording cannot be used.
            TrainingError: the disk refuses.
        """
        path = self._folder / f"{self._key(recording, variant)}.npz"
        if path.is_file():
            codes = self._cached(path)
            if codes is not None:
                return codes
            self.damaged += 1
        codes = self._encoded(recording, variant)
        packed = io.BytesIO()
        np.savez_compressed(packed, codes=codes.astype(np.int16))
        with named_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, [packed.getvalue()], mode=0o644)
        return codes

    def _cached(self, path: Path) -> Tokens | None:
        """The codes of a file, None if it is damaged: it can be made again, whatever it has."""
        try:
            with np.load(path) as file:
                codes = np.asarray(file["codes"])
        except Exception:
            return None
        shape = codes.shape
        good = codes.dtype == np.int16 and shape[:-1] == (2, self._codec.num_codebooks)
        return codes.astype(np.int32) if good and shape[-1] and codes.min() >= 0 else None

    def _key(self, recording: Recording, variant: int) -> str:
        config = self._config
        check_is_file(recording.path)
        try:
            sound = digest(recording.path)
        except OSError as error:
            raise AudioFileError(f"{recording.path}: cannot be read: {error.strerror}") from error
        user = (config.user, config.seed) if variant else None
        what = (self._name, sound, config.level_db, variant, user)
        return hashlib.sha256(repr(what).encode()).hexdigest()[:32]

    def _encoded(self, recording: Recording, variant: int) -> Tokens:
        config, rate = self._config, self._codec.sample_rate
        own, user = read_stereo(recording.path, rate)
        if len(own) < self._codec.frame_size:
            raise AudioFileError(
                f"{recording.path}: has {counted(len(own), 'sample')} at {rate} Hz, less than a "
                f"frame ({self._codec.frame_size}); leave it out"
            )
        if config.level_db is not None:
            own, user = (levelled(side, config.level_db, rate) for side in (own, user))
        if variant:
            seed = int.from_bytes(bytes.fromhex(self._key(recording, variant))[:8])
            user = varied(user, own, config.user, rate, np.random.default_rng(seed))
        return np.stack([self._codes(own), self._codes(user)])

    def _codes(self, pcm: Pcm) -> Tokens:
        codec = self._codec
        size = codec.frame_size
        pcm = np.pad(pcm, (0, -len(pcm) % size))
        state = codec.init_state()
        starts = range(0, len(pcm), _BLOCK * size)
        blocks = [codec.encode_step(pcm[i : i + _BLOCK * size], state) for i in starts]
        return np.concatenate(blocks, axis=1)


@dataclass(frozen=True)
class _Segment:
    recording: int
    start: int  # frame


class Recordings:
    """The trainer's dataset over a manifest: sequences in a new order every epoch.

    Args:
        recordings: of `read_manifest`.
        cache: gives their codes.
        tokenizer: of the inner monologue.
        model: the streams to fill.
        config: length and number of sequences.
        frame_rate: frames per second.
        shuffle: or the order of the manifest.
        progress: called with (done, all) while recordings are encoded.

    `notes` says in a line each what of the recordings is not used as they have it.

    Raises:
        AudioFileError: a recording cannot be used.
        DataError: a recording's words cannot be used, or none of any recording's.
        TrainingError: the tokens cannot be written.
    """

    def __init__(
        self,
        recordings: Sequence[Recording],
        cache: TokenCache,
        tokenizer: Encoder,
        model: ModelConfig,
        config: DataConfig,
        frame_rate: float = 12.5,
        shuffle: bool = True,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        check_fields(config, "data: ")
        self._lm = model.lm
        self._own = generated_streams(model)
        self._config = config
        self._tokenizer = tokenizer
        self._frame_rate = frame_rate
        self._shuffle = shuffle
        self._frames = max(1, round(config.duration_sec * frame_rate))
        self._rehearse = [recording.rehearse for recording in recordings]
        for recording in recordings:
            if not recording.path.is_file():
                raise AudioFileError(f"{recording.path}: there is no such file")
        alignments = [read_alignment(recording.words_path) for recording in recordings]
        self._words = [alignment.words for alignment in alignments]
        self._codes: list[list[Tokens]] = []
        for done, recording in enumerate(recordings, 1):
            self._codes.append([cache.codes(recording, v) for v in range(config.variants)])
            if progress is not None:
                progress(done, len(recordings))
        self._segments = [
            _Segment(i, start)
            for i, (codes, *_) in enumerate(self._codes)
            for start in range(0, max(1, codes.shape[2] - self._frames // 4), self._frames)
        ]
        self.notes = self._noted(recordings, alignments)
        if cache.damaged:
            self.notes.append(f"damaged files of tokens, made again: {cache.damaged}")

    def _noted(self, recordings: Sequence[Recording], alignments: Sequence[Alignment]) -> list[str]:
        """What is said of the recordings, each once.

        Raises:
            DataError: words were left out, and none is left.
        """
        untimed: list[str] = []
        outside: list[str] = []
        for recording, found, codes in zip(recordings, alignments, self._codes, strict=True):
            end = codes[0].shape[2] / self._frame_rate
            name = recording.words_path
            untimed += [f"{name}: {word}" for word in found.left_out]
            outside += [f"{name}: {brief(w.text)}" for w in found.words if not 0 <= w.start < end]
        notes = []
        if untimed:
            what = "words left out that have no usable times or no text"
            notes.append(f"{what}: {len(untimed)}, the first {untimed[0]}")
        if outside:
            what = "words left out that start outside of their recordings (times are in seconds)"
            notes.append(f"{what}: {len(outside)}, the first {outside[0]}")
        if notes and sum(len(found.words) for found in alignments) == len(outside):
            raise DataError(f"{'; '.join(notes)}; no word is left to learn from")
        others = sorted(set().union(*(found.others for found in alignments)))
        if others and not any(found.words for found in alignments):
            labels = ", ".join(others[:3])
            notes.append(f"no word is marked '{MAIN_SPEAKER}', only {labels}: Moshi learns no text")
        if twice := len(recordings) - len({recording.path for recording in recordings}):
            notes.append(f"lines that list a recording again, which then counts again: {twice}")
        return notes

    @property
    def rehearses(self) -> bool:
        """Whether some recordings are to be rehearsed; `Batch.extra` then has which, bool [B]."""
        return any(self._rehearse)

    @property
    def num_batches(self) -> int:
        """Batches per epoch, the last filled up with the beginning of the next."""
        return -(-len(self._segments) // self._config.batch_size)

    def batch(self, index: int) -> Batch:
        """Batch number `index`; see `trainer.Dataset`."""
        size = self._config.batch_size
        sequences = [self._sequence(index * size + i) for i in range(size)]
        parts = zip(*sequences, strict=True)
        codes, speaking, rehearse = (np.stack(part) for part in parts)
        extra = (rehearse,) if self.rehearses else ()
        return Batch(codes, self._coarser(codes, index), speaking, extra)

    def _coarser(self, codes: Tokens, index: int) -> Tokens | None:
        """The codes to read, where some of the user's finer ones are left out."""
        share, finer = self._config.coarse_only, 2 + self._own
        if not share or not self._shuffle or finer >= codes.shape[1]:
            return None
        rng = np.random.default_rng((self._config.seed, index))
        inputs = codes.copy()
        for sequence in inputs:
            first = rng.integers(finer, len(sequence))
            if rng.random() < share:
                sequence[first:] = ZERO_TOKEN
        return inputs

    def _sequence(self, number: int) -> tuple[Tokens, npt.NDArray[np.bool_], bool]:
        """Codes [1 + n_q, T], when Moshi speaks [T], and whether to rehearse sequence `number`.

        Sequences are counted over all epochs.
        """
        epoch, place = divmod(number, len(self._segments))
        rng = np.random.default_rng((self._config.seed, epoch))
        order = rng.permutation(len(self._segments)) if self._shuffle else None
        segment = self._segments[place if order is None else order[place]]
        variants = self._codes[segment.recording]
        choice = np.random.default_rng((self._config.seed, number)).integers(len(variants))
        sides = variants[choice if self._shuffle else 0]
        sides = sides[:, :, segment.start : segment.start + self._frames]
        there = sides.shape[2]
        lm, rate = self._lm, self._frame_rate
        offset = segment.start / rate
        words = [
            replace(word, start=word.start - offset, end=word.end - offset)
            for word in self._words[segment.recording]
        ]
        codes = np.full((1 + lm.n_q, self._frames), ZERO_TOKEN, dtype=np.int32)
        codes[0, :there] = inner_monologue(
            words,
            there,
            self._tokenizer,
            frame_rate=rate,
            pad=lm.text_padding_id,
            epad=lm.text_end_padding_id,
        )
        own = self._own
        codes[1 : 1 + own, :there] = sides[0, :own]
        codes[1 + own :, :there] = sides[1, : lm.n_q - own]
        return codes, spoken_frames(words, self._frames, rate), self._rehearse[segment.recording]
