"""How good a quantized model is, how big, how fast: measured against the original.

Knows how to measure and to show it: figures, table, JSON, plot. Knows nothing of quantizing.
"""

import io
import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from moshi_mlx.checkpoint import Checkpoint
from moshi_mlx.conversation_bench import Evaluation
from moshi_mlx.distributions import needs_extra
from moshi_mlx.errors import CheckpointError
from moshi_mlx.footprint import floor_ms, kv_bytes, weight_bytes_per_frame
from moshi_mlx.outputs import WholeFile
from moshi_mlx.text import known_sentences
from moshi_mlx.trees import named_parameters
from moshi_mlx.weights import skeleton

from .dialogues import Dialogues
from .replies import Replies
from .teacher import Logits, Teacher, distance

CHIPS = ("M1", "M4", "M4 Pro")
"""Those in the table."""
PLOT_SUFFIXES = (".png", ".svg", ".pdf")


@dataclass(frozen=True)
class Figures:
    """One model's. Sizes are of the language model alone; KL is against the original.

    kl, top1: text first, then each codebook: nats per token; share of tokens with the same first
    choice. frame_kl: nats per frame, the sum over text and codebooks. floor_ms: bytes read per
    frame over the memory's bandwidth: no frame can be faster, every frame is slower. kv_bits: of
    keys and values; kv_bytes: of those of a full context, floats in 16 bits.
    """

    name: str
    nbytes: int
    bits_per_weight: float
    bytes_per_frame: int
    floor_ms: dict[str, float]
    kl: list[float]
    top1: list[float]
    frame_kl: float
    same_replies: float | None = None
    replies: int = 0
    kv_bits: int | None = None
    kv_bytes: int = 0

    @property
    def audio_top1(self) -> float:
        audio = self.top1[1:]
        return sum(audio) / len(audio) if audio else 1.0


def sizes(source: Checkpoint) -> tuple[int, float, int]:
    """Bytes of the tensors, bits per weight, and bytes that a frame must read.

    A frame reads every matrix once per use and one row of each embedding; keys and values, which
    grow with the conversation, come on top.
    """
    config, weights = source.config.lm, source.weights()
    dense = sum(value.size for value in named_parameters(skeleton(config)).values())
    frame = weight_bytes_per_frame(source.skeleton(), config, arrays=weights)
    # Of shared slices the file has each name: what counts here is what is held in memory.
    total = sum(value.nbytes for value in weights.values())
    return total, 8 * total / dense, frame


def measure(
    original: Checkpoint,
    others: Sequence[Checkpoint],
    dialogues: Dialogues,
    replies: Replies | None = None,
    reference: Logits | None = None,
    kv_bits: Sequence[int | None] = (None,),
) -> list[Figures]:
    """The figures of some models, the original's among them if it is given.

    Args:
        original: what they are compared with.
        others: the models.
        dialogues: tokens of the original's codec and tokenizer.
        replies: listens to what they answer; None: no listening.
        reference: the original's logits on the evaluation, where they are known.
        kv_bits: each model with keys and values in each of these; the original's are not quantized.
    """
    tokens = mx.array(dialogues.evaluation)
    for other in others:
        _check_alike(original, other)
    reference = reference or Teacher(original)(tokens)
    sentences = known_sentences(original.files.tokenizer)
    heard = None if replies is None else replies.of(original, sentences=sentences)
    figures = []
    for other, kept in itertools.product(others, kv_bits):
        found = distance(reference, Teacher(other, kv_bits=kept)(tokens))
        nbytes, bits, frame = sizes(other)
        share = None
        if replies is not None and heard is not None:
            theirs = replies.of(other, kept, sentences=sentences)
            share = sum(a == b for a, b in zip(heard, theirs, strict=True)) / max(len(heard), 1)
        figures.append(
            Figures(
                name=Path(other.name).name + (f", KV {kept} bits" if kept else ""),
                nbytes=nbytes,
                bits_per_weight=bits,
                bytes_per_frame=frame,
                floor_ms={chip: ms for chip, ms in floor_ms(frame).items() if chip in CHIPS},
                kl=found.kl,
                top1=found.top1,
                frame_kl=found.frame_kl,
                same_replies=share,
                replies=len(heard or ()),
                kv_bits=kept,
                kv_bytes=kv_bytes(other.config.lm.transformer, 2, kept),
            )
        )
    return figures


def _check_alike(original: Checkpoint, other: Checkpoint) -> None:
    """That their predictions are of the same tokens."""
    a, b = original.config.lm, other.config.lm
    for what in ("n_q", "dep_q", "card", "text_card", "text_card_out", "delays"):
        ours, theirs = getattr(a, what), getattr(b, what)
        if ours != theirs:
            raise CheckpointError(
                f"{other.where}: is not made from {original.name}: it has {what} {theirs}, the "
                f"original {ours}"
            )


