"""Training of nano's codec: a small Mimi, in PyTorch, by the reference's own classes.

    python -m recipes.nano.codec {prepare,train,decoder,export} --out build/nano

`prepare` synthesizes the corpus, `train` learns encoder, quantizer and decoder together, `decoder`
goes on with the decoder alone (the codes no longer change, so a language model can be trained on
them meanwhile), `export` writes `mimi.safetensors` under the published names. Needs the packages
`torch` and `moshi` (development only). Knows nothing of the language model.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from moshi.models.compression import MimiModel
from moshi.modules import SEANetDecoder, SEANetEncoder
from moshi.modules.conv import StreamingConv1d
from moshi.modules.transformer import ProjectedTransformer
from moshi.quantization import SplitResidualVectorQuantizer
from safetensors.torch import load_file, save_file
from torch import nn

from .codec_data import FRAME_SIZE, IGNORED_PHONE, Clip, CropSampler, load_corpus
from .codec_loss import EnvelopeLoss, PhaseLoss, SpectralLoss, make_optimizers
from .speech import PHONES, SAMPLE_RATE, SPEECH_RMS

_WIDTH = 128
_TRANSFORMER = {
    "d_model": _WIDTH, "num_heads": 4, "num_layers": 2, "causal": True, "layer_scale": 0.2,
    "context": 100, "conv_layout": True, "max_period": 10000, "gating": "none",
    "norm": "layer_norm", "positional_embedding": "rope", "dim_feedforward": 256,
    "input_dimension": _WIDTH, "output_dimensions": [_WIDTH],
}  # fmt: skip
CONFIG: dict[str, Any] = {
    "sample_rate": 24000, "channels": 1, "frame_rate": 12.5,
    "seanet": {
        "channels": 1, "dimension": _WIDTH, "causal": True, "n_filters": 8, "n_residual_layers": 1,
        "activation": "ELU", "compress": 2, "dilation_base": 2, "disable_norm_outer_blocks": 0,
        "kernel_size": 7, "residual_kernel_size": 3, "last_kernel_size": 3, "norm": "none",
        "pad_mode": "constant", "ratios": [8, 6, 5, 4], "true_skip": True,
    },
    "quantizer": {
        "dimension": 64, "n_q": 8, "bins": 512, "input_dimension": _WIDTH,
        "output_dimension": _WIDTH,
    },
    "transformer": _TRANSFORMER,
}  # fmt: skip
"""Mimi's architecture in nano's size, in the form `moshi.models.loaders.get_mimi` takes."""

WIDE_CONFIG: dict[str, Any] = CONFIG | {
    "decoder": {"seanet": {"n_filters": 16}, "transformer": {"num_layers": 4}}
}
"""With the decoder of stage B, which is larger than the encoder: it alone makes the sound."""

PHONES_PER_FRAME = 4
_BATCH, _FRAMES = 8, 10
_LONG_BATCH, _LONG_FRAMES = 2, 56  # beyond the transformers' context of 50 frames
_LONG_EVERY = 8
_STEPS_WITHOUT_QUANTIZER = 450
_CLIP_NORM = 5.0


# ----------------------------------------------------------------------------------- the network


def build(config: dict = CONFIG) -> MimiModel:
    """A Mimi with untrained weights; the block `decoder` has what is other there."""
    encoder = SEANetEncoder(**config["seanet"])
    other = config.get("decoder", {})
    return MimiModel(
        encoder,
        SEANetDecoder(**config["seanet"] | other.get("seanet", {})),
        SplitResidualVectorQuantizer(**config["quantizer"]),
        channels=config["channels"],
        sample_rate=config["sample_rate"],
        frame_rate=config["frame_rate"],
        encoder_frame_rate=config["sample_rate"] / encoder.hop_length,
        causal=True,
        resample_method="conv",
        encoder_transformer=ProjectedTransformer(device="cpu", **config["transformer"]),
        decoder_transformer=ProjectedTransformer(
            device="cpu", **config["transformer"] | other.get("transformer", {})
        ),
    )


@torch.no_grad()
def widened(model: MimiModel) -> MimiModel:
    """The same function with the decoder of `WIDE_CONFIG`: what is new there waits to be trained.

    New channels hear the old ones through fresh weights and are not heard by them yet; new
    transformer layers add zero. (After Chen et al. 2016, without their copies of channels, which
    would have to be told apart by noise.)
    """
    wide = build(WIDE_CONFIG)
    old, new = model.state_dict(), wide.state_dict()
    for name, value in new.items():
        if name not in old:
            if re.search(r"out_projs\.\d+\.weight$|linear2\.weight$", name):
                value.zero_()
            continue
        narrow = old[name]
        if value.ndim == 3 and value.shape != narrow.shape:
            inputs, outputs = (0, 1) if ".convtr." in name else (1, 0)
            fresh = value.narrow(
                inputs, narrow.shape[inputs], value.shape[inputs] - narrow.shape[inputs]
            )
            fresh.narrow(outputs, 0, narrow.shape[outputs]).zero_()
        value[tuple(map(slice, narrow.shape))] = narrow
    wide.load_state_dict(new)
    return wide


def use_plain_convolutions() -> None:
    """Lets the reference's convolutions pad and convolve at once outside streaming; much faster."""
    streaming_forward = StreamingConv1d.forward

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self._streaming_state is not None:
            return streaming_forward(self, x)
        mode = "constant" if self.pad_mode == "constant" else "replicate"
        return self.conv.conv(F.pad(x, (self._padding_total, 0), mode=mode))

    StreamingConv1d.forward = forward


