"""The teacher-forced loss: cross-entropies of text, semantic and acoustic codes, with weights.

A `Batch` says what was said; `prepare` delays it and chooses, on the host, what is scored;
`loss_sums` is the differentiable part. The loss is a sum of terms over counts, and the counts are
known before the forward pass: so a step cut into micro-batches or over machines has the gradient
of the whole. Knows nothing of optimizers or files.
"""

from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from ..arrays import Tokens
from ..config import LmConfig
from ..delays import delayed_on_host
from ..lm import Lm
from .fields import Range, Share

Counts = npt.NDArray[np.float64]
_Weight = Annotated[float, Range(0, 1_000_000)]

# The terms of the loss and their hits, in the order of `loss_sums` and of the counts.
LOSS_PARTS = ("text", "semantic", "acoustic")


@dataclass(frozen=True)
class LossConfig:
    """Weights of the terms, and how much of the depth transformer is trained per step.

    text loss = Σ w·CE / Σ w over the text tokens with their weights w; audio loss the same over the
    codes; the loss is their sum. The defaults are the published ones (Moshi paper, arXiv
    2410.00037, section 4.4).

    semantic_weight: weight of Moshi's first codebook.
    acoustic_weight: weight of its others.
    text_padding_weight: weight of PAD in the text; a word's token has 1.
    text_end_padding_weight: weight of EPAD, which comes before a word.
    text_word_weight: weight of a word's tokens; 0 where they are given, as to a voice.
    depth_keep: share of the positions whose codes are scored. The depth transformer runs on them
        alone, so its cost falls in proportion; positions where Moshi speaks come first.
    depth_silent: least share of those positions that is silent, where there are any.
    """

    semantic_weight: _Weight = 100.0
    acoustic_weight: _Weight = 1.0
    text_padding_weight: _Weight = 0.5
    text_end_padding_weight: _Weight = 0.5
    text_word_weight: _Weight = 1.0
    depth_keep: Annotated[float, Range(0, 1, above=True)] = 1.0
    depth_silent: Share = 0.2


@dataclass(frozen=True)
class Batch:
    """Sequences to learn from.

    codes: int32 [B, 1 + n_q, T]: text, Moshi's own codebooks, the other side's; −1 where there is
        no token: it is neither embedded nor scored.
    inputs: what the temporal transformer reads where that differs from `codes` (corrupted tokens,
        −1 for the other side's finer codebooks); the depth transformer and the targets keep
        `codes`.
    speaking: bool [B, T], frames in which Moshi speaks; needed where `depth_keep` is below 1.
    extra: arrays for the objective of a trainer that has its own; always the same shapes.
    given: bool [B, T], frames whose text is given to Moshi: read, but not scored.
    """

    codes: Tokens
    inputs: Tokens | None = None
    speaking: npt.NDArray[np.bool_] | None = None
    extra: tuple[npt.NDArray[Any], ...] = ()
    given: npt.NDArray[np.bool_] | None = None


class Prepared(NamedTuple):
    """A batch as the model takes it, delayed; N positions of B·T are scored for audio.

    inputs: int32 [B, 1 + n_q, T].
    text: int32 [B, T], targets; text_weights: float32 [B, T], 0 where there is none.
    rows: int32 [N], the scored positions in B·T.
    before: int32 [N, dep_q], the tokens that the depth transformer reads.
    audio: int32 [N, dep_q], targets; there: float32 [N, dep_q], 0 where there is none.
    words: float32 [B, T], 1 where the text is neither padding nor missing.
    """

    inputs: mx.array
    text: mx.array
    text_weights: mx.array
    rows: mx.array
    before: mx.array
    audio: mx.array
    there: mx.array
    words: mx.array


