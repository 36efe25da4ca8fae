"""The sampled softmax of one utterance beside the exact one.

    g[t,u] = sum_k dz_k[t,u] w_k        dz_k = occ p(k) - [k = blank] gamma_blank - [k = y] gamma_label

is the gradient at the hidden of a cell, with softmax p, occupancy occ and arc posteriors gamma either exact or those of
the training loss. What is exact is computed once, and any number of candidate sets compared with it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np
import torch

from nemo_sampled_rnnt.loss.recursion import arc_posteriors
from nemo_sampled_rnnt.meter.utterance import CandidateSet, Utterance

DRAWN = 1024  # cells
EVENLY = 0.25  # of these are drawn from all cells alike: training may visit some that the exact alignment does not


@dataclass(frozen=True)
class Measurement:
    """Means over lattice cells, each weighted by its exact occupancy, the probability that an alignment visits it.

    Attributes:
        coverage: share of the exact softmax that falls on the candidates.
        negative_coverage: the same of what does not fall on blank and the labels; 1 where all of it does.
        gap: sampled less exact log-sum-exp, nats; at most 0.
        corrected_gap: corrected less exact log-sum-exp, nats; None where inclusion probabilities are not known.
        cosine: between the gradients of the training loss and of the exact loss at the hidden of all cells together.
        cell_cosine: mean of that between the gradients at a cell; cells with next to no gradient count as much.
        exact_loss, sampled_loss: -log P(y), of the vocabulary and as training computes it.
        candidates: in the set.
    """

    coverage: float
    negative_coverage: float
    gap: float
    corrected_gap: float | None
    cosine: float
    cell_cosine: float
    exact_loss: float
    sampled_loss: float
    candidates: int

    def logs(self, prefix: str = "meter_") -> dict[str, float]:
        """The numbers by name, for loggers."""
        return {f"{prefix}{name}": float(value) for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Alignment:
    """Loss, and (T, U+1) float64 posteriors of each cell's two arcs, on the CPU."""

    loss: float
    by_blank: np.ndarray
    by_label: np.ndarray

    @classmethod
    def of(cls, blank: torch.Tensor, label: torch.Tensor, normaliser: torch.Tensor, shape) -> Alignment:
        """By forward and backward variables, from (T (U+1),) scores of blank and next label, and log-sum-exps."""
        log_blank, log_label = ((x - normaliser).double().view(shape).cpu().numpy() for x in (blank, label))
        by_blank, by_label = np.zeros(shape), np.zeros(shape)
        return cls(-arc_posteriors(log_blank, log_label, by_blank, by_label), by_blank, by_label)

    @property
    def occupancy(self) -> np.ndarray:
        return self.by_blank + self.by_label

    def arcs(self, cells: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """(n, 1) posteriors of blank and label at some cells, where those are."""
        return tuple(
            torch.from_numpy(x.ravel()).to(cells.device, dtype)[cells, None] for x in (self.by_blank, self.by_label)
        )


class Exact:
    """The exact loss of one utterance, its alignment, and its gradient at some cells.

    Args:
        utterance: projections and output layer.
        cells: to draw for gradients, by occupancy and a few from all alike; all where there are no more.
        seed: of that draw.
    Attributes:
        loss: -log P(y).
        finite: it is; nothing else may be asked for where it is not.
        cells: (n,) int64, those drawn.
    Memory: CELLS x COLUMNS logits at a time, a few numbers for each cell, H for each drawn one. Waits for the device.
    Exact. Dropout is left out.
    """

    @torch.no_grad()
    def __init__(self, utterance: Utterance, cells: int = DRAWN, seed: int = 0):
        self.utterance = utterance
        everything = utterance.cells()
        label_rows = utterance.next_label(utterance.labels, utterance.blank, everything)
        blank, label = [], []
        for block, hidden in utterance.blocks(everything):
            rows = torch.cat([utterance.labels.unique(), utterance.labels.new_full((1,), utterance.blank)])
            scores = utterance.scores(hidden, rows)
            blank.append(scores[:, -1])
            label.append(scores.gather(1, torch.searchsorted(rows, label_rows[block])[:, None])[:, 0])
        self.blank, self.label = torch.cat(blank), torch.cat(label)
        self.log_sum_exp = utterance.log_sum_exp()
        self.alignment = Alignment.of(self.blank, self.label, self.log_sum_exp, utterance.shape)
        self.loss = self.alignment.loss
        self.finite = bool(np.isfinite(self.loss))
        if self.finite:
            occupancy = self.alignment.occupancy.ravel()
            self._weight = torch.from_numpy(occupancy / occupancy.sum()).to(everything.device)
            chosen, weight = draw_cells(occupancy, cells, seed)
            self.cells, self._cell_weight = (torch.from_numpy(x).to(everything.device) for x in (chosen, weight))

    def mean(self, values: torch.Tensor) -> float:
        """Of (T (U+1),) values, by occupancy; cells that no alignment visits may hold anything."""
        return torch.where(self._weight > 0, values.double() * self._weight, 0).sum().item()

    @cached_property
    def gradient(self) -> torch.Tensor:
        """(n, H) at the drawn cells."""
        return self._gradient_and_softmax[0]

    @cached_property
    def softmax(self) -> torch.Tensor:
        """(V+1,) mean by occupancy, from the drawn cells."""
        return self._gradient_and_softmax[1]

    @cached_property
    @torch.no_grad()
    def _gradient_and_softmax(self):
        utterance, dtype = self.utterance, self.utterance.dtype
        softmax, gradients = utterance.bias.new_zeros(len(utterance.bias), dtype=dtype), []
        shares = self._drawn_occupancy().to(dtype).split([len(x) for x, _ in utterance.blocks(self.cells)])
        for (cells, hidden), share in zip(utterance.blocks(self.cells), shares, strict=True):
            by_blank, by_label = self.alignment.arcs(cells, dtype)
            gradient = torch.zeros_like(hidden, dtype=dtype)
            for rows in utterance.stretches():
                p = (utterance.scores(hidden, rows) - self.log_sum_exp[cells, None]).exp()
                softmax[rows] += share @ p
                gradient += (p.to(hidden.dtype) @ utterance.rows(rows)).to(dtype)
            gradient *= by_blank + by_label
            gradient -= by_blank * utterance.weight[utterance.blank].to(dtype)
            label = utterance.next_label(utterance.labels, utterance.blank, cells)
            gradients.append(gradient - by_label * utterance.weight[label].to(dtype))
        return torch.cat(gradients), softmax

    def _drawn_occupancy(self) -> torch.Tensor:
        """(n,) float64, of the drawn cells, weighted for how they were drawn; it sums to 1."""
        occupancy = self._cell_weight * sum(self.alignment.arcs(self.cells, torch.float64))[:, 0]
        return occupancy / occupancy.sum()

    @torch.no_grad()
    def compare(self, candidates: CandidateSet, corrected: bool) -> Measurement | None:
        """Measure a candidate set.

        Args:
            candidates: the set.
            corrected: training corrects the scores by the inclusion probabilities, which are then needed.
        Returns:
            The measurement, or None where the training loss is not finite.
        Coverage and gaps are exact; cosines are estimates from the drawn cells.
        """
        sampled, with_q, known = self._log_sums(candidates)
        normaliser = with_q if corrected else sampled
        training = Alignment.of(self.blank, self.label, normaliser, self.utterance.shape)
        if not np.isfinite(training.loss):
            return None
        ours, theirs = self.gradient, self._training_gradient(candidates, training, normaliser, corrected)
        covered, certain = (self.mean((x - self.log_sum_exp).exp()) for x in (sampled, known))
        return Measurement(
            coverage=covered,
            negative_coverage=min(1.0, max(0.0, (covered - certain) / (1 - certain))) if certain < 1 else 1.0,
            gap=self.mean(sampled - self.log_sum_exp),
            corrected_gap=None if candidates.log_q is None else self.mean(with_q - self.log_sum_exp),
            cosine=_cosine(
                *((self._cell_weight.sqrt()[:, None] * x.double()).flatten() for x in (ours, theirs))
            ).item(),
            cell_cosine=(self._drawn_occupancy() * _cosine(ours, theirs)).sum().item(),
            exact_loss=self.loss,
            sampled_loss=training.loss,
            candidates=len(candidates.ids),
        )

    def _log_sums(self, candidates: CandidateSet) -> torch.Tensor:
        """(3, T (U+1)) log-sum-exps over the candidates, over them with correction, over blank and labels."""
        utterance, ids = self.utterance, candidates.ids
        nothing = utterance.bias.new_zeros(len(ids), dtype=utterance.dtype)
        log_q = nothing if candidates.log_q is None else candidates.log_q
        offsets = nothing, log_q, torch.where(candidates.positive, 0, torch.inf)
        sums = []
        for _, hidden in utterance.blocks(utterance.cells(), len(ids)):
            scores = utterance.scores(hidden, ids)
            sums.append(torch.stack([(scores - x).logsumexp(dim=1) for x in offsets]))
        return torch.cat(sums, dim=1)

    def _training_gradient(self, candidates: CandidateSet, training: Alignment, normaliser, corrected: bool):
        """(n, H) at the drawn cells."""
        utterance, dtype = self.utterance, self.utterance.dtype
        rows, gradients = utterance.rows(candidates.ids), []
        for cells, hidden in utterance.blocks(self.cells, len(rows)):
            by_blank, by_label = training.arcs(cells, dtype)
            logits = utterance.scores(hidden, candidates.ids)
            if corrected:
                logits = logits - candidates.log_q
            dz = (logits - normaliser[cells, None]).exp() * (by_blank + by_label)
            dz[:, :1] -= by_blank
            dz.scatter_add_(1, utterance.next_label(candidates.place, 0, cells)[:, None], -by_label)
            gradients.append((dz.to(hidden.dtype) @ rows).to(dtype))
        return torch.cat(gradients)


def _cosine(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Along the last axis; 0 where one of them is 0."""
    a, b = a.double(), b.double()
    return (a * b).sum(dim=-1) / (a.norm(dim=-1) * b.norm(dim=-1)).clamp_min(1e-200)


def draw_cells(occupancy: np.ndarray, cells: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Systematic sampling: evenly spaced places on the cumulative probability, the first at random.

    Returns:
        (n,) int64, cells, all of them once where there are no more; (n,) float64, 1 / (how often each is expected),
        with which sums over the drawn cells are unbiased estimates of sums over all.
    """
    if occupancy.size <= cells:
        return np.arange(occupancy.size), np.ones(occupancy.size)
    probability = (1 - EVENLY) * occupancy / occupancy.sum() + EVENLY / occupancy.size
    places = (np.arange(cells) + np.random.default_rng(seed).random()) / cells
    chosen = np.minimum(np.searchsorted(probability.cumsum(), places, side="right"), occupancy.size - 1)
    return chosen, 1 / (cells * probability[chosen])