def to_latent(model: MimiModel, pcm: torch.Tensor) -> torch.Tensor:
    """Audio [batch, 1, frames * 1920] to latents [batch, 128, frames]."""
    (x,) = model.encoder_transformer(model.encoder(pcm))
    return model.downsample(x)


def from_latent(model: MimiModel, latent: torch.Tensor) -> torch.Tensor:
    """Latents [batch, 128, frames] to audio [batch, 1, frames * 1920]."""
    (x,) = model.decoder_transformer(model.upsample(latent))
    return model.decoder(x)


@torch.no_grad()
def encode(model: MimiModel, pcm: np.ndarray) -> torch.Tensor:
    """Audio [frames * 1920] float32 to codes [8, frames]."""
    return model.quantizer.encode(to_latent(model, torch.from_numpy(pcm)[None, None]))[0]


@torch.no_grad()
def decode(model: MimiModel, codes: torch.Tensor) -> np.ndarray:
    """Codes [8, frames] to audio [frames * 1920] float32."""
    return from_latent(model, model.quantizer.decode(codes[None]))[0, 0].numpy()


def reconstruct(model: MimiModel, pcm: np.ndarray) -> np.ndarray:
    """Audio [frames * 1920] through the whole codec."""
    return decode(model, encode(model, pcm))


@dataclass(frozen=True)
class Quantized:
    """What the quantizer gives while training: the latent the decoder sees, the semantic vector
    [batch, 64, frames] and the commitment loss."""

    latent: torch.Tensor
    semantic: torch.Tensor
    commitment: torch.Tensor


def quantize(
    model: MimiModel, latent: torch.Tensor, acoustic_levels: int | None, enabled: bool
) -> Quantized:
    """Straight-through quantization with a number of acoustic levels, or projections alone."""
    first, rest = model.quantizer.rvq_first, model.quantizer.rvq_rest
    semantic, acoustic = first.input_proj(latent), rest.input_proj(latent)
    commitment = torch.zeros(())
    if enabled:
        semantic, _, loss_first, _ = first.vq(semantic)
        acoustic, _, loss_rest, _ = rest.vq(acoustic, n_q=acoustic_levels)
        commitment = loss_first.mean() + loss_rest.mean()
    return Quantized(first.output_proj(semantic) + rest.output_proj(acoustic), semantic, commitment)