def table(figures: Sequence[Figures]) -> str:
    """Markdown."""
    listened = any(f.same_replies is not None for f in figures)
    kept = any(f.kv_bits is not None for f in figures)
    big = max(f.nbytes for f in figures) > 1e9
    unit, scale = ("GB", 1e9) if big else ("MB", 1e6)
    chips = list(CHIPS)
    head = [
        "model", unit, "bits per weight", f"{unit} per frame",
        *(f"floor {chip}, ms" for chip in chips), "KL per frame, nats", "KL text",
        "KL codebooks, mean", "top-1 text", "top-1 codebooks",
    ]  # fmt: skip
    head += ["same replies heard"] if listened else []
    head += ["KV at full context, MB"] if kept else []
    rows = []
    for f in figures:
        audio = f.kl[1:]
        row = [
            f.name, f"{f.nbytes / scale:.3f}", f"{f.bits_per_weight:.2f}",
            f"{f.bytes_per_frame / scale:.3f}", *(f"{f.floor_ms[chip]:.3g}" for chip in chips),
            f"{f.frame_kl:.5f}", f"{f.kl[0]:.5f}", f"{sum(audio) / max(len(audio), 1):.5f}",
            f"{f.top1[0]:.4f}", f"{f.audio_top1:.4f}",
        ]  # fmt: skip
        if listened:
            row.append("" if f.same_replies is None else f"{f.same_replies:.2f} of {f.replies}")
        if kept:
            row.append(f"{f.kv_bytes / 1e6:.3f}")
        rows.append(row)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def codebook_table(figures: Sequence[Figures]) -> str:
    """Markdown: KL and top-1 of the text and of every codebook."""
    count = len(figures[0].kl) - 1
    head = ["model", "text", *(f"codebook {k + 1}" for k in range(count))]
    lines = [head, ["---"] * len(head)]
    lines += [
        [f.name, *(f"{k:.5f} / {t:.4f}" for k, t in zip(f.kl, f.top1, strict=True))]
        for f in figures
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def as_json(
    original: str,
    dialogues: Dialogues,
    figures: Sequence[Figures],
    evaluations: Sequence[Evaluation] = (),
) -> str:
    """All figures."""
    data: dict[str, Any] = {
        "original": original,
        "dialogues": dialogues.origin,
        "evaluated": {
            "dialogues": dialogues.evaluation.shape[0],
            "frames": dialogues.evaluation.shape[2],
        },
        "models": [asdict(f) for f in figures],
    }
    if evaluations:
        data["conversation"] = [evaluation.as_dict() for evaluation in evaluations]
    return json.dumps(data, indent=1) + "\n"


def plotter() -> Any:
    """Matplotlib's pyplot, which draws into files alone.

    Raises:
        MoshiError: it isn't there.
    """
    with needs_extra("train", "a plot needs matplotlib"):
        import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def plot(figures: Sequence[Figures], path: Path, title: str) -> None:
    """Quality against size, a point a model, as PNG, SVG or PDF.

    Raises:
        MoshiError: matplotlib isn't there, or the file cannot be written.
    """
    file = WholeFile(path, "the plot", PLOT_SUFFIXES)
    drawn, pyplot = io.BytesIO(), plotter()
    shown = [f for f in figures if f.frame_kl > 0]
    figure, axes = pyplot.subplots(figsize=(8, 5), dpi=120)
    groups = {"uniform": "o", "mixed, auto": "s", "floating point": "^", "learned": "D"}
    for kind, marker in groups.items():
        some = [f for f in shown if _kind(f.name) == kind]
        if some:
            x, y = [f.nbytes / 1e6 for f in some], [f.frame_kl for f in some]
            axes.scatter(x, y, marker=marker, label=kind)
    for f in shown:
        axes.annotate(f.name, (f.nbytes / 1e6, f.frame_kl), xytext=(4, 3),
                      textcoords="offset points", fontsize=7)  # fmt: skip
    axes.set_yscale("log")
    axes.set_xlabel("language model, MB")
    axes.set_ylabel("KL to the original, nats per frame")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(drawn, format=path.suffix[1:].lower())
    pyplot.close(figure)
    file.write(drawn.getvalue(), mode=0o644)


def _kind(name: str) -> str:
    if "gptq" in name or "dwq" in name:
        return "learned"
    if "fp" in name:
        return "floating point"
    return "mixed, auto" if "mixed" in name or "auto" in name else "uniform"
