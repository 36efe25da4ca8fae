"""Error rate against steps and against GPU minutes, a picture for each corpus."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no display
import matplotlib.pyplot as plt
import numpy as np
from results import Results


def draw(results: Results, folder: Path) -> list[Path]:
    """Write FOLDER/accuracy_CORPUS.png for each corpus: a line is the mean of a setting's seeds, a band their range."""
    curves = _curves(results)
    paths = []
    for corpus in dict.fromkeys(corpus for corpus, _ in curves):
        figure, (steps, minutes) = plt.subplots(1, 2, figsize=(13, 5), sharey=True, layout="constrained")
        settings = {setting: points for (name, setting), points in curves.items() if name == corpus}
        for index, (setting, points) in enumerate(settings.items()):
            style = {"color": plt.get_cmap("tab20")(index % 20), "label": setting}
            low, mean, high = (100 * function(points.rates) for function in (_low, _mean, _high))
            for axes, x in ((steps, points.steps), (minutes, points.minutes)):
                axes.plot(x, mean, marker=".", **style)
                axes.fill_between(x, low, high, color=style["color"], alpha=0.15, linewidth=0)
        steps.set(xlabel="step", ylabel="error rate on held-out utterances, %", yscale="log")
        minutes.set(xlabel="GPU minutes of training")
        for formatted in (steps.yaxis.set_major_formatter, steps.yaxis.set_minor_formatter):
            formatted("{x:g}")
        for axes in (steps, minutes):
            axes.grid(alpha=0.3, which="both")
        steps.legend(fontsize="small")
        figure.suptitle(corpus)
        paths.append(folder / f"accuracy_{corpus}.png")
        figure.savefig(paths[-1], dpi=130)
        plt.close(figure)
    return paths


class _Points:
    """Of a setting: steps as far as most of its seeds came, and of those seeds the mean minutes and the rates."""

    def __init__(self, runs: list[dict[int, tuple[float, float]]]):
        ends = sorted((max(run) for run in runs), reverse=True)
        end = ends[len(ends) // 2]
        runs = [run for run in runs if max(run) >= end]
        self.steps = sorted(step for step in set.intersection(*map(set, runs)) if step <= end)
        self.minutes = [np.mean([run[step][0] for run in runs]) for step in self.steps]
        self.rates = [[run[step][1] for run in runs] for step in self.steps]


def _curves(results: Results) -> dict[tuple[str, str], _Points]:
    curves = defaultdict(lambda: defaultdict(dict))
    for (corpus, setting, seed, step), row in results.rows.items():
        curves[corpus, setting][seed][int(step)] = float(row["gpu_minutes"]), float(row["error_rate"])
    return {key: _Points(list(runs.values())) for key, runs in curves.items()}


def _low(rates):
    return np.array([min(x) for x in rates])


def _mean(rates):
    return np.array([np.mean(x) for x in rates])


def _high(rates):
    return np.array([max(x) for x in rates])
