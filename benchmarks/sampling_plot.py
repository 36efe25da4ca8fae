"""Coverage, loss gap and gradient cosine against the number of candidates: blank, labels and negatives.

python benchmarks/sampling_plot.py benchmarks/results/sampling_sweep.csv docs/sampling_sweep.png
"""

from __future__ import annotations

import csv
import sys

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot, ticker  # noqa: E402 - the backend comes first

COLOURS = {
    ("uniform", "mean"): "tab:gray",
    ("unigram", "mean"): "tab:orange",
    ("ctc", "mean"): "tab:blue",
    ("ctc", "nonblank"): "tab:green",
    ("ctc", "max"): "tab:purple",
}
FLOOR = "0.01"  # the default's lines; others are in the table
PANELS = (  # title, column, correction, what stands on the axis
    ("covered", "negative_coverage", "False", "share of the exact softmax beside blank and labels"),
    ("loss, not corrected", "loss_gap", "False", "sampled / exact loss - 1"),
    ("gradient, not corrected", "cosine", "False", "cosine with the exact gradient at the hidden"),
    ("gradient, corrected", "cosine", "True", "cosine with the exact gradient at the hidden"),
)


def plot(rows: list[dict], path: str) -> None:
    """A line for each sampler; dashed where the batch shares one set."""
    figure, axes = pyplot.subplots(2, 2, figsize=(11, 8.5), sharex=True, layout="constrained")
    for (title, column, correction, what), panel in zip(PANELS, axes.flat, strict=True):
        for (sampler, weights), colour in COLOURS.items():
            for scope, line in (("utterance", "-"), ("batch", "--")):
                wanted = {"sampler": sampler, "frame_weights": weights, "scope": scope, "correction": correction}
                points = [
                    (float(row["candidates"]), float(row[column]))
                    for row in rows
                    if wanted.items() <= row.items() and row.get("floor", FLOOR) == FLOOR
                ]
                if points:
                    name = sampler if sampler != "ctc" else f"ctc, {weights}"
                    panel.plot(
                        *zip(*sorted(points), strict=True), line, marker=".", color=colour, label=f"{name}, {scope}"
                    )
        panel.set(title=title, ylabel=what, xscale="log")
        panel.grid(alpha=0.3)
    axes[0, 0].xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes[0, 0].xaxis.set_major_formatter("{x:g}")
    axes[0, 0].xaxis.set_minor_formatter("")
    for panel in axes[1]:
        panel.set_xlabel("candidates")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", fontsize="small", ncols=5)
    one = rows[0]
    figure.suptitle(
        f"{one['model']}: V = {one['vocabulary']}, {one['utterances']} held-out utterances, {one['machine']}"
    )
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


if __name__ == "__main__":
    with open(sys.argv[1], newline="") as file:
        plot(list(csv.DictReader(file)), sys.argv[2])
