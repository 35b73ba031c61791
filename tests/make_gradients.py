"""Writes `tests/data/training/gradients.safetensors`: `python tests/make_gradients.py`.

Run it in an environment of its own, with PyTorch and the reference implementation (`moshi` 0.2.13,
installed with --no-deps). What is stored is PyTorch's gradient of the published loss (semantic
codes weigh 100, acoustic 1, PAD and EPAD 0.5) on the codes of the case `moshi`; to stay small, of
each tensor its product with a fixed vector along the last axis (`product.<name>`) and its norms
along that axis (`norm.<name>`), under PyTorch's names; and the loss.
"""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from moshi.models import loaders
from safetensors.torch import load_file, save_file

DATA = Path(__file__).parent / "data"
CASE = DATA / "lm" / "moshi"


def weighted_mean(logits: torch.Tensor, codes: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Σ w·CE / Σ w of logits [B, K, T, V] where weights [B, K, T] are not 0."""
    scored = weights > 0
    errors = F.cross_entropy(logits[scored], codes[scored].long(), reduction="none")
    return (errors * weights[scored]).sum() / weights.sum()


def main() -> None:
    config = json.loads((CASE / "config.json").read_text(encoding="utf-8"))
    model = loaders.get_moshi_lm(CASE / "model.safetensors", config, dtype=torch.float32)
    codes = load_file(CASE / "expected.safetensors")["forward.codes"]
    dep_q = config["dep_q"]
    output = model.train()(codes)
    text, audio = codes[:, :1], codes[:, 1 : 1 + dep_q]
    text_weights = output.text_mask.float()
    text_weights[(text == 3) | (text == 0)] *= 0.5
    audio_weights = output.mask.float()
    audio_weights[:, 0] *= 100.0
    loss = weighted_mean(output.text_logits, text, text_weights)
    loss = loss + weighted_mean(output.logits, audio, audio_weights)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    loss.backward()
    stored = {"loss": loss.detach().reshape(1)}
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        assert gradient is not None, name
        if name.endswith(".alpha"):
            gradient = gradient.reshape(-1, 1)
        vector = torch.cos(torch.arange(gradient.shape[-1], dtype=torch.float32))
        stored[f"product.{name}"] = gradient @ vector
        stored[f"norm.{name}"] = gradient.norm(dim=-1)
    folder = DATA / "training"
    folder.mkdir(parents=True, exist_ok=True)
    save_file(stored, folder / "gradients.safetensors")
    print(f"{len(stored)} tensors, loss {loss.item():.6f}")


if __name__ == "__main__":
    main()
