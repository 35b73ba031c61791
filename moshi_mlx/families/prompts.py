"""What a model is told before a conversation: a voice to speak with, and a persona.

A prompt is frames of all streams that are known beforehand. Its phases are, as the makers of
PersonaPlex run them: the voice, a silence, the persona's text with one token in a frame, and a
silence. Knows nothing of where a voice comes from.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..arguments import integers
from ..arrays import Codes, Tokens
from ..config import ZERO_TOKEN, LmConfig
from ..errors import ArgumentError
from ..voices import Voice

SILENT_CODES = (948, 243, 1178, 546, 1736, 1030, 1978, 2008)
"""Mimi's codes of a silent frame: what the model itself says meanwhile."""
SINE_CODES = (430, 1268, 381, 1611, 1095, 1495, 56, 472)
"""Mimi's codes of a steady tone of 440 Hz: what the other side says throughout the prompt."""
SILENT_FRAMES = 6
"""Of each of the two silences: half a second."""

_TAG = "<system>"


class Prompt(NamedTuple):
    """As `Generator.prefill` takes it.

    frames: int32 [1, 1 + n_q, N].
    embeddings: float32 [1, n, dim] of the first positions, or None.
    """

    frames: Tokens
    embeddings: npt.NDArray[np.float32] | None

    @property
    def after(self) -> Codes:
        """What the other side says in its last frame, [1, streams heard], as a step takes it."""
        return self.frames[:, 1 + _own(self.frames.shape[1] - 1) :, -1]


def persona_text(persona: str) -> str:
    """A persona as the model was trained to read it, in tags; "" if there is nothing in it."""
    text = persona.strip()
    tagged = text.startswith(_TAG) and text.endswith(_TAG) and len(text) >= 2 * len(_TAG)
    if not text.removeprefix(_TAG).removesuffix(_TAG).strip():
        return ""
    return text if tagged else f"{_TAG} {text} {_TAG}"


def make_prompt(
    config: LmConfig,
    *,
    text: Sequence[int] | npt.ArrayLike = (),
    voice: Voice | None = None,
    silent_frames: int = SILENT_FRAMES,
) -> Prompt:
    """The frames of a prompt. Without a voice or text, their phases are left out.

    Args:
        config: of the model.
        text: tokens of the persona.
        voice: what it speaks with.
        silent_frames: of each silence.

    Raises:
        ArgumentError: the voice is not for this model, or a token is none of the model's.
    """
    own = _own(config.n_q)
    if len(SILENT_CODES) != own or config.n_q != 2 * own:
        raise ArgumentError(f"a prompt is for models of 16 streams, this one has {config.n_q}")
    # A model of few codes, as tests have it, knows the codes modulo their number.
    silence, sine = (np.array(codes)[:, None] % config.card for codes in (SILENT_CODES, SINE_CODES))
    words = integers("the persona's tokens", np.asarray(text), 0, config.text_card - 1).reshape(-1)
    phases: list[Tokens] = []

    def phase(text: Tokens, agent: npt.NDArray[np.integer]) -> None:
        heard = np.broadcast_to(sine, (own, len(text)))
        said = np.broadcast_to(agent, (own, len(text)))
        phases.append(np.concatenate([text[None], said, heard]).astype(np.int32))

    def padding(length: int) -> Tokens:
        return np.full(length, config.text_padding_id, np.int32)

    embeddings = None
    if voice is not None and voice.codes is not None:
        codes = integers(f"codes of voice {voice.name}", voice.codes, 0, config.card - 1)
        if len(codes) != own:
            raise ArgumentError(
                f"voice {voice.name}: has {len(codes)} codebooks, this model needs {own}"
            )
        phase(padding(voice.frames), codes)
    elif voice is not None:
        phases.append(_replayed(voice, config))
        assert voice.embeddings is not None
        embeddings = voice.embeddings[None]
    phase(padding(silent_frames), silence)
    phase(words, silence)
    phase(padding(silent_frames), silence)
    return Prompt(np.concatenate(phases, axis=1)[None], embeddings)


def _own(streams: int) -> int:
    """Those of the model's own side."""
    return streams // 2


def _replayed(voice: Voice, config: LmConfig) -> Tokens:
    """A voice's frames [1 + n_q, V], as far as its ring has them: what the embeddings leave open.

    After V frames positions V − 1 and V are to be read: the last frame, and the delayed codes of
    the one before.
    """
    assert voice.embeddings is not None and voice.cache is not None
    streams, dim = 1 + config.n_q, config.transformer.dim
    if len(voice.cache) != streams or voice.embeddings.shape[1] != dim:
        raise ArgumentError(
            f"voice {voice.name} is for another model: it has {len(voice.cache)} streams and width "
            f"{voice.embeddings.shape[1]}, this model {streams} and {dim}"
        )
    delays = np.array(config.delays)
    if delays.max() > 1:
        raise ArgumentError("a voice of embeddings needs a model with delays of one frame at most")
    length, rows = voice.frames, np.arange(streams)
    frames = np.full((streams, length), ZERO_TOKEN, np.int32)
    for frame, known in ((length - 2, delays == 1), (length - 1, delays <= 1)):
        slots = (frame + delays) % voice.cache.shape[1]
        frames[known, frame] = voice.cache[rows, slots][known]
        limits = np.where(rows == 0, config.text_card, config.card)[known]
        if not ((frames[known, frame] >= 0) & (frames[known, frame] < limits)).all():
            raise ArgumentError(f"voice {voice.name}: its cache has tokens that the model hasn't")
    return frames
