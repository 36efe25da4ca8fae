"""What to change where the sample is poor: the size that would do, in words."""

from __future__ import annotations

import math

import torch

from nemo_sampled_rnnt.meter.measure import Measurement
from nemo_sampled_rnnt.sampling import SampledSoftmax

POOR, GOOD = 0.9, 0.95  # of the exact softmax: below the first there is advice, which aims at the second
PATIENCE = 3  # measurements: one is of one utterance, and a model that has learnt nothing yet has no likely labels
ROUNDS = 60  # of bisection


@torch.no_grad()
def needed_size(
    softmax: torch.Tensor, log_weights: torch.Tensor, positives: torch.Tensor, share: float = GOOD
) -> int | None:
    """Negatives to draw so that the candidates are expected to cover `share` of the exact softmax.

        q_j = 1 - exp(-p_j / c)      coverage(c) = sum of softmax over blank and positives + sum_j q_j softmax_j
                                     size(c) = sum_j q_j

    with p the sampler's distribution without the positives: q are the inclusion probabilities of Gumbel top-k at the
    threshold log c, and c is found by bisection.

    Args:
        softmax: (V+1,) float, mean exact softmax, blank last.
        log_weights: (V,) float, of the sampler.
        positives: (V,) bool, labels that are candidates anyhow.
        share: of the softmax, in (0, 1).
    Returns:
        The size; 0 where the positives are enough, None where no size is (labels that are never drawn have too much).
    Approximate: the number drawn at a threshold is random, its expectation is taken for it.
    Source: ours.
    """
    softmax = softmax.double()
    labels = softmax[:-1].masked_fill(positives, 0)
    p = log_weights.double().masked_fill(positives, -math.inf).softmax(dim=0)
    certain = 1 - labels.sum()
    if not certain + labels[p > 0].sum() >= share:
        return None
    low, high = p.new_tensor(-60.0), 40 - p[p > 0].log().min()  # of -log c: nothing is drawn, and everything
    for _ in range(ROUNDS):
        middle = (low + high) / 2
        enough = certain - (labels * torch.expm1(-p * middle.exp())).sum() >= share
        low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
    return math.ceil(-torch.expm1(-p * high.exp()).sum().item() - 1e-6)


class Adviser:
    """Says what to change when measurements stay poor; once, until they were good again.

    Args:
        config: of the joint.
        vocab_size: V.
    """

    def __init__(self, config: SampledSoftmax, vocab_size: int):
        self.config, self.vocab_size = config, vocab_size
        self._poor: list[tuple[Measurement, int | None, int]] = []
        self._said = False

    def __call__(self, measurement: Measurement, log_weights: torch.Tensor, positives: torch.Tensor) -> str | None:
        """Advice, or None: the sample is good, or was before, or the same was said.

        Args:
            measurement: the newest.
            log_weights, positives: (V,) of its set, as in :func:`needed_size`.
        """
        if measurement.coverage >= POOR:
            self._poor, self._said = [], False
            return None
        needed = needed_size(measurement.softmax, log_weights, positives)
        self._poor = [*self._poor, (measurement, needed, 1 + int(positives.sum()))][-PATIENCE:]
        if len(self._poor) < PATIENCE or self._said:
            return None
        self._said = True
        return self._words()

    def _words(self) -> str:
        measurements, sizes, _ = zip(*self._poor, strict=True)
        coverage, cosine = (
            sum(getattr(m, x) for m in measurements) / len(measurements) for x in ("coverage", "cosine")
        )
        needed = None if None in sizes else max(sizes)
        problem = (
            f"the candidates cover {100 * coverage:.0f} % of the exact softmax (gradient cosine {cosine:.2f}, last "
            f"{len(measurements)} measurements): "
        )
        if needed is None:
            return problem + "no n_samples is enough, since the sampler never draws labels that are likely: raise floor"
        if needed >= self.vocab_size / 2:
            other = "sampler: ctc, or " if self.config.sampler != "ctc" else ""
            return problem + f"{needed:,} of {self.vocab_size:,} labels would be needed: use {other}the exact loss"
        if self.config.auto:
            factor = max((n + p) / m.candidates for m, n, p in self._poor)
            return problem + f"raise max_logits above {_rounded(self.config.max_logits * factor):,}"
        return problem + f"raise n_samples above {_rounded(needed):,}"


def _rounded(size: float) -> int:
    """Up to two digits that count: 871 becomes 880."""
    step = 10 ** max(0, math.floor(math.log10(max(size, 1))) - 1)
    return math.ceil(size / step) * step
