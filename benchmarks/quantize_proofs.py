"""Proofs about moshi-quantize that take long, or need another environment.

    python -m benchmarks.quantize_proofs upstream PYTHON  upstream's moshi_mlx 0.3.0 reads q4, q8
    python -m benchmarks.quantize_proofs big FOLDER  a 15.4 GB checkpoint, made and quantized
    python -m benchmarks.quantize_proofs kill        killed ten times: the result is whole or not

Each prints its figures, and exits 1 if the proof fails.
"""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from moshi_mlx.arrays import Weights
from moshi_mlx.hub import bundled_folder
from moshi_mlx.layouts import to_mlx, to_pytorch
from moshi_mlx.lm import Lm
from moshi_mlx.published import V0_1, read_config
from moshi_mlx.safetensors import read_header
from moshi_mlx.trees import named_parameters
from moshi_mlx.weights import load_lm
from moshi_quantize.writer import TensorWriter

NANO = bundled_folder("nano")
SMALL = {
    **V0_1, "dim": 256, "text_card": 512, "card": 512, "num_heads": 4, "num_layers": 2,
    "context": 100, "depformer_dim": 128, "depformer_dim_feedforward": 576,
    "depformer_num_heads": 4, "depformer_num_layers": 2,
}  # fmt: skip
"""Moshi's architecture with widths that groups of 64 divide, and nano's vocabularies."""


def packed(weights: Weights) -> Weights:
    """PyTorch's `in_projs.{i}` names → the packed tensors of older files."""
    groups: dict[str, dict[int, mx.array]] = {}
    out: Weights = {}
    for name, value in weights.items():
        head, _, tail = name.partition("_projs.")
        if not tail:
            out[name] = value
            continue
        kind = "_proj_weight" if head.endswith(".in") else "_proj.weight"
        groups.setdefault(head + kind, {})[int(tail.split(".")[0])] = value
    for name, parts in groups.items():
        out[name] = mx.concatenate([parts[i] for i in sorted(parts)])
    return out


def make_small(
    folder: Path, *, seed: int = 0, dtype: mx.Dtype = mx.bfloat16, **fields: int
) -> Path:
    """A small random model in the packed PyTorch layout, with nano's codec and tokenizer."""
    folder.mkdir(parents=True)
    mx.random.seed(seed)
    config = SMALL | fields
    lm = Lm(read_config(config).lm)
    weights = packed(to_pytorch(named_parameters(lm), lm.config))
    mx.save_safetensors(
        str(folder / "model.safetensors"), {k: v.astype(dtype) for k, v in weights.items()}
    )
    names = {"mimi_name": "mimi.safetensors", "tokenizer_name": "tokenizer.model",
             "mimi_config_name": "mimi_config.json"}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config | names))
    for name in names.values():
        shutil.copyfile(NANO / name, folder / name)
    return folder


# Runs in upstream's environment: arguments are the folder, bits, and where the logits go.
UPSTREAM = """
import json, sys, mlx.core as mx, mlx.nn as nn
from moshi_mlx import models
folder, bits, out = sys.argv[1], int(sys.argv[2]), sys.argv[3]
config = models.LmConfig.from_config_dict(json.load(open(folder + "/config.json")))
model = models.Lm(config)
model.set_dtype(mx.float32)
nn.quantize(model, bits=bits, group_size=32 if bits == 4 else 64)
model.load_weights(folder + "/model.safetensors", strict=True)
model.set_dtype(mx.float32)
inputs = mx.load(sys.argv[4])
tokens, steps = inputs["tokens"], inputs["steps"]
x = model.text_emb(tokens[:, 0])
for k, emb in enumerate(model.audio_embs):
    x = x + emb(tokens[:, 1 + k])
steps_of_z = []
for t in range(x.shape[1]):
    steps_of_z.append(model.transformer(x[:, t : t + 1], cache=model.transformer_cache))
z = model.out_norm(mx.concatenate(steps_of_z, axis=1))
logits = {"text": model.text_linear(z)}
frames = []
for t in range(z.shape[1]):
    for cache in model.depformer_cache:
        cache.reset()
    row = []
    for k, part in enumerate(model.depformer.slices):
        y = part.linear_in(z[:, t : t + 1]) + part.emb(steps[t : t + 1, k : k + 1])
        y = part.transformer(y, cache=model.depformer_cache)
        row.append(part.linear_out(y)[0, 0])
    frames.append(mx.stack(row))
logits["audio"] = mx.stack(frames)
mx.save_safetensors(out, logits)
"""


def upstream(python: str) -> bool:
    """q4 and q8 of a packed PyTorch checkpoint, loaded by upstream: same logits in float32."""
    good = True
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = make_small(folder / "source")
        rng = np.random.default_rng(0)
        frames = 40
        inputs = {
            "tokens": mx.array(rng.integers(0, 512, (1, 17, frames)).astype(np.int32)),
            "steps": mx.array(rng.integers(0, 512, (frames, 8)).astype(np.int32)),
        }
        mx.save_safetensors(str(folder / "inputs.safetensors"), inputs)
        for bits in (4, 8):
            made, out = folder / f"q{bits}", folder / f"logits{bits}.safetensors"
            run(
                [
                    sys.executable,
                    "-m",
                    "moshi_quantize",
                    source,
                    made,
                    "--bits",
                    bits,
                    "--no-report",
                ]
            )
            run([python, "-c", UPSTREAM, made, bits, out, folder / "inputs.safetensors"], folder)
            theirs: Any = mx.load(str(out))
            config = read_config(json.loads((made / "config.json").read_text()))
            lm = load_lm(
                made / "model.safetensors", config.lm, dtype=mx.float32,
                quantization=config.quantization,
            )  # fmt: skip
            z, text = lm.temporal(inputs["tokens"])
            audio = lm.depformer.forward(z[0], inputs["steps"])
            errors = [
                float(np.abs(np.array(a - b)).max())
                for a, b in ((text, theirs["text"]), (audio, theirs["audio"]))
            ]
            print(
                f"q{bits}: largest differences of text and audio logits {errors}, of logits up to "
                f"{mx.abs(text).max().item():.2f}, {mx.abs(audio).max().item():.2f}"
            )
            good &= max(errors) <= 1e-3
    return good


