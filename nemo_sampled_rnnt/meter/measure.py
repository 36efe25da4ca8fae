"""One measurement: the sampled softmax of one utterance beside the exact one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from nemo_sampled_rnnt.loss.recursion import arc_posteriors
from nemo_sampled_rnnt.meter.lattice import LatticeScores, Utterance, score

DRAWN = 1024  # cells


@dataclass(frozen=True)
class Measurement:
    """Means over lattice cells, each weighted by its occupancy: the exact probability that an alignment visits it.

    Attributes:
        coverage: share of the exact softmax that falls on the candidates.
        gap: sampled less exact log-sum-exp, nats; at most 0.
        corrected_gap: corrected less exact log-sum-exp, nats; None where inclusion probabilities are not known.
        cosine: between the gradients of the training loss and of the exact loss at the hidden of a cell.
        exact_loss, sampled_loss: -log P(y), of the vocabulary and as training computes it.
        candidates: in the set.
        softmax: (V+1,) mean exact softmax, on the device, which advice is made from.
    """

    coverage: float
    gap: float
    corrected_gap: float | None
    cosine: float
    exact_loss: float
    sampled_loss: float
    candidates: int
    softmax: torch.Tensor

    def logs(self, prefix: str = "meter_") -> dict[str, float]:
        """The numbers by name, for loggers."""
        names = ("coverage", "gap", "corrected_gap", "cosine", "exact_loss", "sampled_loss", "candidates")
        values = {f"{prefix}{name}": getattr(self, name) for name in names}
        return {name: float(value) for name, value in values.items() if value is not None}


@torch.no_grad()
def measure(utterance: Utterance, corrected: bool, cells: int = DRAWN, seed: int = 0) -> Measurement | None:
    """Measure one utterance.

        g[t,u] = sum_k dz_k[t,u] w_k        dz_k = occ p(k) - [k = blank] gamma_blank - [k = y] gamma_label

    once with the exact softmax and alignment, once with those of the training loss. Coverage and gaps are means over
    all cells, weighted by exact occupancy; cosine and softmax are over `cells` cells drawn by it.

    Args:
        utterance: projections and candidates.
        corrected: training corrects the scores by the inclusion probabilities, which are then needed.
        cells: to draw, by systematic sampling.
        seed: of the draw.
    Returns:
        The measurement, or None where the exact loss is not finite.
    Memory: CELLS x COLUMNS logits at a time, a few numbers for each cell. Waits for the device.
    Exact but for the draw of the cells. Dropout is left out.
    Source: ours.
    """
    scores = score(utterance)
    exact = _align(scores, scores.exact)
    training = _align(scores, scores.corrected if corrected else scores.sampled)
    if not (np.isfinite(exact.loss) and np.isfinite(training.loss)):
        return None
    occupancy = torch.from_numpy(exact.occupancy).to(scores.exact.device)
    weight = occupancy / occupancy.sum()

    drawn = torch.from_numpy(_drawn(exact.occupancy, cells, seed)).to(scores.exact.device)
    cosine, softmax = _gradients(utterance, scores, exact, training, drawn, corrected)
    return Measurement(
        coverage=_mean(scores.coverage, weight),
        gap=_mean(scores.sampled - scores.exact, weight),
        corrected_gap=None if scores.corrected is None else _mean(scores.corrected - scores.exact, weight),
        cosine=cosine,
        exact_loss=exact.loss,
        sampled_loss=training.loss,
        candidates=len(utterance.ids),
        softmax=softmax,
    )


@dataclass(frozen=True)
class _Alignment:
    """Loss, and (T, U+1) float64 posteriors of each cell's two arcs."""

    loss: float
    by_blank: np.ndarray
    by_label: np.ndarray

    @property
    def occupancy(self) -> np.ndarray:
        return self.by_blank + self.by_label


def _align(scores: LatticeScores, normaliser: torch.Tensor) -> _Alignment:
    """Forward and backward variables, on the CPU: a few numbers for each cell."""
    log_blank, log_label = ((x - normaliser).double().cpu().numpy() for x in (scores.blank, scores.label))
    by_blank, by_label = np.zeros(log_blank.shape), np.zeros(log_blank.shape)
    likelihood = arc_posteriors(log_blank, log_label, by_blank, by_label)
    return _Alignment(-likelihood, by_blank, by_label)


def _drawn(occupancy: np.ndarray, cells: int, seed: int) -> np.ndarray:
    """(n,) int64 cells, each as often as its share of the occupancy says, up to rounding."""
    total = occupancy.ravel().cumsum()
    places = (np.arange(cells) + np.random.default_rng(seed).random()) / cells * total[-1]
    return np.minimum(np.searchsorted(total, places, side="right"), total.size - 1)


def _mean(values: torch.Tensor, weight: torch.Tensor) -> float:
    """Cells that no alignment visits may hold anything."""
    return torch.where(weight > 0, values.double() * weight, 0).sum().item()


def _gradients(utterance: Utterance, scores: LatticeScores, exact, training, drawn, corrected: bool):
    """Mean cosine of the two gradients at the hidden, and (V+1,) mean exact softmax, over the drawn cells."""
    blank, width = len(utterance.weight) - 1, utterance.shape[1]
    wide, compute = scores.exact.dtype, utterance.encoder.dtype
    place = torch.nn.functional.pad(utterance.place, (0, 1), value=0)
    label = torch.nn.functional.pad(utterance.labels, (0, 1), value=blank)
    arcs = [
        torch.from_numpy(x).to(drawn.device, wide).flatten()
        for a in (exact, training)
        for x in (a.by_blank, a.by_label)
    ]
    normaliser = scores.corrected if corrected else scores.sampled
    candidate_rows = utterance.weight[utterance.ids].to(compute)
    softmax, cosines = utterance.bias.new_zeros(blank + 1, dtype=wide), []
    for cells in utterance.blocks(drawn):
        hidden = utterance.hidden(cells)
        by_blank, by_label, their_blank, their_label = (x[cells, None] for x in arcs)
        gradient = torch.zeros_like(hidden, dtype=wide)
        for rows in utterance.stretches():
            p = (utterance.scores(hidden, rows) - scores.exact.flatten()[cells, None]).exp()
            softmax[rows] += p.sum(dim=0)
            gradient += (p.to(compute) @ utterance.weight[rows].to(compute)).to(wide)
        gradient *= by_blank + by_label
        gradient -= by_blank * utterance.weight[blank].to(wide)
        gradient -= by_label * utterance.weight[label[cells % width]].to(wide)

        logits = utterance.scores(hidden, utterance.ids)
        if corrected:
            logits = logits - utterance.log_q
        p = (logits - normaliser.flatten()[cells, None]).exp() * (their_blank + their_label)
        p[:, :1] -= their_blank
        p.scatter_add_(1, place[cells % width, None], -their_label)
        theirs = (p.to(compute) @ candidate_rows).to(wide)
        cosines.append(torch.nn.functional.cosine_similarity(gradient, theirs, dim=1, eps=1e-30))
    return torch.cat(cosines).mean().item(), softmax / len(drawn)
