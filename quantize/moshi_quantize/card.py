"""The README.md of a quantized model: what it is made from, its licence, how to run it."""

import re
from pathlib import Path

from moshi_mlx import catalog
from moshi_mlx.checkpoint import WEIGHTS, Checkpoint
from moshi_mlx.families.kinds import COMMANDS, kind_of

from .convert import Plan
from .recipes import Recipe


def licence_of(source: Checkpoint) -> str:
    """What the source says of its licence."""
    card = source.card
    text = card.read_text(encoding="utf-8", errors="replace") if card else ""
    if match := re.search(r"^licen[cs]e:[ \t]*[\"']?([^\"'\n]+)", text, re.MULTILINE):
        return f"{match[1].strip()}, as its card states (SOURCE_CARD.md)"
    if entry := catalog.find(source.name):
        return f"{entry.licence}, as its repository states"
    if re.search(r"^#+ .*licen[cs]e", text, re.MULTILINE | re.IGNORECASE):
        return "as its card states (SOURCE_CARD.md)"
    return "not stated there; the source's terms hold for this too"


def card_text(plan: Plan, chosen: Recipe, quality: str | None) -> str:
    """The card, with the quality table if there is one."""
    source = plan.source
    snapshot = re.search(r"snapshots/([0-9a-f]{40})/", str(source.files.weights[0]))
    made_from = f"`{source.name}`" + (f" at commit {snapshot[1]}" if snapshot else "")
    files = ", ".join(f"`{p.name}` ({p.stat().st_size} bytes)" for p in source.files.weights)
    adapter = f" with the adapter `{source.files.lora.name}` merged in" if source.files.lora else ""
    counts: dict[str, int] = {}
    for layer in plan.layers:
        given = plan.assignment[layer.path]
        key = str(given) if given else "not quantized"
        counts[key] = counts.get(key, 0) + layer.size
    total = sum(counts.values())
    rows = "\n".join(
        f"| {key} | {size / 1e6:.2f} M | {size / total:.1%} |"
        for key, size in sorted(counts.items(), key=lambda item: -item[1])
    )
    precisions = (
        f"| precision (bits:group) | weights | share |\n|---|---|---|\n{rows}\n"
        if plan.base is not None
        else "Not quantized: converted only.\n"
    )
    title = f"{Path(source.name).name} ({chosen.name})"
    return (
        f"# {title}\n\nMade by `moshi-quantize` from {made_from}{adapter}: {files}.\n"
        f"Licence: {licence_of(source)}.\n\n"
        f"Run it: `{command_of(source)} --model FOLDER`, FOLDER being this one.\n\n"
        f"## Precisions\n{precisions}\n"
        f"`{WEIGHTS}` has {plan.nbytes} bytes of tensors.\n"
        + (f"\n## Quality, against the original\n{quality}\n" if quality else "")
    )


def write_card(plan: Plan, chosen: Recipe, folder: Path, quality: str | None = None) -> None:
    """README.md."""
    (folder / "README.md").write_text(card_text(plan, chosen, quality), encoding="utf-8")


def command_of(source: Checkpoint) -> str:
    """The program that uses such a model."""
    return COMMANDS[kind_of(source.config, source.name).verb]