def run(arguments: list[Any], folder: Path | None = None) -> None:
    subprocess.run([str(a) for a in arguments], check=True, cwd=folder)


def make_big(folder: Path) -> Path:
    """The full Moshi v0.1 in bfloat16, packed PyTorch layout, random, written as it is made."""
    folder.mkdir(parents=True)
    lm = Lm(read_config(None).lm)  # its values are never made
    shapes = {
        name: value.shape
        for name, value in packed(to_pytorch(named_parameters(lm), lm.config)).items()
    }
    del lm
    random_bits = np.random.default_rng(0)
    with TensorWriter(
        folder / "model.safetensors", {n: (mx.bfloat16, s) for n, s in shapes.items()}
    ) as writer:
        for name, shape in shapes.items():
            count = int(np.prod(shape))
            # Numbers of either sign from 1/256 to 1/64, straight from bits: fast.
            bits = random_bits.integers(0, 1 << 16, count, dtype=np.uint16)
            bits = (bits & np.uint16(0x80FF)) | np.uint16(0x3B80)
            writer.write(name, mx.array(bits.reshape(shape)).view(mx.bfloat16))
    for name, ours in {"tokenizer-e351c8d8-checkpoint125.safetensors": "mimi.safetensors",
                       "tokenizer_spm_32k_3.model": "tokenizer.model"}.items():  # fmt: skip
        shutil.copyfile(NANO / ours, folder / name)
    return folder


def big(where: str) -> bool:
    """The full shape: peak memory, rate, size, names and shapes. Needs 21 GB of disk."""
    folder = Path(where)
    source, made = folder / "moshi-bf16", folder / "moshi-q4"
    if not source.is_dir():
        began = time.perf_counter()
        make_big(source)
        print(f"made in {time.perf_counter() - began:.0f} s")
    size = (source / "model.safetensors").stat().st_size
    began = time.perf_counter()
    run([sys.executable, "-m", "moshi_quantize", source, made, "--bits", 4, "--no-report"])
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )
    result = made / "model.safetensors"
    quantized = Lm(read_config(None).lm)
    nn.quantize(quantized, 32, 4)
    expected = {
        n: v.shape for n, v in to_mlx(named_parameters(quantized), quantized.config).items()
    }
    found = {name: info.shape for name, info in read_header(result).items()}
    print(
        f"{size / 1e9:.2f} GB in {seconds:.0f} s: {size / seconds / 1e6:.0f} MB/s; peak memory "
        f"{peak / 1e9:.2f} GB; result {result.stat().st_size / 1e9:.3f} GB, "
        f"{len(found)} tensors, names and shapes {'as' if found == expected else 'NOT as'} "
        "published"
    )
    return peak < 3e9 and found == expected and abs(result.stat().st_size / 4.81e9 - 1) < 0.005


def kill() -> bool:
    """Killed at ten random moments: the target is absent, or whole."""
    good = True
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # Big enough that most of the time goes into the work, not into starting Python.
        source = make_small(folder / "source", dim=1024, num_heads=8, num_layers=24)
        made = folder / "made"
        command = [
            sys.executable,
            "-m",
            "moshi_quantize",
            str(source),
            str(made),
            "--bits",
            "4",
            "--no-report",
        ]
        began = time.perf_counter()
        run(command)
        whole = time.perf_counter() - began
        reference = {p.name: p.read_bytes() for p in made.iterdir()}
        source_before = {p.name: p.stat().st_mtime_ns for p in source.iterdir()}
        rng = random.Random(0)
        outcomes = []
        for i in range(10):
            shutil.rmtree(made, ignore_errors=True)
            process = subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            time.sleep(whole * rng.uniform(0.1, 1.05))
            process.send_signal(signal.SIGKILL if i % 2 else signal.SIGTERM)
            code = process.wait()
            there = {p.name: p.read_bytes() for p in made.iterdir()} if made.exists() else {}
            left = [p.name for p in folder.iterdir() if p.name.endswith(".partial")]
            outcome = "whole" if there == reference else "absent" if not there else "BROKEN"
            good &= outcome != "BROKEN"
            outcomes.append(f"{outcome} (exit {code}, {len(left)} left)")
        shutil.rmtree(made, ignore_errors=True)
        run(command)
        good &= not [p for p in folder.iterdir() if p.name.endswith(".partial")]
        good &= source_before == {p.name: p.stat().st_mtime_ns for p in source.iterdir()}
        print("; ".join(outcomes))
    return good


if __name__ == "__main__":
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    proofs: dict[str, Any] = {"upstream": upstream, "big": big, "kill": kill}
    sys.exit(0 if proofs[sys.argv[1]](*sys.argv[2:]) else 1)
