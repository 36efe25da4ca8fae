"""The results: one CSV of the evaluations, and beside it the errors of every utterance, for confidence intervals.

Merging replaces a row of the same corpus, setting, seed and step, so the files of many calls become one.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

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
    """

    def __init__(self, path: Path):
        self.path = path
        self.rows: dict[tuple[str, ...], dict[str, str]] = {}
        self.errors: dict[tuple[str, ...], np.ndarray] = {}
        self.units: dict[str, np.ndarray] = {}
        if path.exists():
            with open(path, newline="") as file:
                self.rows = {tuple(row[name] for name in KEY): row for row in csv.DictReader(file)}
            with np.load(path.with_suffix(".npz")) as arrays:
                for name, array in arrays.items():
                    key = tuple(name.split("/"))
                    if len(key) == 1:
                        self.units[name] = array
                    else:
                        self.errors[key] = array

    def add(self, evaluations: Iterable[Evaluation]) -> None:
        for evaluation in evaluations:
            self.rows[evaluation.key] = evaluation.row()
            self.errors[evaluation.key] = evaluation.errors.astype(np.uint16)
            self._set_units(evaluation.corpus, evaluation.units.astype(np.uint16))

    def merge(self, other: Results) -> None:
        """Take what another one holds.

        Raises:
            ValueError: another held-out set under the same name.
        """
        for corpus, units in other.units.items():
            self._set_units(corpus, units)
        self.rows |= other.rows
        self.errors |= other.errors

    def _set_units(self, corpus: str, units: np.ndarray) -> None:
        if not np.array_equal(self.units.setdefault(corpus, units), units):
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
        arrays = self.units | {"/".join(key): array for key, array in self.errors.items()}
        with open(partial.with_suffix(".npz.partial"), "wb") as file:
            np.savez_compressed(file, **arrays)
        os.replace(partial.with_suffix(".npz.partial"), self.path.with_suffix(".npz"))
        os.replace(partial, self.path)


def _order(key: tuple[str, ...]) -> tuple:
    corpus, setting, seed, step = key
    return corpus, setting, int(seed), int(step)
