"""The training loss of nano's codec on waveforms, and the Muon optimizer (PyTorch).

Knows tensors only: nothing of the corpus or of Mimi.
"""

from __future__ import annotations

import numpy as np
import torch

_MEL_CEILING = 8000.0  # flite's voices end at 8 kHz: higher bands would only be silence


def mel_filters(fft_size: int, bands: int, sample_rate: int = 24_000) -> torch.Tensor:
    """Triangular mel filters [bands, fft_size // 2 + 1], each of sum one; empty ones left out."""
    frequencies = np.linspace(0, sample_rate / 2, fft_size // 2 + 1)
    highest_mel = 2595 * np.log10(1 + _MEL_CEILING / 700)
    edges = 700 * (10 ** (np.linspace(0, highest_mel, bands + 2) / 2595) - 1)
    low, center, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising = (frequencies - low) / (center - low)
    falling = (high - frequencies) / (high - center)
    filters = np.maximum(0, np.minimum(rising, falling))
    sums = filters.sum(1, keepdims=True)
    return torch.tensor((filters / np.maximum(sums, 1e-8))[sums[:, 0] > 0], dtype=torch.float32)


def _stft(pcm: torch.Tensor, window: torch.Tensor, hop: int) -> torch.Tensor:
    """Real and imaginary parts [batch, bins, steps, 2]; the window sums to 2, so a full-scale sine
    has magnitude one at every size."""
    z = torch.stft(
        pcm, len(window), hop, window=window, return_complex=True, center=True, pad_mode="constant"
    )
    return torch.view_as_real(z)


def _window(size: int) -> torch.Tensor:
    window = torch.hann_window(size)
    return window / window.sum() * 2


class SpectralLoss:
    """Distance of log-mel spectra at several window sizes, plus spectral convergence.

    The logarithm's floor `epsilon` lies just under quiet speech, else silence makes up most of the
    loss. Spectral convergence covers all bins up to 12 kHz and keeps the treble quiet. Of the four
    sizes `sizes_per_call` are used in rotation.
    """

    SIZES = ((256, 24), (512, 48), (1024, 80), (2048, 96))

    def __init__(self, epsilon: float = 3e-4, sizes_per_call: int = 2) -> None:
        self.epsilon = epsilon
        self.sizes_per_call = sizes_per_call
        self._scales = [(mel_filters(n, m), _window(n)) for n, m in self.SIZES]
        self._calls = 0

    def __call__(
        self, output: torch.Tensor, target: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(log-mel L1, spectral convergence) of two batches of audio [batch, samples]."""
        stride = len(self._scales) // self.sizes_per_call
        offset = self._calls % stride
        self._calls += 1
        pairs = [self._one_scale(output, target, *s) for s in self._scales[offset::stride]]
        mel, convergence = (sum(values) / len(pairs) for values in zip(*pairs, strict=True))
        return mel, convergence

    def _one_scale(
        self,
        output: torch.Tensor,
        target: torch.Tensor,
        filters: torch.Tensor,
        window: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        parts = _stft(torch.cat([output, target]), window, len(window) // 4)
        magnitude = (parts.square().sum(-1) + 1e-10).sqrt()
        ours, theirs = magnitude.chunk(2)
        log_mel = torch.log(filters @ magnitude + self.epsilon).chunk(2)
        mel = (log_mel[0] - log_mel[1]).abs().mean()
        error = (ours - theirs).square().sum().sqrt()
        return mel, error / (theirs.square().sum().sqrt() + 1e-4)


class PhaseLoss:
    """L1 distance of complex spectra relative to the target's mean magnitude."""

    def __init__(self, size: int = 512) -> None:
        self._window = _window(size)

    def __call__(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        hop = len(self._window) // 4
        ours, theirs = _stft(output, self._window, hop), _stft(target, self._window, hop)
        return (ours - theirs).abs().mean() / (theirs.abs().mean() + 1e-4)


class EnvelopeLoss:
    """One minus the mean correlation of band envelopes, as intelligibility is measured.

    (STOI, Taal et al. 2011: fifteen third-octave bands from 150 Hz, windows of 25.6 ms, stretches
    of 30 of them; without its clipping. Stretches where the target is silent don't count.)
    """

    _BANDS, _LOWEST, _STRETCH, _STRIDE = 15, 150.0, 30, 5
    _SILENCE = 1e-3
    """Mean amplitude over the bands below which a stretch is silent; speech is near 0.02."""

    def __init__(self, sample_rate: int = 24_000) -> None:
        self._size = round(0.0256 * sample_rate)
        self._window = _window(self._size)
        centres = self._LOWEST * 2 ** (torch.arange(self._BANDS) / 3)
        frequencies = torch.fft.rfftfreq(self._size, 1 / sample_rate)
        edges = centres[:, None] * 2 ** (torch.tensor([-1, 1]) / 6)
        self._bands = ((frequencies >= edges[:, :1]) & (frequencies < edges[:, 1:])).float()

    def _envelopes(self, pcm: torch.Tensor) -> torch.Tensor:
        """[batch, samples] → [batch, bands, stretches, 30]."""
        power = _stft(pcm, self._window, self._size // 2).square().sum(-1)
        bands = (self._bands @ power + 1e-10).sqrt()
        return bands.unfold(-1, self._STRETCH, self._STRIDE)

    def __call__(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        ours, theirs = self._envelopes(output), self._envelopes(target)
        sounds = (theirs.mean((1, 3)) > self._SILENCE).float()[:, None]
        a, b = (e - e.mean(-1, keepdim=True) for e in (ours, theirs))
        product = (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1) + 1e-6)
        return 1 - (product * sounds).sum() / (sounds.sum() * self._BANDS + 1e-6)


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonalized updates (Keller Jordan's Newton-Schulz), for matrices.

    Convolution weights are flattened to [outputs, rest]; updates are scaled by
    0.2 * sqrt(larger side), so that the learning rate is near Adam's.
    """

    def __init__(self, parameters, lr: float, momentum: float = 0.95) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            momentum = group["momentum"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                mean = state.setdefault("mean", torch.zeros_like(p))
                mean.lerp_(p.grad, 1 - momentum)
                update = orthogonalize(p.grad.lerp(mean, momentum).reshape(len(p), -1))
                p.add_(update.reshape(p.shape), alpha=-group["lr"] * 0.2 * max(update.shape) ** 0.5)


def orthogonalize(matrix: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """A matrix with the same singular vectors and singular values near one."""
    wide = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = wide / (wide.norm() + 1e-8)
    for _ in range(steps):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


def make_optimizers(
    parameters: list[torch.nn.Parameter], adam_lr: float, muon_lr: float
) -> list[torch.optim.Optimizer]:
    """Muon for the matrices, Adam for everything else (biases, norms, one-row or tiny weights)."""

    def is_matrix(p: torch.Tensor) -> bool:
        return p.ndim >= 2 and p.numel() > 400 and min(len(p), p.numel() // len(p)) >= 4

    return [
        torch.optim.Adam(
            [p for p in parameters if not is_matrix(p)], lr=adam_lr, betas=(0.8, 0.99)
        ),
        Muon([p for p in parameters if is_matrix(p)], lr=muon_lr),
    ]
