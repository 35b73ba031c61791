"""What a model remembers of a prompt, kept so that the next session with it starts at once.

The keys and values after a prompt depend on the weights and the prompt alone, not on a seed or a
way of sampling. They are kept in memory for the last few prompts, and in the user's cache folder.
Knows nothing of what is in a prompt.
"""

import hashlib
import os
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from ..errors import MoshiError
from ..files import cache_folder, sweep
from ..generate import Generator
from ..hub import ModelFiles
from ..session import Opening
from ..state import SavedState, load_state
from .prompts import Prompt

MOST_BYTES = 2_000_000_000
"""Bytes of all states in the cache folder; those that were not used for longest go first."""

_IN_MEMORY = 2
_VERSION = "moshi-local prompt 1"  # what is computed of the same files and prompt


def prompt_folder() -> Path:
    """Where the states are; it need not be there."""
    return cache_folder() / "prompts"


class PromptStates:
    """The states of a model's prompts.

    Args:
        files: of the model.
    """

    def __init__(self, files: ModelFiles) -> None:
        self._files = files
        self._recent: dict[str, SavedState] = {}  # the last one used at the end

    def run(
        self, prompt: Prompt, generator: Generator, kv_bits: int | None, cached: bool, keep: bool
    ) -> Opening:
        """Brings a fresh generator to where its conversation begins, and returns its state there.

        That is after the step that hears the prompt's last frame: the first one whose text is
        drawn. Its frame is the prompt's last one, and is not put out.

        Args:
            prompt: what comes before the conversation.
            generator: of one conversation, made of this model.
            kv_bits: those of the generator.
            cached: take the state of the prompt from an earlier time, and keep it.
            keep: let the prompt's positions stay in sight, see `Generator.keep`.

        Raises:
            ArgumentError: they cannot be kept.
        """
        began = time.perf_counter()
        key = self._key(prompt, generator, kv_bits) if cached else ""
        restored = cached and self._restored(key, generator)
        if not restored:
            generator.prefill(*prompt)
            state = generator.save()
            # What a guard against repetition saw is not of the prompt: its words may be repeated.
            arrays = {name: array for name, array in state.arrays.items() if name != "recent"}
            if len(arrays) < len(state.arrays):
                state = replace(state, arrays=arrays)
                generator.restore(state)
            if cached:
                self._keep(key, state)
        generator.step(prompt.after)
        if keep:
            generator.keep(generator.steps)
        took = time.perf_counter() - began
        return Opening(generator.save(), prompt.frames.shape[2], took, restored)

    def _key(self, prompt: Prompt, generator: Generator, kv_bits: int | None) -> str:
        """Of all that the state depends on, the weights by their files' names, sizes and times."""
        files = self._files
        digest = hashlib.sha256()
        for path in (*files.weights, files.config, files.lora):
            if path is not None:
                status = path.stat()
                digest.update(f"{path.resolve()} {status.st_size} {status.st_mtime_ns}\n".encode())
        lm = generator.lm
        digest.update(f"{_VERSION} {kv_bits} {lm.out_norm.weight.dtype} {lm.config}\n".encode())
        digest.update(f"{prompt.frames.shape}".encode() + prompt.frames.tobytes())
        if prompt.embeddings is not None:
            digest.update(prompt.embeddings.tobytes())
        return digest.hexdigest()[:32]

    def _restored(self, key: str, generator: Generator) -> bool:
        """Whether the state was kept; the generator then has it, with its own seed."""
        state = self._recent.pop(key, None)
        path = prompt_folder() / f"{key}.safetensors"
        try:
            state = load_state(path) if state is None else state
            facts = {**state.facts, "seed": generator.seed}
            generator.restore(replace(state, facts=facts))
        except (MoshiError, OSError):
            return False  # none there, or damaged: it is made and written again
        self._remember(key, state)
        with suppress(OSError):
            os.utime(path)
        return True

    def _keep(self, key: str, state: SavedState) -> None:
        self._remember(key, state)
        folder = prompt_folder()
        with suppress(OSError, MoshiError):  # then it is made again
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            sweep(folder, "*.safetensors")
            size = sum(array.nbytes for array in state.arrays.values())
            make_room(folder, MOST_BYTES - size)
            if size <= MOST_BYTES:
                state.save(folder / f"{key}.safetensors")

    def _remember(self, key: str, state: SavedState) -> None:
        self._recent[key] = state
        while len(self._recent) > _IN_MEMORY:
            del self._recent[next(iter(self._recent))]


def make_room(folder: Path, left: int) -> None:
    """Removes the states that were not used for longest, until at most `left` bytes are there."""
    found = [(path.stat(), path) for path in folder.glob("*.safetensors")]
    total = sum(status.st_size for status, _ in found)
    for status, path in sorted(found, key=lambda each: each[0].st_mtime):
        if total <= left:
            break
        path.unlink(missing_ok=True)
        total -= status.st_size
