"""Word or character errors of recognised text."""

from __future__ import annotations

import math
from dataclasses import dataclass

import kaldialign
import numpy as np

SAMPLES = 10000  # of the bootstrap


@dataclass
class Errors:
    """Of one model on one manifest.

    Attributes:
        references, hypotheses: words or characters of each utterance.
    """

    references: list
    hypotheses: list

    def counts(self) -> dict[str, int]:
        """Substitutions, deletions, insertions, and the length of the references."""
        each = [kaldialign.edit_distance(*pair) for pair in zip(self.references, self.hypotheses, strict=True)]
        counts = {kind: sum(errors[kind] for errors in each) for kind in ("sub", "del", "ins")}
        return counts | {"length": sum(map(len, self.references))}

    def interval(self) -> tuple[float, float]:
        """95 % confidence interval of the error rate, percent; NaN if the references are empty."""
        result = kaldialign.bootstrap_wer_ci(self.references, self.hypotheses, replications=SAMPLES)
        if math.isfinite(result["wer"]):
            return 100 * result["ci95min"], 100 * result["ci95max"]
        # A sample of empty references only has no error rate: here the same bootstrap without such samples.
        lengths = np.array([len(reference) for reference in self.references])
        if not lengths.any():
            return math.nan, math.nan
        pairs = zip(self.references, self.hypotheses, strict=True)
        errors = np.array([kaldialign.edit_distance(*pair)["total"] for pair in pairs])
        random, rates = np.random.default_rng(0), []
        for _ in range(SAMPLES):
            sample = random.integers(len(lengths), size=len(lengths))
            if lengths[sample].any():
                rates.append(errors[sample].sum() / lengths[sample].sum())
        mean, half = float(np.mean(rates)), 1.96 * float(np.std(rates))
        return 100 * (mean - half), 100 * (mean + half)

    def better_than(self, other: Errors) -> float:
        """Share of the bootstrap's samples in which this model makes fewer errors."""
        result = kaldialign.bootstrap_wer_ci(self.references, other.hypotheses, self.hypotheses)
        return result["p_s2_improv_over_s1"]
