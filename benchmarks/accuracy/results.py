"""The results: one CSV of the evaluations, and beside it the errors of every utterance, for confidence intervals.

Merging makes the files of many calls one. A run is taken whole, from the file in which it came furthest.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

UNITS, SPEAKERS = "units", "speakers"
KEY = ["corpus", "setting", "seed", "step"]
COLUMNS = [*KEY, "gpu_minutes", "peak_gib", "error_rate", "coverage"]


@dataclass(frozen=True)
class Evaluation:
    """Of the held-out set after so many steps.

    Attributes:
        gpu_minutes: of training alone, without evaluations, checkpoints and the compilation of kernels.
        peak_gib: of the training steps, over the corpus's features; None on a CPU.
        errors: (N,) int, of each utterance.
        units: (N,) int, words or characters that were said in it.
        speakers: (N,) str, who said it.
        coverage: of the softmax by the candidates; None for an exact loss.
    """

    corpus: str
    setting: str
    seed: int
    step: int
    gpu_minutes: float
    peak_gib: float | None
    errors: np.ndarray
    units: np.ndarray
    speakers: np.ndarray
    coverage: float | None

    @property
    def key(self) -> tuple[str, ...]:
        return self.corpus, self.setting, str(self.seed), str(self.step)

    def row(self) -> dict[str, str]:
        values = [f"{self.gpu_minutes:.3f}", _rounded(self.peak_gib, 2)]
        values += [_rounded(self.errors.sum() / self.units.sum(), 5), _rounded(self.coverage, 4)]
        return dict(zip(COLUMNS, [*self.key, *values], strict=True))


def _rounded(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


class Results:
    """Rows and errors of utterances, read from and written to PATH.csv and PATH.npz.

    Args:
        path: of the CSV, which need not exist.
    Attributes:
        rows: (corpus, setting, seed, step), all str -> row of the CSV.
        errors: the same -> (N,) uint16.
        units: corpus -> (N,) uint16.
        speakers: corpus -> (N,) str.
    """

    def __init__(self, path: Path):
        self.path = path
        self.rows: dict[tuple[str, ...], dict[str, str]] = {}
        self.errors: dict[tuple[str, ...], np.ndarray] = {}
        self.units: dict[str, np.ndarray] = {}
        self.speakers: dict[str, np.ndarray] = {}
        if path.exists():
            with open(path, newline="") as file:
                self.rows = {tuple(row[name] for name in KEY): row for row in csv.DictReader(file)}
            with np.load(path.with_suffix(".npz")) as arrays:
                for name, array in arrays.items():
                    key = tuple(name.split("/"))
                    if key[1:] == (UNITS,):
                        self.units[key[0]] = array
                    elif key[1:] == (SPEAKERS,):
                        self.speakers[key[0]] = array
                    else:
                        self.errors[key] = array

    def add(self, evaluations: Iterable[Evaluation]) -> None:
        for evaluation in evaluations:
            self.rows[evaluation.key] = evaluation.row()
            self.errors[evaluation.key] = evaluation.errors.astype(np.uint16)
            self._set_held_out(evaluation.corpus, evaluation.units.astype(np.uint16), evaluation.speakers)

    def merge(self, other: Results) -> None:
        """Take the runs of another one that came as far as here or further.

        Raises:
            ValueError: another held-out set under the same name.
        """
        for corpus, units in other.units.items():
            self._set_held_out(corpus, units, other.speakers[corpus])
        here, there = self._furthest(), other._furthest()
        taken = {run for run, step in there.items() if step >= here.get(run, 0)}
        for mine, theirs in ((self.rows, other.rows), (self.errors, other.errors)):
            for key in [key for key in mine if key[:3] in taken]:
                del mine[key]
            mine |= {key: value for key, value in theirs.items() if key[:3] in taken}

    def _furthest(self) -> dict[tuple[str, ...], int]:
        """Run -> its last step."""
        last: dict[tuple[str, ...], int] = {}
        for key in self.rows:
            last[key[:3]] = max(last.get(key[:3], 0), int(key[3]))
        return last

    def _set_held_out(self, corpus: str, units: np.ndarray, speakers: np.ndarray) -> None:
        same = np.array_equal(self.units.setdefault(corpus, units), units)
        if not same or not np.array_equal(self.speakers.setdefault(corpus, speakers), speakers):
            raise ValueError(
                f"the results hold another held-out set under the name {corpus}: give the corpus's folder another name"
            )

    def write(self) -> None:
        """Both files, each complete at any time."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        with open(partial, "w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(self.rows[key] for key in sorted(self.rows, key=_order))
        arrays = {"/".join(key): array for key, array in self.errors.items()}
        arrays |= {f"{corpus}/{UNITS}": array for corpus, array in self.units.items()}
        arrays |= {f"{corpus}/{SPEAKERS}": array for corpus, array in self.speakers.items()}
        with open(partial.with_suffix(".npz.partial"), "wb") as file:
            np.savez_compressed(file, **arrays)
        os.replace(partial.with_suffix(".npz.partial"), self.path.with_suffix(".npz"))
        os.replace(partial, self.path)


def _order(key: tuple[str, ...]) -> tuple:
    corpus, setting, seed, step = key
    return corpus, setting, int(seed), int(step)
