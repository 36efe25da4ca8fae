"""Word or character errors of recognised text."""

from __future__ import annotations

from dataclasses import dataclass

import kaldialign


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
        """95 % confidence interval of the error rate, percent."""
        result = kaldialign.bootstrap_wer_ci(self.references, self.hypotheses)
        return 100 * result["ci95min"], 100 * result["ci95max"]

    def better_than(self, other: Errors) -> float:
        """Share of the bootstrap's samples in which this model makes fewer errors."""
        result = kaldialign.bootstrap_wer_ci(self.references, other.hypotheses, self.hypotheses)
        return result["p_s2_improv_over_s1"]
