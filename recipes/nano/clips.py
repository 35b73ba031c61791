"""Clips of speech as codes of nano's own codec, with word times; made once and kept on disk.

Knows synthesizers, the bundled codec (in MLX) and frames; nothing of text tokens or of models.
A shard is a file of clips that follows from a seed and its number alone, so shards can be made side
by side, and a stopped run goes on.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import overload

import numpy as np

import moshi_mlx
from moshi_mlx.backend import on_gpu
from moshi_mlx.files import read_json
from moshi_mlx.hub import bundled_folder
from moshi_mlx.mimi import Mimi
from moshi_mlx.published import read_mimi_config

from .codec_data import FRAME_SIZE
from .speech import SAMPLE_RATE

CODEBOOKS, CARD = 8, 512
FRAME_RATE = SAMPLE_RATE / FRAME_SIZE

_BATCH = 16  # recordings encoded at once
_GPU_BATCH, _GPU_FRAMES = 64, 25  # there, and what their length is a multiple of


@dataclass(frozen=True)
class Clip:
    """Codes [8, frames] int16 of `words` as `voice` says them.

    `starts` has the words' starts in frames from the clip's first, whole or not; `end` is where the
    speech ends.
    """

    codes: np.ndarray
    words: tuple[str, ...]
    starts: tuple[float, ...]
    end: float
    voice: str

    @property
    def frames(self) -> int:
        return int(self.codes.shape[1])


@functools.cache
def codec() -> Mimi:
    """Nano's codec, as it is bundled."""
    folder = bundled_folder("nano")
    config = read_mimi_config(read_json(folder / "mimi_config.json"))
    return moshi_mlx.load_mimi(folder / "mimi.safetensors", CODEBOOKS, config)


