"""Nano's codec learns to listen: its encoder alone, on many voices, through rooms and noise.

    python -m recipes.nano.codec_listening --out build/nano

Writes codec/listening.pt, from which tokens are made and the decoder is trained.

The codes keep their meaning: the codebooks and the decoder stay as they are, and disturbed speech
is to get the latents that the encoder gave the clean recording before. Two more errors make it tell
voices apart from what they say: the phones of the text, whatever their times (CTC, Graves et al.
2006), read off the semantic code; and the sound that the decoder makes of the codes. Knows the
codec as `codec` has it and renditions of the language model's lines; nothing of that model.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from . import script
from .codec import (
    CONFIG,
    PHONES_PER_FRAME,
    Run,
    begin,
    from_latent,
    listening_file,
    load_joint,
    load_published,
    to_latent,
)
from .codec_data import FRAME_SIZE, canonical_rendition
from .codec_loss import EnvelopeLoss, SpectralLoss, make_optimizers
from .renditions import Line, training_lines
from .speech import (
    PHONES,
    SPEECH_RMS,
    Rendition,
    augment,
    decibels,
    disturbed,
    sometimes_strange,
    speak,
    speech_level,
    spelt_in_phones,
)

_BLANK = 0  # in the place of silence, which no text contains
_MOST_FRAMES = 44
_BATCH, _SOUND_FRAMES = 8, 10
_RECORDINGS_OF_A_CHECK = 96
_PHONE_WEIGHT, _SOUND_WEIGHT = 0.01, 0.3
_STEPS_OF_THE_HEAD = 150  # before it can teach


@dataclass(frozen=True)
class Heard:
    """Recordings [B, T · 1920]: `clean` is what `source` was before it was disturbed.

    `phones` are those of each text, [] of silence.
    """

    source: torch.Tensor
    clean: torch.Tensor
    phones: list[list[int]]


class LineSampler:
    """Endless lines of users, some of nano's replies, and some silence and noise.

    Args:
        lines: of users.
        cache: where their renditions lie.
        seed: of all that is random.
    """

    OWN, SILENCE, NEURAL = 0.12, 0.06, 0.4  # the last of the users'
    DISTURBED, AS_RECORDED = 0.6, 0.2

    def __init__(self, lines: list[Line], cache: Path, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.cache = cache
        renditions = [line.rendition for line in lines]
        self._neural = [r for r in renditions if r.voice.startswith("kokoro:")]
        self._others = [r for r in renditions if not r.voice.startswith("kokoro:")]
        self._own = [canonical_rendition(reply) for reply in script.replies()]

    def _pick(self, renditions: list[Rendition]) -> Rendition:
        return renditions[int(self.rng.integers(len(renditions)))]

    def one(self) -> tuple[np.ndarray, np.ndarray, list[int]]:
        """A disturbed recording, the same clean, its phones."""
        rng, way = self.rng, self.rng.uniform()
        if way < self.SILENCE:
            clean = np.zeros(int(rng.integers(10, 25)) * FRAME_SIZE, np.float32)
            return augment(clean, rng), clean, []
        if way < self.SILENCE + self.OWN:
            rendition = self._pick(self._own)
            clean = self._framed(speak(rendition, self.cache).pcm, SPEECH_RMS, whole=True)
            return clean, clean, _phone_numbers(rendition.text)
        neural = self._neural and rng.uniform() < self.NEURAL
        rendition = self._pick(self._neural if neural else self._others)
        speech = sometimes_strange(speak(rendition, self.cache), rng, 0.5, 0.5)
        level = speech_level(rng)
        clean = self._framed(speech.pcm, decibels(level))
        way = rng.uniform()
        if way < self.DISTURBED:
            source = disturbed(clean * (SPEECH_RMS / decibels(level)), rng, level)
        elif way < self.DISTURBED + self.AS_RECORDED:
            source = clean
        else:
            source = augment(clean, rng, gain_db=0.0)
        return source, clean, _phone_numbers(rendition.text)

    def _framed(self, pcm: np.ndarray, rms: float, whole: bool = False) -> np.ndarray:
        """A rendition with silence around it, whole frames; `whole`: it begins with a frame."""
        grid = FRAME_SIZE if whole else 1
        lead = int(self.rng.integers(2 * FRAME_SIZE, 6 * FRAME_SIZE)) // grid * grid
        frames = -(-(lead + len(pcm)) // FRAME_SIZE) + int(self.rng.integers(1, 5))
        tail = frames * FRAME_SIZE - lead - len(pcm)
        padded = np.pad(pcm * (rms / SPEECH_RMS), (lead, tail)).astype(np.float32)
        return np.clip(padded[: _MOST_FRAMES * FRAME_SIZE], -0.99, 0.99)

    def batch(self, size: int) -> Heard:
        """`size` lines, padded at their ends."""
        sources, cleans, phones = zip(*(self.one() for _ in range(size)), strict=True)
        return Heard(_stacked(sources), _stacked(cleans), list(phones))


def _stacked(recordings: tuple[np.ndarray, ...]) -> torch.Tensor:
    longest = max(map(len, recordings))
    return torch.from_numpy(np.stack([np.pad(r, (0, longest - len(r))) for r in recordings]))


def _phone_numbers(text: str) -> list[int]:
    return [PHONES.index(p) for p in spelt_in_phones(text) if p in PHONES]


@dataclass(frozen=True)
class _Quantized:
    """What a branch makes of latents: straight-through vectors [B, 64, T]; by level the codes
    [B, T] and the mean squared distance that is left."""

    vectors: torch.Tensor
    codes: list[torch.Tensor]
    left: list[torch.Tensor]


class Codebooks:
    """A frozen split residual quantizer: nearest entries, and how far a latent is from given ones.

    Args:
        quantizer: the reference's, of a trained codec.
    """

    def __init__(self, quantizer: Any) -> None:
        self.branches = (quantizer.rvq_first, quantizer.rvq_rest)
        self.books = [
            [level._codebook.embedding.detach() for level in branch.vq.layers]
            for branch in self.branches
        ]

    def _levels(self, latent: torch.Tensor) -> Iterator[_Quantized]:
        for branch, books in zip(self.branches, self.books, strict=True):
            x = branch.input_proj(latent).transpose(1, 2)
            rest, codes, left = x, [], []
            for book in books:
                codes.append(_distances(rest, book).argmin(-1))
                rest = rest - book[codes[-1]]
                left.append(rest.square().sum(-1).mean())
            yield _Quantized((x - rest.detach()).transpose(1, 2), codes, left)

    def codes(self, latent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents [B, 128, T] → codes [B, T, 8] and the mean squared distance [8] that is left."""
        parts = list(self._levels(latent))
        codes, left = ([v for p in parts for v in getattr(p, n)] for n in ("codes", "left"))
        return torch.stack(codes, -1), torch.stack(left)

    def quantized(self, latent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Straight through: what the decoder gets [B, 128, T], the semantic vector [B, 64, T]."""
        first, rest = (part.vectors for part in self._levels(latent))
        outputs = (b.output_proj(x) for b, x in zip(self.branches, (first, rest), strict=True))
        return sum(outputs), first

    def error(self, latent: torch.Tensor, wanted: torch.Tensor, left: torch.Tensor) -> torch.Tensor:
        """Squared distance of latents [B, 128, T] from those wanted, where they are quantized, by
        what the first level of each branch leaves of it, `left` [8]."""
        loss, level = latent.new_zeros(()), 0
        for branch, books in zip(self.branches, self.books, strict=True):
            off = branch.input_proj(latent) - branch.input_proj(wanted)
            loss = loss + off.square().sum(1).mean() / left[level]
            level += len(books)
        return loss


def _distances(x: torch.Tensor, book: torch.Tensor) -> torch.Tensor:
    """Squared distances [..., entries] of vectors [..., 64]."""
    return x.square().sum(-1, keepdim=True) - 2 * x @ book.T + book.square().sum(-1)


def phone_error(
    head: Callable[[torch.Tensor], torch.Tensor], semantic: torch.Tensor, phones: list[list[int]]
) -> torch.Tensor:
    """CTC of each text's phones, four labels a frame, a phone on average; rows without any are left
    out.

    Args:
        head: from 64 to 4 · phones.
        semantic: [B, 64, T].
        phones: of each row.
    """
    chosen = [i for i, row in enumerate(phones) if row]
    logits = head(semantic.transpose(1, 2)[chosen])
    logits = logits.reshape(len(chosen), -1, len(PHONES)).log_softmax(-1).transpose(0, 1)
    lengths = torch.tensor([len(phones[i]) for i in chosen])
    targets = torch.tensor([p for i in chosen for p in phones[i]])
    steps = torch.full((len(chosen),), len(logits))
    return F.ctc_loss(logits, targets, steps, lengths, _BLANK, zero_infinity=True)


class Listening:
    """A codec whose encoder learns; what its codes are to be comes from its beginning.

    Args:
        model: a trained codec, changed in place.
        sampler: of recordings by which errors are scaled.
    """

    def __init__(self, model: Any, sampler: LineSampler) -> None:
        self.model = model.eval()
        self._before = copy.deepcopy(model).eval()
        for module in (model.quantizer, model.upsample, model.decoder_transformer, model.decoder):
            module.requires_grad_(False)
        self.books = Codebooks(model.quantizer)
        _, self._left = self.books.codes(self._wanted(sampler.batch(_RECORDINGS_OF_A_CHECK)))
        self.phone_head = nn.Linear(
            CONFIG["quantizer"]["dimension"], PHONES_PER_FRAME * len(PHONES)
        )
        self._spectral, self._envelope = SpectralLoss(), EnvelopeLoss()

    @property
    def parameters(self) -> list[nn.Parameter]:
        learning = [p for p in self.model.parameters() if p.requires_grad]
        return [*learning, *self.phone_head.parameters()]

    @torch.no_grad()
    def _wanted(self, heard: Heard) -> torch.Tensor:
        return to_latent(self._before, heard.clean[:, None])

    def errors(
        self, heard: Heard, rng: np.random.Generator, phones_teach: bool = True
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """The loss, and its parts by name; only the head learns of phones unless `phones_teach`."""
        wanted = self._wanted(heard)
        latent = to_latent(self.model, heard.source[:, None])
        code = self.books.error(latent, wanted, self._left)
        quantized, semantic = self.books.quantized(latent)
        if not phones_teach:
            semantic = semantic.detach()
        phone = phone_error(self.phone_head, semantic, heard.phones)
        first = int(rng.integers(max(1, latent.shape[2] - _SOUND_FRAMES)))
        window = slice(first, first + _SOUND_FRAMES)
        samples = slice(first * FRAME_SIZE, (first + _SOUND_FRAMES) * FRAME_SIZE)
        output = from_latent(self.model, quantized[..., window])[:, 0]
        mel, convergence = self._spectral(output, heard.clean[:, samples])
        sound = mel + 0.5 * convergence + self._envelope(output, heard.clean[:, samples])
        loss = code + _PHONE_WEIGHT * phone + _SOUND_WEIGHT * sound
        parts = {"code": code, "phone": phone, "mel": mel, "sound": sound}
        return loss, {name: float(part.detach()) for name, part in parts.items()}

    @torch.no_grad()
    def check(self, sampler: LineSampler) -> str:
        """How many semantic codes of recordings are as they were for the clean ones."""
        heard = [sampler.batch(_BATCH) for _ in range(_RECORDINGS_OF_A_CHECK // _BATCH)]
        shares, phones = [], []
        for batch in heard:
            codes, _ = self.books.codes(self._wanted(batch))
            latent = to_latent(self.model, batch.source[:, None])
            shares.append((self.books.codes(latent)[0] == codes).float().mean((0, 1)))
            _, semantic = self.books.quantized(latent)
            phones.append(float(phone_error(self.phone_head, semantic, batch.phones)))
        same = " ".join(f"{float(s):.3f}" for s in torch.stack(shares).mean(0))
        return f"  codes as of the clean recordings {same}  phones {np.mean(phones):.3f}"


def listen(
    out: Path, minutes: float, start: Path | None = None, count: int | None = None, seed: int = 2
) -> None:
    """Trains into codec/listening.pt, from codec/joint.pt or the `mimi.safetensors` `start` on."""
    torch.manual_seed(seed)
    model = load_joint(out) if start is None else load_published(start)
    lines, cache = training_lines()[:count], out / "speech"
    listening = Listening(model, LineSampler(lines, cache, seed))
    optimizers = make_optimizers(listening.parameters, adam_lr=2e-4, muon_lr=3e-4)
    modules = {"model": model, "phone_head": listening.phone_head}
    run = Run(listening_file(out), modules, optimizers, minutes, 0.4, 0.03)
    sampler = LineSampler(lines, cache, seed + run.step)
    print(listening.check(LineSampler(lines, cache, 0)), flush=True)
    while not run.done:
        run.set_rate()
        teach = run.step >= _STEPS_OF_THE_HEAD
        loss, parts = listening.errors(sampler.batch(_BATCH), sampler.rng, teach)
        run.update(loss, listening.parameters, **parts)
        run.save_if_due(lambda: listening.check(LineSampler(lines, cache, 0)))
    run.save()
    print(listening.check(LineSampler(lines, cache, 0)), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Teach nano's codec to listen.")
    parser.add_argument("--out", type=Path, default=Path("build/nano"))
    parser.add_argument("--minutes", type=float, default=40)
    parser.add_argument("--lines", type=int, help="only the first N of the users'", metavar="N")
    parser.add_argument("--start", type=Path, help="mimi.safetensors to start from")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    begin(args.out, args.threads)
    listen(args.out, args.minutes, args.start, args.lines)


if __name__ == "__main__":
    main()
