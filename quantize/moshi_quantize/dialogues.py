"""Dialogue tokens, to measure and to calibrate with.

For nano they come with the program (`data/nano.npz`); for other models they are what the model
says to a recording. Knows nothing of quantizing.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moshi_mlx.arrays import Codes
from moshi_mlx.checkpoint import Checkpoint
from moshi_mlx.errors import CheckpointError, counted
from moshi_mlx.hub import bundled_folder

from .speaker import Speaker

SHIPPED = Path(__file__).parent / "data" / "nano.npz"
TOKENS = ".npz"
"""How files of tokens end."""
QUESTION = bundled_folder("nano") / "question.wav"


@dataclass(frozen=True)
class Dialogues:
    """Codes int32 [N, 1 + n_q, T]: text, own codebooks, the other side's; −1 where there are none.

    `calibration` is for choosing and learning, `evaluation` for the figures; `origin` says what
    they are.
    """

    calibration: Codes
    evaluation: Codes
    origin: str


def codec_fingerprint(*paths: Path) -> str:
    """Of the files that give tokens their meaning: codec and tokenizer."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def find_dialogues(
    source: Checkpoint, given: str | Path | None = None, speaker: Checkpoint | None = None
) -> Dialogues:
    """Tokens for a model.

    Args:
        source: the model.
        given: an .npz (`codes`, or `calibration` and `evaluation`), or a recording to answer; None:
            what comes with the program, if it is of this codec, else the model's own answer to
            nano's question.
        speaker: who answers the recording: a smaller one than the source.

    Raises:
        CheckpointError: the tokens aren't this model's.
        AudioFileError: the recording cannot be read.
    """
    if given is not None and is_tokens(given):
        return _checked(read_dialogues(Path(given)), source, str(given))
    if given is None and SHIPPED.is_file():
        with np.load(SHIPPED, allow_pickle=False) as file:
            if str(file["fingerprint"]) == codec_fingerprint(
                source.files.mimi, source.files.tokenizer
            ):
                shipped = read_dialogues(SHIPPED)
                if shipped.evaluation.shape[1] == 1 + source.config.lm.n_q:
                    return shipped
    recording = Path(given or QUESTION)
    codes = Speaker(speaker or source).hear(recording)
    made = Dialogues(codes, codes, f"the model's own answer to {recording.name}")
    return _checked(made, source, str(recording))


def is_tokens(given: str | Path | None) -> bool:
    """Whether a file's name says that it has tokens; otherwise it is a recording."""
    return Path(given or "").suffix.lower() == TOKENS


def read_dialogues(path: Path) -> Dialogues:
    """From an .npz.

    Raises:
        CheckpointError: it isn't one, or has no codes.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            names = ("calibration", "evaluation") if "evaluation" in file else ("codes", "codes")
            codes = [_whole(file[name]) for name in names]
            origin = str(file["origin"]) if "origin" in file else path.name
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise CheckpointError(
            f"{path}: is not a file of dialogue tokens ({' '.join(str(error).split())[:100]}): it "
            "must be an .npz with 'codes', whole numbers [dialogues, 1 + n_q, frames]"
        ) from error
    if names[0] == "codes" and len(codes[0]) > 1:
        codes = [codes[0][::2], codes[1][1::2]]
    return Dialogues(codes[0], codes[1], origin)


def _whole(codes: np.ndarray) -> Codes:
    """Codes as int32 [N, 1 + n_q, T]; one dialogue may lack the first axis."""
    if not np.issubdtype(codes.dtype, np.integer):
        raise ValueError(f"codes are {codes.dtype}")
    limit = np.iinfo(np.int32)
    if codes.size and (int(codes.min()) < limit.min or int(codes.max()) > limit.max):
        raise ValueError("codes are no numbers of tokens")
    return (codes if codes.ndim == 3 else codes[None]).astype(np.int32)


def _checked(dialogues: Dialogues, source: Checkpoint, where: str) -> Dialogues:
    lm = source.config.lm
    for codes in (dialogues.calibration, dialogues.evaluation):
        if codes.ndim != 3 or codes.shape[1] != 1 + lm.n_q or not codes.size:
            raise CheckpointError(
                f"{where}: has tokens {list(codes.shape)}, the model takes [dialogues, "
                f"{1 + lm.n_q}, frames]"
            )
        if codes.min() < -1 or codes[:, 0].max() > lm.text_card or codes[:, 1:].max() > lm.card:
            raise CheckpointError(f"{where}: has tokens that the model doesn't know")
        least = 1 + max(lm.delays)
        if codes.shape[2] < least:
            raise CheckpointError(
                f"{where}: has {counted(codes.shape[2], 'frame')}, too few to predict any token "
                f"of the last codebook: the model needs at least {least}"
            )
        if (codes[:, : 1 + lm.dep_q] < 0).all():
            raise CheckpointError(
                f"{where}: has no token that the model would say (all are -1): nothing to measure"
            )
    return dialogues
