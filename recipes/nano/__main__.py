"""Nano from nothing: voices, speech, codec, tokens, language model, the model's folder.

    python -m recipes.nano --out build/nano

Every step goes on where it stopped; what is done already is skipped. Needs flite, festival,
espeak-ng and npm, the packages `torch` and `moshi` for the codec's training, and `onnxruntime` for
Kokoro's voices, which are fetched.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path


def steps(args: argparse.Namespace) -> list[list[str]]:
    """The commands, in order; a process each, so that PyTorch and MLX don't share one."""
    out = ["--out", str(args.out)]
    threads = ["--threads", str(args.threads)]
    codec, minutes = "codec", "--minutes"
    lines = [] if args.lines is None else ["--lines", str(args.lines)]
    return [
        ["ears"],
        [codec, "prepare", *out, *threads],
        [codec, "train", *out, *threads, minutes, str(args.codec_minutes)],
        ["renditions", *out, "--processes", str(args.threads), *lines],
        ["tokens", *out, *threads, *lines],
        [codec, "decoder", *out, *threads, minutes, str(args.decoder_minutes)],
        [codec, "export", *out],
        ["train_lm", *out, minutes, str(args.lm_minutes)],
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m recipes.nano", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/nano"))
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--lines", type=int, help="only the first N of the users'", metavar="N")
    parser.add_argument("--codec-minutes", type=float, default=60)
    parser.add_argument("--decoder-minutes", type=float, default=75)
    parser.add_argument("--lm-minutes", type=float, default=120)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for module, *options in steps(args):
        command = [sys.executable, "-m", f"recipes.nano.{module}", *options]
        print("$", *command, flush=True)
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
