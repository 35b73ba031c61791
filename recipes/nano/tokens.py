"""Renditions as Mimi tokens: nano's replies, the user's utterances and noises, cached on disk.

    python -m recipes.nano.tokens --out build/nano

Nano's replies become canonical blocks: encoded after silence, on the frame grid, so that what the
language model has to say is always the same; so do sentences that nano reads, by which it learns
that its voice follows its text. The user's are encoded at random offsets, through rooms,
microphones and noise; some with pauses inside, some as voices from the next room. Everything
follows from the seed, the codec's encoder and the lines; the cache lies in a folder named by a
fingerprint of both, one file a shard, so a stopped run goes on.
Tokens of a codec in training need `torch` and `moshi`; those of the bundled codec
(`--bundled-codec`) and reading any need neither.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import string
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from multiprocessing import get_context
from multiprocessing.pool import AsyncResult
from pathlib import Path
from typing import Any

import numpy as np

from moshi_mlx.hub import bundled_folder
from moshi_mlx.text import TextTokenizer

from . import script
from .codec_data import FRAME_SIZE, canonical_rendition
from .renditions import Line, evaluation_lines, training_lines
from .sentences import SentenceMaker, punctuated
from .speech import (
    NOISE_KINDS,
    SAMPLE_RATE,
    Speech,
    augment,
    decibels,
    disturbed,
    far_away,
    hesitant,
    noise,
    sometimes_strange,
    speak,
    through_line,
)

FRAME_RATE = 12.5
CODEBOOKS, CARD = 8, 512
PAD, EPAD = 3, 0
"""Text tokens: nothing is said now; a word starts with the next frame."""

TEXT_CARD = 512
_SHARD = 512  # lines per file
_BATCH = 16  # recordings encoded at once
_SETTLE = 6  # frames heard before a block begins
_BEFORE = 3  # frames of a block before the speech
_TAIL, _LONG_TAIL = 9, 30  # frames of a block after the speech
_LONG_TAIL_SHARE = 0.2
_SWAYED_SHARE, _COLOURED_SHARE = 0.5, 0.5  # of the lines in training
_DISTURBED_SHARE, _FAR_SHARE, _HESITANT_SHARE = 0.65, 0.06, 0.3  # of them, too
_NOISE_FRAMES = 190
_READ_SENTENCES = 1200
_Change = Callable[[np.ndarray, np.random.Generator], np.ndarray]
FAR = "far"
"""The kind of utterances from the next room."""


@dataclass(frozen=True)
class Reply:
    """What nano says: codes [8, frames], text tokens [frames]; speech ends with frame `end`."""

    text: str
    codes: np.ndarray
    text_tokens: np.ndarray
    end: int


@dataclass(frozen=True)
class Utterance:
    """What a user says: codes [8, frames]; speech from frame `onset` to `end`, both included.

    `words` are (word, its last frame); `level` is the noise around it in dBFS.
    """

    kind: str
    text: str
    voice: str
    codes: np.ndarray
    onset: int
    end: int
    words: tuple[tuple[str, int], ...]
    level: float


@dataclass(frozen=True)
class Noise:
    """A stretch without speech from the beginning of a recording: codes [8, frames], dBFS."""

    kind: str
    level: float
    codes: np.ndarray


@dataclass
class Bank:
    """Everything dialogues are made of."""

    silence: np.ndarray
    """Codes [8] of long silence."""

    replies: dict[str, Reply] = field(default_factory=dict)
    read: list[Reply] = field(default_factory=list)
    """Sentences that nano never says by itself."""

    utterances: dict[str, dict[str, list[Utterance]]] = field(default_factory=dict)
    """By kind and text."""

    noises: list[Noise] = field(default_factory=list)


# ------------------------------------------------------------------------------------ text stream


def train_tokenizer(out: Path) -> Path:
    """A SentencePiece BPE model: every word of nano's replies is one piece, others are several.

    One piece a word, because a word's frames are few. Ids as in the published tokenizer: 0 unknown
    (end of padding), 1 BOS, 2 EOS, 3 padding.
    """
    import sentencepiece

    prefix = out / "tokenizer"
    words = sorted({word for reply in script.replies() for word in reply.split()})
    letters = " ".join(string.ascii_letters + string.digits + ".,!?'-")
    wordings = [w for intent in script.INTENTS for w in intent.train_wordings]
    texts = [*wordings, *script.OUT_OF_SCRIPT_TRAIN, *script.replies()]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*texts, *[t.capitalize() for t in texts], letters]),
        user_defined_symbols=[f"\u2581{word}" for word in words],
        model_prefix=str(prefix),
        vocab_size=TEXT_CARD,
        model_type="bpe",
        unk_id=EPAD,
        bos_id=1,
        eos_id=2,
        pad_id=PAD,
        hard_vocab_limit=False,
        character_coverage=1.0,
        minloglevel=2,
    )
    return prefix.with_suffix(".model")


def text_stream(
    words: Sequence[tuple[str, int]], frames: int, encode: Callable[[str], list[int]]
) -> np.ndarray:
    """Words with their first frames → one token per frame [frames].

    A word's pieces start in its first frame, or after those of the word before; EPAD stands in the
    free frame before a word, PAD everywhere else.
    """
    stream = np.full(frames, PAD, np.int16)
    free = 0
    for word, start in words:
        at = max(start, free)
        if at > free or (at == free and at > 0 and stream[at - 1] == PAD):
            stream[at - 1] = EPAD
        pieces = encode(word)[: max(0, frames - at)]
        stream[at : at + len(pieces)] = pieces
        free = at + len(pieces)
    return stream


# --------------------------------------------------------------------------------------- encoding


class Encoder:
    """The codec's encoder in PyTorch; recordings side by side."""

    def __init__(self, out: Path) -> None:
        import torch

        from . import codec

        codec.use_plain_convolutions()
        self._torch, self._codec = torch, codec
        self._model = codec.load_listening(out)
        digest = hashlib.sha1()
        for name, value in sorted(self._model.state_dict().items()):
            if name.startswith(("encoder", "downsample", "quantizer")):
                digest.update(value.numpy().tobytes())
        self.fingerprint = digest.hexdigest()[:10]

    def encode(self, recordings: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Recordings [whole frames] float32 → codes [8, frames] int16 each."""
        torch = self._torch
        codes: list[np.ndarray] = [np.empty(0)] * len(recordings)
        order = sorted(range(len(recordings)), key=lambda i: len(recordings[i]))
        for start in range(0, len(order), _BATCH):
            chosen = order[start : start + _BATCH]
            pcm = np.zeros((len(chosen), 1, len(recordings[chosen[-1]])), np.float32)
            for row, i in enumerate(chosen):
                pcm[row, 0, : len(recordings[i])] = recordings[i]
            with torch.no_grad():
                latent = self._codec.to_latent(self._model, torch.from_numpy(pcm))
                block = self._model.quantizer.encode(latent).to(torch.int16).numpy()
            for row, i in enumerate(chosen):  # causal: what follows a recording doesn't matter
                codes[i] = block[row, :, : len(recordings[i]) // FRAME_SIZE]
        return codes


class BundledEncoder:
    """The bundled codec's encoder, in MLX."""

    def __init__(self) -> None:
        from . import clips

        self._clips = clips
        weights = bundled_folder("nano") / "mimi.safetensors"
        self.fingerprint = hashlib.sha1(weights.read_bytes()).hexdigest()[:10]

    def encode(self, recordings: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Recordings [whole frames] float32 → codes [8, frames] int16 each."""
        return self._clips.encode(recordings)


AnyEncoder = Encoder | BundledEncoder


def lines_fingerprint() -> str:
    """Changes with anything that is said in training, by nano or by the user."""
    said = repr((script.replies(), read_sentences(), training_lines()))
    return hashlib.sha1(said.encode()).hexdigest()[:10]


def read_sentences() -> list[str]:
    """What nano reads: half of it of the words of its replies as they are written there."""
    rng, maker = np.random.default_rng(5), SentenceMaker()
    words = sorted({w for r in script.replies() for w in r.split() if w != script.BACKCHANNEL})
    texts: dict[str, None] = {}
    while len(texts) < _READ_SENTENCES:
        if rng.uniform() < 0.5:
            texts[" ".join(rng.choice(words, int(rng.integers(3, 9))))] = None
        else:
            sentence = punctuated(maker.sentence(rng), rng)
            texts[sentence[0].upper() + sentence[1:]] = None
    return list(texts)


def _frames(samples: float) -> int:
    return int(samples // FRAME_SIZE)


def _save(file: Path, codes: Sequence[np.ndarray], items: Sequence[dict[str, Any]]) -> None:
    """Codes of many items, one after the other, and what is known of each as JSON."""
    lengths = [c.shape[1] for c in codes]
    partial = file.with_suffix(".partial.npz")
    np.savez_compressed(
        partial,
        codes=np.concatenate(codes, 1),
        lengths=np.array(lengths),
        items=np.array(json.dumps(items)),
    )
    partial.replace(file)


def _load(file: Path) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
    with np.load(file) as stored:
        codes, lengths = stored["codes"], stored["lengths"]
        items = json.loads(str(stored["items"]))
    ends = np.cumsum(lengths)
    for item, length, end in zip(items, lengths, ends, strict=True):
        yield codes[:, end - length : end], item


def make_replies(
    encoder: AnyEncoder, out: Path, folder: Path, name: str, texts: Sequence[str], tail: int = 8
) -> None:
    """Texts in nano's voice, into the file `name`; the codes of silence as the last item.

    tail: frames after the speech.
    """
    tokenizer = TextTokenizer(folder / "tokenizer.model")
    lead = 30
    recordings, items = [], []
    for reply in texts:
        speech = speak(canonical_rendition(reply), out / "speech")
        frames = -(-len(speech.pcm) // FRAME_SIZE) + tail
        room = frames * FRAME_SIZE - len(speech.pcm)
        recordings.append(np.pad(speech.pcm, (lead * FRAME_SIZE, room)))
        starts = [(w.label, _frames(w.start * SAMPLE_RATE)) for w in speech.words]
        stream = text_stream(starts, frames, tokenizer.encode)
        end = _frames(speech.speech_end * SAMPLE_RATE)
        items.append({"text": reply, "text_tokens": stream.tolist(), "end": end})
    recordings.append(np.zeros(100 * FRAME_SIZE, np.float32))
    items.append({"text": "", "text_tokens": [], "end": 0})
    *blocks, silence = encoder.encode(recordings)
    _save(folder / name, [*(b[:, lead:] for b in blocks), silence[:, -1:]], items)


def make_noises(encoder: AnyEncoder, folder: Path, seed: int) -> None:
    """Silence, four kinds of noise at many levels, and sounds that are not speech."""
    rng = np.random.default_rng([seed, 1])
    length = _NOISE_FRAMES * FRAME_SIZE
    recordings: list[np.ndarray] = [np.zeros(length, np.float32)]
    items: list[dict[str, Any]] = [{"kind": "silence", "level": -120.0}]
    for level in range(-88, -26, 6):
        for kind in (*NOISE_KINDS, "music"):
            loudness = level + float(rng.uniform(-3, 3))
            recordings.append(decibels(loudness) * noise(kind, length, rng))
            items.append({"kind": kind, "level": loudness})
    for _ in range(24):
        loudness = float(rng.uniform(-85, -50))
        floor = decibels(loudness) * noise(str(rng.choice(NOISE_KINDS)), length, rng)
        recordings.append(floor + sounds(length, rng))
        items.append({"kind": "sounds", "level": loudness})
    clipped = [np.clip(r, -0.99, 0.99).astype(np.float32) for r in recordings]
    _save(folder / "noises.npz", encoder.encode(clipped), items)


def sounds(length: int, rng: np.random.Generator) -> np.ndarray:
    """Clicks, knocks, tones and puffs [length], one every second or two; peaks -40..-10 dBFS."""
    out = np.zeros(length, np.float32)
    at = int(rng.uniform(0.2, 2) * SAMPLE_RATE)
    while at < length:
        kind = rng.choice(["click", "knock", "tone", "puff"])
        seconds = {"click": 0.01, "knock": 0.08, "tone": rng.uniform(0.1, 0.6), "puff": 0.4}[kind]
        samples = int(seconds * SAMPLE_RATE)
        time = np.arange(samples) / SAMPLE_RATE
        if kind == "tone":
            shape = np.sin(2 * np.pi * rng.uniform(200, 3000) * time) * np.hanning(samples)
        elif kind == "knock":
            ring = np.sin(2 * np.pi * rng.uniform(80, 400) * time)
            shape = ring * np.exp(-time * rng.uniform(40, 120))
        else:
            colour = "white" if kind == "click" else "pink"
            shape = 0.3 * noise(colour, samples, rng) * np.hanning(samples)
        shape = decibels(rng.uniform(-40, -10)) * shape[: length - at]
        out[at : at + len(shape)] += shape
        at += samples + int(rng.uniform(0.3, 2.5) * SAMPLE_RATE)
    return out


def _placed(
    line: Line,
    speech: Speech,
    tail: int,
    rng: np.random.Generator,
    change: _Change,
) -> tuple[np.ndarray, dict[str, Any]]:
    """A line with silence around it, changed by `change`, and what is known of its codes.

    The first `_SETTLE` frames are to be cut off the codes.
    """
    offset = int(rng.integers(FRAME_SIZE))
    lead = (_SETTLE + _BEFORE) * FRAME_SIZE + offset
    end = _frames(offset + speech.speech_end * SAMPLE_RATE)
    length = (_SETTLE + _BEFORE + end + 1 + tail) * FRAME_SIZE
    pcm = np.pad(speech.pcm, (lead, max(0, length - lead - len(speech.pcm))))[:length]
    heard = change(pcm, rng)
    level = 10 * float(np.log10(np.mean(heard[: lead - FRAME_SIZE] ** 2) + 1e-12))
    words = [(w.label, _BEFORE + _frames(offset + w.end * SAMPLE_RATE)) for w in speech.words]
    return heard, {
        "kind": line.kind,
        "text": line.rendition.text,
        "voice": line.rendition.voice,
        "onset": _BEFORE + _frames(offset + speech.words[0].start * SAMPLE_RATE),
        "end": _BEFORE + end,
        "words": words,
        "level": level,
    }


def pauses_fit(text: str) -> list[int]:
    """The words of a text, by number, after which a speaker may hesitate and is to be waited for:
    what was said so far is nothing that could be answered."""
    words = text.split()
    return [i for i in range(len(words) - 1) if " ".join(words[: i + 1]) not in _answerable()]


@functools.cache
def _answerable() -> frozenset[str]:
    return frozenset(w for intent in script.INTENTS for w in intent.wordings)


def _far(pcm: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return through_line(far_away(pcm, rng), rng)


_Recorded = tuple[list[np.ndarray], list[dict[str, Any]]]


def _record(
    cache: Path,
    lines: Sequence[Line],
    rng: np.random.Generator,
    strange: bool = False,
    change: _Change = augment,
) -> _Recorded:
    """Lines as a microphone hears them, changed by `change`, and what is known of each.

    If `strange`, some voices become such as no engine has, some speakers hesitate, some are in the
    next room, and most are disturbed more than by `augment`.
    """
    recordings, items = [], []
    shares = (_SWAYED_SHARE, _COLOURED_SHARE) if strange else (0.0, 0.0)
    for line in lines:
        tail = _LONG_TAIL if rng.uniform() < _LONG_TAIL_SHARE else _TAIL
        speech = speak(line.rendition, cache)
        speech = sometimes_strange(speech, rng, *shares)
        way = change
        if strange:
            places = pauses_fit(line.rendition.text)
            if places and line.kind != "murmur" and rng.uniform() < _HESITANT_SHARE:
                count = min(len(places), 1 + int(rng.uniform() < 0.25))
                speech = hesitant(speech, rng.permutation(places)[:count].tolist(), rng)
            if rng.uniform() < _FAR_SHARE:
                line, way = replace(line, kind=FAR), _far
            elif rng.uniform() < _DISTURBED_SHARE:
                way = disturbed
        recording, item = _placed(line, speech, tail, rng, way)
        recordings.append(recording)
        items.append(item)
    return recordings, items


def _encode_lines(encoder: AnyEncoder, file: Path, recorded: _Recorded) -> None:
    recordings, items = recorded
    codes = [c[:, _SETTLE:] for c in encoder.encode(recordings)]
    _save(file, codes, items)
    print(f"{file.name}: {sum(c.shape[1] for c in codes) / FRAME_RATE / 60:.1f} min", flush=True)


@dataclass(frozen=True)
class _Shard:
    """Lines of training in one of their encodings."""

    cache: Path
    lines: Sequence[Line]
    seed: tuple[int, ...]

    def record(self) -> _Recorded:
        return _record(self.cache, self.lines, np.random.default_rng(self.seed), strange=True)


def make_utterances(
    encoder: AnyEncoder,
    out: Path,
    folder: Path,
    encodings: int,
    seed: int,
    count: int | None,
    processes: int = 1,
) -> None:
    """The first `count` training lines, `encodings` times, each in another place and disturbed in
    another way. With several processes the others record while this one encodes."""
    lines = training_lines()[:count]
    parts = [lines[i : i + _SHARD] for i in range(0, len(lines), _SHARD)]
    files, shards = [], []
    for encoding in range(encodings):
        for number, part in enumerate(parts):
            file = folder / f"user-{encoding}-{number:03}.npz"
            if not file.exists():
                files.append(file)
                shards.append(_Shard(out / "speech", part, (seed, 3, encoding, number)))
    if processes == 1:
        for file, shard in zip(files, shards, strict=True):
            _encode_lines(encoder, file, shard.record())
        return
    with get_context("spawn").Pool(processes - 1) as pool:
        waiting, coming = iter(shards), deque[AsyncResult[_Recorded]]()
        for file in files:
            for shard in islice(waiting, processes - len(coming)):  # a shard takes 150 MB
                coming.append(pool.apply_async(shard.record))
            _encode_lines(encoder, file, coming.popleft().get())


def make_checks(encoder: AnyEncoder, out: Path, folder: Path, seed: int) -> None:
    """Utterances to look at while training: renditions, wordings and voices never trained on."""
    known = [i.train_wordings[0] for i in script.INTENTS]
    held_out = [w for i in script.INTENTS for w in i.held_out_wordings][::2]
    groups = {
        "rendition": evaluation_lines(known[::2], heard_voices=True),
        "wording": evaluation_lines(held_out, heard_voices=True),
        "voice": evaluation_lines(known[1::2], heard_voices=False),
        "neural": evaluation_lines(known[1::2], heard_voices=False, neural=True),
        "unknown": evaluation_lines(script.OUT_OF_SCRIPT_HELD_OUT[::2], heard_voices=True),
    }
    lines = [Line(group, line.rendition) for group, lines in groups.items() for line in lines]
    rng = np.random.default_rng([seed, 4])
    cache = out / "speech"
    _encode_lines(encoder, folder / "checks.npz", _record(cache, lines, rng))
    house = [replace(line, kind=f"{line.kind} in a house") for line in lines]
    recorded = _record(cache, house, rng, change=disturbed)
    _encode_lines(encoder, folder / "checks-house.npz", recorded)


def token_folder(out: Path) -> Path:
    """The newest folder of tokens under `out`; FileNotFoundError if there is none."""
    folders = [f.parent for f in (out / "tokens").glob("*/replies.npz")]
    if not folders:
        raise FileNotFoundError(f"no tokens under {out / 'tokens'}; run the tokens step first")
    return max(folders, key=lambda f: f.stat().st_mtime)


def load_bank(folder: Path) -> Bank:
    """All tokens of a folder; as many shards of utterances as there are."""
    *replies, (silence, _) = list(_load(folder / "replies.npz"))
    bank = Bank(silence[:, 0])
    bank.replies = {item["text"]: _reply(codes, item) for codes, item in replies}
    *read, _ = list(_load(folder / "read.npz"))
    bank.read = [_reply(codes, item) for codes, item in read]
    bank.noises = [Noise(codes=codes, **item) for codes, item in _load(folder / "noises.npz")]
    for file in sorted(folder.glob("user-*.npz")):
        for utterance in load_utterances(file):
            of_kind = bank.utterances.setdefault(utterance.kind, {})
            of_kind.setdefault(utterance.text, []).append(utterance)
    return bank


def _reply(codes: np.ndarray, item: dict[str, Any]) -> Reply:
    return Reply(item["text"], codes, np.array(item["text_tokens"], np.int16), item["end"])


def load_utterances(file: Path) -> Iterator[Utterance]:
    """The utterances of one file."""
    for codes, item in _load(file):
        words = tuple((w, f) for w, f in item.pop("words"))
        yield Utterance(codes=codes, words=words, **item)


def main() -> None:
    parser = argparse.ArgumentParser(description="Turn renditions into Mimi tokens.")
    parser.add_argument("--out", type=Path, default=Path("build/nano"))
    parser.add_argument("--encodings", type=int, default=2, help="of every rendition")
    parser.add_argument("--lines", type=int, help="only the first N lines", metavar="N")
    parser.add_argument("--bundled-codec", action="store_true", help="in place of the one in --out")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    encoder: AnyEncoder
    if args.bundled_codec:
        encoder = BundledEncoder()
    else:
        import torch

        torch.set_num_threads(args.threads)
        encoder = Encoder(args.out)
    folder = args.out / "tokens" / f"{encoder.fingerprint}-{lines_fingerprint()}"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "noises.npz").exists():
        make_noises(encoder, folder, args.seed)
    if not (folder / "checks.npz").exists():
        make_checks(encoder, args.out, folder, args.seed)
    if not (folder / "replies.npz").exists():
        train_tokenizer(folder)
        make_replies(encoder, args.out, folder, "read.npz", read_sentences(), tail=3)
        make_replies(encoder, args.out, folder, "replies.npz", script.replies())
    make_utterances(encoder, args.out, folder, args.encodings, args.seed, args.lines, args.threads)
    print(f"tokens in {folder}")


if __name__ == "__main__":
    main()