# --------------------------------------------------------------------------------- initialization


@torch.no_grad()
def initialize(model: MimiModel, pcm: torch.Tensor) -> None:
    """Scales orthogonal weights so that on speech every layer's output has deviation one.

    (LSUV, Mishkin and Matas 2016.) Ends of residual branches get 0.4 and the waveform the level of
    speech. Speech at rms 0.08 needs a large gain in the first convolution; with usual initial
    weights training spends its first minutes on finding it.
    """
    layers = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Conv1d | nn.ConvTranspose1d) and not name.startswith("quantizer")
    }
    order: list[str] = []
    hooks = []
    for name, layer in layers.items():
        nn.init.orthogonal_(layer.weight.view(len(layer.weight), -1))
        if layer.bias is not None:
            layer.bias.zero_()
        hooks.append(layer.register_forward_hook(lambda *_, name=name: order.append(name)))

    def run() -> None:
        from_latent(model, to_latent(model, pcm))

    run()
    for hook in hooks:
        hook.remove()
    for name in dict.fromkeys(order):
        goal = 0.4 if ".block.3" in name else SPEECH_RMS if name == order[-1] else 1.0
        for _ in range(2):
            deviation: list[torch.Tensor] = []
            hook = layers[name].register_forward_hook(
                lambda _module, _inputs, output, d=deviation: d.append(output.std())
            )
            run()
            hook.remove()
            layers[name].weight.mul_(goal / (deviation[0] + 1e-8))
    quantizer = CONFIG["quantizer"]
    basis = torch.linalg.qr(torch.randn(_WIDTH, quantizer["dimension"]))[0]
    for branch in (model.quantizer.rvq_first, model.quantizer.rvq_rest):
        branch.input_proj.weight.copy_(basis.T[..., None])
        branch.output_proj.weight.copy_(0.7 * basis[..., None])


def k_means(vectors: torch.Tensor, clusters: int, iterations: int = 12) -> torch.Tensor:
    """Centroids [clusters, width] of vectors [n, width]; empty clusters get random vectors."""
    centroids = vectors[torch.randperm(len(vectors))[:clusters]].clone()
    for _ in range(iterations):
        nearest = torch.cdist(vectors, centroids).argmin(-1)
        count = torch.bincount(nearest, minlength=clusters).float()[:, None]
        total = torch.zeros_like(centroids).index_add_(0, nearest, vectors)
        spare = vectors[torch.randint(len(vectors), (clusters,))]
        centroids = torch.where(count > 0, total / count.clamp(min=1), spare)
    return centroids


