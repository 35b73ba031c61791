"""Writes nano's dialogue tokens, `moshi_quantize/data/nano.npz`, from what `make nano` leaves.

    python -m recipes.nano.quantize_dialogues [build/nano]

Dialogues of 12.8 s as nano is trained on, put together from synthetic speech (flite, festival,
espeak-ng) encoded by nano's codec: half for calibration, half for evaluation, of different
recordings where there are several of a sentence. The file carries a fingerprint of codec and
tokenizer; it is not used for a nano with another one.
"""

import sys
from pathlib import Path

import numpy as np

from moshi_mlx.checkpoint import open_checkpoint
from moshi_quantize.dialogues import SHIPPED, codec_fingerprint

from .dialogues import DialogueMaker
from .tokens import Bank, load_bank

FRAMES = 160
DIALOGUES = {"calibration": 32, "evaluation": 20}
SEED = 2026


def every_other(bank: Bank, first: int) -> Bank:
    """The bank with every other recording of each sentence."""
    half = Bank(bank.silence)
    half.replies, half.noises = bank.replies, bank.noises
    half.utterances = {
        kind: {text: us[first::2] or us for text, us in sentences.items()}
        for kind, sentences in bank.utterances.items()
    }
    return half


def fingerprint_of(path: Path) -> str:
    """Of the codec and tokenizer that a file's tokens are of."""
    with np.load(path, allow_pickle=False) as file:
        return str(file["fingerprint"])


def main() -> None:
    made = Path(sys.argv[1] if len(sys.argv) > 1 else "build/nano")
    files = open_checkpoint("nano").files
    tokenizer = files.tokenizer.read_bytes()
    folders = [
        f for f in sorted((made / "tokens").glob("*")) if (f / "tokenizer.model").is_file()
        and (f / "tokenizer.model").read_bytes() == tokenizer
    ]  # fmt: skip
    if not folders:
        sys.exit(f"{made}: has no tokens of the bundled nano's tokenizer; run make nano")
    bank = load_bank(max(folders, key=lambda folder: folder.stat().st_mtime))
    halves = {}
    for i, (name, count) in enumerate(DIALOGUES.items()):
        maker = DialogueMaker(every_other(bank, i), count, FRAMES, seed=SEED + i)
        halves[name] = np.stack([d.codes for d in maker.dialogues(0)]).astype(np.int16)
    np.savez_compressed(
        SHIPPED,
        fingerprint=np.array(codec_fingerprint(files.mimi, files.tokenizer)),
        origin=np.array(
            f"dialogues of {FRAMES * 0.08:.1f} s with nano, synthetic speech (flite, "
            "espeak-ng), made by recipes/nano/quantize_dialogues.py"
        ),
        **halves,  # type: ignore[arg-type]
    )
    print(f"{SHIPPED}: {SHIPPED.stat().st_size} bytes, {halves['evaluation'].shape} to evaluate")


if __name__ == "__main__":
    main()