def prepare(
    batch: Batch, config: LmConfig, loss: LossConfig, rng: np.random.Generator
) -> tuple[Prepared, Counts]:
    """Delays a batch and chooses the positions whose codes are scored.

    Returns it with the counts, float64 [6]: the weights of the text, the semantic and the acoustic
    codes scored, the words (PAD and EPAD aside), and the codes again: what `loss_sums` is over.
    """
    targets = _delayed(batch.codes, config)[:, : 1 + config.dep_q, 1:]
    inputs = _delayed(batch.codes if batch.inputs is None else batch.inputs, config)[:, :, :-1]
    length = targets.shape[2]
    begun = np.arange(length) >= np.array(config.delays[: 1 + config.dep_q])[:, None]
    there = (targets >= 0) & begun
    text = targets[:, 0]
    weights = there[:, 0].astype(np.float32)
    weights[text == config.text_padding_id] *= loss.text_padding_weight
    weights[text == config.text_end_padding_id] *= loss.text_end_padding_weight
    padding = (text == config.text_padding_id) | (text == config.text_end_padding_id)
    words = there[:, 0] & ~padding
    weights[words] *= loss.text_word_weight
    if batch.given is not None:
        delay = config.delays[0]
        weights[:, delay:][batch.given[:, : length - delay]] = 0
        words[:, delay:] &= ~batch.given[:, : length - delay]
    rows = depth_rows(batch.speaking, targets.shape[0], length, config, loss, rng)
    flat = targets.transpose(0, 2, 1).reshape(-1, 1 + config.dep_q)[rows]
    scored = there.transpose(0, 2, 1).reshape(-1, 1 + config.dep_q)[rows, 1:]
    codes = [scored[:, :1].sum(), scored[:, 1:].sum()]
    counts = np.array([weights.sum(dtype=np.float64), *codes, words.sum(), *codes])
    prepared = Prepared(
        inputs=mx.array(inputs),
        text=mx.array(np.maximum(text, 0)),
        text_weights=mx.array(weights),
        rows=mx.array(rows),
        before=mx.array(flat[:, :-1]),
        audio=mx.array(np.clip(flat[:, 1:], 0, config.card - 1)),
        there=mx.array(scored.astype(np.float32)),
        words=mx.array(words.astype(np.float32)),
    )
    return prepared, counts


def _delayed(codes: Tokens, config: LmConfig) -> Tokens:
    return delayed_on_host(codes, config.delays, config.initial_tokens)


def depth_rows(
    speaking: npt.NDArray[np.bool_] | None,
    batch: int,
    length: int,
    config: LmConfig,
    loss: LossConfig,
    rng: np.random.Generator,
) -> Tokens:
    """Positions of B·T whose codes are scored, int32 [N]; N depends on the shapes alone.

    Speaking positions first, leaving `depth_silent` of N to silent ones; among equals, at random.
    """
    total = batch * length
    if config.dep_q == 0 or loss.depth_keep >= 1.0:
        return np.arange(total if config.dep_q else 0, dtype=np.int32)
    if speaking is None:
        raise ValueError("a batch must say who speaks when depth_keep is below 1")
    active = np.zeros((batch, length), dtype=np.bool_)
    for delay in set(config.delays[1 : 1 + config.dep_q]):
        active[:, delay:] |= speaking[:, : length - delay]
    order = rng.permutation(total)
    loud, quiet = order[active.reshape(-1)[order]], order[~active.reshape(-1)[order]]
    keep = max(1, round(loss.depth_keep * total))
    room = keep - min(len(quiet), round(loss.depth_silent * keep))
    chosen = loud[:room]
    return np.sort(np.concatenate([chosen, quiet[: keep - len(chosen)]])).astype(np.int32)


def loss_scales(counts: Counts, loss: LossConfig) -> Counts:
    """What to multiply the three sums of cross-entropies by so that they add up to the loss."""
    text, semantic, acoustic = counts[:3]
    audio = loss.semantic_weight * semantic + loss.acoustic_weight * acoustic
    weights = np.array([1.0, loss.semantic_weight, loss.acoustic_weight])
    scales: Counts = weights / np.maximum(np.array([text, audio, audio]), 1e-9)
    return scales


class TeacherLogits(NamedTuple):
    """What another model says to a batch, to be followed in some sequences instead of the targets.

    sequences: bool [B], those in which it is followed.
    text_logits: [B, T, text_card]; audio_logits: [N, dep_q, card] of the scored positions.
    """

    sequences: mx.array
    text_logits: mx.array
    audio_logits: mx.array | None


