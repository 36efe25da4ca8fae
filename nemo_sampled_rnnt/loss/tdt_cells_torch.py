"""The cell operations of a TDT model on the CPU: those of plain RNN-T, and the durations' columns."""

from __future__ import annotations

import torch

from nemo_sampled_rnnt.loss.cells_torch import TorchCells
from nemo_sampled_rnnt.loss.problem import Problem
from nemo_sampled_rnnt.loss.tdt_recursion import arc_posteriors, log_likelihood
from nemo_sampled_rnnt.loss.tiles import Tile


class TdtTorchCells(TorchCells):
    """The softmax over labels and blank is plain RNN-T's, whose offsets leave the durations' columns out.

        dz_d = w_b (occ p(d) - gamma_d)                         gamma_d over both arcs of duration d

    Neither FastEmit nor clamp touches these, as in NeMo.

    Args:
        duration_bias: (D,) float; the others as those of :class:`TorchCells`.
    """

    def __init__(self, *arguments, duration_bias: torch.Tensor):
        super().__init__(*arguments)
        problem: Problem = self.problem
        self.durations = problem.options.durations
        self.duration_bias = duration_bias.to(self.normaliser.dtype)
        shape = problem.lattice.cells, len(self.durations)
        self.log_duration = self.normaliser.new_empty(shape)  # log p(d) - sigma, which every arc has once
        self.by_duration = self.normaliser.new_empty(shape if self.needs.any else (0, shape[1]))
        first = problem.candidates.durations
        self.columns = slice(first, first + shape[1])

    def scores(self, tile: Tile, logits: torch.Tensor) -> None:
        super().scores(tile, logits)
        scores = logits[: tile.cells, self.columns].to(self.duration_bias.dtype) + self.duration_bias
        part = slice(tile.first_cell, tile.first_cell + tile.cells)
        torch.sub(scores.log_softmax(dim=1), self.problem.options.sigma, out=self.log_duration[part])

    def lattice(self, first: int, last: int, backward: bool) -> None:
        for utterance in range(first, last):
            cells = slice(*self.problem.lattice.cell_offset[utterance : utterance + 2])
            shape = self.problem.lattice.frames[utterance], self.problem.lattice.width(utterance)

            def grids(*kept, cells=cells, shape=shape):
                return (x[cells].unflatten(0, shape).numpy() for x in kept)

            arcs = grids(self.log_blank, self.log_label, self.log_duration)
            if backward:
                posteriors = grids(self.by_blank, self.by_label, self.by_duration)
                self.costs[utterance] = -arc_posteriors(*arcs, self.durations, *posteriors)
            else:
                self.costs[utterance] = -log_likelihood(*arcs, self.durations)

    def gradient(self, tile: Tile, logits: torch.Tensor) -> None:
        super().gradient(tile, logits)
        for segment, part, cells in self._segments(tile):
            if self.costs[segment.utterance].isfinite():
                posterior = self.by_duration[cells]
                probability = (self.log_duration[cells] + self.problem.options.sigma).exp()
                gradient = posterior.sum(dim=1, keepdim=True) * probability - posterior
                logits[part, self.columns] = (gradient * self.weights[segment.utterance]).to(logits.dtype)