@torch.no_grad()
def initialize_codebooks(model: MimiModel, sampler: CropSampler, crops: int = 216) -> None:
    """K-means, level by level on what the levels before leave over."""
    model.eval()
    latents = [
        to_latent(model, torch.from_numpy(sampler.batch(8, 40)[0])[:, None])
        for _ in range(crops // 8)
    ]
    for branch in (model.quantizer.rvq_first, model.quantizer.rvq_rest):
        rest = torch.cat([branch.input_proj(z).transpose(1, 2).flatten(0, 1) for z in latents])
        variance = rest.var(0).sum()
        left = []
        for level in branch.vq.layers:
            book = level._codebook
            centroids = k_means(rest, book.codebook_size)
            nearest = torch.cdist(rest, centroids).argmin(-1)
            usage = torch.bincount(nearest, minlength=book.codebook_size).clamp(min=0.5)
            usage = usage * (_BATCH * _FRAMES / len(rest))  # per training batch
            book.cluster_usage.copy_(usage)
            book.embedding_sum.copy_(centroids * usage[:, None])
            book._initialized.fill_(1)
            book._embedding = None  # the reference caches the quotient
            rest = rest - centroids[nearest]
            left.append(f"{float(rest.var(0).sum() / variance):.3f}")
        print("k-means, variance left by level:", *left, flush=True)
    model.train()


# --------------------------------------------------------------------------------------- training


class Run:
    """One training stage: a schedule by wall-clock time, checkpoints, progress lines.

    The time spent is kept in the checkpoint, so that a stopped run goes on where it was.
    """

    SAVE_SECONDS = 120

    def __init__(
        self,
        file: Path,
        modules: dict[str, nn.Module],
        optimizers: list[torch.optim.Optimizer],
        minutes: float,
        constant_share: float,
        final_rate: float,
    ) -> None:
        self.file, self.modules, self.optimizers = file, modules, optimizers
        self.seconds = minutes * 60
        self.constant_share, self.final_rate = constant_share, final_rate
        self.step = 0
        self._before = 0.0
        if file.exists():
            stored = torch.load(file)
            for name, module in modules.items():
                module.load_state_dict(stored[name])
            for optimizer, state in zip(optimizers, stored["optimizers"], strict=True):
                optimizer.load_state_dict(state)
            self.step, self._before = stored["step"], stored["elapsed"]
            print(f"resumed {file} at step {self.step}, {self._before / 60:.1f} min", flush=True)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group.setdefault("initial_lr", group["lr"])
        self._started = self._saved = self._printed = time.monotonic()
        self._sums: list[list[float]] = []

    @property
    def elapsed(self) -> float:
        """Seconds of this stage so far."""
        return self._before + time.monotonic() - self._started

    @property
    def done(self) -> bool:
        return self.elapsed >= self.seconds

    def set_rate(self, factor: float = 1.0) -> None:
        """Warm-up over 50 steps, constant, then linear to the final rate; times `factor`."""
        progress = self.elapsed / self.seconds
        decay = max(self.final_rate, (1 - progress) / (1 - self.constant_share))
        rate = factor * min(1.0, (self.step + 1) / 50) * min(1.0, decay)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * rate

    def update(self, loss: torch.Tensor, parameters: list[nn.Parameter], **parts: float) -> None:
        """One optimizer step; `parts` are averaged for the progress lines."""
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, _CLIP_NORM)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        self._sums.append(list(parts.values()))
        if self.step % 100 == 0:
            now = time.monotonic()
            values = zip(parts, np.mean(self._sums, 0), strict=True)
            print(
                f"step {self.step}  {len(self._sums) / (now - self._printed):.2f} it/s  "
                f"{self.elapsed / 60:.1f} min, {(self.seconds - self.elapsed) / 60:.1f} left  "
                + "  ".join(f"{name} {value:.3f}" for name, value in values),
                flush=True,
            )
            self._printed, self._sums = now, []

    def save_if_due(self, report: Callable[[], str]) -> None:
        if time.monotonic() - self._saved > self.SAVE_SECONDS:
            self.save()
            print(report(), flush=True)

    def save(self) -> None:
        """Writes the checkpoint in one stroke."""
        partial = self.file.with_suffix(".partial")
        state = {name: module.state_dict() for name, module in self.modules.items()}
        optimizers = [o.state_dict() for o in self.optimizers]
        torch.save(
            {**state, "optimizers": optimizers, "step": self.step, "elapsed": self.elapsed}, partial
        )
        partial.replace(self.file)
        self._saved = time.monotonic()


