"""Nano in every recipe: writes the table and the plot of docs/quantize.md, and docs/quality.json.

    python -m recipes.nano.quantize_figures

Where build/nano is there, it makes nano's dialogue tokens first.

Run it after nano was trained again; it takes ten minutes of one core. Needs pocketsphinx and
matplotlib (the extra `dev`).
"""

import re
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import mlx.core as mx

from moshi_mlx.checkpoint import WEIGHTS, open_checkpoint
from moshi_quantize import report, sensitivity
from moshi_quantize.convert import make_plan, write_model, write_rest
from moshi_quantize.dialogues import SHIPPED, codec_fingerprint, find_dialogues
from moshi_quantize.gptq import quantize_layers
from moshi_quantize.recipes import RECIPES, Recipe, recipe
from moshi_quantize.replies import Replies
from moshi_quantize.teacher import Teacher

from . import quantize_dialogues

DOCS = Path(__file__).parents[2] / "docs"
UNIFORM = ("2:32", "3:64", "3:32", "4:64", "5:64", "6:64")
AUTO = (3.5, 4.0, 5.0, 6.0)
LISTENED = 8


def recipes() -> list[Recipe]:
    """All that the table has, the original first."""
    uniform = [recipe(what) for what in UNIFORM]
    auto = [replace(RECIPES["auto"], name=f"auto {bits}", target_bits=bits) for bits in AUTO]
    named = [replace(r, name=f"{n} 4.5" if n == "auto" else n) for n, r in RECIPES.items()]
    low = replace(RECIPES["auto-gptq"], name="auto-gptq 3.5", target_bits=3.5)
    return [*uniform, *(r for r in named if r.name != "none"), *auto, low]


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        work(Path(name))


def work(scratch: Path) -> None:
    """All of it, on a copy of nano, so that another may take its place meanwhile."""
    nano = open_checkpoint("nano").folder
    source = replace(open_checkpoint(shutil.copytree(nano, scratch / "nano")), name="nano")
    known = SHIPPED.is_file() and quantize_dialogues.fingerprint_of(SHIPPED) == codec_fingerprint(
        source.files.mimi, source.files.tokenizer
    )
    if not known:
        quantize_dialogues.main()
    tokens = find_dialogues(source)
    replies = Replies(tokens.evaluation[:LISTENED])
    reference = Teacher(source)(mx.array(tokens.evaluation))
    first = make_plan(source, RECIPES["q4"], mx.bfloat16)
    print("measuring sensitivity", file=sys.stderr)
    costs = sensitivity.measure_sensitivity(source, first.layers, tokens.calibration[:2])
    figures = []
    for chosen in recipes():
        folder = scratch / chosen.name.replace(":", "-")
        folder.mkdir()
        assignment = None
        if chosen.target_bits is not None:
            assignment = sensitivity.give_out(costs, first.layers, chosen.target_bits)
        plan = make_plan(source, chosen, mx.bfloat16, assignment)
        learned = None
        if chosen.method == "gptq":

            def learned(emit, plan=plan):
                layers = list(plan.layers)
                codes = tokens.calibration
                quantize_layers(source, layers, plan.assignment, mx.bfloat16, codes, emit)

        write_model(plan, folder / WEIGHTS, learned=learned)
        write_rest(plan, folder)
        other = replace(open_checkpoint(folder), name=chosen.name)
        figures += report.measure(source, [other], tokens, replies, reference)
        print(chosen.name, figures[-1].nbytes, figures[-1].frame_kl, file=sys.stderr)
    figures.sort(key=lambda f: f.nbytes)
    (DOCS / "quality.json").write_text(report.as_json("nano", tokens, figures), encoding="utf-8")
    report.plot(figures, DOCS / "quality.png", "nano, quantized")
    readme = DOCS / "quantize.md"
    text = re.sub(
        r"(?s)(<!-- figures -->\n).*?(<!-- end of figures -->)",
        lambda m: m[1] + report.table(figures) + f"\n\nOn {tokens.origin}.\n" + m[2],
        readme.read_text(encoding="utf-8"),
    )
    readme.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
