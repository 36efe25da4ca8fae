"""What to change where the sample is poor: the size that would do, found by trial, in words."""

from __future__ import annotations

import math

import torch

from nemo_sampled_rnnt.meter.measure import Exact, Measurement
from nemo_sampled_rnnt.meter.utterance import CandidateSet
from nemo_sampled_rnnt.sampling import SampledSoftmax, draw_without_replacement

POOR, GOOD = 0.8, 0.9  # cosine with the exact gradient: below the first there is advice, which aims at the second
PATIENCE = 3  # measurements in a row: one is of one utterance
DRAWS = 3  # of each size that is tried
LARGEST = 16_384  # negatives that are tried at most


@torch.no_grad()
def sufficient_size(
    exact: Exact, log_weights: torch.Tensor, positives: torch.Tensor, corrected: bool, size: int, seed: int = 0
) -> int | None:
    """Negatives with which the gradient's cosine would be GOOD, a mean over some draws: doubled, then halved.

    Args:
        exact: the utterance.
        log_weights: (V,) float, of the sampler.
        positives: (V,) bool, labels that are candidates anyhow.
        corrected: as in training.
        size: too few, >= 1.
        seed: of the draws.
    Returns:
        A size that is enough where a tenth less is not, or None: half the vocabulary, or LARGEST, is not enough.
    Approximate: of one utterance, and of some draws.
    Source: ours.
    """
    most = min(LARGEST, len(positives) // 2)
    generator = torch.Generator(device=log_weights.device).manual_seed(seed)

    def enough(size: int) -> bool:
        ids, log_q = draw_without_replacement(
            log_weights.expand(DRAWS, -1), size, positives.expand(DRAWS, -1), generator
        )
        utterance = exact.utterance
        sets = [
            CandidateSet.of_draw(utterance.labels, positives, i, q, utterance.blank)
            for i, q in zip(ids, log_q, strict=True)
        ]
        measured = [exact.compare(candidates, corrected) for candidates in sets]
        return all(m is not None for m in measured) and sum(m.cosine for m in measured) >= GOOD * DRAWS

    low, high = size, min(2 * size, most)
    while not enough(high):
        if high >= most:
            return None
        low, high = high, min(2 * high, most)
    while high > 1.1 * low + 1:
        middle = math.ceil(math.sqrt(low * high))
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


class Adviser:
    """Says what to change when measurements stay poor; once, until one is good again.

    Args:
        config: of the joint.
        vocab_size: V.
    """

    def __init__(self, config: SampledSoftmax, vocab_size: int):
        self.config, self.vocab_size = config, vocab_size
        self._poor = 0  # measurements in a row

    def __call__(
        self, measurement: Measurement, exact: Exact, log_weights: torch.Tensor, positives: torch.Tensor
    ) -> str | None:
        """Advice, or None: the sample is good, or has not been poor for long, or it was said.

        Args:
            measurement: the newest.
            exact, log_weights, positives: of its utterance, as in :func:`sufficient_size`.
        """
        self._poor = self._poor + 1 if measurement.cosine < POOR else 0
        if self._poor != PATIENCE:
            return None
        known = 1 + int(positives.sum())
        size = sufficient_size(
            exact, log_weights, positives, self.config.corrects, max(1, measurement.candidates - known)
        )
        return (
            f"the candidates cover {100 * measurement.coverage:.1f} % of the exact softmax "
            f"({100 * measurement.negative_coverage:.0f} % of what blank and labels leave), and the cosine between the "
            f"gradient and the exact one is {measurement.cosine:.2f}, below {POOR} for {PATIENCE} measurements: "
            + self._what_to_do(size, (known + (size or 0)) / measurement.candidates)
        )

    def _what_to_do(self, size: int | None, factor: float) -> str:
        if size is None:
            other = "" if self.config.sampler == "ctc" else "set sampler to ctc, or "
            return f"{min(LARGEST, self.vocab_size // 2):,} negatives would not be enough; {other}train exactly"
        if self.config.auto:
            return f"raise max_logits above {rounded(factor * self.config.max_logits):,}"
        return f"raise n_samples above {rounded(size):,}"


def rounded(size: float) -> int:
    """Up to two digits that count: 871 becomes 880."""
    step = 10 ** max(0, math.floor(math.log10(size)) - 1)
    return math.ceil(size / step) * step
