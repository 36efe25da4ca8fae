"""Error rate against steps and against GPU minutes, a picture for each corpus."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no display
import matplotlib.pyplot as plt
import numpy as np
from results import Results
from settings import SETTINGS, Setting

EXACT, STOCK = "black", "tab:gray"
COLOURS = {  # sampler, correction
    ("ctc", True): "tab:blue", ("ctc", False): "tab:green", ("uniform", False): "tab:orange",
    ("unigram", True): "tab:pink", ("unigram", False): "tab:red",
}  # fmt: skip
DASHED = 0.05  # share of the vocabulary up to which a line is dashed


def draw(results: Results, folder: Path) -> list[Path]:
    """Write FOLDER/accuracy_CORPUS.png for each corpus: a line is the mean of a setting's seeds, a band their range.

    Minutes are shown of the settings that are compared in equal time, or of all where there is one of them or none.
    """
    curves = _curves(results)
    paths = []
    for corpus in dict.fromkeys(corpus for corpus, _ in curves):
        settings = {setting: points for (name, setting), points in curves.items() if name == corpus}
        timed = {setting: points for setting, points in settings.items() if SETTINGS[setting].equal_time}
        alone = len(timed) > 1
        figure, (steps, minutes) = plt.subplots(1, 2, figsize=(14, 6), sharey=True, layout="constrained")
        _lines(steps, settings, "steps")
        _lines(minutes, timed if alone else settings, "minutes")
        steps.set(xlabel="step", ylabel="error rate on held-out utterances, %", yscale="log")
        minutes.set(xlabel="GPU minutes of training" if alone else "minutes of training, GPUs shared")
        for formatted in (steps.yaxis.set_major_formatter, steps.yaxis.set_minor_formatter):
            formatted("{x:g}")
        figure.legend(handles=steps.get_lines(), loc="outside right center", fontsize="small")
        figure.suptitle(corpus)
        paths.append(folder / f"accuracy_{corpus}.png")
        figure.savefig(paths[-1], dpi=130)
        plt.close(figure)
    return paths


def _lines(axes, settings: dict[str, _Points], x: str) -> None:
    for setting, points in settings.items():
        style = _style(SETTINGS[setting])
        low, mean, high = (100 * function(points.rates) for function in (_low, _mean, _high))
        axes.plot(getattr(points, x), mean, label=setting, **style)
        axes.fill_between(getattr(points, x), low, high, color=style["color"], alpha=0.12, linewidth=0)
    axes.grid(alpha=0.3, which="both")


def _style(setting: Setting) -> dict:
    """Colour by sampler and correction, dashed where the set is small, another marker where something else differs."""
    sampled = setting.stages[0][1]
    style = {"marker": ".", "linestyle": "-"}
    if setting.dropout is not None:
        style["marker"] = "*"
    elif setting.batch_size is not None:
        style["marker"] = "D"
    if sampled is None:
        return style | {"color": STOCK if setting.stock else EXACT}
    if len(setting.stages) > 1:
        style["marker"] = "^"
    elif sampled["scope"] == "batch":
        style["marker"] = "s"
    elif "floor" in sampled:
        style["marker"] = "x"
    if sampled["n_samples"] <= DASHED:
        style["linestyle"] = "--"
    return style | {"color": COLOURS[sampled["sampler"], sampled["correction"]], "markersize": 5}


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
