"""Writes the cases `tests/data/lm/small-*`: `python tests/make_lm_cases.py`.

Run it in an environment of its own, with PyTorch and the reference implementation (`moshi` 0.2.13,
installed with --no-deps). The cases have the format of `tests/conformance.py` and cover fields
that the others leave out; one with conditions says in `conditions.json` which were given.
"""

import json
from pathlib import Path
from typing import Any

import torch
from moshi.conditioners import ConditionAttributes
from moshi.models import LMGen, LMModel, loaders
from safetensors.torch import save_file

FOLDER = Path(__file__).parent / "data" / "lm"
STEPS = 40
BASE: dict[str, Any] = {
    "dim": 32, "text_card": 40, "existing_text_padding_id": 3, "n_q": 4, "dep_q": 2, "card": 24,
    "num_heads": 4, "num_layers": 2, "hidden_scale": 4.125, "causal": True, "layer_scale": None,
    "context": 12, "max_period": 10_000, "gating": "silu", "norm": "rms_norm_f32",
    "positional_embedding": "rope", "depformer_dim": 16, "depformer_dim_feedforward": 66,
    "depformer_num_heads": 2, "depformer_num_layers": 2, "depformer_layer_scale": None,
    "depformer_multi_linear": True, "depformer_context": 2, "depformer_max_period": 10_000,
    "depformer_gating": "silu", "depformer_pos_emb": "none", "depformer_weights_per_step": True,
    "delays": [0, 0, 1, 0, 1],
}  # fmt: skip
CONDITIONER = {"type": "lut", "lut": {
    "n_bins": 4, "dim": 8, "tokenizer": "noop", "possible_values": ["a", "b", "c"],
}}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "small-long-delays": {"delays": [3, 0, 30, 5, 17], "context": 5},
    "small-norms": {
        "norm": "layer_norm", "positional_embedding": "sin_rope", "depformer_pos_emb": "rope",
        "layer_scale": 0.1, "depformer_layer_scale": 0.1, "depformer_gating": "gelu",
        "kv_repeat": 2, "depformer_kv_repeat": 2,
    },
    "small-shared": {
        "n_q": 8, "dep_q": 5, "delays": [1, 0, 2, 2, 2, 2, 0, 2, 2],
        "depformer_weights_per_step_schedule": [0, 1, 1, 2, 2],
        "depformer_dim_feedforward": [66, 48, 66], "hidden_scale": 4,
        "depformer_low_rank_embeddings": 4, "demux_second_stream": True,
    },
    "small-sum": {
        "conditioners": {"mood": CONDITIONER, "place": CONDITIONER},
        "fuser": {"sum": ["mood", "place"], "cross": [], "prepend": []},
    },
    "small-cross": {
        "cross_attention": True, "conditioners": {"mood": CONDITIONER},
        "fuser": {"sum": [], "cross": ["mood"], "prepend": [], "cross_attention_pos_emb": True,
                  "cross_attention_pos_emb_scale": 0.5},
    },
}  # fmt: skip
CONDITIONS = {"small-sum": {"mood": "b", "place": None}, "small-cross": {"mood": "c"}}


def make_model(config: dict[str, Any], seed: int) -> LMModel:
    torch.manual_seed(seed)
    model = loaders.get_moshi_lm(None, json.loads(json.dumps(config)), dtype=torch.float32)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "scale" in name:
                p.uniform_(0.2, 0.9)
            elif "norm" in name:
                p.add_(0.2 * torch.randn_like(p))
            else:
                p.normal_(std=1.0 if "emb" in name else 1.2 / p.shape[-1] ** 0.5)
    return model


@torch.no_grad()
def expectations(model: LMModel, config: dict[str, Any], conditions: Any) -> dict[str, Any]:
    def provide(batch: int) -> Any:
        if conditions is None:
            return None
        attributes = [ConditionAttributes(text=dict(conditions), tensor={}) for _ in range(batch)]
        return model.condition_provider.prepare_and_provide(attributes)

    rows = 1 + config["n_q"]
    codes = torch.randint(0, config["card"], (2, rows, STEPS))
    codes[torch.rand(codes.shape) < 0.05] = -1
    output = model(codes, provide(2))
    user = torch.randint(0, config["card"], (1, config["n_q"] - config["dep_q"], STEPS))
    logits: list[torch.Tensor] = []
    tokens = []
    generator = LMGen(
        model, use_sampling=False, temp=0.0, temp_text=0.0, condition_tensors=provide(1),
        on_text_logits_hook=lambda t: logits.append(t[:, 0, 0].clone()),
    )  # fmt: skip
    with generator.streaming(1):
        for t in range(STEPS):
            out = generator.step(user[:, :, t : t + 1])
            tokens.append(torch.full((1, 1 + config["dep_q"], 1), -2) if out is None else out)
    return {
        "forward.codes": codes.int(),
        "forward.logits": output.logits.nan_to_num(),
        "forward.text_logits": output.text_logits.nan_to_num(),
        "forward.mask": output.mask,
        "forward.text_mask": output.text_mask,
        "stream.user_codes": user.int(),
        "stream.text_logits": torch.stack(logits, 1),
        "stream.tokens": torch.cat(tokens, 2).int(),
    }


def save(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path)


def main() -> None:
    for seed, (name, fields) in enumerate(CASES.items()):
        config = BASE | fields
        folder = FOLDER / name
        folder.mkdir(parents=True, exist_ok=True)
        model = make_model(config, seed)
        (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
        if name in CONDITIONS:
            (folder / "conditions.json").write_text(json.dumps(CONDITIONS[name]) + "\n")
        save(folder / "model.safetensors", model.state_dict())
        save(folder / "expected.safetensors", expectations(model, config, CONDITIONS.get(name)))


if __name__ == "__main__":
    main()
