"""A speech model on its way through scripts: each step's text by a machine, and frames of codes.

Knows the delay between text and sound, which codes are none, spoken prefixes, and when it is over.
Knows nothing of how a script is written, of voices, or of what a codec makes of the codes.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .arrays import Codes, Tokens
from .config import UNGENERATED_TOKEN, ZERO_TOKEN
from .errors import ArgumentError
from .generate import Generator, Step
from .speech_machine import SpeechMachine


class SpeechFrame(NamedTuple):
    """A frame of a run, one row per script.

    codes: int32 [B, generated].
    step: the step of the text that sounds in it.
    """

    codes: Codes
    step: int


class SpeechRun:
    """Scripts side by side through one generator.

    Args:
        generator: fresh; its batch is the number of scripts.
        machines: of each script.
        delay_steps: frames from a text token to its sound.
        final_padding: steps after the last script's end.
        prefixes: of each script, what is heard before it begins, without being said: int32
            [n_q, T], or None.
        guided_prefix: with guidance, let the null half hear the prefixes too.

    Raises:
        ArgumentError: a prefix is not of all of the model's streams.
    """

    def __init__(
        self,
        generator: Generator,
        machines: Sequence[SpeechMachine],
        *,
        delay_steps: int,
        final_padding: int,
        prefixes: Sequence[Codes | None] | None = None,
        guided_prefix: bool = False,
    ) -> None:
        config = generator.lm.config
        self._generator, self._machines = generator, machines
        self._delay, self._final = delay_steps, final_padding
        self._delays = np.array(config.delays[1:])
        empty = np.zeros((config.n_q, 0), np.int32)
        self._prefixes = [empty if p is None else p for p in prefixes or [None] * len(machines)]
        self.prefix_frames = [prefix.shape[1] for prefix in self._prefixes]
        """Frames of each script's prefix."""
        if any(self.prefix_frames):
            for prefix in self._prefixes:
                if len(prefix) != config.n_q or generator.generated != config.n_q:
                    raise ArgumentError(
                        f"a voice of codes needs all {config.n_q} codebooks of the model: it has "
                        f"{len(prefix)}, and {generator.generated} are generated"
                    )
        self._masked = generator.guidance is not None and not guided_prefix
        self._given = np.full((generator.batch, generator.given), ZERO_TOKEN, np.int32)

    @property
    def steps(self) -> int:
        """Made so far."""
        return self._generator.steps

    @property
    def ready(self) -> bool:
        """Whether enough of every script is known for the next step."""
        reading = zip(self._machines, self.prefix_frames, strict=True)
        return all(machine.ready or self.steps < frames for machine, frames in reading)

    @property
    def done(self) -> bool:
        """Whether all scripts have been said."""
        ends = [machine.end_step for machine in self._machines]
        if any(end is None for end in ends):
            return False
        return self.steps >= max(end or 0 for end in ends) + self._delay + self._final

    def begin(self) -> None:
        """What is known of all prefixes, in one block."""
        length = min(self.prefix_frames)
        if not length:
            return
        config = self._generator.lm.config
        shape = (self._generator.batch, 1 + config.n_q, 1 + length)
        frames = np.full(shape, ZERO_TOKEN, np.int32)
        # Frame 0 is that of the initial tokens, which nothing reads.
        for row, prefix in enumerate(self._prefixes):
            known = frames[row, 1:, 1 + self._delay :]
            known[...] = prefix[:, : known.shape[1]]
        mask = None
        if self._masked:
            mask = np.stack([self._null_mask(step) for step in range(length)], axis=-1)
        self._generator.prefill(frames, null_mask=mask)

    def step(self) -> tuple[Step, SpeechFrame | None]:
        """One step, and the frame that it completes; None while that has no sound."""
        generator, step = self._generator, self.steps
        if not step:
            self.begin()
            step = self.steps
        audio = over = None
        if step < self._delay:
            audio = np.full(generator.generated, ZERO_TOKEN, np.int32)
        else:
            over = self._overwritten(step)
        made = generator.step(
            self._given,
            audio=audio,
            overwrite=over,
            null_mask=self._null_mask(step) if self._masked else None,
            on_text=lambda drawn: self._said(drawn, step),
        )
        index = step - int(np.max(generator.lm.config.delays)) - self._delay
        if made.frame is None or index < 0:
            return made, None
        return made, SpeechFrame(made.frame[:, 1:], index)

    def _said(self, drawn: Tokens, step: int) -> Tokens:
        said = [
            ZERO_TOKEN if step < frames else machine.step(int(token), step)
            for token, machine, frames in zip(
                drawn, self._machines, self.prefix_frames, strict=True
            )
        ]
        return np.array(said, np.int32)

    def _overwritten(self, step: int) -> Codes | None:
        """Codes to write in place of those that are drawn, [B, generated]; None: all are kept."""
        delays = self._delays[: self._generator.generated]
        since = step - delays - self._delay  # the frame of the sound, of each codebook
        if since.min() >= max(self.prefix_frames):
            return None
        over = np.full((self._generator.batch, len(delays)), UNGENERATED_TOKEN, np.int32)
        over[:, since < 0] = ZERO_TOKEN
        for row, prefix in enumerate(self._prefixes):
            there = np.flatnonzero((since >= 0) & (since < prefix.shape[1]))
            over[row, there] = prefix[there, since[there]]
        return over

    def _null_mask(self, step: int) -> npt.NDArray[np.bool_]:
        """Streams that the null half doesn't read in a step: bool [B, 1 + n_q]."""
        delays = np.array(self._generator.lm.config.delays)
        ends = delays + np.array(self.prefix_frames)[:, None] + self._delay
        masked: npt.NDArray[np.bool_] = (step > delays) & (step <= ends)
        return masked
