"""What Macs can hold: memory and frame times of Moshi, predicted. No Mac was measured.

    python -m benchmarks.macs

Memory is by shapes: weights, a full context of keys and values, codec, working memory. A frame is
the bytes that it reads by the bandwidth that others reached, and its launches. The table is in
docs/mac.md, and a test keeps it there as this prints it.
"""

from dataclasses import dataclass

import mlx.core as mx

from moshi_local.machine import prediction
from moshi_local.machine.bench import AUDIO, TEXT
from moshi_local.machine.launches import codec_launches, step_launches
from moshi_local.machine.prediction import Shape, published_shape, small_shape
from moshi_local.machine.verdict import BUDGET_MS
from moshi_local.platform import Machine

MEMORY_GB = {8: 5.73, 16: 11.45, 24: 17.18, 32: 22.91}
"""GiB of a Mac → GB that Metal recommends for the GPU at most: seen at 16 and 32 GB, where it is
two thirds (llama.cpp #1870 and #2011); by the same rule for the others."""
BANDWIDTH = {
    "M1": 52, "M2, M3": 90, "M4": 108, "M1 Pro, M2 Pro": 150, "M1 Max, M2 Max": 249, "M4 Max": 424,
    "M2 Ultra": 533,
}  # fmt: skip
"""GB/s that mlx-lm reached on 7B models in 4 bits: tokens per second by 4.07 GB (mlx pull requests
979 and 1864). M4 is taken for 1.2 times an M2, a Pro for 150."""
LAUNCH_MS = 0.0026
"""A small kernel that waits for the one before, on an M3 Ultra (mlx issue 4521)."""


@dataclass(frozen=True)
class Row:
    """A model with keys and values in some bits; launches of a whole frame."""

    name: str
    shape: Shape
    launches: int

    def frame_ms(self, bandwidth: int, full: bool) -> float:
        """Milliseconds, at the beginning or with a full context."""
        needs = self.shape.needs
        read = self.shape.read_per_frame + needs.codec + (needs.conversation if full else 0)
        return read / bandwidth / 1e6 + self.launches * LAUNCH_MS


def mac(gib: int) -> Machine:
    """A Mac with that much memory."""
    return Machine(
        chip="", cores=8, performance_cores=4, memory_total=gib << 30, memory_available=0,
        gpu_memory=int(MEMORY_GB[gib] * 1e9), os="macOS", python="", mlx="", backend="gpu",
        device="",
    )  # fmt: skip


def rows() -> list[Row]:
    """Every precision of Moshi, keys and values in full, 8 and 4 bits; and the small recipe."""
    codec = sum(codec_launches().values())
    found = []
    for precision, bits in (("q4", 4), ("q8", 8), ("bf16", 16)):
        for kv_bits in (None, 8, 4):
            shape = published_shape(f"moshiko-{precision}", kv_bits)
            assert shape is not None
            step = sum(step_launches(shape.config, bits, TEXT, AUDIO, 8).values())
            kv = "" if kv_bits is None else f", kv {kv_bits} bits"
            found.append(Row(f"{precision}{kv}", shape, step + codec))
    small = small_shape("moshiko-bf16")
    assert small is not None
    return [Row(f"{prediction.SMALL_RECIPE}, kv 4 bits", small, found[0].launches), *found]


def table() -> str:
    """In Markdown."""
    head = ["", "memory, GB", *(f"{gib} GB" for gib in MEMORY_GB), *BANDWIDTH]
    lines = [head, ["---"] * len(head)]
    for row in rows():
        needed = row.shape.needs.total
        fits = ["yes" if needed <= mac(gib).usable_memory else "–" for gib in MEMORY_GB]
        times = []
        for bandwidth in BANDWIDTH.values():
            new, full = (row.frame_ms(bandwidth, full) for full in (False, True))
            mark = "" if full <= BUDGET_MS else " late" if new > BUDGET_MS else " late when long"
            times.append(f"{new:.0f} / {full:.0f}{mark}")
        lines.append([row.name, f"{needed / 1e9:.1f}", *fits, *times])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Prints the table."""
    prediction.default_dtype, prediction.on_gpu = (lambda: mx.bfloat16), (lambda: True)
    print(table())


if __name__ == "__main__":
    main()