def logits_of(lm: Lm, batch: Prepared) -> tuple[mx.array, mx.array | None]:
    """Text logits [B, T, text_card], and [N, dep_q, card] of the scored positions' codes."""
    z, text_logits = lm.temporal(batch.inputs)
    if not lm.config.dep_q:
        return text_logits, None
    flat = z.reshape(-1, z.shape[-1])
    if batch.rows.shape[0] != flat.shape[0]:
        flat = flat[batch.rows]
    return text_logits, lm.depformer.forward(flat, batch.before)


def loss_sums(lm: Lm, batch: Prepared, teacher: TeacherLogits | None = None) -> mx.array:
    """Sums of cross-entropies of `LOSS_PARTS`, text weighted, and of right guesses: float32 [6].

    Where a teacher is followed, cross-entropies are with its distributions (Li and Hoiem 2016,
    arXiv 1606.09282).
    """
    text_logits, audio_logits = logits_of(lm, batch)
    text, text_right = cross_entropy(text_logits, batch.text)
    if teacher is not None:
        soft = soft_cross_entropy(text_logits, teacher.text_logits)
        text = mx.where(teacher.sequences[:, None], soft, text)
    sums = [(text * batch.text_weights).sum()]
    hits = [(text_right * batch.words).sum()]
    if audio_logits is not None:
        audio, right = cross_entropy(audio_logits, batch.audio)
        if teacher is not None and teacher.audio_logits is not None:
            soft = soft_cross_entropy(audio_logits, teacher.audio_logits)
            followed = teacher.sequences[batch.rows // batch.text.shape[1]]
            audio = mx.where(followed[:, None], soft, audio)
        audio, right = audio * batch.there, right * batch.there
        sums += [audio[:, 0].sum(), audio[:, 1:].sum()]
        hits += [right[:, 0].sum(), right[:, 1:].sum()]
    else:
        sums += [mx.zeros(())] * 2
        hits += [mx.zeros(())] * 2
    return mx.stack(sums + hits)


def objective(lm: Lm, scales: mx.array, *prepared: mx.array) -> tuple[mx.array, mx.array]:
    """The loss, and the sums that it is made of; `scales` are `loss_scales`."""
    sums = loss_sums(lm, Prepared(*prepared))
    return (sums[:3] * scales).sum(), sums


def cross_entropy(logits: mx.array, targets: mx.array) -> tuple[mx.array, mx.array]:
    """Cross-entropies and whether the best guess is right, float32 […], of logits […, V]."""
    logits = logits.astype(mx.float32)
    best = mx.stop_gradient(logits.max(axis=-1, keepdims=True))
    logits = logits - best
    chosen = mx.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    entropy = mx.log(mx.exp(logits).sum(axis=-1)) - chosen
    return entropy, mx.stop_gradient(chosen >= 0).astype(mx.float32)


def soft_cross_entropy(logits: mx.array, teacher: mx.array) -> mx.array:
    """−Σ p·log q, float32 […], for q of logits […, V] and p of the teacher's."""
    logits = logits.astype(mx.float32)
    p = mx.softmax(teacher.astype(mx.float32), axis=-1)
    return mx.logsumexp(logits, axis=-1) - (p * logits).sum(axis=-1)


def metrics(sums: npt.ArrayLike, counts: Counts, loss: LossConfig) -> dict[str, float]:
    """The loss, its parts as mean cross-entropies in nats, and accuracies in 0 … 1.

    The text's accuracy is over words, PAD and EPAD aside.
    """
    terms = np.asarray(sums, dtype=np.float64)
    means = terms / np.maximum(counts, 1e-9)
    out = {"loss": float((terms[:3] * loss_scales(counts, loss)).sum())}
    out |= {part: float(mean) for part, mean in zip(LOSS_PARTS, means[:3], strict=True)}
    hits = zip(LOSS_PARTS, means[3:], strict=True)
    return out | {f"{part}_accuracy": float(mean) for part, mean in hits}