def quick_report(model: MimiModel, clips: list[Clip], count: int = 12) -> str:
    """Mean STOI and ESTOI over a few held-out clips of nano's voice."""
    from .recognize import intelligibility

    was_training = model.training
    model.eval()
    chosen = clips[:: max(1, len(clips) // count)]
    scores = [intelligibility(c.pcm, reconstruct(model, c.pcm), SAMPLE_RATE) for c in chosen]
    model.train(was_training)
    stoi, estoi = np.nanmean(scores, 0)
    return f"  held out: STOI {stoi:.3f}  ESTOI {estoi:.3f}"


def _batch_shape(step: int) -> tuple[int, int]:
    return (_LONG_BATCH, _LONG_FRAMES) if step % _LONG_EVERY == 0 else (_BATCH, _FRAMES)


def train(out: Path, minutes: float, start: Path | None = None, seed: int = 0) -> None:
    """Stage A: encoder, quantizer and decoder together; writes codec/joint.pt.

    From nothing, or from the `mimi.safetensors` `start` of the same architecture at half the rate.
    """
    torch.manual_seed(seed)
    cache = out / "speech"
    sampler = CropSampler(load_corpus(cache, ("train",)), seed)
    held_out = load_corpus(cache, ("held out",))
    model = build()
    phone_head = nn.Linear(CONFIG["quantizer"]["dimension"], PHONES_PER_FRAME * len(PHONES))
    if start is None:
        initialize(model, torch.from_numpy(sampler.batch(8, 10)[1])[:, None])
        steps_without_quantizer, rate, constant_share = _STEPS_WITHOUT_QUANTIZER, 1.0, 0.5
    else:
        model.load_state_dict(load_file(start))
        steps_without_quantizer, rate, constant_share = 0, 0.5, 0.2
    parameters = [*model.parameters(), *phone_head.parameters()]
    optimizers = make_optimizers(parameters, adam_lr=2e-3 * rate, muon_lr=4e-3 * rate)
    modules = {"model": model, "phone_head": phone_head}
    run = Run(out / "codec" / "joint.pt", modules, optimizers, minutes, constant_share, 0.03)
    if run.step:
        sampler.rng = np.random.default_rng(seed + run.step)
    spectral = SpectralLoss()
    levels = random.Random(seed)
    model.train()
    while not run.done:
        quantized_steps = run.step - steps_without_quantizer
        if quantized_steps == 0 and start is None:
            initialize_codebooks(model, sampler)
        enabled = quantized_steps >= 0
        run.set_rate(min(1.0, 0.2 + quantized_steps / 100) if enabled else 1.0)
        source, target, phones = map(torch.from_numpy, sampler.batch(*_batch_shape(run.step)))
        latent = to_latent(model, source[:, None])
        all_levels = model.quantizer.rvq_rest.max_n_q
        acoustic_levels = all_levels if levels.random() < 0.6 else levels.randint(1, all_levels)
        q = quantize(model, latent, acoustic_levels, enabled)
        mel, convergence = spectral(from_latent(model, q.latent)[:, 0], target)
        logits = phone_head(q.semantic.transpose(1, 2)).reshape(-1, len(PHONES))
        phone = F.cross_entropy(logits, phones.flatten(), ignore_index=IGNORED_PHONE)
        scale = (latent.square().mean() - 1).clamp(min=0)  # latents must not drift in scale
        loss = mel + 0.5 * convergence + 0.1 * phone + 0.25 * q.commitment + 0.01 * scale
        run.update(
            loss, parameters, mel=mel.item(), conv=convergence.item(), phone=phone.item(),
            commit=q.commitment.item(), std=latent.std().item(),
        )  # fmt: skip
        if enabled:
            run.save_if_due(lambda: quick_report(model, held_out))
    run.save()
    print(quick_report(model, held_out, len(held_out)), flush=True)


# ------------------------------------------------------------------------ stage B: the decoder


@dataclass(frozen=True)
class Coded:
    """A clip with silence around it: audio [frames * 1920] and its frozen codes [8, frames]."""

    pcm: np.ndarray
    codes: torch.Tensor


class CodedSampler:
    """Crops of coded clips for the decoder, each with a few frames of codes before it."""

    LEAD = 3
    PAD = 12
    SHARES: ClassVar = {"canonical": 0.30, "own": 0.64, "user": 0.06}

    def __init__(self, model: MimiModel, clips: list[Clip], seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        every_user = 6  # a few users are enough to keep the decoder general
        self.coded: dict[str, list[Coded]] = {}
        for role in self.SHARES:
            chosen = [c for c in clips if c.item.role == role]
            offsets = role != "canonical"
            step = every_user if role == "user" else 1
            self.coded[role] = [self._code(model, c, offsets) for c in chosen[::step]]

    def _code(self, model: MimiModel, clip: Clip, random_offset: bool) -> Coded:
        offset = int(self.rng.integers(FRAME_SIZE)) if random_offset else 0
        pad = self.PAD * FRAME_SIZE
        pcm = np.pad(clip.pcm, (pad + offset, pad - offset))
        return Coded(pcm, encode(model, pcm))

    def batch(self, size: int, frames: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes [size, 8, LEAD + frames] and the audio of the last `frames` [size, samples]."""
        codes, audio = [], []
        need = self.LEAD + frames
        for role in self.rng.choice(list(self.SHARES), size, p=list(self.SHARES.values())):
            pool = self.coded[role]
            parts = [pool[self.rng.integers(len(pool))]]
            while sum(p.codes.shape[1] for p in parts) < need:
                parts.append(pool[self.rng.integers(len(pool))])
            joined = torch.cat([p.codes for p in parts], 1)
            pcm = np.concatenate([p.pcm for p in parts])
            first = int(self.rng.integers(joined.shape[1] - need + 1))
            codes.append(joined[:, first : first + need])
            audio.append(pcm[(first + self.LEAD) * FRAME_SIZE : (first + need) * FRAME_SIZE])
        return torch.stack(codes), torch.from_numpy(np.stack(audio))


def train_decoder(out: Path, minutes: float, seed: int = 1) -> None:
    """Stage B: the decoder alone, wider, on frozen codes; codec/joint.pt → codec/decoder.pt."""
    torch.manual_seed(seed)
    cache = out / "speech"
    model = load_listening(out)
    if not _is_wide(model.state_dict()):
        model = widened(model).eval()
    sampler = CodedSampler(model, load_corpus(cache, ("train",)), seed)
    held_out = load_corpus(cache, ("held out",))
    decoder = (model.upsample, model.decoder_transformer, model.decoder)
    parameters = [p for module in decoder for p in module.parameters()]
    optimizers = make_optimizers(parameters, adam_lr=1.2e-3, muon_lr=2.4e-3)
    run = Run(out / "codec" / "decoder.pt", {"model": model}, optimizers, minutes, 0.4, 0.02)
    if run.step:
        sampler.rng = np.random.default_rng(seed + run.step)
    spectral, phase = SpectralLoss(epsilon=2e-4, sizes_per_call=4), PhaseLoss()
    envelope = EnvelopeLoss()
    while not run.done:
        run.set_rate()
        codes, target = sampler.batch(*_batch_shape(run.step))
        with torch.no_grad():
            latent = model.quantizer.decode(codes)
        output = from_latent(model, latent)[:, 0, sampler.LEAD * FRAME_SIZE :]
        mel, convergence = spectral(output, target)
        complex_error, dissimilarity = phase(output, target), envelope(output, target)
        loss = mel + 0.5 * convergence + 0.15 * complex_error + dissimilarity
        run.update(
            loss, parameters, mel=mel.item(), conv=convergence.item(), phase=complex_error.item(),
            env=dissimilarity.item(),
        )  # fmt: skip
        run.save_if_due(lambda: quick_report(model, held_out))
    run.save()
    print(quick_report(model, held_out, len(held_out)), flush=True)


# ----------------------------------------------------------------------------------------- export


def published_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The names of the published Mimi files: projections of attention packed in one tensor."""
    out: dict[str, torch.Tensor] = {}
    for name, value in state.items():
        match = re.fullmatch(r"(.*\.self_attn)\.(in|out)_projs\.0\.weight", name)
        if match:
            suffix = "in_proj_weight" if match[2] == "in" else "out_proj.weight"
            name = f"{match[1]}.{suffix}"
        out[name] = value.detach().contiguous()
    return out


def load_published(file: Path) -> MimiModel:
    """A codec as `export` writes it, in float32."""
    model = build(WIDE_CONFIG)
    state = {_reference_name(n): w.float() for n, w in load_file(file).items()}
    model.load_state_dict(state)
    return model.eval()


def _reference_name(name: str) -> str:
    """Undoes `published_names`."""
    name = name.replace(".self_attn.in_proj_weight", ".self_attn.in_projs.0.weight")
    return name.replace(".self_attn.out_proj.weight", ".self_attn.out_projs.0.weight")


def listening_file(out: Path) -> Path:
    """Where `codec_listening` leaves the codec."""
    return out / "codec" / "listening.pt"


def load_joint(out: Path) -> MimiModel:
    """The codec as stage A leaves it."""
    file = out / "codec" / "joint.pt"
    return _loaded(file, "train")


def load_listening(out: Path) -> MimiModel:
    """The codec whose encoder has learned to listen, if it has, else as stage A leaves it."""
    file = listening_file(out)
    return _loaded(file, "codec_listening") if file.exists() else load_joint(out)


def _loaded(file: Path, stage: str) -> MimiModel:
    if not file.exists():
        raise FileNotFoundError(f"no {file}; run `{stage}` first")
    state = torch.load(file)["model"]
    model = build(WIDE_CONFIG if _is_wide(state) else CONFIG)
    model.load_state_dict(state)
    return model.eval()


def _is_wide(state: dict[str, torch.Tensor]) -> bool:
    first_new_layer = f"decoder_transformer.transformer.layers.{_TRANSFORMER['num_layers']}."
    return any(name.startswith(first_new_layer) for name in state)


def load_trained(out: Path) -> MimiModel:
    """The trained codec: with the decoder of stage B."""
    file = out / "codec" / "decoder.pt"
    return _loaded(file, "decoder")


def export(out: Path) -> Path:
    """Writes codec/mimi.safetensors and codec/mimi_config.json.

    The decoder's half in float16; the codes follow from the rest, which stays float32.
    """
    file = out / "codec" / "mimi.safetensors"
    partial = file.with_suffix(".partial")
    weights = published_names(load_trained(out).state_dict())
    decoding = ("upsample.", "decoder.", "decoder_transformer.")
    halves = {n: w.half() if n.startswith(decoding) else w for n, w in weights.items()}
    save_file(halves, partial)
    partial.chmod(0o644)  # safetensors writes files for their owner alone
    partial.replace(file)
    file.with_name("mimi_config.json").write_text(json.dumps(WIDE_CONFIG, indent=1) + "\n")
    print(f"{file}: {file.stat().st_size / 1e6:.2f} MB")
    return file


def begin(out: Path, threads: int) -> None:
    """What every stage needs first."""
    torch.set_num_threads(threads)
    (out / "codec").mkdir(parents=True, exist_ok=True)
    use_plain_convolutions()


def prepare(out: Path, processes: int) -> None:
    """Synthesizes the corpus into speech/."""
    splits = ("train", "held out", "new text", "unheard")
    seconds: dict[tuple[str, str], float] = {}
    for clip in load_corpus(out / "speech", splits, processes):
        key = (clip.item.role, clip.item.split)
        seconds[key] = seconds.get(key, 0.0) + len(clip.samples) / CONFIG["sample_rate"]
    for (role, split), value in sorted(seconds.items()):
        print(f"{role:10} {split:10} {value / 60:7.1f} min")


def main() -> None:
    parser = argparse.ArgumentParser(description="Train nano's codec, a small Mimi.")
    parser.add_argument("stage", choices=("prepare", "train", "decoder", "export"))
    parser.add_argument("--out", type=Path, default=Path("build/nano"))
    parser.add_argument("--minutes", type=float, help="default: 40 for train, 20 for decoder")
    parser.add_argument("--start", type=Path, help="train: mimi.safetensors to start from")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    begin(args.out, args.threads)
    if args.stage == "prepare":
        prepare(args.out, args.threads)
    elif args.stage == "train":
        train(args.out, args.minutes or 40, args.start)
    elif args.stage == "decoder":
        train_decoder(args.out, args.minutes or 20)
    else:
        export(args.out)


if __name__ == "__main__":
    main()
