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
    """Of a setting: steps that all of its seeds have reached, minutes (mean of the seeds), and rates by seed."""

    def __init__(self, by_step: dict[int, list[tuple[float, float]]]):
        seeds = max(map(len, by_step.values()))
        self.steps = sorted(step for step, found in by_step.items() if len(found) == seeds)
        self.minutes = [np.mean([minutes for minutes, _ in by_step[step]]) for step in self.steps]
        self.rates = [[rate for _, rate in by_step[step]] for step in self.steps]


def _curves(results: Results) -> dict[tuple[str, str], _Points]:
    curves = defaultdict(lambda: defaultdict(list))
    for (corpus, setting, _, step), row in results.rows.items():
        curves[corpus, setting][int(step)].append((float(row["gpu_minutes"]), float(row["error_rate"])))
    return {key: _Points(by_step) for key, by_step in curves.items()}


def _low(rates):
    return np.array([min(x) for x in rates])


def _mean(rates):
    return np.array([np.mean(x) for x in rates])


def _high(rates):
    return np.array([max(x) for x in rates])
