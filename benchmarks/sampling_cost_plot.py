"""What sampling costs as the vocabulary grows: drawing, the CTC head, a whole training step.

python benchmarks/sampling_cost_plot.py benchmarks/results/sampling_h200.csv benchmarks/results/sampling_h200.png
"""

from __future__ import annotations

import csv
import re
import sys

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402 - the backend comes first
from workloads import WORKLOADS  # noqa: E402

SAMPLERS = {"uniform": "tab:gray", "unigram": "tab:orange", "ctc": "tab:blue"}
HEADS = {"products": "its three\nproducts", "ours": "ours", "nemo": "NeMo's head,\ntorch's loss"}


def drawing(axes, rows: list[dict]) -> None:
    """Milliseconds of a call; a set for each utterance, no correction."""
    for sampler, colour in SAMPLERS.items():
        for implementation, style in (("kernels", "-o"), ("torch", "--x")):
            points = []
            for row in rows:
                workload, source, scope, _, *corrected = row["setting"].split()
                if (source, scope, row["implementation"], corrected) == (sampler, "utterance", implementation, []):
                    points.append((WORKLOADS[workload].vocabulary, float(row["median_ms"])))
            axes.plot(*zip(*sorted(points), strict=True), style, color=colour, label=f"{sampler}, {implementation}")
    axes.set(xscale="log", yscale="log", xlabel="vocabulary", ylabel="ms", title="drawing the negatives of a batch")
    axes.set_ylim(bottom=0.02)  # room for the legend
    axes.legend(fontsize=7, ncol=2, loc="lower center")


def head(axes, rows: list[dict]) -> None:
    """Milliseconds and GiB at the largest vocabulary, parameters in float32."""
    largest = max(rows, key=_vocabulary)
    rows = [row for row in rows if _vocabulary(row) == _vocabulary(largest) and "float32 weights" in row["setting"]]
    of = {row["implementation"]: row for row in rows}
    names = [name for name in HEADS if name in of]
    bars = axes.bar([HEADS[name] for name in names], [float(of[name]["median_ms"]) for name in names], color="tab:blue")
    notes = [f"{float(of[name]['peak_mib']):,.0f} MiB" if of[name]["peak_mib"] else "" for name in names]
    axes.bar_label(bars, [f"{float(of[n]['median_ms']):.1f} ms\n{note}" for n, note in zip(names, notes, strict=True)])
    axes.set(ylabel="ms", title=f"CTC head, V = {_vocabulary(largest):,}")
    axes.margins(y=0.2)


def step(axes, rows: list[dict]) -> None:
    bars = axes.bar(
        [f"V = {_vocabulary(row):,}" for row in rows], [float(row["median_ms"]) for row in rows], color="tab:green"
    )
    axes.bar_label(bars, [f"{float(row['median_ms']):.0f} ms\n{float(row['peak_mib']) / 1024:.1f} GiB" for row in rows])
    axes.set(ylabel="ms", title="training step, FastConformer medium")
    axes.margins(y=0.2)


def _vocabulary(row: dict) -> int:
    return int(re.match(r"V=(\d+)", row["setting"])[1])


def main(results: str, picture: str) -> None:
    with open(results, newline="") as file:
        rows = list(csv.DictReader(file))
    figure, axes = pyplot.subplots(1, 3, figsize=(13, 4))
    for axis, (what, draw) in zip(axes, {"draw": drawing, "CTC head": head, "step": step}.items(), strict=True):
        draw(axis, [row for row in rows if row["what"] == what])
    figure.suptitle(rows[0]["machine"])
    figure.tight_layout()
    figure.savefig(picture, dpi=110)


if __name__ == "__main__":
    main(*sys.argv[1:])
