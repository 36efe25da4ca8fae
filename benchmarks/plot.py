"""Time and memory of joint and loss against the size of the vocabulary.

    python benchmarks/plot.py benchmarks/results/loss_h200.csv benchmarks/results/loss_h200.png

Where workloads share a vocabulary the one with more lattice cells is shown; ours in 256 MiB, and of the settings of
another the fastest.
"""

from __future__ import annotations

import csv
import sys

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402 - the backend comes first
from table import measured  # noqa: E402
from workloads import WORKLOADS  # noqa: E402

LABELS = {
    "nemo_full": "NeMo RNNTJoint",
    "flash_rnnt": "flash_rnnt",
    "exact": "ours, exact",
    "nemo_sampled": "NeMo SampledRNNTJoint",
    "sampled": "ours, sampled (batch)",
    "sampled_utterance": "ours, sampled (utterance)",
    "floor": "matrix products alone",
}
COLOURS = ["tab:red", "tab:orange", "tab:blue", "tab:brown", "tab:green", "tab:olive", "black"]


def curve(rows: list[dict], implementation: str, shown: set[str]) -> list[dict]:
    """The fastest row of an implementation for each vocabulary, ascending."""
    best: dict[int, dict] = {}
    for row in rows:
        comparable = measured(row) and row["workspace_mib"] in ("", "256")
        if row["implementation"] == implementation and row["workload"] in shown and comparable:
            vocabulary = WORKLOADS[row["workload"]].vocabulary
            if vocabulary not in best or float(row["median_ms"]) < float(best[vocabulary]["median_ms"]):
                best[vocabulary] = row
    return [best[vocabulary] for vocabulary in sorted(best)]


def largest_of_each_vocabulary(rows: list[dict]) -> set[str]:
    largest: dict[int, str] = {}
    for name in sorted({row["workload"] for row in rows}, key=lambda name: WORKLOADS[name].cells):
        largest[WORKLOADS[name].vocabulary] = name
    return set(largest.values())


def plot(rows: list[dict], path: str) -> None:
    figure, (time, memory) = pyplot.subplots(1, 2, figsize=(11, 5), layout="constrained")
    shown = largest_of_each_vocabulary(rows)
    for (implementation, label), colour in zip(LABELS.items(), COLOURS, strict=True):
        points = curve(rows, implementation, shown)
        style = {"label": label, "color": colour, "marker": "o", "linestyle": ":" if colour == "black" else "-"}
        for axes, value in ((time, _nanoseconds_a_cell), (memory, _mib)):
            values = [(WORKLOADS[row["workload"]].vocabulary, value(row)) for row in points if value(row)]
            if values:
                axes.plot(*zip(*values, strict=True), **style)
    for axes, what in ((time, "time, ns per lattice cell"), (memory, "peak beside inputs and gradients, MiB")):
        axes.set(xscale="log", yscale="log", xlabel="vocabulary V", ylabel=what)
        axes.grid(alpha=0.3)
    figure.legend(*time.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.suptitle(f"Joint and transducer loss, forward and backward: {rows[0]['machine']}, {rows[0]['dtype']}")
    figure.savefig(path, dpi=150)


def _nanoseconds_a_cell(row: dict) -> float:
    return 1e6 * float(row["median_ms"]) / WORKLOADS[row["workload"]].cells


def _mib(row: dict) -> float | None:
    return float(row["peak_mib"]) if row["peak_mib"] else None


if __name__ == "__main__":
    with open(sys.argv[1], newline="") as file:
        plot(list(csv.DictReader(file)), sys.argv[2])
