"""Texts through a speaking model, step by step: forced text, delayed sound, the end.

Several texts may share the steps; who has ended goes on with padding. Knows tokens; nothing of
sound, voices' files and scripts.
"""

from collections.abc import Sequence

import numpy as np

from ..arrays import Codes, Tokens
from ..config import UNGENERATED_TOKEN, ZERO_TOKEN
from ..errors import ArgumentError
from ..generate import Generator, Step
from .speech_machine import SpeechMachine


class SpeechRun:
    """One run.

    Args:
        generator: fresh, with as many conversations as there are machines.
        machines: one for each text.
        delay: steps by which the sound is behind the text.
        final_padding: steps after the last word.
        prefixes: int32 [codebooks, frames] for each text: speech that it goes on from; None: there
            are none.
        guide_prefix: with guidance, the null half hears the prefix too.
        drawn_for_nothing: streams that are written as none whatever is drawn.
    """

    def __init__(
        self,
        generator: Generator,
        machines: Sequence[SpeechMachine],
        *,
        delay: int,
        final_padding: int,
        prefixes: Sequence[Codes] | None = None,
        guide_prefix: bool = False,
        drawn_for_nothing: Sequence[int] = (),
    ) -> None:
        self._generator, self.machines = generator, list(machines)
        self.delay, self._final = delay, final_padding
        streams = generator.generated
        empty = np.zeros((streams, 0), np.int32)
        self.prefixes = [empty] * len(self.machines) if prefixes is None else list(prefixes)
        if any(len(prefix) != streams for prefix in self.prefixes):
            raise ArgumentError(f"a prefix must have {streams} codebooks, as the model makes")
        self.prefix_frames: list[int] = [prefix.shape[1] for prefix in self.prefixes]
        self._guide_prefix = guide_prefix
        config = generator.lm.config
        self._delays = np.array(config.delays[1 : 1 + streams])
        self.unused = [*drawn_for_nothing]
        self._nothing = np.full((generator.batch, generator.given), ZERO_TOKEN, np.int32)
        self._begun = False

    @property
    def steps(self) -> int:
        """Made so far."""
        made: int = self._generator.steps
        return made

    @property
    def done(self) -> bool:
        """No further step is needed."""
        ends = [machine.end_step for machine in self.machines]
        known = [end for end in ends if end is not None]
        last = max(known, default=0) + self.delay + self._final
        return len(known) == len(ends) and bool(self.steps >= last)

    @property
    def ready(self) -> bool:
        """The next step needs no text that has not come."""
        rows = zip(self.machines, self.prefix_frames, strict=True)
        return all(machine.ready or self.steps < frames for machine, frames in rows)

    def over(self, row: int) -> bool:
        """Whether the last frame comes after a text's end."""
        end = self.machines[row].end_step
        return end is not None and self.frame >= end + self._final + self.delay

    @property
    def frame(self) -> int:
        """The number of the frame that the last step completed."""
        latest: int = max(self._generator.lm.config.delays)
        return self.steps - 1 - latest

    @property
    def fewer(self) -> bool:
        """Sound is made of fewer codebooks than the model has."""
        return bool(self.unused) or len(self._delays) < self._generator.lm.config.dep_q

    def first_sound(self, row: int) -> int:
        """The number of the first frame that is heard of a text."""
        return self.delay + self.prefix_frames[row]

    def step(self) -> Step:
        """The next step; the first one also takes what all prefixes have in common."""
        if not self._begun:
            self._begun = True
            if shared := min(self.prefix_frames):
                self._take_prefixes(shared)
        generator, now = self._generator, self.steps
        prefix = self._of_prefix(now)
        late = now < self._delays + self.delay
        kept = np.where(late, ZERO_TOKEN, prefix)
        kept[:, self.unused] = ZERO_TOKEN
        known = kept != UNGENERATED_TOKEN
        forced = None
        if known.all():
            forced, kept = kept, np.full_like(kept, UNGENERATED_TOKEN)
        elif self.unused:
            forced = np.full_like(kept, UNGENERATED_TOKEN)
            forced[:, self.unused] = ZERO_TOKEN
        return generator.step(
            self._nothing,
            audio=forced,
            overwrite=kept if (kept != UNGENERATED_TOKEN).any() else None,
            null_mask=self._null_mask(now),
            on_text=self._written,
        )

    def _written(self, drawn: Tokens) -> Tokens:
        """The text that is written in place of what was drawn, [B]."""
        now = self.steps
        tokens = np.full_like(drawn, ZERO_TOKEN)
        for row, machine in enumerate(self.machines):
            if now >= self.prefix_frames[row]:
                tokens[row] = machine.step(int(drawn[row]), now)
        return tokens

    def _of_prefix(self, step: int) -> Codes:
        """Codes [B, streams] that a step writes of the prefixes, −2 where it writes others."""
        found = np.full((len(self.prefixes), len(self._delays)), UNGENERATED_TOKEN, np.int32)
        for row, prefix in enumerate(self.prefixes):
            for k, frame in enumerate(step - self._delays - self.delay):
                if 0 <= frame < prefix.shape[1]:
                    found[row, k] = prefix[k, frame]
        return found

    def _null_mask(self, step: int) -> np.ndarray | None:
        """Streams that the null half does not hear, bool [B, 1 + n_q]."""
        if self._generator.guidance is None or self._guide_prefix or not any(self.prefix_frames):
            return None
        config, given = self._generator.lm.config, self._generator.given
        delays = np.array(config.delays)
        mask = np.zeros((len(self.machines), len(delays)), np.bool_)
        for row, frames in enumerate(self.prefix_frames):
            mask[row] = (delays < step) & (step <= delays + frames + self.delay)
        mask[:, len(delays) - given :] = False
        return mask

    def _take_prefixes(self, frames: int) -> None:
        """The steps in which no text is spoken yet, in one pass."""
        generator = self._generator
        streams = 1 + generator.lm.config.n_q
        known = np.full((len(self.machines), streams, 1 + frames), ZERO_TOKEN, np.int32)
        for row, prefix in enumerate(self.prefixes):
            # Step s writes frame s + 1, of which codebook k is heard `delay` steps late.
            length = max(0, frames - self.delay)
            known[row, 1 : 1 + len(prefix), 1 + self.delay :] = prefix[:, :length]
        masks = [self._null_mask(step) for step in range(frames)]
        null = None if masks[0] is None else np.stack([m for m in masks if m is not None], axis=2)
        generator.prefill(known, null_mask=null)