def encode(recordings: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Recordings [samples] float32 → codes [8, whole frames] int16 each.

    Side by side, the short ones filled up: the codec is causal, so what follows doesn't matter.
    """
    codes: list[np.ndarray] = [np.empty(0)] * len(recordings)
    order = sorted(range(len(recordings)), key=lambda i: len(recordings[i]))
    batch, multiple = (_GPU_BATCH, _GPU_FRAMES) if on_gpu() else (_BATCH, 1)
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        frames = [len(recordings[i]) // FRAME_SIZE for i in chosen]
        longest = -(-frames[-1] // multiple) * multiple
        pcm = np.zeros((len(chosen), 1, longest * FRAME_SIZE), np.float32)
        for row, (i, length) in enumerate(zip(chosen, frames, strict=True)):
            pcm[row, 0, : length * FRAME_SIZE] = recordings[i][: length * FRAME_SIZE]
        block = np.array(codec().encode(pcm), np.int16)
        for row, (i, length) in enumerate(zip(chosen, frames, strict=True)):
            codes[i] = block[row, :, :length]
    return codes


@dataclass(frozen=True)
class Take:
    """A clip that has no codes yet, and its sound [samples] float32, `settle` frames before it."""

    clip: Clip
    pcm: np.ndarray
    settle: int


def coded(takes: Sequence[Take]) -> list[Clip]:
    """The clips with their codes, without the frames that the codec settles in."""
    return [
        replace(take.clip, codes=codes[:, take.settle :])
        for take, codes in zip(takes, encode([take.pcm for take in takes]), strict=True)
    ]


def silence() -> np.ndarray:
    """Codes [8] of long silence."""
    return encode([np.zeros(100 * FRAME_SIZE, np.float32)])[0][:, -1]


def save_clips(file: Path, clips: Sequence[Clip]) -> None:
    """Writes a shard; it is there whole or not at all."""
    items = [{k: v for k, v in asdict(clip).items() if k != "codes"} for clip in clips]
    partial = file.with_suffix(".partial.npz")
    np.savez_compressed(
        partial,
        codes=np.concatenate([clip.codes for clip in clips], axis=1),
        lengths=np.array([clip.frames for clip in clips]),
        items=np.array(json.dumps(items)),
    )
    partial.replace(file)


def load_clips(file: Path) -> Iterator[Clip]:
    """The clips of a shard."""
    with np.load(file) as stored:
        codes, lengths = stored["codes"], stored["lengths"]
        items = json.loads(str(stored["items"]))
    for item, length, end in zip(items, lengths, np.cumsum(lengths), strict=True):
        item["words"], item["starts"] = tuple(item["words"]), tuple(item["starts"])
        yield Clip(codes=codes[:, end - length : end], **item)


def make_shards(
    make: Callable[[int], list[Clip]], folder: Path, numbers: Sequence[int], processes: int
) -> None:
    """Makes the shards of these numbers that aren't there yet: `folder`/NNNN.npz."""
    folder.mkdir(parents=True, exist_ok=True)
    job = functools.partial(_make_shard, make, folder)
    missing = [n for n in numbers if not _shard(folder, n).exists()]
    if processes == 1:
        for number in missing:
            print(job(number), flush=True)
        return
    with get_context("spawn").Pool(processes) as pool:
        for line in pool.imap_unordered(job, missing):
            print(line, flush=True)


def record_shards(
    record: Callable[[int], list[Take]],
    folder: Path,
    numbers: Sequence[int],
    processes: int,
    until: float,
) -> None:
    """Makes shards as `make_shards` does: others speak while this process encodes, on its GPU.

    Args:
        record: what a shard's number says; called in the other processes.
        folder: where the shards go.
        numbers: of the shards.
        processes: how many speak.
        until: of `time.monotonic`, when to stop.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing = [n for n in numbers if not _shard(folder, n).exists()]
    with get_context("spawn").Pool(processes) as pool:
        started = iter(missing)
        running = [
            (n, pool.apply_async(record, (n,)))
            for n, _ in zip(started, range(2 * processes), strict=False)
        ]
        while running and time.monotonic() < until:
            ready = next((i for i, (_, result) in enumerate(running) if result.ready()), None)
            if ready is None:
                time.sleep(0.01)
                continue
            number, result = running.pop(ready)
            save_clips(_shard(folder, number), coded(result.get()))
            if (following := next(started, None)) is not None:
                running.append((following, pool.apply_async(record, (following,))))


def _shard(folder: Path, number: int) -> Path:
    return folder / f"{number:04}.npz"


def _make_shard(make: Callable[[int], list[Clip]], folder: Path, number: int) -> str:
    clips = make(number)
    file = _shard(folder, number)
    save_clips(file, clips)
    minutes = sum(clip.frames for clip in clips) / FRAME_RATE / 60
    return f"{file}: {len(clips)} clips, {minutes:.1f} min"


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("[0-9][0-9][0-9][0-9].npz"))


def load_shards(folder: Path) -> list[Clip]:
    """All clips of a folder.

    Raises:
        FileNotFoundError: there is no shard.
    """
    files = _files(folder)
    if not files:
        raise FileNotFoundError(f"no clips under {folder}; run the prepare step first")
    return [clip for file in files for clip in load_clips(file)]


class Shards(Sequence[Clip]):
    """The clips of a folder, to which shards may be added while they are read.

    It is looked into at most every `seconds`, when the length is asked for.

    Raises:
        FileNotFoundError: there is no shard at the beginning.
    """

    def __init__(self, folder: Path, seconds: float = 5.0) -> None:
        self._folder, self._seconds = folder, seconds
        self._clips = load_shards(folder)
        self._read = set(_files(folder))
        self._looked = time.monotonic()

    def __len__(self) -> int:
        if time.monotonic() - self._looked > self._seconds:
            for file in _files(self._folder):
                if file not in self._read:
                    self._clips += load_clips(file)
                    self._read.add(file)
            self._looked = time.monotonic()
        return len(self._clips)

    @overload
    def __getitem__(self, index: int) -> Clip: ...
    @overload
    def __getitem__(self, index: slice) -> list[Clip]: ...
    def __getitem__(self, index: int | slice) -> Clip | list[Clip]:
        return self._clips[index]
